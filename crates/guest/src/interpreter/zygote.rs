//! The process that kernels are forked from, and how one is asked for.
//!
//! A kernel's pipes are made here; its ends of them go to the process through a socket, with the language, the directory and the
//! sandbox's variables. The process may be killed by user code, which runs as the same user: whoever then wants a kernel starts
//! another.

use std::{
    collections::BTreeMap,
    io::{self, IoSlice, Read, Write},
    net::Shutdown,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    fcntl::OFlag,
    sys::{
        signal::Signal,
        socket::{ControlMessage, MsgFlags, sendmsg},
    },
    unistd::{Pid, pipe2},
};
use serde::Serialize;
use tokio::{io::AsyncReadExt, net::unix::pipe, task::spawn_blocking, time::timeout};

use super::{Setup, group::Group};
use crate::{
    envd::{Ends, EnvdState, Launch, Streams, UserDb, UserError, launch, nonblocking},
    reaper::Reaper,
};

/// From the start of the process until it has loaded all libraries, which takes an emulated guest most of a minute, and many times
/// that on a host that is short of processors. A client that waits is told each 5 s that it does; nobody is there to try again.
const START_DEADLINE: Duration = Duration::from_secs(1800);

/// From the request to the answer: a fork. Requests wait for each other.
const FORK_DEADLINE: Duration = Duration::from_secs(30);

/// How much of what it says when it does not start is passed on.
const MAX_COMPLAINT_BYTES: u64 = 16 << 10;

/// An answer is a process id.
const MAX_ANSWER_BYTES: u64 = 32;

/// The running process. Dropping it kills it; kernels live on.
#[derive(Debug)]
pub(super) struct Zygote {
    group: Group,
    socket: PathBuf,
    // Its end is the agent's end to the process; what it may say is not heard after its start, and kept open for it.
    _ends: [OwnedFd; 3],
}

/// A forked kernel.
#[derive(Debug)]
pub(super) struct Forked {
    /// Its session, which it leads.
    pub(super) group: Group,
    /// Our ends of its standard input, output and error.
    pub(super) ends: [OwnedFd; 3],
}

/// Why there is nothing to fork kernels from. Told to whoever wanted a kernel.
#[derive(Debug, thiserror::Error)]
pub(super) enum ZygoteError {
    /// Nobody to run it as.
    #[error("cannot start the kernel")]
    User(#[from] UserError),
    /// The process does not start.
    #[error("cannot start the kernel's process")]
    Spawn(#[source] io::Error),
    /// The process ended at once.
    #[error("cannot start the kernel: {complaint}")]
    Ended {
        /// The end of what it said.
        complaint: String,
    },
    /// It takes too long.
    #[error("cannot start the kernel within {} s", START_DEADLINE.as_secs())]
    Deadline,
}

/// The kernel to fork.
#[derive(Debug, Serialize)]
pub(super) struct Wanted {
    /// The language by its name.
    pub(super) language: &'static str,
    /// Where it works.
    pub(super) cwd: PathBuf,
    /// Variables of the sandbox.
    pub(super) env: BTreeMap<String, String>,
}

impl Zygote {
    /// Starts the process and waits until it takes requests.
    pub(super) async fn start(setup: &Setup, state: &EnvdState, reaper: &Reaper) -> Result<Self, ZygoteError> {
        let socket = setup.programs.join("zygote.socket");
        let program = |name: &Path| name.to_string_lossy().into_owned();
        let launch_it = Launch {
            program: "python3".to_owned(),
            args: vec!["-B".to_owned(), program(&setup.programs.join("zygote.py")), program(&socket)],
            request_env: BTreeMap::new(),
            sandbox_env: state.settings().env.clone(),
            cwd: PathBuf::from("/"),
            user: UserDb::load()?.user(&setup.user)?,
            streams: Streams::Pipes { stdin: true },
        };
        let reaper = reaper.clone();
        let launched = spawn_blocking(move || launch(&reaper, &launch_it)).await;
        let launched = launched.map_err(io::Error::other).and_then(|result| result).map_err(ZygoteError::Spawn)?;
        let Ends::Pipes { stdin: Some(stdin), stdout, stderr } = launched.ends else {
            unreachable!("pipes were asked for");
        };
        let group = Group(launched.started.pid);
        let said = first_byte(&stdout).await.map_err(ZygoteError::Spawn)?;
        let zygote = Self { group, socket, _ends: [stdin, stdout, stderr] };
        match said {
            Some(true) => Ok(zygote),
            Some(false) => Err(ZygoteError::Ended { complaint: complaint(&zygote._ends[2]).await }),
            None => Err(ZygoteError::Deadline),
        }
    }

    /// Forks a kernel.
    pub(super) async fn fork(&self, wanted: Wanted) -> io::Result<Forked> {
        let socket = self.socket.clone();
        spawn_blocking(move || fork(&socket, &wanted)).await.map_err(io::Error::other)?
    }
}

impl Drop for Zygote {
    fn drop(&mut self) {
        self.group.signal(Signal::SIGKILL);
    }
}

/// Blocks until the process has answered.
fn fork(socket: &Path, wanted: &Wanted) -> io::Result<Forked> {
    let (child_in, our_in) = pipe2(OFlag::O_CLOEXEC)?;
    let (our_out, child_out) = pipe2(OFlag::O_CLOEXEC)?;
    let (our_err, child_err) = pipe2(OFlag::O_CLOEXEC)?;
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(FORK_DEADLINE))?;
    stream.set_write_timeout(Some(FORK_DEADLINE))?;
    let request = serde_json::to_vec(wanted).map_err(io::Error::other)?;
    let streams = [child_in.as_raw_fd(), child_out.as_raw_fd(), child_err.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&streams)];
    let sent = sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(&request)], &rights, MsgFlags::empty(), None)?;
    stream.write_all(&request[sent..])?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.take(MAX_ANSWER_BYTES).read_to_string(&mut answer)?;
    let pid: i32 = answer.trim().parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "no process id was answered"))?;
    Ok(Forked { group: Group(Pid::from_raw(pid)), ends: [our_in, our_out, our_err] })
}

fn reader(end: &OwnedFd) -> io::Result<pipe::Receiver> {
    pipe::Receiver::from_owned_fd(nonblocking(end.try_clone()?)?)
}

/// Whether it says something rather than ends; none if neither happens in time.
async fn first_byte(stdout: &OwnedFd) -> io::Result<Option<bool>> {
    let mut stdout = reader(stdout)?;
    let mut byte = [0];
    Ok(timeout(START_DEADLINE, stdout.read(&mut byte)).await.ok().map(|read| read.is_ok_and(|count| count > 0)))
}

/// The last line of what a process that ended has said.
pub(super) async fn complaint(stderr: &OwnedFd) -> String {
    let mut text = Vec::new();
    let read = async { reader(stderr)?.take(MAX_COMPLAINT_BYTES).read_to_end(&mut text).await };
    match timeout(Duration::from_secs(1), read).await {
        Ok(Ok(_)) | Err(_) => {}
        Ok(Err(error)) => tracing::debug!(%error, "cannot read a kernel's output"),
    }
    let text = String::from_utf8_lossy(&text);
    text.trim().lines().next_back().unwrap_or("it ended without a word").to_owned()
}
