//! Memory-backed room for what a cut writes while its guest stands still.
//!
//! Writing a page into a fresh file on a disk takes several times as long as into one in memory, and the guest waits for it. So
//! a cut writes into a tmpfs, and publication copies that to the disk afterwards, before anything is called durable.
//!
//! The room is bounded, because it is the host's memory: what does not fit is written to the disk at once, which makes the
//! freeze longer and nothing else. A room is a guard: its files and its part of the bound are given back on drop. What a crash
//! left is found by its name, which begins with a digest of the state directory, and removed by the next server.

use std::{
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use fs_err as fs;
use nix::sys::statfs::{TMPFS_MAGIC, statfs};

/// Where Linux has a tmpfs that everybody may use.
pub(super) const SHARED_MEMORY: &str = "/dev/shm";

/// Part of the host's memory that all rooms may take together. They live for as long as a copy to the disk takes.
const MEMORY_PERCENT: u64 = 10;

/// What is kept beside the expected bytes: device state, index, and the pages that are written between the estimate and the
/// freeze.
const SLACK_BYTES: u64 = 16 << 20;

/// Why a cut goes to the disk.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoRoom {
    #[error("`{}` is not in memory", path.display())]
    NotInMemory { path: PathBuf },
    #[error("it may take {asked} bytes, {left} of {limit} are left")]
    Bound { asked: u64, left: u64, limit: u64 },
    #[error("it may take {asked} bytes, `{}` has {free} free", path.display())]
    Full { path: PathBuf, asked: u64, free: u64 },
    #[error("cannot use `{}`", path.display())]
    Directory {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// The memory-backed room of one state directory. Clones share its bound.
#[derive(Debug, Clone)]
pub(super) struct Staging {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// A directory of a tmpfs.
    dir: PathBuf,
    /// Begins the name of each of our rooms.
    prefix: String,
    limit: u64,
    used: Mutex<u64>,
}

impl Shared {
    fn used(&self) -> MutexGuard<'_, u64> {
        // Every critical section is one addition.
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A part of the room, for one cut.
#[derive(Debug)]
pub(super) struct Room {
    path: PathBuf,
    bytes: u64,
    shared: Arc<Shared>,
}

impl Staging {
    /// The room in `dir` for the state directory `state_dir`, after removing what a crash left there.
    pub(super) fn open(dir: &Path, state_dir: &Path) -> io::Result<Self> {
        let memory = nix::sys::sysinfo::sysinfo()?.ram_total();
        Ok(Self::bounded(dir, state_dir, memory / 100 * MEMORY_PERCENT))
    }

    fn bounded(dir: &Path, state_dir: &Path, limit: u64) -> Self {
        let name = fs::canonicalize(state_dir).unwrap_or_else(|_| state_dir.to_owned());
        let digest = blake3::hash(name.as_os_str().as_encoded_bytes()).to_hex();
        let prefix = format!("firkin-{}-", &digest[..16]);
        if let Err(error) = sweep(dir, &prefix) {
            tracing::warn!(%error, "cannot remove what an earlier server left in memory");
        }
        Self { shared: Arc::new(Shared { dir: dir.to_owned(), prefix, limit, used: Mutex::default() }) }
    }

    /// Room for a cut that is expected to write `expected` bytes of memory.
    pub(super) fn room(&self, expected: u64) -> Result<Room, NoRoom> {
        let Shared { dir, prefix, limit, .. } = &*self.shared;
        let failed = |source| NoRoom::Directory { path: dir.clone(), source };
        let found = statfs(dir).map_err(|errno| failed(errno.into()))?;
        if found.filesystem_type() != TMPFS_MAGIC {
            return Err(NoRoom::NotInMemory { path: dir.clone() });
        }
        // A quarter more than now: the guest still runs.
        let asked = expected.saturating_add(expected / 4).saturating_add(SLACK_BYTES);
        let free = found.blocks_available().saturating_mul(u64::try_from(found.block_size()).unwrap_or_default());
        if free < asked {
            return Err(NoRoom::Full { path: dir.clone(), asked, free });
        }
        {
            let mut used = self.shared.used();
            let left = limit.saturating_sub(*used);
            if left < asked {
                return Err(NoRoom::Bound { asked, left, limit: *limit });
            }
            *used += asked;
        }
        let path = dir.join(format!("{prefix}{}", crate::ground::random::alphanumeric(20)));
        let room = Room { path, bytes: asked, shared: Arc::clone(&self.shared) };
        std::fs::DirBuilder::new().mode(0o700).create(&room.path).map_err(failed)?;
        Ok(room)
    }
}

impl Room {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Copies these files to `dir`, on a disk, those that are in the room. Not durable yet.
    pub(super) fn settle(&self, files: &[&str], dir: &Path) -> io::Result<()> {
        for name in files {
            let from = self.path.join(name);
            if from.exists() {
                fs::copy(from, dir.join(name))?;
            }
        }
        Ok(())
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Err(error) = firkin_files::remove_tree(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "cannot remove what a cut wrote into memory");
        }
        *self.shared.used() -= self.bytes;
    }
}

/// Removes directories of ours by their name. Everybody may write here, so a link or another user's directory is left alone.
fn sweep(dir: &Path, prefix: &str) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)) {
            continue;
        }
        let metadata = fs::symlink_metadata(&path)?;
        if metadata.is_dir() && metadata.uid() == nix::unistd::geteuid().as_raw() {
            tracing::info!(path = %path.display(), "removed what a cut that never ended wrote into memory");
            firkin_files::remove_tree(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn memory() -> Option<tempfile::TempDir> {
        let dir = tempfile::tempdir_in(SHARED_MEMORY).ok()?;
        statfs(dir.path()).is_ok_and(|found| found.filesystem_type() == TMPFS_MAGIC).then_some(dir)
    }

    #[test]
    #[expect(clippy::print_stderr, reason = "a skip is printed")]
    fn rooms_share_a_bound_and_leave_nothing() {
        let Some(dir) = memory() else {
            eprintln!("SKIP: this host has no shared memory");
            return;
        };
        let staging = Staging::bounded(dir.path(), Path::new("/x"), 100 * MIB);
        let first = staging.room(32 * MIB).unwrap();
        fs::write(first.path().join("state"), b"s").unwrap();
        let refused = staging.room(32 * MIB).map(|room| room.bytes).unwrap_err();
        assert!(matches!(refused, NoRoom::Bound { left, .. } if left == 44 * MIB), "{refused:?}");
        let disk = tempfile::tempdir().unwrap();
        first.settle(&["state"], disk.path()).unwrap();
        assert_eq!(fs::read(disk.path().join("state")).unwrap(), b"s");
        drop(first);
        drop(staging.room(64 * MIB).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    #[expect(clippy::print_stderr, reason = "a skip is printed")]
    fn what_a_crash_left_is_removed_and_nothing_else() {
        let Some(dir) = memory() else {
            eprintln!("SKIP: this host has no shared memory");
            return;
        };
        let staging = Staging::bounded(dir.path(), Path::new("/x"), 100 * MIB);
        std::mem::forget(staging.room(0).unwrap());
        let other = Staging::bounded(dir.path(), Path::new("/y"), 100 * MIB);
        let theirs = other.room(0).unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join(format!("{}link", staging.shared.prefix))).unwrap();
        Staging::bounded(dir.path(), Path::new("/x"), 100 * MIB);
        assert!(theirs.path().exists(), "another server's room");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "that room and the link");
    }

    #[test]
    fn a_directory_on_a_disk_is_no_room() {
        let Ok(dir) = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")) else { return };
        let refused = Staging::bounded(dir.path(), Path::new("/x"), 100 * MIB).room(0).map(|room| room.bytes);
        assert!(matches!(refused, Err(NoRoom::NotInMemory { .. })), "{refused:?}");
    }
}
