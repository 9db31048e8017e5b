//! Commands: started for a user, watched by one owner task each, forgotten half a minute after their end.
//!
//! ```text
//!   start ──► running ── output closed and child reaped ──► ended ── RETAIN_END ──► forgotten
//!                └─ deadline, kill: group signalled, output drained for DRAIN_GRACE ─┘
//! ```
//!
//! A command outlives the connection that started it, unless its client ties the two (`tied.rs`). Its end waits for its output to close, so that a background child that
//! still writes is heard; once the command has been told to die, only a moment's grace is given.

mod output;
mod pty;
mod service;
mod spawn;
mod tied;

use std::{
    collections::BTreeMap,
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use firkin_wire::{envd::process::ProcessConfig, signals};
use futures::future::join_all;
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest, unix::AsyncFd},
    net::unix::pipe,
    sync::{Mutex as AsyncMutex, Notify, oneshot},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use self::output::{Chunk, End, Output, Subscription};
pub(crate) use self::pty::{Size, Terminal, open as open_terminal};
pub(super) use self::service::ProcessService;
pub(crate) use self::spawn::{Ends, Launch, Streams, find, launch};
use crate::{
    readiness,
    reaper::{Exit, Reaper},
};

/// How long the end of a command stays known to those who connect late.
const RETAIN_END: Duration = Duration::from_secs(30);

/// How long output is still read after a command was told to die and did.
const DRAIN_GRACE: Duration = Duration::from_millis(200);

/// How much output is still read after that, should a background child write without pause; several pipes' worth.
const DRAIN_BYTES: usize = 1 << 20;

/// Bytes read at once from a command; one chunk of output.
const CHUNK_BYTES: usize = 32 << 10;

/// Commands that may run at once; far above what a sandbox holds, far below what would exhaust the agent.
const MAX_PROCESSES: usize = 4096;

/// One command.
#[derive(Debug)]
pub(super) struct Process {
    /// Process id, also the id of its session and process group.
    pub(super) pid: u32,
    /// As the client described it.
    pub(super) config: ProcessConfig,
    /// Name that the client gave it.
    pub(super) tag: Option<String>,
    output: Output,
    input: Input,
    /// Notified when the command is told to die.
    condemned: Notify,
}

/// Where input goes.
#[derive(Debug)]
enum Input {
    /// A pipe, until it is closed. `None`: none was wanted.
    Pipe(AsyncMutex<Option<pipe::Sender>>),
    /// The terminal's master, and a lock that keeps the bytes of two writers apart.
    Terminal(Arc<AsyncFd<OwnedFd>>, AsyncMutex<()>),
}

