//! The end of a volume, which sandboxes have a say in, and what volumes hold when a server begins.

use std::sync::Arc;

use crate::{ground::team::Scope, runtime::Runtime, shared::Shared, storage::volumes::VolumeError, store::StoreError};

/// Why a volume was not ended.
#[derive(Debug, thiserror::Error)]
pub enum DestroyVolumeError {
    /// A sandbox has it, it is not there, or it cannot be removed.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// Nobody can tell which sandboxes have it.
    #[error("cannot look for sandboxes that have the volume")]
    Store(#[source] StoreError),
}

impl Runtime {
    /// Ends a volume with everything in it. Refused while a sandbox has it, also one that is paused.
    pub async fn destroy_volume(&self, id: &str) -> Result<(), DestroyVolumeError> {
        self.shared.volumes.get(&self.scope, id).await?;
        let ending = self.shared.volumes.begin_end(id)?;
        let records = self.shared.store.sandboxes(Scope::Host).await.map_err(DestroyVolumeError::Store)?;
        if records.iter().any(|record| record.spec.has_volume(id)) {
            return Err(VolumeError::Mounted(id.to_owned()).into());
        }
        Ok(self.shared.volumes.destroy(ending).await?)
    }
}

/// Counts what volumes hold. Where that fails it is tried again by whoever writes to one, who is told.
pub(super) async fn count(shared: Arc<Shared>) {
    tokio::select! {
        counted = shared.volumes.count_all() => if let Err(error) = counted {
            tracing::warn!(error = firkin_causes::chain(&error), "cannot count what volumes hold");
        },
        () = shared.stopping.cancelled() => {}
    }
}
