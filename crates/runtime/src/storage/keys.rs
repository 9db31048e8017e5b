//! The API keys that are good now, by digest, in memory: who comes with one is known without asking the database.
//!
//! When a key was last used is told to the database once a minute at most, by a task that nobody waits for.

use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

use crate::{
    ground::{ids::KeyId, team::TeamId},
    store::{KeyRecord, KeyScope},
};

/// Seconds of one use: later ones in them are not told apart.
const MINUTE_S: i64 = 60;

/// Whoever came with a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The team whose key it is.
    pub team: TeamId,
    /// The key. Absent for one that the operator brings at each start, which is on no record.
    pub key: Option<KeyId>,
    /// What it lets its holder do.
    pub scope: KeyScope,
}

/// A key as whoever let somebody in by it may remember it: enough to ask again whether it is good, and not to use it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct KeyDigest(blake3::Hash);

impl KeyDigest {
    /// Of this key, whether or not it is good.
    pub fn of(key: &str) -> Self {
        Self(blake3::hash(key.as_bytes()))
    }
}

impl std::fmt::Debug for KeyDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyDigest").finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Known {
    digest: blake3::Hash,
    caller: Caller,
    expires_at: Option<Timestamp>,
    /// Minutes since 1970: of the last use, and of that which is on record.
    used: i64,
    noted: i64,
}

/// The keys that open something.
#[derive(Debug, Default)]
pub(crate) struct Keys(Mutex<Vec<Known>>);

impl Keys {
    /// Those on record that are not revoked.
    pub(crate) fn of(records: Vec<([u8; 32], KeyRecord)>) -> Self {
        let keys = Self::default();
        for (digest, record) in records {
            keys.add(blake3::Hash::from_bytes(digest), &record);
        }
        keys
    }

    fn known(&self) -> MutexGuard<'_, Vec<Known>> {
        // Each holder makes one change, so a poisoned list is a whole one.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a key in from now on, unless it is revoked.
    pub(crate) fn add(&self, digest: blake3::Hash, record: &KeyRecord) {
        if record.revoked_at.is_some() {
            return;
        }
        let caller = Caller { team: record.team.clone(), key: Some(record.id.clone()), scope: record.scope };
        let noted = record.last_used_at.map_or(0, minute);
        self.known().push(Known { digest, caller, expires_at: record.expires_at, used: noted, noted });
    }

    /// Lets in who has a key of the first team that is on no record.
    pub(crate) fn accept(&self, digest: blake3::Hash) {
        let caller = Caller { team: TeamId::first(), key: None, scope: KeyScope::Full };
        self.known().push(Known { digest, caller, expires_at: None, used: 0, noted: 0 });
    }

    /// Lets nobody in by this key any more.
    pub(crate) fn remove(&self, id: &KeyId) {
        self.known().retain(|known| known.caller.key.as_ref() != Some(id));
    }

    /// Changes when a key ends.
    pub(crate) fn expire(&self, id: &KeyId, at: Option<Timestamp>) {
        self.known().iter_mut().filter(|known| known.caller.key.as_ref() == Some(id)).for_each(|known| known.expires_at = at);
    }

    /// Whose key this is, if it is good at this time.
    pub(crate) fn caller(&self, KeyDigest(digest): KeyDigest, now: Timestamp) -> Option<Caller> {
        let mut known = self.known();
        // No early exit, and digests are compared in constant time: how long this takes does not tell which key is near.
        let found = known.iter_mut().fold(None, |found, known| if known.digest == digest { Some(known) } else { found })?;
        if found.expires_at.is_some_and(|at| at <= now) {
            return None;
        }
        found.used = minute(now);
        Some(found.caller.clone())
    }

    /// Keys that were used since this was last asked, each with the minute.
    pub(crate) fn uses(&self) -> Vec<(KeyId, Timestamp)> {
        let used = |known: &mut Known| {
            let at = Timestamp::from_second(known.used.saturating_mul(MINUTE_S)).ok()?;
            let is_new = known.used > std::mem::replace(&mut known.noted, known.used);
            Some((known.caller.key.clone()?, at)).filter(|_| is_new)
        };
        self.known().iter_mut().filter_map(used).collect()
    }
}

fn minute(at: Timestamp) -> i64 {
    at.as_second().div_euclid(MINUTE_S)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn record(id: &str, expires_at: Option<Timestamp>) -> KeyRecord {
        KeyRecord {
            id: id.parse().unwrap(),
            team: "b".parse().unwrap(),
            name: String::new(),
            scope: KeyScope::Read,
            created_at: None,
            expires_at,
            revoked_at: None,
            last_used_at: None,
        }
    }

    #[test]
    fn a_key_is_good_until_it_ends_or_is_taken_away() {
        let keys = Keys::default();
        keys.add(blake3::hash(b"one"), &record("1", Some(at(100))));
        keys.add(blake3::hash(b"two"), &record("2", None));
        keys.add(blake3::hash(b"gone"), &KeyRecord { revoked_at: Some(at(1)), ..record("3", None) });
        let opens = |key: &str, second: i64| {
            keys.caller(KeyDigest::of(key), at(second)).and_then(|caller| caller.key).map(|id| id.to_string())
        };
        assert_eq!((opens("one", 99), opens("one", 100), opens("gone", 0)), (Some("1".to_owned()), None, None));
        assert_eq!((opens("two", 1 << 30), opens("three", 0)), (Some("2".to_owned()), None));
        keys.expire(&"2".parse().unwrap(), Some(at(5)));
        assert_eq!((opens("two", 4), opens("two", 5)), (Some("2".to_owned()), None));
        keys.remove(&"2".parse().unwrap());
        assert_eq!(opens("two", 4), None);
    }

    #[test]
    fn a_use_is_told_once_a_minute() {
        let keys = Keys::default();
        keys.add(blake3::hash(b"one"), &record("1", None));
        keys.accept(blake3::hash(b"brought"));
        assert_eq!(keys.uses(), []);
        for second in [60, 61, 119] {
            assert!(
                keys.caller(KeyDigest::of("one"), at(second)).is_some()
                    && keys.caller(KeyDigest::of("brought"), at(second)).is_some()
            );
        }
        assert_eq!(keys.uses(), [("1".parse().unwrap(), at(60))]);
        assert!(keys.caller(KeyDigest::of("one"), at(119)).is_some());
        assert_eq!(keys.uses(), []);
        assert!(keys.caller(KeyDigest::of("one"), at(120)).is_some());
        assert_eq!(keys.uses(), [("1".parse().unwrap(), at(120))]);
    }
}
