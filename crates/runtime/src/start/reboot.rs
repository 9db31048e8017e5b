//! How a sandbox comes back without its memory: its disk is booted, what came up is cut, and that is restored like any state.
//!
//! The cut makes a *private base*: a whole artifact of this sandbox alone. So what runs is always a restored machine, which can be
//! paused, snapshot and forked like any other, with diffs that stand on that base; and identity comes over the same path. The price
//! is one write of a booted guest's memory, a hundred-odd MiB, per reboot. Working in the booted machine itself was rejected: its
//! snapshot seals it, so a snapshot would end it.
//!
//! Device state and CPU play no part in this: a disk boots under another engine or on another CPU than it was written with.

use std::sync::Arc;

use firkin_wire::control::Identity;

use crate::{
    artifact::{Artifact, ArtifactKind, BootedState, DiskMembers, Pin, SnapshotArtifactManifest},
    ground::blocking::blocking,
    machine::launch::BootError,
    restore::SnapshotRestoreError,
    shared::Shared,
    start::{
        boot::{self, BootRequest, Booted},
        life::Life,
    },
};

/// Boots the disk of `artifact` for the sandbox of `life`, in the epoch of `identity`. What it returns has memory and can be
/// restored in any later epoch; it is kept until the pin is dropped.
///
/// Cancel-safe: dropped at any point it leaves nothing and gives back what it reserved.
pub(crate) async fn memory_of_disk(
    shared: &Arc<Shared>,
    life: &Life,
    artifact: Artifact,
    identity: Identity,
) -> Result<(Artifact, Pin), SnapshotRestoreError> {
    shared.demand_disk(&artifact.manifest.engine)?;
    let artifact = artifact.without_memory();
    let (store, disk) = (shared.artifacts.clone(), artifact.clone());
    blocking(move || store.verify(&disk))
        .await
        .map_err(|source| SnapshotRestoreError::Integrity { artifact: artifact.manifest.id.clone(), source })?;
    let sealed = |source| SnapshotRestoreError::Sealed { artifact: artifact.manifest.id.clone(), source };
    shared.artifacts.demand_keys(&artifact).map_err(sealed)?;
    shared.gates.disk.check().map_err(SnapshotRestoreError::DiskPressure)?;
    let reservation = shared.gates.admission.admit(life.budget).await.map_err(SnapshotRestoreError::Admission)?;
    let epoch = identity.epoch;
    // Where the processor that it had is unknown here, that was part of what was dropped.
    let processor = shared.gates.engine(&artifact.manifest.engine).processor(&artifact.manifest.engine).unwrap_or_default();
    // A disk is in the form of the engine that wrote it.
    let Some(engine) = shared.launcher.engines.its_own(&artifact.manifest.engine).cloned() else {
        shared.gates.check_compatible(&artifact.manifest)?;
        return Err(SnapshotRestoreError::NoMemory { artifact: artifact.manifest.id });
    };
    let made = engine.compatibility().fingerprint(processor);
    let request = BootRequest {
        engine,
        shape: artifact.manifest.shape,
        processor,
        disk: artifact.manifest.disk.clone(),
        disk_bytes: artifact.manifest.budget.disk_mib << 20,
        internet: life.spec.internet.clone(),
        can_be_claimed: life.is_claimed(),
        identity,
        secrecy: shared.artifacts.secrecy(),
    };
    let id = life.id.clone();
    let report = move |line: &str| tracing::info!(sandbox = %id, "{line}");
    let booted = cut(shared, &request, &report).await.map_err(SnapshotRestoreError::Boot)?;
    // The restore that follows reserves for itself: a session and its reservation begin together.
    drop(reservation);
    let pin = shared.artifacts.pin(booted.id());
    let from = artifact.manifest;
    let manifest = SnapshotArtifactManifest::of_boot(BootedState {
        id: booted.id(),
        kind: ArtifactKind::Boot,
        logical_id: life.id.to_string(),
        parent: Some(from.id),
        engine: made,
        guest: &booted.boot,
        shape: from.shape,
        budget: from.budget,
        epoch,
        memory: booted.memory(),
        disk: DiskMembers { layers: booted.layers(), ..from.disk },
    });
    let published = booted.publish(shared, manifest).await.map_err(SnapshotRestoreError::Boot)?;
    Ok((published, pin))
}

async fn cut(
    shared: &Arc<Shared>,
    request: &BootRequest,
    report: crate::ground::progress::Report<'_>,
) -> Result<Booted, BootError> {
    let mut booted = boot::boot(shared, request, report).await?;
    let cut = match booted.shrink(report).await {
        Ok(()) => booted.cut(report).await,
        Err(error) => Err(error),
    };
    booted.end().await;
    cut.map(|()| booted)
}
