//! From a running sandbox to an artifact: pause, and the state that others are started from.

use std::sync::Arc;

use firkin_causes::chain;
use firkin_engine::MachineError;
use firkin_wire::rest::LogLevel;
use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    Continuation, Owner, Phase, gone,
    view::{Seen, SeenState},
};
use crate::{
    artifact::{Artifact, ArtifactKind, CutReason, CutState, IntegrityError, MemoryMember, Pin, PublishError},
    ground::{blocking::blocking, reference::InvalidReference},
    host::disk::DiskPressure,
    machine::{agent::AgentError, launch::FilesInMemory, session::After},
    shared::Shared,
    start::{fetching, identity, life::Life},
    store::{
        Held, RecordedPhase, StoreError,
        spec::{Memory, NoSuchSandbox, SandboxId},
    },
    telemetry::{
        changes::SandboxEvent,
        history::Event,
        metrics::{Timing, ms},
    },
    upkeep::sandbox_quota::{self, QuotaError},
};

/// Why a snapshot (pause, fork, named snapshot) was not taken. The sandbox goes on running.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// No such sandbox.
    #[error(transparent)]
    NotFound(#[from] NoSuchSandbox),
    /// It is paused already (only where that is an error).
    #[error("sandbox `{0}` is already paused")]
    AlreadyPaused(SandboxId),
    /// Without its memory it would have no files either.
    #[error("the memory of sandbox `{id}` cannot be dropped")]
    FilesInMemory {
        /// The sandbox.
        id: SandboxId,
        /// Why.
        #[source]
        source: FilesInMemory,
    },
    /// The disk has less free space than the floor.
    #[error("the disk is too full for a snapshot of sandbox `{id}`")]
    DiskPressure {
        /// The sandbox.
        id: SandboxId,
        /// Why.
        #[source]
        source: DiskPressure,
    },
    /// It may keep nothing more.
    #[error("cannot take a snapshot of sandbox `{id}`")]
    Quota {
        /// The sandbox.
        id: SandboxId,
        /// Why.
        #[source]
        source: QuotaError,
    },
    /// The guest agent did not get ready.
    #[error("the guest of sandbox `{id}` did not get ready for a snapshot")]
    Guest {
        /// The sandbox.
        id: SandboxId,
        /// Why.
        #[source]
        source: AgentError,
    },
    /// The state it was restored from is damaged.
    #[error("the snapshot that sandbox `{id}` came from is not intact")]
    Integrity {
        /// The sandbox.
        id: SandboxId,
        /// What is wrong.
        #[source]
        source: IntegrityError,
    },
    /// The engine failed.
    #[error("the machine of sandbox `{id}` could not be cut")]
    Machine {
        /// The sandbox.
        id: SandboxId,
        /// Why.
        #[source]
        source: MachineError,
    },
    /// The artifact could not be written.
    #[error("the snapshot of sandbox `{id}` could not be published")]
    Publish {
        /// The sandbox.
        id: SandboxId,
        /// Why.
        #[source]
        source: PublishError,
    },
    /// The name is malformed.
    #[error(transparent)]
    InvalidName(#[from] InvalidReference),
    /// The server is stopping.
    #[error("the server is stopping")]
    Stopping,
    /// The store failed.
    #[error("cannot record the snapshot")]
    Store(#[source] StoreError),
}

impl Owner {
    /// Whether the pause that was asked for has been made since, for somebody else who asked for the same.
    pub(super) fn has_been_paused_for(&self, seen: Seen, memory: Memory) -> bool {
        let Phase::Paused(held) = &self.phase else { return false };
        seen.state != SeenState::Paused && seen.epoch == self.record.epoch && held.memory == memory
    }

    /// From running to paused, durable when this returns. On any failure the sandbox goes on running.
    pub(super) async fn pause(&mut self, memory: Memory, reason: CutReason) -> Result<(), SnapshotError> {
        self.demand_disk(memory)?;
        self.move_again().await.map_err(|error| error.of_cut(self.record.id.clone()))?;
        let running = self.phase.running(&self.record.id)?;
        running.leaving.cancel();
        self.publish_view();
        self.tell(SandboxEvent::Pausing, None);
        let result = self.try_pause(memory, reason).await;
        if let Phase::Running(running) = &mut self.phase {
            running.leaving = CancellationToken::new();
            self.publish_view();
        }
        if let Err(error) = &result {
            // Without its causes, which name files of the host.
            self.tell(SandboxEvent::PauseFailed, Some(&error.to_string()));
        }
        result
    }

    /// Pauses the sandbox if it holds more of the disk than it may: nothing else would end that. Whether it was.
    pub(super) async fn pause_over_quota(&mut self) -> Result<bool, SnapshotError> {
        self.phase.running(&self.record.id)?;
        let source = match sandbox_quota::admit(&self.shared, &self.record, 0).await {
            Ok(()) => return Ok(false),
            Err(source @ QuotaError::Disk { .. }) => source,
            Err(source) => return Err(SnapshotError::Quota { id: self.record.id.clone(), source }),
        };
        let paused = self.pause(Memory::Kept, CutReason::OverQuota).await;
        if paused.is_ok() {
            self.upkeep.crowd();
        }
        let message = match &paused {
            Ok(()) => "this sandbox holds more of the disk than it may: it was paused, and is resumed once it holds less",
            Err(_) => "this sandbox holds more of the disk than it may, and cannot be paused",
        };
        self.note(Event::new(LogLevel::Warn, message).with("quota", chain(&source)));
        paused.map(|()| true)
    }

    async fn try_pause(&mut self, memory: Memory, reason: CutReason) -> Result<(), SnapshotError> {
        let (artifact, pin) = self.publish_cut(reason, memory).await?;
        let held = Held { artifact: artifact.manifest.id, epoch: Some(artifact.manifest.epoch), memory };
        let mut record = self.record.clone();
        record.end_at = Timestamp::now();
        record.phase = RecordedPhase::Paused(held.clone());
        if let Err(error) = self.shared.store.update_sandbox(record.clone(), self.record.guard()).await {
            self.go_on().await;
            return Err(SnapshotError::Store(error));
        }
        drop(pin);
        // One that moves has its files brought to where it goes, and nothing else beside that.
        if reason != CutReason::Moved {
            self.shared.note_paused();
        }
        self.record = record;
        if let Phase::Running(running) = self.become_phase(Phase::Paused(held)) {
            running.ended.cancel();
            running.session.end().await;
            drop(running.reservation);
        }
        self.note(
            Event::new(LogLevel::Info, "sandbox paused")
                .with("memory", (memory == Memory::Kept).to_string())
                .with("reason", reason.to_string()),
        );
        self.tell(SandboxEvent::Paused, Some(&reason.to_string()));
        Ok(())
    }

    /// Memory is dropped only where the disk is whole without it.
    fn demand_disk(&self, memory: Memory) -> Result<(), SnapshotError> {
        let holds = match (memory, &self.phase) {
            (Memory::Kept, _) | (Memory::Dropped, Phase::Gone) => return Ok(()),
            (Memory::Dropped, Phase::Running(running)) => &running.session.memory_base,
            (Memory::Dropped, Phase::Paused(held)) => &held.artifact,
        };
        // What cannot be read is told by who needs it.
        let Ok(state) = self.shared.artifacts.load(holds) else { return Ok(()) };
        let whole = self.shared.demand_disk(&state.manifest.engine);
        whole.map_err(|source| SnapshotError::FilesInMemory { id: self.record.id.clone(), source })
    }

    /// A state that others can be started from.
    pub(super) async fn cut(&mut self, memory: Memory, reason: CutReason) -> Result<Continuation, SnapshotError> {
        self.demand_disk(memory)?;
        self.move_again().await.map_err(|error| error.of_cut(self.record.id.clone()))?;
        let (artifact, pin) = match &self.phase {
            Phase::Gone => return Err(gone(&self.record.id).into()),
            Phase::Running(_) => {
                let result = self.publish_cut(reason, memory).await?;
                self.go_on().await;
                self.note(Event::new(LogLevel::Info, "state of the sandbox cut for a snapshot or forks"));
                self.tell(SandboxEvent::Cut, Some(&reason.to_string()));
                result
            }
            Phase::Paused(held) => {
                // What is cut of it adds nothing now, but goes on where it ended.
                let within = sandbox_quota::admit(&self.shared, &self.record, 0).await;
                within.map_err(|source| SnapshotError::Quota { id: self.record.id.clone(), source })?;
                let pin = self.shared.artifacts.pin(held.artifact.clone());
                let loaded = fetching::load(&self.shared, &held.artifact)
                    .await
                    .map_err(|source| SnapshotError::Integrity { id: self.record.id.clone(), source })?;
                match memory {
                    Memory::Dropped if held.memory == Memory::Kept => {
                        publish_disk(&self.shared, self.record.id.clone(), loaded, reason).await?
                    }
                    Memory::Dropped | Memory::Kept => (loaded, pin),
                }
            }
        };
        Ok(Continuation { artifact, record: self.record.clone(), pin })
    }

    /// Cuts the running session and publishes what was cut. The machine is left paused on success, running on failure.
    async fn publish_cut(&mut self, reason: CutReason, memory: Memory) -> Result<(Artifact, Pin), SnapshotError> {
        let result = self.try_publish_cut(reason, memory).await;
        if result.is_err() {
            self.go_on().await;
        }
        result
    }

    async fn try_publish_cut(&mut self, reason: CutReason, memory: Memory) -> Result<(Artifact, Pin), SnapshotError> {
        let id = self.record.id.clone();
        let shared = Arc::clone(&self.shared);
        let may_run = self.list_if_in_doubt().await;
        let running = self.phase.running(&id)?;
        if !may_run || running.session.is_held() {
            let reason = "it stands still while the lease of this host is over".to_owned();
            return Err(SnapshotError::Machine { id, source: MachineError::Refused { phase: "to be cut", reason } });
        }
        // The floor is kept free for this.
        if reason != CutReason::DiskFull {
            shared.gates.disk.check().map_err(|source| SnapshotError::DiskPressure { id: id.clone(), source })?;
        }
        // An earlier failure may have left it stopped; a stopped guest cannot answer.
        running.session.machine.resume().await.map_err(|source| SnapshotError::Machine { id: id.clone(), source })?;
        match running.session.sync().await {
            // By not answering, a guest would go on writing. What it has not written is in the memory that is kept.
            Err(error) if (reason, memory) == (CutReason::OverQuota, Memory::Kept) => {
                tracing::warn!(sandbox = %id, error = chain(&error), "a guest did not get ready for the pause that its quota demands");
            }
            synced => synced.map_err(|source| SnapshotError::Guest { id: id.clone(), source })?,
        }
        // Whatever can fail without the machine, or take time, stands before the freeze.
        let base = shared.artifacts.load(&running.session.memory_base);
        let base = base.map_err(|source| SnapshotError::Integrity { id: id.clone(), source })?.manifest;
        let mut draft = shared.artifacts.draft_of_sandbox().map_err(|source| SnapshotError::Publish {
            id: id.clone(),
            source: PublishError::File { path: shared.config.state_dir.clone(), source },
        })?;
        let pin = shared.artifacts.pin(draft.id());
        let then = match reason.kind() {
            ArtifactKind::Continuation => After::GoOn,
            ArtifactKind::Pause | ArtifactKind::Boot | ArtifactKind::BaseTemplate => After::StayPaused,
        };
        let begun = Instant::now();
        let failed = |source| SnapshotError::Machine { id: id.clone(), source };
        let ahead = running.session.prepare_cut(&shared.artifacts).await.map_err(failed)?;
        let more = if memory == Memory::Kept { ahead.memory } else { 0 };
        // What is not asked of a pause: it is what keeps the rest from being lost.
        if reason.kind() == ArtifactKind::Continuation
            && let Err(source) = sandbox_quota::admit(&shared, &self.record, more).await
        {
            running.session.forgo_cut(ahead).await;
            return Err(SnapshotError::Quota { id, source });
        }
        running.volumes.hold().await;
        let cut = running.session.cut(ahead, &mut draft, &shared.artifacts, (then, memory)).await.map_err(failed)?;
        if then == After::GoOn {
            running.volumes.release();
        }
        let manifest = base.of_cut(CutState {
            id: draft.id(),
            reason: Some(reason),
            logical_id: id.to_string(),
            parent: running.session.memory_base.clone(),
            epoch: self.record.epoch,
            memory: cut
                .parts
                .as_ref()
                .map_or(MemoryMember::Absent, |parts| MemoryMember::of_cut(parts.memory, &running.session.memory_base)),
            layers: cut.layers,
            nonce: running.session.nonce(),
        });
        let artifacts = shared.artifacts.clone();
        let published = blocking(move || artifacts.publish(draft, manifest))
            .await
            .map_err(|source| SnapshotError::Publish { id: id.clone(), source })?;
        shared.metrics.observe(Timing::SnapshotFreeze, cut.freeze);
        shared.metrics.observe(Timing::SnapshotSave, begun.elapsed());
        tracing::info!(sandbox = %id, %reason, freeze_ms = ms(cut.freeze), save_ms = ms(begun.elapsed()), memory = ?cut.parts.map(|parts| parts.memory), "cut a sandbox");
        drop(cut.pin);
        Ok((published, pin))
    }

    /// Lets a cut machine run again, with the right time.
    pub(super) async fn go_on(&mut self) {
        let may_run = self.list_if_in_doubt().await;
        let identity = identity::of_sandbox(&Life::present(&self.record));
        let Phase::Running(running) = &mut self.phase else { return };
        if running.still.is_some() {
            return;
        }
        let RecordedPhase::Running { layers, overlay, .. } = &mut self.record.phase else { return };
        layers.clone_from(&running.session.disk.layers);
        overlay.clone_from(&running.session.disk.overlay);
        if !may_run || running.session.is_held() {
            // Others may have it by now. It goes on once they cannot.
            running.owes_go_on = true;
            return;
        }
        if let Err(error) = running.session.machine.resume().await {
            tracing::warn!(sandbox = %self.record.id, error = chain(&error), "cannot let a sandbox go on");
            return;
        }
        running.owes_go_on = false;
        running.volumes.release();
        if let Err(error) = running.session.set_clock(&identity).await {
            tracing::warn!(sandbox = %self.record.id, error = chain(&error), "cannot set a guest's clock");
        }
        if let Err(error) = self.shared.store.update_sandbox(self.record.clone(), self.record.guard()).await {
            tracing::error!(sandbox = %self.record.id, error = chain(&error), "cannot record a sandbox's new disk layer");
        }
    }
}

/// The disk of a paused sandbox as an artifact of its own.
async fn publish_disk(
    shared: &Shared,
    id: SandboxId,
    paused: Artifact,
    reason: CutReason,
) -> Result<(Artifact, Pin), SnapshotError> {
    let failed = |source| SnapshotError::Publish { id: id.clone(), source };
    let file = |source| failed(PublishError::File { path: shared.config.state_dir.clone(), source });
    let draft = shared.artifacts.draft_of_sandbox().map_err(file)?;
    let pin = shared.artifacts.pin(draft.id());
    let of = paused.manifest;
    let manifest = of.clone().of_cut(CutState {
        id: draft.id(),
        reason: Some(reason),
        logical_id: of.logical_id,
        parent: of.id,
        epoch: of.epoch,
        memory: MemoryMember::Absent,
        layers: of.disk.layers,
        nonce: of.guest.nonce,
    });
    let artifacts = shared.artifacts.clone();
    let published = blocking(move || artifacts.publish(draft, manifest)).await.map_err(failed)?;
    Ok((published, pin))
}
