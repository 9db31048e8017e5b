//! A create, and why there is none.

use crate::{reference::NoTemplate, restore::SnapshotRestoreError, spec::InvalidTimeout, store::StoreError};

/// Why a sandbox was not created.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// There is nothing to create it from.
    #[error(transparent)]
    NoTemplate(#[from] NoTemplate),
    /// The timeout is zero or longer than may be asked for.
    #[error("{0}")]
    InvalidTimeout(InvalidTimeout),
    /// The restore failed.
    #[error("sandbox cannot be started from template `{template}`")]
    Restore {
        /// The template.
        template: String,
        /// Why.
        #[source]
        source: SnapshotRestoreError,
    },
    /// The server is stopping.
    #[error("the server is stopping")]
    Stopping,
    /// The store failed.
    #[error("cannot record the sandbox")]
    Store(#[source] StoreError),
}
