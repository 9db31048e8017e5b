//! The socket on which a sandbox answers those who started it: a call as JSON, an answer as JSON (gVisor's `pkg/urpc`).
//!
//! Its methods are gVisor's own affair and may change between builds, so the probe tries those that are used here. What takes a
//! command line of `runsc` tens of milliseconds takes a tenth of one here.

use std::{io, path::Path, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};

use super::spec::CONTAINER;
use crate::directory;

/// It answers at once, also on a host that is short of CPU.
pub(super) const DEADLINE: Duration = Duration::from_secs(20);
/// The stacks of some ten thousand threads.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// Why a call was not answered as was hoped.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// Nobody is there, or is any more.
    #[error("cannot speak to the sandbox")]
    Closed(#[source] io::Error),
    /// It refused, in its own words.
    #[error("the sandbox refused: {0}")]
    Refused(String),
    /// It did not answer.
    #[error("the sandbox did not answer within {} s", DEADLINE.as_secs())]
    Deadline,
}

#[derive(Serialize)]
struct Request<'a> {
    method: &'a str,
    arg: Value,
}

#[derive(Deserialize)]
struct Answer {
    success: bool,
    #[serde(default)]
    err: String,
    #[serde(default)]
    result: Value,
}

/// Stops every task of the sandbox. Calls count: after two it takes two [`resume`]s.
pub(super) async fn pause(root: &Path) -> Result<(), CallError> {
    call(root, "containerManager.Pause").await.map(drop)
}

/// Lets them go on. A sandbox that is not paused ends by it.
pub(super) async fn resume(root: &Path) -> Result<(), CallError> {
    call(root, "containerManager.Resume").await.map(drop)
}

/// Whether the sandbox is paused. It is not a question that it knows, but its stacks tell.
pub(super) async fn is_paused(root: &Path) -> Result<bool, CallError> {
    let stacks = call(root, "debug.Stacks").await?;
    let told = stacks.as_str().and_then(paused_by_stacks);
    told.ok_or_else(|| CallError::Refused("its stacks show no task".to_owned()))
}

/// Whether every task of the sandbox waits for something: none has work that it has not begun, nor has what brings it work by TCP.
pub(super) async fn is_at_rest(root: &Path) -> Result<bool, CallError> {
    let stacks = call(root, "debug.Stacks").await?;
    let told = stacks.as_str().and_then(at_rest_by_stacks);
    told.ok_or_else(|| CallError::Refused("its stacks show no task".to_owned()))
}

fn at_rest_by_stacks(stacks: &str) -> Option<bool> {
    let mut tasks = stacks.split("\n\n").filter(|stack| stack.contains("kernel.(*Task).run(")).peekable();
    tasks.peek()?;
    let mut segments = stacks.split("\n\n").filter(|stack| stack.contains("tcp.(*processor).start("));
    Some(tasks.all(|task| task.contains("kernel.(*Task).block(") && !has_work(task)) && !segments.any(has_work))
}

/// Whether it waits no more: it may not have had its turn yet, and still be where it waited.
fn has_work(stack: &str) -> bool {
    let head = stack.lines().find(|line| line.starts_with("goroutine "));
    head.is_some_and(|head| head.contains("[runn"))
}

/// A task that somebody outside has stopped is in `doStop`. So may one be that a debugger or a signal has stopped, but never the first
/// process, which nobody stops so.
fn paused_by_stacks(stacks: &str) -> Option<bool> {
    let tasks = stacks.split("\n\n").filter(|stack| stack.contains("kernel.(*Task).run("));
    let (mut seen, mut stopped) = (0, 0);
    for task in tasks {
        seen += 1;
        stopped += usize::from(task.contains("kernel.(*Task).doStop("));
    }
    (seen > 0).then_some(seen == stopped)
}

async fn call(root: &Path, method: &str) -> Result<Value, CallError> {
    timeout(DEADLINE, exchange(root, method)).await.map_err(|_| CallError::Deadline)?
}

async fn exchange(root: &Path, method: &str) -> Result<Value, CallError> {
    let mut stream = directory::connect(root, &format!("runsc-{CONTAINER}.sock")).await.map_err(CallError::Closed)?;
    let request = Request { method, arg: Value::Object(serde_json::Map::new()) };
    let request = serde_json::to_vec(&request).expect("a method's name is JSON");
    stream.write_all(&request).await.map_err(CallError::Closed)?;
    let answer = read(&mut stream).await.map_err(CallError::Closed)?;
    if answer.success { Ok(answer.result) } else { Err(CallError::Refused(answer.err)) }
}

/// An answer ends where its JSON does: the connection stays open.
async fn read(stream: &mut UnixStream) -> io::Result<Answer> {
    let mut bytes = Vec::new();
    loop {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // Only an answer that may be whole is read: a long one comes in many parts.
        if bytes.last() == Some(&b'}') || bytes.ends_with(b"}\n") {
            match serde_json::from_slice(&bytes) {
                Ok(answer) => return Ok(answer),
                Err(error) if error.is_eof() => {}
                Err(error) => return Err(error.into()),
            }
        }
        if bytes.len() > MAX_ANSWER_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer has no end"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUNNING: &str = "goroutine 35 [select]:\ngvisor.dev/gvisor/pkg/sentry/kernel.(*Task).run(0xc00013ea88, 0x1)\n\n";
    const STOPPED: &str = "goroutine 36 [sync.Cond.Wait]:\ngvisor.dev/gvisor/pkg/sentry/kernel.(*Task).doStop(0xc0)\n\
                           gvisor.dev/gvisor/pkg/sentry/kernel.(*Task).run(0xc0, 0x2)\n\n";
    const OTHER: &str = "goroutine 1 [chan receive]:\nmain.main()\n\n";

    #[test]
    fn a_sandbox_is_paused_when_all_of_its_tasks_are() {
        assert_eq!(paused_by_stacks(&[OTHER, STOPPED, STOPPED].concat()), Some(true));
        assert_eq!(paused_by_stacks(&[STOPPED, OTHER, RUNNING].concat()), Some(false));
        assert_eq!(paused_by_stacks(OTHER), None, "one that was never started has no tasks");
    }

    #[test]
    fn a_sandbox_is_at_rest_when_all_of_its_tasks_wait() {
        const WAITING: &str = "goroutine 37 [select]:\ngvisor.dev/gvisor/pkg/sentry/kernel.(*Task).block(0xc0)\n\
                               gvisor.dev/gvisor/pkg/sentry/kernel.(*Task).run(0xc0, 0x3)\n\n";
        assert_eq!(at_rest_by_stacks(&[OTHER, WAITING, WAITING].concat()), Some(true));
        assert_eq!(at_rest_by_stacks(&[WAITING, RUNNING].concat()), Some(false));
        let woken = WAITING.replace("[select]", "[runnable]");
        assert_eq!(at_rest_by_stacks(&[WAITING, &woken].concat()), Some(false));
        const SEGMENTS: &str = "goroutine 12 [select]:\ngvisor.dev/gvisor/pkg/sleep.(*Sleeper).Fetch(...)\n\
                                gvisor.dev/gvisor/pkg/tcpip/transport/tcp.(*processor).start(0xc0, 0x0)\n\n";
        assert_eq!(at_rest_by_stacks(&[SEGMENTS, WAITING].concat()), Some(true));
        let segment = SEGMENTS.replace("[select]", "[runnable]");
        assert_eq!(at_rest_by_stacks(&[&segment, WAITING].concat()), Some(false));
        assert_eq!(at_rest_by_stacks(OTHER), None);
    }
}
