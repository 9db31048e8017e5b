//! Sandboxes that are gone and cannot be forgotten yet, because the catalogue is not there.

use std::{sync::Arc, time::Duration};

use firkin_causes::chain;

use crate::{
    shared::Shared,
    store::{SandboxRecord, StoreError},
};

/// Between two attempts.
const RETRY: Duration = Duration::from_secs(5);

/// Whether to try it later is of use.
pub(crate) fn passes(error: &StoreError) -> bool {
    matches!(error, StoreError::Away { .. } | StoreError::Unknown { .. })
}

/// Forgets a sandbox that is gone once the catalogue is back. What this server does not come to, the next one does: it finds no machine. Only one
/// whose last pause was in doubt, too, would be paused there.
pub(crate) fn forget_later(shared: &Arc<Shared>, record: &SandboxRecord) {
    let (id, guard) = (record.id.clone(), record.guard());
    let shared = Arc::clone(shared);
    shared.clone().tasks.spawn(async move {
        loop {
            tokio::select! {
                () = shared.stopping.cancelled() => return,
                () = tokio::time::sleep(RETRY) => {}
            }
            match shared.store.remove_sandbox(id.clone(), guard).await {
                Err(error) if passes(&error) => {}
                Ok(()) => return shared.collect(),
                Err(error) => {
                    tracing::error!(sandbox = %id, error = chain(&error), "cannot forget a sandbox");
                    return;
                }
            }
        }
    });
}
