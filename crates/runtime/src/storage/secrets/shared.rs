//! The secrets of hosts that share a catalogue: each has the same ones, read when they are needed.
//!
//! ```text
//!   rule of a sandbox that runs here ─► entry ─► its value, for a second ─► asked anew
//!                                                   └─ nobody answers: goes on with it
//! ```
//!
//! A value is remembered only while a sandbox of this host has a rule that names it, so that what is remembered is bounded by what runs. One that
//! another host has changed is noticed within [`FRESH`]; one that was changed through this host, at once. Where the catalogue is away, whatever
//! value there was is used on: what runs goes on, and nothing new begins.

use std::{
    collections::HashMap,
    error::Error,
    fmt::{self, Debug},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use firkin_causes::chain;
use futures::future::BoxFuture;
use tokio::time::{Instant, timeout};
use zeroize::Zeroizing;

use super::{NewValue, Secret, SecretError, SecretInfo};
use crate::ground::team::{Scope, TeamId};

/// For how long a value is not asked for again.
const FRESH: Duration = Duration::from_secs(1);

/// How long is waited for a value where there is one to go on with. A request of a sandbox waits for it.
const WITHIN: Duration = Duration::from_secs(2);

/// For how long nobody is asked again who did not answer, where there is a value to go on with.
const LEFT_ALONE: Duration = Duration::from_secs(5);

/// Why something of the shared secrets cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SharedError {
    /// Nobody answers, or says no.
    #[error("the secrets of the cluster cannot be read or changed")]
    Store(#[source] Box<dyn Error + Send + Sync>),
    /// It is there, and cannot be opened: it was changed, or is sealed under another secret of the cluster.
    #[error("what is on record of `{0}` was changed, or is sealed under another secret than the cluster's")]
    Unreadable(String),
}

/// What became of a secret that was to be kept. Unless it was kept, nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Added {
    /// It is, durably.
    Kept,
    /// It was before, under the same id.
    Before,
    /// Another one of its team has its name.
    NameTaken,
    /// Its team has as many as it may.
    TooMany,
}

/// Where hosts that share a catalogue have their secrets. What is written is durable when it is answered, and everybody reads it from then on.
///
/// A reference is an id, which counts for the host and for its own team, or a name of the scope's own team, in any case of its letters.
pub trait SharedSecrets: Debug + Send + Sync {
    /// Keeps a new secret, where its team has fewer than `most`.
    fn add(&self, secret: Secret, most: usize) -> BoxFuture<'_, Result<Added, SharedError>>;

    /// Gives a secret another value, and its next version. Of several at the same time, one after the other. None where there is none.
    fn renew<'a>(
        &'a self,
        scope: &'a Scope,
        reference: &'a str,
        new: NewValue,
    ) -> BoxFuture<'a, Result<Option<SecretInfo>, SharedError>>;

    /// The public part of a secret, for which nothing is opened.
    fn look<'a>(&'a self, scope: &'a Scope, reference: &'a str) -> BoxFuture<'a, Result<Option<SecretInfo>, SharedError>>;

    /// A secret with its value.
    fn open<'a>(&'a self, scope: &'a Scope, reference: &'a str) -> BoxFuture<'a, Result<Option<Secret>, SharedError>>;

    /// The public parts of all that the scope sees.
    fn list<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<Vec<SecretInfo>, SharedError>>;

    /// Forgets a secret. Whether there was one.
    fn remove<'a>(&'a self, scope: &'a Scope, reference: &'a str) -> BoxFuture<'a, Result<bool, SharedError>>;

    /// A key that all of the hosts have.
    fn key<'a>(&'a self, name: &'static str) -> BoxFuture<'a, Result<Option<Zeroizing<Vec<u8>>>, SharedError>>;

    /// Has this be that key, unless there is one. The one that there is.
    fn keep_key(&self, name: &'static str, key: Zeroizing<Vec<u8>>) -> BoxFuture<'_, Result<Zeroizing<Vec<u8>>, SharedError>>;
}

/// Whose, and what it is called in a rule.
type Known = (TeamId, String);

/// A value that sandboxes of this host use.
#[derive(Default)]
struct Entry(Mutex<Option<(Instant, Zeroizing<String>)>>);

impl Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Entry")
    }
}

