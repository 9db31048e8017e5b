//! Files that can be read only with a key, and the keys.
//!
//! ```text
//!   key of the installation ──wraps──► data key of one artifact or layer ──seals──► its files
//!   (a file of the operator's)         (beside what it seals, 32 bytes)             (gigabytes, written once)
//! ```
//!
//! So a new key of the installation costs a few bytes for each artifact, and what loses its data key cannot be read by anybody,
//! whatever is left of its blocks. This crate knows keys and streams of bytes; which files are sealed, and where wrapped keys lie,
//! is for who uses it to know.
//!
//! Everything is AES-256-GCM: one primitive, which processors have instructions for.

pub mod key;
pub mod keyring;
pub mod stream;

pub use key::{DataKey, InstallationKey, KeyId, UnwrapError, WrappedKey};
pub use keyring::{KeyFileError, Keyring};
pub use stream::{OpenError, open, seal};
