//! One QEMU machine: the states of the seam's diagram, kept in step with the process.
//!
//! The machine believes the process, not itself: a call that was cancelled halfway leaves the state [`State::Unsure`] and the
//! next one asks. A monitor that hangs up means that the process has ended or is about to; the exit is then settled once and
//! for all, and every later call answers with it.

use std::{
    fs::File,
    net::Shutdown,
    os::{
        fd::AsFd,
        unix::{fs::MetadataExt, net::UnixStream as StdUnixStream},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::{net::UnixStream, time::timeout};

use super::{
    command::{self, CONSOLE, CONSOLE_BYTES, STATE_OUT_SET},
    cost,
    instance::CONTROL_SOCKET,
    monitor::{Event, Monitor, MonitorError},
    state::{self, Outlet},
};
use crate::{
    ControlStream, Exit, HostUse, Machine, MachineError, MemoryForm, SnapshotParts,
    directory::{self, blocking},
    memory::{PAGE_BYTES, PageBuffer, ram::Ram, sparse},
    parts,
    process::Process,
};

/// A command that changes no data answers at once, even on a host that is short of CPU.
const COMMAND_DEADLINE: Duration = Duration::from_secs(20);
/// `stop` drains the disk: as long as a slow disk may take over a queue of writes.
const STOP_DEADLINE: Duration = Duration::from_secs(60);
/// Device state has less than a megabyte.
const SAVE_DEADLINE: Duration = Duration::from_secs(60);
/// Room beyond what a cut is expected to write.
const ROOM_SLACK_BYTES: u64 = 2 << 20;
/// Connecting to a socket that already listens.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// Between a monitor's hang-up and the end of its process. What takes longer is killed.
const EXIT_DEADLINE: Duration = Duration::from_secs(3);
/// QEMU's reason of a shutdown that the guest asked for by powering off.
const POWER_OFF: &str = "guest-shutdown";
/// Between looks at what its process says: what does not fit the pipe meanwhile is lost.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Where guest memory is.
#[derive(Debug)]
pub(super) enum Memory {
    /// In this file, which the guest writes.
    Booted(File),
    /// In private pages over this file.
    Cloned(File),
}

/// A state of the seam's diagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    Running,
    Paused,
    Sealed,
    /// A call was cancelled before its outcome was known.
    Unsure,
    Gone(Exit),
}

#[derive(Debug)]
pub(super) struct QemuMachine {
    process: Process,
    monitor: Monitor,
    state: State,
    dir: PathBuf,
    /// Machine type by its full name.
    machine: String,
    memory: Memory,
    memory_bytes: u64,
    root: Root,
    /// An overlay that is open already, for the next switch.
    opened: Option<PathBuf>,
    /// Whether something may be open under the name of the next root node that is not to be used.
    stale: bool,
    /// The descriptor that QEMU writes device state to, once it has one.
    outlet: Option<Outlet>,
    /// Where the guest's memory is, and room for the next snapshot of it into this directory.
    room: Option<(PathBuf, Ram, PageBuffer)>,
    /// A second handle on the connection that was given out last, to end it before there is another.
    control: Option<StdUnixStream>,
    /// One that is open and has not been given out.
    fresh_control: Option<UnixStream>,
    /// The guest's own wish to end, seen on the monitor: the reason that came first.
    ended_by: Option<String>,
    /// The end of the console, of a machine that is gone.
    last_words: Option<String>,
    killed: bool,
}

/// The parts of a machine, once its process is up.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) process: Process,
    pub(super) monitor: Monitor,
    pub(super) dir: PathBuf,
    pub(super) machine: String,
    pub(super) memory: Memory,
    pub(super) memory_bytes: u64,
    pub(super) root: Root,
    /// Whether a process before this one may have begun to switch its disk.
    pub(super) adopted: bool,
}

/// The root disk's current block node.
#[derive(Debug)]
pub(super) struct Root {
    /// Its number.
    pub(super) node: u32,
    /// The file behind it.
    pub(super) path: PathBuf,
}

