//! Files that guests have open. What was removed lives on for them, and its room is given back when the last has closed it.

use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::{fs::OFlags, io::Errno};

use crate::tree::{Share, stat_of};

/// Files that all guests of one directory have open at once, each of which costs the host a descriptor. What is opened beyond them
/// is opened anew for each read and write, and is gone when it is removed.
const MAX_OPEN: usize = 4096;

/// The open files of one directory, by number.
#[derive(Debug, Default)]
pub(crate) struct OpenFiles(Mutex<HashMap<u64, Opened>>);

#[derive(Debug)]
struct Opened {
    times: u64,
    /// Whether its last name went through here, and what it takes was not given back yet.
    is_owed: bool,
    file: Arc<OwnedFd>,
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

    /// Puts off what is given back for it until it is closed. Whether that is so: not for what nobody has open.
    pub(crate) fn put_off(&self, node: u64) -> bool {
        locked(&self.0).get_mut(&node).map(|opened| opened.is_owed = true).is_some()
    }
}

impl Share {
    /// A file to read and write: the open one, or one that is opened for this.
    pub(crate) fn file(&self, node: u64) -> Result<Arc<OwnedFd>, Errno> {
        if let Some(opened) = locked(&self.opened.0).get(&node) {
            return Ok(Arc::clone(&opened.file));
        }
        Ok(Arc::new(self.open(node, OFlags::RDWR)?.fd))
    }

    /// Opens a file for a guest until it closes it as often.
    pub(crate) fn open_for(&self, here: &OpenHere, node: u64, file: &Arc<OwnedFd>) {
        let mut all = locked(&self.opened.0);
        if all.len() >= MAX_OPEN && !all.contains_key(&node) {
            return;
        }
        all.entry(node).or_insert_with(|| Opened { times: 0, is_owed: false, file: Arc::clone(file) }).times += 1;
        *locked(&here.0).entry(node).or_default() += 1;
    }

    /// Closes it once.
    pub(crate) fn close_for(&self, here: &OpenHere, node: u64) -> Result<(), Errno> {
        {
            let mut here = locked(&here.0);
            // It was opened before its guest was connected anew.
            let Some(times) = here.get_mut(&node) else { return Ok(()) };
            *times -= 1;
            if *times == 0 {
                here.remove(&node);
            }
        }
        self.close(node, 1)
    }

    /// Closes all that a guest has open.
    pub(crate) fn close_all(&self, here: &OpenHere) -> Result<(), Errno> {
        let open = std::mem::take(&mut *locked(&here.0));
        open.into_iter().try_for_each(|(node, times)| self.close(node, times))
    }

    fn close(&self, node: u64, times: u64) -> Result<(), Errno> {
        let file = {
            let mut all = locked(&self.opened.0);
            let Some(opened) = all.get_mut(&node) else { return Ok(()) };
            opened.times = opened.times.saturating_sub(times);
            if opened.times > 0 {
                return Ok(());
            }
            all.remove(&node).filter(|opened| opened.is_owed).map(|opened| opened.file)
        };
        let Some(file) = file else { return Ok(()) };
        let stat = stat_of(&*file)?;
        // It was removed while it was open, and goes now.
        let before = self.size(&stat);
        let mut file = Some(file);
        self.room.change(0, &mut || {
            drop(file.take());
            Ok(crate::Sizes { before, after: 0 })
        })
    }
}
