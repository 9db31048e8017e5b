//! The restore path: from a snapshot artifact to a running session, or to a refusal without any effect.
//!
//! ```text
//!   request ──► Proven ──► Admitted ──► SnapshotRestoreReport: a session, with its capacity
//! ```
//!
//! The order is the product's promise: each step refuses before the next has any effect, and capacity is held by a guard from
//! before the launch until after the session has ended. [`restore`] goes all of it, for resumes, rollbacks and builds. Creates and
//! forks go it themselves, because what is proven may be claimed from the warm pool, with its capacity and most of its launch.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use firkin_engine::{Compatibility, Fingerprint, Processor, compatibility::Mismatch};
use firkin_network::SlotError;

use crate::{
    artifact::{ArtifactKind, ArtifactStore, IntegrityError, MemoryMember, SnapshotArtifactManifest, UnsealError},
    capacity::{
        ActiveSessionReservation,
        admission::{Admission, AdmissionError},
    },
    ground::{blocking::blocking, ids::ArtifactId},
    host::disk::{DiskPressure, DiskPressureGuard},
    machine::{
        engines::which,
        launch::{BootError, FilesInMemory, LaunchError, LaunchTimings, SnapshotRestoreRequest, SnapshotSessionLauncher},
    },
};

/// A session that runs, what it holds, and what its restore took.
#[derive(Debug)]
pub struct SnapshotRestoreReport<S> {
    /// The session.
    pub session: S,
    /// Its capacity; drop it only after the session has ended.
    pub reservation: ActiveSessionReservation,
    /// Checks before the launch, proof of integrity included.
    pub checks: Duration,
    /// From then until capacity was held: a claim from the warm pool, else eviction of warm sessions and the queue.
    pub admission: Duration,
    /// The launch.
    pub launch: LaunchTimings,
}

/// What the restore path consults, in this order.
#[derive(Debug, Clone)]
pub struct RestoreGates {
    /// What this host's engines make and take; what is made for nobody's choice is of the first. Not empty.
    pub engines: Vec<Compatibility>,
    /// Where artifacts are, and which are proven.
    pub artifacts: ArtifactStore,
    /// Free-space floor of the file system that sessions write to.
    pub disk: DiskPressureGuard,
    /// Capacity, and the queue for it.
    pub admission: Admission,
}