impl QemuMachine {
    pub(super) fn new(parts: Parts, state: State) -> Self {
        let Parts { process, monitor, dir, machine, memory, memory_bytes, root, adopted } = parts;
        Self {
            process,
            monitor,
            state,
            dir,
            machine,
            memory,
            memory_bytes,
            root,
            opened: None,
            stale: adopted,
            outlet: None,
            room: None,
            control: None,
            fresh_control: None,
            ended_by: None,
            last_words: None,
            killed: false,
        }
    }

    /// Gives this connection out first.
    pub(super) fn with_control(self, stream: UnixStream) -> Self {
        Self { fresh_control: Some(stream), ..self }
    }

    /// Runs a command. A monitor that hangs up is the machine's end.
    async fn command(&mut self, phase: &'static str, name: &str, arguments: Value) -> Result<Value, MachineError> {
        let deadline = if name == "stop" { STOP_DEADLINE } else { COMMAND_DEADLINE };
        let answer = timeout(deadline, self.monitor.execute(name, arguments)).await;
        self.answered(phase, deadline, answer).await
    }

    /// Applies a monitor's answer to the machine's state.
    async fn answered(
        &mut self,
        phase: &'static str,
        deadline: Duration,
        answer: Result<Result<Value, MonitorError>, tokio::time::error::Elapsed>,
    ) -> Result<Value, MachineError> {
        match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(MonitorError::Refused(reason))) => Err(MachineError::Refused { phase, reason }),
            Ok(Err(MonitorError::Closed(_) | MonitorError::Protocol(_))) => Err(MachineError::Gone(self.settle().await)),
            Err(_) => Err(MachineError::Deadline { phase, deadline }),
        }
    }

    /// The state, asked for when it is not known.
    async fn known_state(&mut self) -> Result<State, MachineError> {
        if self.state == State::Unsure {
            let status = self.command("to tell its state", "query-status", json!({})).await?;
            self.state = state_of(&status).ok_or_else(|| MachineError::Refused {
                phase: "to tell its state",
                reason: format!("unexpected answer {status}"),
            })?;
        }
        match &self.state {
            State::Gone(exit) => Err(MachineError::Gone(exit.clone())),
            state => Ok(state.clone()),
        }
    }

    /// Refuses a call on a machine that is not paused.
    async fn demand_paused(&mut self, call: &'static str) -> Result<(), MachineError> {
        match self.known_state().await? {
            State::Paused => Ok(()),
            State::Sealed => Err(MachineError::WrongState { call, state: "sealed" }),
            State::Running => Err(MachineError::WrongState { call, state: "running" }),
            State::Unsure | State::Gone(_) => unreachable!("a known state is neither"),
        }
    }

    /// Moves between running and paused.
    async fn switch(&mut self, call: &'static str, command: &str, to: State) -> Result<(), MachineError> {
        let from = self.known_state().await?;
        if from == to {
            return Ok(());
        }
        if from == State::Sealed {
            return Err(MachineError::WrongState { call, state: "sealed" });
        }
        self.state = State::Unsure;
        let done = self.command(call, command, json!({})).await;
        match done {
            Ok(_) => self.state = to,
            Err(MachineError::Refused { .. }) => self.state = from,
            // Gone is settled already; after a deadline the state is asked for.
            Err(_) => {}
        }
        done.map(drop)
    }

    /// Waits for the process to end, makes it end if it does not, and finds out why.
    async fn settle(&mut self) -> Exit {
        if let State::Gone(exit) = &self.state {
            return exit.clone();
        }
        self.hear_last_words().await;
        let ended = match timeout(EXIT_DEADLINE, self.process.ended()).await {
            Ok(ended) => ended,
            Err(_) => {
                self.process.kill();
                self.process.ended().await
            }
        };
        // What it said last is still in the socket.
        let drain = async {
            while let Ok(event) = self.monitor.event().await {
                note(&mut self.ended_by, &event)
            }
        };
        if timeout(CONNECT_DEADLINE, drain).await.is_err() {
            tracing::warn!(pid = self.process.pid(), "the monitor of an ended machine did not close");
        }
        let exit = match self.ended_by.take() {
            Some(reason) if reason == POWER_OFF => Exit::GuestPoweroff,
            Some(reason) => Exit::GuestReset { reason },
            None if self.killed => Exit::Killed,
            None => self.process.crash(ended),
        };
        tracing::debug!(pid = self.process.pid(), ?exit, "machine ended");
        self.state = State::Gone(exit.clone());
        exit
    }

    /// Takes the console of a booted machine whose guest has ended it, and lets the engine go.
    async fn hear_last_words(&mut self) {
        if self.ended_by.is_none() || !matches!(self.memory, Memory::Booted(_)) || self.process.has_ended() {
            return;
        }
        match timeout(EXIT_DEADLINE, self.monitor.execute("ringbuf-read", console_arguments())).await {
            Ok(Ok(answer)) => self.last_words = Some(cost::decode_console(answer.as_str().unwrap_or_default())),
            Ok(Err(error)) => tracing::debug!(pid = self.process.pid(), %error, "an ended guest's console is lost"),
            Err(_) => tracing::debug!(pid = self.process.pid(), "an ended guest's console is lost"),
        }
        self.process.kill();
    }

    fn note_arrived_events(&mut self) {
        for event in self.monitor.take_events() {
            note(&mut self.ended_by, &event);
        }
    }

    async fn snapshot_booted(&mut self, dir: &Path) -> Result<SnapshotParts, MachineError> {
        const PHASE: &str = "to save its device state";
        let started = Instant::now();
        let (outlet, uri) = self.take_outlet().await?;
        // The events tell how the migration ends. A machine may not have been told yet.
        self.command(PHASE, "migrate-set-capabilities", capabilities(&["events", "x-ignore-shared"])).await?;
        self.note_arrived_events();
        self.state = State::Unsure;
        self.command(PHASE, "migrate", json!({"uri": format!("file:{uri}")})).await?;
        match timeout(SAVE_DEADLINE, migrated(&mut self.monitor, &mut self.ended_by)).await {
            Ok(Ok(true)) => self.state = State::Sealed,
            Ok(Ok(false)) => return Err(MachineError::Refused { phase: PHASE, reason: "the migration failed".into() }),
            Ok(Err(_)) => return Err(MachineError::Gone(self.settle().await)),
            Err(_) => return Err(MachineError::Deadline { phase: PHASE, deadline: SAVE_DEADLINE }),
        }
        self.outlet = Some(self.keep_state(outlet, dir, state::Form::MemoryByReference).await?);
        let state_time = started.elapsed();
        let Memory::Booted(file) = &self.memory else { unreachable!("the caller looked") };
        let file = file.try_clone().map_err(|source| file_error(dir, source))?;
        let started = Instant::now();
        let sealed = blocking(move || {
            let freed = sparse::punch_zero_pages(&file)?;
            rustix::fs::fchown(&file, Some(rustix::fs::Uid::ROOT), Some(rustix::fs::Gid::ROOT))?;
            rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(0o444))?;
            Ok(freed)
        })
        .await
        .map_err(|source| file_error(&dir.join(parts::MEMORY), source))?;
        tracing::debug!(pid = self.process.pid(), freed_bytes = sealed, "sealed a template's memory");
        Ok(SnapshotParts { memory: MemoryForm::Full, captured: None, state_time, memory_time: started.elapsed() })
    }

    /// Also switches the disk to `overlay`, if there is one.
    async fn snapshot_clone(&mut self, dir: &Path, overlay: Option<&Path>) -> Result<SnapshotParts, MachineError> {
        let (Memory::Cloned(base), Some(find)) = (&self.memory, self.find_memory()?) else { unreachable!("the caller looked") };
        let out = dir.join(parts::MEMORY_DIFF);
        let base = base.try_clone().map_err(|source| file_error(&out, source))?;
        let room = self.room.take().filter(|(place, ..)| place == dir);
        let (pid, path) = (self.process.pid(), out.clone());
        // Saving the state touches no guest memory, or only what a machine that loads the state makes again: a migration of
        // QEMU's own copies the memory before it. The disk is no concern of either.
        let memory = blocking(move || {
            let started = Instant::now();
            let (bytes, captured) = match room {
                Some((_, ram, room)) => {
                    let captured = ram.capture(base, room).map_err(std::io::Error::other)?;
                    (captured.bytes(), Some(captured))
                }
                None => (find()?.dump(&base, &path).map_err(std::io::Error::other)?.data_pages * PAGE_BYTES, None),
            };
            Ok((bytes, captured, started.elapsed()))
        });
        let (memory, state_time) = tokio::join!(memory, self.save_devices(dir, overlay));
        let state_time = state_time?;
        let (bytes, captured, memory_time) = memory.map_err(|source| file_error(&out, source))?;
        tracing::debug!(pid, bytes, ?state_time, ?memory_time, "copied a clone's private pages");
        Ok(SnapshotParts { memory: MemoryForm::Diff { bytes }, captured, state_time, memory_time })
    }

    /// Saves the device state, and gives how long that took; switches the disk to `overlay`, if there is one.
    async fn save_devices(&mut self, dir: &Path, overlay: Option<&Path>) -> Result<Duration, MachineError> {
        let started = Instant::now();
        let (outlet, file) = self.take_outlet().await?;
        self.command("to save its device state", "xen-save-devices-state", json!({"filename": file, "live": false})).await?;
        let kept = self.keep_state(outlet, dir, state::Form::DevicesOnly);
        let (kept, switched) = tokio::join!(kept, async {
            match overlay {
                Some(overlay) => self.switch_disk(overlay).await,
                None => Ok(()),
            }
        });
        self.outlet = Some(kept?);
        switched.map(|()| started.elapsed())
    }

    /// Finds a clone's memory in its process. Blocks.
    fn find_memory(&self) -> Result<Option<impl FnOnce() -> std::io::Result<Ram> + Send + 'static>, MachineError> {
        let Memory::Cloned(base) = &self.memory else { return Ok(None) };
        let inode = base.metadata().map_err(|source| file_error(&self.dir, source))?.ino();
        let (pid, memory_bytes) = (self.process.pid(), self.memory_bytes);
        Ok(Some(move || Ram::find(pid, inode, memory_bytes).map_err(std::io::Error::other)))
    }

    fn process_error(&self, source: std::io::Error) -> MachineError {
        file_error(&PathBuf::from(format!("/proc/{}", self.process.pid())), source)
    }

    /// Opens `overlay` as the block node that the next switch makes the current one.
    async fn open_disk(&mut self, overlay: &Path) -> Result<(), MachineError> {
        const PHASE: &str = "to open its next root disk";
        if self.opened.as_deref() == Some(overlay) {
            return Ok(());
        }
        let next = self.root.node + 1;
        let (set, name) =
            (command::root_set(next), directory::own_name(&self.dir, overlay).map_err(|source| file_error(overlay, source))?);
        self.opened = None;
        if self.stale {
            // One may have been opened for a cut that never came, perhaps under an earlier server.
            self.forget(PHASE, "blockdev-del", json!({"node-name": command::root_name(next)})).await?;
            self.forget(PHASE, "remove-fd", json!({"fdset-id": set})).await?;
        }
        self.stale = true;
        let file = directory::open_unfollowed(overlay, true).map_err(|source| file_error(overlay, source))?;
        self.hand(PHASE, json!({"fdset-id": set, "opaque": name}), &file).await?;
        // The node that is to lie below it is open already.
        self.command(PHASE, "blockdev-add", command::root_node(next, Value::Null)).await?;
        self.opened = Some(overlay.to_path_buf());
        if let Some(last) = self.root.node.checked_sub(1) {
            // It has that open by now, and nobody who adopts it asks for it.
            self.forget(PHASE, "remove-fd", json!({"fdset-id": command::root_set(last)})).await?;
        }
        Ok(())
    }

    /// Gives QEMU a descriptor, as a member of a set.
    async fn hand(&mut self, phase: &'static str, arguments: Value, file: &File) -> Result<(), MachineError> {
        let handed = timeout(COMMAND_DEADLINE, self.monitor.execute_with("add-fd", arguments, file.as_fd())).await;
        self.answered(phase, COMMAND_DEADLINE, handed).await.map(drop)
    }

    /// Has QEMU let go of something that it may not have.
    async fn forget(&mut self, phase: &'static str, name: &str, arguments: Value) -> Result<(), MachineError> {
        match self.command(phase, name, arguments).await {
            Ok(_) | Err(MachineError::Refused { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// What QEMU writes device state to, empty, and its name for it. Whoever takes it gives it back when QEMU has written: after
    /// a call that was cancelled it may still write.
    async fn take_outlet(&mut self) -> Result<(Outlet, String), MachineError> {
        if self.outlet.is_none() {
            self.make_outlet().await?;
        }
        let outlet = self.outlet.take().expect("there is one now");
        outlet.clear().map_err(|source| file_error(&self.dir, source))?;
        Ok((outlet, format!("/dev/fdset/{STATE_OUT_SET}")))
    }

    async fn make_outlet(&mut self) -> Result<(), MachineError> {
        const PHASE: &str = "to take a place for its device state";
        // An earlier server's, or one that a cancelled call left.
        self.forget(PHASE, "remove-fd", json!({"fdset-id": STATE_OUT_SET})).await?;
        let outlet = Outlet::new().map_err(|source| file_error(&self.dir, source))?;
        self.hand(PHASE, json!({"fdset-id": STATE_OUT_SET}), &outlet.written).await?;
        self.outlet = Some(outlet);
        Ok(())
    }

    /// Takes the state that QEMU wrote and makes it a member of the snapshot. Gives back the outlet, empty: a machine is not to hold
    /// a copy of its state for the rest of its life.
    fn keep_state(
        &self,
        outlet: Outlet,
        dir: &Path,
        form: state::Form,
    ) -> impl Future<Output = Result<Outlet, MachineError>> + use<> {
        let (to, machine) = (dir.join(parts::STATE), self.machine.clone());
        let path = to.clone();
        let kept = blocking(move || {
            let state = outlet.collect(form, &machine).map_err(std::io::Error::other)?;
            state.write(&path).map(|()| outlet)
        });
        async move { kept.await.map_err(|source| file_error(&to, source)) }
    }

    /// Ends the connection that was given out last: QEMU accepts one at a time.
    fn disconnect_control(&mut self) -> std::io::Result<()> {
        match self.control.take().map(|previous| previous.shutdown(Shutdown::Both)) {
            Some(Err(error)) if error.kind() != std::io::ErrorKind::NotConnected => Err(error),
            Some(_) | None => Ok(()),
        }
    }

    async fn connect_control(&mut self) -> Result<UnixStream, std::io::Error> {
        let stream = match self.fresh_control.take() {
            Some(stream) => stream,
            None => {
                self.disconnect_control()?;
                timeout(CONNECT_DEADLINE, directory::connect(&self.dir, CONTROL_SOCKET)).await??
            }
        };
        let stream = stream.into_std()?;
        self.control = Some(stream.try_clone()?);
        UnixStream::from_std(stream)
    }
}

#[async_trait]
impl Machine for QemuMachine {
    fn pid(&self) -> Option<u32> {
        (!matches!(self.state, State::Gone(_))).then(|| self.process.pid())
    }

    async fn processes(&self) -> std::io::Result<Vec<u32>> {
        Ok(self.pid().into_iter().collect())
    }

    async fn resume(&mut self) -> Result<(), MachineError> {
        self.switch("resume", "cont", State::Running).await
    }

    async fn pause(&mut self) -> Result<(), MachineError> {
        self.switch("pause", "stop", State::Paused).await
    }

    async fn prepare_cut(&mut self, overlay: &Path) -> Result<u64, MachineError> {
        if self.known_state().await? == State::Sealed {
            return Err(MachineError::WrongState { call: "prepare a cut of", state: "sealed" });
        }
        self.open_disk(overlay).await?;
        if self.outlet.is_none() {
            self.make_outlet().await?;
        }
        let Some(find) = self.find_memory()? else { return Ok(0) };
        let count = move || find()?.private_bytes().map_err(std::io::Error::other);
        blocking(count).await.map_err(|source| self.process_error(source))
    }

    async fn make_room(&mut self, dir: &Path, bytes: u64) -> Result<(), MachineError> {
        self.room = None;
        if let Some(find) = self.find_memory()? {
            let ram = blocking(find).await.map_err(|source| self.process_error(source))?;
            // The guest runs on, so there may be more of them by then.
            let (place, bytes) = (dir.to_path_buf(), bytes + bytes / 8 + ROOM_SLACK_BYTES);
            let room = blocking(move || PageBuffer::take(&place, bytes)).await.map_err(|source| file_error(dir, source))?;
            self.room = Some((dir.to_path_buf(), ram, room));
        }
        Ok(())
    }

    async fn snapshot(&mut self, dir: &Path) -> Result<SnapshotParts, MachineError> {
        self.demand_paused("snapshot").await?;
        match self.memory {
            Memory::Booted(_) => self.snapshot_booted(dir).await,
            Memory::Cloned(_) => self.snapshot_clone(dir, None).await,
        }
    }

    fn root_disk(&self) -> PathBuf {
        self.root.path.clone()
    }

    async fn switch_disk(&mut self, overlay: &Path) -> Result<(), MachineError> {
        const PHASE: &str = "to switch its root disk";
        self.demand_paused("switch the disk of").await?;
        self.open_disk(overlay).await?;
        let (old, new) = (command::root_name(self.root.node), command::root_name(self.root.node + 1));
        self.opened = None;
        self.command(PHASE, "blockdev-snapshot", json!({"node": old, "overlay": new})).await?;
        self.stale = false;
        self.root = Root { node: self.root.node + 1, path: overlay.to_path_buf() };
        Ok(())
    }

    async fn cut(&mut self, dir: &Path, overlay: &Path) -> Result<SnapshotParts, MachineError> {
        self.demand_paused("cut").await?;
        if let Memory::Cloned(_) = self.memory {
            return self.snapshot_clone(dir, Some(overlay)).await;
        }
        // A snapshot ends a booted machine.
        self.switch_disk(overlay).await?;
        self.snapshot_booted(dir).await
    }

    async fn control(&mut self) -> Result<Box<dyn ControlStream>, MachineError> {
        if let State::Gone(exit) = &self.state {
            return Err(MachineError::Gone(exit.clone()));
        }
        match self.connect_control().await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(_) if self.process.has_ended() => Err(MachineError::Gone(self.settle().await)),
            Err(source) => Err(file_error(&self.dir.join(CONTROL_SOCKET), source)),
        }
    }

    async fn console_tail(&mut self) -> Result<String, MachineError> {
        if let State::Gone(exit) = &self.state {
            return self.last_words.clone().ok_or_else(|| MachineError::Gone(exit.clone()));
        }
        let answer = self.command("to show its console", "ringbuf-read", console_arguments()).await?;
        Ok(cost::decode_console(answer.as_str().unwrap_or_default()))
    }

    async fn host_use(&self) -> Result<HostUse, MachineError> {
        if let State::Gone(exit) = &self.state {
            return Err(MachineError::Gone(exit.clone()));
        }
        let (Memory::Booted(file) | Memory::Cloned(file)) = &self.memory;
        let (pid, memory_bytes) = (self.process.pid(), self.memory_bytes);
        let inode = file.metadata().map_err(|source| file_error(&self.dir, source))?.ino();
        blocking(move || cost::of_process(pid, inode, memory_bytes))
            .await
            .map_err(|source| file_error(&PathBuf::from(format!("/proc/{pid}")), source))
    }

    async fn answer(&mut self) -> Result<(), MachineError> {
        if let State::Gone(exit) = &self.state {
            return Err(MachineError::Gone(exit.clone()));
        }
        self.command("to give a sign of life", "query-status", json!({})).await.map(drop)
    }

    async fn wait(&mut self) -> Exit {
        if let State::Gone(exit) = &self.state {
            return exit.clone();
        }
        let mut look_at_log = tokio::time::interval(LOG_INTERVAL);
        loop {
            // A booted machine stays when its guest has ended it, until it has been asked for its console.
            if self.ended_by.is_some() && matches!(self.memory, Memory::Booted(_)) {
                return self.settle().await;
            }
            tokio::select! {
                _ = self.process.ended() => return self.settle().await,
                event = self.monitor.event() => match event {
                    Ok(event) => note(&mut self.ended_by, &event),
                    Err(_) => return self.settle().await,
                },
                _ = look_at_log.tick() => self.process.look_at_log(),
            }
        }
    }

    async fn kill(&mut self) -> Exit {
        if let State::Gone(exit) = &self.state {
            return exit.clone();
        }
        self.killed |= !self.process.has_ended();
        self.process.kill();
        self.settle().await
    }

    fn release(mut self: Box<Self>) {
        if let Err(error) = self.disconnect_control() {
            tracing::warn!(pid = self.process.pid(), %error, "cannot end a released machine's control connection");
        }
        self.process.release();
    }
}

/// The state in the seam's diagram for a status of QEMU.
pub(super) fn state_of(status: &Value) -> Option<State> {
    match status.get("status")?.as_str()? {
        "running" => Some(State::Running),
        "paused" | "save-vm" | "restore-vm" | "prelaunch" | "io-error" | "internal-error" | "watchdog" | "suspended" => {
            Some(State::Paused)
        }
        "postmigrate" | "finish-migrate" => Some(State::Sealed),
        // The process is about to exit: nothing but its end is left to it.
        "shutdown" | "guest-panicked" => Some(State::Sealed),
        _ => None,
    }
}

/// Turns on capabilities of migrations. Saving and loading must agree on `x-ignore-shared`, which leaves memory where it is.
pub(super) fn capabilities(names: &[&str]) -> Value {
    let capabilities: Vec<Value> = names.iter().map(|name| json!({"capability": name, "state": true})).collect();
    json!({"capabilities": capabilities})
}

/// Waits for the end of a migration: whether it succeeded.
pub(super) async fn migrated(monitor: &mut Monitor, ended_by: &mut Option<String>) -> Result<bool, MonitorError> {
    loop {
        let event = monitor.event().await?;
        note(ended_by, &event);
        if let Event::Migration { status } = event {
            match status.as_str() {
                "completed" => return Ok(true),
                "failed" | "cancelled" => return Ok(false),
                _ => {}
            }
        }
    }
}

fn note(ended_by: &mut Option<String>, event: &Event) {
    match event {
        Event::Shutdown { guest: true, reason } => {
            ended_by.get_or_insert_with(|| reason.clone());
        }
        Event::Shutdown { guest: false, .. } | Event::Migration { .. } => {}
    }
}

fn console_arguments() -> Value {
    json!({"device": CONSOLE, "size": CONSOLE_BYTES, "format": "base64"})
}

fn file_error(path: &Path, source: std::io::Error) -> MachineError {
    MachineError::File { path: path.to_path_buf(), source }
}
