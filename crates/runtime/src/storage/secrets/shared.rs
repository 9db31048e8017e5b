//! The secrets of hosts that share a catalogue: each has the same ones, read when they are needed.
//!
//! ```text
//!   rule of a sandbox that runs here ─► entry ─► its value, for a second ─► asked anew
//!                                                   └─ nobody answers: goes on with it
//! ```
//!
//! A value is remembered only while a sandbox of this host has a rule that names it, so that what is remembered is bounded by what runs. One that
//! another host has changed is noticed within [`FRESH`]; one that was changed through this host, at once. Where the catalogue is away, whatever
//! value there was is used on: what runs goes on, and nothing new begins. However many requests a sandbox makes, and whether or not there is a value,
//! the catalogue is asked once at a time and once in [`FRESH`].

use std::{
    collections::HashMap,
    error::Error,
    fmt::{self, Debug},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use firkin_causes::chain;
use futures::future::BoxFuture;
use tokio::{
    sync::Mutex as AsyncMutex,
    time::{Instant, timeout},
};
use zeroize::Zeroizing;

use super::{ID_PREFIX, NewValue, Secret, SecretError, SecretInfo};
use crate::ground::team::{Scope, TeamId};

/// For how long nobody asks again what was answered, also that there is none.
const FRESH: Duration = Duration::from_secs(1);

/// How long is waited for a value where there is one to go on with. A request of a sandbox waits for it.
const WITHIN: Duration = Duration::from_secs(2);

/// For how long nobody is asked again who did not answer.
const LEFT_ALONE: Duration = Duration::from_secs(5);

/// How many are known before those are looked for that nobody uses.
const CUT_FROM: usize = 64;

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

/// What there was of a secret.
#[derive(Clone)]
enum Answer {
    Value(Zeroizing<String>),
    None,
    Unreadable(String),
}

impl Answer {
    fn given(self, reference: &str) -> Result<Zeroizing<String>, SecretError> {
        match self {
            Self::Value(value) => Ok(value),
            Self::None => Err(SecretError::NotFound(reference.to_owned())),
            Self::Unreadable(what) => Err(SecretError::Unreadable(what)),
        }
    }
}

/// What was answered last, and when.
#[derive(Clone)]
struct Had {
    asked: Instant,
    answered: Instant,
    answer: Answer,
}

/// What sandboxes of this host use of one secret.
#[derive(Default)]
struct Entry {
    had: Mutex<Option<Had>>,
    /// Whoever asks: of several at the same time one does, and the others wait for its answer.
    asking: Arc<AsyncMutex<()>>,
}

impl Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Entry")
    }
}

/// Why nobody is asked.
#[derive(Debug, thiserror::Error)]
#[error("nobody has answered in the last {} s", LEFT_ALONE.as_secs())]
struct Alone;

/// What sandboxes of this host use, by what it is called in their rules.
#[derive(Debug, Default)]
struct Entries {
    all: HashMap<Known, Weak<Entry>>,
    /// With how many those are looked for that nobody uses any more.
    cut_at: usize,
}

impl Entries {
    fn entry(&mut self, known: Known) -> Arc<Entry> {
        if let Some(entry) = self.all.get(&known).and_then(Weak::upgrade) {
            return entry;
        }
        if self.all.len() >= self.cut_at {
            self.all.retain(|_, entry| entry.strong_count() > 0);
            self.cut_at = (2 * self.all.len()).max(CUT_FROM);
        }
        let entry = Arc::<Entry>::default();
        self.all.insert(known, Arc::downgrade(&entry));
        entry
    }
}

