//! A QEMU that is up and has no guest yet: what a restore can have ready before anybody asks for it.
//!
//! Its process has its memory mapped, its disk open and its monitor greeted, and waits in `-incoming defer`. Of the snapshot it
//! holds what was read and checked before it started, so that a file that is damaged meanwhile is never loaded. It touches no
//! page of the guest's memory: waiting costs what QEMU itself has.

use std::{
    fs::File,
    io,
    os::unix::fs::MetadataExt,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use serde_json::json;
use tokio::time::timeout;

use super::{
    command, file_error,
    instance::CONTROL_SOCKET,
    machine::{self, Parts, QemuMachine, State},
    monitor::Monitor,
    refused, start_error, state,
};
use crate::{
    Exit, Machine, Prepared, StartError,
    directory::{self, blocking},
    memory::{diff::Diff, ram::Ram},
    process::Process,
};

/// Loading less than a megabyte of device state.
const LOAD_DEADLINE: Duration = Duration::from_secs(30);
/// For a process that is about to end; if it does not, something else is wrong.
const END_DEADLINE: Duration = Duration::from_secs(5);

/// What of a snapshot is still to be loaded. Its device state is a descriptor that the process has.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) form: state::Form,
    /// With the file that the pages differ from.
    pub(super) diff: Option<(Diff, File)>,
}

#[derive(Debug)]
pub(super) struct QemuPrepared {
    parts: Parts,
    snapshot: Snapshot,
    clock: Phases,
    exit: Option<Exit>,
}

impl QemuPrepared {
    pub(super) fn new(parts: Parts, snapshot: Snapshot, clock: Phases) -> Self {
        Self { parts, snapshot, clock, exit: None }
    }

    async fn settle(&mut self, killed: bool) -> Exit {
        if let Some(exit) = &self.exit {
            return exit.clone();
        }
        let ended = self.parts.process.ended().await;
        let exit = if killed { Exit::Killed } else { self.parts.process.crash(ended) };
        self.exit = Some(exit.clone());
        exit
    }
}

#[async_trait]
impl Prepared for QemuPrepared {
    fn pid(&self) -> Option<u32> {
        (self.exit.is_none() && !self.parts.process.has_ended()).then(|| self.parts.process.pid())
    }

    async fn load(self: Box<Self>) -> Result<Box<dyn Machine>, StartError> {
        let Self { mut parts, snapshot: Snapshot { form, diff }, mut clock, .. } = *self;
        if parts.process.has_ended()
            && let Some(error) = died(&mut parts.process).await
        {
            return Err(error);
        }
        clock.phase("waited");
        if let Some(diff) = diff {
            if let Err(error) = write(diff, &parts).await {
                return Err(died(&mut parts.process).await.unwrap_or(error));
            }
            clock.phase("diff");
        }
        // A guest whose port is open when it wakes up, as it was when it fell asleep, has nothing to be told of it.
        let control = match directory::connect(&parts.dir, CONTROL_SOCKET).await {
            Ok(control) => control,
            Err(source) => {
                let error = file_error(&parts.dir.join(CONTROL_SOCKET), source);
                return Err(died(&mut parts.process).await.unwrap_or(error));
            }
        };
        load(&mut parts.monitor, &parts.process, form).await?;
        clock.phase("loaded");
        clock.report(parts.process.pid());
        Ok(Box::new(QemuMachine::new(parts, State::Paused).with_control(control)))
    }

    async fn wait(&mut self) -> Exit {
        self.settle(false).await
    }

    async fn kill(&mut self) -> Exit {
        let killed = !self.parts.process.has_ended();
        self.parts.process.kill();
        self.settle(killed).await
    }
}

/// Whether what failed failed because the process was about to end: its memory and its sockets go before it counts as ended.
async fn died(process: &mut Process) -> Option<StartError> {
    timeout(END_DEADLINE, process.ended()).await.ok()?;
    Some(StartError::Died { phase: "its wait for a snapshot", log: process.log_tail() })
}

/// Writes the pages of a diff into the memory of the process.
async fn write((diff, base): (Diff, File), parts: &Parts) -> Result<(), StartError> {
    let (pid, bytes) = (parts.process.pid(), parts.memory_bytes);
    let apply = move || {
        let ram = Ram::find(pid, base.metadata()?.ino(), bytes).map_err(io::Error::other)?;
        ram.apply(&diff).map_err(io::Error::other)
    };
    blocking(apply).await.map_err(|source| file_error(&parts.dir, source))?;
    Ok(())
}

/// Loads the device state that the process was given at its start.
async fn load(monitor: &mut Monitor, process: &Process, form: state::Form) -> Result<(), StartError> {
    const PHASE: &str = "loading its device state";
    let loading = async {
        if form == state::Form::MemoryByReference {
            monitor.execute("migrate-set-capabilities", machine::capabilities(&["x-ignore-shared"])).await?;
        }
        // Not with `announce-rounds` of 0, which would spare guests of earlier builds work: QEMU 10.0 crashes then when a guest resets
        // its interface.
        monitor.execute("migrate-incoming", json!({"uri": command::STATE_URI})).await?;
        machine::migrated(monitor, &mut None).await
    };
    match timeout(LOAD_DEADLINE, loading).await {
        Ok(Ok(true)) => Ok(()),
        Ok(Ok(false)) => Err(refused(PHASE, &process.log_tail())),
        Ok(Err(error)) => Err(start_error(PHASE, error, process)),
        Err(_) => Err(StartError::Deadline { phase: PHASE, deadline: LOAD_DEADLINE }),
    }
}

/// Where the time of a restore went.
#[derive(Debug)]
pub(super) struct Phases {
    began: Instant,
    last: Instant,
    text: String,
}

impl Phases {
    pub(super) fn begin() -> Self {
        let now = Instant::now();
        Self { began: now, last: now, text: String::new() }
    }

    pub(super) fn phase(&mut self, name: &str) {
        use std::fmt::Write;
        let now = Instant::now();
        write!(self.text, "{name} {:.1} ms, ", (now - self.last).as_secs_f64() * 1e3).expect("a string takes everything");
        self.last = now;
    }

    fn report(&self, pid: u32) {
        tracing::debug!(pid, "restored: {}total {:.1} ms", self.text, self.began.elapsed().as_secs_f64() * 1e3);
    }
}
