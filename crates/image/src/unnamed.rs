//! Which root images of a cache go: those that nothing stands on any more, of all who use the cache.
//!
//! ```text
//!   <dir>/users/since           made with the first entry below: of what is older it is not known who uses it
//!   <dir>/users/<digest>        the state directory of one server, written when that starts
//!   <dir>/locks/<kind>-<key>    its time is that of the last use of the entry; held while the entry is made, or taken away
//! ```
//!
//! A cache is shared by all servers of a host, also by those that do not run now, and what is paused in their state directories stands on
//! images here. So servers leave their names, and an image goes only if none of their state directories names it. Where one of them
//! cannot be read, or is not there (a disk that is not mounted), nothing goes until its server has not run for [`MISSED`]: while it runs, it
//! leaves its name again each day.
//! What is new or was asked for lately stays too: a build that is under way stands on it and is on no record. The newest image of each
//! recipe is what the next build begins with.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use firkin_files::private;
use fs_err as fs;
use nix::fcntl::{Flock, FlockArg};

use crate::{
    cache::{Cache, made},
    erofs, oci, rootfs,
};

/// An image that nothing names goes this long after it was made or last asked for: no build takes days.
const UNUSED: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// How long a state directory that is not there may be somewhere else.
const MISSED: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// The longest path of a state directory.
const MAX_PATH_BYTES: u64 = 4096;

const USERS: &str = "users";
const SINCE: &str = "since";

/// Kinds of entries that are root images.
const KINDS: [&str; 3] = [rootfs::KIND, oci::KIND, erofs::KIND];

/// Leaves the name of a server that uses the cache. To be called before it takes anything from there.
pub fn register_user(cache: &Cache, state_dir: &Path) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt as _;
    let users = cache.dir().join(USERS);
    fs::create_dir_all(&users)?;
    // Its time is all that it says, and stays that of the first: several servers may begin with one cache at once.
    fs::OpenOptions::new().write(true).create(true).truncate(false).open(users.join(SINCE))?;
    let path = state_dir.as_os_str().as_bytes();
    private::replace(&users.join(&blake3::hash(path).to_hex()[..32]), path, private::PRIVATE)
}

/// Removes root images that nothing stands on. `named` says which files a state directory names, and that it is not there
/// ([`io::ErrorKind::NotFound`]). Gives the entries that went. Blocks.
pub fn remove_unnamed_roots(
    cache: &Cache,
    now: SystemTime,
    named: impl Fn(&Path) -> io::Result<HashSet<PathBuf>>,
) -> io::Result<Vec<PathBuf>> {
    let users = cache.dir().join(USERS);
    let Some(since) = made(&users.join(SINCE)) else { return Ok(Vec::new()) };
    let is_old = |path: &Path| is_past(path, now, UNUSED);
    let mut unnamed: Vec<_> = candidates(cache).into_iter().filter(|entry| made(entry) > Some(since) && is_old(entry)).collect();
    if unnamed.is_empty() {
        return Ok(unnamed);
    }
    let all_named = || -> io::Result<HashSet<PathBuf>> {
        let mut all = HashSet::new();
        for (user, state_dir) in state_dirs(&users)? {
            match named(&state_dir) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && is_past(&user, now, MISSED) => {}
                files => all.extend(files?),
            }
        }
        Ok(all)
    };
    let names = |files: &HashSet<PathBuf>, entry: &Path| files.iter().any(|file| file.starts_with(entry));
    let files = all_named()?;
    unnamed.retain(|entry| !names(&files, entry));
    let mut gone = Vec::new();
    for entry in unnamed {
        // Asked again once nobody can take it any more: a directory changes while it is read.
        if remove(cache, &entry, is_old, || Ok(names(&all_named()?, &entry)))? {
            gone.push(entry);
        }
    }
    Ok(gone)
}

