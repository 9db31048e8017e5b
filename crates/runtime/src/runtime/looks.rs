//! What changes without anybody doing it, or too often to be told each time: capacity, the warm pool, conditions of the host, damaged
//! artifacts. It is looked at once a second while somebody watches, and told where it is not what it was at the last look. Whoever begins
//! to watch is shown what a look of its own finds, so that what is told afterwards differs from what it was shown.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{MissedTickBehavior, interval};

use crate::{
    capacity::CapacityView,
    ground::ids::ArtifactId,
    restore::warm::PoolStatus,
    shared::Shared,
    start::pool::WarmPool,
    telemetry::changes::{Condition, ConditionState, QuarantineEvent, What},
};

/// Between two looks: as fast as people follow numbers.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What was found by the last look.
#[derive(Debug, Default)]
struct Last {
    capacity: Option<CapacityView>,
    pool: Option<PoolStatus>,
    conditions: Vec<ConditionState>,
    damaged: BTreeMap<ArtifactId, String>,
}

/// The last look of one runtime.
#[derive(Debug, Default)]
pub(super) struct Looks(Mutex<Last>);

/// What a look finds.
pub(super) struct Found {
    pub(super) capacity: CapacityView,
    pub(super) pool: PoolStatus,
    pub(super) conditions: Vec<ConditionState>,
}

impl Looks {
    /// Looks, and tells what is not as it was.
    pub(super) fn look(&self, shared: &Shared, pool: &WarmPool) -> Found {
        // A look replaces what it has told, part by part, so what a panic left is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).look(shared, pool)
    }
}

/// Begins to look.
pub(super) fn begin(shared: &Arc<Shared>, pool: &Arc<WarmPool>) -> Arc<Looks> {
    let looks = Arc::new(Looks::default());
    shared.tasks.spawn(look(Arc::clone(shared), Arc::clone(pool), Arc::clone(&looks)));
    looks
}

/// Looks until the runtime stops.
async fn look(shared: Arc<Shared>, pool: Arc<WarmPool>, own: Arc<Looks>) {
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let due = async {
            shared.changes.watched().await;
            looks.tick().await;
        };
        tokio::select! {
            () = due => {}
            () = shared.stopping.cancelled() => return,
        }
        own.look(&shared, &pool);
    }
}

impl Last {
    fn look(&mut self, shared: &Shared, pool: &WarmPool) -> Found {
        let tell = |what| shared.changes.tell(None, what);
        let capacity = shared.gates.admission.ledger.view();
        if self.capacity.replace(capacity) != Some(capacity) {
            tell(What::Capacity { capacity });
        }
        let status = pool.status();
        if self.pool.as_ref() != Some(&status) {
            self.pool = Some(status.clone());
            tell(What::Pool { pool: status.clone() });
        }
        let now = conditions(shared, pool);
        for state in now.iter().filter(|state| !self.conditions.contains(state)) {
            tell(What::Host { state: *state });
        }
        self.conditions.clone_from(&now);
        self.look_for_damage(shared);
        Found { capacity, pool: status, conditions: now }
    }

    fn look_for_damage(&mut self, shared: &Shared) {
        let marks = shared.artifacts.quarantined();
        let now: BTreeMap<_, _> = marks.into_iter().map(|mark| (mark.artifact, mark.reason)).collect();
        let tell = |event, artifact: &ArtifactId, reason: Option<&String>| {
            shared.changes.tell(None, What::Quarantine { event, artifact: artifact.clone(), reason: reason.cloned() });
        };
        for (artifact, reason) in now.iter().filter(|(artifact, _)| !self.damaged.contains_key(*artifact)) {
            tell(QuarantineEvent::Quarantined, artifact, Some(reason));
        }
        for artifact in self.damaged.keys().filter(|artifact| !now.contains_key(*artifact)) {
            tell(QuarantineEvent::Released, artifact, None);
        }
        self.damaged = now;
    }
}

/// What keeps the host from new work, each with whether it is so.
pub(super) fn conditions(shared: &Shared, pool: &WarmPool) -> Vec<ConditionState> {
    let state = |condition, holds| ConditionState { condition, holds };
    vec![
        state(Condition::ShortOfDisk, shared.gates.disk.check().is_err()),
        state(Condition::ShortOfMemory, shared.gates.admission.memory.check().is_err()),
        state(Condition::ShortOfDiskForPool, pool.status().short_of_disk),
    ]
}
