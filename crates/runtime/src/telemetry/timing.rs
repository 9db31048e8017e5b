//! What is timed, under which names, and the buckets that times are counted in.

use std::fmt;

use prometheus_client::encoding::{EncodeLabelValue, LabelValueEncoder};

/// Upper bounds of the histograms, in seconds. Dense where restores and first outputs lie, with and without hardware
/// virtualisation; the last is the longest that anything but a template build may take.
pub(super) const BUCKETS: [f64; 21] =
    [0.001, 0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0, 60.0];

/// Something that takes time, from one moment to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Timing {
    /// A restore was asked for -> the guest is who it should be. Creates, resumes and forks; checks and queue included.
    WarmSnapshotRestore,
    /// A warm session was asked for -> it was claimed and the guest is who it should be.
    WarmPoolCheckout,
    /// The machine runs again -> the first answer of its agent.
    ReadyProbe,
    /// The machine is about to stop -> everything that was cut out of it is durable.
    SnapshotSave,
    /// The machine is about to stop -> its state is cut, and it could go on.
    SnapshotFreeze,
    /// A build was asked for -> the template is recorded.
    ColdTemplateBuild,
    /// A command was asked for -> the guest says that it runs.
    CommandStart,
    /// A command was asked for -> the first byte of its standard output. What the command does before it writes is part of it.
    FirstStdoutByte,
    /// The machine runs again -> entropy, clock, names and tokens are in force.
    FreshnessSync,
    /// A kill was asked for -> nothing of the sandbox is left.
    KillDelete,
    /// A create arrived -> the first byte of standard output of the sandbox's first command.
    StartToFirstStdout,
}

impl Timing {
    /// Every phase.
    pub const ALL: [Self; 11] = [
        Self::WarmSnapshotRestore,
        Self::WarmPoolCheckout,
        Self::ReadyProbe,
        Self::SnapshotSave,
        Self::SnapshotFreeze,
        Self::ColdTemplateBuild,
        Self::CommandStart,
        Self::FirstStdoutByte,
        Self::FreshnessSync,
        Self::KillDelete,
        Self::StartToFirstStdout,
    ];

    /// Its name in metrics, spans and documents.
    pub fn name(self) -> &'static str {
        match self {
            Self::WarmSnapshotRestore => "warm_snapshot_restore",
            Self::WarmPoolCheckout => "warm_pool_checkout",
            Self::ReadyProbe => "ready_probe",
            Self::SnapshotSave => "snapshot_save",
            Self::SnapshotFreeze => "snapshot_freeze",
            Self::ColdTemplateBuild => "cold_template_build",
            Self::CommandStart => "command_start",
            Self::FirstStdoutByte => "first_stdout_byte",
            Self::FreshnessSync => "freshness_sync",
            Self::KillDelete => "kill_delete",
            Self::StartToFirstStdout => "start.to_first_stdout",
        }
    }
}

impl EncodeLabelValue for Timing {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        self.name().encode(encoder)
    }
}
