//! How manifests come about: of what was booted, of what was cut, and of a state that is published once more.

use firkin_engine::{BootFiles, Fingerprint, Shape};
use firkin_wire::nonce::Nonce;
use jiff::Timestamp;

use super::{ArtifactKind, CutReason, DiskMembers, FORMAT, GuestIdentity, MemoryMember, SnapshotArtifactManifest};
use crate::{
    capacity::ResourceBudget,
    ground::ids::{ArtifactId, LayerId},
};

/// A guest that was booted and cut.
pub(crate) struct BootedState<'a> {
    /// Of the artifact.
    pub(crate) id: &'a ArtifactId,
    pub(crate) kind: ArtifactKind,
    /// Template or sandbox that it belongs to.
    pub(crate) logical_id: String,
    /// The sandbox's artifact whose disk was booted; absent in templates, whatever disk they were booted from, by which sources are known.
    pub(crate) parent: Option<ArtifactId>,
    pub(crate) engine: Fingerprint,
    /// What came up: this server's, whatever had run on the disk before.
    pub(crate) guest: &'a BootFiles,
    pub(crate) shape: Shape,
    pub(crate) budget: ResourceBudget,
    pub(crate) epoch: u64,
    /// Where its memory is.
    pub(crate) memory: MemoryMember,
    /// Its disk, with what it wrote.
    pub(crate) disk: DiskMembers,
}

/// What a cut took of a machine that had been restored.
pub(crate) struct CutState<'a> {
    /// Of the artifact.
    pub(crate) id: &'a ArtifactId,
    /// Absent: for a template.
    pub(crate) reason: Option<CutReason>,
    pub(crate) logical_id: String,
    pub(crate) parent: ArtifactId,
    pub(crate) epoch: u64,
    pub(crate) memory: MemoryMember,
    /// Of the disk at that instant, lowest first.
    pub(crate) layers: Vec<LayerId>,
    pub(crate) nonce: Option<Nonce>,
}

impl SnapshotArtifactManifest {
    /// Of what was booted.
    pub(crate) fn of_boot(booted: BootedState<'_>) -> Self {
        let BootedState { id, kind, logical_id, parent, engine, guest, shape, budget, epoch, memory, disk } = booted;
        Self {
            format: FORMAT,
            id: id.clone(),
            kind,
            reason: None,
            logical_id,
            parent,
            created_at: Timestamp::now(),
            engine,
            guest: GuestIdentity::of_boot(guest),
            shape,
            budget,
            epoch,
            memory,
            disk,
        }
    }

    /// Of what was cut of a machine that had been restored from this, or over its memory.
    pub(crate) fn of_cut(self, cut: CutState<'_>) -> Self {
        let CutState { id, reason, logical_id, parent, epoch, memory, layers, nonce } = cut;
        Self {
            format: FORMAT,
            id: id.clone(),
            kind: reason.map_or(ArtifactKind::BaseTemplate, CutReason::kind),
            reason,
            logical_id,
            parent: Some(parent),
            created_at: Timestamp::now(),
            epoch,
            memory,
            disk: DiskMembers { layers, ..self.disk },
            guest: GuestIdentity { nonce, ..self.guest },
            ..self
        }
    }

    /// Of the same state with a memory of its own.
    pub(super) fn of_flattened(&self, id: &ArtifactId) -> Self {
        Self { id: id.clone(), memory: MemoryMember::Full, ..self.clone() }
    }
}
