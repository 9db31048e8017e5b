//! Where sandboxes were found lately, so that not every command asks the database.
//!
//! What is remembered may be wrong: then its node says so (421), and the record is asked again. So nothing depends on how long it is kept
//! but how often the database is asked; and when the database does not answer, what is remembered is used however old it is.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use firkin_runtime::sandbox::SandboxId;

use crate::members::Home;

/// How long an entry is used without asking.
const FRESH: Duration = Duration::from_secs(30);

/// Entries at once: each is some hundred bytes.
const MAX_ENTRIES: usize = 65_536;

/// Sandboxes' homes, as they were last heard.
#[derive(Debug, Default)]
pub(crate) struct Whereabouts(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    homes: HashMap<SandboxId, Entry>,
    /// In which order they came. One that was renewed or forgotten since is there with a number that is no more its own.
    order: VecDeque<(SandboxId, u64)>,
    last: u64,
}

#[derive(Debug)]
struct Entry {
    home: Home,
    since: Instant,
    number: u64,
}

impl Whereabouts {
    /// A home that was heard of so shortly ago that it will do.
    pub(crate) fn lately(&self, id: &SandboxId, now: Instant) -> Option<Home> {
        let known = self.known();
        known.homes.get(id).filter(|entry| now.saturating_duration_since(entry.since) < FRESH).map(|entry| entry.home.clone())
    }

    /// The last that was heard, whenever.
    pub(crate) fn last(&self, id: &SandboxId) -> Option<Home> {
        self.known().homes.get(id).map(|entry| entry.home.clone())
    }

    /// Remembers one that was looked up `since` then, and gives the one that counts: what was heard meanwhile of a later epoch was not there yet when
    /// the record was read, and an answer that was overtaken on its way is no news.
    pub(crate) fn note(&self, id: &SandboxId, home: Home, (since, now): (Instant, Instant)) -> Home {
        let mut known = self.known();
        match known.homes.get(id) {
            Some(entry) if entry.home.epoch > home.epoch && entry.since >= since => entry.home.clone(),
            _ => {
                known.insert(id, home.clone(), now);
                home
            }
        }
    }

    /// Remembers one by what its node has answered, unless a later epoch was heard of.
    pub(crate) fn hear(&self, id: &SandboxId, home: Home, now: Instant) {
        let mut known = self.known();
        if known.homes.get(id).is_none_or(|entry| entry.home.epoch < home.epoch) {
            known.insert(id, home, now);
        }
    }

    /// Forgets one that turned out to be wrong, or to be none.
    pub(crate) fn forget(&self, id: &SandboxId) {
        self.known().homes.remove(id);
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Each holder makes one change, so a poisoned map is a whole one.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn insert(&mut self, id: &SandboxId, home: Home, now: Instant) {
        self.last += 1;
        let number = self.last;
        self.homes.insert(id.clone(), Entry { home, since: now, number });
        self.order.push_back((id.clone(), number));
        self.shrink();
    }

    /// Drops what came first, until there are as many as may be; and what the order has in vain, where that is most of it.
    fn shrink(&mut self) {
        while self.homes.len() > MAX_ENTRIES {
            let Some((id, number)) = self.order.pop_front() else { return };
            if self.homes.get(&id).is_some_and(|entry| entry.number == number) {
                self.homes.remove(&id);
            }
        }
        if self.order.len() > 2 * MAX_ENTRIES {
            let homes = &self.homes;
            self.order.retain(|(id, number)| homes.get(id).is_some_and(|entry| entry.number == *number));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home(node: &str, epoch: u64) -> Home {
        Home { node: node.repeat(20).parse().unwrap(), term: 1, epoch }
    }

    #[test]
    fn an_entry_is_used_for_a_while_and_is_there_for_longer() {
        let (known, start) = (Whereabouts::default(), Instant::now());
        let id = SandboxId::generate();
        known.note(&id, home("a", 3), (start, start));
        assert_eq!(known.lately(&id, start + FRESH / 2), Some(home("a", 3)));
        assert_eq!(known.lately(&id, start + FRESH), None);
        assert_eq!(known.last(&id), Some(home("a", 3)), "for when nobody can be asked");
        let counts = known.note(&id, home("b", 2), (start, start));
        assert_eq!(counts, home("a", 3), "an answer that was overtaken on its way is no news");
        known.note(&id, home("b", 4), (start + FRESH, start + FRESH));
        assert_eq!(known.lately(&id, start + FRESH), Some(home("b", 4)));
        for (node, epoch, counts) in
            [("c", 3, home("b", 4)), ("c", 4, home("b", 4)), ("c", 6, home("c", 6)), ("b", 5, home("c", 6))]
        {
            known.hear(&id, home(node, epoch), start + FRESH);
            assert_eq!(known.last(&id), Some(counts), "an answer of epoch {epoch}");
        }
        // The record itself went back: what was read after all that was heard is so.
        let read = start + 2 * FRESH;
        assert_eq!(known.note(&id, home("b", 4), (read, read)), home("b", 4));
        known.forget(&id);
        assert_eq!(known.last(&id), None);
    }

    #[test]
    fn there_are_as_many_as_may_be_and_the_oldest_go() {
        let (known, now) = (Whereabouts::default(), Instant::now());
        let ids: Vec<SandboxId> = (0..MAX_ENTRIES + 2).map(|_| SandboxId::generate()).collect();
        for id in &ids {
            known.note(id, home("a", 1), (now, now));
        }
        let held = |id: &SandboxId| known.last(id).is_some();
        assert!(!held(&ids[0]) && !held(&ids[1]) && held(&ids[2]) && held(&ids[MAX_ENTRIES + 1]));
        // One that is asked for again and again takes no more room than one.
        for _ in 0..3 * MAX_ENTRIES {
            known.note(&ids[2], home("a", 1), (now, now));
        }
        let known = known.known();
        assert!(known.homes.len() <= MAX_ENTRIES && known.order.len() <= 2 * MAX_ENTRIES + 1, "{}", known.order.len());
    }
}
