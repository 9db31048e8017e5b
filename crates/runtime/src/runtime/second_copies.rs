//! The runtime's face for second copies: what holds a paused sandbox of another host is kept here too, so that it outlives that host's disk.
//!
//! ```text
//!   pinned ─► brought here, whole ─► on record as a copy ─► the pin ends
//!                                     └─ nobody is held by it any more: the pin ends, and it is collected
//! ```
//!
//! Collection needs no word of it: what holds a paused sandbox of any host is kept on each host that has it (`store/in_use.rs`), before the copy
//! is on record and after, and goes once no sandbox is held by it.

use crate::{
    artifact::IntegrityError,
    ground::{blocking::whole, ids::ArtifactId},
    host::disk::DiskPressure,
    runtime::Runtime,
    sandbox::owner::{Bound, demand_unbound_as, is_sealed},
    start::fetching,
    store::{
        StoreError,
        spec::{NoSuchSandbox, SandboxId},
    },
    upkeep::disk_budget,
};

/// Why there is no copy of an artifact here. Nothing says that there is one.
#[derive(Debug, thiserror::Error)]
pub enum KeepCopyError {
    /// This server shares its catalogue with nobody.
    #[error("this server is in no cluster")]
    Alone,
    /// It is not here, and did not come.
    #[error("artifact `{artifact}` cannot be kept here")]
    Absent {
        /// Which.
        artifact: ArtifactId,
        /// Why.
        #[source]
        source: IntegrityError,
    },
    /// What is here was found to be damaged.
    #[error("artifact `{0}` is here, and damaged")]
    Damaged(ArtifactId),
    /// No sandbox is held by it, or not any more.
    #[error("no paused sandbox is held by artifact `{0}`")]
    Unneeded(ArtifactId),
    /// The disk has no room for what is not this host's own.
    #[error("the disk has no room for copies of other hosts")]
    Disk(#[from] DiskPressure),
    /// The store failed.
    #[error("cannot record a copy")]
    Store(#[from] StoreError),
}

impl Runtime {
    /// Keeps what holds a paused sandbox of another host: it is brought here if it is not, and then on record as a copy. Whole and on record when
    /// this returns. What has begun is done to its end, also when the caller goes away.
    pub async fn keep_copy(&self, artifact: &ArtifactId) -> Result<(), KeepCopyError> {
        let (runtime, artifact) = (self.clone(), artifact.clone());
        whole(self.shared.tasks.spawn(async move { runtime.copy_here(artifact).await })).await
    }

    async fn copy_here(&self, artifact: ArtifactId) -> Result<(), KeepCopyError> {
        let claims = self.shared.config.claims.as_ref().ok_or(KeepCopyError::Alone)?;
        let _turn = self.shared.keeping.lock().await;
        let _pin = self.shared.artifacts.pin(artifact.clone());
        // It may have been resumed while others came before it.
        if !claims.is_held(&artifact).await? {
            return Err(KeepCopyError::Unneeded(artifact));
        }
        if !self.shared.artifacts.is_here(&artifact) {
            // What this host was not asked for by its own users leaves them room, as what is kept warm does.
            self.shared.gates.disk.check_for_refill()?;
            disk_budget::admit(&self.shared).await?;
        }
        if let Err(source) = fetching::load(&self.shared, &artifact).await {
            return Err(KeepCopyError::Absent { artifact, source });
        }
        if !self.has_artifact(&artifact) {
            return Err(KeepCopyError::Damaged(artifact));
        }
        if claims.copied(&artifact).await? {
            return Ok(());
        }
        // What came for nobody is collected once the pin is gone.
        self.shared.collect_again();
        Err(KeepCopyError::Unneeded(artifact))
    }

    /// Waits until a sandbox was paused since the last time that this was asked. Cancel-safe.
    pub async fn was_paused(&self) {
        self.shared.was_paused().await;
    }

    /// Whether an artifact can be started from here, and be given to other hosts.
    pub fn has_artifact(&self, artifact: &ArtifactId) -> bool {
        self.shared.artifacts.is_usable(artifact)
    }

    /// What keeps a paused sandbox on this host, so that a copy of what holds it would be of no use elsewhere, or cannot be made.
    pub fn bound(&self, id: &SandboxId, artifact: &ArtifactId) -> Result<Option<Bound>, NoSuchSandbox> {
        let view = self.handle(id)?.view;
        let bound = demand_unbound_as(&self.shared, id, &view.borrow().sandbox.spec);
        Ok(match bound {
            Err(bound) => Some(bound),
            Ok(()) => is_sealed(&self.shared, artifact).then(|| Bound::Sealed(id.clone())),
        })
    }

    /// Has what nobody needs any more removed, soon: others have let go of something.
    pub fn collect(&self) {
        self.shared.collect_again();
    }
}
