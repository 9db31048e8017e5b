//! The files of one volume. Every path is resolved by the kernel below the volume's root, and through no symbolic link.

use std::{
    ffi::OsStr,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use fs_err as fs;
use jiff::Timestamp;
use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, RenameFlags, ResolveFlags, Stat, Uid, fchmod, fchown, mkdirat, openat2,
    readlinkat, renameat_with, statat,
};

use self::upload::Target;
use super::{
    VolumeError, blocking,
    usage::{self, Account, OverQuota, Taken},
};
use crate::host::disk::DiskPressureGuard;

mod upload;

pub use self::upload::Upload;

/// Entries of one listing: some megabytes of JSON.
pub const MAX_ENTRIES: usize = 10_000;

/// Levels below a listed directory.
const MAX_DEPTH: u32 = 64;

/// Longest path.
const MAX_PATH_BYTES: usize = 4096;

/// Permissions that an entry may have: no program of a volume runs as another user.
const MAX_MODE: u32 = 0o1777;

const NEW_DIRECTORY: u32 = 0o755;

/// The kind of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// Anything else.
    Unknown,
}

/// An entry of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its last component; `/` for the root.
    pub name: String,
    /// Its path, from the root.
    pub path: String,
    /// Its kind.
    pub kind: Kind,
    /// Bytes.
    pub size: u64,
    /// Permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// When it was read.
    pub accessed: Timestamp,
    /// When it was written.
    pub modified: Timestamp,
    /// When anything of it changed.
    pub changed: Timestamp,
    /// Where a link points.
    pub target: Option<String>,
}

/// Owner and mode for a new or changed entry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Permissions.
    pub mode: Option<u32>,
}

/// The content of one volume. Clones share it.
#[derive(Debug, Clone)]
pub struct Content(Arc<Root>);

#[derive(Debug)]
pub(super) struct Root {
    pub(super) root: OwnedFd,
    aside: OwnedFd,
    aside_path: PathBuf,
    pub(super) disk: DiskPressureGuard,
    pub(super) account: Arc<Account>,
}

/// A path from the root, without `.`, `..` or empty components.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Clean(String);

impl Clean {
    fn new(text: &str) -> Result<Self, VolumeError> {
        if text.len() > MAX_PATH_BYTES || text.contains('\0') {
            return Err(VolumeError::Path);
        }
        let mut parts: Vec<&str> = Vec::new();
        for part in text.trim().split('/') {
            match part {
                "" | "." => {}
                ".." => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        Ok(Self(parts.join("/")))
    }

    /// The directory it is in, and its name there. `None` for the root.
    fn split(&self) -> Option<(Self, &str)> {
        match self.0.rsplit_once('/') {
            Some((parent, name)) => Some((Self(parent.to_owned()), name)),
            None if self.0.is_empty() => None,
            None => Some((Self(String::new()), &self.0)),
        }
    }

    fn below(&self, name: &str) -> Self {
        if self.0.is_empty() { Self(name.to_owned()) } else { Self(format!("{}/{name}", self.0)) }
    }

    fn shown(&self) -> String {
        format!("/{}", self.0)
    }

    fn not_found(&self) -> VolumeError {
        VolumeError::PathNotFound(self.shown())
    }

    /// An error of the system on this path, as what it means to the user.
    fn failed(&self, error: impl Into<io::Error>) -> VolumeError {
        let error = error.into();
        match error.kind() {
            io::ErrorKind::NotFound => self.not_found(),
            io::ErrorKind::AlreadyExists => VolumeError::Exists(self.shown()),
            io::ErrorKind::NotADirectory => VolumeError::Kind { path: self.shown(), wanted: "directory" },
            // What `NO_SYMLINKS` says of a link.
            _ if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
                VolumeError::Kind { path: self.shown(), wanted: "directory" }
            }
            io::ErrorKind::IsADirectory | io::ErrorKind::DirectoryNotEmpty => {
                VolumeError::Kind { path: self.shown(), wanted: "file" }
            }
            io::ErrorKind::InvalidFilename => VolumeError::Path,
            _ => VolumeError::File { path: PathBuf::from(self.shown()), source: error },
        }
    }
}

impl Content {
    pub(super) fn open(dir: &Path, disk: DiskPressureGuard, account: Arc<Account>) -> Result<Self, VolumeError> {
        let directory = |path: PathBuf| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            rustix::fs::open(&path, flags, Mode::empty()).map_err(|error| VolumeError::File { path, source: error.into() })
        };
        let aside_path = dir.join("aside");
        Ok(Self(Arc::new(Root {
            root: directory(dir.join("content"))?,
            aside: directory(aside_path.clone())?,
            aside_path,
            disk,
            account,
        })))
    }

