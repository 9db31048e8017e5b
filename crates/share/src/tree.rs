//! Which entry a number means, and how it is opened.
//!
//! What is known of where it lies is a hint (`places.rs`): what is opened by it is compared with the number. Usually that is one call
//! with the whole path. Where that is not the entry, something was moved, or the hint was one of another name of it: then, while
//! nobody changes anything, each part of the path is looked at, and what is wrong is forgotten, until the entry is there or no hint is
//! left. Only while the hints are not known to be complete (the first time after a crash) is the whole directory looked through.
//!
//! That something is not there is only what the host's file system says of it. Whatever else it says is handed on, and changes nothing.

use std::{
    any::Any,
    ffi::OsStr,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Statx, StatxFlags, openat2, statx},
    io::Errno,
};

use crate::{
    opened::OpenFiles,
    places::{Place, Places, Walked},
    room::{Room, Sizes},
    vacated::Vacated,
};

/// The directory itself, by protocol.
pub(crate) const ROOT: u64 = 1;

/// The longest path below the directory, which the kernel takes at once. What would lie deeper is not made, but may come to lie there with
/// a directory that is moved: that is opened step by step.
pub(crate) const MAX_PATH_BYTES: usize = 4095;

/// And the longest at all: what a few such moves make. Each step costs a look at a place, also for who asks in vain.
const MAX_CHAIN_BYTES: usize = 4 * MAX_PATH_BYTES;

/// A ring in a path of that length is found within so much of it.
const MAX_RING_BYTES: usize = 4 * MAX_CHAIN_BYTES;

/// How often the whole directory is looked through for one who asks, where directories are moved meanwhile.
const MAX_WALKS: u32 = 3;

/// Places that are written at a time while a directory is looked through.
const AT_A_TIME: usize = 1024;

/// What is asked of the host's file system about an entry.
const WANTED: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME);

/// A directory that guests share. All that share one have the same, or what they count and remember is not one.
#[derive(Debug)]
pub struct Share {
    pub(crate) root: OwnedFd,
    places: Places,
    /// Held by who looks through the whole directory.
    finding: Mutex<()>,
    /// How often that was done.
    looked_through: AtomicU64,
    pub(crate) opened: OpenFiles,
    pub(crate) vacated: Vacated,
    pub(crate) room: Arc<dyn Room>,
}

/// An entry that is open, and what it is.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) fd: OwnedFd,
    pub(crate) stat: Statx,
}

/// An entry and all above it but the root, lowest first.
type Chain = Vec<(u64, Place)>;

/// What is known of where an entry is.
enum Known {
    At(Chain),
    Nothing,
    /// Of the highest of these, the directory that it would be in is not known.
    Ends(Chain),
    /// These are in a ring.
    Ring(Chain),
}

impl Share {
    /// The directory that `root` is open on. Where its entries lie is kept in the file `places`, which is made if it is not there.
    pub fn new(root: OwnedFd, places: &Path, room: Arc<dyn Room>) -> Self {
        let places = Places::open(places, room.figures().quota);
        let (finding, looked_through) = (Mutex::default(), AtomicU64::new(0));
        Self { root, places, finding, looked_through, opened: OpenFiles::default(), vacated: Vacated::default(), room }
    }

    /// Drops `held` once nobody has the directory any more and the file of places is closed, which may be after the last of it was
    /// dropped: where there is an async runtime, that does not wait for the disk.
    #[must_use]
    pub fn holding(mut self, held: impl Any + Send + Sync) -> Self {
        self.places.hold_until_closed(held);
        self
    }

    /// Something got another place. To be said within that change, once that was learnt.
    pub(crate) fn moved(&self, stat: &Statx) {
        self.places.moved(is_directory(stat));
    }

    /// Remembers where an entry lies. Returns its number.
    pub(crate) fn learn(&self, parent: u64, name: &OsStr, stat: &Statx) -> u64 {
        let number = number(stat);
        self.places.learn(number, Place { parent, name: name.to_owned() });
        number
    }

    /// The same of many, of a listing.
    pub(crate) fn learn_all(&self, places: &[(u64, Place)]) {
        self.places.learn_all(places);
    }

