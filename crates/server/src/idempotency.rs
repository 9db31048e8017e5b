//! Creates that are asked for twice under one `Idempotency-Key` happen once.
//!
//! Each team has keys of its own: what another one asked for under a key is nothing to it, and takes none of its room. They are
//! remembered in memory: a client repeats a request within seconds. A create that failed, or whose client went away,
//! forgets its key, so the repetition is a new attempt.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use firkin_runtime::team::TeamId;
use firkin_wire::rest;
use http::HeaderMap;
use sha2::{Digest, Sha256};

use crate::error::ApiError;

/// How long an answer is remembered: well past a client's last retry.
const REMEMBERED: Duration = Duration::from_secs(600);

/// Keys of one team that are remembered at once; the oldest gives way.
const MAX_KEYS: usize = 4096;

/// Longest key.
const MAX_KEY_BYTES: usize = 255;

/// Every key in use.
#[derive(Debug, Default)]
pub(crate) struct Keys(Mutex<Teams>);

/// Keys of each team.
type Teams = HashMap<TeamId, HashMap<String, Entry>>;

#[derive(Debug)]
struct Entry {
    request: [u8; 32],
    since: Instant,
    answer: Option<rest::Sandbox>,
}

/// How a request with a key goes on.
#[derive(Debug)]
pub(crate) enum Claim<'a> {
    /// Go ahead, and say how it ended.
    First(Attempt<'a>),
    /// It was done before.
    Done(rest::Sandbox),
}

/// The right to do what a key stands for. Dropped without an answer, the key is free again.
#[derive(Debug)]
pub(crate) struct Attempt<'a> {
    keys: &'a Keys,
    key: Option<(TeamId, String)>,
}

impl Keys {
    /// Claims the request's key, if it has one.
    pub(crate) fn claim(&self, team: &TeamId, headers: &HeaderMap, body: &[u8]) -> Result<Claim<'_>, ApiError> {
        let Some(key) = headers.get("idempotency-key") else {
            return Ok(Claim::First(Attempt { keys: self, key: None }));
        };
        let well_formed = |key: &&str| {
            (1..=MAX_KEY_BYTES).contains(&key.len())
                && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        };
        let key = key
            .to_str()
            .ok()
            .filter(well_formed)
            .ok_or_else(|| ApiError::bad_request("`Idempotency-Key` must be 1 to 255 lower-case letters, digits and `-`"))?;
        let request: [u8; 32] = Sha256::digest(body).into();
        let mut teams = self.teams();
        let entries = teams.entry(team.clone()).or_default();
        match entries.get(key).filter(|entry| entry.since.elapsed() < REMEMBERED) {
            Some(entry) if entry.request != request => return Err(ApiError::idempotency_mismatch()),
            Some(Entry { answer: Some(answer), .. }) => return Ok(Claim::Done(answer.clone())),
            Some(Entry { answer: None, .. }) => return Err(ApiError::idempotency_in_progress()),
            None => {}
        }
        make_room(entries);
        entries.insert(key.to_owned(), Entry { request, since: Instant::now(), answer: None });
        Ok(Claim::First(Attempt { keys: self, key: Some((team.clone(), key.to_owned())) }))
    }

    fn teams(&self) -> MutexGuard<'_, Teams> {
        // Nothing panics between a lock and its unlock here, so a poisoned map is still whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn make_room(entries: &mut HashMap<String, Entry>) {
    if entries.len() < MAX_KEYS {
        return;
    }
    entries.retain(|_, entry| entry.since.elapsed() < REMEMBERED);
    if entries.len() >= MAX_KEYS {
        let oldest = entries.iter().min_by_key(|(_, entry)| entry.since).map(|(key, _)| key.clone());
        if let Some(oldest) = oldest {
            entries.remove(&oldest);
        }
    }
}

impl Attempt<'_> {
    /// It succeeded: later requests with this key get the same answer.
    pub(crate) fn done(mut self, answer: &rest::Sandbox) {
        let Some((team, key)) = self.key.take() else { return };
        if let Some(entry) = self.keys.teams().get_mut(&team).and_then(|entries| entries.get_mut(&key)) {
            entry.answer = Some(answer.clone());
        }
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if let Some((team, key)) = self.key.take()
            && let Some(entries) = self.keys.teams().get_mut(&team)
        {
            entries.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(key: &str) -> HeaderMap {
        HeaderMap::from_iter([(http::HeaderName::from_static("idempotency-key"), key.parse().unwrap())])
    }

    fn answer(id: &str) -> rest::Sandbox {
        rest::Sandbox {
            template_id: "base".into(),
            sandbox_id: id.into(),
            client_id: "c".into(),
            envd_version: "0".into(),
            alias: None,
            envd_access_token: None,
            traffic_access_token: None,
            domain: None,
        }
    }

    #[test]
    fn a_repetition_gets_the_first_answer() {
        let keys = Keys::default();
        let Claim::First(attempt) = keys.claim(&TeamId::first(), &headers("k-1"), b"{}").unwrap() else {
            panic!("the first claim goes ahead")
        };
        assert_eq!(keys.claim(&TeamId::first(), &headers("k-1"), b"{}").unwrap_err().to_body().code, 409);
        attempt.done(&answer("i1"));
        assert!(
            matches!(keys.claim(&TeamId::first(), &headers("k-1"), b"{}").unwrap(), Claim::Done(found) if found.sandbox_id == "i1")
        );
        assert_eq!(keys.claim(&TeamId::first(), &headers("k-1"), b"{ }").unwrap_err().to_body().code, 422);
    }

    #[test]
    fn a_key_is_one_teams() {
        let keys = Keys::default();
        let Claim::First(attempt) = keys.claim(&TeamId::first(), &headers("k"), b"{}").unwrap() else { panic!("it is new") };
        attempt.done(&answer("i1"));
        let other = "b".parse().unwrap();
        assert!(matches!(keys.claim(&other, &headers("k"), b"other").unwrap(), Claim::First(_)), "another's is not there");
    }

    #[test]
    fn a_failed_attempt_frees_its_key() {
        let keys = Keys::default();
        drop(keys.claim(&TeamId::first(), &headers("k"), b"1").unwrap());
        assert!(matches!(keys.claim(&TeamId::first(), &headers("k"), b"2").unwrap(), Claim::First(_)));
    }

    #[test]
    fn malformed_keys_are_refused() {
        let keys = Keys::default();
        for key in ["", "UPPER", "a b", &"a".repeat(256)] {
            assert_eq!(keys.claim(&TeamId::first(), &headers(key), b"").unwrap_err().to_body().code, 400, "{key}");
        }
    }

    #[test]
    fn the_number_of_keys_is_bounded() {
        let keys = Keys::default();
        for n in 0..MAX_KEYS + 10 {
            if let Claim::First(attempt) = keys.claim(&TeamId::first(), &headers(&format!("k{n}")), b"").unwrap() {
                attempt.done(&answer("i"));
            }
        }
        assert_eq!(keys.teams()[&TeamId::first()].len(), MAX_KEYS);
    }
}
