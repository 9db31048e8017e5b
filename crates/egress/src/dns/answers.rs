//! Addresses that were given out, for whoever opens them to traffic that tells no name.

use std::{
    collections::HashMap,
    net::Ipv4Addr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use crate::way::{Way, Ways};

/// Addresses that are remembered. When there are more, the one that passes first is forgotten.
const MAX_REMEMBERED: usize = 4096;
/// How long an address is remembered after clients should have forgotten it: programs that looked it up go on using it.
const GRACE: Duration = Duration::from_secs(300);

/// Which addresses were given out under the present way, as a handle that can be shared.
#[derive(Debug, Clone)]
pub struct Answers(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    ways: Ways,
    remembered: Mutex<Remembered>,
    changes: watch::Sender<u64>,
}

/// Until when each is remembered.
#[derive(Debug, Default)]
struct Remembered {
    way: Option<Arc<Way>>,
    until: HashMap<Ipv4Addr, Instant>,
}

impl Answers {
    pub(super) fn new(ways: Ways) -> Self {
        Self(Arc::new(Inner { ways, remembered: Mutex::default(), changes: watch::Sender::new(0) }))
    }

    /// The addresses that were given out under the present way, and may still be in use.
    pub fn addresses(&self) -> Vec<Ipv4Addr> {
        let now = Instant::now();
        self.with(|remembered| {
            remembered.until.retain(|_, until| *until > now);
            remembered.until.keys().copied().collect()
        })
    }

    /// Word of addresses that were not remembered before. Those that pass, and those of a former way, are not told.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// Remembers what is given out under `way`, unless that has passed.
    pub(super) fn remember(&self, way: &Arc<Way>, addresses: &[Ipv4Addr], lifetime: Duration) {
        let now = Instant::now();
        let until = now + lifetime + GRACE;
        let fresh = self.with(|remembered| {
            let present = remembered.way.as_ref().is_some_and(|present| Arc::ptr_eq(present, way));
            let mut fresh = false;
            for address in addresses.iter().filter(|_| present) {
                if remembered.until.len() >= MAX_REMEMBERED && !remembered.until.contains_key(address) {
                    remembered.until.retain(|_, until| *until > now);
                    let first = remembered.until.iter().min_by_key(|(_, until)| **until).map(|(address, _)| *address);
                    if let Some(first) = first.filter(|_| remembered.until.len() >= MAX_REMEMBERED) {
                        remembered.until.remove(&first);
                    }
                }
                fresh |= remembered.until.insert(*address, until).is_none();
            }
            fresh
        });
        if fresh {
            self.0.changes.send_modify(|changes| *changes += 1);
        }
    }

    /// What is remembered under the present way.
    fn with<T>(&self, act: impl FnOnce(&mut Remembered) -> T) -> T {
        let mut remembered = self.0.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        let present = Arc::clone(&self.0.ways.borrow());
        if !remembered.way.as_ref().is_some_and(|way| Arc::ptr_eq(way, &present)) {
            *remembered = Remembered { way: Some(present), until: HashMap::new() };
        }
        act(&mut remembered)
    }
}