    /// A name of an entry is gone.
    pub(crate) fn forget(&self, parent: u64, name: &OsStr, stat: &Statx) {
        self.places.forget(number(stat), &Place { parent, name: name.to_owned() });
    }

    /// What has the place of an entry that is gone: its number and what it is. `ENOENT` where nothing has, `ESTALE` where none is known.
    pub(crate) fn successor(&self, node: u64) -> Result<(u64, Statx), Errno> {
        let (parent, name) = self.vacated.last_of(node).ok_or(Errno::STALE)?;
        let directory = self.directory(parent)?;
        let stat = stat_at(&directory.fd, &name)?;
        Ok((self.learn(parent, &name, &stat), stat))
    }

    fn known(&self, node: u64) -> Result<Known, Errno> {
        let (mut chain, mut bytes, mut at) = (Chain::new(), 0, node);
        // Who goes in a ring comes by a mark that is set at ever longer distances.
        let (mut mark, mut marked_next) = (node, 1);
        while at != ROOT {
            let Some(place) = self.places.likely(at)? else {
                return Ok(if chain.is_empty() { Known::Nothing } else { Known::Ends(chain) });
            };
            bytes += place.name.len() + 1;
            let parent = place.parent;
            chain.push((at, place));
            if parent == mark {
                let first = chain.iter().position(|(number, _)| *number == mark).unwrap_or(0);
                return Ok(Known::Ring(chain.split_off(first)));
            }
            if bytes > MAX_RING_BYTES {
                return Err(Errno::NAMETOOLONG);
            }
            if chain.len() == marked_next {
                (mark, marked_next) = (parent, 2 * marked_next);
            }
            at = parent;
        }
        if bytes > MAX_CHAIN_BYTES { Err(Errno::NAMETOOLONG) } else { Ok(Known::At(chain)) }
    }

    /// Where an entry is likely to be.
    fn path(&self, node: u64) -> Result<Option<PathBuf>, Errno> {
        Ok(match self.known(node)? {
            Known::At(chain) => Some(path_of(&chain)),
            Known::Nothing | Known::Ends(_) | Known::Ring(_) => None,
        })
    }

    /// Refuses a new name where its path would be longer than any that can be opened.
    pub(crate) fn has_room_for_name(&self, parent: u64, name: &OsStr) -> Result<(), Errno> {
        let above = self.path(parent)?.ok_or(Errno::STALE)?;
        if above.as_os_str().len() + 1 + name.len() > MAX_PATH_BYTES { Err(Errno::NAMETOOLONG) } else { Ok(()) }
    }

    /// Opens an entry by its number. `ESTALE` for what is not there any more. Not to be called within a change: it may wait for that.
    pub(crate) fn open(&self, node: u64, flags: OFlags) -> Result<Entry, Errno> {
        if let Some(path) = self.path(node)?
            && let Some(entry) = self.open_if_at(node, &path, flags)?
        {
            return Ok(entry);
        }
        let is_complete = self.places.is_complete();
        if let Some(entry) = self.open_settled(node, flags, is_complete)? {
            return Ok(entry);
        }
        // It may have turned out meanwhile that what is known is wrong.
        if is_complete && self.places.is_complete() { Err(Errno::STALE) } else { self.find(node, flags) }
    }

    /// A directory, to work in.
    pub(crate) fn directory(&self, node: u64) -> Result<Entry, Errno> {
        self.open(node, OFlags::PATH | OFlags::DIRECTORY)
    }

    /// Opens what is at `path`, if it is the entry.
    fn open_if_at(&self, node: u64, path: &Path, flags: OFlags) -> Result<Option<Entry>, Errno> {
        let fd = match self.open_at(path, flags) {
            Ok(fd) => fd,
            // Something else has its name, or nothing.
            Err(Errno::NOENT | Errno::LOOP) => return Ok(None),
            Err(error @ (Errno::NOTDIR | Errno::ISDIR)) => {
                return if self.is_at(node, path)? { Err(error) } else { Ok(None) };
            }
            Err(error) => return Err(error),
        };
        let stat = stat_of(&fd)?;
        let is_it = node == ROOT || number(&stat) == node;
        Ok(is_it.then_some(Entry { fd, stat }))
    }

