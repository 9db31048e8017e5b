//! Which entry a number means, and how it is opened.
//!
//! The table of places is a memory and no truth: what is opened by it is compared with the number, and what is not there is looked for
//! in the whole directory. So it may be empty after a restart, be wrong after a rename that came another way, and forget.

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Statx, StatxFlags, openat2, statx},
    io::Errno,
};

use crate::{opened::OpenFiles, room::Room};

/// The directory itself, by protocol.
pub(crate) const ROOT: u64 = 1;

/// Entries whose places are remembered: some hundred MiB. With more, all are forgotten, and what is asked for is found again.
const MAX_PLACES: usize = 1 << 20;

/// The longest path below the directory, which the kernel takes at once. What would lie deeper is not made.
pub(crate) const MAX_PATH_BYTES: usize = 4095;

/// What is asked of the host's file system about an entry.
const WANTED: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME);

/// A directory that guests share. All that share one have the same, or what they count and remember is not one.
#[derive(Debug)]
pub struct Share {
    pub(crate) root: OwnedFd,
    places: Mutex<HashMap<u64, Place>>,
    /// Held by who looks through the whole directory.
    finding: Mutex<()>,
    pub(crate) opened: OpenFiles,
    pub(crate) room: Arc<dyn Room>,
}

#[derive(Debug, Clone)]
struct Place {
    parent: u64,
    name: OsString,
}

/// An entry that is open, and what it is.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) fd: OwnedFd,
    pub(crate) stat: Statx,
}

impl Share {
    /// The directory that `root` is open on.
    pub fn new(root: OwnedFd, room: Arc<dyn Room>) -> Self {
        Self { root, places: Mutex::default(), finding: Mutex::default(), opened: OpenFiles::default(), room }
    }

    fn places(&self) -> MutexGuard<'_, HashMap<u64, Place>> {
        // Each holder makes one change, so a poisoned table is a whole one.
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers where an entry lies. Returns its number.
    pub(crate) fn learn(&self, parent: u64, name: &OsStr, stat: &Statx) -> u64 {
        let number = number(stat);
        let mut places = self.places();
        if places.len() >= MAX_PLACES {
            places.clear();
        }
        places.insert(number, Place { parent, name: name.to_owned() });
        number
    }

    /// Where an entry lies below the root, as far as that is known.
    fn path(&self, node: u64) -> Result<Option<PathBuf>, Errno> {
        let places = self.places();
        let (mut names, mut bytes, mut at) = (Vec::new(), 0, node);
        while at != ROOT {
            let Some(place) = places.get(&at) else { return Ok(None) };
            bytes += place.name.len() + 1;
            // A ring, which renames that were learnt of in another order may leave, is too long too.
            if bytes > MAX_PATH_BYTES {
                return Ok(None);
            }
            names.push(&place.name);
            at = place.parent;
        }
        Ok(Some(if names.is_empty() { PathBuf::from(".") } else { names.iter().rev().collect() }))
    }

    /// Where an entry is, for calls that have only names: its directory, and its name there.
    pub(crate) fn place_of(&self, node: u64) -> Result<(Entry, OsString), Errno> {
        self.open(node, OFlags::PATH)?;
        let Place { parent, name } = self.places().get(&node).cloned().ok_or(Errno::STALE)?;
        Ok((self.directory(parent)?, name))
    }

    /// Refuses a new name where its path would be longer than any that can be opened.
    pub(crate) fn has_room_for_name(&self, parent: u64, name: &OsStr) -> Result<(), Errno> {
        let above = self.path(parent)?.ok_or(Errno::STALE)?;
        if above.as_os_str().len() + 1 + name.len() > MAX_PATH_BYTES { Err(Errno::NAMETOOLONG) } else { Ok(()) }
    }

    /// Opens an entry by its number. `ESTALE` for what is not there any more.
    pub(crate) fn open(&self, node: u64, flags: OFlags) -> Result<Entry, Errno> {
        if let Some(entry) = self.open_remembered(node, flags)? {
            return Ok(entry);
        }
        self.find(node)?;
        self.open_remembered(node, flags)?.ok_or(Errno::STALE)
    }

