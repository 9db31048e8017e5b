//! What is owed to a store off the host.

use super::Runtime;
use crate::telemetry::copies::CopiesState;

impl Runtime {
    /// What is owed to the store that copies go to; nothing where there is none. For the host itself.
    pub fn copies(&self) -> Option<CopiesState> {
        self.shared.copying.as_ref().map(|copying| copying.state().borrow().clone())
    }

    /// Waits until all that is durable now has been copied, however long the store is away. At once where nothing is copied.
    pub async fn copied(&self) {
        if let Some(copying) = &self.shared.copying {
            tokio::select! {
                () = copying.settle() => {}
                () = self.shared.stopping.cancelled() => {}
            }
        }
    }
}
