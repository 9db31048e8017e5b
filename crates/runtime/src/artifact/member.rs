//! Members of artifacts on disk: a file, or, where an engine keeps layers so, a directory whose files are one member together.

use std::{
    io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use fs_err as fs;
use fs_err::os::unix::fs::OpenOptionsExt;

/// What lies in a directory cannot be opened without passing it.
const DIRECTORY: u32 = 0o700;

/// A member with more entries is none of ours.
const MAX_ENTRIES: usize = 1 << 20;

/// One entry of a member.
struct Entry {
    path: PathBuf,
    metadata: std::fs::Metadata,
}

/// The member itself and all that is in it, by name. No link is followed.
fn entries(path: &Path) -> io::Result<Vec<Entry>> {
    let mut found = Vec::new();
    let mut left = vec![path.to_owned()];
    while let Some(path) = left.pop() {
        let metadata = fs::symlink_metadata(&path)?;
        if metadata.is_dir() {
            for entry in fs::read_dir(&path)? {
                left.push(entry?.path());
            }
        }
        found.push(Entry { path, metadata });
        if found.len() + left.len() > MAX_ENTRIES {
            return Err(io::Error::other("it has too many files"));
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// The files of a member, by name.
fn files(path: &Path) -> io::Result<Vec<Entry>> {
    let mut found = entries(path)?;
    found.retain(|entry| !entry.metadata.is_dir());
    Ok(found)
}

/// What it takes on the disk, in blocks of 512 bytes.
pub(super) fn blocks(path: &Path) -> io::Result<u64> {
    Ok(entries(path)?.iter().map(|entry| entry.metadata.blocks()).sum())
}

/// Refuses a directory where a file is due, or the other way round.
pub(super) fn demand(path: &Path, directory: bool) -> io::Result<()> {
    let is_directory = fs::symlink_metadata(path)?.is_dir();
    if is_directory == directory { Ok(()) } else { Err(io::Error::other("it is not of the form that such a member has")) }
}

/// A file without a second name becomes the server's own, and nobody's to write. So does each file of a directory.
pub(super) fn freeze(path: &Path, mode: u32) -> io::Result<()> {
    for Entry { path, metadata } in entries(path)? {
        let is_dir = metadata.is_dir();
        freeze_one(&path, is_dir, if is_dir { DIRECTORY } else { mode })?;
    }
    Ok(())
}

fn freeze_one(path: &Path, is_dir: bool, mode: u32) -> io::Result<()> {
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let file = fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    let is_ours = if is_dir { metadata.is_dir() } else { metadata.is_file() && metadata.nlink() == 1 };
    if !is_ours {
        return Err(io::Error::other("it is not a plain file of one name"));
    }
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::fchown(file.file(), Some(0), Some(0))?;
    }
    file.set_permissions(std::fs::Permissions::from_mode(mode))
}

/// Makes it durable, without its own name.
pub(super) fn sync(path: &Path) -> io::Result<()> {
    for entry in entries(path)? {
        fs::File::open(&entry.path)?.sync_all()?;
    }
    Ok(())
}

/// Takes it away.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() { firkin_files::remove_tree(path) } else { fs::remove_file(path) }
}

/// Digests what it holds, and counts it. Of a directory that is the name, the length and the content of each file.
pub(super) fn digest(path: &Path) -> io::Result<blake3::Hasher> {
    let mut hasher = blake3::Hasher::new();
    if !fs::metadata(path)?.is_dir() {
        hasher.update_reader(fs::File::open(path)?)?;
        return Ok(hasher);
    }
    for file in files(path)? {
        let name = file.path.strip_prefix(path).map_err(io::Error::other)?.as_os_str().as_encoded_bytes();
        for word in [name.len() as u64, file.metadata.len()] {
            hasher.update(&word.to_le_bytes());
        }
        hasher.update(name).update_reader(fs::File::open(&file.path)?)?;
    }
    Ok(hasher)
}

/// Which it is, as long as nobody writes to it: device and number of the file, bytes, and the times of the latest change in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
    pub(super) bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Identity {
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        let mut whole = Self::of_file(&metadata);
        if metadata.is_dir() {
            whole.bytes = 0;
            for entry in entries(path)? {
                let one = Self::of_file(&entry.metadata);
                whole.bytes += if entry.metadata.is_dir() { 0 } else { one.bytes };
                (whole.modified, whole.changed) = (whole.modified.max(one.modified), whole.changed.max(one.changed));
            }
        }
        Ok(whole)
    }

    fn of_file(metadata: &std::fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_one_member() {
        let dir = tempfile::tempdir().unwrap();
        let layer = dir.path().join("layer");
        fs::create_dir_all(layer.join("deep/er")).unwrap();
        fs::write(layer.join("deep/er/one"), "1").unwrap();
        fs::write(layer.join("two"), "22").unwrap();
        let (before, whole) = (digest(&layer).unwrap().finalize(), Identity::of(&layer).unwrap());
        assert_eq!(whole.bytes, 3);
        assert!(blocks(&layer).unwrap() >= 16);

        fs::write(layer.join("deep/er/one"), "2").unwrap();
        assert_ne!(digest(&layer).unwrap().finalize(), before);
        // A kernel that counts in ticks may have given both writes one time.
        let written = fs::OpenOptions::new().write(true).open(layer.join("deep/er/one")).unwrap();
        written.file().set_modified(std::time::SystemTime::now() + std::time::Duration::from_secs(1)).unwrap();
        assert_ne!(Identity::of(&layer).unwrap(), whole, "one of its files was written");
        fs::write(layer.join("deep/er/one"), "1").unwrap();
        assert_eq!(digest(&layer).unwrap().finalize(), before);
        fs::rename(layer.join("two"), layer.join("three")).unwrap();
        assert_ne!(digest(&layer).unwrap().finalize(), before, "names count");

        sync(&layer).unwrap();
        freeze(&layer, 0o400).unwrap();
        assert_eq!(fs::metadata(layer.join("deep/er/one")).unwrap().permissions().mode() & 0o777, 0o400);
        assert_eq!(fs::metadata(layer.join("deep")).unwrap().permissions().mode() & 0o777, DIRECTORY);
        remove(&layer).unwrap();
        assert!(!layer.exists());
    }

    #[test]
    fn a_link_in_a_directory_makes_it_no_member() {
        let dir = tempfile::tempdir().unwrap();
        let layer = dir.path().join("layer");
        fs::create_dir(&layer).unwrap();
        fs::write(dir.path().join("secret"), "of the host").unwrap();
        std::os::unix::fs::symlink(dir.path().join("secret"), layer.join("link")).unwrap();
        freeze(&layer, 0o400).unwrap_err();
        fs::remove_file(layer.join("link")).unwrap();
        fs::hard_link(dir.path().join("secret"), layer.join("second")).unwrap();
        freeze(&layer, 0o400).unwrap_err();
        assert_ne!(fs::metadata(dir.path().join("secret")).unwrap().permissions().mode() & 0o777, 0o400);
    }
}
