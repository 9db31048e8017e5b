//! The keys of an installation, in a file: the first seals, and all of them open.
//!
//! One key is the usual state. A second one is there while data keys go from one to the other, so that whoever is interrupted then
//! finds both. The file is text, one key a line, hexadecimal (`openssl rand -hex 32`), so that an operator can make one, and put a new
//! key above an old one.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
};

use fs_err::{self as fs, os::unix::fs::OpenOptionsExt};
use rustix::fs::{Mode, fchmod};
use zeroize::Zeroizing;

use crate::key::{InstallationKey, KEY_BYTES, KeyId};

/// Keys of one file: one, two in a rotation, one more for each that was interrupted.
const MAX_KEYS: usize = 16;

/// Longest file that is read: all keys, and as much for comments.
const MAX_FILE_BYTES: u64 = (MAX_KEYS * (KEY_BYTES * 2 + 1) * 2) as u64;

/// Only its owner reads a key.
const OWNER: u32 = 0o400;

/// Bits of those who are neither owner nor group.
const ANYBODY: u32 = 0o007;

/// Why the keys of an installation cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The file could not be read, or written.
    #[error("cannot use key file `{}`", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is not a list of keys.
    #[error("key file `{}` does not hold one key a line, each of 64 hexadecimal digits; `openssl rand -hex 32` makes one", path.display())]
    Malformed {
        /// Which one.
        path: PathBuf,
    },
    /// Everybody may read it.
    #[error("key file `{}` may be used by everybody (mode {mode:o}); `chmod 400` makes it its owner's", path.display())]
    Open {
        /// Which one.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
}

/// Keys of an installation. Never empty.
#[derive(Debug)]
pub struct Keyring {
    path: PathBuf,
    keys: Vec<InstallationKey>,
}

impl Keyring {
    /// Those in this file. None: there is no file.
    pub fn read(path: &Path) -> Result<Option<Self>, KeyFileError> {
        let failed = |source| KeyFileError::File { path: path.to_owned(), source };
        let file = match fs::File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(failed)?,
        };
        let metadata = file.metadata().map_err(failed)?;
        if metadata.mode() & ANYBODY != 0 {
            return Err(KeyFileError::Open { path: path.to_owned(), mode: metadata.mode() & 0o777 });
        }
        let malformed = || KeyFileError::Malformed { path: path.to_owned() };
        if metadata.len() > MAX_FILE_BYTES {
            return Err(malformed());
        }
        // As large as it may become: a buffer that grows leaves copies behind.
        let mut text = Zeroizing::new(Vec::with_capacity(usize::try_from(MAX_FILE_BYTES).expect("a few thousand bytes")));
        file.take(MAX_FILE_BYTES).read_to_end(&mut text).map_err(failed)?;
        let text = std::str::from_utf8(&text).map_err(|_| malformed())?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let keys: Option<Vec<_>> = lines.map(InstallationKey::of_text).collect();
        let keys = keys.filter(|keys| (1..=MAX_KEYS).contains(&keys.len())).ok_or_else(malformed)?;
        Ok(Some(Self { path: path.to_owned(), keys }))
    }

    /// Takes the keys that are in the file by now; those that were known before and are not in it still open. Whether there is a file.
    pub fn read_again(&mut self) -> Result<bool, KeyFileError> {
        let Some(mut now) = Self::read(&self.path)? else { return Ok(false) };
        for key in std::mem::take(&mut self.keys) {
            if now.find(&key.id()).is_none() {
                now.keys.push(key);
            }
        }
        *self = now;
        Ok(true)
    }

    /// A new key, in a new file that only its owner may read. Durable when this returns.
    pub fn create(path: &Path) -> Result<Self, KeyFileError> {
        let ring = Self { path: path.to_owned(), keys: vec![InstallationKey::random()] };
        ring.write(&ring.keys)?;
        Ok(ring)
    }

    /// Where they are kept.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The key that seals.
    pub fn current(&self) -> &InstallationKey {
        &self.keys[0]
    }

    /// The key of this name.
    pub fn find(&self, id: &KeyId) -> Option<&InstallationKey> {
        self.keys.iter().find(|key| key.id() == *id)
    }

    /// Whether it has keys that only open.
    pub fn has_former(&self) -> bool {
        self.keys.len() > 1
    }

    /// From now on a new key seals, and those before still open. Durable when this returns.
    pub fn renew(&mut self) -> Result<(), KeyFileError> {
        let mut keys = vec![InstallationKey::random()];
        keys.extend(self.keys.iter().take(MAX_KEYS - 1).cloned());
        self.write(&keys)?;
        self.keys = keys;
        Ok(())
    }

    /// Destroys every key but the one that seals. Durable when this returns.
    pub fn forget_former(&mut self) -> Result<(), KeyFileError> {
        let failed = |source| KeyFileError::File { path: self.path.clone(), source };
        let before = fs::OpenOptions::new().read(true).open(&self.path).map_err(failed)?.into_parts().0;
        self.write(&self.keys[..1])?;
        // What is left of the file before, which has no name any more, is overwritten where it was.
        overwrite(before).map_err(failed)?;
        self.keys.truncate(1);
        Ok(())
    }

    /// Writes the file anew, whole or not at all.
    fn write(&self, keys: &[InstallationKey]) -> Result<(), KeyFileError> {
        let failed = |source| KeyFileError::File { path: self.path.clone(), source };
        let mut text = Zeroizing::new(String::with_capacity(keys.len() * (KEY_BYTES * 2 + 1)));
        for key in keys {
            text.push_str(&key.to_text());
            text.push('\n');
        }
        let write = || -> io::Result<()> {
            let temporary = self.path.with_extension("new");
            if let Err(error) = fs::remove_file(&temporary)
                && error.kind() != io::ErrorKind::NotFound
            {
                return Err(error);
            }
            let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(OWNER).open(&temporary)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&temporary, &self.path)?;
            match self.path.parent() {
                Some(dir) => fs::File::open(dir)?.sync_all(),
                None => Ok(()),
            }
        };
        write().map_err(failed)
    }
}