/// Values that are remembered for as long as this is there. Nothing, where they are on this host anyway.
#[derive(Debug, Default)]
pub(crate) struct Held(#[expect(dead_code, reason = "held, not read")] Vec<Arc<Entry>>);

/// Who asks, and how that went.
#[derive(Debug, Clone)]
struct Asker {
    rows: Arc<dyn SharedSecrets>,
    /// When nobody answered last, unless somebody has since.
    away: Arc<Mutex<Option<Instant>>>,
}

/// Shared secrets, as this host uses them.
#[derive(Debug)]
pub(super) struct Shared {
    asker: Asker,
    known: Mutex<Entries>,
    /// When something was last changed through this host: what was asked before is asked again.
    changed: Mutex<Option<Instant>>,
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
        Self { asker: Asker { rows, away: Arc::default() }, known: Mutex::default(), changed: Mutex::default() }
    }

    pub(super) fn rows(&self) -> &dyn SharedSecrets {
        &*self.asker.rows
    }

    /// From now on no value counts that was asked for before.
    pub(super) fn has_changed(&self) {
        *lock(&self.changed) = Some(Instant::now());
    }

    /// Has values be remembered that a team's sandboxes use. Those that are not known yet are, as far as somebody answers in time.
    pub(super) async fn hold(&self, team: &TeamId, references: &[String]) -> Held {
        let scope = Scope::Team(team.clone());
        let held: Vec<_> = {
            let mut known = lock(&self.known);
            references.iter().map(|reference| known.entry((team.clone(), called(reference)))).collect()
        };
        let ask_all = async {
            for (entry, reference) in held.iter().zip(references) {
                if lock(&entry.had).is_some() {
                    continue;
                }
                let asked = self.asker.ask((&scope, reference), Some(entry)).await;
                if let Err(error @ SecretError::Shared(_)) = asked {
                    return Some(error);
                }
            }
            None
        };
        match timeout(WITHIN, ask_all).await {
            Ok(None) => {}
            Ok(Some(error)) => tracing::debug!(error = chain(&error), "values of secrets are not known yet"),
            Err(_) => tracing::debug!("values of secrets are not known yet: nobody answers in time"),
        }
        Held(held)
    }

    /// The value of a secret, for a request that is under way.
    pub(super) async fn value(&self, scope: &Scope, reference: &str) -> Result<Zeroizing<String>, SecretError> {
        let entry = lock(&self.known).all.get(&(scope.owner(), called(reference))).and_then(Weak::upgrade);
        let Some(entry) = entry else { return self.asker.ask((scope, reference), None).await };
        let came = Instant::now();
        if let Some(answer) = self.known_of(&entry, reference, None) {
            return answer;
        }
        let one = Arc::clone(&entry.asking).lock_owned().await;
        if let Some(answer) = self.known_of(&entry, reference, Some(came)) {
            return answer;
        }
        // It is asked to the end also where nobody wants it any more: a guest that gives up its requests would else have many asked at once.
        let (asker, scope, reference) = (self.asker.clone(), scope.clone(), reference.to_owned());
        let asked = tokio::spawn(async move {
            let answer = asker.ask_anew((&scope, &reference), &entry).await;
            drop(one);
            answer
        });
        asked.await.unwrap_or_else(|failed| Err(SecretError::Shared(failed.into())))
    }

    /// What is answered without asking: what there was a moment ago, or while somebody waited who came at a time; where nobody answered since
    /// anything was changed, what there was, however long ago. None where it is to be asked for.
    fn known_of(&self, entry: &Entry, reference: &str, came: Option<Instant>) -> Option<Result<Zeroizing<String>, SecretError>> {
        let (changed, away) = (*lock(&self.changed), *lock(&self.asker.away));
        let is_after_change = |at: Instant| changed.is_none_or(|changed| changed < at);
        let had = lock(&entry.had).clone();
        let is_new = |had: &Had| {
            is_after_change(had.asked) && (had.asked.elapsed() < FRESH || came.is_some_and(|came| had.answered >= came))
        };
        if let Some(had) = had.clone().filter(is_new) {
            return Some(had.answer.given(reference));
        }
        let is_left_alone = away.is_some_and(|away| away.elapsed() < LEFT_ALONE && is_after_change(away));
        is_left_alone.then(|| match had.map(|had| had.answer) {
            Some(Answer::Value(value)) => Ok(value),
            Some(Answer::None | Answer::Unreadable(_)) | None => Err(SecretError::Shared(Alone.into())),
        })
    }
}

impl Asker {
    /// What is answered, or what there was where nobody answers.
    async fn ask_anew(&self, (scope, reference): (&Scope, &str), entry: &Entry) -> Result<Zeroizing<String>, SecretError> {
        let had = lock(&entry.had).as_ref().map(|had| had.answer.clone());
        let Some(Answer::Value(value)) = had else { return self.ask((scope, reference), Some(entry)).await };
        let error: Box<dyn Error + Send + Sync> = match timeout(WITHIN, self.ask((scope, reference), Some(entry))).await {
            Ok(Err(SecretError::Shared(source))) => source,
            Ok(answer) => return answer,
            Err(late) => {
                *lock(&self.away) = Some(Instant::now());
                late.into()
            }
        };
        tracing::warn!(
            reference,
            error = chain(&*error),
            "the value of a secret is not asked for: the one that there was is used"
        );
        Ok(value)
    }

    async fn ask(&self, (scope, reference): (&Scope, &str), entry: Option<&Entry>) -> Result<Zeroizing<String>, SecretError> {
        let asked = Instant::now();
        let answer = match self.rows.open(scope, reference).await {
            Ok(Some(Secret { value, .. })) => Answer::Value(value),
            Ok(None) => Answer::None,
            Err(SharedError::Unreadable(what)) => Answer::Unreadable(what),
            Err(error @ SharedError::Store(_)) => {
                *lock(&self.away) = Some(Instant::now());
                return Err(error.into());
            }
        };
        *lock(&self.away) = None;
        if let Some(entry) = entry {
            *lock(&entry.had) = Some(Had { asked, answered: Instant::now(), answer: answer.clone() });
        }
        answer.given(reference)
    }
}

