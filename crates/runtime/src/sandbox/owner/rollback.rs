//! Back to a checkpoint in place: the sandbox keeps its id, its token and its deadline, and becomes what its snapshot holds.
//!
//! ```text
//!   running ──► paused, durable ──► restored from the checkpoint ──► running
//!                     │                       │ failed
//!                     └──── restored again ◄──┘
//! ```
//!
//! What can be refused is refused before the sandbox is touched. What it is now is made durable before the checkpoint is restored,
//! so that a failure, or a crash of everything, costs no state: at worst the sandbox is paused, as it was. Two machines of one
//! sandbox never exist at once.

use std::time::Instant;

use firkin_causes::chain;
use jiff::Timestamp;

use super::{
    Owner, Phase, gone,
    view::show,
    wake::{self, Started},
};
use crate::{
    artifact::{Artifact, CutReason, MemoryMember},
    ground::blocking::blocking,
    restore::SnapshotRestoreError,
    sandbox::owner::{ResumeError, SnapshotError},
    shared::Shared,
    start::{Found, life::Until},
    store::{
        Held, RecordedPhase, StoreError,
        spec::{Memory, NoSuchSandbox, RuntimeSandbox, SandboxId},
    },
    telemetry::changes::SandboxEvent,
};

/// Why a sandbox did not go back to a checkpoint. It is what it was; where that could not be restored either, it is paused as it
/// was.
#[derive(Debug, thiserror::Error)]
pub enum RollbackError {
    /// No such sandbox.
    #[error(transparent)]
    NotFound(#[from] NoSuchSandbox),
    /// No such snapshot.
    #[error("snapshot '{0}' not found")]
    SnapshotNotFound(String),
    /// A template, or a snapshot of another sandbox.
    #[error("'{snapshot}' is not a snapshot of sandbox `{id}`")]
    NotItsOwn {
        /// What was named.
        snapshot: String,
        /// The sandbox.
        id: SandboxId,
    },
    /// The checkpoint cannot be restored here. The sandbox was not touched.
    #[error("the checkpoint cannot be restored")]
    Checkpoint(#[source] SnapshotRestoreError),
    /// What the sandbox is now could not be made durable. It goes on running.
    #[error("the present state could not be saved before going back")]
    Save(#[from] SnapshotError),
    /// The checkpoint was not restored.
    #[error("sandbox `{id}` could not be restored from its checkpoint")]
    Restore {
        /// The sandbox.
        id: SandboxId,
        /// Why.
        #[source]
        source: ResumeError,
    },
    /// The store failed.
    #[error("cannot record the rollback")]
    Store(#[source] StoreError),
}

impl Owner {
    /// Becomes what `checkpoint` holds. Whoever asks keeps it from being collected.
    pub(super) async fn rollback(&mut self, checkpoint: Artifact) -> Result<RuntimeSandbox, RollbackError> {
        prove(&self.shared, &checkpoint).await.map_err(RollbackError::Checkpoint)?;
        match self.phase {
            Phase::Gone => return Err(gone(&self.record.id).into()),
            Phase::Paused(_) => self.hold(&checkpoint).await?,
            Phase::Running(_) => {
                self.changing = true;
                let result = self.restart_from(checkpoint).await;
                self.changing = false;
                self.publish_view();
                result?;
            }
        }
        self.tell(SandboxEvent::RolledBack, None);
        self.shared.collect();
        Ok(show(&self.record))
    }

    /// A paused sandbox stays paused; what it is held by changes. The epoch counts this like a restore.
    async fn hold(&mut self, checkpoint: &Artifact) -> Result<(), RollbackError> {
        let manifest = &checkpoint.manifest;
        let memory = if manifest.memory == MemoryMember::Absent { Memory::Dropped } else { Memory::Kept };
        let held = Held { artifact: manifest.id.clone(), epoch: Some(manifest.epoch), memory };
        let mut record = self.record.clone();
        record.epoch += 1;
        record.phase = RecordedPhase::Paused(held.clone());
        self.shared.store.update_sandbox(record.clone(), self.record.guard()).await.map_err(RollbackError::Store)?;
        self.record = record;
        self.become_phase(Phase::Paused(held));
        Ok(())
    }

    async fn restart_from(&mut self, checkpoint: Artifact) -> Result<(), RollbackError> {
        // Whose deadline moves then.
        self.move_again().await.map_err(|error| error.of_cut(self.record.id.clone()))?;
        let end_at = self.record.end_at;
        self.pause(Memory::Kept, CutReason::RolledBack).await?;
        let Err(source) = self.run_from(checkpoint, end_at).await else { return Ok(()) };
        let id = self.record.id.clone();
        // What it was is durable; it goes on from there, or at worst stays paused.
        let Phase::Paused(held) = &self.phase else { return Err(RollbackError::Restore { id, source }) };
        let back = match self.shared.artifacts.load(&held.artifact) {
            Ok(now) => self.run_from(now, end_at).await,
            Err(source) => {
                let source = SnapshotRestoreError::Integrity { artifact: held.artifact.clone(), source };
                Err(ResumeError::Restore { id: id.clone(), source })
            }
        };
        match back {
            Ok(()) => self.tell(SandboxEvent::Resumed, None),
            Err(error) => {
                tracing::error!(sandbox = %id, error = chain(&error), "a rollback failed, and the sandbox stays paused as it was");
            }
        }
        Err(RollbackError::Restore { id, source })
    }

    async fn run_from(&mut self, artifact: Artifact, end_at: Timestamp) -> Result<(), ResumeError> {
        let begun = Instant::now();
        self.claim().await?;
        let pin = self.shared.artifacts.pin(artifact.manifest.id.clone());
        let found = Found::new(self.next_life(Until::At(end_at)), artifact, pin, begun);
        // One of which nobody knows whether it is on record runs all the same, and its next change records it.
        let Started { record, running, in_doubt: _ } = wake::start(&self.shared, found, Memory::Kept).await?;
        self.record = record;
        self.become_phase(Phase::Running(running));
        Ok(())
    }
}

/// Refuses what a restore would refuse.
async fn prove(shared: &Shared, checkpoint: &Artifact) -> Result<(), SnapshotRestoreError> {
    if checkpoint.manifest.memory != MemoryMember::Absent {
        shared.gates.check_compatible(&checkpoint.manifest)?;
    }
    let (artifacts, artifact) = (shared.artifacts.clone(), checkpoint.clone());
    blocking(move || artifacts.verify(&artifact))
        .await
        .map_err(|source| SnapshotRestoreError::Integrity { artifact: checkpoint.manifest.id.clone(), source })
}