/// Entries that are not the newest of their recipe.
fn candidates(cache: &Cache) -> Vec<PathBuf> {
    let mut newest: HashMap<(usize, String), (u32, PathBuf)> = HashMap::new();
    let mut older = Vec::new();
    for (kind, name) in KINDS.into_iter().enumerate() {
        for entry in cache.list(name) {
            let Some(key) = entry.file_name().and_then(|key| key.to_str()) else { continue };
            let (recipe, number) = match key.split_once('-') {
                Some((recipe, number)) => (recipe, number.parse().unwrap_or(0)),
                None => (key, 0),
            };
            // What was asked of a registry or made of another image has a recipe for each: it is made again when it is asked for.
            if KINDS[kind] != rootfs::KIND {
                older.push(entry);
                continue;
            }
            let this = (number, entry.clone());
            match newest.entry((kind, recipe.to_owned())) {
                std::collections::hash_map::Entry::Vacant(free) => drop(free.insert(this)),
                std::collections::hash_map::Entry::Occupied(mut there) if there.get().0 < number => {
                    older.push(there.insert(this).1);
                }
                std::collections::hash_map::Entry::Occupied(_) => older.push(entry),
            }
        }
    }
    older
}

fn is_past(path: &Path, now: SystemTime, age: Duration) -> bool {
    made(path).is_some_and(|at| now.duration_since(at).is_ok_and(|since| since >= age))
}

/// All that use the cache: what they left here, and their state directories.
fn state_dirs(users: &Path) -> io::Result<Vec<(PathBuf, PathBuf)>> {
    use std::os::unix::ffi::OsStringExt as _;
    let mut found = Vec::new();
    for user in fs::read_dir(users)? {
        let user = user?.path();
        if user.file_name().is_some_and(|name| name == SINCE) || user.extension().is_some() {
            continue;
        }
        let Some(path) = private::read(&user, MAX_PATH_BYTES)? else { continue };
        found.push((user, PathBuf::from(std::ffi::OsString::from_vec(path))));
    }
    Ok(found)
}

