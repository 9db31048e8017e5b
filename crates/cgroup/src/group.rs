//! A group that belongs to whoever holds its guard.

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    Limits,
    names::Inner,
    place::{Place, remove},
};

/// Why a process cannot be limited.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// Somebody has a group of that name.
    #[error("the control group `{name}` has an owner")]
    Owned {
        /// Its name.
        name: String,
    },
    /// The kernel did not take it.
    #[error("cannot use the control group `{}`", path.display())]
    Kernel {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A group of processes. Dropped, it is removed once nobody is in it: at once, or by a later [`Groups::sweep`](crate::Groups::sweep).
#[derive(Debug)]
pub struct Group {
    pub(crate) inner: Arc<Inner>,
    pub(crate) name: String,
    /// Its directories in each tree.
    pub(crate) dirs: Vec<PathBuf>,
    pub(crate) stays: bool,
}

impl Group {
    /// Makes the group, in every tree, with its limits.
    pub(crate) fn make(inner: &Arc<Inner>, name: &str, limits: &Limits) -> Result<Self, GroupError> {
        if !inner.own(name) {
            return Err(GroupError::Owned { name: name.to_owned() });
        }
        let mut group = Self { inner: Arc::clone(inner), name: name.to_owned(), dirs: Vec::new(), stays: false };
        for place in &inner.places {
            // From before it is there, so that it goes if the next step fails.
            group.dirs.push(place.dir.join(name));
            place.limit(name, limits).map_err(|(path, source)| GroupError::Kernel { path, source })?;
        }
        Ok(group)
    }

    /// Files by which a process goes in: it writes `0` to each, while it has one thread. They are closed at exec.
    pub fn entrances(&self) -> Result<Vec<OwnedFd>, GroupError> {
        let open = |place: &Place| {
            let path = place.entrance(&self.name);
            let file = fs_err::OpenOptions::new().write(true).open(&path);
            file.map(|file| file.into_parts().0.into()).map_err(|source| GroupError::Kernel { path, source })
        };
        self.inner.places.iter().map(open).collect()
    }

    /// Its directories, one in each tree.
    pub fn dirs(&self) -> impl Iterator<Item = &Path> {
        self.dirs.iter().map(PathBuf::as_path)
    }

    /// Gives it up without removing it, with processes that live on.
    pub fn release(mut self) {
        self.stays = true;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.stays {
            for dir in &self.dirs {
                remove(dir);
            }
        }
        self.inner.disown(&self.name);
    }
}