/// Overwrites a small file of ours in place, as far as the file system does that at all.
pub fn overwrite(file: File) -> io::Result<()> {
    let bytes = file.metadata()?.len();
    fchmod(&file, Mode::RUSR | Mode::WUSR)?;
    // By its descriptor: it may have no name.
    let writable = fs::OpenOptions::new().write(true).open(itself(&file))?;
    writable.file().write_all_at(&vec![0; usize::try_from(bytes.min(MAX_FILE_BYTES)).unwrap_or_default()], 0)?;
    writable.sync_all()
}

fn itself(file: &File) -> PathBuf {
    use std::os::fd::AsRawFd;
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn keys_are_renewed_and_found_again_until_they_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("encryption.key");
        assert!(Keyring::read(&path).unwrap().is_none());
        let mut ring = Keyring::create(&path).unwrap();
        let first = ring.current().id();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, OWNER);
        ring.renew().unwrap();
        // As after a crash.
        let mut ring = Keyring::read(&path).unwrap().unwrap();
        assert!(ring.has_former() && ring.find(&first).is_some() && ring.current().id() != first);
        let second = ring.current().id();
        ring.forget_former().unwrap();
        let ring = Keyring::read(&path).unwrap().unwrap();
        assert_eq!((ring.current().id(), ring.has_former(), ring.find(&first).is_none()), (second, false, true));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_no_key_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let put = |text: &str, mode| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            Keyring::read(&path)
        };
        let key = "0f".repeat(32);
        assert!(put(&format!("# made by hand\n{key}\n\n"), 0o600).unwrap().is_some());
        assert!(matches!(put(&key, 0o604), Err(KeyFileError::Open { mode: 0o604, .. })));
        let long = format!("{key}\n").repeat(MAX_KEYS + 1);
        for text in ["", "\n", &key[1..], &format!("{key}0"), &format!("{key} {key}"), &"g".repeat(64), "\u{e4}", &long] {
            let refused = put(text, 0o600);
            assert!(matches!(refused, Err(KeyFileError::Malformed { .. })), "{text:?}");
            let shown = format!("{:?}", refused.unwrap_err());
            assert!(!shown.contains(&key), "no key is told");
        }
    }
}
