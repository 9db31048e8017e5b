//! The runtime's face for sandboxes that go from one host to another of their cluster, paused, and go on there under the same id.

use std::error::Error;

use firkin_causes::chain;
use futures::future::BoxFuture;
use jiff::Timestamp;

use crate::{
    artifact::MemoryMember,
    ground::blocking::whole,
    restore::SnapshotRestoreError,
    runtime::Runtime,
    sandbox::{
        owner::{Bound, Command, Departed, Departing, HandOver, MoveError, Owner, Relocation, ResumeError, demand_unbound, gone},
        stale_state::{self, StaleState},
    },
    start::fetching,
    store::{
        RecordedPhase, SandboxRecord, StoreError,
        claims::ClaimRefused,
        spec::{NoSuchSandbox, SandboxId},
    },
    upkeep::sandbox_quota,
};

/// Why a sandbox of another host was not taken over. It is that host's as before, or paused and given up.
#[derive(Debug, thiserror::Error)]
pub enum TakeOverError {
    /// There is none of this id.
    #[error(transparent)]
    NotFound(#[from] NoSuchSandbox),
    /// Nothing holds it but its machine.
    #[error("sandbox `{0}` runs on another host")]
    Running(SandboxId),
    /// It can be on no host but its own.
    #[error("cannot take the sandbox over")]
    Bound(#[from] Bound),
    /// It is another's.
    #[error("cannot take sandbox `{id}` over: {source}")]
    Held {
        /// The sandbox.
        id: SandboxId,
        /// Why.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// What holds it does not come, or is nothing that this host could restore.
    #[error("cannot take sandbox `{id}` over")]
    Restore {
        /// The sandbox.
        id: SandboxId,
        /// Why.
        #[source]
        source: SnapshotRestoreError,
    },
    /// What came is not its last durable state.
    #[error("cannot take over another state than the last durable one")]
    Stale(#[source] StaleState),
    /// It came, and does not run here: it was given up again.
    #[error("sandbox `{id}` came, and does not go on here")]
    Resume {
        /// The sandbox.
        id: SandboxId,
        /// Why.
        #[source]
        source: ResumeError,
    },
    /// The store failed.
    #[error("cannot record the sandbox as this host's")]
    Store(#[from] StoreError),
}

impl Runtime {
    /// Has a sandbox leave for another host, whom `ask` has take it over. It is paused for that if it runs. Told once it is there, running
    /// again if it ran; or it is what it was.
    pub async fn move_away(
        &self,
        id: &SandboxId,
        ask: impl FnOnce(Departing) -> BoxFuture<'static, Result<(), Box<dyn Error + Send + Sync>>> + Send + 'static,
    ) -> Result<Departed, MoveError> {
        self.ask(id, |reply| Command::Relocate(Relocation::Depart { hand_over: HandOver(Box::new(ask)), reply })).await
    }

    /// Takes a paused sandbox over that another host has given up, or whose host has been away for too long: what holds it is brought first,
    /// then it is claimed, and only then does anything of its guest begin. With `until` it goes on at once, with that deadline. What has begun
    /// is done to its end, also when the caller goes away. One that is here already is left as it is.
    pub async fn take_over(&self, id: &SandboxId, until: Option<Timestamp>) -> Result<(), TakeOverError> {
        let (runtime, id) = (self.clone(), id.clone());
        whole(self.shared.tasks.spawn(async move { runtime.take(&id, until).await })).await
    }

    async fn take(&self, id: &SandboxId, until: Option<Timestamp>) -> Result<(), TakeOverError> {
        let turn = self.shared.taking.lock().await;
        if self.owners.handles().contains_key(id) {
            return Ok(());
        }
        self.claim_with_its_files(id).await?;
        drop(turn);
        let Some(until) = until else { return Ok(()) };
        let Err(source) = self.ask(id, |reply| Command::Relocate(Relocation::GoOn { until, reply })).await else { return Ok(()) };
        match self.ask::<_, ResumeError>(id, |reply| Command::Relocate(Relocation::GiveBack { reply })).await {
            Err(ResumeError::AlreadyRunning(_)) => Ok(()),
            given => {
                if let Err(error) = given {
                    tracing::error!(sandbox = %id, error = chain(&error), "a sandbox that came and does not run stays here, paused");
                }
                Err(TakeOverError::Resume { id: id.clone(), source })
            }
        }
    }

    async fn claim_with_its_files(&self, id: &SandboxId) -> Result<(), TakeOverError> {
        let shared = &self.shared;
        let Some(claims) = &shared.config.claims else { return Err(gone(id).into()) };
        let held_by = |source| TakeOverError::Held { id: id.clone(), source };
        let record = shared.store.anyones_sandbox(id.clone()).await?.ok_or_else(|| gone(id))?;
        let RecordedPhase::Paused(held) = &record.phase else { return Err(TakeOverError::Running(id.clone())) };
        demand_unbound(shared, &record)?;
        if !claims.is_free(id).await? {
            return Err(held_by("its host has it, or may be back".into()));
        }
        let _pin = shared.artifacts.pin(held.artifact.clone());
        let restore = |source| TakeOverError::Restore { id: id.clone(), source };
        let loaded = fetching::load(shared, &held.artifact).await;
        let loaded =
            loaded.map_err(|source| restore(SnapshotRestoreError::Integrity { artifact: held.artifact.clone(), source }))?;
        stale_state::check(&record, held, &loaded.manifest).map_err(TakeOverError::Stale)?;
        if loaded.manifest.memory != MemoryMember::Absent {
            shared.gates.check_compatible(&loaded.manifest).map_err(restore)?;
        }
        let body = claims.claim(id, record.epoch).await.map_err(|refused| match refused {
            ClaimRefused::Held(source) => held_by(source),
            ClaimRefused::Store(error) => error.into(),
        })?;
        let record = SandboxRecord::read(&body)?;
        let RecordedPhase::Paused(held) = record.phase.clone() else { return Err(TakeOverError::Running(id.clone())) };
        let record = sandbox_quota::begin(shared, record).await;
        Owner::of_taken(&self.owners, record, held);
        Ok(())
    }
}
