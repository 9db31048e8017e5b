//! The keys of a state directory: which of its files are sealed from now on, and what opens those that are.
//!
//! ```text
//!   <key file>                 keys of the installation
//!   artifacts/<id>/key         data key of one artifact's members, wrapped: artifact:<id>
//!   layers/<id>.key            data key of one layer, wrapped:               layer:<id>
//! ```
//!
//! A data key has a file of its own, because it is what changes of an artifact that never changes: a rotation wraps it anew. Who seals
//! holds the keyring from when a key is wrapped until it is on the disk, so whoever has renewed the keyring finds all that was wrapped
//! before. Wrapped keys are removed and wrapped anew under one lock, so none comes back.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use firkin_seal::{DataKey, KeyFileError, KeyId, Keyring, OpenError, UnwrapError, WrappedKey, keyring};
use fs_err as fs;
use serde::{Deserialize, Serialize};

use super::publish::sync_dir;

/// The key file that a server makes for itself, in its state directory.
const KEY_FILE: &str = "encryption.key";

/// Version of a wrapped key's file.
const FORMAT: u32 = 1;

/// How the name of a wrapped key ends that is to take another's place.
pub(super) const NEXT: &str = "new";

/// A wrapped key's file has 250 bytes.
const MAX_RECORD_BYTES: u64 = 4096;

/// What of a state directory is sealed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EncryptionConfig {
    /// Whether what sandboxes leave on the disk is sealed from now on. What is sealed already opens in any case.
    pub seal: bool,
    /// The operator's key file. Absent: one of the server's own, in the state directory.
    pub key_file: Option<PathBuf>,
}

/// Why a state directory cannot be used as it is to be encrypted.
#[derive(Debug, thiserror::Error)]
pub enum EncryptionError {
    /// Its key file cannot be used.
    #[error(transparent)]
    KeyFile(#[from] KeyFileError),
    /// The operator's key file is not there.
    #[error("there is no key file `{}`; `openssl rand -hex 32` makes a key", path.display())]
    NoKeyFile {
        /// Which one.
        path: PathBuf,
    },
    /// Something is sealed, and the key file is gone. A new one would open nothing.
    #[error("key file `{}` is gone, and sandboxes are sealed under a key that was in it; put it back", path.display())]
    Lost {
        /// Which one.
        path: PathBuf,
    },
    /// Directories are not sealed.
    #[error("this engine keeps disks as directories, which cannot be encrypted")]
    Directories,
    /// A file cannot be used.
    #[error("cannot use `{}`", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Why something that is sealed could not be opened. It stays as it is.
#[derive(Debug, thiserror::Error)]
pub enum UnsealError {
    /// No key of this installation is known.
    #[error(
        "`{owner}` is sealed, and this server has no key; start it with the key file that it was sealed with (`--encryption-key-file`)"
    )]
    NoKeys {
        /// What is sealed.
        owner: String,
    },
    /// Its wrapped key cannot be read.
    #[error("`{owner}` is sealed, and its wrapped key cannot be read from `{}`", path.display())]
    Key {
        /// What is sealed.
        owner: String,
        /// The key's file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The keys that are known do not open it.
    #[error(
        "`{owner}` is sealed, and the keys of this server do not open it; start it with the key file that it was sealed with (`--encryption-key-file`)"
    )]
    Unwrap {
        /// What is sealed.
        owner: String,
        /// Why.
        #[source]
        source: UnwrapError,
    },
    /// It is not what was sealed, or could not be written where it is needed.
    #[error("cannot open `{}`, which is sealed", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: OpenError,
    },
    /// It was sealed, and a plain file is in its place.
    #[error("`{}` is not sealed, and was", path.display())]
    Plain {
        /// The file.
        path: PathBuf,
    },
    /// A file that it is opened into cannot be made.
    #[error("cannot use `{}`", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl UnsealError {
    /// Whether this is so whenever it is tried again with the same keys.
    pub(super) fn is_for_ever(&self) -> bool {
        match self {
            Self::Unwrap { .. } => true,
            Self::Key { source, .. } => matches!(source.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof),
            Self::NoKeys { .. } | Self::Open { .. } | Self::Plain { .. } | Self::File { .. } => false,
        }
    }
}

/// What is on the disk of a wrapped key.
#[derive(Serialize, Deserialize)]
struct Record {
    format: u32,
    #[serde(flatten)]
    key: WrappedKey,
}

/// The keys of one state directory. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Vault {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    seals: bool,
    /// The operator's file is the operator's to write.
    given: bool,
    ring: RwLock<Option<Keyring>>,
    /// Held while a wrapped key changes or goes.
    files: Mutex<()>,
}

impl Vault {
    /// One that seals nothing and opens nothing.
    pub(super) fn shut() -> Self {
        Self { shared: Arc::default() }
    }

    /// The keys that are meant by `config`, made now if none are needed yet. `in_use`: something is sealed already.
    pub(super) fn open(state_dir: &Path, config: &EncryptionConfig, in_use: bool) -> Result<Self, EncryptionError> {
        let path = config.key_file.clone().unwrap_or_else(|| state_dir.join(KEY_FILE));
        let ring = match (Keyring::read(&path)?, &config.key_file) {
            (Some(ring), _) => Some(ring),
            (None, Some(_)) => return Err(EncryptionError::NoKeyFile { path }),
            (None, None) if !config.seal => None,
            (None, None) if in_use => return Err(EncryptionError::Lost { path }),
            (None, None) => Some(Keyring::create(&path)?),
        };
        if let Some(ring) = ring.as_ref().filter(|_| config.seal) {
            tracing::info!(key = %ring.current().id(), file = %ring.path().display(), "what sandboxes leave is encrypted");
        }
        let given = config.key_file.is_some();
        Ok(Self { shared: Arc::new(Shared { seals: config.seal, given, ring: RwLock::new(ring), files: Mutex::default() }) })
    }

