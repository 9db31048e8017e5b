//! Who may hold a connection.
//!
//! Anybody can open connections and leave them; whoever has a key must get in all the same. So a connection is a stranger's until a
//! valid key, or the token of a sandbox, has come over it. Where there is no room for another, the stranger's that has been idle for
//! longest is closed for it; where none of theirs is idle, one with a key that is: clients open another when they need it, and would
//! get none otherwise. Strangers that are *not* idle may be so many that a reserve is left, and are told to come back later beyond that. One peer may hold so many at once; this host itself is not limited, because a reverse proxy on it speaks for all.

use std::{
    collections::HashMap,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::body::Body;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio_util::sync::CancellationToken;

/// The part of all connections that is kept for those with a key: one in so many.
const RESERVE_PART: usize = 4;

/// Refusals are logged so often at most: whoever causes them must not fill the log.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// All connections of a server.
#[derive(Debug)]
pub(crate) struct Doors {
    limit: usize,
    per_peer: usize,
    open: Mutex<Open>,
    refusals: Tally,
}

#[derive(Debug, Default)]
struct Open {
    last_id: u64,
    places: HashMap<u64, Weak<Entry>>,
}

/// One connection's place, given back by the last clone.
#[derive(Debug, Clone)]
pub(crate) struct Place(Arc<Entry>);

#[derive(Debug)]
struct Entry {
    id: u64,
    /// `None` for this host.
    peer: Option<IpAddr>,
    doors: Arc<Doors>,
    known: AtomicBool,
    /// It has reached a sandbox, whose clients keep connections for long.
    visits: AtomicBool,
    requests: AtomicUsize,
    idle_since: Mutex<Instant>,
    evicted: CancellationToken,
}

impl Doors {
    pub(crate) fn new(limit: usize, per_peer: usize) -> Arc<Self> {
        // One peer alone leaves the reserve too.
        let per_peer = per_peer.min(limit - limit / RESERVE_PART);
        Arc::new(Self { limit, per_peer, open: Mutex::default(), refusals: Tally::default() })
    }

    /// A place for a new connection; `None` where there is none and nobody's could be taken.
    pub(crate) fn enter(self: &Arc<Self>, peer: IpAddr) -> Option<Place> {
        let peer = network(peer);
        let mut open = self.open();
        let places: Vec<_> = open.places.values().filter_map(Weak::upgrade).collect();
        let of_peer = || places.iter().filter(|entry| peer.is_some() && entry.peer == peer);
        let evicted = if of_peer().count() >= self.per_peer {
            Some(longest_idle(of_peer()))
        } else if places.len() >= self.limit {
            Some(longest_idle(places.iter()))
        } else {
            None
        };
        let id = match evicted {
            Some(None) => None,
            Some(Some(entry)) => {
                entry.evicted.cancel();
                // Its place is free from now on, though its task has yet to end.
                open.places.remove(&entry.id);
                Some(open.next())
            }
            None => Some(open.next()),
        };
        let place = id.map(|id| {
            let entry = Arc::new(Entry {
                id,
                peer,
                doors: Arc::clone(self),
                known: AtomicBool::new(false),
                visits: AtomicBool::new(false),
                requests: AtomicUsize::new(0),
                idle_since: Mutex::new(Instant::now()),
                evicted: CancellationToken::new(),
            });
            open.places.insert(id, Arc::downgrade(&entry));
            Place(entry)
        });
        drop(open);
        // Entries that are the last of their connection take the lock when they go.
        drop(places);
        if place.is_none()
            && let Some(count) = self.refusals.count()
        {
            tracing::warn!(count, "refused connections: there are as many as may be");
        }
        place
    }

    /// Whether strangers that are busy have all that is theirs.
    fn strangers_are_many(&self) -> bool {
        let most = self.limit - self.limit / RESERVE_PART;
        let places: Vec<_> = {
            let open = self.open();
            if open.places.len() <= most {
                return false;
            }
            open.places.values().filter_map(Weak::upgrade).collect()
        };
        places.iter().filter(|entry| !entry.is_known() && entry.requests.load(Ordering::Acquire) > 0).count() > most
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn next(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }
}

/// The connection that nothing was asked over for longest, a stranger's if there is one.
fn longest_idle<'a>(entries: impl Iterator<Item = &'a Arc<Entry>>) -> Option<&'a Arc<Entry>> {
    let idle = entries.filter(|entry| entry.requests.load(Ordering::Acquire) == 0);
    idle.min_by_key(|entry| (entry.is_known(), entry.idle_since()))
}

/// A peer as it is counted: whoever has one address of IPv6 has the whole network of it. `None` is this host.
fn network(peer: IpAddr) -> Option<IpAddr> {
    match peer.to_canonical() {
        peer if peer.is_loopback() => None,
        IpAddr::V4(address) => Some(IpAddr::V4(address)),
        IpAddr::V6(address) => Some(IpAddr::V6((u128::from(address) >> 64 << 64).into())),
    }
}

impl Entry {
    fn is_known(&self) -> bool {
        self.known.load(Ordering::Acquire)
    }

    fn idle_since(&self) -> Instant {
        *self.idle_since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.doors.open().places.remove(&self.id);
    }
}

impl Place {
    /// Ends when the connection is to be closed: its place is needed for another, or its client takes nothing.
    pub(crate) async fn evicted(&self) {
        self.0.evicted.cancelled().await;
    }

    /// Closes the connection, whatever is under way over it.
    pub(crate) fn evict(&self) {
        self.0.evicted.cancel();
    }

