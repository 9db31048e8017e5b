//! The cache: where finished things are kept, and how a thing comes to be there whole or not at all.
//!
//! ```text
//!   <dir>/<kind>/<key>/...          finished entries, never changed after they appear
//!   <dir>/<kind>/<key>-<n>/...      the same made anew: the highest number is used, what stands on an earlier one goes on to
//!   <dir>/tmp/<kind>-<key>.<n>/     an entry being built
//!   <dir>/locks/<kind>-<key>        held (flock) by the one process that builds it
//!   <dir>/logs/<kind>-<key>.log     output of the programs that built it
//!   <dir>/users/<digest>            who uses the cache, so that what nobody uses can go (`unnamed.rs`)
//! ```
//!
//! An entry is built in `tmp`, flushed, and renamed into place: rename is atomic, so a reader needs no lock and a crash leaves
//! nothing but a directory in `tmp`, which whoever next takes the lock removes. The kernel drops a dead process's flock.

use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use fs_err as fs;
use nix::fcntl::{Flock, FlockArg};
use tokio::sync::oneshot;

use crate::progress::{ImageStep, Report, say};

/// How long a build may wait for another process's build of the same entry. The longest build takes some minutes.
const LOCK_DEADLINE: Duration = Duration::from_secs(60 * 60);

