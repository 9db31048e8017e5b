//! What each team holds and was refused, as metrics for who administers teams: nobody else may know which teams there are.
//!
//! The series are made for each scrape of what is counted elsewhere. An installation has a bounded number of teams, so their ids can
//! be labels, which nothing else that users name can.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::capacity::TeamFigures;

/// Teams with series of their own, by id: as many as an installation may have.
const MAX_TEAMS: usize = 200;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TeamLabel {
    team: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HeldLabel {
    team: String,
    resource: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    team: String,
    state: &'static str,
}

/// Registers the series of teams.
pub(super) fn register(registry: &mut Registry, teams: &[TeamFigures]) {
    let sandboxes = Family::<StateLabel, Gauge<u64, AtomicU64>>::default();
    let held = Family::<HeldLabel, Gauge<u64, AtomicU64>>::default();
    let (creates, refusals) = (Family::<TeamLabel, Counter>::default(), Family::<TeamLabel, Counter>::default());
    for figures in teams.iter().take(MAX_TEAMS) {
        let team = figures.team.to_string();
        for (state, count) in [("running", figures.running), ("paused", figures.paused)] {
            sandboxes.get_or_create(&StateLabel { team: team.clone(), state }).set(count);
        }
        let resources = [("cpus", figures.cpus.into()), ("memory_mib", figures.memory_mib), ("disk_mib", figures.disk_mib)];
        for (resource, amount) in resources {
            held.get_or_create(&HeldLabel { team: team.clone(), resource }).set(amount);
        }
        let label = TeamLabel { team };
        creates.get_or_create(&label).inc_by(figures.admitted);
        refusals.get_or_create(&label).inc_by(figures.refused);
    }
    registry.register("team_sandboxes", "Sandboxes of a team by state, builds among those that run", sandboxes);
    registry.register("team_held", "What a team holds of what it may: of those that run, and disks of all", held);
    registry.register("team_creates", "Sandboxes, forks and builds of a team that its quota let in", creates);
    registry.register("team_refusals", "Requests that a team's quota refused", refusals);
}