    /// Whether a key or a token has come over this connection.
    pub(crate) fn is_known(&self) -> bool {
        self.0.is_known()
    }

    /// A valid key or token has come.
    pub(crate) fn know(&self) {
        self.0.known.store(true, Ordering::Release);
    }

    /// A sandbox was reached.
    pub(crate) fn visit(&self) {
        self.0.visits.store(true, Ordering::Release);
    }

    /// How much longer this connection may be idle, if it has shown nothing. Zero is no longer.
    pub(crate) fn patience(&self, idle: Duration) -> Option<Duration> {
        if self.is_known() || self.0.visits.load(Ordering::Acquire) {
            return None;
        }
        let busy = self.0.requests.load(Ordering::Acquire) > 0;
        Some(if busy { idle } else { idle.saturating_sub(self.0.idle_since().elapsed()) })
    }

    /// Whether a request of this stranger must wait for better times.
    pub(crate) fn is_too_many(&self) -> bool {
        !self.is_known() && self.0.doors.strangers_are_many()
    }

    /// Something is under way over this connection until this is dropped.
    pub(crate) fn busy(&self) -> Busy {
        self.0.requests.fetch_add(1, Ordering::AcqRel);
        Busy(self.clone())
    }
}

/// A request, or what it was upgraded to.
#[derive(Debug)]
pub(crate) struct Busy(Place);

impl Drop for Busy {
    fn drop(&mut self) {
        *self.0.0.idle_since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.0.0.requests.fetch_sub(1, Ordering::AcqRel);
    }
}

/// An answer's body: its request is under way until it has ended.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) body: Body,
    /// Held, not read.
    pub(crate) _busy: Busy,
}

impl http_body::Body for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Counts what is not worth a line each.
#[derive(Debug, Default)]
pub(crate) struct Tally(Mutex<(u64, Option<Instant>)>);

impl Tally {
    /// Counts one more. How many there were since the last line, when it is time for another.
    pub(crate) fn count(&self) -> Option<u64> {
        let mut tally = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tally.0 += 1;
        if tally.1.is_some_and(|last| last.elapsed() < LOG_EVERY) {
            return None;
        }
        let count = tally.0;
        *tally = (0, Some(Instant::now()));
        Some(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: &str = "192.0.2.1";

    fn enter(doors: &Arc<Doors>, peer: &str) -> Option<Place> {
        doors.enter(peer.parse().unwrap())
    }

    #[test]
    fn a_full_house_takes_the_place_of_the_stranger_that_is_idle_for_longest() {
        let doors = Doors::new(4, 4);
        let places: Vec<_> = (1..=4).map(|last| enter(&doors, &format!("192.0.2.{last}")).unwrap()).collect();
        places[0].know();
        let _busy = places[1].busy();
        let newcomer = enter(&doors, "192.0.2.5").unwrap();
        let evicted: Vec<_> = places.iter().map(|place| place.0.evicted.is_cancelled()).collect();
        assert_eq!(evicted, [false, false, true, false]);
        newcomer.know();
        places[3].know();
        let _last = enter(&doors, "192.0.2.6").unwrap();
        let evicted: Vec<_> = places.iter().map(|place| place.0.evicted.is_cancelled()).collect();
        assert_eq!(
            evicted,
            [true, false, true, false],
            "no stranger is idle: who has a key and is opens another when it asks again"
        );
        let _all: Vec<_> = [&places[3], &newcomer, &_last].map(|place| place.busy()).into();
        assert!(enter(&doors, "192.0.2.7").is_none(), "who is busy keeps its place");
    }

    #[test]
    fn a_peer_has_so_many_and_this_host_has_all() {
        let doors = Doors::new(8, 2);
        let first = enter(&doors, PEER).unwrap();
        let second = enter(&doors, PEER).unwrap();
        let third = enter(&doors, PEER).unwrap();
        assert!(first.0.evicted.is_cancelled(), "its own place, and nobody else's");
        let _busy = (third.busy(), second.busy());
        assert!(enter(&doors, PEER).is_none());
        assert!(enter(&doors, "2001:db8::1").is_some() && enter(&doors, "2001:db8::2").is_some());
        let own: Vec<_> = (0..6).map(|_| enter(&doors, "::ffff:127.0.0.1").unwrap()).collect();
        assert!(own.iter().all(|place| !place.0.evicted.is_cancelled()));
    }

    #[test]
    fn one_peer_alone_leaves_a_reserve_whatever_it_may_hold() {
        let doors = Doors::new(4, 2048);
        let places: Vec<_> = (0..4).map(|_| enter(&doors, PEER).unwrap()).collect();
        assert!(places[0].0.evicted.is_cancelled(), "the fourth takes a place of its own");
        assert!(enter(&doors, "192.0.2.2").is_some() && !places[1].0.evicted.is_cancelled());
    }

    #[test]
    fn busy_strangers_leave_a_reserve() {
        let doors = Doors::new(8, 8);
        let places: Vec<_> = (0..7).map(|_| enter(&doors, "127.0.0.1").unwrap()).collect();
        let busy: Vec<_> = places.iter().map(Place::busy).collect();
        assert!(places[6].is_too_many());
        places[6].know();
        assert!(!places[6].is_too_many() && !places[5].is_too_many(), "six are theirs, and the seventh is none");
        drop(busy);
        drop(places);
        assert!(doors.open().places.is_empty(), "all is given back");
    }
}
