//! Has what holds a paused sandbox be on a second node, so that it outlives the first one's disk.
//!
//! ```text
//!   a pause is on record ─┐
//!   every few seconds ────┴─► what is owed, by the rows ─► another node is asked to keep it ─► it fetches it, whole ─► its row says so
//!                                                             └─ it refuses: the next; all do: later, and later again
//! ```
//!
//! Where the cluster has a store, that is where a copy goes, and another node is asked only while that fails.
//!
//! Nothing is remembered that a crash would lose: a copy is owed for as long as no row says that there is one. A node asks, and never sends: the one
//! that keeps fetches, by the path that creates and resumes use. What is bound to its host stays owed, and is shown so.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    error::Error,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use axum::{
    body::{Body, to_bytes},
    extract::Request,
    response::Response,
};
use firkin_causes::chain;
use firkin_postgres::Owed;
use firkin_runtime::{ids::ArtifactId, owner::Bound, runtime::Runtime, sandbox::SandboxId, store::StoreError};
use firkin_server::nodes::{Copied, NodeId, Nodes as _, NotCopied, SecondCopies, SendError, as_operator};
use futures::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use http::{HeaderValue, Method, StatusCode, header};
use serde::Deserialize;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};

use crate::{Cluster, Members as _, Records, Store, StoreFailure, placement::by_key};

/// Between two looks at what is owed, where nothing was paused: a node that comes may take what none could before.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Between two looks at least, however many are paused.
const BETWEEN_LOOKS: Duration = Duration::from_millis(200);

/// Copies that are asked for at once: the nodes that keep them fetch one at a time each.
const AT_ONCE: usize = 4;

/// Nodes that are asked for one copy.
const MOST_ASKED: usize = 3;

/// How long a node may take to fetch one.
const COPY_WITHIN: Duration = Duration::from_secs(15 * 60);

/// How long who pauses waits for the copy, where it is waited for. With the pause itself below the minute that E2B's clients wait for any answer.
const WAIT_WITHIN: Duration = Duration::from_secs(25);

/// How long a node may take to say why it refuses.
const REFUSAL_WITHIN: Duration = Duration::from_secs(10);

/// Sandboxes that are remembered because whoever paused them was told that there is no copy: they ask again within seconds.
const MOST_REFUSED: usize = 1024;

/// After a first failure it is tried again after so long, then after twice that, and so on.
const RETRY_FIRST: Duration = Duration::from_secs(2);

/// The longest between two tries, and how long what is bound to its host is taken to be.
const RETRY_LAST: Duration = Duration::from_secs(5 * 60);

/// Between two looks at which of this node's own copies nobody needs any more.
const LET_GO_EVERY: Duration = Duration::from_secs(60);

/// Between two looks at what of templates the store lacks, and whether it is to be cleaned.
const STORE_EVERY: Duration = Duration::from_secs(30);

/// Longest refusal that is read.
const MAX_ANSWER_BYTES: usize = 64 << 10;

/// Why there is no copy.
#[derive(Debug, thiserror::Error)]
enum CopyFailure {
    #[error("it would be of no use elsewhere")]
    Bound(#[from] Bound),
    #[error("no other node is there that takes new sandboxes")]
    Nobody,
    #[error("node `{node}` does not keep it")]
    Refused {
        node: String,
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    #[error("no sandbox is held by it any more")]
    Unneeded,
    #[error("the copy is not there after {} s, and is gone on with", WAIT_WITHIN.as_secs())]
    Late,
    #[error("the store of the cluster has no copy, and no node keeps one")]
    Unstored(#[source] StoreFailure),
    #[error("cannot look whether there is a copy")]
    Store(#[from] StoreError),
}

impl CopyFailure {
    /// As metrics have it.
    fn outcome(&self) -> &'static str {
        match self {
            Self::Bound(_) => "bound",
            Self::Nobody => "nobody",
            Self::Refused { .. } => "refused",
            Self::Unneeded => "unneeded",
            Self::Late => "late",
            Self::Unstored(_) => "unstored",
            Self::Store(_) => "store",
        }
    }
}

/// The second copies of what is paused on this node, and this node's own of what others paused.
#[derive(Debug)]
pub struct Copies {
    cluster: Arc<Cluster>,
    records: Arc<Records>,
    runtime: Runtime,
    store: Option<Arc<Store>>,
    /// What somebody is asked to keep just now.
    under_way: Mutex<HashSet<ArtifactId>>,
    /// Counts attempts that ended.
    ended: watch::Sender<u64>,
    /// Sandboxes of which whoever paused them was told last that there is no copy, the newest last.
    refused: Mutex<VecDeque<SandboxId>>,
}

/// What a node did that was asked to keep something.
enum Kept {
    Is,
    ForNobody,
}

/// An attempt to have an artifact copied, of which there is one at a time.
struct Turn<'a> {
    copies: &'a Copies,
    artifact: ArtifactId,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.copies.under_way().remove(&self.artifact);
        self.copies.ended.send_modify(|ended| *ended += 1);
    }
}

/// When what could not be copied is tried again.
#[derive(Debug, Default)]
struct Later(HashMap<ArtifactId, Retry>);

#[derive(Debug, Clone, Copy)]
struct Retry {
    tries: u32,
    at: Instant,
    is_bound: bool,
}

impl Later {
    fn is_due(&self, artifact: &ArtifactId, now: Instant) -> bool {
        self.0.get(artifact).is_none_or(|retry| retry.at <= now)
    }

