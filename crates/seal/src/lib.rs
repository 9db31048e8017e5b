//! Files that can be read only with a key, and the keys.
//!
//! Everything is AES-256-GCM: one primitive, which processors have instructions for.

pub mod key;
pub mod stream;

pub use key::{DataKey, InstallationKey, KeyId, UnwrapError, WrappedKey};
pub use stream::{OpenError, open, seal};
