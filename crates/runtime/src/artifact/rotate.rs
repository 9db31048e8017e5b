//! Rotation: every data key is wrapped under another key of the installation, and nothing that is sealed is touched.
//!
//! ```text
//!   both keys are in the file ──► each data key is wrapped anew, by a rename ──► none needs the former key ──► it is destroyed
//! ```
//!
//! Whoever is interrupted leaves both keys, and a state directory in which each data key is under one of them; the next server that
//! opens it goes on from there. What comes into being meanwhile is wrapped under the new key.

use std::{io, path::PathBuf};

use firkin_causes::chain;
use serde::Serialize;

use super::{ArtifactStore, EncryptionError, UnsealError, vault::wrapped_under};

/// How often what is wrapped is looked through: artifacts come and go meanwhile, under the new key.
const ROUNDS: usize = 100;

/// What a rotation did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rotation {
    /// The name of the key that seals from now on.
    pub key: String,
    /// The name of the one that did.
    pub former: String,
    /// Where they are kept.
    pub key_file: PathBuf,
    /// Data keys that were wrapped anew.
    pub rewrapped: u64,
    /// What no key that is known opens. It stays as it was.
    pub unreadable: Vec<String>,
}

/// What is encrypted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EncryptionStatus {
    /// Whether what sandboxes leave on the disk is encrypted from now on.
    pub enabled: bool,
    /// Where the key is, if there is one.
    pub key_file: Option<PathBuf>,
    /// The key's name, a digest of it.
    pub key: Option<String>,
    /// Artifacts and layers that are encrypted.
    pub sealed: u64,
}

/// Why a key was not rotated. Everything that could be opened before still can.
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    /// There is none.
    #[error("there is no key to rotate: nothing is encrypted here, and `--encrypt-at-rest` is off")]
    NoKey,
    /// The key file cannot be used.
    #[error("cannot rotate the key")]
    Keys(#[from] EncryptionError),
    /// Wrapped keys cannot be listed or read.
    #[error("cannot read the wrapped keys")]
    Read(#[from] io::Error),
    /// A data key cannot be read or written now. The former key is kept.
    #[error("cannot wrap a data key anew; both keys are kept, rotate again to go on")]
    Rewrap(#[source] UnsealError),
    /// Too much came and went meanwhile.
    #[error("the key was renewed, and data keys still need the former one, which is kept; rotate again to go on")]
    Unfinished,
}

impl ArtifactStore {
    /// What is encrypted.
    pub(crate) fn encryption(&self) -> io::Result<EncryptionStatus> {
        let (key, key_file) = self.vault.current().map(|(key, path)| (key.to_string(), path)).unzip();
        // Where there never was a key nothing is sealed.
        let sealed = if key.is_some() { self.wrapped_keys()?.len() as u64 } else { 0 };
        Ok(EncryptionStatus { enabled: self.vault.seals(), key_file, key, sealed })
    }

    /// Has another key seal from now on, and wraps every data key under it. Blocks.
    pub fn rotate_key(&self) -> Result<Rotation, RotateError> {
        let _one = self.rotating.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (key, former) = self.vault.renew()?.ok_or(RotateError::NoKey)?;
        let key_file = self.vault.current().map(|(_, path)| path).unwrap_or_default();
        let (rewrapped, unreadable) = self.rewrap_all()?;
        Ok(Rotation { key: key.to_string(), former: former.to_string(), key_file, rewrapped, unreadable })
    }

    /// Goes on with a rotation that was interrupted, or that the operator began by a new key in his file.
    pub(crate) fn finish_rotation(&self) -> Result<(), RotateError> {
        if self.vault.has_former() {
            let (rewrapped, unreadable) = self.rewrap_all()?;
            tracing::info!(rewrapped, unreadable = unreadable.len(), "finished a rotation of the encryption key");
        }
        Ok(())
    }

    /// Wraps under the key that seals what is under another, until nothing is, and destroys the others then.
    fn rewrap_all(&self) -> Result<(u64, Vec<String>), RotateError> {
        let mut rewrapped = 0;
        for _ in 0..ROUNDS {
            let mut unreadable = Vec::new();
            for (owner, path) in self.wrapped_keys()? {
                match self.vault.rewrap(&owner, &path) {
                    Ok(changed) => rewrapped += u64::from(changed),
                    // It was published, or removed, since it was listed.
                    Err(_) if !path.exists() => {}
                    // No key that is known opens it, now or later.
                    Err(error) if error.is_for_ever() => {
                        tracing::warn!(error = chain(&error), "cannot wrap a data key anew");
                        unreadable.push(owner);
                    }
                    Err(error) => return Err(RotateError::Rewrap(error)),
                }
            }
            let Some((current, _)) = self.vault.current() else { return Ok((rewrapped, unreadable)) };
            // What cannot be read now may need the former key as well.
            let needs_former = |(owner, path): &(String, PathBuf)| {
                !unreadable.contains(owner)
                    && wrapped_under(path).map_or_else(|error| error.kind() != io::ErrorKind::NotFound, |key| key != current)
            };
            // Whoever wrapped a key under the former one was waited for when the new one came.
            if !self.wrapped_keys()?.iter().any(needs_former) {
                self.vault.forget_former()?;
                return Ok((rewrapped, unreadable));
            }
        }
        Err(RotateError::Unfinished)
    }
}