/// Why the cache cannot give or take an entry.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The directory cannot be made or is not ours to write to.
    #[error("cannot open the cache `{dir}`")]
    Open {
        /// The cache directory.
        dir: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The lock of an entry cannot be taken.
    #[error("cannot lock the cache entry `{path}`")]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Another process holds the lock of an entry and does not finish.
    #[error("cannot wait any longer for another process that builds `{path}` (waited {} s)", LOCK_DEADLINE.as_secs())]
    Busy {
        /// The lock file.
        path: PathBuf,
    },
    /// The place where an entry is built cannot be made.
    #[error("cannot begin the cache entry `{path}`")]
    Begin {
        /// The entry.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A built entry cannot be flushed or moved into place.
    #[error("cannot publish the cache entry `{path}`")]
    Publish {
        /// The entry.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file system is too full to begin.
    #[error("cannot build `{path}`: {needed_mib} MiB of disk are needed and {free_mib} MiB are free")]
    DiskFull {
        /// The entry.
        path: PathBuf,
        /// Space that the build needs at its peak.
        needed_mib: u64,
        /// Space that the file system has left.
        free_mib: u64,
    },
    /// A finished entry is not as it was built.
    #[error("cannot use the damaged cache entry `{path}`: {reason}; remove it and it will be built anew")]
    Damaged {
        /// The entry.
        path: PathBuf,
        /// The fault.
        reason: String,
    },
}

/// A directory of finished entries. Cheap to clone; several processes may use one directory at once.
#[derive(Debug, Clone)]
pub struct Cache {
    dir: PathBuf,
}

/// The result of [`Cache::claim`].
#[derive(Debug)]
pub enum Claim {
    /// The entry is there.
    Ready(PathBuf),
    /// It is not, and the caller now is the only one who may build it.
    Vacant(Slot),
}

/// The right to build one entry. Dropped without [`Slot::publish`], what was built is removed before the right passes on.
#[derive(Debug)]
pub struct Slot {
    entry: PathBuf,
    work: PathBuf,
    log: PathBuf,
    /// Taken by `publish` and by drop.
    lock: Option<Flock<File>>,
}

impl Cache {
    /// Opens a cache, making the directory if there is none.
    pub async fn open(dir: &Path) -> Result<Cache, CacheError> {
        let wanted = dir.to_path_buf();
        let opened = blocking(move || {
            for part in ["tmp", "locks", "logs"] {
                fs::create_dir_all(wanted.join(part))?;
            }
            // The root file systems of private images lie below. Also of a cache that an earlier version left open.
            private(&wanted)?;
            for inside in fs::read_dir(&wanted)? {
                let inside = inside?;
                if inside.file_type()?.is_dir() {
                    private(&inside.path())?;
                }
            }
            sweep(&wanted)?;
            fs::canonicalize(&wanted)
        });
        let dir = opened.await.map_err(|source| CacheError::Open { dir: dir.to_path_buf(), source })?;
        Ok(Cache { dir })
    }

    /// Where the cache is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The finished entry, if there is one.
    pub fn get(&self, kind: &str, key: &str) -> Option<PathBuf> {
        let path = self.dir.join(kind).join(key);
        path.is_dir().then_some(path)
    }

    /// The finished entries of one kind, in no order.
    pub fn list(&self, kind: &str) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.dir.join(kind)) else { return Vec::new() };
        entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir()).collect()
    }

    /// The directory of entries of one key that was made last, and its number among them: the first has 0.
    pub fn newest(&self, kind: &str, key: &str) -> Option<(u32, PathBuf)> {
        let number = |path: &PathBuf| {
            let after = path.file_name()?.to_str()?.strip_prefix(key)?;
            if after.is_empty() { Some(0) } else { after.strip_prefix('-')?.parse::<u32>().ok() }
        };
        self.list(kind).into_iter().filter_map(|path| Some((number(&path)?, path))).max_by_key(|(number, _)| *number)
    }

    /// The cache in `dir` as it is, if there is one. Nothing is made or changed.
    pub fn existing(dir: &Path) -> Option<Cache> {
        let dir = fs::canonicalize(dir).ok()?;
        dir.is_dir().then_some(Cache { dir })
    }

    /// The finished entry, or the right to build it. Waits for another process that is building it, with a deadline.
    /// Dropping the future gives up the wait.
    pub async fn claim(&self, kind: &str, key: &str, report: Report<'_>) -> Result<Claim, CacheError> {
        let name = format!("{kind}-{key}");
        let lock_path = self.dir.join("locks").join(&name);
        // Before it is looked for: who takes away what is not used sees that somebody asks.
        used(&lock_path).map_err(|source| CacheError::Lock { path: lock_path.clone(), source })?;
        if let Some(path) = self.get(kind, key) {
            return Ok(Claim::Ready(path));
        }
        let lock = lock(&lock_path, &mut || say(report, ImageStep::Wait, format!("another process builds {kind} {key}"))).await?;
        if let Some(path) = self.get(kind, key) {
            return Ok(Claim::Ready(path));
        }
        let (cache, entry) = (self.dir.clone(), self.dir.join(kind).join(key));
        let begun = {
            let entry = entry.clone();
            let name = name.clone();
            blocking(move || begin(&cache, &entry, &name))
        };
        let work = begun.await.map_err(|source| CacheError::Begin { path: entry.clone(), source })?;
        let log = self.dir.join("logs").join(format!("{name}.log"));
        Ok(Claim::Vacant(Slot { entry, work, log, lock: Some(lock) }))
    }
}

/// The key of an entry that is made anew for the `number`th time.
pub(crate) fn numbered(key: &str, number: u32) -> String {
    if number == 0 { key.to_owned() } else { format!("{key}-{number}") }
}

/// Notes that an entry was asked for.
fn used(lock: &Path) -> std::io::Result<()> {
    let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(lock)?;
    file.file().set_modified(SystemTime::now())
}

/// When an entry was made. Nothing is added to one after that.
pub(crate) fn made(entry: &Path) -> Option<SystemTime> {
    fs::metadata(entry).and_then(|metadata| metadata.modified()).ok()
}

impl Slot {
    /// Where to build.
    pub fn path(&self) -> &Path {
        &self.work
    }

    /// Where the programs that build write their output. It stays after the build.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Refuses to begin when the file system has less than `bytes` free.
    pub fn require_free(&self, bytes: u64) -> Result<(), CacheError> {
        let stat = nix::sys::statvfs::statvfs(&self.work)
            .map_err(|errno| CacheError::Begin { path: self.entry.clone(), source: errno.into() })?;
        let free = stat.blocks_available() * stat.fragment_size();
        if free < bytes {
            return Err(CacheError::DiskFull { path: self.entry.clone(), needed_mib: bytes >> 20, free_mib: free >> 20 });
        }
        Ok(())
    }

