//! The disk quota of sandboxes that run: snapshots and resumes are refused by those who make them, and this looks after what guests
//! write meanwhile.
//!
//! To know all that a sandbox holds takes a look at the records and at its files, so that is done only where the layer that it writes
//! has changed by more than a little since the last time. Nobody is waited for: a guest that keeps its owner busy, because it answers
//! nothing, keeps nobody else from being looked at. Where it fails it is tried again, each time after twice as long, so that the events
//! of that sandbox are not of this alone.
//!
//! Below the free-space floor nobody is paused for a quota, because the pause would take what the floor holds back: there the floor's own
//! look has an eye on who writes (`runtime/disk_floor.rs`).

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use firkin_causes::chain;
use tokio::{
    sync::oneshot,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval},
};

use super::disk_floor::running;
use crate::{
    ground::blocking::blocking,
    sandbox::owner::{Command, Owners, SnapshotError},
    store::spec::SandboxId,
};

/// Between two looks. A guest writes a gigabyte a second at most.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// The longest wait after a failure: what cannot be paused for an hour has left a dozen events.
const RETRY_AT_MOST: Duration = Duration::from_secs(600);

/// A layer that has changed by less is not worth a look.
const LITTLE_BYTES: u64 = 16 << 20;

/// What each running sandbox has written, bytes.
type Sizes = HashMap<SandboxId, u64>;

/// What came of a look at one sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// It need not be looked at again before it has written more.
    Held,
    /// There is no room for a pause.
    NoRoom,
    Failed,
}

/// Looks until the runtime stops.
pub(crate) async fn hold(owners: Arc<Owners>) {
    let shared = Arc::clone(&owners.shared);
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut looks, mut under_way) = (Looks::default(), JoinSet::new());
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = shared.stopping.cancelled() => break,
        }
        while let Some(done) = under_way.try_join_next() {
            // One that panicked has said so, and is not told again.
            if let Ok((id, bytes, outcome)) = done {
                looks.note(id, bytes, outcome, Instant::now());
            }
        }
        if shared.gates.disk.check().is_err() {
            continue;
        }
        for (id, bytes) in looks.next(sizes(&owners).await, Instant::now()) {
            let owners = Arc::clone(&owners);
            under_way.spawn(async move {
                let outcome = hold_one(&owners, &id).await;
                (id, bytes, outcome)
            });
        }
    }
    // They hold what the next server waits for: the lock of the state directory.
    under_way.shutdown().await;
}

/// What is known of each sandbox.
#[derive(Debug, Default)]
struct Looks {
    /// What it had written when it was found to hold no more than it may.
    held: Sizes,
    /// Who is being looked at.
    told: HashSet<SandboxId>,
    /// With whom it failed: how long that was waited for, and until when.
    failed: HashMap<SandboxId, (Duration, Instant)>,
}

impl Looks {
    /// Who is to be looked at of those that run.
    fn next(&mut self, now: Sizes, at: Instant) -> Vec<(SandboxId, u64)> {
        self.held.retain(|id, _| now.contains_key(id));
        self.failed.retain(|id, _| now.contains_key(id));
        let is_due = |id: &SandboxId, bytes: u64| {
            self.held.get(id).copied().unwrap_or(0).abs_diff(bytes) > LITTLE_BYTES
                && self.failed.get(id).is_none_or(|(_, until)| *until <= at)
        };
        let next: Vec<_> = now.into_iter().filter(|(id, bytes)| !self.told.contains(id) && is_due(id, *bytes)).collect();
        self.told.extend(next.iter().map(|(id, _)| id.clone()));
        next
    }

    fn note(&mut self, id: SandboxId, bytes: u64, outcome: Outcome, at: Instant) {
        self.told.remove(&id);
        match outcome {
            Outcome::Held => {
                self.failed.remove(&id);
                self.held.insert(id, bytes);
            }
            Outcome::NoRoom => {}
            Outcome::Failed => {
                let wait = self.failed.get(&id).map_or(LOOK_EVERY, |(waited, _)| (*waited * 2).min(RETRY_AT_MOST));
                self.failed.insert(id, (wait, at + wait));
            }
        }
    }
}

/// What each running sandbox has written. Of one that has gone meanwhile there is nothing to know.
async fn sizes(owners: &Owners) -> Sizes {
    let (running, engines) = (running(owners), owners.shared.launcher.engines.clone());
    blocking(move || running.into_iter().filter_map(|(id, dir)| Some((id, engines.bytes_of(&dir).ok()?))).collect()).await
}

/// Has its owner pause a sandbox that holds too much.
async fn hold_one(owners: &Owners, id: &SandboxId) -> Outcome {
    let Some(handle) = owners.handles().get(id).cloned() else { return Outcome::Held };
    let (reply, answer) = oneshot::channel();
    if handle.commands.send(Command::HoldQuota { reply }).await.is_err() {
        return Outcome::Held;
    }
    match answer.await {
        Ok(Ok(paused)) => {
            if paused {
                tracing::warn!(sandbox = %id, "paused a sandbox that holds more of the disk than it may");
            }
            Outcome::Held
        }
        // Gone, or paused by somebody else.
        Ok(Err(SnapshotError::AlreadyPaused(_) | SnapshotError::NotFound(_))) | Err(_) => Outcome::Held,
        Ok(Err(SnapshotError::DiskPressure { .. })) => Outcome::NoRoom,
        Ok(Err(error)) => {
            tracing::error!(sandbox = %id, error = chain(&error), "cannot hold a sandbox to its disk quota");
            Outcome::Failed
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_fails_is_tried_again_after_ever_longer_and_for_ever() {
        let id: SandboxId = "ione".parse().unwrap();
        let (mut looks, begun) = (Looks::default(), Instant::now());
        let mut tries = Vec::new();
        // Each try takes no time here, and it writes all the while.
        for second in (0..7200).step_by(2) {
            let (at, bytes) = (begun + Duration::from_secs(second), (second + 100) << 30);
            for (id, bytes) in looks.next(HashMap::from([(id.clone(), bytes)]), at) {
                assert_eq!(looks.next(HashMap::from([(id.clone(), bytes)]), at), [], "it is told once");
                tries.push(second);
                looks.note(id, bytes, Outcome::Failed, at);
            }
        }
        assert_eq!(tries[..6], [0, 2, 6, 14, 30, 62]);
        assert_eq!(tries[10..].windows(2).map(|pair| pair[1] - pair[0]).collect::<Vec<_>>(), [600; 9]);
        let late = begun + Duration::from_secs(9000);
        let sizes = |mib: u64| HashMap::from([(id.clone(), mib << 20)]);
        looks.note(id.clone(), 100 << 20, Outcome::Held, late);
        assert_eq!(looks.next(sizes(116), late), []);
        assert_eq!(looks.next(sizes(117), late).len(), 1);
        looks.note(id.clone(), 117 << 20, Outcome::NoRoom, late);
        assert_eq!(looks.next(sizes(117), late).len(), 1, "and nothing is waited for where the disk had no room");
    }
}
