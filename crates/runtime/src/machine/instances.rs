//! Instance directories: each belongs to one session while it exists, and what belongs to none can be told at any time.
//!
//! A name is registered before its directory is made, and until after it is removed. So a directory that is seen first, and
//! whose name is not registered when asked about afterwards, has no owner: a session that is just being launched is never
//! taken for one that was left behind.
//!
//! They are the server's alone. Machines have their files and sockets as descriptors, so that one that was taken over by its guest
//! finds no directory in which it could put anything in the way of the server.

use std::{
    collections::HashSet,
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use fs_err as fs;

/// The directory that holds them. Clones share who owns what.
#[derive(Debug, Clone)]
pub(crate) struct Instances {
    root: PathBuf,
    owned: Arc<Mutex<HashSet<String>>>,
}

/// A session's own directory, removed on drop.
#[derive(Debug)]
pub(crate) struct InstanceDir {
    path: PathBuf,
    name: String,
    owned: Arc<Mutex<HashSet<String>>>,
    stays: bool,
}

impl Instances {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root, owned: Arc::default() }
    }

    /// Where the directory `name` is, whether or not it exists.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Makes the directory `name`, which only this server may enter.
    pub(crate) fn create(&self, name: &str) -> io::Result<InstanceDir> {
        let path = self.path(name);
        let taken = || io::Error::new(io::ErrorKind::AlreadyExists, "the instance has an owner");
        if !lock(&self.owned).insert(name.to_owned()) {
            return Err(taken());
        }
        if let Err(error) = std::fs::DirBuilder::new().mode(0o700).create(&path) {
            // What is there already is not ours to remove.
            lock(&self.owned).remove(name);
            return Err(error);
        }
        Ok(self.guard(name))
    }

    /// Owns the existing directory `name`, unless someone else does.
    pub(crate) fn adopt(&self, name: &str) -> Option<InstanceDir> {
        let mut owned = lock(&self.owned);
        let is_free = self.root.join(name).is_dir() && owned.insert(name.to_owned());
        drop(owned);
        is_free.then(|| self.guard(name))
    }

    /// Owns what nobody owns, at most `limit` of them. Dropping them removes them.
    pub(crate) fn orphans(&self, limit: usize) -> io::Result<Vec<InstanceDir>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.root)? {
            let name = entry?.file_name();
            found.extend(name.to_str().and_then(|name| self.adopt(name)));
            if found.len() == limit {
                break;
            }
        }
        Ok(found)
    }

    fn guard(&self, name: &str) -> InstanceDir {
        InstanceDir { path: self.root.join(name), name: name.to_owned(), owned: Arc::clone(&self.owned), stays: false }
    }
}

impl InstanceDir {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives it up without removing it, with a machine that lives on.
    pub(crate) fn release(mut self) {
        self.stays = true;
    }
}

impl Drop for InstanceDir {
    fn drop(&mut self) {
        if !self.stays
            && let Err(error) = firkin_files::remove_tree(&self.path)
        {
            tracing::warn!(%error, "cannot remove an instance directory");
        }
        lock(&self.owned).remove(&self.name);
    }
}

fn lock(owned: &Mutex<HashSet<String>>) -> MutexGuard<'_, HashSet<String>> {
    // Each holder makes one change, so a poisoned set is a whole one.
    owned.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dirs: &[InstanceDir]) -> Vec<&str> {
        dirs.iter().map(|dir| dir.name.as_str()).collect()
    }

    #[test]
    fn only_what_nobody_owns_is_an_orphan() {
        let root = tempfile::tempdir().unwrap();
        let instances = Instances::new(root.path().to_owned());
        let own = instances.create("own").unwrap();
        for left in ["left", "adopted"] {
            fs::create_dir(root.path().join(left)).unwrap();
        }
        let adopted = instances.adopt("adopted").unwrap();
        assert!(instances.adopt("own").is_none() && instances.adopt("missing").is_none());
        let orphans = instances.orphans(9).unwrap();
        assert_eq!(names(&orphans), ["left"]);
        assert!(instances.orphans(9).unwrap().is_empty(), "they have an owner now");
        assert!(instances.create("left").is_err());
        drop((orphans, adopted));
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
        drop(own);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_directory_that_was_there_is_not_removed_by_whoever_wanted_the_name() {
        let root = tempfile::tempdir().unwrap();
        let instances = Instances::new(root.path().to_owned());
        fs::create_dir(root.path().join("a")).unwrap();
        assert!(instances.create("a").is_err());
        assert_eq!(names(&instances.orphans(9).unwrap()), ["a"]);
    }

    #[test]
    fn one_pass_is_bounded() {
        let root = tempfile::tempdir().unwrap();
        let instances = Instances::new(root.path().to_owned());
        (0..5).for_each(|n| fs::create_dir(root.path().join(n.to_string())).unwrap());
        assert_eq!(instances.orphans(2).unwrap().len(), 2);
        assert_eq!(instances.orphans(9).unwrap().len(), 3);
    }
}