    fn note(&mut self, artifact: ArtifactId, failure: Option<&CopyFailure>, now: Instant) {
        let tries = self.0.get(&artifact).map_or(0, |retry| retry.tries);
        let (wait, is_bound) = match failure {
            // It is known here when a node comes, so to look again costs nobody anything.
            None | Some(CopyFailure::Nobody) => {
                self.0.remove(&artifact);
                return;
            }
            Some(CopyFailure::Bound(_)) => (RETRY_LAST, true),
            Some(_) => (RETRY_FIRST.saturating_mul(1 << tries.min(16)).min(RETRY_LAST), false),
        };
        self.0.insert(artifact, Retry { tries: tries.saturating_add(1), at: now + wait, is_bound });
    }

    /// Forgets what is not owed any more. How many are bound of what is.
    fn keep(&mut self, owed: &[Owed]) -> usize {
        let owed: HashSet<&ArtifactId> = owed.iter().map(|owed| &owed.artifact).collect();
        self.0.retain(|artifact, _| owed.contains(artifact));
        self.0.values().filter(|retry| retry.is_bound).count()
    }
}

impl Copies {
    /// Those of a node that has joined its cluster. Nothing is done before [`run`](Self::run).
    pub fn of(cluster: Arc<Cluster>, records: Arc<Records>, runtime: Runtime) -> Arc<Self> {
        Self::with(None, cluster, records, runtime)
    }

    /// Those of one that has the store of its cluster.
    pub fn in_store(store: Arc<Store>, cluster: Arc<Cluster>, records: Arc<Records>, runtime: Runtime) -> Arc<Self> {
        records.membership().use_store();
        Self::with(Some(store), cluster, records, runtime)
    }

    fn with(store: Option<Arc<Store>>, cluster: Arc<Cluster>, records: Arc<Records>, runtime: Runtime) -> Arc<Self> {
        Arc::new(Self {
            cluster,
            records,
            runtime,
            store,
            under_way: Mutex::default(),
            ended: watch::Sender::new(0),
            refused: Mutex::default(),
        })
    }

    /// Has copied what is owed, and lets go of what nobody needs, for as long as this is polled. A catalogue that is away is waited for.
    pub async fn run(&self) {
        tokio::join!(self.copy_on(), self.let_go_on(), self.store_on());
    }

    async fn copy_on(&self) {
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut later, mut waiting) = (Later::default(), VecDeque::new());
        let mut trying: FuturesUnordered<BoxFuture<'_, (ArtifactId, Result<(), CopyFailure>)>> = FuturesUnordered::new();
        loop {
            let looks_again = tokio::select! {
                _ = looks.tick() => true,
                () = self.runtime.was_paused() => true,
                Some((artifact, tried)) = trying.next() => {
                    later.note(artifact, tried.err().as_ref(), Instant::now());
                    false
                }
            };
            if looks_again {
                // What is not known to be owed is tried the next time.
                waiting = self.look(&mut later).await.unwrap_or_else(|error| {
                    tracing::debug!(error = chain(&error), "it is not known which copies are owed");
                    VecDeque::new()
                });
            }
            while trying.len() < AT_ONCE
                && let Some(owed) = waiting.pop_front()
            {
                if let Some(turn) = self.turn(&owed.artifact) {
                    trying.push(Box::pin(async move {
                        let tried = self.copy(&owed).await;
                        drop(turn);
                        (owed.artifact, tried)
                    }));
                }
            }
            if looks_again {
                sleep(BETWEEN_LOOKS).await;
            }
        }
    }

