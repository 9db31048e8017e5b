//! Keeps a node one of its cluster: its lease is renewed, it says what it has, and it hears who else is there and which keys are good.

use std::{collections::HashSet, sync::Arc, time::Duration};

use firkin_causes::chain;
use firkin_postgres::{Lease, Membership};
use firkin_runtime::{
    capacity::{HostCapacity, ResourceBudget},
    runtime::Runtime,
    store::StoreError,
};
use serde::{Deserialize, Serialize};
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::Records;

/// The most builds that a node says it holds: more would not fit into what others read every few seconds. Of the others it is asked later.
const MOST_HELD: usize = 1000;

/// Between two looks at who is there that a stranger's knock has caused. Far below the time between renewals, which they hold up.
const BETWEEN_LOOKS: Duration = Duration::from_millis(300);

/// What a node says of itself with each renewal: for people, and for others that place sandboxes.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Said {
    version: String,
    acceleration: String,
    running: usize,
    paused: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    capacity: Option<HostCapacity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    held: Option<ResourceBudget>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) free_memory_mib: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) holds: Option<HashSet<String>>,
}

/// Renews the lease of a node, and tells its runtime what the others have changed, until the node is not this server's any more: another server
/// has it, or an operator has said that it is off. A database that is away ends nothing: what others cannot start runs on.
pub async fn keep(membership: Arc<Membership>, records: Arc<Records>, runtime: Runtime, version: &str) -> StoreError {
    let mut turns = interval(membership.cluster().times.renew_every);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_away = false;
    loop {
        tokio::select! {
            _ = turns.tick() => {}
            () = records.unheard() => {
                if let Err(error) = records.hear().await {
                    tracing::debug!(error = chain(&error), "who is there is not known anew");
                }
                // Whoever knocks again and again costs the database one look in so long.
                sleep(BETWEEN_LOOKS).await;
                continue;
            }
        }
        let said = serde_json::to_string(&said(&runtime, version).await).ok();
        let heard = match membership.renew(said.as_deref()).await {
            Ok(lease) => hear(&membership, &records, &runtime, &lease).await,
            Err(fenced @ StoreError::Fenced { .. }) => return fenced,
            Err(error) => Err(error),
        };
        match heard {
            Ok(()) if is_away => {
                tracing::info!("the catalogue of the cluster is back");
                is_away = false;
            }
            Ok(()) => {}
            Err(error) if is_away => tracing::debug!(error = chain(&error), "the lease of this node is not renewed"),
            Err(error) => {
                let left = membership.lease().left().as_secs();
                tracing::warn!(error = chain(&error), left_s = left, "the lease of this node is not renewed");
                is_away = true;
            }
        }
    }
}

/// What there is to hear once the lease is renewed.
async fn hear(membership: &Membership, records: &Records, runtime: &Runtime, lease: &Lease) -> Result<(), StoreError> {
    if lease.had_ended {
        let lost = runtime.let_go_of_what_is_anothers().await?;
        tracing::warn!(sandboxes = lost, "the lease of this node had ended; what others have taken since is let go of");
        membership.looked(lease);
    }
    records.hear().await?;
    runtime.hear_of_keys().await
}

async fn said(runtime: &Runtime, version: &str) -> Said {
    let outlook = runtime.outlook();
    let view = runtime.capacity();
    let free = view.capacity.memory_mib.saturating_sub(view.usage.active.held.memory_mib);
    // Who does not say what it holds is taken to hold anything.
    let holds = runtime.builds_here(MOST_HELD).await.ok();
    Said {
        version: version.to_owned(),
        acceleration: outlook.acceleration,
        running: outlook.running,
        paused: outlook.paused,
        capacity: Some(view.capacity),
        held: Some(view.usage.active.held),
        free_memory_mib: Some(free),
        holds: holds.map(|builds| builds.into_iter().map(|build| build.to_string()).collect()),
    }
}
