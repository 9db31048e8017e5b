//! Changes below one directory, as inotify(7) reports them, in the terms of the contract.
//!
//! Events are passed on one for one: clients count them. A recursive watch covers directories that appear later; what was
//! created in one before it was watched is found by looking, and reported once.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    io,
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use firkin_wire::envd::filesystem::EventType;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use tokio::io::unix::AsyncFd;

use crate::{envd::trouble::Trouble, readiness};

/// Directories of one recursive watch. The kernel's own limit is for the whole machine.
const MAX_DIRECTORIES: usize = 65_536;

/// Bytes read from the queue at once.
const QUEUE_BYTES: usize = 16 << 10;

/// Why a watch ends or does not begin.
#[derive(Debug, thiserror::Error)]
pub(super) enum WatchError {
    /// The kernel refuses a watch, or a directory cannot be read.
    #[error("cannot watch `{path}`")]
    Add {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No more instances.
    #[error("cannot make an inotify instance")]
    Open(#[source] io::Error),
    /// Too many directories below.
    #[error("cannot watch more than {MAX_DIRECTORIES} directories at once")]
    TooMany,
    /// The kernel's queue was full and events are lost.
    #[error("cannot go on watching: events came faster than they were read")]
    Overflow,
    /// The queue fails.
    #[error("cannot read the watch's queue")]
    Read(#[source] io::Error),
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    /// Path relative to the watched directory; `.` for the directory itself.
    pub(super) name: PathBuf,
    /// The kind of the event.
    pub(super) kind: EventType,
}

/// One event as the kernel gives it (inotify(7)).
struct Event<'a> {
    wd: i32,
    flags: ReadFlags,
    cookie: u32,
    /// The name inside the watched directory; absent for the directory itself.
    name: Option<&'a OsStr>,
}

/// A watched directory.
#[derive(Debug)]
pub(super) struct Tree {
    queue: Arc<AsyncFd<OwnedFd>>,
    root: PathBuf,
    recursive: bool,
    /// Relative path of each watched directory, by watch descriptor; the root's is empty.
    directories: BTreeMap<i32, PathBuf>,
    /// Reported by looking; the kernel's own event for it is still to come.
    reported: BTreeSet<PathBuf>,
    /// Where a directory was moved from, until the event says where to.
    moving: Option<(u32, PathBuf)>,
}

impl Tree {
    /// Watches `root`, which is a directory. Needs a runtime.
    pub(super) fn open(root: &Path, recursive: bool) -> Result<Self, WatchError> {
        let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).map_err(|error| WatchError::Open(error.into()))?;
        let queue = Arc::new(readiness::register(fd).map_err(WatchError::Open)?);
        let mut tree = Self {
            queue,
            root: root.to_path_buf(),
            recursive,
            directories: BTreeMap::new(),
            reported: BTreeSet::new(),
            moving: None,
        };
        // What is found now was there before: not news.
        tree.add(Path::new(""), None)?;
        Ok(tree)
    }

    /// The queue, to wait on.
    pub(super) fn queue(&self) -> Arc<AsyncFd<OwnedFd>> {
        Arc::clone(&self.queue)
    }

    /// Everything that has happened since the last call. Blocks for looking into new directories, not for events.
    pub(super) fn drain(&mut self) -> Result<Vec<Change>, WatchError> {
        let queue = self.queue();
        let mut buffer = [MaybeUninit::uninit(); QUEUE_BYTES];
        let mut reader = Reader::new(queue.get_ref(), &mut buffer);
        let mut changes = Vec::new();
        loop {
            match reader.next() {
                Ok(event) => {
                    let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()));
                    let event = Event { wd: event.wd(), flags: event.events(), cookie: event.cookie(), name };
                    self.take(&event, &mut changes)?;
                }
                Err(rustix::io::Errno::AGAIN) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(WatchError::Read(error.into())),
            }
        }
        if let Some((_, old)) = self.moving.take() {
            self.forget(&old);
        }
        Ok(changes)
    }

    fn take(&mut self, event: &Event<'_>, changes: &mut Vec<Change>) -> Result<(), WatchError> {
        let &Event { wd, flags, cookie, name } = event;
        if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            return Err(WatchError::Overflow);
        }
        if flags.contains(ReadFlags::IGNORED) {
            self.directories.remove(&wd);
            return Ok(());
        }
        let Some(directory) = self.directories.get(&wd) else { return Ok(()) };
        let path = match name {
            Some(name) => directory.join(name),
            // About the watched directory itself: for one below the root, its parent reports the same.
            None if directory.as_os_str().is_empty() => PathBuf::from("."),
            None => return Ok(()),
        };
        let is_dir = flags.contains(ReadFlags::ISDIR);
        if self.recursive && is_dir && flags.contains(ReadFlags::MOVED_FROM) {
            self.moving = Some((cookie, path.clone()));
        }
        let appeared = flags.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO);
        // Any later event means that the creation itself was never queued.
        let known = self.reported.remove(&path) && flags.contains(ReadFlags::CREATE);
        if !known && let Some(kind) = kind_of(flags) {
            changes.push(Change { name: path.clone(), kind });
        }
        if self.recursive && is_dir && appeared && !known {
            match self.moving.take() {
                Some((from, old)) if from == cookie && flags.contains(ReadFlags::MOVED_TO) => self.renamed(&old, &path),
                other => {
                    self.moving = other;
                    // A directory that was moved here is one change; what is in it is not new.
                    self.add(&path, flags.contains(ReadFlags::CREATE).then_some(changes))?;
                }
            }
        }
        Ok(())
    }

    /// Watches the directory and, for a recursive watch, those below. Tells `news`, if any, what is in it.
    fn add(&mut self, relative: &Path, mut news: Option<&mut Vec<Change>>) -> Result<(), WatchError> {
        let mut pending = vec![relative.to_path_buf()];
        while let Some(directory) = pending.pop() {
            let path = self.root.join(&directory);
            let error = |source: io::Error| WatchError::Add { path: path.clone(), source };
            let below_root = !directory.as_os_str().is_empty();
            let mut flags = interest() | WatchFlags::ONLYDIR;
            if below_root {
                flags |= WatchFlags::DONT_FOLLOW;
            }
            match inotify::add_watch(self.queue.get_ref(), &path, flags) {
                Ok(wd) => self.directories.insert(wd, directory.clone()),
                // Gone again, no directory any more, or so deep that no path names it.
                Err(source) if below_root && Trouble::of(&source.into()).passes() => continue,
                Err(source) => return Err(error(source.into())),
            };
            if !self.recursive {
                return Ok(());
            }
            if self.directories.len() > MAX_DIRECTORIES {
                return Err(WatchError::TooMany);
            }
            let entries = match fs_err::read_dir(&path) {
                Err(error) if below_root && Trouble::of(&error).passes() => continue,
                other => other.map_err(error)?,
            };
            for entry in entries.flatten() {
                let name = directory.join(entry.file_name());
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    pending.push(name.clone());
                }
                if let Some(news) = news.as_deref_mut() {
                    self.reported.insert(name.clone());
                    news.push(Change { name, kind: EventType::EVENT_TYPE_CREATE });
                }
            }
        }
        Ok(())
    }

    /// A watched directory has a new name inside the tree: its watches stay.
    fn renamed(&mut self, old: &Path, new: &Path) {
        for directory in self.directories.values_mut() {
            if let Ok(rest) = directory.strip_prefix(old) {
                // Joining nothing would end the path with a slash.
                *directory = if rest.as_os_str().is_empty() { new.to_path_buf() } else { new.join(rest) };
            }
        }
    }

    /// A watched directory has left the tree.
    fn forget(&mut self, old: &Path) {
        let gone: Vec<i32> = self.directories.iter().filter(|(_, path)| path.starts_with(old)).map(|(&wd, _)| wd).collect();
        for wd in gone {
            self.directories.remove(&wd);
            if let Err(error) = inotify::remove_watch(self.queue.get_ref(), wd) {
                tracing::debug!(%error, "cannot remove a watch");
            }
        }
    }
}

