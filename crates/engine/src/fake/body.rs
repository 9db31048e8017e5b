//! The process that a fake machine is, where tests need one: to be stopped, to outlive its server, and to be heard from outside.

use std::{
    io,
    path::Path,
    process::{Command, Stdio},
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::process::start_time;

/// Makes the program of a machine, from the file in which that is written down and the number by which it is told from those in the same file.
pub(super) type Program = dyn Fn(&Path, u64) -> Command + Send + Sync;

/// A process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Body {
    pid: u32,
    started: u64,
}

impl Body {
    /// Starts it. It lives on without us, and a thread buries it if it ends before.
    pub(super) fn start(mut command: Command) -> io::Result<Self> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        let pid = child.id();
        let body = start_time(pid).map(|started| Self { pid, started });
        let buried = std::thread::Builder::new().name("fake-body".into()).spawn(move || drop(child.wait()));
        buried.map(drop)?;
        body
    }

    /// Its number, while it is there.
    pub(super) fn pid(self) -> Option<u32> {
        start_time(self.pid).is_ok_and(|started| started == self.started).then_some(self.pid)
    }

    /// Kills it, if it is there. One that stands still ends too.
    pub(super) fn end(self) {
        let raw = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        // Held, and then asked who it is: nobody else is killed.
        if let Some(Ok(held)) = raw.map(|raw| pidfd_open(raw, PidfdFlags::empty()))
            && self.pid().is_some()
            && let Err(errno) = pidfd_send_signal(&held, Signal::KILL)
        {
            tracing::debug!(pid = self.pid, %errno, "a fake machine's process has ended");
        }
    }
}