/// A restore that did not happen. Whatever the variant, nothing of it is left behind.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotRestoreError {
    /// The artifact is damaged or incomplete. Nothing was launched.
    #[error("snapshot artifact `{artifact}` is not intact")]
    Integrity {
        /// The artifact.
        artifact: ArtifactId,
        /// What is wrong.
        #[source]
        source: IntegrityError,
    },
    /// It is sealed, and cannot be opened here. It stays as it is. Nothing was launched, or what was is undone.
    #[error("snapshot artifact `{artifact}` is encrypted and cannot be opened")]
    Sealed {
        /// The artifact.
        artifact: ArtifactId,
        /// Why.
        #[source]
        source: UnsealError,
    },
    /// The artifact was made by another engine, kernel, CPU or agent generation. Nothing was launched.
    #[error(
        "snapshot artifact `{artifact}` cannot be restored here: it has {what} `{made_with}`, this host has `{here}`; {remedy}"
    )]
    Incompatible {
        /// The artifact.
        artifact: ArtifactId,
        /// Which property differs.
        what: &'static str,
        /// The artifact's value.
        made_with: String,
        /// This host's value.
        here: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// The host has no room. Nothing was launched.
    #[error("the host has no room for this sandbox")]
    Admission(#[source] AdmissionError),
    /// The disk has less free space than the floor. Nothing was launched.
    #[error("the disk is too full to start a sandbox")]
    DiskPressure(#[source] DiskPressure),
    /// No network slot is left. Nothing was launched.
    #[error("no network slot for this sandbox")]
    Network(#[source] SlotError),
    /// The artifact has no memory, and what was to be restored is memory.
    #[error("snapshot artifact `{artifact}` has no memory: its guest must be booted")]
    NoMemory {
        /// The artifact.
        artifact: ArtifactId,
    },
    /// It has no memory, and its disk is not whole without.
    #[error(transparent)]
    FilesInMemory(#[from] FilesInMemory),
    /// A guest without memory could not be booted from its disk.
    #[error("the guest could not be booted from its disk")]
    Boot(#[source] BootError),
    /// The launch failed and was undone.
    #[error("the sandbox could not be launched")]
    Launch(#[source] LaunchError),
}

/// Restores one artifact into a session.
///
/// Cancel-safe: dropped at any point it leaves nothing and gives back exactly what it reserved.
pub async fn restore<L: SnapshotSessionLauncher + ?Sized>(
    request: SnapshotRestoreRequest,
    gates: &RestoreGates,
    launcher: &L,
) -> Result<SnapshotRestoreReport<L::Session>, SnapshotRestoreError> {
    Proven::prove(request, gates).await?.admit(gates).await?.launch(launcher).await
}

/// What may be launched: the artifact fits this host and is intact, and the disk is not too full. It holds nothing yet.
#[derive(Debug)]
pub(crate) struct Proven {
    pub(crate) request: Arc<SnapshotRestoreRequest>,
    /// How long that took.
    pub(crate) checks: Duration,
    /// When it was so.
    pub(crate) since: Instant,
}

impl Proven {
    #[tracing::instrument(level = "debug", name = "phase", skip_all, fields(name = "checks"))]
    pub(crate) async fn prove(request: SnapshotRestoreRequest, gates: &RestoreGates) -> Result<Self, SnapshotRestoreError> {
        let begun = Instant::now();
        if request.artifact.manifest.memory == MemoryMember::Absent {
            return Err(SnapshotRestoreError::NoMemory { artifact: request.artifact.manifest.id });
        }
        gates.check_compatible(&request.artifact.manifest)?;
        let request = Arc::new(request);
        verify(Arc::clone(&request), gates.artifacts.clone()).await?;
        let sealed = |source| SnapshotRestoreError::Sealed { artifact: request.artifact.manifest.id.clone(), source };
        gates.artifacts.demand_keys(&request.artifact).map_err(sealed)?;
        gates.disk.check().map_err(SnapshotRestoreError::DiskPressure)?;
        Ok(Self { request, checks: begun.elapsed(), since: Instant::now() })
    }

    /// Takes capacity for it: what is free, else that of warm sessions, else what comes free while it waits.
    #[tracing::instrument(level = "debug", name = "phase", skip_all, fields(name = "admission"))]
    pub(crate) async fn admit(self, gates: &RestoreGates) -> Result<Admitted, SnapshotRestoreError> {
        let reservation = gates.admission.admit(self.request.budget).await.map_err(SnapshotRestoreError::Admission)?;
        Ok(Admitted { admission: self.since.elapsed(), proven: self, reservation })
    }
}

/// What may be launched now. Dropped, it gives its capacity back.
#[derive(Debug)]
pub(crate) struct Admitted {
    proven: Proven,
    reservation: ActiveSessionReservation,
    /// How long it waited for that.
    admission: Duration,
}

impl Admitted {
    pub(crate) async fn launch<L: SnapshotSessionLauncher + ?Sized>(
        self,
        launcher: &L,
    ) -> Result<SnapshotRestoreReport<L::Session>, SnapshotRestoreError> {
        let Self { proven: Proven { request, checks, .. }, reservation, admission } = self;
        let (session, launch) = launcher.launch(&request).await.map_err(|error| match error {
            LaunchError::Network(source) => SnapshotRestoreError::Network(source),
            LaunchError::Sealed(source) => {
                SnapshotRestoreError::Sealed { artifact: request.artifact.manifest.id.clone(), source }
            }
            other => SnapshotRestoreError::Launch(other),
        })?;
        Ok(SnapshotRestoreReport { session, reservation, checks, admission, launch })
    }
}

async fn verify(request: Arc<SnapshotRestoreRequest>, artifacts: ArtifactStore) -> Result<(), SnapshotRestoreError> {
    let artifact = request.artifact.manifest.id.clone();
    blocking(move || artifacts.verify(&request.artifact))
        .await
        .map_err(|source| SnapshotRestoreError::Integrity { artifact, source })
}

impl RestoreGates {
    /// What can be made and taken by the engine that would restore this.
    pub(crate) fn engine(&self, made: &Fingerprint) -> &Compatibility {
        let at = which(self.engines.iter().map(|engine| &engine.plain), made);
        &self.engines[at]
    }

    /// Refuses what this host cannot restore faithfully. Gives the processor that the guest was shown.
    pub(crate) fn check_compatible(&self, manifest: &SnapshotArtifactManifest) -> Result<Processor, SnapshotRestoreError> {
        let refused = |mismatch: Mismatch| SnapshotRestoreError::Incompatible {
            artifact: manifest.id.clone(),
            what: mismatch.what,
            made_with: mismatch.made_with,
            here: mismatch.here,
            remedy: remedy(manifest.kind),
        };
        manifest.processor(self.engine(&manifest.engine)).map_err(refused)
    }
}

/// What to do about an artifact that cannot be restored here.
fn remedy(kind: ArtifactKind) -> &'static str {
    match kind {
        ArtifactKind::BaseTemplate => "build the template again; one of the host's own with `firkin template build NAME --force`",
        ArtifactKind::Pause | ArtifactKind::Boot => {
            "`firkin sandbox resume --reboot` boots it from its files, without its memory; or resume it on a host that has what it \
             was made with"
        }
        ArtifactKind::Continuation => "use it on a host that has what it was made with, or create a new sandbox from a template",
    }
}
