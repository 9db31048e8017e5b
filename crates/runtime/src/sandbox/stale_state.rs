//! The generation number of a sandbox: what makes it impossible to resume an older state than the last durable one.
//!
//! Each restore of a sandbox raises its *epoch*. The guest is told the epoch and refuses a lower one; an artifact carries the
//! epoch that its guest was in when it was cut; the record of a paused sandbox carries the epoch that its state must have. A
//! record and an artifact that disagree (a directory that was put back from a copy, a record that outran its artifact) do not
//! make a sandbox.
//!
//! ```text
//!   record   running, epoch 4 ──► paused, state of epoch 4 ──► running, epoch 5 ──► paused, state of epoch 5
//!   artifact                      published with epoch 4                            published with epoch 5
//! ```
//!
//! A crash between the publication and the record leaves the record that was: the new artifact is named by nobody and collected.

use crate::{
    artifact::SnapshotArtifactManifest,
    ground::ids::ArtifactId,
    store::{Held, SandboxRecord, spec::SandboxId},
};

/// The artifact that a sandbox's record names does not hold the state that was recorded last.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("snapshot artifact `{artifact}` holds sandbox `{of}` in epoch {found}, on record is sandbox `{id}` in epoch {expected}")]
pub struct StaleState {
    /// The sandbox.
    pub id: SandboxId,
    /// The artifact on its record.
    pub artifact: ArtifactId,
    /// Whose state that is.
    pub of: String,
    /// The epoch of that state.
    pub found: u64,
    /// The epoch on record.
    pub expected: u64,
}

/// Refuses a state that is not the one that was recorded.
pub(crate) fn check(record: &SandboxRecord, held: &Held, manifest: &SnapshotArtifactManifest) -> Result<(), StaleState> {
    let expected = held.epoch.unwrap_or(record.epoch);
    if manifest.epoch == expected && manifest.logical_id == record.id.as_str() {
        return Ok(());
    }
    Err(StaleState {
        id: record.id.clone(),
        artifact: held.artifact.clone(),
        of: manifest.logical_id.clone(),
        found: manifest.epoch,
        expected,
    })
}
