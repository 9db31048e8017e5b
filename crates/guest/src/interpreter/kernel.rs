//! One kernel: a process group that takes cells on its standard input and tells events on its standard output.
//!
//! ```text
//!   start ──► ready ──► idle ◄──► a cell, interrupted by SIGINT ──► dead: its output ends, or it is killed by drop
//! ```
//!
//! Its events are always read, so that what a cell left running never waits for a reader; those of no cell, or of an earlier
//! one, are dropped. The process is user code's own and may write what it likes: a line that is no event is an error of the cell
//! that runs.
//!
//! A kernel may be in a snapshot, and then lives on in each of its clones: with the first cell of another life it is told to
//! renew what it draws random numbers from.

use std::{
    collections::BTreeMap,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use firkin_causes::chain;
use nix::sys::signal::Signal;
use serde::Serialize;
use tokio::{
    io::{AsyncWriteExt, BufReader},
    net::unix::pipe,
    sync::{Mutex as AsyncMutex, mpsc},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    Setup,
    event::{Event, Kind, next_line},
    group::Group,
    language::Language,
    zygote::{Forked, Wanted, Zygote, ZygoteError, complaint},
};
use crate::{
    envd::{EnvdState, nonblocking},
    reaper::Reaper,
};

/// Events on their way to a client that reads slowly; then the kernel waits, and with it whoever prints.
const EVENTS_IN_FLIGHT: usize = 4;

/// Read at once: what a pipe holds.
const READ_BYTES: usize = 64 << 10;

/// From the fork to readiness. Java's compiler takes an emulated guest most of a minute.
const START_DEADLINE: Duration = Duration::from_secs(240);

/// The cell that warms a kernel: all that the simplest of cells needs, and so all that any cell needs.
const WARM_CELL: &str = "1 + 1";

/// A cell to run.
#[derive(Debug, Clone)]
pub(super) struct Cell {
    /// Its text.
    pub(super) code: String,
    /// Variables for this cell only.
    pub(super) env: BTreeMap<String, String>,
    /// Variables of the sandbox; none: the client may not know them.
    pub(super) globals: Option<BTreeMap<String, String>>,
    /// Only to have run: a kernel that has run a user's cell does not run it, and any other is afterwards as it was.
    pub(super) warm: bool,
}

impl Cell {
    /// The cell that changes nothing.
    pub(super) fn warm() -> Self {
        Self { code: WARM_CELL.to_owned(), env: BTreeMap::new(), globals: Some(BTreeMap::new()), warm: true }
    }
}

/// Why there is no kernel.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    /// There is nothing to fork it from.
    #[error(transparent)]
    Zygote(#[from] ZygoteError),
    /// The directory is not there.
    #[error("cannot work in `{0}`: it is not a directory")]
    Workdir(PathBuf),
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

/// Everything that starting one needs.
#[derive(Debug)]
pub(super) struct Launcher {
    /// Programs and user.
    pub(super) setup: Setup,
    /// Settings of the sandbox.
    pub(super) state: EnvdState,
    /// Who starts processes.
    reaper: Reaper,
    /// The process that kernels are forked from, once there is one.
    zygote: AsyncMutex<Option<Zygote>>,
}

/// A kernel that takes cells. Dropping it kills its process group.
#[derive(Debug)]
pub(super) struct Kernel {
    group: Group,
    input: pipe::Sender,
    listener: Listener,
    reader: JoinHandle<()>,
    cells: u64,
    /// Whether a user's cell has run.
    used: bool,
    told: Option<BTreeMap<String, String>>,
    /// Where eras begin.
    state: EnvdState,
    /// The era it knows of: a later one began with the restore of a snapshot that holds it.
    era: CancellationToken,
}

/// Who hears the events of the cell that runs. Closed with the kernel's output.
#[derive(Debug, Clone, Default)]
struct Listener(Arc<Mutex<Hearing>>);

#[derive(Debug, Default)]
struct Hearing {
    cell: Option<u64>,
    sender: Option<mpsc::Sender<Event>>,
    /// Whether the cell has been told that something was lost: a thousand lines of anything are one error.
    lost: bool,
    closed: bool,
}

impl Listener {
    fn hearing(&self) -> MutexGuard<'_, Hearing> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hears the events of a cell, and none of any other; those of no cell if `cell` is none.
    fn listen(&self, cell: Option<u64>) -> mpsc::Receiver<Event> {
        let (sender, receiver) = mpsc::channel(EVENTS_IN_FLIGHT);
        let mut hearing = self.hearing();
        (hearing.cell, hearing.lost) = (cell, false);
        hearing.sender = (!hearing.closed).then_some(sender);
        receiver
    }

    fn of(&self, event: &Event) -> Option<mpsc::Sender<Event>> {
        let hearing = self.hearing();
        (hearing.cell == event.cell).then(|| hearing.sender.clone()).flatten()
    }

    /// The cell to tell that something was lost, if one runs that does not know.
    fn loses(&self) -> Option<u64> {
        let mut hearing = self.hearing();
        let cell = hearing.cell.filter(|_| !hearing.lost)?;
        hearing.lost = true;
        Some(cell)
    }

    async fn tell(&self, event: Event) {
        if let Some(sender) = self.of(&event) {
            // Whoever listened may have stopped.
            sender.send(event).await.ok();
        }
    }

    fn close(&self) {
        let mut hearing = self.hearing();
        (hearing.sender, hearing.closed) = (None, true);
    }
}

impl Launcher {
    /// How kernels are started with this; nothing is started yet.
    pub(super) fn new(setup: Setup, state: EnvdState, reaper: Reaper) -> Self {
        Self { setup, state, reaper, zygote: AsyncMutex::default() }
    }

    /// Starts a kernel and waits until it takes cells. `started` is told its group at once.
    pub(super) async fn start(&self, language: Language, cwd: &str, started: impl FnOnce(Group)) -> Result<Kernel, StartError> {
        let cwd = PathBuf::from(cwd);
        if !cwd.is_dir() {
            return Err(StartError::Workdir(cwd));
        }
        let forked = self.fork(language, &cwd).await?;
        started(forked.group);
        let (mut kernel, stderr) = self.adopt(forked).map_err(StartError::Spawn)?;
        match timeout(START_DEADLINE, kernel.ready()).await {
            Ok(true) => Ok(kernel),
            Ok(false) => Err(StartError::Ended { complaint: complaint(&stderr).await }),
            Err(_) => Err(StartError::Deadline),
        }
    }

    /// Forks a kernel off a zygote; of a new one if that which was there is gone.
    async fn fork(&self, language: Language, cwd: &Path) -> Result<Forked, StartError> {
        let wanted = || Wanted { language: language.name(), cwd: cwd.to_owned(), env: self.state.settings().env.clone() };
        let mut zygote = self.zygote.lock().await;
        if let Some(running) = zygote.as_ref() {
            match running.fork(wanted()).await {
                Ok(forked) => return Ok(forked),
                Err(error) => tracing::warn!(%error, "the process that kernels are forked from does not answer"),
            }
        }
        // The old one's end comes first: both have one socket.
        *zygote = None;
        let running = zygote.insert(Zygote::start(&self.setup, &self.state, &self.reaper).await?);
        running.fork(wanted()).await.map_err(StartError::Spawn)
    }

    /// A kernel with our ends of its pipes; the last is that of its standard error.
    fn adopt(&self, forked: Forked) -> io::Result<(Kernel, OwnedFd)> {
        let Forked { group, ends: [stdin, stdout, stderr] } = forked;
        let adopt =
            || Ok((pipe::Sender::from_owned_fd(nonblocking(stdin)?)?, pipe::Receiver::from_owned_fd(nonblocking(stdout)?)?));
        let (input, output) = adopt().inspect_err(|_: &io::Error| group.signal(Signal::SIGKILL))?;
        let listener = Listener::default();
        let reader = tokio::spawn(read(output, listener.clone()));
        let state = self.state.clone();
        let kernel = Kernel { group, input, listener, reader, cells: 0, used: false, told: None, era: state.era(), state };
        Ok((kernel, stderr))
    }
}

impl Kernel {
    /// Whether it becomes ready rather than ends.
    async fn ready(&mut self) -> bool {
        let mut events = self.listener.listen(None);
        while let Some(event) = events.recv().await {
            if event.kind == Kind::Ready {
                return true;
            }
        }
        false
    }

    /// Its process group.
    pub(super) fn group(&self) -> Group {
        self.group
    }

    /// Whether its output has ended.
    pub(super) fn is_dead(&self) -> bool {
        self.reader.is_finished()
    }

    /// Whether it has run a user's cell.
    pub(super) fn is_used(&self) -> bool {
        self.used
    }

    /// Gives it a cell. The events end with [`Kind::Done`], or without when the kernel ends.
    pub(super) async fn run(&mut self, cell: &Cell) -> mpsc::Receiver<Event> {
        #[derive(Serialize)]
        struct Request<'a> {
            cell: u64,
            code: &'a str,
            env: &'a BTreeMap<String, String>,
            globals: Option<&'a BTreeMap<String, String>>,
            reseed: bool,
            warm: bool,
        }
        self.cells += 1;
        // What has been told once stays; a restore may have brought other values.
        let globals = cell.globals.as_ref().filter(|globals| self.told.as_ref() != Some(globals));
        // Each clone of a snapshot has the same state to draw from. What the program has seeded itself, the kernel leaves.
        let reseed = cell.warm || self.era.is_cancelled();
        self.era = self.state.era();
        self.used |= !cell.warm;
        let request = Request { cell: self.cells, code: &cell.code, env: &cell.env, globals, reseed, warm: cell.warm };
        let mut line = serde_json::to_vec(&request).expect("strings and numbers serialise");
        line.push(b'\n');
        let events = self.listener.listen(Some(self.cells));
        if let Some(globals) = globals {
            self.told = Some(globals.clone());
        }
        // A kernel that takes nothing has ended, or will be found so: its events end.
        if let Err(error) = self.input.write_all(&line).await {
            tracing::debug!(%error, "a kernel does not accept a cell");
        }
        events
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.group.signal(Signal::SIGKILL);
        self.reader.abort();
    }
}

/// Reads a kernel's events until its output ends.
async fn read(output: pipe::Receiver, listener: Listener) {
    let mut output = BufReader::with_capacity(READ_BYTES, output);
    loop {
        let line = match next_line(&mut output).await {
            Ok(Some(line)) => line,
            Ok(None) => break,
            Err(error) => {
                tracing::warn!(%error, "cannot read a kernel's events");
                break;
            }
        };
        match Event::read(&line) {
            Ok(event) => listener.tell(event).await,
            Err(lost) => {
                let loss = chain(&lost.error);
                tracing::warn!(%loss, "a kernel's event is lost");
                if let Some(cell) = listener.loses() {
                    listener.tell(Event::error(Some(cell), "KernelEventError", &loss)).await;
                }
                if let Some(rest) = lost.rest {
                    listener.tell(rest).await;
                }
            }
        }
    }
    listener.close();
}
