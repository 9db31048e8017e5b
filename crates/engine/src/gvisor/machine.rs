//! One sandbox: the states of the seam's diagram, kept in step with the process.
//!
//! A sandbox counts how often it was paused, and one that is resumed once too often ends. So it is paused and resumed only from a state
//! that is known: such a call is never cancelled halfway, and where its outcome was not heard the sandbox is asked.

use std::{
    ffi::OsString,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    channel::Channel,
    command::{self, Call, RunError, Streams},
    cost,
    instance::{self, CONSOLE, RUNSC_DIR, Record},
    network::{self, Network, View},
    program::Program,
    remains::Remains,
    room::Room,
    sentry::{self, CallError},
    spec, state as sealed,
};
use crate::{
    ControlStream, Exit, HostUse, Machine, MachineError, MemoryForm, SnapshotParts,
    directory::{self, blocking},
    parts,
    process::Process,
};

/// Between a socket's hang-up and the end of its process. What takes longer is killed.
const EXIT_DEADLINE: Duration = Duration::from_secs(3);
/// Between looks at the lengths of console and log.
const LOG_INTERVAL: Duration = Duration::from_secs(10);
/// Between two looks at whether a guest is at rest.
const REST_LOOK: Duration = Duration::from_millis(3);
/// So many looks in a row that find it so are rest.
const RESTED: u32 = 3;
/// How long it may take: a guest stands still for it.
const REST_DEADLINE: Duration = Duration::from_millis(200);
/// How often the connections to a guest are ended: those that were on their way the first time are open the second.
const QUIET_ATTEMPTS: u32 = 4;
/// What is shown of a console.
const CONSOLE_BYTES: u64 = 64 << 10;
/// The last line of a first process that powers its machine off, and of one that resets it.
const POWERED_OFF: &str = "reboot: Power down";
const RESET: &str = "reboot: Restarting system";
/// Where a checkpoint is written before it is sealed, below the snapshot's directory.
const CHECKPOINT_DIR: &str = "checkpoint";

/// A state of the seam's diagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    Running,
    Paused,
    /// A call was not answered.
    Unsure,
    Gone(Exit),
}

/// The parts of a sandbox, once its process is up.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) process: Process,
    pub(super) remains: Remains,
    pub(super) dir: PathBuf,
    pub(super) record: Record,
    pub(super) program: Program,
    pub(super) network: Network,
}

#[derive(Debug)]
pub(super) struct GvisorMachine {
    parts: Parts,
    state: State,
    /// A call that whoever waited for it has given up, with the state that it leads to.
    pending: Option<(State, JoinHandle<Result<(), CallError>>)>,
    /// Ends the connection that was given out last.
    control: CancellationToken,
    /// Whether what is sent to it may be turned away.
    deaf: bool,
    killed: bool,
}

impl Parts {
    /// A run of the command on this sandbox, by the binary and with the flags that it was made with.
    pub(super) fn call(&self, words: Vec<OsString>, streams: Streams, view: View) -> Call {
        Call {
            program: self.program.clone(),
            dir: self.dir.clone(),
            words,
            program_words: &[],
            streams,
            network: self.network,
            view,
            options: self.record.origin.options,
            groups: Vec::new(),
            processors: None,
        }
    }

    /// The directory of `runsc`.
    pub(super) fn root(&self) -> PathBuf {
        self.dir.join(RUNSC_DIR)
    }

    /// Ends all that is left, and tells how it came to that.
    pub(super) async fn settle(&mut self, killed: bool) -> Exit {
        let ended = match timeout(EXIT_DEADLINE, self.process.ended()).await {
            Ok(ended) => ended,
            Err(_) => {
                self.process.kill();
                self.process.ended().await
            }
        };
        let search = self.remains.searcher();
        match blocking(move || Ok(search.end())).await {
            Ok(true) => self.remains.are_gone(),
            // Its end looks for them again.
            Ok(false) => {}
            Err(error) => tracing::warn!(pid = self.process.pid(), %error, "cannot end what a sandbox leaves"),
        }
        let console = instance::tail(&self.dir.join(CONSOLE)).unwrap_or_default();
        match console.lines().last().map(str::trim) {
            _ if killed => Exit::Killed,
            Some(POWERED_OFF) => Exit::GuestPoweroff,
            Some(RESET) => Exit::GuestReset { reason: "guest-reset".into() },
            Some(_) | None => self.process.crash(ended),
        }
    }
}

