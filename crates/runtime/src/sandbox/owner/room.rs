//! What becomes of a sandbox that writes to a disk which is nearly full.
//!
//! ```text
//!             its memory fits into the reserve
//!   running ──────────────────────────────────► paused
//!      │ ▲
//!      ▼ │ there is room again
//!   stands still
//! ```
//!
//! A pause writes the memory, and that to the very disk that has no room: ten pauses of large sandboxes would take what the floor holds
//! back. So it is paused only where half of the floor stays free after it and all others that are paused just then. Where that is not
//! so, or the pause fails, its processors are stopped and nothing else is done: nothing is written from then on, neither by it nor for
//! it, its memory is where it was, and it goes on by itself. Meanwhile it is shown as paused, and traffic waits as it does during a pause.
//! It keeps its capacity, because it has its memory, and its deadline stands still with it: it did not get that time. Should the server
//! end, the next one lets it go on and looks again.

use firkin_causes::chain;
use firkin_engine::MachineError;
use firkin_wire::rest::LogLevel;
use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Owner, Phase, ResumeError, SnapshotError};
use crate::{
    artifact::CutReason,
    host::disk::{DiskPressure, Promise},
    machine::launch::LaunchError,
    restore::SnapshotRestoreError,
    store::spec::{Memory, SandboxId},
    telemetry::{changes::SandboxEvent, history::Event},
};

/// Why a sandbox that stands still does not go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StillError {
    /// There is no room yet.
    #[error("the disk has no room yet for what the sandbox writes")]
    Disk(#[source] DiskPressure),
    /// Its processors could not be started.
    #[error("the machine of the sandbox does not go on")]
    Machine(#[source] MachineError),
}

impl StillError {
    /// Of a cut, which wants it to run.
    pub(super) fn of_cut(self, id: SandboxId) -> SnapshotError {
        match self {
            Self::Disk(source) => SnapshotError::DiskPressure { id, source },
            Self::Machine(source) => SnapshotError::Machine { id, source },
        }
    }

    /// Of a connect: nobody is told that a sandbox runs which stands still.
    pub(super) fn of_connect(self, id: SandboxId) -> ResumeError {
        let source = match self {
            Self::Disk(source) => SnapshotRestoreError::DiskPressure(source),
            Self::Machine(source) => SnapshotRestoreError::Launch(LaunchError::Machine(source)),
        };
        ResumeError::Restore { id, source }
    }
}

/// How a sandbox stopped writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Relief {
    /// It is paused, and stays so until somebody resumes it.
    Paused,
    /// It stands still until there is room.
    Still,
}

impl Owner {
    /// Has the sandbox write no more, because it wrote most of late. Its user learns of that by its events and its log.
    pub(super) async fn make_room(&mut self, grown_bytes: u64) -> Result<Relief, SnapshotError> {
        if self.stands_still() {
            return Ok(Relief::Still);
        }
        let paused = match self.reserve_room().await {
            Ok(_until_then) => self.pause(Memory::Kept, CutReason::DiskFull).await,
            Err(refused) => Err(refused),
        };
        let relief = match paused {
            Ok(()) => Ok(Relief::Paused),
            Err(error @ (SnapshotError::AlreadyPaused(_) | SnapshotError::NotFound(_))) => return Err(error),
            Err(error) => {
                tracing::warn!(sandbox = %self.record.id, error = chain(&error), "a sandbox that wrote most is not paused: it stands still");
                self.stand_still().await.map(|()| Relief::Still)
            }
        };
        let message = match relief {
            Ok(Relief::Paused) => "the host's disk is below its floor, and this sandbox wrote most: it was paused",
            Ok(Relief::Still) => {
                "the host's disk is below its floor, and this sandbox wrote most: it stands still until there is room"
            }
            Err(_) => "the host's disk is below its floor, and this sandbox, which wrote most, cannot be stopped",
        };
        self.note(Event::new(LogLevel::Warn, message).with("written_mib", (grown_bytes >> 20).to_string()));
        relief
    }

    /// Refuses a pause that would write more than may be taken of what the floor holds back, with all others that are paused now.
    async fn reserve_room(&mut self) -> Result<Promise, SnapshotError> {
        let id = self.record.id.clone();
        let running = self.phase.running(&id)?;
        let ahead = running.session.prepare_cut(&self.shared.artifacts).await;
        let ahead = ahead.map_err(|source| SnapshotError::Machine { id: id.clone(), source })?;
        let memory = ahead.memory;
        running.session.forgo_cut(ahead).await;
        self.shared.gates.disk.promise_reserve(memory).map_err(|source| SnapshotError::DiskPressure { id, source })
    }

    async fn stand_still(&mut self) -> Result<(), SnapshotError> {
        let id = self.record.id.clone();
        let running = self.phase.running(&id)?;
        if let Err(source) = running.session.machine.pause().await {
            // It may stop later all the same, and nobody would know.
            match running.session.machine.resume().await {
                Ok(()) | Err(MachineError::Gone(_)) => return Err(SnapshotError::Machine { id, source }),
                // So it counts as one that stands still, which is let go on as soon as it obeys.
                Err(error) => tracing::warn!(sandbox = %id, error = chain(&error), "nobody knows whether a sandbox stands still"),
            }
        }
        running.still = Some(Instant::now());
        running.leaving.cancel();
        self.publish_view();
        self.tell(SandboxEvent::StandsStill, None);
        Ok(())
    }

    pub(super) fn stands_still(&self) -> bool {
        matches!(&self.phase, Phase::Running(running) if running.still.is_some())
    }

    /// Moves the deadline of a sandbox that stands still by the time that it has.
    pub(super) fn keep_time_left(&mut self) {
        let Phase::Running(running) = &mut self.phase else { return };
        let Some(since) = &mut running.still else { return };
        let stood = since.elapsed();
        *since += stood;
        self.record.end_at = self.record.end_at.saturating_add(stood).unwrap_or(Timestamp::MAX);
    }

    /// Lets a sandbox go on that stood still. On any failure it stands still after that too.
    pub(super) async fn move_again(&mut self) -> Result<(), StillError> {
        let Phase::Running(running) = &mut self.phase else { return Ok(()) };
        if running.still.is_none() {
            return Ok(());
        }
        self.shared.gates.disk.check().map_err(StillError::Disk)?;
        running.session.machine.resume().await.map_err(StillError::Machine)?;
        self.keep_time_left();
        if let Phase::Running(running) = &mut self.phase {
            running.still = None;
            running.leaving = CancellationToken::new();
        }
        self.go_on().await;
        self.note(Event::new(LogLevel::Info, "the host's disk has room again: the sandbox goes on"));
        self.tell(SandboxEvent::GoesOn, None);
        self.publish_view();
        Ok(())
    }
}
