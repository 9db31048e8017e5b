//! A template that sandboxes can be created from.

use crate::{
    artifact::{Artifact, Pin},
    restore::SnapshotRestoreError,
    shared::Shared,
    start::fetching,
    store::TemplateRecord,
};

/// What a build made of a template, or a snapshot: its record, and the artifact with what its members must be. While it is held,
/// the artifact is not collected.
#[derive(Debug)]
pub(crate) struct PreparedTemplate {
    pub(crate) record: TemplateRecord,
    pub(crate) artifact: Artifact,
    pub(crate) pin: Pin,
}

impl PreparedTemplate {
    /// Reads the artifact of what was found, wherever it is. Nothing is proven of it yet.
    pub(crate) async fn load(shared: &Shared, record: TemplateRecord) -> Result<Self, SnapshotRestoreError> {
        // Before it is read: what goes in between is missed here, and not in the middle of a restore.
        let pin = shared.artifacts.pin(record.artifact.clone());
        match fetching::load(shared, &record.artifact).await {
            Ok(artifact) => Ok(Self { record, artifact, pin }),
            Err(source) => Err(SnapshotRestoreError::Integrity { artifact: record.artifact, source }),
        }
    }
}
