//! What has taken the place of an entry that is gone.
//!
//! A guest's kernel looks a name up, and then asks for what it found by its number. Another guest may have put something else in that place
//! meanwhile, or removed it. On a local disk the one or the other would be opened; here the number means nothing any more. Linux looks again
//! when it is told so (`ESTALE`), but gVisor's kernel tells its program. So for a while it is remembered which name an entry lost last: who
//! asks for the entry is given what has the name now, or is told that nothing has.

use std::{
    collections::VecDeque,
    ffi::{OsStr, OsString},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Names that are remembered of one directory, the last ones: half a MiB at most.
const MAX_NAMES: usize = 1024;

/// For how long. A kernel trusts what it was told of a name for a second, and its request may wait for others.
const LASTING: Duration = Duration::from_secs(10);

/// The names that were taken away last.
#[derive(Debug, Default)]
pub(crate) struct Vacated(Mutex<VecDeque<Name>>);

#[derive(Debug)]
struct Name {
    of: u64,
    parent: u64,
    name: OsString,
    at: Instant,
}

impl Vacated {
    /// `node` has lost this name.
    pub(crate) fn note(&self, node: u64, parent: u64, name: &OsStr) {
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if names.len() >= MAX_NAMES {
            names.pop_front();
        }
        names.push_back(Name { of: node, parent, name: name.to_owned(), at: Instant::now() });
    }

    /// The directory and the name that `node` lost last.
    pub(crate) fn last_of(&self, node: u64) -> Option<(u64, OsString)> {
        let names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let last = names.iter().rev().find(|name| name.of == node).filter(|name| name.at.elapsed() < LASTING);
        last.map(|name| (name.parent, name.name.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_name_counts_and_the_oldest_are_forgotten() {
        let vacated = Vacated::default();
        assert_eq!(vacated.last_of(7), None);
        vacated.note(7, 1, OsStr::new("a"));
        vacated.note(7, 2, OsStr::new("b"));
        assert_eq!(vacated.last_of(7), Some((2, "b".into())));
        for other in 0..MAX_NAMES as u64 {
            vacated.note(100 + other, 1, OsStr::new("c"));
        }
        assert_eq!(vacated.last_of(7), None);
    }
}
