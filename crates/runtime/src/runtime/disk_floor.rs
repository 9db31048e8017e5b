//! The free-space floor, for sandboxes that run: admission keeps new work from a disk that is nearly full, and this keeps those who fill
//! it from filling it wholly. A full disk would take their neighbours' writes too, and the records of all.
//!
//! While the disk is below its floor, whoever wrote most since the last look is paused, one a look, and stays so until there is room for
//! its resume. Its memory is kept, below the floor: that is what the floor is a reserve for. Who writes next to nothing goes on.

use std::{collections::HashMap, path::PathBuf, sync::Arc, time::Duration};

use firkin_causes::chain;
use tokio::{
    sync::oneshot,
    time::{MissedTickBehavior, interval},
};

use crate::{
    ground::blocking::blocking,
    host::disk::{DiskPressure, bytes_below},
    sandbox::owner::{Access, Command, Owners, SnapshotError},
    shared::Shared,
    store::spec::SandboxId,
};

/// Between two looks. A guest writes a gigabyte a second at most, and the floor of a large disk is ten.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// What a sandbox may write between two looks without counting as a writer: logs and the like.
const LITTLE_BYTES: u64 = 1 << 20;

/// Bytes in the directory of each running sandbox's machine: the layer that it writes.
type Sizes = HashMap<SandboxId, u64>;

/// Looks until the runtime stops.
pub(crate) async fn hold(owners: Arc<Owners>) {
    let shared = Arc::clone(&owners.shared);
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before = Sizes::new();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = shared.stopping.cancelled() => return,
        }
        // Who wrote how much is worth knowing from some time before it matters.
        if shared.gates.disk.check_for_refill().is_ok() {
            before.clear();
            continue;
        }
        let now = sizes(&owners).await;
        if let Err(pressure @ DiskPressure::BelowFloor { .. }) = shared.gates.disk.check()
            && let Some((id, grown)) = largest_writer(&before, &now)
        {
            tracing::warn!(sandbox = %id, grown_mib = grown >> 20, error = chain(&pressure), "pausing the sandbox that writes most");
            tokio::select! {
                () = pause(&owners, &id, grown) => {}
                () = shared.stopping.cancelled() => return,
            }
        }
        before = now;
    }
}

/// What each running sandbox has written.
async fn sizes(owners: &Owners) -> Sizes {
    let shared: &Shared = &owners.shared;
    let running: Vec<(SandboxId, PathBuf)> = {
        let handles = owners.handles();
        let dirs = handles.iter().filter_map(|(id, handle)| {
            let view = handle.view.borrow();
            matches!(view.access, Access::Running(_)).then(|| (id.clone(), shared.launcher.instances.path(&view.instance)))
        });
        dirs.collect()
    };
    // Of one that has gone meanwhile there is nothing to know.
    blocking(move || running.into_iter().filter_map(|(id, dir)| Some((id, bytes_below(&dir).ok()?))).collect()).await
}

/// Who has written most since the last look, and how much. Of a sandbox that was not there then, all counts.
fn largest_writer(before: &Sizes, now: &Sizes) -> Option<(SandboxId, u64)> {
    let grown = now.iter().map(|(id, bytes)| (id, bytes.saturating_sub(before.get(id).copied().unwrap_or_default())));
    let largest = grown.filter(|(_, bytes)| *bytes > LITTLE_BYTES).max_by_key(|(_, bytes)| *bytes)?;
    Some((largest.0.clone(), largest.1))
}

/// Has a sandbox paused by its owner.
async fn pause(owners: &Owners, id: &SandboxId, grown: u64) {
    let Some(handle) = owners.handles().get(id).cloned() else { return };
    let (reply, answer) = oneshot::channel();
    if handle.commands.send(Command::MakeRoom { grown, reply }).await.is_err() {
        return;
    }
    match answer.await {
        // Gone, or paused by somebody else: it writes no more.
        Ok(Ok(()) | Err(SnapshotError::AlreadyPaused(_) | SnapshotError::NotFound(_))) | Err(_) => {}
        Ok(Err(error)) => tracing::error!(sandbox = %id, error = chain(&error), "cannot pause the sandbox that writes most"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes<const N: usize>(sizes: [(&str, u64); N]) -> Sizes {
        sizes.into_iter().map(|(id, mib)| (id.parse().unwrap(), mib << 20)).collect()
    }

    fn largest(before: &Sizes, now: &Sizes) -> Option<(String, u64)> {
        largest_writer(before, now).map(|(id, bytes)| (id.to_string(), bytes >> 20))
    }

    #[test]
    fn it_is_growth_that_counts_and_not_size() {
        let before = sizes([("large", 900), ("writer", 10), ("cut", 500)]);
        let now = sizes([("large", 901), ("writer", 40), ("cut", 20), ("new", 5)]);
        assert_eq!(largest(&before, &now), Some(("writer".to_owned(), 30)));
        assert_eq!(largest(&Sizes::new(), &now), Some(("large".to_owned(), 901)), "nothing is known of before");
    }

    #[test]
    fn who_writes_next_to_nothing_goes_on() {
        let before = sizes([("idle", 900)]);
        assert_eq!(largest(&before, &sizes([("idle", 901)])), None);
        assert_eq!(largest(&before, &before), None);
    }
}
