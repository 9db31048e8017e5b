//! What one sandbox holds of the disk, and how much it may hold: its overlay and the layers below that are its own, and its snapshots.
//!
//! What it was created on is not its own: layers and memory of its template, or of another's snapshot. What is shared by several of its
//! own states counts once. A snapshot or fork that would exceed the quota is refused before the guest stands still for it; a pause never
//! is, because nothing else ends the writing and keeps what there is. Nor does its memory count, paused or mapped: that is no larger than
//! the machine, its user can remove nothing of it, and flattening makes it larger unasked. A sandbox that was paused for its quota is not
//! resumed before it holds less; what it wrote over is freed meanwhile, by making its layers one (`sandbox/owner/upkeep.rs`). So the
//! most that one sandbox holds is its quota, its memory, that of one pause, and what it writes between two looks.

use std::{collections::HashSet, io, path::PathBuf};

use firkin_causes::chain;

use crate::{
    artifact::{Artifact, ArtifactKind, ArtifactStore, MemoryMember},
    capacity::{TeamQuotaError, within},
    ground::{
        blocking::blocking,
        ids::{ArtifactId, LayerId},
        team::TeamId,
    },
    host::disk::{DiskPressure, bytes_at},
    shared::Shared,
    store::{Named, RecordedPhase, SandboxRecord, StoreError, spec::SandboxId},
};

