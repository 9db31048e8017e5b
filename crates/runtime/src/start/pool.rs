//! The warm pool: per template, sessions that are restored, warmed up and stopped, and engines that are prepared for a restore,
//! both waiting for a create to claim them.
//!
//! ```text
//!              reserve warm capacity        identity of nobody,        stop
//!   (demand) ─────────────────────► launch ─────────────────► warm-up ──────► warm ──► claimed: promote, run, renew identity
//!            ─────────────────────► stage ──────────────────────────────► prepared ──► claimed: promote, load, run, identity
//!                                      │                         │              │
//!                                      └── failed, given up ─────┴── evicted ───┴─► ended, then the capacity returns
//! ```
//!
//! Decisions:
//! * A claim is the same restore path as any create: compatibility, integrity and the disk floor come first, and the guest has
//!   its own entropy, clock, name, machine id, environment and token before any user code of the sandbox runs.
//! * The warm-up runs the template's own ready command and nothing else: a claimed session is one in which that command has run
//!   once more than in the template. Snapshots of sandboxes are not pooled: their programs would run for nobody.
//! * How many are kept follows demand between a minimum and a maximum ([`Depth`]); making them yields to creates, and capacity
//!   and disk that active work needs are never taken for them.
//! * Prepared engines are for the creates that find no warm session, as in a burst: they are made in a fraction of the time, of
//!   templates that cannot be warmed up too, and cost no page of a guest. They are the first to go, also for a warm session.
//! * One task owns whatever waits, so that what dies is noticed before somebody is given it.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use self::shelf::{Item, Shelf};
use crate::{
    artifact::ArtifactKind,
    capacity::{ResourceBudget, WarmEviction, WarmSessionReservation},
    ground::{ids::ArtifactId, reference::Reference},
    machine::{
        launch::SnapshotRestoreRequest,
        session::{Session, Staged},
    },
    restore::warm::{Depth, PoolStatus, ShelfStatus, WarmConfig, shelf_of},
    store::TemplateRecord,
};

mod claim;
mod demand;
mod keeper;
mod shelf;

pub(crate) use self::{claim::Claimed, keeper::keep, shelf::Stage};

/// Between the starts of two refills. Faster than any host restores, so it bounds nothing but a loop of failures.
const REFILL_INTERVAL: Duration = Duration::from_millis(50);

/// After an eviction nothing is refilled for this long: what was freed is for whoever it was freed for.
const QUIET: Duration = Duration::from_secs(5);

/// After a create began nothing is refilled for this long, so that the sandbox's first command has the host's processors. Not put
/// off again while it lasts: creates without end do not empty the pool.
const BREATH: Duration = Duration::from_millis(150);

/// How often a pool without any event looks whether demand has gone down, or room has come.
const TICK: Duration = Duration::from_secs(10);

/// How long a template waits after its first failed refill; doubled with each further one.
const RETRY: Duration = Duration::from_secs(1);

/// The most that [`RETRY`] grows to.
const MAX_RETRY: Duration = Duration::from_secs(300);

/// What waits for a claim, and the capacity that it holds. Dropping it kills the machine.
#[derive(Debug)]
pub(crate) struct Waiting {
    // Before the reservation: the machine goes first.
    what: Staging,
    reservation: WarmSessionReservation,
}

/// What waits, by its [`Stage`].
#[derive(Debug)]
enum Staging {
    Prepared(Box<Staged>),
    Warm(Box<Session>),
}

#[derive(Debug, Default)]
struct State {
    shelves: BTreeMap<Reference, Shelf>,
    /// The templates are to be read again.
    stale: bool,
    closed: bool,
    next_item: u64,
    /// Creates that are being restored.
    creating: usize,
    last_start: Option<Instant>,
    quiet_until: Option<Instant>,
    breath_until: Option<Instant>,
    counters: PoolStatus,
}

/// What a maker is to make.
#[derive(Debug)]
struct Order {
    /// The shelf that it is for, see [`shelf_of`].
    template: Reference,
    artifact: ArtifactId,
    stage: Stage,
    warm_up: Option<String>,
    item: u64,
    claimed: oneshot::Receiver<oneshot::Sender<Waiting>>,
    ended: CancellationToken,
}

/// What the keeper does next.
#[derive(Debug)]
enum Step {
    Make(Order),
    WaitUntil(Instant),
}

/// Every template's warm sessions.
#[derive(Debug)]
pub(crate) struct WarmPool {
    config: WarmConfig,
    /// Sessions made at a time, and creates beyond which none is begun.
    cpus: usize,
    state: Mutex<State>,
    changed: Notify,
}

