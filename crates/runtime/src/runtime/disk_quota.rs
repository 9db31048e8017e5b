//! The disk quota of sandboxes that run: snapshots and resumes are refused by those who make them, and this looks after what guests
//! write meanwhile.
//!
//! To know all that a sandbox holds takes a look at the records and at its files, so that is done only where the layer that it writes
//! has changed by more than a little since the last time.

use std::{collections::HashMap, sync::Arc, time::Duration};

use firkin_causes::chain;
use tokio::{
    sync::oneshot,
    time::{MissedTickBehavior, interval, timeout},
};

use super::disk_floor::running;
use crate::{
    ground::blocking::blocking,
    host::disk::bytes_below,
    sandbox::owner::{Command, Owners, SnapshotError},
    store::spec::SandboxId,
};

/// Between two looks. A guest writes a gigabyte a second at most.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// How long the owner of one is waited for before others are looked at. What takes longer is done all the same.
const DEADLINE: Duration = Duration::from_secs(30);

/// A layer that has changed by less is not worth a look.
const LITTLE_BYTES: u64 = 16 << 20;

/// Looks until the runtime stops.
pub(crate) async fn hold(owners: Arc<Owners>) {
    let shared = Arc::clone(&owners.shared);
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut looked: HashMap<SandboxId, u64> = HashMap::new();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = shared.stopping.cancelled() => return,
        }
        let now = sizes(&owners).await;
        looked.retain(|id, _| now.contains_key(id));
        for (id, bytes) in now {
            if looked.get(&id).copied().unwrap_or(0).abs_diff(bytes) <= LITTLE_BYTES {
                continue;
            }
            let held = tokio::select! {
                held = timeout(DEADLINE, hold_one(&owners, &id)) => held.unwrap_or(false),
                () = shared.stopping.cancelled() => return,
            };
            if held {
                looked.insert(id, bytes);
            }
        }
    }
}

/// What each running sandbox has written. Of one that has gone meanwhile there is nothing to know.
async fn sizes(owners: &Owners) -> HashMap<SandboxId, u64> {
    let running = running(owners);
    blocking(move || running.into_iter().filter_map(|(id, dir)| Some((id, bytes_below(&dir).ok()?))).collect()).await
}

/// Has its owner pause a sandbox that holds too much. Whether it need not be looked at again before it has written more.
async fn hold_one(owners: &Owners, id: &SandboxId) -> bool {
    let Some(handle) = owners.handles().get(id).cloned() else { return true };
    let (reply, answer) = oneshot::channel();
    if handle.commands.send(Command::HoldQuota { reply }).await.is_err() {
        return true;
    }
    match answer.await {
        Ok(Ok(paused)) => {
            if paused {
                tracing::warn!(sandbox = %id, "paused a sandbox that holds more of the disk than it may");
            }
            true
        }
        // Gone, or paused by somebody else.
        Ok(Err(SnapshotError::AlreadyPaused(_) | SnapshotError::NotFound(_))) | Err(_) => true,
        Ok(Err(error)) => {
            tracing::error!(sandbox = %id, error = chain(&error), "cannot hold a sandbox to its disk quota");
            false
        }
    }
}
