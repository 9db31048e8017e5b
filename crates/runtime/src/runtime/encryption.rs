//! What of a state directory is encrypted, and its key.

use std::path::{Path, PathBuf};

use firkin_engine::DiskFormat;

use super::Runtime;
use crate::{
    artifact::{ArtifactStore, EncryptionConfig, EncryptionStatus, RotateError, Rotation},
    ground::blocking::blocking,
    store::state_dir::{OpenError, whole_state_dir},
};

impl Runtime {
    /// What is encrypted. Looks at the state directory.
    pub async fn encryption(&self) -> std::io::Result<EncryptionStatus> {
        let artifacts = self.shared().artifacts.clone();
        blocking(move || artifacts.encryption()).await
    }

    /// Has another key of the installation seal, and wraps all data keys under it.
    pub async fn rotate_key(&self) -> Result<Rotation, RotateError> {
        let artifacts = self.shared().artifacts.clone();
        // Apart from whoever asked: what is begun is brought to its end.
        blocking(move || artifacts.rotate_key()).await
    }
}

/// Why the key of a state directory that no server uses was not rotated.
#[derive(Debug, thiserror::Error)]
pub enum RotateStoppedError {
    /// The state directory cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The key was not rotated.
    #[error(transparent)]
    Rotate(#[from] RotateError),
}

/// Rotates the key of a state directory that no server uses, whose layers are of the form `disks`.
pub async fn rotate_key(
    state_dir: &Path,
    disks: &'static dyn DiskFormat,
    key_file: Option<PathBuf>,
) -> Result<Rotation, RotateStoppedError> {
    let directory = |source| OpenError::Directory { path: state_dir.to_owned(), source };
    // Nothing is made where nothing is.
    fs_err::metadata(state_dir.join("artifacts")).map_err(directory)?;
    let _lock = whole_state_dir(state_dir)?;
    let root = state_dir.to_owned();
    let rotate = move || {
        let config = EncryptionConfig { seal: false, key_file };
        let artifacts = ArtifactStore::open_encrypted(&root, disks, &config);
        let artifacts = artifacts.map_err(|source| OpenError::Encryption(source.into()))?;
        Ok(artifacts.rotate_key()?)
    };
    blocking(rotate).await
}