fn interest() -> WatchFlags {
    WatchFlags::CREATE
        | WatchFlags::MODIFY
        | WatchFlags::ATTRIB
        | WatchFlags::DELETE
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVED_FROM
        | WatchFlags::MOVED_TO
        | WatchFlags::MOVE_SELF
}

fn kind_of(flags: ReadFlags) -> Option<EventType> {
    let table = [
        (ReadFlags::CREATE | ReadFlags::MOVED_TO, EventType::EVENT_TYPE_CREATE),
        (ReadFlags::MOVED_FROM | ReadFlags::MOVE_SELF, EventType::EVENT_TYPE_RENAME),
        (ReadFlags::ATTRIB, EventType::EVENT_TYPE_CHMOD),
        (ReadFlags::MODIFY, EventType::EVENT_TYPE_WRITE),
        (ReadFlags::DELETE | ReadFlags::DELETE_SELF, EventType::EVENT_TYPE_REMOVE),
    ];
    table.iter().find(|(mask, _)| flags.intersects(*mask)).map(|&(_, kind)| kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(changes: &[Change]) -> Vec<(String, EventType)> {
        changes.iter().map(|change| (change.name.display().to_string(), change.kind)).collect()
    }

    #[tokio::test]
    async fn a_new_file_is_create_chmod_write() {
        use std::io::Write;
        let dir = tempfile::tempdir().unwrap();
        let mut tree = Tree::open(dir.path(), false).unwrap();
        let mut file = fs_err::File::create(dir.path().join("f")).unwrap();
        std::os::unix::fs::fchown(file.file(), Some(nix::unistd::geteuid().as_raw()), None).unwrap();
        file.write_all(b"x").unwrap();
        let kinds: Vec<EventType> = tree.drain().unwrap().iter().map(|change| change.kind).collect();
        assert_eq!(kinds, [EventType::EVENT_TYPE_CREATE, EventType::EVENT_TYPE_CHMOD, EventType::EVENT_TYPE_WRITE]);
    }

    #[tokio::test]
    async fn a_recursive_watch_reports_what_new_directories_hold_once_and_follows_renames() {
        let dir = tempfile::tempdir().unwrap();
        fs_err::create_dir(dir.path().join("old")).unwrap();
        let mut tree = Tree::open(dir.path(), true).unwrap();
        fs_err::create_dir_all(dir.path().join("a/b")).unwrap();
        fs_err::write(dir.path().join("a/b/f"), "").unwrap();
        let mut seen = names(&tree.drain().unwrap());
        seen.sort_by(|(left, _), (right, _)| left.cmp(right));
        let create = EventType::EVENT_TYPE_CREATE;
        assert_eq!(seen, [("a".to_owned(), create), ("a/b".to_owned(), create), ("a/b/f".to_owned(), create)]);

        fs_err::rename(dir.path().join("old"), dir.path().join("new")).unwrap();
        fs_err::write(dir.path().join("new/g"), "").unwrap();
        let rename = EventType::EVENT_TYPE_RENAME;
        let expected = [("old".to_owned(), rename), ("new".to_owned(), create), ("new/g".to_owned(), create)];
        assert_eq!(names(&tree.drain().unwrap()), expected);

        let outside = tempfile::tempdir_in(dir.path().parent().unwrap()).unwrap();
        fs_err::rename(dir.path().join("new"), outside.path().join("gone")).unwrap();
        assert_eq!(names(&tree.drain().unwrap()), [("new".to_owned(), rename)]);
        fs_err::write(outside.path().join("gone/h"), "").unwrap();
        assert_eq!(names(&tree.drain().unwrap()), []);
    }
}