    fn is_at(&self, node: u64, path: &Path) -> Result<bool, Errno> {
        let found = unless_absent(self.open_at(path, OFlags::PATH).and_then(stat_of))?;
        Ok(found.is_some_and(|stat| node == ROOT || number(&stat) == node))
    }

    fn open_at(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let mut rest = path.as_os_str().as_bytes();
        let mut above: Option<OwnedFd> = None;
        while rest.len() > MAX_PATH_BYTES {
            let end = rest[..=MAX_PATH_BYTES].iter().rposition(|byte| *byte == b'/').ok_or(Errno::NAMETOOLONG)?;
            let part = Path::new(OsStr::from_bytes(&rest[..end]));
            above = Some(open_below(above.as_ref().unwrap_or(&self.root), part, OFlags::PATH | OFlags::DIRECTORY)?);
            rest = &rest[end + 1..];
        }
        open_below(above.as_ref().unwrap_or(&self.root), Path::new(OsStr::from_bytes(rest)), flags)
    }

    /// Opens an entry by whatever is known of it, while nothing changes.
    /// `forgets` what ends nowhere: not while somebody else looks for where it ends.
    fn open_settled(&self, node: u64, flags: OFlags, forgets: bool) -> Result<Option<Entry>, Errno> {
        let mut found = None;
        self.room.change(0, &mut || {
            found = self.search(node, flags, forgets)?;
            Ok(Sizes::default())
        })?;
        Ok(found)
    }

    /// The same within a change. Each turn finds it or forgets a hint.
    fn search(&self, node: u64, flags: OFlags, forgets: bool) -> Result<Option<Entry>, Errno> {
        loop {
            match self.known(node)? {
                Known::Nothing => return Ok(None),
                // It may not be known yet, and is found with what it is in when all is looked through.
                Known::Ends(_) if !forgets => return Ok(None),
                Known::Ends(chain) => {
                    let highest = chain.last();
                    highest.into_iter().for_each(|(number, place)| self.places.forget(*number, place));
                }
                // Which of them is wrong cannot be told.
                Known::Ring(chain) => {
                    chain.iter().for_each(|(number, place)| self.places.forget(*number, place));
                    self.places.doubt();
                }
                Known::At(chain) => {
                    let opened = self.open_if_at(node, &path_of(&chain), flags);
                    if !matches!(opened, Ok(None)) || !self.forget_first_wrong(&chain)? {
                        return opened;
                    }
                }
            }
        }
    }

    /// Within a change: refuses what was opened before it began and was taken out of the directory since. It is counted by who took it.
    pub(crate) fn still(&self, node: u64) -> Result<(), Errno> {
        self.search(node, OFlags::PATH, self.places.is_complete())?.map(drop).ok_or(Errno::STALE)
    }

    /// Of an entry that has just lost its last name in this directory, or is about to, by another way than through here: whether guests
    /// have it open. Then what it takes is given back when the last of them closes it, and not by who asks.
    pub fn puts_off(&self, entry: impl AsFd) -> io::Result<bool> {
        Ok(self.opened.put_off(number(&stat_of(entry)?)))
    }

    /// Forgets the highest hint that does not hold. Whether there was one.
    fn forget_first_wrong(&self, chain: &Chain) -> Result<bool, Errno> {
        let mut above: Option<OwnedFd> = None;
        for (node, place) in chain.iter().rev() {
            let at = above.as_ref().unwrap_or(&self.root);
            let entry = unless_absent(open_below(at, Path::new(&place.name), OFlags::PATH))?;
            let held = match entry {
                Some(fd) if number(&stat_of(&fd)?) == *node => Some(fd),
                Some(_) | None => None,
            };
            if held.is_none() {
                self.places.forget(*node, place);
                return Ok(true);
            }
            above = held;
        }
        Ok(false)
    }

