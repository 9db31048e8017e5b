//! What changes, as it happens: one bounded ring, out of which any number of readers take what they may see. Each team has its own part
//! in it, and what is let go of is of the team that has most there: nobody is overtaken by what another team does.
//!
//! ```text
//!   owners, builds, admission, looks ── tell ──► ring ◄── place of a reader ── next ──► `GET /events`, webhooks, an embedding
//! ```
//!
//! Whoever tells something appends it under a lock that is never held across a wait, and wakes those who wait: no reader keeps an
//! operation waiting, and where nobody reads that is all. A reader has no queue, only its place in the ring, so one that never
//! reads costs nothing but its place. If the ring has gone on without it, it is told that it has missed something; what is now
//! is then read off the runtime ([`Runtime::overview`](crate::runtime::Runtime::overview)).
//!
//! Numbers begin anew with each server, and with another epoch: a place of an earlier server is known for one.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use serde::{Serialize, Serializer};
use tokio::sync::watch;

use crate::{
    ground::{
        random,
        team::{Scope, TeamId},
    },
    store::spec::SandboxId,
};

mod what;

pub use self::what::{
    AdmissionEvent, BuildEvent, Condition, ConditionState, MAX_TOLD_LABELS_BYTES, QuarantineEvent, Refused, SandboxEvent,
    SandboxSummary, TemplateEvent, Topic, What, short_labels,
};

/// Changes that are kept for those who come back: minutes of a busy host.
const MAX_CHANGES: usize = 4096;

/// What they may weigh together, bytes.
const MAX_BYTES: usize = 8 << 20;

/// What became of sandboxes and is kept of each team, for those who ask later.
pub const MAX_LIVES: usize = 1000;

/// What that may weigh, bytes.
const MAX_LIVES_BYTES: usize = 1 << 20;

/// What a reader takes at a time, so that it holds little and the lock shortly.
const BATCH: usize = 64;

/// The place of a change: which server's, and the how manieth of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChangeId {
    /// Another for each server.
    pub epoch: u64,
    /// From 1; 0 is the place before the first.
    pub number: u64,
}

impl fmt::Display for ChangeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{}", self.epoch, self.number)
    }
}

/// A text that is not the id of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is not the id of an event")]
pub struct InvalidChangeId;

impl FromStr for ChangeId {
    type Err = InvalidChangeId;

    fn from_str(text: &str) -> Result<Self, InvalidChangeId> {
        let (epoch, number) = text.split_once('-').filter(|(epoch, _)| epoch.len() == 16).ok_or(InvalidChangeId)?;
        let digits = number.bytes().all(|byte| byte.is_ascii_digit());
        let epoch = u64::from_str_radix(epoch, 16).map_err(|_| InvalidChangeId)?;
        Ok(Self { epoch, number: number.parse().ok().filter(|_| digits).ok_or(InvalidChangeId)? })
    }
}

impl Serialize for ChangeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Change {
    /// Its place.
    pub id: ChangeId,
    /// When.
    pub at: Timestamp,
    /// Whose it is; absent for what is of the host.
    #[serde(rename = "teamID", skip_serializing_if = "Option::is_none")]
    pub team: Option<TeamId>,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

impl Change {
    /// Whether somebody may know: a team of its own, the first one of the host too, and everybody of what keeps all from working.
    fn is_for(&self, scope: &Scope) -> bool {
        match (&self.team, scope) {
            (_, Scope::Host) => true,
            (Some(team), Scope::Team(own)) => team == own,
            (None, Scope::Team(own)) => own.is_first() || self.what.is_for_all(),
        }
    }
}

/// Why a reader missed something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Missed {
    /// Its place is one of an earlier server, or of none.
    AnotherServer,
    /// What follows its place is not kept any more.
    TooOld,
}

/// What a reader is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Told {
    /// The next change.
    Change(Arc<Change>),
    /// Changes are missing here, of those that this reader may know. It goes on with what comes from now on; what is now has to be looked at.
    Missed(Missed),
}

#[derive(Debug, Default)]
struct Ring {
    /// By whose they are; what is of the host is nobody's.
    parts: HashMap<Option<TeamId>, Part>,
    count: usize,
    bytes: usize,
    newest: u64,
}

/// What is kept of one team's changes, the oldest first.
#[derive(Debug, Default)]
struct Part {
    changes: VecDeque<Arc<Change>>,
    bytes: usize,
    /// The number of the newest that is not kept any more.
    lost: u64,
}