    /// What all its clones share.
    pub(super) fn root(&self) -> &Arc<Root> {
        &self.0
    }

    /// Counts what it holds, unless that is known.
    pub(super) async fn count(&self) -> Result<(), VolumeError> {
        let Some(counting) = self.0.account.to_be_counted().await else { return Ok(()) };
        let root = Arc::clone(&self.0);
        blocking(move || {
            // Until it is done, also if nobody waits for it any more.
            let _counting = counting;
            root.counted().map(drop)
        })
        .await
    }

    /// The entry at `path`.
    pub async fn stat(&self, path: &str) -> Result<Entry, VolumeError> {
        let (root, path) = (Arc::clone(&self.0), Clean::new(path)?);
        blocking(move || root.entry(&path)).await
    }

    /// Lists the directory at `path`, to a depth of at least 1, in order of paths.
    pub async fn list(&self, path: &str, depth: u32) -> Result<Vec<Entry>, VolumeError> {
        let (root, path) = (Arc::clone(&self.0), Clean::new(path)?);
        blocking(move || {
            let mut entries = Vec::new();
            root.list(&path, depth.clamp(1, MAX_DEPTH), &mut entries)?;
            entries.sort_by(|a, b| a.path.cmp(&b.path));
            Ok(entries)
        })
        .await
    }

    /// Makes a directory. With `force`, its parents too, and one that is there is no error.
    pub async fn make_dir(&self, path: &str, attributes: Attributes, force: bool) -> Result<Entry, VolumeError> {
        let (root, path) = (Arc::clone(&self.0), Clean::new(path)?);
        attributes.check()?;
        self.count().await?;
        blocking(move || {
            root.disk.check().map_err(VolumeError::Disk)?;
            root.counted()?;
            root.make_dir(&path, attributes, force)?;
            root.entry(&path)
        })
        .await
    }

    /// Changes what is given of `attributes`.
    pub async fn set(&self, path: &str, attributes: Attributes) -> Result<Entry, VolumeError> {
        let (root, path) = (Arc::clone(&self.0), Clean::new(path)?);
        attributes.check()?;
        blocking(move || {
            let file = root.open(&path, OFlags::RDONLY | OFlags::NONBLOCK)?;
            attributes.apply(&file).map_err(|error| path.failed(error))?;
            root.entry(&path)
        })
        .await
    }

    /// Removes a file, or a directory with all in it. The root stays.
    pub async fn remove(&self, path: &str) -> Result<(), VolumeError> {
        let (root, path) = (Arc::clone(&self.0), Clean::new(path)?);
        self.count().await?;
        blocking(move || {
            let (parent, name) = path.split().ok_or_else(|| path.not_found())?;
            let parent = root.open(&parent, OFlags::PATH | OFlags::DIRECTORY).map_err(|_| path.not_found())?;
            let account = root.counted()?;
            let gone = crate::ground::random::alphanumeric(20);
            // Out of sight at once, whatever it takes to remove it.
            root.changing(&parent, || renameat_with(&parent, name, &root.aside, &gone, RenameFlags::empty()))
                .map_err(|error| path.failed(error))?;
            let before = root.freed_aside(&gone);
            let at = root.aside_path.join(&gone);
            let removed = if fs::symlink_metadata(&at).is_ok_and(|meta| meta.is_dir()) {
                firkin_files::remove_tree(&at)
            } else {
                fs::remove_file(&at)
            };
            match before {
                // What could not be removed counts on.
                Ok(before) => account.became(before, root.freed_aside(&gone).unwrap_or(0)),
                // Nobody is given room that there may not be.
                Err(error) => tracing::warn!(%error, "what was removed from a volume counts until the server starts again"),
            }
            removed.map_err(|source| VolumeError::File { path: at, source })
        })
        .await
    }

