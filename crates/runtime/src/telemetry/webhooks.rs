//! Webhooks: events of a team's sandboxes are sent to where it wants them, at least once, until they arrive or are given up.
//!
//! ```text
//!   changes ──► on record, for each webhook that wants it ──► sent ──► arrived: forgotten
//!                                   ▲                           │
//!                                   └── later, five times ◄── not ──► given up: kept for who wants to know, or to send it again
//! ```
//!
//! One task does all of it. It is woken by every change, and has nothing to do where there is no webhook. Deliveries of one webhook are
//! sent one at a time, in the order in which they are due; a team has some places of all for that, and the webhook comes first that was
//! served longest ago: a receiver that is slow or away keeps no other team waiting. What happens in the instant before the server is
//! killed, and is not on record yet, is not sent.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use firkin_causes::chain;
use firkin_network::Surroundings;
use ipnet::Ipv4Net;
use jiff::Timestamp;
use tokio::{
    sync::Notify,
    task::{JoinHandle, JoinSet},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use self::send::{Reach, Sender};
use super::{
    changes::{Feed, Reader, Told},
    lifecycle::LifecycleEvent,
};
use crate::{
    ground::{
        ids::WebhookId,
        team::{Scope, TeamId},
    },
    store::{Delivery, Head, Store, StoreError, Webhook},
};

mod send;

pub use self::send::TargetError;

/// Pauses before the second attempt and those after it. Minutes cover a restart of the receiver, the hour a repair.
const PAUSES: [Duration; 5] = [
    Duration::from_secs(10),
    Duration::from_secs(30),
    Duration::from_secs(2 * 60),
    Duration::from_secs(10 * 60),
    Duration::from_secs(60 * 60),
];

/// Deliveries that are under way at once: each is a connection.
const AT_ONCE: usize = 16;

/// Of these, of one team's webhooks.
const AT_ONCE_OF_TEAM: usize = 4;

/// Deliveries that wait in memory while the database takes none, as with a full disk: some minutes of a busy host.
const MAX_UNRECORDED: usize = 4096;

/// The pause after the records could not be read or written.
const RETRY_STORE: Duration = Duration::from_secs(5);

/// Longest sleep: time that was set on is noticed by then.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// Everything about webhooks of one runtime.
#[derive(Debug)]
pub(crate) struct Webhooks {
    store: Store,
    sender: Sender,
    /// Those that are enabled: most changes are of no interest to any.
    enabled: Mutex<Arc<Vec<Webhook>>>,
    /// Something is due, or wanted, that was not before.
    changed: Notify,
    /// Cancelled when nothing more happens: what has is put on record then.
    ending: CancellationToken,
    task: Mutex<Option<JoinHandle<()>>>,
    counts: Mutex<DeliveryCounts>,
}

/// What became of attempts to deliver, since the start.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct DeliveryCounts {
    pub(crate) delivered: u64,
    /// They are tried again.
    pub(crate) failed: u64,
    /// They are not.
    pub(crate) given_up: u64,
}

impl Webhooks {
    /// Reads those on record. Nothing is sent yet.
    pub(crate) async fn open(store: Store, reach: Reach) -> Result<Arc<Self>, StoreError> {
        let (enabled, changed, ending) = (Mutex::default(), Notify::new(), CancellationToken::new());
        let (task, counts) = <(_, _)>::default();
        let webhooks = Self { store, sender: Sender::new(reach), enabled, changed, ending, task, counts };
        let webhooks = Arc::new(webhooks);
        webhooks.renew().await?;
        Ok(webhooks)
    }

    /// Whether a URL is one that events are sent to.
    pub(crate) fn check(&self, url: &str) -> Result<(), TargetError> {
        self.sender.reach.check(url).map(drop)
    }

    /// Webhooks were added, changed or deleted, or deliveries revived.
    pub(crate) async fn renew(&self) -> Result<(), StoreError> {
        let mut enabled = self.store.webhooks(Scope::Host).await?;
        enabled.retain(|webhook| webhook.enabled);
        *self.enabled.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(enabled);
        self.changed.notify_one();
        Ok(())
    }

    /// What became of attempts to deliver.
    pub(crate) fn counts(&self) -> DeliveryCounts {
        *self.counter()
    }

