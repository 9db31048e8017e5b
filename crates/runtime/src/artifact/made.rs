//! How manifests come about.

use firkin_engine::{BootFiles, Fingerprint, Shape};
use jiff::Timestamp;

use super::{ArtifactKind, DiskMembers, FORMAT, GuestIdentity, MemoryMember, SnapshotArtifactManifest};
use crate::capacity::ResourceBudget;

/// A guest that was booted and cut.
pub(crate) struct BootedState<'a> {
    /// Of the artifact.
    pub(crate) id: &'a str,
    pub(crate) kind: ArtifactKind,
    /// Template or sandbox that it belongs to.
    pub(crate) logical_id: String,
    /// The artifact whose disk was booted; absent: the disk of a root image.
    pub(crate) parent: Option<String>,
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

impl SnapshotArtifactManifest {
    /// Of what was booted.
    pub(crate) fn of_boot(booted: BootedState<'_>) -> Self {
        let BootedState { id, kind, logical_id, parent, engine, guest, shape, budget, epoch, memory, disk } = booted;
        Self {
            format: FORMAT,
            id: id.to_owned(),
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
}