    /// The file at `path` and its length.
    pub async fn read(&self, path: &str) -> Result<(tokio::fs::File, u64), VolumeError> {
        let (root, path) = (Arc::clone(&self.0), Clean::new(path)?);
        blocking(move || {
            let entry = root.entry(&path)?;
            if entry.kind != Kind::File {
                return Err(VolumeError::Kind { path: path.shown(), wanted: "file" });
            }
            let file = std::fs::File::from(root.open(&path, OFlags::RDONLY | OFlags::NONBLOCK)?);
            let length = file.metadata().map_err(|error| path.failed(error))?.len();
            Ok((tokio::fs::File::from_std(file), length))
        })
        .await
    }

    /// Begins a file, which is there when the upload was finished. One that is there is replaced with `force` only.
    pub async fn write(&self, path: &str, attributes: Attributes, force: bool) -> Result<Upload, VolumeError> {
        let (root, path) = (Arc::clone(&self.0), Clean::new(path)?);
        attributes.check()?;
        self.count().await?;
        blocking(move || {
            root.disk.check().map_err(VolumeError::Disk)?;
            let (parent, _) = path.split().ok_or(VolumeError::Kind { path: path.shown(), wanted: "file" })?;
            root.open(&parent, OFlags::PATH | OFlags::DIRECTORY).map_err(|_| path.not_found())?;
            match root.entry(&path) {
                Err(VolumeError::PathNotFound(_)) => {}
                Err(error) => return Err(error),
                Ok(entry) if entry.kind == Kind::Directory => {
                    return Err(VolumeError::Kind { path: path.shown(), wanted: "file" });
                }
                Ok(_) if !force => return Err(VolumeError::Exists(path.shown())),
                Ok(_) => {}
            }
            let taken = root.take(usage::LEAST_BYTES)?;
            let aside = tempfile::Builder::new().tempfile_in(&root.aside_path);
            let aside = aside.map_err(|source| VolumeError::File { path: root.aside_path.clone(), source })?;
            let (file, aside) = aside.into_parts();
            Ok(Upload::new(Target { root, path, attributes, force }, (tokio::fs::File::from_std(file), aside), taken))
        })
        .await
    }
}

impl Attributes {
    fn check(self) -> Result<(), VolumeError> {
        match self.mode {
            Some(mode) if mode > MAX_MODE => Err(VolumeError::Mode(mode)),
            Some(_) | None => Ok(()),
        }
    }

    /// Owner first: a change of it may take permissions away.
    fn apply(self, file: impl AsFd) -> rustix::io::Result<()> {
        if self.uid.is_some() || self.gid.is_some() {
            fchown(&file, self.uid.map(Uid::from_raw), self.gid.map(Gid::from_raw))?;
        }
        match self.mode {
            Some(mode) => fchmod(&file, Mode::from_raw_mode(mode)),
            None => Ok(()),
        }
    }
}

impl Root {
    /// The count of the volume, once that is made.
    pub(super) fn counted(&self) -> Result<&Arc<Account>, VolumeError> {
        let counted = self.account.count(&self.root, &self.aside_path);
        counted.map_err(|source| VolumeError::File { path: self.aside_path.clone(), source })?;
        Ok(&self.account)
    }

    fn take(&self, bytes: u64) -> Result<Taken, VolumeError> {
        self.counted()?.take(bytes).map_err(VolumeError::from)
    }

    /// Does what changes the directory `parent`, and counts what that takes or leaves.
    fn changing<T>(&self, parent: impl AsFd, change: impl FnOnce() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
        let _changing = self.account.change();
        let before = rustix::fs::fstat(&parent)?;
        let done = change()?;
        self.account.became(usage::of(&before), usage::of(&rustix::fs::fstat(&parent)?));
        Ok(done)
    }