/// Takes an entry away, unless somebody makes it or has asked for it lately. Whether it went.
fn remove(
    cache: &Cache,
    entry: &Path,
    is_old: impl Fn(&Path) -> bool,
    is_named: impl FnOnce() -> io::Result<bool>,
) -> io::Result<bool> {
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let name = format!("{}-{}", name(entry.parent().unwrap_or(entry)), name(entry));
    let lock = cache.dir().join("locks").join(&name);
    let made = fs::OpenOptions::new().write(true).create_new(true).open(&lock);
    let is_new = made.is_ok();
    let file = match made {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => fs::OpenOptions::new().write(true).open(&lock),
        made => made,
    };
    let file: File = file?.into_parts().0;
    let before = file.metadata()?.modified()?;
    if !is_new && !is_old(&lock) {
        return Ok(false);
    }
    let Ok(_held) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else { return Ok(false) };
    // As what a killed build leaves, which the next start takes away if this is killed too.
    let aside = cache.dir().join("tmp").join(format!("{name}.gone"));
    fs::rename(entry, &aside)?;
    let is_wanted = fs::metadata(&lock).and_then(|now| now.modified()).map(|now| now != before);
    if !matches!((is_wanted, is_named()), (Ok(false), Ok(false))) {
        // Asked for at this moment, or named by now: who asks waits for the lock, and finds it.
        fs::rename(&aside, entry)?;
        return Ok(false);
    }
    File::open(entry.parent().unwrap_or(entry))?.sync_all()?;
    firkin_files::remove_tree(&aside)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    struct Bench {
        dir: tempfile::TempDir,
        cache: Cache,
    }

    impl Bench {
        async fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let cache = Cache::open(&dir.path().join("cache")).await.unwrap();
            Self { dir, cache }
        }

        fn entry(&self, kind: &str, key: &str) -> PathBuf {
            let entry = self.cache.dir().join(kind).join(key);
            fs::create_dir_all(&entry).unwrap();
            fs::write(entry.join("image"), "").unwrap();
            entry
        }

        fn user(&self, name: &str, named: &[&Path]) -> PathBuf {
            let state_dir = self.dir.path().join(name);
            fs::create_dir_all(&state_dir).unwrap();
            let text: Vec<_> = named.iter().map(|entry| entry.join("image").display().to_string()).collect();
            fs::write(state_dir.join("named"), text.join("\n")).unwrap();
            register_user(&self.cache, &state_dir).unwrap();
            state_dir
        }

        fn gone_after(&self, days: u32) -> io::Result<HashSet<PathBuf>> {
            let named = |dir: &Path| Ok(fs::read_to_string(dir.join("named"))?.lines().map(PathBuf::from).collect());
            Ok(remove_unnamed_roots(&self.cache, SystemTime::now() + DAY * days, named)?.into_iter().collect())
        }
    }

    #[tokio::test]
    async fn servers_that_begin_at_once_all_leave_their_names() {
        let bench = Bench::new().await;
        let (cache, together) = (&bench.cache, std::sync::Barrier::new(16));
        let since = bench.cache.dir().join(USERS).join(SINCE);
        std::thread::scope(|scope| {
            for server in 0..16 {
                let together = &together;
                scope.spawn(move || {
                    together.wait();
                    register_user(cache, Path::new(&format!("/state/{server}"))).unwrap();
                });
            }
        });
        assert_eq!(state_dirs(&cache.dir().join(USERS)).unwrap().len(), 16);
        let first = made(&since).unwrap();
        register_user(cache, Path::new("/state/late")).unwrap();
        assert_eq!(made(&since), Some(first));
    }

    #[tokio::test]
    async fn what_no_server_names_goes_once_it_is_old_and_nothing_else() {
        let bench = Bench::new().await;
        let before = bench.entry(oci::KIND, "before");
        assert!(bench.gone_after(100).unwrap().is_empty(), "nobody has said who uses it");
        bench.user("first", &[]);
        // Of a time that is told apart from the register's.
        let since = fs::metadata(bench.cache.dir().join("users/since")).unwrap().modified().unwrap();
        let after = |entry: &Path| File::open(entry).unwrap().set_modified(since + Duration::from_secs(1)).unwrap();
        let [named, unnamed, used] = ["a", "b", "c"].map(|key| bench.entry(oci::KIND, key));
        let erofs = bench.entry(erofs::KIND, "e");
        let [first, second, third] = ["r", "r-1", "r-2"].map(|key| bench.entry(rootfs::KIND, key));
        let kernel = bench.entry("kernel-v2", "k");
        for entry in [&named, &unnamed, &used, &erofs, &first, &second, &third, &kernel] {
            after(entry);
        }
        bench.user("second", &[&named, &first]);
        assert!(bench.gone_after(6).unwrap().is_empty());
        // Asked for since.
        let claimed = bench.cache.claim(oci::KIND, "c", &|_| {}).await.unwrap();
        assert!(matches!(claimed, crate::cache::Claim::Ready(_)));
        let lock = bench.cache.dir().join("locks").join(format!("{}-c", oci::KIND));
        let asked = SystemTime::now() + DAY * 3;
        File::options().write(true).open(lock).unwrap().set_modified(asked).unwrap();
        assert_eq!(bench.gone_after(8).unwrap(), [&unnamed, &erofs, &second].map(Clone::clone).into());
        for (entry, stays) in
            [(&named, true), (&first, true), (&third, true), (&kernel, true), (&before, true), (&unnamed, false)]
        {
            assert_eq!(entry.exists(), stays, "{}", entry.display());
        }
        assert_eq!(bench.gone_after(11).unwrap(), [used].into());
        assert_eq!(fs::read_dir(bench.cache.dir().join("tmp")).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn nothing_goes_while_a_server_cannot_be_asked_or_somebody_makes_it() {
        let bench = Bench::new().await;
        let away = bench.user("away", &[]);
        let since = fs::metadata(bench.cache.dir().join("users/since")).unwrap().modified().unwrap();
        let entry = bench.entry(oci::KIND, "a");
        File::open(&entry).unwrap().set_modified(since + Duration::from_secs(1)).unwrap();
        fs::remove_file(away.join("named")).unwrap();
        assert!(bench.gone_after(29).is_err());
        fs::remove_dir(&away).unwrap();
        assert!(bench.gone_after(29).is_err() && entry.exists());
        let lock = File::create(bench.cache.dir().join("locks").join(format!("{}-a", oci::KIND))).unwrap();
        let held = Flock::lock(lock, FlockArg::LockExclusive).unwrap();
        assert!(bench.gone_after(100).unwrap().is_empty() && entry.exists());
        drop(held);
        assert_eq!(bench.gone_after(100).unwrap(), [entry].into(), "who has been away for so long does not come back");
    }
}
