//! The runtime's face for API keys: who may use the server. Only digests are kept, and of a key that the operator brings not even that:
//! it is valid for as long as the operator brings it, so that replacing it is revoking it.

use std::{ops::RangeInclusive, sync::PoisonError};

use crate::{runtime::Runtime, store::StoreError};

/// How the operator's key begins, as SDKs expect it.
const PREFIX: &str = "e2b_";
/// How many hexadecimal digits follow: fewer could be guessed, and more are no key.
const DIGITS: RangeInclusive<usize> = 32..=128;

/// Why a key is not accepted.
#[derive(Debug, thiserror::Error)]
#[error(
    "the API key is not `{PREFIX}` and {} to {} lower-case hexadecimal digits",
    DIGITS.start(),
    DIGITS.end()
)]
pub struct InvalidApiKey;

impl Runtime {
    /// Lets whoever has this key use the server until the runtime ends, beside those of earlier keys.
    pub fn accept_api_key(&self, key: &str) -> Result<(), InvalidApiKey> {
        let digits = key.strip_prefix(PREFIX).ok_or(InvalidApiKey)?;
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if !DIGITS.contains(&digits.len()) || !digits.bytes().all(is_digit) {
            return Err(InvalidApiKey);
        }
        let digest = blake3::hash(key.as_bytes());
        self.shared.api_keys.lock().unwrap_or_else(PoisonError::into_inner).push(digest);
        Ok(())
    }

    /// Makes an API key, `e2b_` and 40 hexadecimal digits. Only its digest is kept.
    pub async fn issue_api_key(&self) -> Result<String, StoreError> {
        let key = format!("{PREFIX}{}", crate::ground::random::hex::<20>());
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