    /// What is free once something has gone that is being removed. Nothing, when it is gone.
    fn freed_aside(&self, name: &str) -> io::Result<u64> {
        let stat = match statat(&self.aside, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(rustix::io::Errno::NOENT) => return Ok(0),
            stat => stat?,
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let tree = rustix::fs::openat(&self.aside, name, flags, Mode::empty())?;
                usage::freed_below(tree, |at, name| self.is_put_off(at, name))
            }
            _ if usage::has_several_names(&stat) => Ok(0),
            FileType::RegularFile if self.is_put_off(&self.aside, name.as_ref())? => Ok(0),
            _ => Ok(usage::of(&stat)),
        }
    }

    /// Of a file that is being removed: whether guests have it open.
    fn is_put_off(&self, at: impl AsFd, name: &OsStr) -> io::Result<bool> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        self.account.is_put_off(rustix::fs::openat(at, name, flags, Mode::empty())?)
    }

    fn open(&self, path: &Clean, flags: OFlags) -> Result<OwnedFd, VolumeError> {
        let text = if path.0.is_empty() { "." } else { &path.0 };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        openat2(&self.root, text, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty(), resolve)
            .map_err(|error| path.failed(error))
    }

    fn entry(&self, path: &Clean) -> Result<Entry, VolumeError> {
        let Some((parent, name)) = path.split() else {
            let stat = rustix::fs::fstat(&self.root).map_err(|error| path.failed(error))?;
            return Ok(entry(path, "/", &stat, None));
        };
        // Below what is no directory, nothing is.
        let parent = self.open(&parent, OFlags::PATH | OFlags::DIRECTORY).map_err(|_| path.not_found())?;
        self.entry_in(&parent, path, name)
    }

    fn entry_in(&self, parent: impl AsFd, path: &Clean, name: &str) -> Result<Entry, VolumeError> {
        let stat = statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|error| path.failed(error))?;
        let target = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => readlinkat(&parent, name, Vec::new()).ok(),
            _ => None,
        };
        Ok(entry(path, name, &stat, target.map(|target| target.to_string_lossy().into_owned())))
    }

    fn list(&self, path: &Clean, depth: u32, entries: &mut Vec<Entry>) -> Result<(), VolumeError> {
        let fd = self.open(path, OFlags::RDONLY | OFlags::DIRECTORY).map_err(|error| match error {
            VolumeError::Kind { .. } => path.not_found(),
            other => other,
        })?;
        let dir = Dir::read_from(&fd).map_err(|error| path.failed(error))?;
        for found in dir {
            let found = found.map_err(|error| path.failed(error))?;
            let name = OsStr::from_bytes(found.file_name().to_bytes()).to_string_lossy().into_owned();
            if name == "." || name == ".." {
                continue;
            }
            if entries.len() >= MAX_ENTRIES {
                return Err(VolumeError::TooMany);
            }
            let below = path.below(&name);
            let entry = match self.entry_in(&fd, &below, &name) {
                // It went while we looked.
                Err(VolumeError::PathNotFound(_)) => continue,
                entry => entry?,
            };
            let deeper = entry.kind == Kind::Directory && depth > 1;
            entries.push(entry);
            if deeper {
                self.list(&below, depth - 1, entries)?;
            }
        }
        Ok(())
    }

    fn make_dir(&self, path: &Clean, attributes: Attributes, force: bool) -> Result<(), VolumeError> {
        let Some((above, name)) = path.split() else {
            return if force { Ok(()) } else { Err(VolumeError::Exists(path.shown())) };
        };
        let parent = match self.open(&above, OFlags::RDONLY | OFlags::DIRECTORY) {
            Err(VolumeError::PathNotFound(_)) if force => {
                self.make_dir(&above, Attributes::default(), true)?;
                self.open(&above, OFlags::RDONLY | OFlags::DIRECTORY)?
            }
            parent => parent?,
        };
        let taken = self.take(usage::LEAST_BYTES)?;
        match self.changing(&parent, || mkdirat(&parent, name, Mode::from_raw_mode(NEW_DIRECTORY))) {
            Ok(()) => taken.keep(usage::LEAST_BYTES),
            Err(rustix::io::Errno::EXIST) if force => {
                let found = self.open(path, OFlags::PATH | OFlags::DIRECTORY);
                return found.map(drop).map_err(|_| VolumeError::Exists(path.shown()));
            }
            Err(error) => return Err(path.failed(error)),
        }
        let made = self.open(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let attributes = Attributes { mode: Some(attributes.mode.unwrap_or(NEW_DIRECTORY)), ..attributes };
        attributes.apply(&made).map_err(|error| path.failed(error))?;
        rustix::fs::fsync(&parent).map_err(|error| path.failed(error))
    }
}

