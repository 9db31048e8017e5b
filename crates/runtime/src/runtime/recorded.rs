//! Where it is recorded what there is, and whether that answers.

use serde::Serialize;

use crate::{
    runtime::Runtime,
    store::{StoreError, catalog::Catalog},
};

/// The catalogue of a runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CatalogView {
    /// What kind of database it is in.
    pub kind: &'static str,
    /// Where, without a password; absent where it is in the state directory.
    pub address: Option<String>,
    /// Why it does not answer; absent if it does.
    pub away: Option<String>,
}

impl Runtime {
    /// Asks the catalogue for an answer.
    pub async fn catalog(&self) -> CatalogView {
        let shared = self.shared();
        let away = shared.store.greet().await.err();
        CatalogView {
            kind: shared.store.kind(),
            address: shared.config.catalog.as_deref().map(Catalog::address),
            away: away.map(|error: StoreError| firkin_causes::chain(&error)),
        }
    }
}