impl GvisorMachine {
    pub(super) fn new(parts: Parts, state: State) -> Self {
        Self { parts, state, pending: None, control: CancellationToken::new(), deaf: false, killed: false }
    }

    /// Whether it is paused, by its own word.
    pub(super) async fn is_paused(&mut self) -> Result<bool, MachineError> {
        self.live()?;
        let told = sentry::is_paused(&self.parts.root()).await;
        self.answered("to tell its state", told).await
    }

    fn live(&self) -> Result<(), MachineError> {
        match &self.state {
            State::Gone(exit) => Err(MachineError::Gone(exit.clone())),
            State::Running | State::Paused | State::Unsure => Ok(()),
        }
    }

    async fn settle(&mut self) -> Exit {
        if let State::Gone(exit) = &self.state {
            return exit.clone();
        }
        let exit = self.parts.settle(self.killed).await;
        tracing::debug!(pid = self.parts.process.pid(), ?exit, "sandbox ended");
        self.state = State::Gone(exit.clone());
        self.control.cancel();
        exit
    }

    /// Applies a sandbox's answer to the machine's state.
    async fn answered<T>(&mut self, phase: &'static str, answer: Result<T, CallError>) -> Result<T, MachineError> {
        match answer {
            Ok(answer) => Ok(answer),
            Err(CallError::Refused(reason)) => Err(MachineError::Refused { phase, reason }),
            Err(CallError::Closed(_)) => Err(MachineError::Gone(self.settle().await)),
            Err(CallError::Deadline) => Err(MachineError::Deadline { phase, deadline: sentry::DEADLINE }),
        }
    }

    /// The state, asked for when it is not known.
    async fn known_state(&mut self) -> Result<State, MachineError> {
        if let Err(error @ MachineError::Gone(_)) = self.outcome("to tell its state").await {
            return Err(error);
        }
        if self.state == State::Unsure {
            self.state = if self.is_paused().await? { State::Paused } else { State::Running };
        }
        self.live().map(|()| self.state.clone())
    }

    async fn demand_paused(&mut self, call: &'static str) -> Result<(), MachineError> {
        match self.known_state().await? {
            State::Paused => Ok(()),
            State::Running => Err(MachineError::WrongState { call, state: "running" }),
            State::Unsure | State::Gone(_) => unreachable!("a known state is neither"),
        }
    }

    /// Moves between running and paused.
    async fn switch(&mut self, call: &'static str, to: State) -> Result<(), MachineError> {
        if to == State::Running {
            self.known_state().await?;
            self.hear().await?;
        }
        self.switch_only(call, to).await
    }

    /// The same, whatever it hears.
    async fn switch_only(&mut self, call: &'static str, to: State) -> Result<(), MachineError> {
        if self.known_state().await? == to {
            return Ok(());
        }
        let (root, pause) = (self.parts.root(), to == State::Paused);
        let work = async move { if pause { sentry::pause(&root).await } else { sentry::resume(&root).await } };
        self.pending = Some((to, tokio::spawn(work)));
        self.outcome(call).await
    }

    /// Waits for the call that is under way, if there is one.
    async fn outcome(&mut self, phase: &'static str) -> Result<(), MachineError> {
        let Some((to, call)) = &mut self.pending else { return Ok(()) };
        let done = call.await.unwrap_or_else(|error| Err(CallError::Closed(std::io::Error::other(error))));
        match &done {
            Ok(()) => self.state = to.clone(),
            Err(CallError::Deadline) => self.state = State::Unsure,
            Err(CallError::Refused(_) | CallError::Closed(_)) => {}
        }
        self.pending = None;
        self.answered(phase, done).await
    }

