//! How the host stands, as gauges: what keeps it from new work, disk and memory beside their floors, damaged artifacts, volumes, and what
//! became of webhooks' deliveries. It is read off the runtime when somebody asks. What cannot be measured then is absent: a number of before
//! would say that all is well.

use std::sync::atomic::Ordering;

use jiff::Timestamp;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

use super::{changes::ConditionState, webhooks::DeliveryCounts};
use crate::{
    host::{disk::DiskView, memory_pressure::MemoryView},
    storage::volumes::VolumeFigures,
};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VersionLabel {
    version: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ConditionLabel {
    condition: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

/// The host at one instant.
#[derive(Debug, Clone)]
pub(crate) struct Standing {
    pub(crate) conditions: Vec<ConditionState>,
    /// Absent where it cannot be measured.
    pub(crate) disk: Option<DiskView>,
    /// Absent where it cannot be measured.
    pub(crate) memory: Option<MemoryView>,
    /// Damaged artifacts.
    pub(crate) quarantined: usize,
    pub(crate) volumes: VolumeFigures,
    pub(crate) deliveries: DeliveryCounts,
}

/// The gauges.
#[derive(Debug, Default)]
pub(super) struct Gauges {
    build: Family<VersionLabel, Gauge>,
    started: Gauge,
    conditions: Family<ConditionLabel, Gauge>,
    disk: Family<StateLabel, Gauge>,
    memory: Family<StateLabel, Gauge>,
    quarantined: Gauge,
    volumes: Gauge,
    volume_bytes: Gauge,
    full_volumes: Gauge,
    deliveries: Family<OutcomeLabel, Counter>,
    spans: Family<OutcomeLabel, Counter>,
}

impl Gauges {
    pub(super) fn register(&self, registry: &mut Registry) {
        self.build.get_or_create(&VersionLabel { version: env!("CARGO_PKG_VERSION") }).set(1);
        self.started.set(Timestamp::now().as_second());
        registry.register("build_info", "1, with the version of the server", self.build.clone());
        registry.register_with_unit("start_time", "When the server began, in Unix time", Unit::Seconds, self.started.clone());
        registry.register("host_conditions", "1 for each thing that keeps the host from new work now", self.conditions.clone());
        let help = "The disk of the state directory: free, total, and the floor below which nothing is started";
        registry.register("host_disk_bytes", help, self.disk.clone());
        let help = "The host's memory: available, total, and the floor below which nothing is started";
        registry.register("host_memory_bytes", help, self.memory.clone());
        registry.register("quarantined_artifacts", "Artifacts that were found damaged", self.quarantined.clone());
        registry.register("volumes", "Volumes of all teams", self.volumes.clone());
        registry.register("volume_bytes", "What volumes hold, as far as they are counted", self.volume_bytes.clone());
        registry.register("volumes_nearly_full", "Volumes that hold nine tenths of their quota", self.full_volumes.clone());
        let help = "Attempts to deliver to webhooks, by outcome: delivered, failed and to be tried again, given up";
        registry.register("webhook_deliveries", help, self.deliveries.clone());
        let help = "Spans for a collector, by outcome: exported, failed on the way, dropped because too many waited";
        registry.register("trace_spans", help, self.spans.clone());
        self.count_spans(["exported", "failed", "dropped"].map(|outcome| (outcome, 0)));
    }

    pub(super) fn count_spans(&self, outcomes: [(&'static str, u64); 3]) {
        for (outcome, count) in outcomes {
            self.spans.get_or_create(&OutcomeLabel { outcome }).inner().store(count, Ordering::Relaxed);
        }
    }

    pub(super) fn set(&self, standing: &Standing) {
        let Standing { conditions, disk, memory, quarantined, volumes, deliveries } = standing;
        for ConditionState { condition, holds } in conditions {
            self.conditions.get_or_create(&ConditionLabel { condition: condition.word() }).set((*holds).into());
        }
        let disk = disk.map(|disk| [("free", disk.free_mib), ("total", disk.total_mib), ("floor", disk.floor_mib)]);
        set_mib(&self.disk, disk);
        let memory =
            memory.map(|memory| [("available", memory.available_mib), ("total", memory.total_mib), ("floor", memory.floor_mib)]);
        set_mib(&self.memory, memory);
        self.quarantined.set(number(*quarantined));
        self.volumes.set(number(volumes.count));
        self.volume_bytes.set(number(volumes.used_bytes));
        self.full_volumes.set(number(volumes.nearly_full));
        let DeliveryCounts { delivered, failed, given_up } = *deliveries;
        for (outcome, count) in [("delivered", delivered), ("failed", failed), ("given_up", given_up)] {
            self.deliveries.get_or_create(&OutcomeLabel { outcome }).inner().store(count, Ordering::Relaxed);
        }
    }
}

/// Sets what was measured, and takes away what was not.
fn set_mib(family: &Family<StateLabel, Gauge>, measured: Option<[(&'static str, u64); 3]>) {
    let Some(measured) = measured else { return family.clear() };
    for (state, mib) in measured {
        family.get_or_create(&StateLabel { state }).set(number(mib.saturating_mul(1 << 20)));
    }
}

/// A count as a gauge holds it. No count comes near the limit.
pub(super) fn number(count: impl TryInto<i64>) -> i64 {
    count.try_into().unwrap_or(i64::MAX)
}