    /// A directory, to work in.
    pub(crate) fn directory(&self, node: u64) -> Result<Entry, Errno> {
        self.open(node, OFlags::PATH | OFlags::DIRECTORY)
    }

    fn open_remembered(&self, node: u64, flags: OFlags) -> Result<Option<Entry>, Errno> {
        let Some(path) = self.path(node)? else { return Ok(None) };
        let fd = match self.open_at(&path, flags) {
            Ok(fd) => fd,
            // Something else has its name, or nothing.
            Err(Errno::NOENT | Errno::LOOP) => return Ok(None),
            Err(error @ (Errno::NOTDIR | Errno::ISDIR)) => {
                return if self.is_at(node, &path) { Err(error) } else { Ok(None) };
            }
            Err(error) => return Err(error),
        };
        let stat = stat_of(&fd)?;
        let is_it = node == ROOT || number(&stat) == node;
        Ok(is_it.then_some(Entry { fd, stat }))
    }

    fn is_at(&self, node: u64, path: &std::path::Path) -> bool {
        let stat = self.open_at(path, OFlags::PATH).and_then(stat_of);
        stat.is_ok_and(|stat| node == ROOT || number(&stat) == node)
    }

    fn open_at(&self, path: &std::path::Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        // What is opened to be written is a file, and nobody waits for one that turns out to be a pipe.
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let flags = if flags.contains(OFlags::PATH) { flags } else { flags | OFlags::NONBLOCK };
        openat2(&self.root, path, flags, Mode::empty(), resolve)
    }

    /// Looks for an entry in the whole directory, and remembers whatever else it comes by. Blocks for as long as that takes, and the
    /// next who looks waits for it: what many miss after a restart is found by the first.
    fn find(&self, node: u64) -> Result<(), Errno> {
        let _finding = self.finding.lock().unwrap_or_else(PoisonError::into_inner);
        if self.open_remembered(node, OFlags::PATH)?.is_some() {
            return Ok(());
        }
        let mut directories = vec![(ROOT, PathBuf::from("."))];
        while let Some((parent, path)) = directories.pop() {
            let listed = match self.open_at(&path, OFlags::RDONLY | OFlags::DIRECTORY) {
                // It went while we looked.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                listed => Dir::new(listed?)?,
            };
            let at = self.open_at(&path, OFlags::PATH | OFlags::DIRECTORY)?;
            for found in listed {
                let found = found?;
                let name = OsStr::from_bytes(found.file_name().to_bytes());
                if name == "." || name == ".." {
                    continue;
                }
                let Ok(stat) = stat_at(&at, name) else { continue };
                let number = self.learn(parent, name, &stat);
                if is_directory(&stat) && path.as_os_str().len() + 1 + name.len() <= MAX_PATH_BYTES {
                    directories.push((number, path.join(name)));
                }
            }
        }
        Ok(())
    }
}

pub(crate) fn stat_of(fd: impl AsFd) -> Result<Statx, Errno> {
    statx(fd, "", AtFlags::EMPTY_PATH, WANTED)
}

/// An entry of a directory. Of a link itself, and not of what it leads to.
pub(crate) fn stat_at(directory: impl AsFd, name: &OsStr) -> Result<Statx, Errno> {
    statx(directory, name, AtFlags::SYMLINK_NOFOLLOW, WANTED)
}

pub(crate) fn kind(stat: &Statx) -> FileType {
    FileType::from_raw_mode(u32::from(stat.stx_mode))
}

pub(crate) fn is_directory(stat: &Statx) -> bool {
    kind(stat) == FileType::Directory
}

/// The number of an entry, the same for as long as it is there and of no other ever: a digest of its inode and of the time at which
/// that was made. Neither is chosen by who makes it.
fn number(stat: &Statx) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&stat.stx_ino.to_le_bytes());
    hasher.update(&stat.stx_btime.tv_sec.to_le_bytes());
    hasher.update(&stat.stx_btime.tv_nsec.to_le_bytes());
    let mut first = [0; 8];
    hasher.finalize_xof().fill(&mut first);
    // Zero is nobody, and one the root.
    u64::from_le_bytes(first) | 2
}
