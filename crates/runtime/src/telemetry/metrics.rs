//! Metrics: phases as histograms and spans, and how full the host is, as Prometheus reads it.
//!
//! A phase is observed by the code that went through it, and only when it came to its end: how long a failure took says
//! nothing about speed. Labels are closed sets, so that the number of time series is known: no sandbox, template or client is
//! ever one of them; teams are for who administers them (`teams.rs`). What can be read off the runtime at any time (sandboxes, capacity, the queue) is read when it is asked
//! for, and so cannot drift from the truth.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError, atomic::Ordering},
    time::Duration,
};

use firkin_engine::Acceleration;
use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use serde::Serialize;
use tokio::time::Instant;
use tracing::Instrument as _;

pub use super::timing::Timing;
use super::{
    copies::Copying,
    nodes::{NodeFigures, NodeSeries},
    phases::{PhaseFigures, Phases},
    standing::{self, Standing, number},
    teams as series_of_teams,
    timing::BUCKETS,
};
use crate::{
    capacity::{CapacityView, HostCapacity, RequestCounts, ResourceBudget, TeamFigures},
    restore::warm::PoolStatus,
    store::CatalogSeconds,
};

/// The media type of what [`crate::runtime::Runtime::render_metrics`] gives.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TimingLabel {
    phase: Timing,
}

