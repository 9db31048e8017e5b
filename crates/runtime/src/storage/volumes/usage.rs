//! What a volume takes of the disk, and how much it may take.
//!
//! An entry counts as what is allocated to it, and at least as [`LEAST_BYTES`]: otherwise a million empty files would be nothing. A file
//! with several names counts once, until the last of them has gone and no guest has it open any more. Only
//! the API and guests change a volume, so one count holds for as long as the server runs: it is made before the first change, and then every
//! change is added to it. Bytes are taken before they are written and given back once they are gone, so that writers at the same time
//! cannot have the last of them twice.

use std::{
    collections::{HashMap, HashSet},
    ffi::OsStr,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use firkin_share::Share;
use fs_err as fs;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, openat2, statat};

/// What an entry counts as at least: as much of a disk as ext4 has for each inode unless it is told otherwise.
pub(super) const LEAST_BYTES: u64 = 16 << 10;

/// Bytes of a block as `stat` counts them, whatever the file system's own are.
const STAT_BLOCK_BYTES: u64 = 512;

/// What is allocated to a file grows by so much.
const BLOCK_BYTES: u64 = 4096;

/// More than a volume may hold was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OverQuota {
    pub(super) used: u64,
    pub(super) quota: u64,
}

/// The count of one volume.
#[derive(Debug)]
pub(super) struct Account {
    quota: u64,
    /// Nothing before it was counted.
    used: Mutex<Option<u64>>,
    /// Held while the volume is counted, and while a directory of it is changed and looked at before and after.
    changing: Mutex<()>,
    /// Held by who has it counted: the others wait for that without a thread.
    counting: Arc<tokio::sync::Mutex<()>>,
    /// What guests have of the volume.
    guests: Mutex<Weak<Share>>,
}

impl Account {
    pub(super) fn new(quota: u64) -> Arc<Self> {
        let (used, changing, counting, guests) = <(_, _, _, _)>::default();
        Arc::new(Self { quota, used, changing, counting, guests })
    }

    pub(super) fn quota(&self) -> u64 {
        self.quota
    }

    /// What is in use, if that was counted.
    pub(super) fn used(&self) -> Option<u64> {
        *self.counter()
    }

    fn counter(&self) -> MutexGuard<'_, Option<u64>> {
        // Each holder makes one change, so a poisoned counter is a whole one.
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Guests have the volume by this.
    pub(super) fn set_guests(&self, share: &Arc<Share>) {
        // Each holder makes one change, so a poisoned value is a whole one.
        *self.guests.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(share);
    }

    /// Of a file whose last name goes: whether guests have it open, and what it takes is given back when they close it.
    pub(super) fn is_put_off(&self, file: impl AsFd) -> io::Result<bool> {
        let share = self.guests.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        share.map_or(Ok(false), |share| share.puts_off(file))
    }

    /// Held by who changes a directory, so that what it grew by can be told.
    pub(super) fn change(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The right to have it counted, unless that has been done. It is to be kept until that is done, by whoever does it.
    pub(super) async fn to_be_counted(&self) -> Option<tokio::sync::OwnedMutexGuard<()>> {
        if self.used().is_some() {
            return None;
        }
        let counting = Arc::clone(&self.counting).lock_owned().await;
        self.used().is_none().then_some(counting)
    }

    /// Counts what `root` holds unless that is known, and clears `aside` of what uploads left that a crash ended. Blocks.
    pub(super) fn count(&self, root: &OwnedFd, aside: &Path) -> io::Result<()> {
        let _changing = self.change();
        if self.used().is_some() {
            return Ok(());
        }
        for entry in fs::read_dir(aside)? {
            let path = entry?.path();
            let tree = fs::symlink_metadata(&path)?.is_dir();
            if tree { firkin_files::remove_tree(&path)? } else { fs::remove_file(&path)? }
        }
        let bytes = below(root)?;
        *self.counter() = Some(bytes);
        Ok(())
    }

    /// Whether so much could be taken now.
    pub(super) fn has_room(&self, bytes: u64) -> Result<(), OverQuota> {
        self.room(self.used().unwrap_or(0), bytes).map(drop)
    }

    fn room(&self, used: u64, bytes: u64) -> Result<u64, OverQuota> {
        used.checked_add(bytes).filter(|sum| *sum <= self.quota).ok_or(OverQuota { used, quota: self.quota })
    }

    /// Takes bytes, which go back when the guard is dropped.
    pub(super) fn take(self: &Arc<Self>, bytes: u64) -> Result<Taken, OverQuota> {
        let mut taken = Taken { account: Arc::clone(self), bytes: 0 };
        taken.grow_to(bytes)?;
        Ok(taken)
    }

    /// Adds what something turned out to be, where it was `before`. It is there, whether or not it may.
    pub(super) fn became(&self, before: u64, after: u64) {
        let mut used = self.counter();
        *used = used.map(|used| used.saturating_add(after).saturating_sub(before));
    }
}

/// Bytes of a volume that nobody else can have. Dropped, they go back.
#[derive(Debug)]
pub(super) struct Taken {
    account: Arc<Account>,
    bytes: u64,
}

impl Taken {
    /// Takes more, until it is `bytes`.
    pub(super) fn grow_to(&mut self, bytes: u64) -> Result<(), OverQuota> {
        let Some(more) = bytes.checked_sub(self.bytes) else { return Ok(()) };
        let mut used = self.account.counter();
        *used = Some(self.account.room(used.unwrap_or(0), more)?);
        self.bytes = bytes;
        Ok(())
    }