    /// The files of a machine that is alive; nothing of them is read once it is gone.
    fn looked_at(&self, overlay: &Path) -> Result<String, MachineError> {
        let name = directory::own_name(&self.parts.dir, overlay).map_err(|source| file_error(overlay, source))?;
        directory::open_unfollowed(overlay, false).map_err(|source| file_error(overlay, source))?;
        Ok(name.to_owned())
    }

    /// Sees to it that no connection to the guest is open, which a checkpoint cannot hold, and that none begins until [`Self::hear`]. The guest
    /// is paused before and after.
    async fn quieten(&mut self) -> Result<(), MachineError> {
        if self.parts.network == Network::None {
            return Ok(());
        }
        let pid = self.parts.process.pid();
        for _ in 0..QUIET_ATTEMPTS {
            self.deaf = true;
            let ended = self.in_slot(network::end_connections).await;
            self.let_it_hear_of_the_end().await?;
            let left = self.in_slot(network::shut).await;
            match (ended, left) {
                (Ok(ended), Ok(0)) => {
                    tracing::debug!(pid, ended, "connections to a sandbox end with its snapshot");
                    return Ok(());
                }
                // They were on their way when the others were ended. No more are.
                (Ok(_), Ok(left)) => tracing::debug!(pid, left, "connections to a sandbox have begun over its snapshot"),
                (Err(error), _) | (_, Err(error)) => {
                    tracing::warn!(pid, %error, "cannot end the connections to a sandbox: its clones may not work");
                    return Ok(());
                }
            }
        }
        tracing::warn!(pid, "connections to a sandbox do not cease: its clones may not work");
        Ok(())
    }

    /// Does something in the network namespace of its slot.
    async fn in_slot<T: Send + 'static>(&self, job: fn(OwnedFd) -> io::Result<T>) -> io::Result<T> {
        let slot = network::of_slot(&self.parts.process)?;
        blocking(move || job(slot)).await
    }

    /// Lets the guest of a paused sandbox run for as long as it takes to hear of the end of its connections, and to close them: what is
    /// half closed in a checkpoint is not whole in a clone. Nothing reaches it meanwhile, and nobody speaks to it.
    async fn let_it_hear_of_the_end(&mut self) -> Result<(), MachineError> {
        self.switch_only("resume", State::Running).await?;
        let root = self.parts.root();
        let at_rest = async {
            let mut looks = tokio::time::interval(REST_LOOK);
            let mut rested = 0;
            while rested < RESTED {
                looks.tick().await;
                rested = if sentry::is_at_rest(&root).await.unwrap_or(false) { rested + 1 } else { 0 };
            }
        };
        // A guest that computes is never at rest.
        if tokio::time::timeout(REST_DEADLINE, at_rest).await.is_err() {
            tracing::debug!(pid = self.parts.process.pid(), "a guest is cut at work");
        }
        self.switch_only("pause", State::Paused).await
    }

    /// Lets what is sent to it through again, if that is not so. One that is gone hears nothing.
    pub(super) async fn hear(&mut self) -> Result<(), MachineError> {
        if !self.deaf {
            return Ok(());
        }
        match self.in_slot(network::hear).await {
            Ok(()) => self.deaf = false,
            Err(_) if self.parts.process.has_ended() => {}
            Err(source) => return Err(file_error(&self.parts.dir, source)),
        }
        Ok(())
    }

    /// The machine of an earlier process, who may have been killed over a checkpoint.
    pub(super) fn perhaps_deaf(mut self) -> Self {
        self.deaf = self.parts.network != Network::None;
        self
    }

    /// Makes a directory with its state in it. What is refused is tried once more: it may be a matter of the moment, and the sandbox goes on in either case.
    async fn save(&mut self, into: &Path) -> Result<(), MachineError> {
        let made = || fs_err::create_dir(into).map_err(|source| file_error(into, source));
        made()?;
        match self.checkpoint(into).await {
            Err(MachineError::Refused { reason, .. }) => {
                tracing::warn!(reason, "the state of a sandbox could not be saved, which is tried once more");
                fs_err::remove_dir_all(into).map_err(|source| file_error(into, source))?;
                made()?;
                self.checkpoint(into).await
            }
            done => done,
        }
    }

    async fn checkpoint(&mut self, into: &Path) -> Result<(), MachineError> {
        const PHASE: &str = "to save its state";
        let mut image = std::ffi::OsString::from("--image-path=");
        image.push(into);
        let words = vec!["checkpoint".into(), "--leave-running".into(), "--compression=none".into(), image];
        let pid = self.parts.process.pid();
        let _room = match Room::make(pid, self.parts.record.origin.options) {
            Ok(room) => room,
            Err(_) if self.parts.process.has_ended() => return Err(MachineError::Gone(self.settle().await)),
            Err(source) => return Err(file_error(&PathBuf::from(format!("/proc/{pid}")), source)),
        };
        self.quieten().await?;
        let view = View::of_asker(self.parts.network, pid);
        let call = self.parts.call(words, Streams::None, view);
        let bytes = blocking(move || cost::checkpoint_bytes(pid)).await.unwrap_or_default();
        let taken = command::run_within(command::deadline_for(bytes), call).await;
        if let Err(error) = self.hear().await {
            tracing::error!(error = firkin_causes::chain(&error), "a sandbox is not reached until it is tried again");
        }
        match taken {
            Ok(()) => Ok(()),
            Err(RunError::Failed(_) | RunError::Spawn(_)) if self.parts.process.has_ended() => {
                Err(MachineError::Gone(self.settle().await))
            }
            Err(RunError::Failed(reason)) => Err(MachineError::Refused { phase: PHASE, reason }),
            Err(RunError::Spawn(source)) => Err(file_error(&self.parts.program.path, source)),
            Err(RunError::Deadline(deadline)) => Err(MachineError::Deadline { phase: PHASE, deadline }),
        }
    }
}

