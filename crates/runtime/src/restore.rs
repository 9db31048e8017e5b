//! The restore path: from a snapshot artifact to a running session, or to a refusal without any effect.
//!
//! Create, resume and fork all come through [`restore`]. Its order is the product's promise: each step refuses before the next
//! has any effect, and capacity is held by a guard from before the launch until after the session has ended.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use firkin_engine::{Compatibility, Processor, compatibility::Mismatch};
use firkin_wire::control;

use crate::{
    admission::Admission,
    artifact::{Artifact, ArtifactKind, ArtifactStore, MemoryMember, SnapshotArtifactManifest},
    capacity::{ActiveSessionReservation, ResourceBudget},
    disk::DiskPressureGuard,
    error::{LaunchError, SnapshotRestoreError},
    sandbox::InternetAccess,
};

/// What a launcher is given.
#[derive(Debug)]
pub struct SnapshotRestoreRequest {
    /// What to restore. Its integrity has been proven.
    pub artifact: Artifact,
    /// What the session may use.
    pub budget: ResourceBudget,
    /// Who the guest becomes.
    pub identity: control::Identity,
    /// Its outbound network.
    pub internet: InternetAccess,
}

/// The seam between policy and engine.
#[async_trait]
pub trait SnapshotSessionLauncher: Send + Sync {
    /// A running session.
    type Session: Send;

    /// Restores one request into a session whose guest has become `request.identity`.
    ///
    /// Cancel-safe: a future that is dropped, or that fails, leaves no process, network slot or file.
    async fn launch(&self, request: &SnapshotRestoreRequest) -> Result<(Self::Session, LaunchTimings), LaunchError>;
}

/// How long the phases of a launch took, measured by the launcher.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LaunchTimings {
    /// Network slot, instance directory, disk overlay.
    pub staging: Duration,
    /// The engine's restore and resume.
    pub vm_restore: Duration,
    /// Control channel: from resume until the agent answered for the first time.
    pub first_answer: Duration,
    /// Control channel: from resume until the guest has its new identity.
    pub agent_connect: Duration,
}

/// A session that runs, what it holds, and what its restore took.
#[derive(Debug)]
pub struct SnapshotRestoreReport<S> {
    /// The session.
    pub session: S,
    /// Its capacity; drop it only after the session has ended.
    pub reservation: ActiveSessionReservation,
    /// Checks before the launch, proof of integrity included.
    pub checks: Duration,
    /// From then until capacity was held: eviction of warm sessions and the queue.
    pub admission: Duration,
    /// The launch.
    pub launch: LaunchTimings,
}

/// What the restore path consults, in this order.
#[derive(Debug, Clone)]
pub struct RestoreGates {
    /// What this host's engine makes and takes.
    pub engine: Compatibility,
    /// Where artifacts are, and which are proven.
    pub artifacts: ArtifactStore,
    /// Free-space floor of the file system that sessions write to.
    pub disk: DiskPressureGuard,
    /// Capacity, and the queue for it.
    pub admission: Admission,
}

/// Restores one artifact into a session.
///
/// Cancel-safe: dropped at any point it leaves nothing and gives back exactly what it reserved.
pub async fn restore<L: SnapshotSessionLauncher + ?Sized>(
    request: SnapshotRestoreRequest,
    gates: &RestoreGates,
    launcher: &L,
) -> Result<SnapshotRestoreReport<L::Session>, SnapshotRestoreError> {
    let begun = Instant::now();
    let request = check(request, gates).await?;
    launch(&request, gates, launcher, begun).await
}

/// What comes before capacity is taken: the artifact fits this host and is intact, and the disk is not too full.
pub(crate) async fn check(
    request: SnapshotRestoreRequest,
    gates: &RestoreGates,
) -> Result<Arc<SnapshotRestoreRequest>, SnapshotRestoreError> {
    if request.artifact.manifest.memory == MemoryMember::Absent {
        return Err(SnapshotRestoreError::NoMemory { artifact: request.artifact.manifest.id });
    }
    check_compatible(&request.artifact.manifest, &gates.engine)?;
    let request = Arc::new(request);
    verify(Arc::clone(&request), gates.artifacts.clone()).await?;
    gates.disk.check().map_err(SnapshotRestoreError::DiskPressure)?;
    Ok(request)
}

/// Takes capacity for what has been [checked](check) since `begun`, and launches it.
pub(crate) async fn launch<L: SnapshotSessionLauncher + ?Sized>(
    request: &SnapshotRestoreRequest,
    gates: &RestoreGates,
    launcher: &L,
    begun: Instant,
) -> Result<SnapshotRestoreReport<L::Session>, SnapshotRestoreError> {
    let checks = begun.elapsed();
    let begun = Instant::now();
    let reservation = gates.admission.admit(request.budget).await.map_err(SnapshotRestoreError::Admission)?;
    let admission = begun.elapsed();
    let (session, launch) = launcher.launch(request).await.map_err(|error| match error {
        LaunchError::Network(source) => SnapshotRestoreError::Network(source),
        other => SnapshotRestoreError::Launch(other),
    })?;
    Ok(SnapshotRestoreReport { session, reservation, checks, admission, launch })
}

async fn verify(request: Arc<SnapshotRestoreRequest>, artifacts: ArtifactStore) -> Result<(), SnapshotRestoreError> {
    let artifact = request.artifact.manifest.id.clone();
    tokio::task::spawn_blocking(move || artifacts.verify(&request.artifact))
        .await
        .expect("verification does not panic and the runtime does not stop under it")
        .map_err(|source| SnapshotRestoreError::Integrity { artifact, source })
}

/// Refuses what this host cannot restore faithfully. Gives the processor that the guest was shown.
pub(crate) fn check_compatible(
    manifest: &SnapshotArtifactManifest,
    here: &Compatibility,
) -> Result<Processor, SnapshotRestoreError> {
    let refused = |mismatch: Mismatch| SnapshotRestoreError::Incompatible {
        artifact: manifest.id.clone(),
        what: mismatch.what,
        made_with: mismatch.made_with,
        here: mismatch.here,
        remedy: remedy(manifest.kind),
    };
    let processor = here.processor(&manifest.engine).map_err(refused)?;
    if manifest.guest.agent_generation > control::GENERATION {
        return Err(refused(Mismatch {
            what: "guest agent generation",
            made_with: manifest.guest.agent_generation.to_string(),
            here: format!("up to {}", control::GENERATION),
        }));
    }
    Ok(processor)
}

/// What to do about an artifact that cannot be restored here.
fn remedy(kind: ArtifactKind) -> &'static str {
    match kind {
        ArtifactKind::BaseTemplate => "build the template again with `firkin template build --force`",
        ArtifactKind::Pause | ArtifactKind::Boot => {
            "`firkin sandbox resume --reboot` boots it from its files, without its memory; or resume it on a host that has what it \
             was made with"
        }
        ArtifactKind::Continuation => "use it on a host that has what it was made with, or create a new sandbox from a template",
    }
}