    /// What it was taken for is there and has turned out to be `bytes`.
    pub(super) fn keep(mut self, bytes: u64) {
        self.account.became(self.bytes, bytes);
        self.bytes = 0;
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.account.became(self.bytes, 0);
    }
}

/// What a file of so many bytes counts as, before it is known what is allocated to it.
pub(super) fn of_length(bytes: u64) -> u64 {
    bytes.checked_next_multiple_of(BLOCK_BYTES).unwrap_or(u64::MAX).max(LEAST_BYTES)
}

/// What an entry counts as.
pub(super) fn of(stat: &Stat) -> u64 {
    u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(STAT_BLOCK_BYTES).max(LEAST_BYTES)
}

/// What `root` and all below it count as: a file with several names once. Blocks.
pub(super) fn below(root: impl AsFd) -> io::Result<u64> {
    let mut several = HashSet::new();
    let mut bytes = of(&rustix::fs::fstat(&root)?);
    each_below(root, |_, _, stat| {
        if !has_several_names(stat) || several.insert(stat.st_ino) {
            bytes = bytes.saturating_add(of(stat));
        }
        Ok(())
    })?;
    Ok(bytes)
}

/// What is free once `root` and all below it have gone: nothing of a file that has a name elsewhere too, or that `is_open` says is still in
/// use. Blocks.
pub(super) fn freed_below(root: impl AsFd, is_open: impl Fn(BorrowedFd<'_>, &OsStr) -> io::Result<bool>) -> io::Result<u64> {
    let mut names = HashMap::new();
    let mut bytes = of(&rustix::fs::fstat(&root)?);
    each_below(root, |at, name, stat| {
        let is_last = !has_several_names(stat) || {
            let seen = names.entry(stat.st_ino).or_insert(0);
            *seen += 1;
            *seen == stat.st_nlink
        };
        let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        if is_last && !(is_file && is_open(at, name)?) {
            bytes = bytes.saturating_add(of(stat));
        }
        Ok(())
    })?;
    Ok(bytes)
}

/// Names of a directory are its own entries'.
pub(super) fn has_several_names(stat: &Stat) -> bool {
    stat.st_nlink > 1 && FileType::from_raw_mode(stat.st_mode) != FileType::Directory
}

/// Visits all below `root`, through no link, and by paths that are no longer than those that they were made by.
fn each_below(root: impl AsFd, mut visit: impl FnMut(BorrowedFd<'_>, &OsStr, &Stat) -> io::Result<()>) -> io::Result<()> {
    let mut dirs = vec![PathBuf::new()];
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    while let Some(path) = dirs.pop() {
        let at = if path.as_os_str().is_empty() { Path::new(".") } else { &path };
        let dir = match openat2(&root, at, flags, Mode::empty(), resolve) {
            Err(rustix::io::Errno::NOENT) => continue,
            dir => dir?,
        };
        for entry in Dir::read_from(&dir)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            match statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(rustix::io::Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
                Ok(stat) => {
                    visit(dir.as_fd(), name, &stat)?;
                    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                        dirs.push(path.join(name));
                    }
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(quota: u64, used: u64) -> Arc<Account> {
        let account = Account::new(quota);
        *account.counter() = Some(used);
        account
    }

    #[test]
    fn what_was_taken_goes_back_unless_it_is_kept() {
        let account = counted(100, 60);
        let mut taken = account.take(30).unwrap();
        assert_eq!(account.take(11).unwrap_err(), OverQuota { used: 90, quota: 100 });
        assert_eq!(taken.grow_to(41), Err(OverQuota { used: 90, quota: 100 }));
        taken.grow_to(40).unwrap();
        taken.grow_to(1).unwrap();
        assert_eq!(account.used(), Some(100));
        drop(taken);
        assert_eq!(account.used(), Some(60));
        account.take(40).unwrap().keep(7);
        assert_eq!(account.used(), Some(67));
        assert_eq!(account.take(u64::MAX).unwrap_err().used, 67);
    }

    #[test]
    fn every_entry_counts_and_links_lead_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("a/b/large"), vec![1; 1 << 20]).unwrap();
        fs::File::create(dir.path().join("a/hole")).unwrap().set_len(1 << 40).unwrap();
        std::os::unix::fs::symlink("/usr", dir.path().join("link")).unwrap();
        let bytes = || below(fs::File::open(dir.path()).unwrap().file()).unwrap();
        assert_eq!(bytes(), 5 * LEAST_BYTES + (1 << 20));
        for n in 0..100 {
            fs::write(dir.path().join(n.to_string()), "").unwrap();
        }
        assert_eq!(bytes(), 105 * LEAST_BYTES + (1 << 20));
        for n in 0..100 {
            fs::hard_link(dir.path().join("a/b/large"), dir.path().join(format!("a/b/{n}"))).unwrap();
        }
        assert_eq!(bytes(), 105 * LEAST_BYTES + (1 << 20), "as one file");
    }

    #[test]
    fn a_file_counts_in_blocks_and_at_least_as_an_inode() {
        assert_eq!([0, 1, LEAST_BYTES].map(of_length), [LEAST_BYTES; 3]);
        assert_eq!(of_length(LEAST_BYTES + 1), LEAST_BYTES + BLOCK_BYTES);
        assert_eq!(of_length(u64::MAX), u64::MAX);
    }
}