#[async_trait]
impl Machine for GvisorMachine {
    fn pid(&self) -> Option<u32> {
        (!matches!(self.state, State::Gone(_))).then(|| self.parts.process.pid())
    }

    /// The sandbox, and who opens files for it. What runs the guest's processes comes and goes, and does nothing that is seen outside without
    /// the sandbox.
    async fn processes(&self) -> io::Result<Vec<u32>> {
        let Some(pid) = self.pid() else { return Ok(Vec::new()) };
        let search = self.parts.remains.searcher();
        blocking(move || Ok(std::iter::once(pid).chain(search.gofers()?.into_iter().filter(|gofer| *gofer != pid)).collect()))
            .await
    }

    async fn resume(&mut self) -> Result<(), MachineError> {
        self.switch("resume", State::Running).await
    }

    async fn pause(&mut self) -> Result<(), MachineError> {
        self.switch("pause", State::Paused).await
    }

    async fn prepare_cut(&mut self, overlay: &Path) -> Result<u64, MachineError> {
        self.live()?;
        self.looked_at(overlay)?;
        let pid = self.parts.process.pid();
        let counted = blocking(move || cost::checkpoint_bytes(pid)).await;
        counted.map_err(|source| file_error(&PathBuf::from(format!("/proc/{pid}")), source))
    }

    /// A checkpoint takes as long whether there is room or not.
    async fn make_room(&mut self, _dir: &Path, _bytes: u64) -> Result<(), MachineError> {
        self.live()
    }

    async fn snapshot(&mut self, dir: &Path) -> Result<SnapshotParts, MachineError> {
        self.demand_paused("snapshot").await?;
        let started = Instant::now();
        let image = dir.join(CHECKPOINT_DIR);
        self.save(&image).await?;
        let (origin, state) = (self.parts.record.origin.clone(), dir.join(parts::STATE));
        let (from, to) = (image.clone(), state.clone());
        let memory_time = started.elapsed();
        let seal = move || {
            sealed::seal(&from, origin, &to)?;
            fs_err::remove_dir_all(&from)
        };
        blocking(seal).await.map_err(|source| file_error(&state, source))?;
        Ok(SnapshotParts {
            memory: MemoryForm::InState,
            captured: None,
            state_time: started.elapsed() - memory_time,
            memory_time,
        })
    }

    fn root_disk(&self) -> PathBuf {
        self.parts.dir.join(&self.parts.record.root_disk)
    }