impl From<OverQuota> for VolumeError {
    fn from(OverQuota { used, quota }: OverQuota) -> Self {
        Self::Quota { used_mib: used >> 20, quota_mib: quota >> 20 }
    }
}

fn entry(path: &Clean, name: &str, stat: &Stat, target: Option<String>) -> Entry {
    let time = |seconds: i64, nanoseconds: u64| {
        let nanoseconds = i32::try_from(nanoseconds).unwrap_or_default();
        Timestamp::new(seconds, nanoseconds).unwrap_or(Timestamp::UNIX_EPOCH)
    };
    Entry {
        name: name.to_owned(),
        path: path.shown(),
        kind: match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Kind::File,
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Symlink,
            _ => Kind::Unknown,
        },
        size: u64::try_from(stat.st_size).unwrap_or_default(),
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        accessed: time(stat.st_atime, stat.st_atime_nsec),
        modified: time(stat.st_mtime, stat.st_mtime_nsec),
        changed: time(stat.st_ctime, stat.st_ctime_nsec),
        target,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::disk::StatvfsProbe;

    fn content(dir: &Path) -> Content {
        content_within(dir, u64::MAX)
    }

    fn content_within(dir: &Path, quota: u64) -> Content {
        fs::create_dir(dir.join("content")).unwrap();
        fs::create_dir(dir.join("aside")).unwrap();
        let disk = DiskPressureGuard::new(dir.to_owned(), Some(0), Arc::new(StatvfsProbe));
        Content::open(dir, disk, Account::new(quota)).unwrap()
    }

    #[tokio::test]
    async fn no_path_leads_out_of_a_volume() {
        let dir = tempfile::tempdir().unwrap();
        let content = content(dir.path());
        fs::write(dir.path().join("secret"), "of the host").unwrap();
        std::os::unix::fs::symlink(dir.path(), dir.path().join("content/out")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("secret"), dir.path().join("content/link")).unwrap();
        for path in ["../secret", "/../../secret", "out/secret", "out/aside", "link/x"] {
            assert!(matches!(content.stat(path).await, Err(VolumeError::PathNotFound(_))), "{path}");
            assert!(content.read(path).await.is_err(), "{path}");
            assert!(content.remove(path).await.is_err(), "{path}");
        }
        assert_eq!(content.stat("link").await.unwrap().kind, Kind::Symlink);
        assert!(content.read("link").await.is_err());
        assert!(content.set("link", Attributes { mode: Some(0o777), ..Attributes::default() }).await.is_err());
        assert!(content.write("out/x", Attributes::default(), true).await.is_err());
        assert!(content.make_dir("out/x", Attributes::default(), true).await.is_err());
        content.remove("out").await.unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("secret")).unwrap(), "of the host");
        // As text it stays below the root.
        content.make_dir("../../up", Attributes::default(), false).await.unwrap();
        assert!(dir.path().join("content/up").is_dir());
    }

    #[tokio::test]
    async fn an_upload_is_whole_or_absent() {
        let dir = tempfile::tempdir().unwrap();
        let content = content(dir.path());
        let mut upload = content.write("/a", Attributes::default(), false).await.unwrap();
        upload.push(b"half").await.unwrap();
        drop(upload);
        assert!(matches!(content.stat("/a").await, Err(VolumeError::PathNotFound(_))));
        assert_eq!(fs::read_dir(dir.path().join("aside")).unwrap().count(), 0, "nothing of it stays");

        let attributes = Attributes { mode: Some(0o640), ..Attributes::default() };
        let mut upload = content.write("/a", attributes, false).await.unwrap();
        upload.push(b"whole").await.unwrap();
        let entry = upload.finish().await.unwrap();
        assert_eq!((entry.size, entry.mode, entry.path.as_str(), entry.name.as_str()), (5, 0o640, "/a", "a"));
        assert!(matches!(content.write("/a", Attributes::default(), false).await, Err(VolumeError::Exists(_))));
        assert!(matches!(content.write("/b/c", Attributes::default(), false).await, Err(VolumeError::PathNotFound(_))));
        let setuid = Attributes { mode: Some(0o4755), ..Attributes::default() };
        assert!(matches!(content.write("/c", setuid, false).await, Err(VolumeError::Mode(_))));
        content.write("/a", Attributes::default(), true).await.unwrap().finish().await.unwrap();
        assert_eq!(content.stat("/a").await.unwrap().size, 0);
    }

    #[test]
    #[expect(clippy::await_holding_lock, reason = "it stands for a count that takes long")]
    fn who_waits_for_a_count_keeps_no_thread() {
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(2).build().unwrap();
        tokio.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let content = content(dir.path());
            let counting = content.0.account.change();
            let make = |n: u32| {
                let content = content.clone();
                tokio::spawn(async move { content.make_dir(&format!("/{n}"), Attributes::default(), false).await })
            };
            let waiting: Vec<_> = (0..8).map(make).collect();
            tokio::task::yield_now().await;
            let read = tokio::time::timeout(std::time::Duration::from_secs(10), content.stat("/")).await;
            read.expect("a thread is left for others").unwrap();
            drop(counting);
            for made in waiting {
                made.await.unwrap().unwrap();
            }
            assert_eq!(content.0.account.used(), Some(9 * usage::LEAST_BYTES));
        });
    }

    #[tokio::test]
    async fn what_cannot_be_measured_is_removed_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let content = content(dir.path());
        content.make_dir("/a", Attributes::default(), false).await.unwrap();
        // Deeper than any path that the system takes.
        let mut at = OwnedFd::from(fs::File::open(dir.path().join("content/a")).unwrap().into_parts().0);
        for _ in 0..20 {
            let name = "x".repeat(250);
            mkdirat(&at, &name, Mode::from_raw_mode(0o700)).unwrap();
            at = rustix::fs::openat(&at, &name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        content.remove("/a").await.unwrap();
        assert!(matches!(content.stat("/a").await, Err(VolumeError::PathNotFound(_))));
        assert_eq!(fs::read_dir(dir.path().join("aside")).unwrap().count(), 0);
        assert_eq!(content.0.account.used(), Some(2 * usage::LEAST_BYTES), "what is not known to be free is nobody's");
    }

    #[tokio::test]
    async fn what_was_counted_change_by_change_is_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let content = content_within(dir.path(), 1 << 30);
        fs::write(dir.path().join("aside/of-a-crash"), vec![1; 1 << 20]).unwrap();
        let put = async |path: &str, bytes: usize| {
            let mut upload = content.write(path, Attributes::default(), true).await.unwrap();
            upload.push(&vec![1; bytes]).await.unwrap();
            upload.finish().await.unwrap();
        };
        content.make_dir("/a/b/c", Attributes::default(), true).await.unwrap();
        for n in 0..200 {
            // Long names, so that the directory grows by blocks.
            put(&format!("/a/{}{n}", "x".repeat(200)), n * 100).await;
        }
        put("/a/b/large", 1 << 20).await;
        put("/a/b/large", 3 << 20).await;
        content.remove("/a/b/c").await.unwrap();
        content.write("/a/half", Attributes::default(), true).await.unwrap().push(&[1; 100]).await.unwrap();
        let again = || {
            let disk = DiskPressureGuard::new(dir.path().to_owned(), Some(0), Arc::new(StatvfsProbe));
            Content::open(dir.path(), disk, Account::new(1 << 30)).unwrap()
        };
        for _ in 0..2 {
            let fresh = again();
            fresh.count().await.unwrap();
            assert_eq!(content.0.account.used(), fresh.0.account.used());
            assert!(!dir.path().join("aside/of-a-crash").exists());
            // Then, of nothing.
            content.remove("/a").await.ok();
        }
        assert_eq!(content.0.account.used(), Some(usage::LEAST_BYTES));
    }
}
