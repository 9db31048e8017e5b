//! Files that guests have open. What was removed lives on for them, and its room is given back when the last has closed it.

use std::{
    collections::{HashMap, hash_map::Entry},
    os::fd::OwnedFd,
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// Files that all guests of one directory have open at once, each of which costs the host a descriptor. What is opened beyond them
/// is opened anew for each read and write, and is gone when it is removed.
const MAX_OPEN: usize = 4096;

/// The same of all directories: an eighth of what this process may open, which has connections and machines to open too.
static OF_ALL: LazyLock<Arc<OfAll>> = LazyLock::new(|| {
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(1 << 20) / 8;
    Arc::new(OfAll { most, open: AtomicU64::new(0) })
});

/// What several directories may have open together.
#[derive(Debug)]
struct OfAll {
    most: u64,
    open: AtomicU64,
}

/// One of the descriptors that all directories may have.
#[derive(Debug)]
struct Place(Arc<OfAll>);

impl Place {
    fn take(of: &Arc<OfAll>) -> Option<Self> {
        let taken = of.open.fetch_update(Relaxed, Relaxed, |open| (open < of.most).then_some(open + 1));
        taken.ok().map(|_| Self(Arc::clone(of)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

/// The open files of one directory, by number.
#[derive(Debug)]
pub(crate) struct OpenFiles {
    files: Mutex<HashMap<u64, Opened>>,
    of_all: Arc<OfAll>,
}

impl Default for OpenFiles {
    fn default() -> Self {
        Self::of(&OF_ALL)
    }
}

#[derive(Debug)]
struct Opened {
    times: u64,
    /// Whether its last name went through here, and what it takes was not given back yet.
    is_owed: bool,
    file: Arc<OwnedFd>,
    #[expect(dead_code, reason = "held: it gives the place back")]
    place: Place,
}

/// What one guest has open: closed when it goes.
#[derive(Debug, Default)]
pub(crate) struct OpenHere {
    times: Mutex<HashMap<u64, u64>>,
    /// Of entries that were gone when they were opened: what was opened in their place.
    successors: Mutex<HashMap<u64, u64>>,
}

impl OpenHere {
    /// What is opened as `node` is `successor`, which is open too until `node` is closed.
    pub(crate) fn stands_for(&self, node: u64, successor: u64) {
        locked(&self.successors).insert(node, successor);
    }

    /// What is to be closed now that `node` is, unless it is still open.
    pub(crate) fn stood_for(&self, node: u64) -> Option<u64> {
        let is_open = locked(&self.times).contains_key(&node);
        if is_open { None } else { locked(&self.successors).remove(&node) }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each holder makes one change, so a poisoned table is a whole one.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl OpenFiles {
    fn of(of_all: &Arc<OfAll>) -> Self {
        Self { files: Mutex::default(), of_all: Arc::clone(of_all) }
    }

    /// Whether somebody has it open.
    pub(crate) fn holds(&self, node: u64) -> bool {
        locked(&self.files).contains_key(&node)
    }

    /// An open file.
    pub(crate) fn get(&self, node: u64) -> Option<Arc<OwnedFd>> {
        locked(&self.files).get(&node).map(|opened| Arc::clone(&opened.file))
    }

    /// Puts off what is given back for it until it is closed. Whether that is so: not for what nobody has open.
    pub(crate) fn put_off(&self, node: u64) -> bool {
        locked(&self.files).get_mut(&node).map(|opened| opened.is_owed = true).is_some()
    }

    /// Keeps a file open for a guest, until it closes it as often. Whether it is kept now and was not before.
    pub(crate) fn open(&self, here: &OpenHere, node: u64, file: &Arc<OwnedFd>) -> bool {
        let mut all = locked(&self.files);
        if all.len() >= MAX_OPEN && !all.contains_key(&node) {
            return false;
        }
        let opened = match all.entry(node) {
            Entry::Occupied(there) => there.into_mut(),
            Entry::Vacant(free) => {
                let Some(place) = Place::take(&self.of_all) else { return false };
                free.insert(Opened { times: 0, is_owed: false, file: Arc::clone(file), place })
            }
        };
        opened.times += 1;
        *locked(&here.times).entry(node).or_default() += 1;
        opened.times == 1
    }

    /// Closes it once. Returns it where that was the last time and what it takes is still owed.
    pub(crate) fn close(&self, here: &OpenHere, node: u64) -> Option<Arc<OwnedFd>> {
        {
            let mut here = locked(&here.times);
            // Else it was opened before its guest was connected anew.
            let times = here.get_mut(&node)?;
            *times -= 1;
            if *times == 0 {
                here.remove(&node);
            }
        }
        self.close_times(node, 1)
    }

    /// Closes all that a guest has open, and returns what is owed.
    pub(crate) fn close_all(&self, here: &OpenHere) -> Vec<Arc<OwnedFd>> {
        let open = std::mem::take(&mut *locked(&here.times));
        open.into_iter().filter_map(|(node, times)| self.close_times(node, times)).collect()
    }

    fn close_times(&self, node: u64, times: u64) -> Option<Arc<OwnedFd>> {
        let mut all = locked(&self.files);
        let opened = all.get_mut(&node)?;
        opened.times = opened.times.saturating_sub(times);
        if opened.times > 0 {
            return None;
        }
        all.remove(&node).filter(|opened| opened.is_owed).map(|opened| opened.file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_directories_together_keep_no_more_open_than_there_may_be() {
        let file = Arc::new(OwnedFd::from(fs_err::File::open("/dev/null").unwrap().into_parts().0));
        // A bound of its own: that of the process is other tests' too.
        let most = 2 * MAX_OPEN as u64 + 100;
        let of_all = Arc::new(OfAll { most, open: AtomicU64::new(0) });
        let directories: Vec<_> = (0..3).map(|_| (OpenFiles::of(&of_all), OpenHere::default())).collect();
        let kept = || directories.iter().map(|(opened, _)| locked(&opened.files).len() as u64).sum::<u64>();
        for (opened, here) in &directories {
            for node in 0..MAX_OPEN as u64 + 10 {
                opened.open(here, node, &file);
            }
            assert!(locked(&opened.files).len() <= MAX_OPEN);
        }
        assert_eq!(kept(), most);
        // What is closed makes room, by one or with its guest; what was not kept is closed for nothing.
        let (first, here) = &directories[0];
        let (last, other) = &directories[directories.len() - 1];
        assert!(first.close(here, 0).is_none() && first.close(here, 0).is_none());
        assert!(last.open(other, u64::MAX, &file));
        for (opened, here) in &directories {
            assert!(opened.close_all(here).is_empty());
        }
        assert_eq!(kept(), 0);
        assert!(first.open(here, 1, &file));
        drop(first.close_all(here));
    }
}
