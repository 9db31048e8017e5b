//! Keeps a node one of its cluster: its lease is renewed, and it hears who else is there and which keys are good.

use std::sync::Arc;

use firkin_causes::chain;
use firkin_postgres::Membership;
use firkin_runtime::{runtime::Runtime, store::StoreError};
use serde::Serialize;
use tokio::time::{MissedTickBehavior, interval};

use crate::Records;

/// What a node says of itself with each renewal.
#[derive(Debug, Serialize)]
struct Info {
    version: &'static str,
    acceleration: String,
    running: usize,
    paused: usize,
    capacity: firkin_runtime::capacity::HostCapacity,
    held: firkin_runtime::capacity::ResourceBudget,
}

/// Renews the lease of a node, and tells its runtime what the others have changed, until the node is not this server's any more: another server
/// has it, or an operator has said that it is off. A database that is away ends nothing: what others cannot start runs on.
pub async fn keep(membership: Arc<Membership>, records: Arc<Records>, runtime: Runtime, version: &'static str) -> StoreError {
    let mut turns = interval(membership.cluster().times.renew_every);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_away = false;
    loop {
        turns.tick().await;
        let said = serde_json::to_string(&info(&runtime, version)).ok();
        let heard = match membership.renew(said.as_deref()).await {
            Ok(lease) => {
                if lease.had_ended {
                    tracing::warn!("the lease of this node had ended: what it had paused, others may have taken");
                }
                match records.hear().await {
                    Ok(()) => runtime.hear_of_keys().await,
                    failed => failed,
                }
            }
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

fn info(runtime: &Runtime, version: &'static str) -> Info {
    let outlook = runtime.outlook();
    let view = runtime.capacity();
    Info {
        version,
        acceleration: outlook.acceleration,
        running: outlook.running,
        paused: outlook.paused,
        capacity: view.capacity,
        held: view.usage.active.held,
    }
}
