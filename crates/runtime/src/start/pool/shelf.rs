//! One template's part of the pool: what waits, what it lacks, and what of it is worth least.

use std::collections::{BTreeMap, VecDeque};

use tokio::{sync::oneshot, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{Waiting, demand::Demand};
use crate::{capacity::ResourceBudget, ground::ids::ArtifactId, restore::warm::Depth};

/// How far what waits has come. In the order of their worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// An engine that waits for the state of its snapshot.
    Prepared,
    /// A session that is restored, warmed up and stopped.
    Warm,
}

impl Stage {
    pub(super) const ALL: [Self; 2] = [Self::Prepared, Self::Warm];
}

/// What waits, as the pool knows it. Its own task has the rest, and ends it when this is dropped.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) id: u64,
    pub(super) stage: Stage,
    /// Names where it is to go.
    pub(super) claim: oneshot::Sender<oneshot::Sender<Waiting>>,
    /// Cancelled after it has ended and its capacity was given back.
    pub(super) ended: CancellationToken,
    pub(super) ready: bool,
}

/// When what failed is tried again.
#[derive(Debug, Default)]
pub(super) struct Patience {
    /// Failed refills since the last that succeeded.
    pub(super) failures: u32,
    /// Nothing is refilled before.
    pub(super) retry_at: Option<Instant>,
}

/// One template's part of the pool.
#[derive(Debug)]
pub(super) struct Shelf {
    pub(super) artifact: ArtifactId,
    pub(super) budget: ResourceBudget,
    pub(super) warm_up: Option<String>,
    pub(super) depth: Depth,
    pub(super) prepared: usize,
    pub(super) demand: Demand,
    /// Of both stages, oldest first.
    pub(super) items: VecDeque<Item>,
    /// Of each stage: what cannot be warmed up may still be prepared.
    pub(super) patience: BTreeMap<Stage, Patience>,
}

impl Shelf {
    pub(super) fn wanted(&self, stage: Stage, now: Instant) -> usize {
        match stage {
            Stage::Prepared => self.prepared,
            Stage::Warm => self.depth.wanted(self.demand.peak(now)),
        }
    }

    pub(super) fn count(&self, stage: Stage) -> usize {
        self.items.iter().filter(|item| item.stage == stage).count()
    }

    pub(super) fn ready(&self, stage: Stage) -> usize {
        self.items.iter().filter(|item| item.stage == stage && item.ready).count()
    }

    pub(super) fn making(&self) -> usize {
        self.items.iter().filter(|item| !item.ready).count()
    }

    /// Takes the youngest of a stage that are more than wanted. Gives how many they were.
    pub(super) fn retire(&mut self, stage: Stage, now: Instant) -> u64 {
        let surplus = self.count(stage).saturating_sub(self.wanted(stage, now));
        for _ in 0..surplus {
            // If one is still being made, least is lost.
            let youngest = self.items.iter().rposition(|item| item.stage == stage);
            drop(youngest.and_then(|at| self.items.remove(at)));
        }
        surplus as u64
    }

    /// What it lacks most at `now`, ranked among what other shelves lack: warm sessions first, and a stage of which there is none.
    pub(super) fn lacks(&self, now: Instant) -> Option<(Stage, bool, usize)> {
        let lacking = |stage| {
            let count = self.count(stage);
            let may = self.patience.get(&stage).and_then(|patience| patience.retry_at).is_none_or(|at| at <= now);
            let lacking = self.wanted(stage, now).saturating_sub(count);
            (lacking > 0 && may).then_some((stage, count == 0, lacking))
        };
        lacking(Stage::Warm).or_else(|| lacking(Stage::Prepared))
    }

    /// Takes off what is worth least of a stage: what is being made before what is ready.
    pub(super) fn take_least(&mut self, stage: Stage) -> Option<Item> {
        let of_stage = |item: &Item| item.stage == stage;
        let making = self.items.iter().position(|item| of_stage(item) && !item.ready);
        let at = making.or_else(|| self.items.iter().rposition(of_stage))?;
        self.items.remove(at)
    }
}