    /// Looks for an entry everywhere. Blocks for as long as that takes, and the next who misses something waits for it.
    fn find(&self, node: u64, flags: OFlags) -> Result<Entry, Errno> {
        let _finding = self.finding.lock().unwrap_or_else(PoisonError::into_inner);
        // Who was waited for may have found it.
        if let Some(entry) = self.open_settled(node, flags, true)? {
            return Ok(entry);
        }
        for _ in 0..MAX_WALKS {
            let walked = if self.places.is_complete() { Walked::Whole } else { self.look_through(node)? };
            if let Some(entry) = self.open_settled(node, flags, true)? {
                return Ok(entry);
            }
            if walked == Walked::Whole {
                return Err(Errno::STALE);
            }
        }
        // It may be there, and guests move directories faster than they can be looked through.
        Err(Errno::IO)
    }

    /// Learns where everything is, and in any case where `wanted` is.
    fn look_through(&self, wanted: u64) -> Result<Walked, Errno> {
        let times = self.looked_through.fetch_add(1, Relaxed) + 1;
        tracing::info!(times, "a directory is looked through for what guests know of it");
        let began = self.places.begin_walk();
        let looked = self.look_into_all(wanted);
        let mut walked = Walked::Disturbed;
        // Whoever moves a directory has said so by then.
        self.room.change(0, &mut || {
            walked = self.places.end_walk(began, *looked.as_ref().unwrap_or(&false));
            Ok(Sizes::default())
        })?;
        looked.map(|_| walked)
    }

    /// Whether nothing was left out.
    fn look_into_all(&self, wanted: u64) -> Result<bool, Errno> {
        let mut is_all = true;
        // Numbers, since paths would be long. What is moved meanwhile is learnt of by who moves it.
        let mut directories = vec![ROOT];
        while let Some(parent) = directories.pop() {
            match self.look_into(parent, wanted, &mut directories) {
                // It went while we looked.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                // Nothing in it can be opened where it is.
                Err(Errno::NAMETOOLONG) => is_all = false,
                looked => looked?,
            }
        }
        Ok(is_all)
    }

    fn look_into(&self, parent: u64, wanted: u64, directories: &mut Vec<u64>) -> Result<(), Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let by_path = match self.path(parent)? {
            Some(path) => self.open_if_at(parent, &path, flags)?,
            None => None,
        };
        let Some(directory) = by_path.map_or_else(|| self.open_settled(parent, flags, true), |entry| Ok(Some(entry)))? else {
            return Ok(());
        };
        let (mut found, mut is_full) = (Vec::new(), self.places.is_full());
        for listed in Dir::read_from(&directory.fd)? {
            let listed = listed?;
            let name = OsStr::from_bytes(listed.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let Some(stat) = unless_absent(stat_at(&directory.fd, name))? else { continue };
            let number = number(&stat);
            if is_directory(&stat) {
                directories.push(number);
            } else if is_full && number != wanted {
                continue;
            }
            found.push((number, Place { parent, name: name.to_owned() }));
            if found.len() >= AT_A_TIME {
                self.places.learn_found(&std::mem::take(&mut found));
                is_full = self.places.is_full();
            }
        }
        self.places.learn_found(&found);
        Ok(())
    }
}

/// Opens what lies below a directory, through no link.
fn open_below(directory: impl AsFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    // What is opened to be written is a file, and nobody waits for one that turns out to be a pipe.
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let flags = if flags.contains(OFlags::PATH) { flags } else { flags | OFlags::NONBLOCK };
    openat2(directory, path, flags, Mode::empty(), resolve)
}

/// Nothing where the host's file system says that nothing is there. Any other error says nothing about that.
fn unless_absent<T>(found: Result<T, Errno>) -> Result<Option<T>, Errno> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(error) => Err(error),
    }
}

fn path_of(chain: &Chain) -> PathBuf {
    if chain.is_empty() { PathBuf::from(".") } else { chain.iter().rev().map(|(_, place)| &place.name).collect() }
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
pub(crate) fn number(stat: &Statx) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&stat.stx_ino.to_le_bytes());
    hasher.update(&stat.stx_btime.tv_sec.to_le_bytes());
    hasher.update(&stat.stx_btime.tv_nsec.to_le_bytes());
    let mut first = [0; 8];
    hasher.finalize_xof().fill(&mut first);
    // Zero is nobody, and one the root.
    u64::from_le_bytes(first) | 2
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