/// Values that are remembered for as long as this is there. Nothing, where they are on this host anyway.
#[derive(Debug, Default)]
pub(crate) struct Held(#[expect(dead_code, reason = "held, not read")] Vec<Arc<Entry>>);

/// Shared secrets, as this host uses them.
#[derive(Debug)]
pub(super) struct Shared {
    rows: Arc<dyn SharedSecrets>,
    known: Mutex<HashMap<Known, Weak<Entry>>>,
    /// When something was last changed through this host: what was asked before is asked again.
    changed: Mutex<Option<Instant>>,
    /// When nobody answered last.
    away: Mutex<Option<Instant>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl From<SharedError> for SecretError {
    fn from(error: SharedError) -> Self {
        match error {
            SharedError::Store(source) => Self::Shared(source),
            SharedError::Unreadable(what) => Self::Unreadable(what),
        }
    }
}

impl Shared {
    pub(super) fn of(rows: Arc<dyn SharedSecrets>) -> Self {
        Self { rows, known: Mutex::default(), changed: Mutex::default(), away: Mutex::default() }
    }

    pub(super) fn rows(&self) -> &dyn SharedSecrets {
        &*self.rows
    }

    /// From now on no value counts that was asked for before.
    pub(super) fn has_changed(&self) {
        *lock(&self.changed) = Some(Instant::now());
    }

    /// Has values be remembered that a team's sandboxes use. Those that are not known yet are, as far as anybody answers.
    pub(super) async fn hold(&self, team: &TeamId, references: &[String]) -> Held {
        let mut held = Vec::new();
        for reference in references {
            let entry = self.entry((team.clone(), reference.clone()));
            if lock(&entry.0).is_none()
                && let Err(error) = self.ask((&Scope::Team(team.clone()), reference), Some(&entry)).await
            {
                tracing::debug!(reference, error = chain(&error), "the value of a secret is not known yet");
            }
            held.push(entry);
        }
        Held(held)
    }

    fn entry(&self, known: Known) -> Arc<Entry> {
        let mut all = lock(&self.known);
        if let Some(entry) = all.get(&known).and_then(Weak::upgrade) {
            return entry;
        }
        all.retain(|_, entry| entry.strong_count() > 0);
        let entry = Arc::<Entry>::default();
        all.insert(known, Arc::downgrade(&entry));
        entry
    }

    /// The value of a secret, for a request that is under way.
    pub(super) async fn value(&self, scope: &Scope, reference: &str) -> Result<Zeroizing<String>, SecretError> {
        let known = (scope.owner(), reference.to_owned());
        let entry = lock(&self.known).get(&known).and_then(Weak::upgrade);
        let had = entry.as_ref().and_then(|entry| lock(&entry.0).clone());
        let Some((asked, value)) = had else { return self.ask((scope, reference), entry.as_deref()).await };
        let is_recent = |at: &Mutex<Option<Instant>>, within: Duration| lock(at).is_some_and(|at| at.elapsed() < within);
        let is_new = asked.elapsed() < FRESH && lock(&self.changed).is_none_or(|changed| changed < asked);
        if is_new || is_recent(&self.away, LEFT_ALONE) {
            return Ok(value);
        }
        let error: Box<dyn Error + Send + Sync> = match timeout(WITHIN, self.ask((scope, reference), entry.as_deref())).await {
            Ok(Err(SecretError::Shared(source))) => source,
            Ok(answer) => return answer,
            Err(late) => late.into(),
        };
        *lock(&self.away) = Some(Instant::now());
        tracing::warn!(
            reference,
            error = chain(&*error),
            "the value of a secret is not asked for: the one that there was is used"
        );
        Ok(value)
    }

    async fn ask(&self, (scope, reference): (&Scope, &str), entry: Option<&Entry>) -> Result<Zeroizing<String>, SecretError> {
        let asked = Instant::now();
        let found = self.rows.open(scope, reference).await;
        let note = |value: Option<(Instant, Zeroizing<String>)>| {
            if let Some(entry) = entry {
                *lock(&entry.0) = value;
            }
        };
        match found {
            Ok(Some(Secret { value, .. })) => {
                note(Some((asked, value.clone())));
                Ok(value)
            }
            Ok(None) => {
                note(None);
                Err(SecretError::NotFound(reference.to_owned()))
            }
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    };

    use jiff::Timestamp;
    use tokio::time::advance;

    use super::*;

    /// One secret, `key`, which others change.
    #[derive(Debug, Default)]
    struct Row {
        value: Mutex<Option<String>>,
        is_away: AtomicBool,
        is_changed: AtomicBool,
        asked: AtomicUsize,
    }

    impl Row {
        fn set(&self, value: Option<&str>) {
            *lock(&self.value) = value.map(str::to_owned);
        }
    }

    impl SharedSecrets for Row {
        fn open<'a>(&'a self, _: &'a Scope, reference: &'a str) -> BoxFuture<'a, Result<Option<Secret>, SharedError>> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            let (id, name, now) = (String::new(), reference.to_owned(), Timestamp::UNIX_EPOCH);
            let info = SecretInfo {
                id,
                owner: TeamId::first(),
                name,
                version: 1,
                metadata: BTreeMap::new(),
                created_at: now,
                updated_at: now,
            };
            Box::pin(async move {
                if self.is_away.load(Ordering::SeqCst) {
                    return Err(SharedError::Store("nobody answers".into()));
                }
                if self.is_changed.load(Ordering::SeqCst) {
                    return Err(SharedError::Unreadable(reference.to_owned()));
                }
                let value = lock(&self.value).clone();
                Ok(value.map(|value| Secret { info, value: Zeroizing::new(value) }))
            })
        }

        fn add(&self, _: Secret, _: usize) -> BoxFuture<'_, Result<Added, SharedError>> {
            unreachable!("nothing is added here")
        }

        fn renew<'a>(&'a self, _: &'a Scope, _: &'a str, _: NewValue) -> BoxFuture<'a, Result<Option<SecretInfo>, SharedError>> {
            unreachable!("others change it")
        }

        fn look<'a>(&'a self, _: &'a Scope, _: &'a str) -> BoxFuture<'a, Result<Option<SecretInfo>, SharedError>> {
            unreachable!("a value is wanted")
        }

        fn list<'a>(&'a self, _: &'a Scope) -> BoxFuture<'a, Result<Vec<SecretInfo>, SharedError>> {
            unreachable!("a value is wanted")
        }

        fn remove<'a>(&'a self, _: &'a Scope, _: &'a str) -> BoxFuture<'a, Result<bool, SharedError>> {
            unreachable!("others change it")
        }

        fn key<'a>(&'a self, _: &'static str) -> BoxFuture<'a, Result<Option<Zeroizing<Vec<u8>>>, SharedError>> {
            unreachable!("a value is wanted")
        }

        fn keep_key(&self, _: &'static str, _: Zeroizing<Vec<u8>>) -> BoxFuture<'_, Result<Zeroizing<Vec<u8>>, SharedError>> {
            unreachable!("a value is wanted")
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_value_is_that_of_a_second_ago_at_most_and_goes_on_where_nobody_answers() {
        let row = Arc::new(Row::default());
        row.set(Some("first"));
        let shared = Shared::of(Arc::clone(&row) as _);
        let team = TeamId::first();
        let scope = Scope::Team(team.clone());
        let value = async || shared.value(&scope, "key").await.map(|value| value.to_string());
        let asked = || row.asked.swap(0, Ordering::SeqCst);

        let held = shared.hold(&team, &["key".to_owned()]).await;
        assert_eq!((asked(), value().await.unwrap(), asked()), (1, "first".into(), 0), "it is known from the start");
        row.set(Some("second"));
        advance(FRESH).await;
        assert_eq!((value().await.unwrap(), asked(), value().await.unwrap(), asked()), ("second".into(), 1, "second".into(), 0));
        // Who changed it through this host has it at once.
        row.set(Some("third"));
        shared.has_changed();
        assert_eq!(value().await.unwrap(), "third");

        // Nobody answers: whoever runs goes on, and does not wait each time.
        row.is_away.store(true, Ordering::SeqCst);
        advance(Duration::from_secs(24 * 3600)).await;
        asked();
        for _ in 0..3 {
            assert_eq!(value().await.unwrap(), "third");
        }
        assert_eq!(asked(), 1);
        // But who has no rule that names it here has nothing to go on with.
        assert!(matches!(shared.value(&scope, "other").await.unwrap_err(), SecretError::Shared(_)));
        row.is_away.store(false, Ordering::SeqCst);
        row.set(Some("fourth"));
        advance(LEFT_ALONE).await;
        assert_eq!(value().await.unwrap(), "fourth");

        // What is gone, or cannot be opened, is not used any more.
        row.is_changed.store(true, Ordering::SeqCst);
        advance(FRESH).await;
        assert!(matches!(value().await.unwrap_err(), SecretError::Unreadable(name) if name == "key"));
        row.is_changed.store(false, Ordering::SeqCst);
        row.set(None);
        assert!(matches!(value().await.unwrap_err(), SecretError::NotFound(_)));
        row.is_away.store(true, Ordering::SeqCst);
        assert!(matches!(value().await.unwrap_err(), SecretError::Shared(_)), "it was gone before nobody answered");

        drop(held);
        row.is_away.store(false, Ordering::SeqCst);
        let _held = shared.hold(&team, &["another".to_owned()]).await;
        assert_eq!(lock(&shared.known).len(), 1, "nothing is remembered that no sandbox uses");
    }
}