    fn counter(&self) -> MutexGuard<'_, DeliveryCounts> {
        // Each holder makes one change, so poisoned counts are whole ones.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the task that sends.
    pub(crate) fn is_sent_by(&self, task: JoinHandle<()>) {
        *self.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
    }

    /// Nothing more happens: returns when all that has is on record.
    pub(crate) async fn end(&self) {
        self.ending.cancel();
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task
            && task.await.is_err()
        {
            tracing::error!("the task that sends webhooks fell: events that were not on record are lost");
        }
    }

    fn enabled(&self) -> Arc<Vec<Webhook>> {
        Arc::clone(&self.enabled.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sends what `changes` tell of, until the end.
    pub(crate) async fn run(self: Arc<Self>, mut changes: Reader) {
        let mut under_way = JoinSet::new();
        let mut turns = Turns::default();
        let mut unrecorded = Vec::new();
        let mut next = Some(Instant::now());
        loop {
            let wait = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let mut first = None;
            tokio::select! {
                () = self.ending.cancelled() => break,
                () = self.changed.notified() => next = Some(Instant::now()),
                told = changes.next() => first = Some(told),
                Some(ended) = under_way.join_next(), if !under_way.is_empty() => {
                    // One that panicked has said so; its webhook is not stuck for that.
                    match ended { Ok(id) => drop(turns.busy.remove(&id)), Err(_) => turns.busy.clear() }
                    next = Some(Instant::now());
                }
                () = wait => {}
            }
            if let Some(told) = first {
                let waited = unrecorded.len();
                self.gather(Some(told), &mut changes, &mut unrecorded);
                if unrecorded.is_empty() {
                    continue;
                }
                // What could not be recorded is tried again in its time, not with each event.
                next = if waited == 0 { Some(Instant::now()) } else { next };
            }
            if next.is_some_and(|at| at <= Instant::now()) {
                let recorded = self.record(&mut unrecorded).await;
                next = if recorded { self.begin(&mut under_way, &mut turns).await } else { Some(Instant::now() + RETRY_STORE) };
            }
        }
        // What was under way is sent again by the next server.
        under_way.shutdown().await;
        self.gather(None, &mut changes, &mut unrecorded);
        if !self.record(&mut unrecorded).await {
            tracing::error!(count = unrecorded.len(), "events of webhooks are lost: they could not be recorded before the end");
        }
    }

    /// Takes what was told, and all that there is besides, as far as a webhook wants it.
    fn gather(&self, first: Option<Told>, changes: &mut Reader, unrecorded: &mut Vec<(WebhookId, Delivery)>) {
        let enabled = self.enabled();
        let mut next = first.or_else(|| changes.try_next());
        while let Some(told) = next {
            match told {
                Told::Missed(_) => tracing::error!("webhooks were overtaken by events: some are not sent"),
                Told::Change(_) if enabled.is_empty() => {}
                Told::Change(change) => {
                    unrecorded.extend(LifecycleEvent::of(&change).iter().flat_map(|event| wanted(event, &enabled)))
                }
            }
            next = changes.try_next();
        }
        if unrecorded.len() > MAX_UNRECORDED {
            tracing::error!(count = unrecorded.len() - MAX_UNRECORDED, "events of webhooks are lost: the database takes none");
            unrecorded.truncate(MAX_UNRECORDED);
        }
    }

    /// Puts on record what is to be sent. Whether nothing is left of it.
    async fn record(&self, unrecorded: &mut Vec<(WebhookId, Delivery)>) -> bool {
        if unrecorded.is_empty() {
            return true;
        }
        match self.store.enqueue(unrecorded.clone()).await {
            Ok(()) => unrecorded.clear(),
            Err(error) => tracing::error!(error = chain(&error), "cannot record what webhooks are to be sent: it is tried again"),
        }
        unrecorded.is_empty()
    }

    /// Begins to send what is due. When there is something to do next; never, where nothing waits.
    async fn begin(self: &Arc<Self>, under_way: &mut JoinSet<WebhookId>, turns: &mut Turns) -> Option<Instant> {
        let heads = match self.store.heads().await {
            Ok(heads) => heads,
            Err(error) => {
                tracing::warn!(error = chain(&error), "cannot read what webhooks are to be sent");
                return Some(Instant::now() + RETRY_STORE);
            }
        };
        let now = Timestamp::now();
        let (begun, next) = turns.begin(heads, now.as_millisecond());
        for head in begun {
            let (webhooks, id) = (Arc::clone(self), head.webhook.id.clone());
            under_way.spawn(async move {
                webhooks.deliver(head).await;
                id
            });
        }
        let wait = u64::try_from(next?.saturating_sub(now.as_millisecond())).unwrap_or(0);
        Some(Instant::now() + Duration::from_millis(wait).min(LONGEST_SLEEP))
    }

    async fn deliver(&self, Head { number, webhook, mut delivery, .. }: Head) {
        let recorded = match self.sender.send(&webhook, &delivery.payload).await {
            Ok(()) => {
                self.counter().delivered += 1;
                self.store.delivered(number).await
            }
            Err(error) => {
                let again = usize::try_from(delivery.attempts).ok().and_then(|attempt| PAUSES.get(attempt));
                delivery.attempts = delivery.attempts.saturating_add(1);
                delivery.error = Some(error.to_string());
                if again.is_some() {
                    self.counter().failed += 1;
                } else {
                    self.counter().given_up += 1;
                    tracing::warn!(webhook = %webhook.id, %error, "a webhook's delivery is given up");
                }
                let again = again.map(|pause| Timestamp::now().saturating_add(*pause).unwrap_or(Timestamp::MAX));
                self.store.not_delivered(number, webhook.id, delivery, again).await
            }
        };
        if let Err(error) = recorded {
            tracing::warn!(error = chain(&error), "cannot record what became of a webhook's delivery: it may be sent twice");
            tokio::time::sleep(RETRY_STORE).await;
        }
    }
}

/// Whose turn it is.
#[derive(Debug, Default)]
struct Turns {
    /// Those that are sent something just now, and whose they are.
    busy: HashMap<WebhookId, TeamId>,
    /// When each was served last, by a count; those that have nothing to be sent are forgotten.
    served: HashMap<WebhookId, u64>,
    count: u64,
}

impl Turns {
    /// Which of these deliveries are sent now, and when the first of those is due that are not yet. One that is due and gets no place here
    /// is looked at again when another has ended.
    fn begin(&mut self, mut heads: Vec<Head>, now_ms: i64) -> (Vec<Head>, Option<i64>) {
        let waiting: HashSet<_> = heads.iter().map(|head| &head.webhook.id).collect();
        self.served.retain(|id, _| waiting.contains(id));
        heads.retain(|head| !self.busy.contains_key(&head.webhook.id));
        let next = heads.iter().map(|head| head.due_ms).filter(|due_ms| *due_ms > now_ms).min();
        heads.retain(|head| head.due_ms <= now_ms);
        heads.sort_by_key(|head| (self.served.get(&head.webhook.id).copied().unwrap_or_default(), head.due_ms));
        let mut begun = Vec::new();
        for head in heads {
            let owner = &head.webhook.owner;
            let of_team = self.busy.values().filter(|team| *team == owner).count();
            if self.busy.len() < AT_ONCE && of_team < AT_ONCE_OF_TEAM {
                self.count += 1;
                self.served.insert(head.webhook.id.clone(), self.count);
                self.busy.insert(head.webhook.id.clone(), owner.clone());
                begun.push(head);
            }
        }
        (begun, next)
    }
}

/// The event for each of these that wants it.
fn wanted(event: &LifecycleEvent, webhooks: &[Webhook]) -> Vec<(WebhookId, Delivery)> {
    let wants = |webhook: &&Webhook| webhook.owner.as_str() == event.sandbox_team_id && webhook.events.contains(&event.kind);
    let delivery = |webhook: &Webhook| {
        let (event_id, payload) = (event.id.clone(), event.payload());
        let delivery = Delivery { event_id, kind: event.kind, payload, at: event.timestamp, attempts: 0, error: None };
        (webhook.id.clone(), delivery)
    };
    webhooks.iter().filter(wants).map(delivery).collect()
}

/// What webhooks reach: what sandboxes do, and this host's own addresses neither, but for what the operator opened.
pub(crate) fn reach(surroundings: Surroundings, opened: Vec<Ipv4Net>) -> Reach {
    let Surroundings { own, closed, .. } = surroundings;
    Reach::new(own.into_iter().chain(closed).collect(), opened)
}

/// The changes that are sent: of all teams, from now on.
pub(crate) fn reader(feed: &Arc<Feed>) -> Reader {
    feed.read_what_is_left(Scope::Host)
}

#[cfg(test)]
mod tests;
