//! Which names of groups have an owner in this process. Groups and who makes them share it, so that a name has one owner at a time.

use std::{
    collections::HashSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::place::Place;

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) places: Vec<Place>,
    owned: Mutex<HashSet<String>>,
}

impl Inner {
    pub(crate) fn new(places: Vec<Place>) -> Self {
        Self { places, owned: Mutex::default() }
    }

    /// Whether the name was free, and is the caller's now.
    pub(crate) fn own(&self, name: &str) -> bool {
        self.names().insert(name.to_owned())
    }

    pub(crate) fn disown(&self, name: &str) {
        self.names().remove(name);
    }

    pub(crate) fn is_owned(&self, name: &str) -> bool {
        self.names().contains(name)
    }

    fn names(&self) -> MutexGuard<'_, HashSet<String>> {
        // Each holder makes one change, so a poisoned set is a whole one.
        self.owned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.places.iter().for_each(Place::give_back);
    }
}