/// What a secret is called whichever way it is spelt: names count in any case of their letters, ids do not.
pub(super) fn called(reference: &str) -> String {
    let name = reference.to_lowercase();
    // No name begins so.
    if name.starts_with(ID_PREFIX) { reference.to_owned() } else { name }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{
        collections::BTreeMap,
        sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    };

    use jiff::Timestamp;
    use tokio::time::advance;

    use super::*;

    /// One secret, `key`, which others change.
    #[derive(Debug, Default)]
    pub(crate) struct Row {
        value: Mutex<Option<String>>,
        is_away: AtomicBool,
        is_changed: AtomicBool,
        asked: AtomicUsize,
        fails_at: AtomicUsize,
    }

    impl Row {
        /// Nobody answers when so many are added.
        pub(crate) fn fails_at(&self, nth: usize) {
            self.fails_at.store(nth, Ordering::SeqCst);
        }

        pub(crate) fn set(&self, value: Option<&str>) {
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
            let left = self.fails_at.load(Ordering::SeqCst);
            self.fails_at.store(left.saturating_sub(1), Ordering::SeqCst);
            let added = if left == 1 { Err(SharedError::Store("nobody answers".into())) } else { Ok(Added::Kept) };
            Box::pin(async move { added })
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
        advance(FRESH).await;
        assert!(matches!(value().await.unwrap_err(), SecretError::NotFound(_)));
        row.is_away.store(true, Ordering::SeqCst);
        advance(FRESH).await;
        assert!(matches!(value().await.unwrap_err(), SecretError::Shared(_)), "it was gone before nobody answered");

        drop(held);
        row.is_away.store(false, Ordering::SeqCst);
        let _held = shared.hold(&team, &["another".to_owned()]).await;
        let live = lock(&shared.known).all.values().filter(|entry| entry.strong_count() > 0).count();
        assert_eq!(live, 1, "nothing is remembered that no sandbox uses");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_changed_while_nobody_answered_counts_once_somebody_does() {
        let row = Arc::new(Row::default());
        row.set(Some("first"));
        let shared = Shared::of(Arc::clone(&row) as _);
        let scope = Scope::Team(TeamId::first());
        let value = async || shared.value(&scope, "key").await.map(|value| value.to_string());
        let _held = shared.hold(&TeamId::first(), &["key".to_owned()]).await;
        advance(FRESH).await;
        row.is_away.store(true, Ordering::SeqCst);
        assert_eq!(value().await.unwrap(), "first");

        // It was changed through this host: the moment when nobody answered says nothing any more.
        row.is_away.store(false, Ordering::SeqCst);
        row.set(Some("second"));
        advance(Duration::from_millis(1)).await;
        shared.has_changed();
        assert_eq!(value().await.unwrap(), "second");
        // Through another: somebody answers again, which ends the time in which nobody is asked.
        row.set(Some("third"));
        advance(FRESH).await;
        assert_eq!(value().await.unwrap(), "third");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_value_nobody_is_asked_for_every_request() {
        let row = Arc::new(Row::default());
        let shared = Shared::of(Arc::clone(&row) as _);
        let scope = Scope::Team(TeamId::first());
        let asked = || row.asked.swap(0, Ordering::SeqCst);
        let value = || shared.value(&scope, "Key");
        let _held = shared.hold(&TeamId::first(), &["kEY".to_owned(), "KEY".to_owned()]).await;
        assert_eq!(asked(), 1, "spellings of one name are one");
        assert!(matches!(value().await.unwrap_err(), SecretError::NotFound(_)));
        assert_eq!(asked(), 0);
        advance(FRESH).await;
        // Of several one asks, and to the end where that one gives up.
        assert!(futures::poll!(Box::pin(value())).is_pending());
        let (a, b, c) = tokio::join!(value(), value(), value());
        assert!([a, b, c].iter().all(|answer| matches!(answer, Err(SecretError::NotFound(_)))));
        assert_eq!(asked(), 1);
        row.is_away.store(true, Ordering::SeqCst);
        advance(FRESH).await;
        for _ in 0..3 {
            assert!(matches!(value().await.unwrap_err(), SecretError::Shared(_)));
        }
        assert_eq!(asked(), 1);

        // Whoever begins does not wait for each of many.
        let many: Vec<_> = (0..9).map(|n| format!("k{n}")).collect();
        let _many = shared.hold(&TeamId::first(), &many).await;
        assert_eq!(asked(), 1);
        row.is_away.store(false, Ordering::SeqCst);
        row.set(Some("value"));
        advance(LEFT_ALONE).await;
        assert_eq!(shared.value(&scope, "k8").await.unwrap().as_str(), "value");
    }
}
