//! The API keys that are good now, by digest, in memory: who comes with one is known without asking the database.
//!
//! When a key was last used is told to the database once a minute at most, by a task that nobody waits for.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

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

impl Known {
    fn of(digest: blake3::Hash, record: &KeyRecord) -> Self {
        let caller = Caller { team: record.team.clone(), key: Some(record.id.clone()), scope: record.scope };
        let noted = record.last_used_at.map_or(0, minute);
        Self { digest, caller, expires_at: record.expires_at, used: noted, noted }
    }
}

/// The keys that open something.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    known: Mutex<Vec<Known>>,
    /// How often this server has changed them itself.
    changes: AtomicU64,
}

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
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a key in from now on, unless it is revoked.
    pub(crate) fn add(&self, digest: blake3::Hash, record: &KeyRecord) {
        if record.revoked_at.is_some() {
            return;
        }
        self.changes.fetch_add(1, Ordering::SeqCst);
        self.known().push(Known::of(digest, record));
    }

    /// How often this server has changed them: to be asked before the records are read that [`Keys::renew`] is given.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::SeqCst)
    }

    /// Lets in by what is on record, whichever server recorded it, and by what is on no record. Where this server has changed a key since
    /// `changes` were counted, the records may not have that, and nothing is done.
    pub(crate) fn renew(&self, records: Vec<([u8; 32], KeyRecord)>, changes: u64) {
        let mut known = self.known();
        if self.changes() != changes {
            return;
        }
        let before = std::mem::take(&mut *known);
        let (of_record, kept): (Vec<_>, Vec<_>) = before.into_iter().partition(|known| known.caller.key.is_some());
        let mut of_record: HashMap<_, _> = of_record.into_iter().map(|old| (old.caller.key.clone(), old)).collect();
        *known = kept;
        for (digest, record) in records.into_iter().filter(|(_, record)| record.revoked_at.is_none()) {
            let mut now = Known::of(blake3::Hash::from_bytes(digest), &record);
            if let Some(old) = of_record.remove(&now.caller.key) {
                (now.used, now.noted) = (old.used.max(now.used), old.noted.max(now.noted));
            }
            known.push(now);
        }
    }

    /// Lets in who has a key of the first team that is on no record.
    pub(crate) fn accept(&self, digest: blake3::Hash) {
        let caller = Caller { team: TeamId::first(), key: None, scope: KeyScope::Full };
        self.known().push(Known { digest, caller, expires_at: None, used: 0, noted: 0 });
    }

    /// Lets nobody in by this key any more.
    pub(crate) fn remove(&self, id: &KeyId) {
        self.changes.fetch_add(1, Ordering::SeqCst);
        self.known().retain(|known| known.caller.key.as_ref() != Some(id));
    }

    /// Changes when a key ends.
    pub(crate) fn expire(&self, id: &KeyId, at: Option<Timestamp>) {
        self.changes.fetch_add(1, Ordering::SeqCst);
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

    #[test]
    fn what_another_server_has_recorded_is_good_and_what_it_revoked_is_not() {
        let (digest, own) = (|key: &str| *blake3::hash(key.as_bytes()).as_bytes(), Keys::default());
        own.accept(blake3::hash(b"brought"));
        own.add(blake3::hash(b"first"), &record("a", None));
        let is_good = |key: &str| own.caller(KeyDigest::of(key), at(0)).is_some();
        own.renew(vec![(digest("second"), record("b", None))], own.changes());
        assert!(is_good("brought") && is_good("second") && !is_good("first"));
        let revoked = KeyRecord { revoked_at: Some(at(0)), ..record("b", None) };
        own.renew(vec![(digest("second"), revoked)], own.changes());
        assert!(is_good("brought") && !is_good("second"));
        // What was read before this server made a key says nothing of it.
        let before = own.changes();
        own.add(blake3::hash(b"third"), &record("c", None));
        own.renew(Vec::new(), before);
        assert!(is_good("third"));
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