    /// What is owed and due.
    async fn look(&self, later: &mut Later) -> Result<VecDeque<Owed>, StoreError> {
        let owed = self.records.membership().owed(None).await?;
        let bound = later.keep(&owed);
        self.records.owe_copies(owed.len());
        self.runtime.metrics().owe_second_copies(owed.len().saturating_sub(bound), bound);
        let now = Instant::now();
        Ok(owed.into_iter().filter(|owed| later.is_due(&owed.artifact, now)).collect())
    }

    fn under_way(&self) -> MutexGuard<'_, HashSet<ArtifactId>> {
        // Each holder makes one change, so a poisoned set is a whole one.
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The turn of an artifact, unless somebody has it.
    fn turn(&self, artifact: &ArtifactId) -> Option<Turn<'_>> {
        self.under_way().insert(artifact.clone()).then(|| Turn { copies: self, artifact: artifact.clone() })
    }

    /// One attempt, counted.
    async fn copy(&self, owed: &Owed) -> Result<(), CopyFailure> {
        let copied = self.have_copied(owed).await;
        self.runtime.metrics().count_second_copy(match &copied {
            Ok(outcome) => outcome,
            Err(failure) => failure.outcome(),
        });
        let copied = copied.map(drop);
        if let Err(error) = &copied {
            let (sandbox, artifact) = (&owed.sandbox, &owed.artifact);
            tracing::debug!(%sandbox, %artifact, error = chain(error), "a paused sandbox has no second copy yet");
        }
        copied
    }

    /// Has a copy made where there can be one. What came of it, as metrics have it.
    async fn have_copied(&self, owed: &Owed) -> Result<&'static str, CopyFailure> {
        let Some(store) = &self.store else { return self.ask_others(owed).await.map(|()| "made") };
        self.demand_unbound(owed)?;
        let Err(failure) = store.keep(self.records.membership(), &self.runtime, &owed.artifact).await else {
            return Ok("stored");
        };
        tracing::debug!(artifact = %owed.artifact, error = chain(&failure), "a paused sandbox is not in the store, and nodes are asked");
        match self.ask_others(owed).await {
            Ok(()) => {
                self.runtime.metrics().count_second_copy("unstored");
                Ok("made")
            }
            Err(CopyFailure::Nobody | CopyFailure::Refused { .. }) => Err(CopyFailure::Unstored(failure)),
            Err(other) => Err(other),
        }
    }

    /// One that is not here any more is another's to have copied.
    fn demand_unbound(&self, owed: &Owed) -> Result<(), CopyFailure> {
        match self.runtime.bound(&owed.sandbox, &owed.artifact) {
            Ok(Some(bound)) => Err(bound.into()),
            Ok(None) | Err(_) => Ok(()),
        }
    }

    async fn ask_others(&self, owed: &Owed) -> Result<(), CopyFailure> {
        let places = self.places(&owed.artifact);
        if places.is_empty() {
            return Err(CopyFailure::Nobody);
        }
        self.demand_unbound(owed)?;
        let mut failure = CopyFailure::Nobody;
        for (node, name) in places {
            match self.ask(&node, &owed.artifact).await {
                Ok(Kept::Is) => return Ok(()),
                Ok(Kept::ForNobody) => return Err(CopyFailure::Unneeded),
                Err(source) => failure = CopyFailure::Refused { node: name, source },
            }
        }
        Err(failure)
    }

    /// Nodes that may be asked to keep an artifact, in the order in which to ask them: the same one whoever asks, and another for each artifact.
    fn places(&self, artifact: &ArtifactId) -> Vec<(NodeId, String)> {
        let mut others: Vec<_> = self.records.nodes().iter().filter(|node| node.id != *self.cluster.id()).cloned().collect();
        others.retain(|node| node.alive && !node.cordoned && self.records.serves(&node.id));
        others.sort_by_cached_key(|node| std::cmp::Reverse(by_key(artifact.as_str(), &node.id)));
        others.into_iter().take(MOST_ASKED).map(|node| (node.id, node.name)).collect()
    }

    async fn ask(&self, node: &NodeId, artifact: &ArtifactId) -> Result<Kept, Box<dyn Error + Send + Sync>> {
        let mut request = Request::new(Body::empty());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = format!("/admin/copies?artifact={artifact}").parse().expect("ids are of letters and digits");
        request.headers_mut().insert(header::HOST, HeaderValue::from_static("localhost"));
        as_operator(&mut request);
        let answer = timeout(COPY_WITHIN, self.cluster.send(node, request)).await?;
        match answer {
            Ok(answer) if answer.status() == StatusCode::NO_CONTENT => Ok(Kept::Is),
            // It was resumed meanwhile: the next node would fetch it in vain, too.
            Ok(answer) if answer.status() == StatusCode::CONFLICT => Ok(Kept::ForNobody),
            Ok(answer) => Err(refusal(answer).await),
            Err(SendError::Unreached { source, .. } | SendError::Broken { source, .. }) => Err(source),
        }
    }

    /// Has what templates and snapshots are made of be in the store, too, and what nobody needs go from there.
    async fn store_on(&self) {
        let Some(store) = &self.store else { return };
        let mut looks = interval(STORE_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // What cannot be copied though it is here is tried again by the next server.
        let mut hopeless = HashSet::new();
        loop {
            looks.tick().await;
            let kept = self.store_templates(store, &mut hopeless).await;
            let cleaned = self.clean_store().await.map(drop);
            for failure in [kept, cleaned].into_iter().filter_map(Result::err) {
                tracing::debug!(error = chain(&failure), "the store of the cluster is not as it should be yet");
            }
        }
    }

    /// Removes from the store what no row has needed for long enough, if it is this node's turn. How many files went. Done every half a minute by
    /// [`run`](Self::run).
    pub async fn clean_store(&self) -> Result<usize, StoreFailure> {
        match &self.store {
            Some(store) => store.clean(self.records.membership()).await,
            None => Ok(0),
        }
    }

    /// Copies what templates and snapshots on this node are made of to the store, where that lacks it. Done every half a minute by [`run`](Self::run).
    async fn store_templates(&self, store: &Store, hopeless: &mut HashSet<ArtifactId>) -> Result<(), StoreFailure> {
        let membership = self.records.membership();
        for artifact in membership.unstored().await? {
            let (runtime, wanted) = (self.runtime.clone(), artifact.clone());
            let is_here = tokio::task::spawn_blocking(move || runtime.has_artifact(&wanted)).await.unwrap_or_default();
            if !is_here || hopeless.contains(&artifact) {
                continue;
            }
            match store.keep(membership, &self.runtime, &artifact).await {
                Ok(()) => {}
                Err(StoreFailure::Export(error)) => {
                    tracing::debug!(%artifact, error = chain(&error), "what a template is made of is not copied to the store");
                    hopeless.insert(artifact);
                }
                Err(StoreFailure::Others) => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(())
    }

    async fn let_go_on(&self) {
        let mut looks = interval(LET_GO_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            if let Err(error) = self.let_go().await {
                tracing::debug!(error = chain(&error), "copies that nobody needs are not let go of yet");
            }
        }
    }

    /// Lets go of this node's copies that no sandbox is held by any more, and of those that are not on its disk. Done every minute by [`run`](Self::run).
    pub async fn let_go(&self) -> Result<(), StoreError> {
        let membership = self.records.membership();
        let unneeded = membership.let_go_of_copies().await?;
        if unneeded > 0 {
            tracing::debug!(count = unneeded, "copies that nobody needs are let go of");
            self.runtime.collect();
        }
        let own = membership.copies().await?;
        let runtime = self.runtime.clone();
        // Their sidecars are read.
        let lost = tokio::task::spawn_blocking(move || -> Vec<ArtifactId> {
            own.into_iter().filter(|artifact| !runtime.has_artifact(artifact)).collect()
        });
        let lost = lost.await.unwrap_or_default();
        if lost.is_empty() {
            return Ok(());
        }
        tracing::warn!(
            count = lost.len(),
            "copies that were on this node's disk are not there or damaged, and are owed again by who paused"
        );
        membership.lost_copies(lost).await
    }

    /// Waits for an attempt of others, or makes one.
    async fn settle(&self, id: &SandboxId) -> Result<Copied, CopyFailure> {
        let mut ended = self.ended.subscribe();
        let mut copied = Copied::Before;
        loop {
            ended.mark_unchanged();
            let owed = self.records.membership().owed(Some(id)).await?;
            let Some(owed) = owed.first() else { return Ok(copied) };
            copied = Copied::Now;
            match self.turn(&owed.artifact) {
                Some(turn) => {
                    let tried = self.copy(owed).await;
                    drop(turn);
                    match tried {
                        // It was resumed, and may be paused again by now.
                        Err(CopyFailure::Unneeded) => {}
                        tried => return tried.map(|()| copied),
                    }
                }
                // The sender is here.
                None => drop(ended.changed().await),
            }
        }
    }
}

#[async_trait]
impl SecondCopies for Copies {
    async fn copied(&self, id: &SandboxId) -> Result<Copied, NotCopied> {
        let settled = timeout(WAIT_WITHIN, self.settle(id)).await.unwrap_or(Err(CopyFailure::Late));
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let known = refused.len();
        refused.retain(|other| other != id);
        match settled {
            Ok(copied) => Ok(if refused.len() < known { Copied::Now } else { copied }),
            Err(failure) => {
                refused.push_back(id.clone());
                if refused.len() > MOST_REFUSED {
                    refused.pop_front();
                }
                // Who has waited so long would wait longer than for any answer.
                let may_come = !matches!(failure, CopyFailure::Bound(_) | CopyFailure::Late);
                Err(NotCopied { id: id.clone(), node: self.cluster.name().to_owned(), may_come, source: failure.into() })
            }
        }
    }
}

/// Of an error, what people read.
#[derive(Deserialize)]
struct Said {
    message: String,
}

/// Why a node did not do it.
async fn refusal(answer: Response) -> Box<dyn Error + Send + Sync> {
    let status = answer.status();
    let read = timeout(REFUSAL_WITHIN, to_bytes(answer.into_body(), MAX_ANSWER_BYTES)).await;
    let said = read.ok().and_then(Result::ok).and_then(|bytes| serde_json::from_slice::<Said>(&bytes).ok());
    said.map_or_else(|| format!("it answers {status}"), |said| said.message).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_is_tried_ever_later_and_what_is_bound_is_known_as_such() {
        let (mut later, begin) = (Later::default(), Instant::now());
        let artifact: ArtifactId = "a1".parse().unwrap();
        let refused = || CopyFailure::Refused { node: "b".to_owned(), source: "full".into() };
        let owed = [Owed { sandbox: "i1".parse().unwrap(), artifact: artifact.clone() }];
        assert!(later.is_due(&artifact, begin));
        let mut waits = Vec::new();
        for _ in 0..12 {
            later.note(artifact.clone(), Some(&refused()), begin);
            assert!(!later.is_due(&artifact, begin));
            waits.push(later.0[&artifact].at - begin);
        }
        assert_eq!(waits[..3], [RETRY_FIRST, 2 * RETRY_FIRST, 4 * RETRY_FIRST]);
        assert_eq!(waits[11], RETRY_LAST);
        assert!(later.is_due(&artifact, begin + RETRY_LAST));
        assert_eq!(later.keep(&owed), 0);
        let bound = Bound::Volumes("i1".parse().unwrap());
        later.note(artifact.clone(), Some(&bound.into()), begin);
        assert_eq!(later.keep(&owed), 1);
        // A node that comes finds what nobody could take before.
        later.note(artifact.clone(), Some(&CopyFailure::Nobody), begin);
        assert!(later.is_due(&artifact, begin));
        later.note(artifact.clone(), Some(&refused()), begin);
        assert_eq!((later.keep(&[]), later.0.len()), (0, 0), "what is not owed any more is forgotten");
    }
}
