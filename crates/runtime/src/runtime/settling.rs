//! Sandboxes of which nobody knows what is on record, since a database went away before it said what it had kept.
//!
//! Each is recorded again as it is once the database is back: a server that came before the sandbox's next change would take one that runs for
//! paused, and end its machine. One that is gone is forgotten (`start/forgetting.rs`).

use std::{sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval};

use crate::sandbox::owner::{Command, Owners};

/// Between two attempts.
const EVERY: Duration = Duration::from_secs(5);

/// Has owners record what is in doubt, until the runtime stops. Only a catalogue that is not this host's goes away.
pub(super) async fn settle(owners: Arc<Owners>) {
    let shared = &owners.shared;
    if !shared.store.is_shared() {
        return;
    }
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = shared.stopping.cancelled() => return,
        }
        for id in shared.store.all_in_doubt() {
            let handle = owners.handles().get(&id).cloned();
            // One that has much to do is asked again.
            drop(handle.map(|handle| handle.commands.try_send(Command::Record)));
        }
    }
}
