//! Proofs of integrity: what a file was found to contain, remembered for as long as it is the same file.
//!
//! A proof needs every byte read, so it is made once and remembered under the identity of the file: device, inode, size,
//! modification and change time. Members are read-only files of root; whatever rewrites one changes that identity.

use std::{
    collections::HashMap,
    io,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use fs_err as fs;

use super::manifest::MemberIntegrity;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct FileIdentity {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileIdentity {
    fn of(metadata: &std::fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// What has been proven. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Proofs {
    proven: Arc<Mutex<HashMap<FileIdentity, String>>>,
}

impl Proofs {
    fn proven(&self) -> MutexGuard<'_, HashMap<FileIdentity, String>> {
        // Every critical section is one call on the map.
        self.proven.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Size and digest of a file, from memory when it has been read before; and whether it was read now.
    pub(super) fn digest(&self, path: &Path) -> io::Result<(MemberIntegrity, bool)> {
        let before = FileIdentity::of(&fs::metadata(path)?);
        if let Some(known) = self.proven().get(&before) {
            return Ok((MemberIntegrity { bytes: before.bytes, blake3: known.clone() }, false));
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(fs::File::open(path)?)?;
        let blake3 = hasher.finalize().to_hex().to_string();
        if FileIdentity::of(&fs::metadata(path)?) != before {
            return Err(io::Error::other("the file changed while it was read"));
        }
        self.proven().insert(before, blake3.clone());
        Ok((MemberIntegrity { bytes: before.bytes, blake3 }, true))
    }

    /// Has the file read again the next time.
    pub(super) fn forget(&self, path: &Path) {
        if let Ok(metadata) = fs::metadata(path) {
            self.proven().remove(&FileIdentity::of(&metadata));
        }
    }
}