/// A label whose values are words of the source text.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResourceLabel {
    resource: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HeldLabel {
    class: &'static str,
    resource: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

/// A runtime's state at one instant.
#[derive(Debug, Clone)]
pub(crate) struct Live {
    pub(crate) running: usize,
    pub(crate) paused: usize,
    pub(crate) capacity: CapacityView,
    pub(crate) pool: PoolStatus,
    /// Outcomes of what sandboxes tried to reach by name, and how often each was.
    pub(crate) outbound: Vec<(&'static str, u64)>,
    pub(crate) standing: Standing,
}

/// Everything that is counted and timed in one runtime.
#[derive(Debug)]
pub struct Metrics {
    acceleration: Acceleration,
    registry: Registry,
    phases: Family<TimingLabel, Histogram, fn() -> Histogram>,
    errors: Family<KindLabel, Counter>,
    /// What of this can be read back.
    read: ReadBack,
    unknown_fields: Counter,
    forwarded: Family<OutcomeLabel, Counter>,
    second_copies: Family<OutcomeLabel, Counter>,
    second_copies_owed: Family<StateLabel, Gauge>,
    gauges: Gauges,
    standing: standing::Gauges,
    /// Of a server that is a node of a cluster, and of no other.
    node: OnceLock<NodeSeries>,
}

/// The same once more, for those who look without Prometheus: its counters cannot be listed.
#[derive(Debug, Default)]
struct ReadBack {
    phases: Phases,
    errors: Mutex<BTreeMap<&'static str, u64>>,
    disk: Mutex<Option<DiskUse>>,
}

impl ReadBack {
    fn errors(&self) -> MutexGuard<'_, BTreeMap<&'static str, u64>> {
        // Each holder makes one change, so a poisoned map is a whole one.
        self.errors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The state directory beside its budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct DiskUse {
    /// What it may hold.
    pub budget_bytes: u64,
    /// What it held at the last look.
    pub held_bytes: u64,
    /// The part of that which could be made again.
    pub reclaimable_bytes: u64,
}

/// Gauges, which are set when somebody asks.
#[derive(Debug, Default)]
struct Gauges {
    sandboxes: Family<StateLabel, Gauge>,
    total: Family<ResourceLabel, Gauge>,
    held: Family<HeldLabel, Gauge>,
    sessions: Family<KindLabel, Gauge>,
    waiting: Gauge,
    requests: Family<OutcomeLabel, Counter>,
    /// The same by the words of before, for one release.
    admissions: Family<OutcomeLabel, Counter>,
    shelved: Family<StateLabel, Gauge>,
    pooled: Family<OutcomeLabel, Counter>,
    resident: Gauge,
    disk: Family<StateLabel, Gauge>,
    short_of_disk: Gauge,
    outbound: Family<OutcomeLabel, Counter>,
}

impl Metrics {
    /// Nothing counted yet. Every series carries the acceleration, which decides what its durations mean.
    pub(crate) fn new(acceleration: Acceleration, catalog: CatalogSeconds) -> Self {
        let mut registry = registry(acceleration);
        let phases = Family::new_with_constructor((|| Histogram::new(BUCKETS)) as fn() -> Histogram);
        for phase in Timing::ALL {
            // A series that is there from the start is told apart from one that nobody writes.
            drop(phases.get_or_create(&TimingLabel { phase }));
        }
        registry.register("phase_seconds", "How long phases took that came to their end", phases.clone());
        let errors = Family::default();
        registry.register("errors", "Requests that were refused or failed, by the kind of error", errors.clone());
        let help = "How long operations of the catalogue took, by what they were for and what came of them";
        registry.register("catalog_seconds", help, catalog.family());
        let gauges = Gauges::default();
        gauges.register(&mut registry);
        let standing = standing::Gauges::default();
        standing.register(&mut registry);
        let unknown_fields = Counter::default();
        let help = "Fields of requests that were ignored because nobody knows them";
        registry.register("unknown_fields", help, unknown_fields.clone());
        let forwarded = Family::default();
        let help = "Requests that were passed on to another node of the cluster, by what came of it";
        registry.register("forwarded", help, forwarded.clone());
        let (second_copies, second_copies_owed) = (Family::default(), Family::default());
        let help = "Attempts to have what holds a paused sandbox on another node too, by what came of it";
        registry.register("second_copies", help, second_copies.clone());
        let help = "Paused sandboxes of this node that no other node has a copy of: waiting for one, or bound to this host";
        registry.register("second_copies_owed", help, second_copies_owed.clone());
        let (read, node) = Default::default();
        Self {
            acceleration,
            registry,
            phases,
            errors,
            read,
            unknown_fields,
            forwarded,
            second_copies,
            second_copies_owed,
            gauges,
            standing,
            node,
        }
    }

    /// Takes down how long a phase took.
    pub fn observe(&self, phase: Timing, took: Duration) {
        self.phases.get_or_create(&TimingLabel { phase }).observe(took.as_secs_f64());
        self.read.phases.observe(phase, took);
    }

    /// How long phases took.
    pub fn phase_figures(&self) -> Vec<PhaseFigures> {
        self.read.phases.figures()
    }

    /// Requests that were refused or failed, by the kind of error.
    pub fn error_counts(&self) -> BTreeMap<&'static str, u64> {
        self.read.errors().clone()
    }

    /// What the state directory held at the last look, where it has a budget.
    pub fn disk_use(&self) -> Option<DiskUse> {
        *self.read.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts fields of a request that were ignored. Returns how many there were in all.
    pub fn count_unknown_fields(&self, fields: u64) -> u64 {
        self.unknown_fields.inc_by(fields) + fields
    }

    /// Counts a request that was passed on to another node.
    pub fn count_forwarded(&self, outcome: &'static str) {
        self.forwarded.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    /// Counts an attempt to have a paused sandbox on another node too.
    pub fn count_second_copy(&self, outcome: &'static str) {
        self.second_copies.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    /// Sets how many paused sandboxes no other node has a copy of: those that wait for one, and those that are bound to this host.
    pub fn owe_second_copies(&self, waiting: usize, bound: usize) {
        for (state, count) in [("waiting", waiting), ("bound", bound)] {
            self.second_copies_owed.get_or_create(&StateLabel { state }).set(number(count));
        }
    }

    /// Sets what a node knows of its cluster. From the first time on there are series of it.
    pub fn of_node(&self, figures: &NodeFigures) {
        self.node.get_or_init(NodeSeries::default).set(figures);
    }

    /// Counts a create that came in at a node, by one of [`PLACEMENTS`](super::nodes::PLACEMENTS).
    pub fn count_placement(&self, outcome: &'static str) {
        self.node.get_or_init(NodeSeries::default).count_placement(outcome);
    }

    /// Sets the budget of the state directory, its use at the last look, and the part of that which could be made again.
    pub(crate) fn disk(&self, budget: u64, held: u64, reclaimable: u64) {
        *self.read.disk.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(DiskUse { budget_bytes: budget, held_bytes: held, reclaimable_bytes: reclaimable });
        for (state, bytes) in [("budget", budget), ("held", held), ("reclaimable", reclaimable)] {
            self.gauges.disk.get_or_create(&StateLabel { state }).set(number(bytes));
        }
    }

    /// Has a series for each of these kinds from the start: one that appears with its first error would hide that from rates.
    pub fn expect_errors(&self, kinds: &[&'static str]) {
        for kind in kinds {
            drop(self.errors.get_or_create(&KindLabel { kind }));
        }
    }

    /// Sets what became of spans since the start, by outcome: whoever sends them counts.
    pub fn count_spans(&self, outcomes: [(&'static str, u64); 3]) {
        self.standing.count_spans(outcomes);
    }

    /// Counts a request that was refused or failed. Kinds are words of the source text, so there are only so many.
    pub fn count_error(&self, kind: &'static str) {
        self.errors.get_or_create(&KindLabel { kind }).inc();
        *self.read.errors().entry(kind).or_default() += 1;
    }

    /// Does `work` as a phase: within a span that knows how long it took, and observed if it succeeds.
    pub(crate) async fn measured<T, E>(&self, phase: Timing, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let span = tracing::debug_span!("phase", name = phase.name(), ms = tracing::field::Empty);
        let begun = Instant::now();
        let result = work.instrument(span.clone()).await;
        let took = begun.elapsed();
        span.record("ms", took.as_secs_f64() * 1000.0);
        if result.is_ok() {
            self.observe(phase, took);
        }
        result
    }

    /// All of it in the OpenMetrics text format, which Prometheus reads.
    pub(crate) fn render(&self, live: &Live, teams: Option<&[TeamFigures]>, copying: Option<&Copying>) -> String {
        self.gauges.set(live);
        self.standing.set(&live.standing);
        let mut text = String::with_capacity(32 << 10);
        let written = text::encode_registry(&mut text, &self.registry).and_then(|()| {
            if let Some(copying) = copying {
                let mut registry = registry(self.acceleration);
                copying.register(&mut registry);
                text::encode_registry(&mut text, &registry)?;
            }
            if let Some(node) = self.node.get() {
                let mut registry = registry(self.acceleration);
                node.register(&mut registry);
                text::encode_registry(&mut text, &registry)?;
            }
            if let Some(teams) = teams {
                let mut registry = registry(self.acceleration);
                series_of_teams::register(&mut registry, teams);
                text::encode_registry(&mut text, &registry)?;
            }
            text::encode_eof(&mut text)
        });
        written.expect("a string takes everything");
        text
    }
}

fn registry(acceleration: Acceleration) -> Registry {
    let labels = [("acceleration".into(), acceleration.to_string().into())];
    Registry::with_prefix_and_labels("firkin", labels.into_iter())
}

impl Gauges {
    fn register(&self, registry: &mut Registry) {
        registry.register("sandboxes", "Sandboxes by state", self.sandboxes.clone());
        registry.register("capacity", "Resources that the host offers sandboxes, after overcommit", self.total.clone());
        registry.register("capacity_held", "Resources that sessions hold, by class", self.held.clone());
        registry.register("sessions", "Sessions that hold capacity, by class", self.sessions.clone());
        registry.register("queue_length", "Requests that wait for capacity", self.waiting.clone());
        let help = "Requests for capacity since the start, by outcome";
        registry.register("admission_requests", help, self.requests.clone());
        let help = "The same as firkin_admission_requests_total, by earlier words; gone with the next release";
        registry.register("admissions", help, self.admissions.clone());
        registry.register(
            "pool_sessions",
            "Warm sessions wanted and ready, prepared engines ready, and either being made, of all templates",
            self.shelved.clone(),
        );
        registry.register(
            "pool_events",
            "Claims of warm sessions and prepared engines, and what else happened to these, since the start",
            self.pooled.clone(),
        );
        let help = "1 while nothing more is kept warm because too little of the disk is free";
        registry.register("pool_short_of_disk", help, self.short_of_disk.clone());
        registry.register(
            "disk_bytes",
            "Disk space of the state directory: held, reclaimable and budget, where it has one",
            self.disk.clone(),
        );
        let help = "Questions and connections of sandboxes whose outbound rules have names or a proxy, by what was decided";
        registry.register("outbound_decisions", help, self.outbound.clone());
        registry.register("resident_bytes", "Memory of the server's process", self.resident.clone());
    }

    fn set(&self, live: &Live) {
        let Live { running, paused, capacity, pool, outbound, standing: _ } = live;
        for (outcome, count) in outbound {
            self.outbound.get_or_create(&OutcomeLabel { outcome }).inner().store(*count, Ordering::Relaxed);
        }
        for (state, count) in [("running", *running), ("paused", *paused)] {
            self.sandboxes.get_or_create(&StateLabel { state }).set(number(count));
        }
        let HostCapacity { cpus, memory_mib, disk_mib } = capacity.capacity;
        for (resource, value) in resources(&ResourceBudget { cpus, memory_mib, disk_mib }) {
            self.total.get_or_create(&ResourceLabel { resource }).set(value);
        }
        for (class, usage) in [("active", capacity.usage.active), ("warm", capacity.usage.warm)] {
            self.sessions.get_or_create(&KindLabel { kind: class }).set(number(usage.sessions));
            for (resource, value) in resources(&usage.held) {
                self.held.get_or_create(&HeldLabel { class, resource }).set(value);
            }
        }
        self.waiting.set(number(capacity.waiting));
        let RequestCounts { immediate, queued, timed_out, rejected, too_large } = capacity.requests;
        let outcomes = [
            ("immediate", "at_once", immediate),
            ("queued", "after_waiting", queued),
            ("timed_out", "in_vain", timed_out),
            ("rejected", "turned_away", rejected),
            ("too_large", "never_fitting", too_large),
        ];
        for (outcome, earlier, count) in outcomes {
            self.requests.get_or_create(&OutcomeLabel { outcome }).inner().store(count, Ordering::Relaxed);
            self.admissions.get_or_create(&OutcomeLabel { outcome: earlier }).inner().store(count, Ordering::Relaxed);
        }
        self.set_pool(pool);
        self.resident.set(number(resident_bytes()));
    }

    fn set_pool(&self, pool: &PoolStatus) {
        self.short_of_disk.set(pool.short_of_disk.into());
        let shelves = || pool.templates.values();
        for (state, count) in [
            ("wanted", shelves().map(|shelf| shelf.wanted).sum::<usize>()),
            ("ready", shelves().map(|shelf| shelf.ready).sum()),
            ("prepared", shelves().map(|shelf| shelf.prepared).sum()),
            ("making", shelves().map(|shelf| shelf.making).sum()),
        ] {
            self.shelved.get_or_create(&StateLabel { state }).set(number(count));
        }
        for (outcome, count) in [
            ("hit", pool.hits),
            ("hit_prepared", pool.prepared_hits),
            ("miss", pool.misses),
            ("failed_claim", pool.failed_claims),
            ("refill", pool.refills),
            ("failed_refill", pool.failed_refills),
            ("eviction", pool.evictions),
            ("retired", pool.retired),
            ("lost", pool.lost),
        ] {
            self.pooled.get_or_create(&OutcomeLabel { outcome }).inner().store(count, Ordering::Relaxed);
        }
    }
}

/// A duration as logs tell it: milliseconds, to a tenth.
pub(crate) fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10_000.0).round() / 10.0
}

/// The resources of a budget, by the names that they have in metrics.
fn resources(budget: &ResourceBudget) -> [(&'static str, i64); 3] {
    [("cpus", budget.cpus.into()), ("memory_mib", number(budget.memory_mib)), ("disk_mib", number(budget.disk_mib))]
}

/// Memory that this process has resident; 0 where the kernel does not say.
fn resident_bytes() -> u64 {
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
    let pages = fs_err::read_to_string("/proc/self/statm").ok().and_then(|text| text.split(' ').nth(1)?.parse::<u64>().ok());
    pages.unwrap_or(0) * page.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_buckets_rise() {
        let names: std::collections::BTreeSet<&str> = Timing::ALL.iter().map(|phase| phase.name()).collect();
        assert_eq!(names.len(), Timing::ALL.len());
        assert!(BUCKETS.is_sorted_by(|a, b| a < b));
    }

    #[tokio::test(start_paused = true)]
    async fn a_phase_is_observed_when_it_succeeds_and_only_then() {
        let metrics = Metrics::new(Acceleration::Tcg, CatalogSeconds::of("sqlite"));
        let wait = |result: Result<(), ()>| async move {
            tokio::time::advance(Duration::from_millis(40)).await;
            result
        };
        assert!(metrics.measured(Timing::KillDelete, wait(Ok(()))).await.is_ok());
        assert!(metrics.measured(Timing::KillDelete, wait(Err(()))).await.is_err());
        let mut text = String::new();
        text::encode(&mut text, &metrics.registry).unwrap();
        let series =
            |name: &str| format!("firkin_phase_seconds_{name}{{acceleration=\"{}\",phase=\"kill_delete\"}} ", Acceleration::Tcg);
        let value = |name| text.lines().find_map(|line| line.strip_prefix(&series(name))).unwrap();
        assert_eq!(value("count"), "1");
        assert!((value("sum").parse::<f64>().unwrap() - 0.04).abs() < 0.001, "{text}");
    }

    #[test]
    fn this_process_has_memory() {
        assert!(resident_bytes() > 1 << 20);
    }
}