impl Ring {
    fn push(&mut self, change: Arc<Change>) {
        let weight = change.what.weight();
        (self.count, self.bytes) = (self.count + 1, self.bytes + weight);
        let part = self.parts.entry(change.team.clone()).or_default();
        part.bytes += weight;
        part.changes.push_back(change);
        // The last one stays, whatever it weighs.
        while self.count > 1 && (self.count > MAX_CHANGES || self.bytes > MAX_BYTES) {
            let heavy = self.bytes > MAX_BYTES;
            let most = self.parts.values_mut().max_by_key(|part| if heavy { part.bytes } else { part.changes.len() });
            let Some((part, oldest)) = most.and_then(|part| part.changes.pop_front().map(|oldest| (part, oldest))) else {
                return;
            };
            let weight = oldest.what.weight();
            (part.bytes, part.lost) = (part.bytes - weight, oldest.id.number);
            (self.count, self.bytes) = (self.count - 1, self.bytes - weight);
        }
    }

    /// The parts that somebody may read in.
    fn seen<'a>(&'a self, scope: &'a Scope) -> impl Iterator<Item = &'a Part> {
        let sees = |team: &Option<TeamId>| team.as_ref().is_none_or(|team| scope.sees(team));
        self.parts.iter().filter(move |(team, _)| sees(team)).map(|(_, part)| part)
    }

    /// The number of the newest change that somebody could have read, and is not kept any more.
    fn lost(&self, scope: &Scope) -> u64 {
        self.seen(scope).map(|part| part.lost).max().unwrap_or_default()
    }

    /// What follows a place, in order; a batch of it.
    fn after(&self, place: u64, scope: &Scope) -> Vec<Arc<Change>> {
        let follows = |part: &'_ Part| part.changes.partition_point(|change| change.id.number <= place);
        let mut batch: Vec<_> =
            self.seen(scope).flat_map(|part| part.changes.iter().skip(follows(part)).take(BATCH).cloned()).collect();
        batch.sort_by_key(|change| change.id.number);
        batch.truncate(BATCH);
        batch
    }
}

/// What became of the sandboxes of one team, the oldest first.
#[derive(Debug, Default)]
struct Lives {
    changes: VecDeque<Arc<Change>>,
    bytes: usize,
}

/// The ring of one runtime.
#[derive(Debug)]
pub(crate) struct Feed {
    epoch: u64,
    ring: Mutex<Ring>,
    /// What became of sandboxes, of each team, for those who ask later.
    lives: Mutex<HashMap<TeamId, Lives>>,
    /// The number of the newest, for those who wait.
    newest: watch::Sender<u64>,
    /// Readers for whose sake what changes by itself is looked at.
    watchers: watch::Sender<usize>,
}

