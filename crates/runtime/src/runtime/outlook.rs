//! The host in figures and words, for those who run it: what metrics know, readable without Prometheus.

use std::collections::BTreeMap;

use firkin_causes::chain;
use firkin_engine::Acceleration;
use serde::Serialize;

use super::{Runtime, looks};
use crate::{
    artifact::QuarantineMark,
    host::{disk::DiskView, memory_pressure::MemoryView},
    telemetry::{changes::ConditionState, metrics::DiskUse, phases::PhaseFigures, standing::Standing},
};

/// The host as it is now.
#[derive(Debug, Serialize)]
pub struct Outlook {
    /// How guests run.
    pub acceleration: String,
    /// What that means for who uses them.
    pub meaning: &'static str,
    /// Every engine, by the word for which it is asked for; that one first.
    pub engines: Vec<&'static str>,
    /// What keeps machines from the host, and why some of it does not.
    pub safeguards: Vec<SafeguardView>,
    /// Sandboxes that run.
    pub running: usize,
    /// Sandboxes that are paused.
    pub paused: usize,
    /// The disk, or why it is not known.
    pub disk: Measured<DiskView>,
    /// The state directory, where it has a budget.
    pub state_directory: Option<DiskUse>,
    /// The memory, or why it is not known.
    pub memory: Measured<MemoryView>,
    /// What keeps the host from new work, each with whether it is so.
    pub conditions: Vec<ConditionState>,
    /// Damaged artifacts.
    pub quarantine: Vec<QuarantineMark>,
    /// How long things took since the server began.
    pub phases: Vec<PhaseFigures>,
    /// Requests that were refused or failed since then, by the kind of error.
    pub errors: BTreeMap<&'static str, u64>,
    /// What sandboxes tried to reach by name since then, by what was decided.
    pub outbound: BTreeMap<&'static str, u64>,
}

/// A safeguard.
#[derive(Debug, Serialize)]
pub struct SafeguardView {
    /// What it is called.
    pub name: String,
    /// Why the host lacks it; none where it holds.
    pub lacking: Option<String>,
}

/// Something that is measured, which can fail.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Measured<T> {
    /// What was found.
    Known(T),
    /// Why nothing was.
    Unknown {
        /// With its causes.
        error: String,
    },
}

impl<T> Measured<T> {
    fn of<E: std::error::Error>(result: Result<T, E>) -> Self {
        result.map_or_else(|error| Self::Unknown { error: chain(&error) }, Self::Known)
    }
}

/// What an acceleration means for who uses it.
fn meaning(acceleration: Acceleration) -> &'static str {
    match acceleration {
        Acceleration::Kvm => "hardware virtualisation: guests run at the host's speed, and the processor keeps them apart",
        Acceleration::Tcg => {
            "emulated: real machines and snapshots on any host, with a processor that is many times slower, and no boundary against \
             hostile guests"
        }
        Acceleration::Gvisor => {
            "gVisor: guests run on the host's processor, above a kernel of their own in a process; what asks that kernel for much is \
             slower than on hardware virtualisation"
        }
        Acceleration::None => "no machines at all: a stand-in for tests",
    }
}

impl Runtime {
    /// The host in figures and words. It is of all teams, and for those who run the host.
    pub fn outlook(&self) -> Outlook {
        let (all, running) = self.owners.count();
        let gates = &self.shared.gates;
        let safeguards =
            self.safeguards().into_iter().map(|one| SafeguardView { name: one.name.to_string(), lacking: one.lacking });
        Outlook {
            acceleration: self.acceleration().to_string(),
            meaning: meaning(self.acceleration()),
            engines: self.accelerations().into_iter().map(Acceleration::word).collect(),
            safeguards: safeguards.collect(),
            running,
            paused: all - running,
            disk: Measured::of(gates.disk.view()),
            state_directory: self.shared.metrics.disk_use(),
            memory: Measured::of(gates.admission.memory.view()),
            conditions: looks::conditions(&self.shared, &self.pool),
            quarantine: self.shared.artifacts.quarantined(),
            phases: self.shared.metrics.phase_figures(),
            errors: self.shared.metrics.error_counts(),
            outbound: self.shared.links.outcomes().counts().collect(),
        }
    }

    /// The part of it that metrics have as gauges of the host.
    pub(super) fn standing(&self) -> Standing {
        let gates = &self.shared.gates;
        Standing {
            conditions: looks::conditions(&self.shared, &self.pool),
            // Why one cannot be measured stands in the outlook, and is a condition here.
            disk: gates.disk.view().ok(),
            memory: gates.admission.memory.view().ok(),
            quarantined: self.shared.artifacts.quarantined().len(),
            volumes: self.shared.volumes.figures(),
            deliveries: self.shared.webhooks.counts(),
        }
    }
}