/// Why input cannot be delivered.
#[derive(Debug, thiserror::Error)]
pub(super) enum InputError {
    /// Terminal input for a command without one, or the reverse.
    #[error("cannot write {wanted} input: the process {has}")]
    WrongKind {
        /// The kind of input that was sent.
        wanted: &'static str,
        /// The kind that it would have taken.
        has: &'static str,
    },
    /// Standard input was not wanted or is closed.
    #[error("cannot write to stdin: it is not enabled or already closed")]
    Closed,
    /// A terminal has no end of input of its own.
    #[error("cannot close stdin of a terminal: send Ctrl+D (0x04) instead")]
    TerminalClose,
    /// The other end is gone.
    #[error("cannot write to the process")]
    Write(#[source] io::Error),
}

/// Every command that runs or has just ended.
#[derive(Debug, Clone)]
pub(super) struct Processes(Arc<Table>);

#[derive(Debug)]
struct Table {
    reaper: Reaper,
    rows: Mutex<BTreeMap<u32, Arc<Process>>>,
}

/// Why a command did not start.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    /// Too many at once.
    #[error("cannot start another process: {MAX_PROCESSES} are running")]
    TooMany,
    /// The system refused: no such program, no permission, no memory.
    #[error("cannot start process `{program}`")]
    Spawn {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Processes {
    pub(super) fn new(reaper: Reaper) -> Self {
        Self(Arc::new(Table { reaper, rows: Mutex::default() }))
    }

    fn rows(&self) -> MutexGuard<'_, BTreeMap<u32, Arc<Process>>> {
        self.0.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a command and the task that owns it. The subscription misses nothing. Blocks for a fork and an exec; needs a
    /// runtime. `deadline` is when the command's group is killed.
    pub(super) fn start(
        &self,
        described: Described,
        deadline: Option<Instant>,
    ) -> Result<(Arc<Process>, Subscription), StartError> {
        self.make_room()?;
        let program = described.launch.program.clone();
        let spawn_error = |source| StartError::Spawn { program: program.clone(), source };
        let launched = launch(&self.0.reaper, &described.launch).map_err(&spawn_error)?;
        let pid = launched.started.pid.as_raw().unsigned_abs();
        let (input, readers) = adopt(launched.ends).map_err(|error| {
            // Out of descriptors: a command that nobody can hear must not run.
            if let Err(error) = signal_group(pid, Signal::SIGKILL) {
                tracing::warn!(pid, %error, "cannot kill a process without streams");
            }
            spawn_error(error)
        })?;
        let process = Arc::new(Process {
            pid,
            config: described.config,
            tag: described.tag,
            output: Output::new(),
            input,
            condemned: Notify::new(),
        });
        let subscription = process.output.subscribe();
        self.rows().insert(pid, Arc::clone(&process));
        tokio::spawn(own(self.clone(), Arc::clone(&process), readers, launched.started.exit, deadline));
        Ok((process, subscription))
    }

    /// Refuses one more command than may run; ends are forgotten early when they fill the table.
    fn make_room(&self) -> Result<(), StartError> {
        let mut rows = self.rows();
        if rows.len() >= MAX_PROCESSES {
            rows.retain(|_, process| process.is_running());
        }
        if rows.len() >= MAX_PROCESSES { Err(StartError::TooMany) } else { Ok(()) }
    }

    /// The command with this id, running or just ended.
    pub(super) fn by_pid(&self, pid: u32) -> Option<Arc<Process>> {
        self.rows().get(&pid).cloned()
    }

    /// The command with this tag; a running one before one that has ended.
    pub(super) fn by_tag(&self, tag: &str) -> Option<Arc<Process>> {
        let rows = self.rows();
        let tagged = || rows.values().filter(|process| process.tag.as_deref() == Some(tag));
        tagged().find(|process| process.is_running()).or_else(|| tagged().next()).cloned()
    }

    /// Those that run.
    pub(super) fn running(&self) -> Vec<Arc<Process>> {
        self.rows().values().filter(|process| process.is_running()).cloned().collect()
    }

    /// Forgets a command, unless its id already names another.
    fn forget(&self, process: &Arc<Process>) {
        let mut rows = self.rows();
        if rows.get(&process.pid).is_some_and(|row| Arc::ptr_eq(row, process)) {
            rows.remove(&process.pid);
        }
    }
}

/// A command to start, and how the client described it.
#[derive(Debug)]
pub(super) struct Described {
    /// As it will be listed.
    pub(super) config: ProcessConfig,
    /// Its tag.
    pub(super) tag: Option<String>,
    /// The command, as the client gave it.
    pub(super) launch: Launch,
}

impl Process {
    pub(super) fn is_running(&self) -> bool {
        self.output.ended().is_none()
    }

    /// Output from now on, then the end.
    pub(super) fn subscribe(&self) -> Subscription {
        self.output.subscribe()
    }

    /// Signals the command's process group. A deadly signal also bounds how long its output is waited for.
    pub(super) fn signal(&self, signal: Signal) -> nix::Result<()> {
        signal_group(self.pid, signal)?;
        if matches!(signal, Signal::SIGKILL | Signal::SIGTERM) {
            self.condemned.notify_one();
        }
        Ok(())
    }

    /// Writes to standard input. Waits while the command does not read.
    pub(super) async fn write_stdin(&self, data: &[u8]) -> Result<(), InputError> {
        let Input::Pipe(pipe) = &self.input else {
            return Err(InputError::WrongKind { wanted: "stdin", has: "has a terminal" });
        };
        let mut pipe = pipe.lock().await;
        pipe.as_mut().ok_or(InputError::Closed)?.write_all(data).await.map_err(InputError::Write)
    }

    /// Writes to the terminal. Waits while its queue is full.
    pub(super) async fn write_terminal(&self, mut data: &[u8]) -> Result<(), InputError> {
        let Input::Terminal(master, writing) = &self.input else {
            return Err(InputError::WrongKind { wanted: "terminal", has: "has no terminal" });
        };
        let _alone = writing.lock().await;
        while !data.is_empty() {
            let write = |fd: &OwnedFd| nix::unistd::write(fd, data).map_err(io::Error::from);
            let written = master.async_io(Interest::WRITABLE, write).await.map_err(InputError::Write)?;
            data = &data[written..];
        }
        Ok(())
    }

    /// Ends standard input. Closing it twice is fine.
    pub(super) async fn close_stdin(&self) -> Result<(), InputError> {
        match &self.input {
            Input::Pipe(pipe) => {
                pipe.lock().await.take();
                Ok(())
            }
            Input::Terminal(..) => Err(InputError::TerminalClose),
        }
    }

    /// Changes the terminal's size.
    pub(super) fn resize(&self, size: Size) -> Result<(), InputError> {
        match &self.input {
            Input::Terminal(master, _) => pty::resize(master.get_ref(), size).map_err(InputError::Write),
            Input::Pipe(_) => Err(InputError::WrongKind { wanted: "terminal", has: "has no terminal" }),
        }
    }
}

/// Signals a process group. One that is gone has done what the signal was for.
fn signal_group(pid: u32, signal: Signal) -> nix::Result<()> {
    let pid = Pid::from_raw(i32::try_from(pid).expect("Linux process ids are below 2^22"));
    match killpg(pid, signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(error),
    }
}

/// One of our reading ends, and what its bytes are.
struct Reader {
    end: ReadEnd,
    kind: fn(Bytes) -> Chunk,
}

enum ReadEnd {
    Pipe(pipe::Receiver),
    Terminal(Arc<AsyncFd<OwnedFd>>),
}

impl ReadEnd {
    /// As `read(2)`. A terminal whose last user has gone says so with an error, which is its end of file.
    async fn read(&mut self, buffer: &mut [u8]) -> usize {
        let result = match self {
            Self::Pipe(pipe) => pipe.read(buffer).await,
            Self::Terminal(master) => {
                let read = |fd: &OwnedFd| nix::unistd::read(fd, buffer).map_err(io::Error::from);
                master.async_io(Interest::READABLE, read).await
            }
        };
        result.unwrap_or(0)
    }
}

/// Gives our ends to the runtime.
fn adopt(ends: Ends) -> io::Result<(Input, Vec<Reader>)> {
    match ends {
        Ends::Pipes { stdin, stdout, stderr } => {
            let stdin = stdin.map(|fd| nonblocking(fd).and_then(pipe::Sender::from_owned_fd)).transpose()?;
            let reader = |fd, kind| -> io::Result<Reader> {
                Ok(Reader { end: ReadEnd::Pipe(pipe::Receiver::from_owned_fd(nonblocking(fd)?)?), kind })
            };
            let readers = vec![reader(stdout, Chunk::Stdout)?, reader(stderr, Chunk::Stderr)?];
            Ok((Input::Pipe(AsyncMutex::new(stdin)), readers))
        }
        Ends::Terminal(master) => {
            let master = Arc::new(readiness::register(master)?);
            let reader = Reader { end: ReadEnd::Terminal(Arc::clone(&master)), kind: Chunk::Pty };
            Ok((Input::Terminal(master, AsyncMutex::new(())), vec![reader]))
        }
    }
}

/// The same descriptor, which no longer blocks.
pub(crate) fn nonblocking(fd: OwnedFd) -> io::Result<OwnedFd> {
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(fd)
}

/// The owner of one command: moves its output, enforces its deadline, announces and then forgets its end.
async fn own(
    processes: Processes,
    process: Arc<Process>,
    readers: Vec<Reader>,
    exit: oneshot::Receiver<Exit>,
    deadline: Option<Instant>,
) {
    let stop = CancellationToken::new();
    let (mut condemned, mut timed_out) = (false, false);
    let mut exited = None;
    {
        let pump = join_all(readers.into_iter().map(|reader| move_chunks(&process.output, reader, &stop)));
        tokio::pin!(pump, exit);
        let mut drained = false;
        while !(drained && exited.is_some()) {
            tokio::select! {
                _ = &mut pump, if !drained => drained = true,
                status = &mut exit, if exited.is_none() => exited = Some(status.ok()),
                () = process.condemned.notified(), if !condemned => condemned = true,
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() && !timed_out => {
                    timed_out = true;
                    if let Err(error) = process.signal(Signal::SIGKILL) {
                        tracing::warn!(pid = process.pid, %error, "cannot kill a process at its deadline");
                    }
                }
            }
            if condemned && exited.is_some() {
                stop.cancel();
            }
        }
    }
    process.output.finish(end_of(exited.flatten(), timed_out));
    sleep(RETAIN_END).await;
    processes.forget(&process);
}

/// Moves output until it closes, or until it pauses after `stop`.
async fn move_chunks(output: &Output, mut reader: Reader, stop: &CancellationToken) {
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut left_after_stop = DRAIN_BYTES;
    while left_after_stop > 0 {
        let wait = async {
            stop.cancelled().await;
            sleep(DRAIN_GRACE).await;
        };
        let count = tokio::select! {
            biased;
            count = reader.end.read(&mut buffer) => count,
            () = wait => 0,
        };
        if count == 0 {
            return;
        }
        output.publish((reader.kind)(Bytes::copy_from_slice(&buffer[..count]))).await;
        if stop.is_cancelled() {
            left_after_stop = left_after_stop.saturating_sub(count);
        }
    }
}

/// The end as the contract words it.
fn end_of(exit: Option<Exit>, timed_out: bool) -> End {
    let (exit_code, exited, status) = match exit {
        Some(Exit::Code(code)) => (code, true, format!("exit status {code}")),
        Some(Exit::Signal(signal)) => (-1, false, signals::status(signal)),
        None => (-1, false, "exit status unknown".to_owned()),
    };
    let error = (exit_code != 0).then(|| status.clone());
    End { exit_code, exited, status, error, timed_out }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_worded_like_the_contract() {
        let end = end_of(Some(Exit::Code(3)), false);
        assert_eq!((end.exit_code, end.exited, end.error.as_deref()), (3, true, Some("exit status 3")));
        assert_eq!(end_of(Some(Exit::Code(0)), false).error, None);
        let end = end_of(Some(Exit::Signal(9)), true);
        assert_eq!((end.exit_code, end.exited, end.status.as_str()), (-1, false, "signal: killed"));
        assert_eq!(end_of(Some(Exit::Signal(40)), false).status, "signal: signal 40");
    }
}
