//! Series of a server that is a node of a cluster. One that is none has none of them.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// What became of a create where it came in: the first node that was asked made it, or one after it, or one where it waited, all being full at first; or
/// all said no; nobody takes anything; or it was made here, because nothing is known of the others.
pub const PLACEMENTS: [&str; 6] = ["first", "next", "waited", "refused", "nobody", "here"];

/// What a node knows of its cluster, and has done in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeFigures {
    /// How many nodes are in each state, as this one last heard: each state that there is.
    pub nodes: Vec<(&'static str, u64)>,
    /// Until the lease is over, unless it is renewed: then nothing is recorded here, and after the grace others take what is paused here.
    pub lease_left: Duration,
    /// Claims of sandboxes since the start, by what came of them.
    pub claims: Vec<(&'static str, u64)>,
    /// Sandboxes that ended here because they were another node's by then, since the start.
    pub fenced: u64,
    /// Who stops machines when the lease is over; absent where nobody is to.
    pub warden: Option<WardenFigures>,
}

/// The warden of a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WardenFigures {
    /// Whether it is there.
    pub watches: bool,
    /// How often one was started by this server: none where that of an earlier server goes on, and more than one where it died.
    pub starts: u64,
    /// Machines that it stops when the lease is over, because others could have their sandboxes.
    pub listed: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

/// The series.
#[derive(Debug)]
pub(super) struct NodeSeries {
    nodes: Family<StateLabel, Gauge>,
    lease_left: Gauge<f64, AtomicU64>,
    claims: Family<OutcomeLabel, Counter>,
    placements: Family<OutcomeLabel, Counter>,
    fenced: Counter,
    watches: Gauge,
    starts: Counter,
    listed: Gauge,
}

impl Default for NodeSeries {
    fn default() -> Self {
        let placements = Family::default();
        for outcome in PLACEMENTS {
            // There from the start, so that the first one is a change.
            drop(placements.get_or_create(&OutcomeLabel { outcome }));
        }
        let (nodes, lease_left, claims, fenced, watches, starts, listed) = Default::default();
        Self { nodes, lease_left, claims, placements, fenced, watches, starts, listed }
    }
}

impl NodeSeries {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("nodes", "Nodes of the cluster by state, as this one last heard", self.nodes.clone());
        let help = "Until the lease of this node is over, unless it is renewed";
        registry.register("lease_left_seconds", help, self.lease_left.clone());
        registry.register("claims", "Claims of sandboxes by this node, by what came of them", self.claims.clone());
        registry.register("placement", "Creates that came in here, by which of the nodes made them", self.placements.clone());
        let help = "Sandboxes that ended here because they were another node's by then";
        registry.register("fenced", help, self.fenced.clone());
        let help = "Whether the process is there that stops machines when the lease is over";
        registry.register("warden_watches", help, self.watches.clone());
        registry.register(
            "warden_starts",
            "Wardens that this server has started: more than one where one died",
            self.starts.clone(),
        );
        let help = "Machines that are stopped when the lease is over, because others could have their sandboxes";
        registry.register("warden_machines", help, self.listed.clone());
    }

    pub(super) fn set(&self, figures: &NodeFigures) {
        let NodeFigures { nodes, lease_left, claims, fenced, warden } = figures;
        for (state, count) in nodes {
            self.nodes.get_or_create(&StateLabel { state }).set(i64::try_from(*count).unwrap_or(i64::MAX));
        }
        self.lease_left.set(lease_left.as_secs_f64());
        for (outcome, count) in claims {
            self.claims.get_or_create(&OutcomeLabel { outcome }).inner().store(*count, Ordering::Relaxed);
        }
        self.fenced.inner().store(*fenced, Ordering::Relaxed);
        let WardenFigures { watches, starts, listed } = warden.unwrap_or_default();
        self.watches.set(watches.into());
        self.starts.inner().store(starts, Ordering::Relaxed);
        self.listed.set(i64::try_from(listed).unwrap_or(i64::MAX));
    }

    pub(super) fn count_placement(&self, outcome: &'static str) {
        self.placements.get_or_create(&OutcomeLabel { outcome }).inc();
    }
}