    async fn switch_disk(&mut self, overlay: &Path) -> Result<(), MachineError> {
        self.demand_paused("switch the disk of").await?;
        let mut record = self.parts.record.clone();
        record.root_disk = self.looked_at(overlay)?;
        record.write(&self.parts.dir).map_err(|source| file_error(&self.parts.dir, source))?;
        self.parts.record = record;
        Ok(())
    }

    /// The disk last: it is only a name, and a checkpoint may fail.
    async fn cut(&mut self, dir: &Path, overlay: &Path) -> Result<SnapshotParts, MachineError> {
        let written = self.snapshot(dir).await?;
        self.switch_disk(overlay).await?;
        Ok(written)
    }

    async fn control(&mut self) -> Result<Box<dyn ControlStream>, MachineError> {
        self.live()?;
        self.control.cancel();
        self.control = CancellationToken::new();
        match Channel::open(&self.parts.dir, self.control.clone()) {
            Ok(channel) => Ok(Box::new(channel)),
            Err(_) if self.parts.process.has_ended() => Err(MachineError::Gone(self.settle().await)),
            Err(source) => Err(file_error(&self.parts.dir, source)),
        }
    }

    async fn root_changes(&mut self, into: &Path) -> Result<(), MachineError> {
        const PHASE: &str = "to tell what its guest has changed";
        if self.state != State::Running {
            return Err(MachineError::WrongState { call: "ask", state: "not running" });
        }
        let view = View::of_asker(self.parts.network, self.parts.process.pid());
        let words = vec!["exec".into(), "--user=0:0".into()];
        let call = self.parts.call(words, Streams::Into(into.to_path_buf()), view);
        let call = Call { program_words: &[spec::AGENT, "changes"], ..call };
        match command::run(call).await {
            Ok(()) => Ok(()),
            Err(_) if self.parts.process.has_ended() => Err(MachineError::Gone(self.settle().await)),
            Err(RunError::Failed(reason)) => Err(MachineError::Refused { phase: PHASE, reason }),
            Err(RunError::Spawn(source)) => Err(file_error(into, source)),
            Err(RunError::Deadline(deadline)) => Err(MachineError::Deadline { phase: PHASE, deadline }),
        }
    }

    async fn console_tail(&mut self) -> Result<String, MachineError> {
        if let State::Gone(exit @ (Exit::Killed | Exit::Crashed { .. })) = &self.state {
            return Err(MachineError::Gone(exit.clone()));
        }
        let console = self.parts.dir.join(CONSOLE);
        instance::last(&console, CONSOLE_BYTES).map_err(|source| file_error(&console, source))
    }

    async fn host_use(&self) -> Result<HostUse, MachineError> {
        self.live()?;
        let (pid, search) = (self.parts.process.pid(), self.parts.remains.searcher());
        let counted = blocking(move || cost::of_sandbox(pid, &search.find()?)).await;
        counted.map_err(|source| file_error(&PathBuf::from(format!("/proc/{pid}")), source))
    }

    async fn answer(&mut self) -> Result<(), MachineError> {
        self.is_paused().await.map(drop)
    }

    async fn wait(&mut self) -> Exit {
        if let State::Gone(exit) = &self.state {
            return exit.clone();
        }
        let mut look_at_logs = tokio::time::interval(LOG_INTERVAL);
        loop {
            tokio::select! {
                _ = self.parts.process.ended() => return self.settle().await,
                _ = look_at_logs.tick() => {
                    self.parts.process.look_at_log();
                    self.parts.process.look_at_memory();
                    if let Err(error) = instance::bound_console(&self.parts.dir) {
                        tracing::warn!(pid = self.parts.process.pid(), %error, "cannot bound a sandbox's console");
                    }
                }
            }
        }
    }

    async fn kill(&mut self) -> Exit {
        if let State::Gone(exit) = &self.state {
            return exit.clone();
        }
        self.killed |= !self.parts.process.has_ended();
        self.parts.process.kill();
        self.settle().await
    }

    fn release(self: Box<Self>) {
        self.control.cancel();
        self.parts.process.release();
        self.parts.remains.release();
    }
}

fn file_error(path: &Path, source: std::io::Error) -> MachineError {
    MachineError::File { path: path.to_path_buf(), source }
}