impl WarmPool {
    pub(crate) fn new(config: WarmConfig) -> Arc<Self> {
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let state = Mutex::new(State { stale: true, ..State::default() });
        Arc::new(Self { config, cpus, state, changed: Notify::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every critical section leaves a whole state behind, also one that panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A template was built, rebuilt or deleted.
    pub(crate) fn templates_changed(&self) {
        self.state().stale = true;
        self.changed.notify_one();
    }

    pub(crate) fn status(&self) -> PoolStatus {
        let now = Instant::now();
        let state = self.state();
        let shelf = |shelf: &Shelf| ShelfStatus {
            wanted: shelf.wanted(Stage::Warm, now),
            ready: shelf.ready(Stage::Warm),
            prepared: shelf.ready(Stage::Prepared),
            making: shelf.making(),
        };
        let templates: BTreeMap<_, _> = state.shelves.iter().map(|(called, found)| (called.to_string(), shelf(found))).collect();
        // Where nothing is kept warm, nothing looks whether there is room again.
        let short_of_disk = state.counters.short_of_disk && !templates.is_empty();
        PoolStatus { templates, short_of_disk, ..state.counters.clone() }
    }

    /// A ready session of the request's template, if it is pooled and there is one, else a prepared engine. Counts the create as
    /// demand.
    async fn take(&self, request: &SnapshotRestoreRequest) -> Option<Waiting> {
        let manifest = &request.artifact.manifest;
        if manifest.kind != ArtifactKind::BaseTemplate {
            return None;
        }
        let template = &request.identity.template_id;
        let mut first = true;
        loop {
            let item = {
                let mut state = self.state();
                let mut shelves = state.shelves.iter_mut().filter(|(shelf, _)| shelf.name.as_str() == template);
                let (_, shelf) = shelves.find(|(_, shelf)| shelf.artifact == manifest.id)?;
                if std::mem::take(&mut first) {
                    shelf.demand.record(Instant::now());
                }
                let oldest = |stage| shelf.items.iter().position(|item| item.stage == stage && item.ready);
                let at = oldest(Stage::Warm).or_else(|| oldest(Stage::Prepared));
                let item = at.and_then(|at| shelf.items.remove(at));
                if item.is_none() {
                    state.counters.misses += 1;
                }
                item
            };
            self.changed.notify_one();
            let (reply, claimed) = oneshot::channel();
            // What has just died is passed over.
            if item?.claim.send(reply).is_ok()
                && let Ok(waiting) = claimed.await
            {
                return Some(waiting);
            }
        }
    }

    /// Takes the templates that there are now. What waits of others, and of earlier builds, ends.
    fn reconcile(&self, templates: &[TemplateRecord]) {
        let mut state = self.state();
        if state.closed {
            return;
        }
        let mut before = std::mem::take(&mut state.shelves);
        for template in templates.iter().filter(|template| template.snapshot_of.is_none()) {
            let (depth, prepared) = (self.config.depth_of(template), self.config.prepared_of(template));
            if depth == Depth::NONE && prepared == 0 {
                continue;
            }
            let Some(key) = shelf_of(template) else { continue };
            let earlier = before.remove(&key);
            let (demand, items) = earlier.map(|shelf| (shelf.demand, (shelf.artifact, shelf.items))).unzip();
            let (kept, old) = match items {
                Some((artifact, items)) if artifact == template.artifact => (items, 0),
                Some((_, items)) => (VecDeque::new(), items.len()),
                None => (VecDeque::new(), 0),
            };
            state.counters.retired += old as u64;
            let shelf = Shelf {
                artifact: template.artifact.clone(),
                budget: template.budget,
                warm_up: template.warm_up.clone(),
                depth,
                prepared: prepared as usize,
                demand: demand.unwrap_or_default(),
                items: kept,
                patience: BTreeMap::new(),
            };
            state.shelves.insert(key, shelf);
        }
        state.counters.retired += before.values().map(|shelf| shelf.items.len() as u64).sum::<u64>();
    }

    /// Decides what is to be done at `now`, and ends what is too many.
    fn plan(&self, now: Instant) -> Step {
        let mut state = self.state();
        let state = &mut *state;
        for shelf in state.shelves.values_mut() {
            state.counters.retired += Stage::ALL.map(|stage| shelf.retire(stage, now)).iter().sum::<u64>();
        }
        let interval_over = state.last_start.map(|last| last + REFILL_INTERVAL);
        let not_before =
            [interval_over, state.quiet_until, state.breath_until].into_iter().flatten().filter(|at| *at > now).max();
        let makers = (self.cpus / 4).max(2);
        let making: usize = state.shelves.values().map(Shelf::making).sum();
        if let Some(at) = not_before {
            return Step::WaitUntil(at);
        }
        if state.closed || making >= makers || state.creating >= self.cpus {
            return Step::WaitUntil(now + TICK);
        }
        // One maker is left for the other templates: a warm-up that hangs must not stop them all.
        let lacks = |shelf: &Shelf| shelf.lacks(now).filter(|_| shelf.making() < makers - 1);
        let chosen = state.shelves.iter_mut().filter_map(|(id, shelf)| Some((lacks(shelf)?, id, shelf)));
        let Some(((stage, ..), template, shelf)) = chosen.max_by_key(|((stage, empty, lacking), ..)| (*stage, *empty, *lacking))
        else {
            let patience = state.shelves.values().flat_map(|shelf| shelf.patience.values());
            let retries = patience.filter_map(|patience| patience.retry_at).filter(|at| *at > now);
            return Step::WaitUntil(retries.min().unwrap_or(now + TICK).min(now + TICK));
        };
        let (claim, claimed) = oneshot::channel();
        let (item, ended) = (state.next_item, CancellationToken::new());
        state.next_item += 1;
        state.last_start = Some(now);
        shelf.items.push_back(Item { id: item, stage, claim, ended: ended.clone(), ready: false });
        let (artifact, warm_up) = (shelf.artifact.clone(), shelf.warm_up.clone());
        Step::Make(Order { template: template.clone(), artifact, stage, warm_up, item, claimed, ended })
    }

    /// Somebody is about to have a sandbox and to use it.
    fn creating(&self, now: Instant) {
        let mut state = self.state();
        state.creating += 1;
        if state.breath_until.is_none_or(|until| until <= now) {
            state.breath_until = Some(now + BREATH);
        }
    }

    /// What was being made can be claimed.
    fn made(&self, template: &Reference, item: u64) {
        let mut state = self.state();
        if let Some(shelf) = state.shelves.get_mut(template)
            && let Some(item) = shelf.items.iter_mut().find(|found| found.id == item)
        {
            item.ready = true;
            shelf.patience.remove(&item.stage);
            state.counters.refills += 1;
        }
        drop(state);
        self.changed.notify_one();
    }

    /// What was being made will not be. `for_now`: for want of room, not for a fault.
    fn not_made(&self, order: &Order, for_now: bool, now: Instant) {
        let mut state = self.state();
        if let Some(shelf) = state.shelves.get_mut(&order.template) {
            shelf.items.retain(|found| found.id != order.item);
            let patience = shelf.patience.entry(order.stage).or_default();
            let pause = if for_now { TICK } else { RETRY * 2u32.saturating_pow(patience.failures.min(16)) };
            patience.failures += u32::from(!for_now);
            patience.retry_at = Some(now + pause.min(MAX_RETRY));
            state.counters.failed_refills += u64::from(!for_now);
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Whether there was too little free space for a refill just now. Gives whether that is news.
    fn note_disk(&self, short: bool) -> bool {
        let counters = &mut self.state().counters;
        std::mem::replace(&mut counters.short_of_disk, short) != short
    }

    /// What was ready died.
    fn lost(&self, template: &Reference, item: u64) {
        let mut state = self.state();
        if let Some(shelf) = state.shelves.get_mut(template) {
            shelf.items.retain(|found| found.id != item);
        }
        state.counters.lost += 1;
        drop(state);
        self.changed.notify_one();
    }

    /// Ends all that waits and makes no more.
    fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.shelves.clear();
    }

    /// Takes what is least valuable off its shelf: a prepared engine while there is one; of the template that has most beyond what
    /// it wants, else of the one that is asked for least.
    fn take_least(&self, now: Instant) -> Option<Item> {
        let mut state = self.state();
        let item = Stage::ALL.into_iter().find_map(|stage| {
            let stocked = state.shelves.values_mut().filter(|shelf| shelf.count(stage) > 0);
            let least = stocked.min_by_key(|shelf| {
                let beyond = shelf.count(stage).saturating_sub(shelf.wanted(stage, now));
                (std::cmp::Reverse(beyond), shelf.demand.peak(now), std::cmp::Reverse(shelf.count(stage)))
            });
            least?.take_least(stage)
        })?;
        state.counters.evictions += 1;
        state.quiet_until = Some(now + QUIET);
        Some(item)
    }

    /// Ends a prepared engine whose capacity is enough for `budget`, so that a warm session of `template` can have it: one of the
    /// same template rather than of another. Whether there was one; it has ended when this returns.
    async fn end_prepared(&self, template: &Reference, budget: &ResourceBudget) -> bool {
        let item = {
            let mut state = self.state();
            let fits = |has: &ResourceBudget| {
                has.cpus >= budget.cpus && has.memory_mib >= budget.memory_mib && has.disk_mib >= budget.disk_mib
            };
            let stocked = state.shelves.iter_mut().filter(|(_, shelf)| shelf.count(Stage::Prepared) > 0 && fits(&shelf.budget));
            let shelf = stocked.max_by_key(|(called, _)| *called == template).map(|(_, shelf)| shelf);
            let item = shelf.and_then(|shelf| shelf.take_least(Stage::Prepared));
            state.counters.retired += u64::from(item.is_some());
            item
        };
        let Some(Item { claim, ended, .. }) = item else { return false };
        drop(claim);
        ended.cancelled().await;
        true
    }
}

#[async_trait]
impl WarmEviction for WarmPool {
    async fn evict_one(&self) -> bool {
        let Some(Item { claim, ended, .. }) = self.take_least(Instant::now()) else { return false };
        drop(claim);
        ended.cancelled().await;
        true
    }
}

#[cfg(test)]
mod tests;