    /// Whether what sandboxes leave on the disk is sealed.
    pub(super) fn seals(&self) -> bool {
        self.shared.seals
    }

    /// The key that seals, and where it is kept.
    pub(super) fn current(&self) -> Option<(KeyId, PathBuf)> {
        self.ring().as_ref().map(|ring| (ring.current().id(), ring.path().to_owned()))
    }

    fn ring(&self) -> RwLockReadGuard<'_, Option<Keyring>> {
        // It is exchanged whole.
        self.shared.ring.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring_to_change(&self) -> RwLockWriteGuard<'_, Option<Keyring>> {
        self.shared.ring.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Held while files of wrapped keys change their names.
    pub(super) fn hold(&self) -> MutexGuard<'_, ()> {
        self.shared.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new data key of `owner`, wrapped into the file `path`. Durable but for that file's name.
    pub(super) fn new_key(&self, owner: &str, path: &Path) -> io::Result<DataKey> {
        let _held = self.hold();
        let ring = self.ring();
        let ring = ring.as_ref().ok_or_else(|| io::Error::other("nothing is sealed without a key"))?;
        let key = DataKey::random();
        write(path, ring.current().wrap(&key, owner))?;
        Ok(key)
    }

    /// The data key of `owner`.
    pub(super) fn key(&self, owner: &str, path: &Path) -> Result<DataKey, UnsealError> {
        let record = read(path).map_err(|source| UnsealError::Key { owner: owner.to_owned(), path: path.to_owned(), source })?;
        let ring = self.ring();
        let ring = ring.as_ref().ok_or_else(|| UnsealError::NoKeys { owner: owner.to_owned() })?;
        unwrap(ring, &record, owner).map_err(|source| UnsealError::Unwrap { owner: owner.to_owned(), source })
    }

    /// Makes what is sealed under this wrapped key unreadable for ever.
    pub(super) fn destroy(&self, path: &Path) -> io::Result<()> {
        let _held = self.hold();
        // A rotation that was interrupted may have left the next one beside it.
        for path in [&path.with_extension(NEXT), path] {
            match fs::File::open(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                file => keyring::overwrite(file?.into_parts().0)?,
            }
            fs::remove_file(path)?;
        }
        Ok(())
    }

    /// From now on another key seals: a new one, or the first in the operator's file by now. Gives it and the one before.
    pub(super) fn renew(&self) -> Result<Option<(KeyId, KeyId)>, EncryptionError> {
        let mut ring = self.ring_to_change();
        let Some(ring) = ring.as_mut() else { return Ok(None) };
        let before = ring.current().id();
        if self.shared.given {
            let path = ring.path().to_owned();
            if !ring.read_again()? {
                return Err(EncryptionError::NoKeyFile { path });
            }
        } else {
            ring.renew()?;
        }
        Ok(Some((ring.current().id(), before)))
    }

    /// Whether keys are known that no longer seal.
    pub(super) fn has_former(&self) -> bool {
        self.ring().as_ref().is_some_and(Keyring::has_former)
    }

    /// Destroys the keys that no longer seal, which nothing needs. The operator's are his to remove.
    pub(super) fn forget_former(&self) -> Result<(), EncryptionError> {
        match self.ring_to_change().as_mut() {
            Some(ring) if !self.shared.given => Ok(ring.forget_former()?),
            Some(_) | None => Ok(()),
        }
    }

    /// Wraps the key of `owner` under the key that seals now. Whether it was under another.
    pub(super) fn rewrap(&self, owner: &str, path: &Path) -> Result<bool, UnsealError> {
        let _held = self.hold();
        let failed = |source| UnsealError::Key { owner: owner.to_owned(), path: path.to_owned(), source };
        let record = read(path).map_err(failed)?;
        let ring = self.ring();
        let ring = ring.as_ref().ok_or_else(|| UnsealError::NoKeys { owner: owner.to_owned() })?;
        if record.key == ring.current().id() {
            return Ok(false);
        }
        let key = unwrap(ring, &record, owner).map_err(|source| UnsealError::Unwrap { owner: owner.to_owned(), source })?;
        let next = path.with_extension(NEXT);
        let replace = || {
            write(&next, ring.current().wrap(&key, owner))?;
            fs::rename(&next, path)?;
            path.parent().map_or(Ok(()), sync_dir)
        };
        replace().map_err(failed)?;
        Ok(true)
    }
}

/// Under which key a data key is wrapped.
pub(super) fn wrapped_under(path: &Path) -> io::Result<KeyId> {
    Ok(read(path)?.key)
}

fn unwrap(ring: &Keyring, record: &WrappedKey, owner: &str) -> Result<DataKey, UnwrapError> {
    let key = ring.find(&record.key).ok_or_else(|| UnwrapError::OtherKey { needs: record.key.clone() })?;
    key.unwrap(record, owner)
}

fn read(path: &Path) -> io::Result<WrappedKey> {
    let bytes = fs::metadata(path)?.len();
    if bytes > MAX_RECORD_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("{bytes} bytes")));
    }
    let record: Record = serde_json::from_slice(&fs::read(path)?)?;
    if record.format != FORMAT {
        return Err(io::Error::other(format!("it has format version {}, this version reads {FORMAT}", record.format)));
    }
    Ok(record.key)
}

fn write(path: &Path, key: WrappedKey) -> io::Result<()> {
    let text = serde_json::to_vec(&Record { format: FORMAT, key })?;
    crate::ground::private::private_file(path, &text)?.sync_all()
}