impl Feed {
    pub(crate) fn new() -> Arc<Self> {
        let epoch = u64::from_be_bytes(random::bytes::<8>());
        Arc::new(Self {
            epoch,
            ring: Mutex::default(),
            lives: Mutex::default(),
            newest: watch::Sender::new(0),
            watchers: watch::Sender::new(0),
        })
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        // Nothing panics between a lock and its unlock here but arithmetic that cannot, so a poisoned ring is whole.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something of a team happened, or of the host.
    pub(crate) fn tell(&self, team: Option<&TeamId>, what: What) {
        let mut ring = self.ring();
        ring.newest += 1;
        let (epoch, number) = (self.epoch, ring.newest);
        let change = Arc::new(Change { id: ChangeId { epoch, number }, at: Timestamp::now(), team: team.cloned(), what });
        ring.push(Arc::clone(&change));
        drop(ring);
        if let (Some(team), What::Sandbox { .. }) = (team, &change.what) {
            self.remember(team, change);
        }
        self.newest.send_if_modified(|newest| std::mem::replace(newest, number.max(*newest)) < number);
    }

    fn remember(&self, team: &TeamId, change: Arc<Change>) {
        let mut lives = self.lives.lock().unwrap_or_else(PoisonError::into_inner);
        let Lives { changes, bytes } = lives.entry(team.clone()).or_default();
        *bytes += change.what.weight();
        changes.push_back(change);
        while changes.len() > MAX_LIVES || (*bytes > MAX_LIVES_BYTES && changes.len() > 1) {
            *bytes -= changes.pop_front().map_or(0, |oldest| oldest.what.weight());
        }
    }

    /// What became of the sandboxes that a scope sees, or of one of them, the oldest first.
    pub(crate) fn lives(&self, scope: &Scope, sandbox: Option<&SandboxId>) -> Vec<Arc<Change>> {
        let lives = self.lives.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = lives.iter().filter(|(team, _)| scope.sees(team)).flat_map(|(_, lives)| lives.changes.iter());
        let is_of = |change: &&Arc<Change>| match &change.what {
            What::Sandbox { sandbox: of, .. } => sandbox.is_none_or(|wanted| of.id == *wanted),
            _ => false,
        };
        let mut found: Vec<_> = seen.filter(is_of).cloned().collect();
        found.sort_by_key(|change| change.id.number);
        found
    }

    /// The place of the newest change.
    pub(crate) fn place(&self) -> ChangeId {
        ChangeId { epoch: self.epoch, number: self.ring().newest }
    }

    /// Reads on after a place, or from now on.
    pub(crate) fn read(self: &Arc<Self>, scope: Scope, after: Option<ChangeId>) -> Reader {
        let now = self.place();
        let is_ours = |after: &ChangeId| after.epoch == now.epoch && after.number <= now.number;
        let missed = after.is_some_and(|after| !is_ours(&after)).then_some(Missed::AnotherServer);
        let place = after.filter(is_ours).unwrap_or(now).number;
        Reader {
            feed: Arc::clone(self),
            scope,
            place,
            taken: VecDeque::new(),
            newest: self.newest.subscribe(),
            missed,
            forgiven: 0,
            goes_on: false,
            watches: None,
        }
    }

    /// As [`Feed::read`] from now on, of one who wants what is left also where something is missing.
    pub(crate) fn read_what_is_left(self: &Arc<Self>, scope: Scope) -> Reader {
        Reader { goes_on: true, ..self.read(scope, None) }
    }

    /// As [`Feed::read`], of what changes by itself too: it is looked at while there is such a reader.
    pub(crate) fn watch(self: &Arc<Self>, scope: Scope, after: Option<ChangeId>) -> Reader {
        self.watchers.send_modify(|count| *count += 1);
        Reader { watches: Some(Watching(Arc::clone(self))), ..self.read(scope, after) }
    }

    /// Ends once somebody watches. Cancel-safe.
    pub(crate) async fn watched(&self) {
        // The sender is here: it does not end.
        drop(self.watchers.subscribe().wait_for(|count| *count > 0).await);
    }
}

/// One who watches, until it is dropped.
#[derive(Debug)]
struct Watching(Arc<Feed>);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.watchers.send_modify(|count| *count -= 1);
    }
}

/// A place in the ring of somebody who reads on from there. Dropped, it is forgotten.
#[derive(Debug)]
pub struct Reader {
    feed: Arc<Feed>,
    scope: Scope,
    /// The number of the last that was looked at.
    place: u64,
    /// Taken, and not told yet.
    taken: VecDeque<Arc<Change>>,
    newest: watch::Receiver<u64>,
    missed: Option<Missed>,
    /// Up to which number it was told that something is missing.
    forgiven: u64,
    /// Whether it goes on with what is left where something is missing, and not with what is new.
    goes_on: bool,
    #[expect(dead_code, reason = "held, not read")]
    watches: Option<Watching>,
}

impl Reader {
    /// The next thing that there is to tell, once there is one. Cancel-safe.
    pub async fn next(&mut self) -> Told {
        loop {
            // Before the look: what comes after it is not missed.
            self.newest.mark_unchanged();
            if let Some(told) = self.try_next() {
                return told;
            }
            // The sender lives as long as the feed, which is held here.
            drop(self.newest.changed().await);
        }
    }

    /// The next thing, if there is one.
    pub fn try_next(&mut self) -> Option<Told> {
        if let Some(missed) = self.missed.take() {
            return Some(Told::Missed(missed));
        }
        loop {
            if let Some(change) = self.taken.pop_front() {
                return Some(Told::Change(change));
            }
            let ring = self.feed.ring();
            let lost = ring.lost(&self.scope);
            if lost > self.place.max(self.forgiven) {
                if self.goes_on {
                    self.forgiven = lost;
                } else {
                    self.place = ring.newest;
                }
                return Some(Told::Missed(Missed::TooOld));
            }
            if self.place == ring.newest {
                return None;
            }
            let batch = ring.after(self.place, &self.scope);
            // Where there was less than a batch, all up to the newest was looked at, of which the rest is for others.
            let last = batch.last().map(|last| last.id.number).filter(|_| batch.len() == BATCH);
            self.place = last.unwrap_or(ring.newest);
            drop(ring);
            self.taken.extend(batch.into_iter().filter(|change| change.is_for(&self.scope)));
        }
    }

    /// Where it is: whoever begins there is told what this one is told from now on.
    pub fn place(&self) -> ChangeId {
        let number = self.taken.front().map_or(self.place, |first| first.id.number - 1);
        ChangeId { epoch: self.feed.epoch, number }
    }
}

#[cfg(test)]
mod tests;
