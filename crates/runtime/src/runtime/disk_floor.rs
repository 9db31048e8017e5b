//! The free-space floor, for sandboxes that run: admission keeps new work from a disk that is nearly full, and this keeps those who fill
//! it from filling it wholly. A full disk would take their neighbours' writes too, and the records of all.
//!
//! While the disk is below its floor, whoever wrote most since the last look is paused, one a look, and stays so until there is room for
//! its resume. Its memory is kept, below the floor: that is what the floor is a reserve for. Who writes next to nothing goes on, and so
//! does, for one look, whoever has just come: of them it is not known what they write. Template builds are not looked at: they refuse to
//! begin below the floor.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use firkin_causes::chain;
use tokio::{
    sync::oneshot,
    time::{MissedTickBehavior, interval, timeout},
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

/// How long one pause is waited for: others write meanwhile. What takes longer is done all the same, by its owner.
const PAUSE_DEADLINE: Duration = Duration::from_secs(30);

/// What a sandbox may write between two looks without counting as a writer: logs and the like.
const LITTLE_BYTES: u64 = 1 << 20;

/// Bytes in the directory of each running sandbox's machine: the layer that it writes.
pub(super) type Sizes = HashMap<SandboxId, u64>;

/// Looks until the runtime stops.
pub(crate) async fn hold(owners: Arc<Owners>) {
    let shared = Arc::clone(&owners.shared);
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before = Sizes::new();
    let mut cannot = HashSet::new();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = shared.stopping.cancelled() => return,
        }
        // Who wrote how much is worth knowing from some time before it matters.
        if shared.gates.disk.check_for_refill().is_ok() {
            before.clear();
            cannot.clear();
            continue;
        }
        let mut now = sizes(&owners).await;
        if let Err(pressure @ DiskPressure::BelowFloor { .. }) = shared.gates.disk.check()
            && let Some((id, grown)) = next_to_pause(&before, &now, &mut cannot)
        {
            tracing::warn!(sandbox = %id, grown_mib = grown >> 20, error = chain(&pressure), "pausing the sandbox that writes most");
            let paused = tokio::select! {
                paused = timeout(PAUSE_DEADLINE, pause(&owners, &id, grown)) => paused.unwrap_or(false),
                () = shared.stopping.cancelled() => return,
            };
            if !paused {
                cannot.insert(id);
            }
            // A pause takes its time, and what others write meanwhile is more than what they write between two looks.
            now = sizes(&owners).await;
        }
        before = now;
    }
}

/// What each running sandbox has written.
pub(super) async fn sizes(owners: &Owners) -> Sizes {
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

/// The largest writer, but for those that could not be paused: these are tried again once nobody else writes.
fn next_to_pause(before: &Sizes, now: &Sizes, cannot: &mut HashSet<SandboxId>) -> Option<(SandboxId, u64)> {
    let found = largest_writer(before, now, cannot);
    if found.is_none() {
        cannot.clear();
    }
    found
}

/// Who has written most since the last look, and how much.
fn largest_writer(before: &Sizes, now: &Sizes, cannot: &HashSet<SandboxId>) -> Option<(SandboxId, u64)> {
    let known = now.iter().filter(|(id, _)| !cannot.contains(id));
    let grown = known.filter_map(|(id, bytes)| Some((id, bytes.saturating_sub(*before.get(id)?))));
    let largest = grown.filter(|(_, bytes)| *bytes > LITTLE_BYTES).max_by_key(|(_, bytes)| *bytes)?;
    Some((largest.0.clone(), largest.1))
}

/// Has a sandbox paused by its owner. Whether it writes no more.
async fn pause(owners: &Owners, id: &SandboxId, grown: u64) -> bool {
    let Some(handle) = owners.handles().get(id).cloned() else { return true };
    let (reply, answer) = oneshot::channel();
    if handle.commands.send(Command::MakeRoom { grown, reply }).await.is_err() {
        return true;
    }
    match answer.await {
        // Gone, or paused by somebody else.
        Ok(Ok(()) | Err(SnapshotError::AlreadyPaused(_) | SnapshotError::NotFound(_))) | Err(_) => true,
        Ok(Err(error)) => {
            tracing::error!(sandbox = %id, error = chain(&error), "cannot pause the sandbox that writes most");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes<const N: usize>(sizes: [(&str, u64); N]) -> Sizes {
        sizes.into_iter().map(|(id, mib)| (id.parse().unwrap(), mib << 20)).collect()
    }

    fn largest(before: &Sizes, now: &Sizes) -> Option<(String, u64)> {
        largest_writer(before, now, &HashSet::new()).map(|(id, bytes)| (id.to_string(), bytes >> 20))
    }

    #[test]
    fn it_is_growth_that_counts_and_not_size() {
        let before = sizes([("large", 900), ("writer", 10), ("cut", 500)]);
        let now = sizes([("large", 901), ("writer", 40), ("cut", 20), ("new", 5)]);
        assert_eq!(largest(&before, &now), Some(("writer".to_owned(), 30)));
        assert_eq!(largest(&Sizes::new(), &now), None, "what is there already was not written just now");
    }

    #[test]
    fn who_cannot_be_paused_shields_nobody_and_is_tried_again() {
        let (before, now) = (sizes([("first", 0), ("second", 0)]), sizes([("first", 90), ("second", 50)]));
        let mut cannot = HashSet::new();
        let mut next = || {
            let found = next_to_pause(&before, &now, &mut cannot).map(|(id, _)| id);
            cannot.extend(found.clone());
            found.map(|id| id.to_string())
        };
        assert_eq!([next(), next(), next(), next()].map(|id| id.unwrap_or_default()), ["first", "second", "", "first"]);
    }

    #[test]
    fn who_writes_next_to_nothing_goes_on() {
        let before = sizes([("idle", 900)]);
        assert_eq!(largest(&before, &sizes([("idle", 901)])), None);
        assert_eq!(largest(&before, &before), None);
    }
}