    /// Flushes what was built and makes it the entry.
    pub async fn publish(mut self) -> Result<PathBuf, CacheError> {
        let (work, entry) = (self.work.clone(), self.entry.clone());
        blocking(move || publish(&work, &entry))
            .await
            .map_err(|source| CacheError::Publish { path: self.entry.clone(), source })?;
        // Nothing is left in `tmp` to remove: the lock may go.
        self.lock = None;
        Ok(self.entry.clone())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let Some(lock) = self.lock.take() else { return };
        let work = std::mem::take(&mut self.work);
        // A tree of a root file system takes a second to remove, so it is done off the runtime. The lock goes with the
        // thread: nobody builds the entry again before the remains are gone. A process that exits earlier leaves them to
        // the next one.
        std::thread::spawn(move || {
            if let Err(error) = firkin_files::remove_tree(&work) {
                tracing::warn!(%error, "cannot remove an unfinished cache entry; the next build tries again");
            }
            drop(lock);
        });
    }
}

/// Lets nobody but its owner into a directory.
fn private(dir: &Path) -> std::io::Result<()> {
    fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))
}

/// Makes everything below `dir` its owner's alone, and files what nobody writes to any more. Links are left as they are.
fn seal(dir: &Path) -> std::io::Result<()> {
    let mut pending = vec![dir.to_path_buf()];
    while let Some(dir) = pending.pop() {
        private(&dir)?;
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                pending.push(entry.path());
            } else if kind.is_file() {
                fs::set_permissions(entry.path(), std::fs::Permissions::from_mode(0o400))?;
            }
        }
    }
    Ok(())
}

/// Removes what killed processes left of any entry: nobody may ever build that one again. Whose lock is held is alive.
fn sweep(cache: &Path) -> std::io::Result<()> {
    for leftover in fs::read_dir(cache.join("tmp"))? {
        let leftover = leftover?.path();
        let Some(name) = leftover.file_stem() else { continue };
        let lock = fs::OpenOptions::new().write(true).create(true).truncate(false).open(cache.join("locks").join(name))?;
        let Ok(_held) = Flock::lock(lock.into_parts().0, FlockArg::LockExclusiveNonblock) else { continue };
        if let Err(error) = firkin_files::remove_tree(&leftover)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "cannot remove what a killed build left behind; the next start tries again");
        }
    }
    Ok(())
}

/// Removes what crashed builds of this entry left, and makes a fresh place to build.
fn begin(cache: &Path, entry: &Path, name: &str) -> std::io::Result<PathBuf> {
    let tmp = cache.join("tmp");
    let prefix = format!("{name}.");
    for leftover in fs::read_dir(&tmp)? {
        let leftover = leftover?;
        if leftover.file_name().to_str().is_some_and(|file| file.starts_with(&prefix))
            && let Err(error) = firkin_files::remove_tree(&leftover.path())
        {
            // Programs of a killed process may not have ended yet: what they still write goes with the next build.
            tracing::warn!(%error, "cannot remove what a crashed build left behind; the next build tries again");
        }
    }
    // The log tells of one build, not of all that ever failed.
    match fs::remove_file(cache.join("logs").join(format!("{name}.log"))) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    if let Some(kind) = entry.parent() {
        fs::create_dir_all(kind)?;
        private(kind)?;
    }
    // What is made inside may be a stranger's tree, with set-user-id programs in it.
    let owners = std::fs::Permissions::from_mode(0o700);
    Ok(tempfile::Builder::new().prefix(&prefix).permissions(owners).tempdir_in(&tmp)?.keep())
}

fn publish(work: &Path, entry: &Path) -> std::io::Result<()> {
    seal(work)?;
    // One flush of the file system instead of one per file: a kernel entry has a thousand of them.
    nix::unistd::syncfs(File::open(work)?)?;
    fs::rename(work, entry)?;
    let kind = entry.parent().unwrap_or(entry);
    File::open(kind)?.sync_all()
}

