//! From a paused sandbox to one that runs: connect, resume, and traffic that wakes.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use firkin_wire::rest::LogLevel;

use super::{
    Owner, Phase, Running, check_timeout, gone, refused,
    view::{Seen, SeenState, show},
};
use crate::{
    ground::ids::LayerId,
    restore::SnapshotRestoreError,
    sandbox::{
        owner::{Connected, DeadlineError},
        refusal,
        stale_state::{self, StaleState},
    },
    shared::Shared,
    start::{
        Found, Recorded, fetching,
        life::{Life, Until},
    },
    store::{
        Held, RecordedPhase, SandboxRecord, StoreError,
        spec::{InvalidTimeout, MAX_TIMEOUT, Memory, NoSuchSandbox, RuntimeSandbox, SandboxId},
    },
    telemetry::{changes::SandboxEvent, history::Event},
    upkeep::sandbox_quota::{self, QuotaError},
};

/// Why a sandbox was not connected to or resumed.
#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    /// No such sandbox.
    #[error(transparent)]
    NotFound(#[from] NoSuchSandbox),
    /// It runs already (only where that is an error).
    #[error("sandbox `{0}` is already running")]
    AlreadyRunning(SandboxId),
    /// The timeout is invalid.
    #[error("{0}")]
    InvalidTimeout(InvalidTimeout),
    /// The restore failed; the paused state is untouched.
    #[error("sandbox `{id}` cannot be resumed")]
    Restore {
        /// The sandbox.
        id: SandboxId,
        /// Why.
        #[source]
        source: SnapshotRestoreError,
    },
    /// It holds more of the disk than it may, and would write on.
    #[error("sandbox `{id}` cannot be resumed")]
    Quota {
        /// The sandbox.
        id: SandboxId,
        /// Why.
        #[source]
        source: QuotaError,
    },
    /// What is held of it is not its last durable state. Nothing was launched.
    #[error("cannot resume another state than the last durable one")]
    Stale(#[source] StaleState),
    /// The server is stopping.
    #[error("the server is stopping")]
    Stopping,
    /// The store failed.
    #[error("cannot record the resumed sandbox")]
    Store(#[source] StoreError),
}

/// A sandbox that traffic woke lives at least this long: shorter and it would pause again while it answers.
const MIN_WAKE_TIMEOUT: Duration = Duration::from_secs(5 * 60);

impl Owner {
    /// Resumes it, once for each pause that who asks has `seen`.
    pub(super) async fn resume(&mut self, timeout: Duration, memory: Memory, seen: Seen) -> Result<RuntimeSandbox, ResumeError> {
        // Whoever was told that it is paused has it running now.
        if self.stands_still() {
            return self.connect(timeout, memory).await.map(|connected| connected.sandbox);
        }
        match self.phase {
            Phase::Running(_) if self.has_been_resumed_for(seen, memory) => {
                self.connect(timeout, memory).await.map(|connected| connected.sandbox)
            }
            Phase::Running(_) => Err(ResumeError::AlreadyRunning(self.record.id.clone())),
            Phase::Paused(_) | Phase::Gone => self.wake(Until::After(timeout), memory).await,
        }
    }

    pub(super) async fn connect(&mut self, timeout: Duration, memory: Memory) -> Result<Connected, ResumeError> {
        self.move_again().await.map_err(|error| error.of_connect(self.record.id.clone()))?;
        match self.phase {
            Phase::Paused(_) => Ok(Connected { sandbox: self.wake(Until::After(timeout), memory).await?, resumed: true }),
            Phase::Running(_) => {
                self.set_deadline(timeout, true).await.map_err(|error| match error {
                    DeadlineError::NotFound(error) => ResumeError::NotFound(error),
                    DeadlineError::InvalidTimeout(error) => ResumeError::InvalidTimeout(error),
                    DeadlineError::Store(error) => ResumeError::Store(error),
                })?;
                Ok(Connected { sandbox: show(&self.record), resumed: false })
            }
            Phase::Gone => Err(gone(&self.record.id).into()),
        }
    }

    /// Whether the resume that was asked for has been made since, for somebody else. Who wants the guest to boot is not served by
    /// memory that went on.
    pub(super) fn has_been_resumed_for(&self, seen: Seen, memory: Memory) -> bool {
        let served = memory == Memory::Kept || self.woken_with == Memory::Dropped;
        let is_later = match seen.state {
            SeenState::Running => false,
            SeenState::Changing => self.record.epoch > seen.epoch,
            // Its claim may have been seen, which has the number of the life.
            SeenState::Paused => self.record.epoch >= seen.epoch,
        };
        is_later && served
    }

    /// What traffic does to a paused sandbox: it resumes with the timeout that it was created with. A sandbox that runs already,
    /// perhaps because other traffic came first, keeps its deadline. One without memory is left alone: its guest would boot, and
    /// whoever dropped the memory decides when.
    pub(super) async fn wake_for_traffic(&mut self) -> Result<(), ResumeError> {
        match &self.phase {
            Phase::Running(_) => Ok(()),
            Phase::Paused(Held { memory: Memory::Dropped, .. }) | Phase::Gone => Err(gone(&self.record.id).into()),
            Phase::Paused(_) => {
                let timeout = self.record.spec.timeout.clamp(MIN_WAKE_TIMEOUT, MAX_TIMEOUT);
                self.wake(Until::After(timeout), Memory::Kept).await.map(drop)
            }
        }
    }

    /// From paused to running. The paused state stays what it is until the running one is recorded. With memory dropped, or where
    /// none is held, the guest boots.
    pub(super) async fn wake(&mut self, until: Until, memory: Memory) -> Result<RuntimeSandbox, ResumeError> {
        let woken = self.try_wake(until, memory).await;
        if let Err(error) = &woken {
            refusal::tell(&self.shared, &self.record.owner, self.record.id.as_str(), refused::of_resume(error));
            if let ResumeError::Restore { .. } | ResumeError::Quota { .. } | ResumeError::Stale(_) | ResumeError::Store(_) = error
            {
                // Without its causes, which name files of the host.
                self.tell(SandboxEvent::ResumeFailed, Some(&error.to_string()));
            }
        }
        woken
    }

    async fn try_wake(&mut self, until: Until, memory: Memory) -> Result<RuntimeSandbox, ResumeError> {
        let held = match &self.phase {
            Phase::Paused(held) => held,
            Phase::Running(_) => return Err(ResumeError::AlreadyRunning(self.record.id.clone())),
            Phase::Gone => return Err(gone(&self.record.id).into()),
        };
        if let Until::After(timeout) = until {
            check_timeout(timeout).map_err(ResumeError::InvalidTimeout)?;
        }
        let begun = Instant::now();
        let pin = self.shared.artifacts.pin(held.artifact.clone());
        let loaded = fetching::load(&self.shared, &held.artifact).await.map_err(|source| ResumeError::Restore {
            id: self.record.id.clone(),
            source: SnapshotRestoreError::Integrity { artifact: held.artifact.clone(), source },
        })?;
        stale_state::check(&self.record, held, &loaded.manifest).map_err(ResumeError::Stale)?;
        self.admit_within_quota(&loaded.manifest.disk.layers).await?;
        self.claim().await?;
        self.upkeep.wake();
        let life = self.next_life(until);
        let share = self.shared.teams.take_session(&self.record.owner, self.record.budget);
        let share = share.map_err(|source| ResumeError::Quota { id: self.record.id.clone(), source: source.into() })?;
        let found = Found::new(life, loaded, pin, begun).with_session(share);
        let Started { record, running, in_doubt } = start(&self.shared, found, memory).await?;
        self.record = record;
        self.woken_with = memory;
        self.become_phase(Phase::Running(running));
        self.owners.note_start(&self.record.owner);
        self.note(Event::new(LogLevel::Info, "sandbox resumed").with("memory", (memory == Memory::Kept).to_string()));
        self.tell(SandboxEvent::Resumed, None);
        self.shared.collect();
        match in_doubt {
            None => Ok(show(&self.record)),
            Some(error) => Err(ResumeError::Store(error)),
        }
    }

    /// Has the catalogue know of the life that begins before its guest does, where others could begin one: of many who try, one does, and a
    /// server that was taken for dead restores nothing. What holds the sandbox stays what it is if nothing comes of it. A catalogue that is
    /// this host's alone is told once it runs.
    pub(super) async fn claim(&mut self) -> Result<(), ResumeError> {
        let Phase::Paused(held) = &self.phase else { return Ok(()) };
        if !self.shared.store.is_shared() {
            return Ok(());
        }
        let paused = SandboxRecord { phase: RecordedPhase::Paused(held.clone()), ..self.record.clone() };
        let Some((claimed, held)) = paused.claimed(self.shared.store.first_life()) else { return Ok(()) };
        let done = self.shared.store.update_sandbox(claimed.clone(), self.record.guard()).await;
        done.map_err(ResumeError::Store)?;
        self.record = claimed;
        self.phase = Phase::Paused(held);
        self.publish_view();
        Ok(())
    }

    /// The life that begins now: the one that was claimed, so that its guest has the number that is on record; or, in a catalogue that is this
    /// host's alone, the next one.
    pub(super) fn next_life(&self, until: Until) -> Life {
        if self.shared.store.is_shared() { Life::claimed(&self.record, until) } else { Life::next(&self.record, until) }
    }

    /// Refuses to run on `layers` if the sandbox holds more than it may, also with what was merged of them.
    async fn admit_within_quota(&mut self, layers: &[LayerId]) -> Result<(), ResumeError> {
        let mut within = sandbox_quota::admit_resume(&self.shared, &self.record, layers).await;
        if within.is_err()
            && let Some(shallow) = self.upkeep.shallow(layers)
        {
            within = sandbox_quota::admit_resume(&self.shared, &self.record, &shallow).await;
        }
        if let Err(QuotaError::Disk { .. }) = within {
            self.upkeep.crowd();
        }
        within.map_err(|source| ResumeError::Quota { id: self.record.id.clone(), source })
    }
}

/// A sandbox that runs.
pub(super) struct Started {
    pub(super) record: SandboxRecord,
    pub(super) running: Box<Running>,
    /// Why nobody knows whether it is on record; absent if it is.
    pub(super) in_doubt: Option<StoreError>,
}

/// Restores what was found, and records that it runs. With memory dropped its disk is booted before.
pub(super) async fn start(shared: &Arc<Shared>, found: Found, memory: Memory) -> Result<Started, ResumeError> {
    let id = found.life.id.clone();
    let launched = tokio::select! {
        // Apart: an owner lives as long as its sandbox, and would keep the room of a launch that is over.
        launched = Box::pin(found.restore(shared, memory)) => launched.map_err(|source| ResumeError::Restore { id, source })?,
        () = shared.stopping.cancelled() => return Err(ResumeError::Stopping),
    };
    let Recorded { session, reservation, record, sandbox: _, in_doubt } =
        launched.record(shared).await.map_err(ResumeError::Store)?;
    let running = Box::new(Running::new(shared, &record, session, reservation));
    Ok(Started { record, running, in_doubt })
}