/// Why a sandbox may keep nothing more.
#[derive(Debug, thiserror::Error)]
pub enum QuotaError {
    /// It would hold more of the disk than it may.
    #[error("it takes {needed_mib} MiB of the disk, and its quota is {quota_mib} MiB")]
    Disk {
        /// What it holds, with what was to come.
        needed_mib: u64,
        /// What it may hold.
        quota_mib: u64,
    },
    /// It has as many snapshots as it may.
    #[error("it has as many snapshots as one sandbox may have, {max}")]
    Snapshots {
        /// The most.
        max: usize,
    },
    /// Its team has as much as it may.
    #[error(transparent)]
    Team(#[from] TeamQuotaError),
    /// The disk could not be measured.
    #[error("cannot tell its quota")]
    Disks(#[source] DiskPressure),
    /// Its files could not be measured.
    #[error("cannot tell what it holds of the disk")]
    Unmeasured(#[source] io::Error),
    /// The store failed.
    #[error("cannot tell which snapshots it has")]
    Store(#[source] StoreError),
}

/// The record of a sandbox whose server did not write down what it was created on: all that it has counts as that, and only what it writes
/// from now on as its own. Of a paused one that cannot be read nothing is known, and it cannot be resumed either.
pub(crate) async fn begin(shared: &Shared, record: SandboxRecord) -> SandboxRecord {
    let layers = match &record.phase {
        _ if record.inherited.is_some() => return record,
        RecordedPhase::Running { layers, .. } => layers.clone(),
        RecordedPhase::Paused(held) => match shared.artifacts.load(&held.artifact) {
            Ok(artifact) => artifact.manifest.disk.layers,
            Err(_) => return record,
        },
    };
    let record = SandboxRecord { inherited: Some(layers), ..record };
    if let Err(error) = shared.store.update_sandbox(record.clone(), record.guard()).await {
        tracing::warn!(sandbox = %record.id, error = chain(&error), "cannot record what a sandbox was created on");
    }
    record
}

/// Refuses another snapshot of a sandbox that has as many as it may, or whose team has as many as `most`.
pub(crate) async fn admit_snapshot(
    shared: &Shared,
    (team, most): (&TeamId, Option<u32>),
    id: &SandboxId,
) -> Result<(), QuotaError> {
    if let Some(most) = most {
        let used = shared.store.count_snapshots(team.clone()).await.map_err(QuotaError::Store)?;
        within(SNAPSHOTS, Some(most.into()), used.into(), 1)?;
    }
    let max = shared.config.sandboxes.snapshots;
    let count = shared.store.snapshots_of(id.clone()).await.map_err(QuotaError::Store)?.len();
    if count < max { Ok(()) } else { Err(QuotaError::Snapshots { max }) }
}

/// How a team's quota of them is told.
const SNAPSHOTS: &str = "snapshots";

/// What is told to a team that had one taken meanwhile, and has `used` of them.
pub(crate) fn too_many_snapshots(most: Option<u32>, used: u32) -> QuotaError {
    let most = u64::from(most.unwrap_or_default());
    TeamQuotaError::Most { what: SNAPSHOTS, most, used: used.into(), asked: 1 }.into()
}

/// Refuses to have a sandbox hold so many bytes more than it does.
pub(crate) async fn admit(shared: &Shared, record: &SandboxRecord, more: u64) -> Result<(), QuotaError> {
    let quota = quota(shared, record)?;
    let needed = held(shared, record).await?.saturating_add(more);
    if needed <= quota { Ok(()) } else { Err(QuotaError::Disk { needed_mib: needed.div_ceil(1 << 20), quota_mib: quota >> 20 }) }
}

/// Refuses to have a paused sandbox run on `layers` if it would hold more than it may. Where it has nothing but a disk that is no larger
/// than it was made, it is let in whatever the quota is: its user can remove nothing from outside.
pub(crate) async fn admit_resume(shared: &Shared, record: &SandboxRecord, layers: &[LayerId]) -> Result<(), QuotaError> {
    let RecordedPhase::Paused(held_by) = &record.phase else { return Ok(()) };
    let phase = RecordedPhase::Running {
        memory_base: held_by.artifact.clone(),
        layers: layers.to_vec(),
        overlay: LayerId::generate(),
        slot: 0,
        instance: None,
        nonce: None,
    };
    let record = SandboxRecord { phase, ..record.clone() };
    let (quota, needed) = (quota(shared, &record)?, held(shared, &record).await?);
    if needed <= quota {
        return Ok(());
    }
    let own: Vec<PathBuf> = own_layers(&record, layers).map(|layer| shared.artifacts.layer_file(layer)).collect();
    let disk = blocking(move || own.iter().map(|layer| bytes_at(layer)).sum::<io::Result<u64>>()).await;
    if needed == disk.map_err(QuotaError::Unmeasured)? && needed <= own_size(&record) {
        return Ok(());
    }
    Err(QuotaError::Disk { needed_mib: needed.div_ceil(1 << 20), quota_mib: quota >> 20 })
}

/// What a sandbox may hold. Where nobody has said how much, it can at least fill its own disk and be paused.
fn quota(shared: &Shared, record: &SandboxRecord) -> Result<u64, QuotaError> {
    let given = shared.config.sandboxes.disk_mib;
    let share = shared.gates.disk.share(given).map_err(QuotaError::Disks)?;
    Ok(if given.is_some() { share } else { share.max(own_size(record)) })
}

/// Its own disk and memory, bytes.
fn own_size(record: &SandboxRecord) -> u64 {
    (record.budget.disk_mib + record.budget.memory_mib).saturating_mul(1 << 20)
}

/// What a sandbox holds, bytes as they lie on the disk.
async fn held(shared: &Shared, record: &SandboxRecord) -> Result<u64, QuotaError> {
    let named = named(shared, record).await?;
    let dir = shared.launcher.instances.path(record.instance());
    let (artifacts, engines, record) = (shared.artifacts.clone(), shared.launcher.engines.clone(), record.clone());
    let measure = move || -> io::Result<u64> {
        let machine = match record.phase {
            RecordedPhase::Running { .. } => engines.bytes_of(&dir)?,
            RecordedPhase::Paused(_) => 0,
        };
        own_parts(&artifacts, &record, &named).iter().try_fold(machine, |bytes, part| Ok(bytes + bytes_at(part)?))
    };
    blocking(measure).await.map_err(QuotaError::Unmeasured)
}

/// Who names what the snapshots of a sandbox are made of. Of all else that is on record nothing is read.
async fn named(shared: &Shared, record: &SandboxRecord) -> Result<Vec<Named>, QuotaError> {
    let mut next = shared.store.snapshots_of(record.id.clone()).await.map_err(QuotaError::Store)?;
    let artifacts = shared.artifacts.clone();
    let with_bases = move || {
        let mut found = HashSet::new();
        while let Some(id) = next.pop() {
            if let Ok(artifact) = artifacts.load(&id)
                && let MemoryMember::Diff { base } = artifact.manifest.memory
                && !found.contains(&base)
            {
                next.push(base);
            }
            found.insert(id);
        }
        found
    };
    shared.store.named(blocking(with_bases).await).await.map_err(QuotaError::Store)
}

/// Directories of artifacts and files of layers that are there because of this sandbox.
fn own_parts(artifacts: &ArtifactStore, record: &SandboxRecord, named: &[Named]) -> HashSet<PathBuf> {
    let mut layers = match &record.phase {
        RecordedPhase::Running { layers, .. } => layers.clone(),
        RecordedPhase::Paused(held) => artifacts.load(&held.artifact).map(|held| held.manifest.disk.layers).unwrap_or_default(),
    };
    let is_its = |named: &&Named| named.snapshot_of.as_ref() == Some(&record.id);
    let mut next: Vec<ArtifactId> = named.iter().filter(is_its).map(|named| named.artifact.clone()).collect();
    let mut parts = HashSet::new();
    let mut seen = HashSet::new();
    while let Some(id) = next.pop() {
        if !seen.insert(id.clone()) {
            continue;
        }
        // One that cannot be read is somebody else's trouble.
        let Ok(artifact) = artifacts.load(&id) else { continue };
        if !is_own(&artifact, &record.id, named) {
            continue;
        }
        parts.insert(artifacts.dir(&id));
        layers.extend(artifact.manifest.disk.layers.iter().cloned());
        if let MemoryMember::Diff { base } = artifact.manifest.memory {
            next.push(base);
        }
    }
    parts.extend(own_layers(record, &layers).map(|layer| artifacts.layer_file(layer)));
    parts
}

/// Those of `layers` that are not what a sandbox was created on.
pub(crate) fn own_layers<'a>(record: &SandboxRecord, layers: &'a [LayerId]) -> impl Iterator<Item = &'a LayerId> {
    let inherited = record.inherited.as_deref();
    layers.iter().filter(move |layer| inherited.is_some_and(|inherited| !inherited.contains(layer)))
}

/// Whether an artifact is there for this sandbox: it was cut of it, or it is the state that it was forked from.
fn is_own(artifact: &Artifact, id: &SandboxId, named: &[Named]) -> bool {
    let manifest = &artifact.manifest;
    let of_another = || named.iter().any(|other| other.artifact == manifest.id && other.snapshot_of.as_ref() != Some(id));
    manifest.logical_id == id.as_str() || (manifest.kind == ArtifactKind::Continuation && !of_another())
}