/// Takes a lock file's flock. The wait is in a thread of its own, since a thread of the runtime's pool that waits for an hour
/// would hold up the runtime's shutdown.
async fn lock(path: &Path, waiting: &mut (dyn FnMut() + Send)) -> Result<Flock<File>, CacheError> {
    let failed = |source: std::io::Error| CacheError::Lock { path: path.to_path_buf(), source };
    let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(failed)?;
    let file = match Flock::lock(file.into_parts().0, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => return Ok(lock),
        Err((file, nix::errno::Errno::EWOULDBLOCK)) => file,
        Err((_, errno)) => return Err(failed(errno.into())),
    };
    waiting();
    let (sender, receiver) = oneshot::channel();
    std::thread::spawn(move || {
        let taken = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| std::io::Error::from(errno));
        // A caller that gave up dropped its end; the lock goes with the value.
        drop(sender.send(taken));
    });
    match tokio::time::timeout(LOCK_DEADLINE, receiver).await {
        Ok(Ok(taken)) => taken.map_err(failed),
        Ok(Err(_)) => Err(failed(std::io::Error::other("the waiting thread ended"))),
        Err(_) => Err(CacheError::Busy { path: path.to_path_buf() }),
    }
}

/// Runs file work off the runtime's threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(std::io::Error::other(error)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn silent(_: crate::Event) {}

    async fn vacant(cache: &Cache) -> Slot {
        match cache.claim("thing", "k1", &silent).await.unwrap() {
            Claim::Vacant(slot) => slot,
            Claim::Ready(path) => panic!("{} is there already", path.display()),
        }
    }

    fn leftovers(cache: &Cache) -> usize {
        fs::read_dir(cache.dir().join("tmp")).unwrap().count()
    }

    #[tokio::test]
    async fn an_entry_appears_whole_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).await.unwrap();
        let slot = vacant(&cache).await;
        fs::write(slot.path().join("a"), b"1").unwrap();
        assert_eq!(cache.get("thing", "k1"), None);
        let entry = slot.publish().await.unwrap();
        assert_eq!(fs::read(entry.join("a")).unwrap(), b"1");
        assert!(matches!(cache.claim("thing", "k1", &silent).await.unwrap(), Claim::Ready(path) if path == entry));
        assert_eq!(cache.list("thing"), vec![entry]);
        assert_eq!(leftovers(&cache), 0);
    }

    #[tokio::test]
    async fn what_is_made_anew_is_used_and_what_was_there_stays() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).await.unwrap();
        assert_eq!(cache.newest("thing", "k"), None);
        // Another key, and an unfinished entry, are not of this one.
        for name in ["k", "k-2", "k-10", "kk-11", "k-x"] {
            fs::create_dir_all(cache.dir().join("thing").join(name)).unwrap();
        }
        assert_eq!(cache.newest("thing", "k"), Some((10, cache.dir().join("thing/k-10"))));
        assert_eq!((numbered("k", 0), numbered("k", 10)), ("k".to_owned(), "k-10".to_owned()));
        assert!(made(&cache.dir().join("thing/k")).is_some() && cache.get("thing", "k").is_some());
    }

    #[test]
    fn looking_for_a_cache_makes_none() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Cache::existing(&dir.path().join("none")).is_none());
        assert!(!dir.path().join("none").exists());
        assert!(Cache::existing(dir.path()).is_some_and(|cache| cache.list("thing").is_empty()));
    }

    #[tokio::test]
    async fn a_failed_build_leaves_nothing_and_can_be_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).await.unwrap();
        let slot = vacant(&cache).await;
        fs::write(slot.path().join("half"), b"1").unwrap();
        drop(slot);
        // The claim waits for the lock, and the lock waits for the removal.
        let again = vacant(&cache).await;
        assert_eq!(leftovers(&cache), 1);
        assert_eq!(fs::read_dir(again.path()).unwrap().count(), 0);
        again.publish().await.unwrap();
    }

    #[tokio::test]
    async fn what_a_killed_process_left_is_removed_and_others_builds_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).await.unwrap();
        fs::create_dir_all(cache.dir().join("tmp/thing-k1.dead/sub")).unwrap();
        fs::create_dir_all(cache.dir().join("tmp/thing-k10.alive")).unwrap();
        vacant(&cache).await.publish().await.unwrap();
        assert!(!cache.dir().join("tmp/thing-k1.dead").exists());
        assert!(cache.dir().join("tmp/thing-k10.alive").exists());
    }

    #[tokio::test]
    async fn the_next_to_open_the_cache_removes_what_nobody_builds_any_more() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).await.unwrap();
        let alive = vacant(&cache).await;
        fs::create_dir_all(cache.dir().join("tmp/other-k2.dead/sub")).unwrap();
        Cache::open(dir.path()).await.unwrap();
        assert!(!cache.dir().join("tmp/other-k2.dead").exists());
        assert!(alive.path().exists());
    }

    #[tokio::test]
    async fn another_user_finds_nothing_in_a_cache_that_was_open_before() {
        let dir = tempfile::tempdir().unwrap();
        let open = |path: &Path| fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let entry = dir.path().join("cache/rootfs-v1/k0");
        fs::create_dir_all(&entry).unwrap();
        fs::write(entry.join("root.ext4"), b"a stranger's").unwrap();
        entry.ancestors().take_while(|path| path.starts_with(dir.path())).for_each(open);
        let nobody_reads = || {
            let mut read = std::process::Command::new("setpriv");
            read.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--", "cat"]).arg(entry.join("root.ext4"));
            read.output().expect("setpriv is a part of every Debian").status.success()
        };
        let is_root = nix::unistd::geteuid().is_root();
        assert!(!is_root || nobody_reads(), "the test itself reads as that user");
        Cache::open(&dir.path().join("cache")).await.unwrap();
        assert_eq!(fs::metadata(dir.path().join("cache")).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(!is_root || !nobody_reads());
    }

    /// A stranger's set-user-id program is made inside.
    #[tokio::test]
    async fn no_other_user_can_pass_to_what_is_being_made() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("tmp")).unwrap();
        fs::set_permissions(dir.path().join("tmp"), std::fs::Permissions::from_mode(0o755)).unwrap();
        let cache = Cache::open(dir.path()).await.unwrap();
        let slot = vacant(&cache).await;
        for place in [slot.path(), &cache.dir().join("tmp")] {
            assert_eq!(fs::metadata(place).unwrap().permissions().mode() & 0o777, 0o700, "{}", place.display());
        }
        let entry = slot.publish().await.unwrap();
        assert_eq!(fs::metadata(entry).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn many_claims_build_once() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).await.unwrap();
        let built = Arc::new(AtomicUsize::new(0));
        let claims: Vec<_> = (0..8)
            .map(|_| {
                let (cache, built) = (cache.clone(), Arc::clone(&built));
                tokio::spawn(async move {
                    match cache.claim("thing", "k1", &silent).await.unwrap() {
                        Claim::Ready(path) => path,
                        Claim::Vacant(slot) => {
                            built.fetch_add(1, Ordering::SeqCst);
                            fs::write(slot.path().join("a"), b"1").unwrap();
                            slot.publish().await.unwrap()
                        }
                    }
                })
            })
            .collect();
        for claim in claims {
            assert!(claim.await.unwrap().join("a").exists());
        }
        assert_eq!(built.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_full_disk_is_refused_before_the_build_with_both_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).await.unwrap();
        let slot = vacant(&cache).await;
        slot.require_free(1).unwrap();
        let error = slot.require_free(u64::MAX).unwrap_err();
        assert!(matches!(error, CacheError::DiskFull { needed_mib, .. } if needed_mib == u64::MAX >> 20), "{error}");
    }
}
