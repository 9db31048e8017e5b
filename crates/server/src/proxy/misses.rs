//! How often a peer may bear signatures that are nobody's.
//!
//! Finding out that a signature is nobody's costs a digest for each sandbox, and whoever asks has shown nothing. So each peer may
//! be wrong a number of times at once, and then ten times a second; right answers cost it nothing. Peers share a fixed number of
//! places by a digest that nobody can foresee, so no peer takes memory.
//!
//! This host itself is not limited: a reverse proxy on it speaks for all of its clients, and one of them must not shut signed URLs
//! for the others. Whoever is behind one is the proxy's to limit.

use std::{
    array,
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Misses that a peer may have at once: a page full of links that have all just lost their sandbox.
const BURST: u32 = 64;

/// A miss is forgiven after this time.
const FORGIVEN_AFTER: Duration = Duration::from_millis(100);

/// Places that peers share.
const PLACES: usize = 1024;

/// Searches among other nodes that a peer may have under way; this host, who speaks for many, has more.
const SEARCHES: [u8; 2] = [16, 128];

/// The misses of all peers.
#[derive(Debug)]
pub(crate) struct Misses {
    hasher: RandomState,
    /// When all misses of a place will have been forgiven.
    clear_at: Mutex<[Option<Instant>; PLACES]>,
    /// Searches that are under way, by place.
    under_way: Mutex<[u8; PLACES]>,
}

/// A search of a peer, until this is dropped.
#[derive(Debug)]
pub(crate) struct Searching<'a> {
    misses: &'a Misses,
    place: usize,
}

impl Drop for Searching<'_> {
    fn drop(&mut self) {
        self.misses.under_way.lock().unwrap_or_else(PoisonError::into_inner)[self.place] -= 1;
    }
}

impl Default for Misses {
    fn default() -> Self {
        Self { hasher: RandomState::new(), clear_at: Mutex::new(array::from_fn(|_| None)), under_way: Mutex::new([0; PLACES]) }
    }
}

impl Misses {
    /// Whether this peer may ask once more.
    pub(crate) fn may_ask(&self, peer: Option<IpAddr>, now: Instant) -> bool {
        let clear_at = self.clear_at.lock().unwrap_or_else(PoisonError::into_inner);
        clear_at[self.place(peer)].is_none_or(|clear_at| clear_at.saturating_duration_since(now) < FORGIVEN_AFTER * BURST)
    }

    /// Begins a search among other nodes, unless this peer has enough of them under way: what it asks may wait for a node that is away, and has no effect
    /// on whether others may.
    pub(crate) fn search(&self, peer: Option<IpAddr>) -> Option<Searching<'_>> {
        let place = self.place(peer);
        let [most, of_this_host] = SEARCHES;
        let most = if is_this_host(peer) { of_this_host } else { most };
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if under_way[place] >= most {
            return None;
        }
        under_way[place] += 1;
        Some(Searching { misses: self, place })
    }

    /// Takes down that this peer's signature was nobody's.
    pub(crate) fn missed(&self, peer: Option<IpAddr>, now: Instant) {
        let place = self.place(peer);
        if is_this_host(peer) {
            return;
        }
        let mut clear_at = self.clear_at.lock().unwrap_or_else(PoisonError::into_inner);
        let from = clear_at[place].map_or(now, |clear_at| clear_at.max(now));
        clear_at[place] = Some(from + FORGIVEN_AFTER);
    }

    fn place(&self, peer: Option<IpAddr>) -> usize {
        // Whoever has one address of IPv6 has the whole network of it.
        let network = peer.map(|peer| match peer.to_canonical() {
            IpAddr::V4(address) => u64::from(u32::from(address)),
            IpAddr::V6(address) => u64::try_from(u128::from(address) >> 64).unwrap_or_default(),
        });
        usize::try_from(self.hasher.hash_one(network)).unwrap_or_default() % PLACES
    }
}

fn is_this_host(peer: Option<IpAddr>) -> bool {
    peer.is_some_and(|peer| peer.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_has_few_searches_under_way() {
        let misses = Misses::default();
        for (peer, most) in ["192.0.2.1", "127.0.0.1"].into_iter().zip(SEARCHES) {
            let peer = Some(peer.parse().unwrap());
            let mut own: Vec<_> = std::iter::from_fn(|| misses.search(peer)).take(1000).collect();
            assert_eq!(own.len(), usize::from(most));
            own.pop();
            assert!(misses.search(peer).is_some(), "one is over");
        }
    }

    #[test]
    fn a_peer_that_is_wrong_too_often_waits_and_is_forgiven() {
        let (misses, start) = (Misses::default(), Instant::now());
        let peer: Option<IpAddr> = Some("192.0.2.1".parse().unwrap());
        for _ in 0..BURST {
            assert!(misses.may_ask(peer, start));
            misses.missed(peer, start);
        }
        assert!(!misses.may_ask(peer, start));
        let proxy: Option<IpAddr> = Some("::ffff:127.0.0.1".parse().unwrap());
        (0..=BURST).for_each(|_| misses.missed(proxy, start));
        assert!(misses.may_ask(proxy, start), "this host speaks for many");
        let others = (0..=255).filter(|last| misses.may_ask(format!("198.51.100.{last}").parse().ok(), start)).count();
        assert!(others > 200, "{others} others may ask");
        assert!(misses.may_ask(peer, start + FORGIVEN_AFTER * 2));
        let later = start + FORGIVEN_AFTER * BURST * 2;
        misses.missed(peer, later);
        assert!(misses.may_ask(peer, later), "what was forgiven does not count again");
    }
}
