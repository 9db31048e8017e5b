//! The runtime's face for API keys: who may use the server. Only digests are kept.

use std::sync::PoisonError;

use crate::{runtime::Runtime, store::StoreError};

impl Runtime {
    /// Makes an API key, `e2b_` and 40 hexadecimal digits. Only its digest is kept.
    pub async fn issue_api_key(&self) -> Result<String, StoreError> {
        let key = format!("e2b_{}", crate::ground::random::hex::<20>());
        let digest = blake3::hash(key.as_bytes());
        self.shared.store.put_api_key(*digest.as_bytes()).await?;
        self.shared.api_keys.lock().unwrap_or_else(PoisonError::into_inner).push(digest);
        Ok(key)
    }

    /// Whether this API key may use the server. Compares digests, in constant time.
    pub fn authenticate(&self, key: &str) -> bool {
        let digest = blake3::hash(key.as_bytes());
        // No early exit: how long this takes does not tell which key is near.
        self.shared
            .api_keys
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .fold(false, |found, known| found | (*known == digest))
    }
}
