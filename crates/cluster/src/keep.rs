//! Keeps a node one of its cluster: its lease is renewed, it says what it has, and it hears who else is there and which keys are good.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use firkin_causes::chain;
use firkin_postgres::{Lease, Membership};
use firkin_runtime::{
    capacity::{HostCapacity, ResourceBudget},
    runtime::Runtime,
    store::StoreError,
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Notify, watch},
    time::{MissedTickBehavior, interval, sleep},
};

use crate::Records;

/// The most builds that a node says it holds: more would not fit into what others read every few seconds. Of the others it is asked later.
const MOST_HELD: usize = 1000;

/// Between two looks at who is there.
const BETWEEN_LOOKS: Duration = Duration::from_millis(300);

/// What a node says of itself with each renewal: for people, and for others that place sandboxes.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Said {
    pub(crate) version: String,
    /// Whether it answers requests. One that begins has a lease before that.
    pub(crate) serves: bool,
    acceleration: String,
    /// All that it runs sandboxes by, by the words for which that is asked.
    pub(crate) engines: Vec<String>,
    pub(crate) running: usize,
    pub(crate) paused: usize,
    /// Of these, those that no other node has a copy of.
    pub(crate) copies_owed: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) capacity: Option<HostCapacity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) held: Option<ResourceBudget>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) free_memory_mib: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) holds: Option<HashSet<String>>,
}

/// A node that is kept one: whether it serves, which others are told with the next renewal.
#[derive(Debug, Default)]
pub struct Serves {
    does: AtomicBool,
    begun: Notify,
}

impl Serves {
    /// It does, from now on.
    pub fn begin(&self) {
        self.does.store(true, Ordering::SeqCst);
        self.begun.notify_one();
    }
}

/// Renews the lease of a node, and tells its runtime what the others have changed, until the node is not this server's any more: another server
/// has it, or an operator has said that it is off. A database that is away ends nothing: what others cannot start runs on.
///
/// Renewals wait for nothing but the database: what else there is to do is done beside them.
pub async fn keep(
    membership: Arc<Membership>,
    records: Arc<Records>,
    (runtime, serves): (Runtime, Arc<Serves>),
    version: &str,
) -> StoreError {
    let (say, said) = watch::channel(String::from("{}"));
    let (tell, told) = watch::channel(membership.lease());
    let hears = hear_on(&membership, &records, &runtime, told);
    let says = async {
        let mut turns = interval(membership.cluster().times.renew_every);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let begins = tokio::select! {
                _ = turns.tick() => false,
                () = serves.begun.notified() => true,
            };
            let Ok(text) = serde_json::to_string(&self::said(&runtime, &serves, (version, records.copies_owed())).await) else {
                continue;
            };
            drop(say.send_replace(text.clone()));
            // The others need not wait for the next renewal. If it fails, that comes.
            if begins && let Err(error) = membership.renew(Some(&text)).await {
                tracing::debug!(error = chain(&error), "it is not said at once that this node serves");
            }
        }
    };
    tokio::select! {
        lost = membership.keep(|| said.borrow().clone(), &tell) => lost,
        never = hears => never,
        never = says => never,
    }
}

/// What there is to hear: after each renewal, and where somebody comes who is not known.
async fn hear_on(membership: &Membership, records: &Records, runtime: &Runtime, mut told: watch::Receiver<Lease>) -> StoreError {
    let mut is_away = false;
    loop {
        let lease = tokio::select! {
            renewed = told.changed() => {
                // Whoever renews outlives this.
                if renewed.is_err() { return std::future::pending().await }
                Some(*told.borrow_and_update())
            }
            () = records.unheard() => None,
        };
        let heard = hear(membership, records, runtime, lease).await;
        match heard {
            Ok(()) => is_away = false,
            Err(error) if is_away => tracing::debug!(error = chain(&error), "what other nodes change is not heard"),
            Err(error) => {
                tracing::warn!(error = chain(&error), "what other nodes change is not heard");
                is_away = true;
            }
        }
        // Whoever knocks again and again costs the database one look in so long.
        sleep(BETWEEN_LOOKS).await;
    }
}

async fn hear(membership: &Membership, records: &Records, runtime: &Runtime, lease: Option<Lease>) -> Result<(), StoreError> {
    if let Some(lease) = lease.filter(|lease| lease.had_ended) {
        let lost = runtime.let_go_of_what_is_anothers().await?;
        records.counts().fenced.fetch_add(u64::try_from(lost).unwrap_or(u64::MAX), Ordering::Relaxed);
        tracing::warn!(sandboxes = lost, "the lease of this node had ended; what others have taken since is let go of");
        membership.looked(&lease);
    }
    records.hear().await?;
    if lease.is_some() { runtime.hear_of_keys().await } else { Ok(()) }
}

async fn said(runtime: &Runtime, serves: &Serves, (version, copies_owed): (&str, usize)) -> Said {
    let outlook = runtime.outlook();
    let view = runtime.capacity();
    let free = view.capacity.memory_mib.saturating_sub(view.usage.active.held.memory_mib);
    // Who does not say what it holds is taken to hold anything.
    let holds = runtime.builds_here(MOST_HELD).await.ok();
    Said {
        version: version.to_owned(),
        serves: serves.does.load(Ordering::SeqCst),
        acceleration: outlook.acceleration,
        engines: outlook.engines.into_iter().map(str::to_owned).collect(),
        running: outlook.running,
        paused: outlook.paused,
        copies_owed,
        capacity: Some(view.capacity),
        held: Some(view.usage.active.held),
        free_memory_mib: Some(free),
        holds: holds.map(|builds| builds.into_iter().map(|build| build.to_string()).collect()),
    }
}
