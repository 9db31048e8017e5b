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
static MAX_OF_ALL: LazyLock<u64> =
    LazyLock::new(|| rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(1 << 20) / 8);
static OF_ALL: AtomicU64 = AtomicU64::new(0);

/// One of the descriptors that all directories may have.
#[derive(Debug)]
struct Place;

impl Place {
    fn take() -> Option<Self> {
        OF_ALL.fetch_update(Relaxed, Relaxed, |open| (open < *MAX_OF_ALL).then_some(open + 1)).ok().map(|_| Self)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        OF_ALL.fetch_sub(1, Relaxed);
    }
}

/// The open files of one directory, by number.
#[derive(Debug, Default)]
pub(crate) struct OpenFiles(Mutex<HashMap<u64, Opened>>);

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
pub(crate) struct OpenHere(Mutex<HashMap<u64, u64>>);

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each holder makes one change, so a poisoned table is a whole one.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl OpenFiles {
    /// Whether somebody has it open.
    pub(crate) fn holds(&self, node: u64) -> bool {
        locked(&self.0).contains_key(&node)
    }

    /// An open file.
    pub(crate) fn get(&self, node: u64) -> Option<Arc<OwnedFd>> {
        locked(&self.0).get(&node).map(|opened| Arc::clone(&opened.file))
    }

    /// Puts off what is given back for it until it is closed. Whether that is so: not for what nobody has open.
    pub(crate) fn put_off(&self, node: u64) -> bool {
        locked(&self.0).get_mut(&node).map(|opened| opened.is_owed = true).is_some()
    }

    /// Keeps a file open for a guest, until it closes it as often.
    pub(crate) fn open(&self, here: &OpenHere, node: u64, file: &Arc<OwnedFd>) {
        let mut all = locked(&self.0);
        if all.len() >= MAX_OPEN && !all.contains_key(&node) {
            return;
        }
        let opened = match all.entry(node) {
            Entry::Occupied(there) => there.into_mut(),
            Entry::Vacant(free) => {
                let Some(place) = Place::take() else { return };
                free.insert(Opened { times: 0, is_owed: false, file: Arc::clone(file), place })
            }
        };
        opened.times += 1;
        *locked(&here.0).entry(node).or_default() += 1;
    }

    /// Closes it once. Returns it where that was the last time and what it takes is still owed.
    pub(crate) fn close(&self, here: &OpenHere, node: u64) -> Option<Arc<OwnedFd>> {
        {
            let mut here = locked(&here.0);
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
        let open = std::mem::take(&mut *locked(&here.0));
        open.into_iter().filter_map(|(node, times)| self.close_times(node, times)).collect()
    }

    fn close_times(&self, node: u64, times: u64) -> Option<Arc<OwnedFd>> {
        let mut all = locked(&self.0);
        let opened = all.get_mut(&node)?;
        opened.times = opened.times.saturating_sub(times);
        if opened.times > 0 {
            return None;
        }
        all.remove(&node).filter(|opened| opened.is_owed).map(|opened| opened.file)
    }
}
