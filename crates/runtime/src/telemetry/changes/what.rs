//! What can happen, as data: each kind with all that whoever shows it needs, and nothing that opens anything.
//!
//! On the wire a change has a `topic`, by which it is filtered, and an `event`. Both are closed sets.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    capacity::CapacityView,
    ground::{ids::ArtifactId, team::TeamId},
    restore::warm::PoolStatus,
    store::spec::{RuntimeSandbox, SandboxId, SandboxState, metadata_bytes},
};

/// What a change weighs besides its texts, bytes.
const WEIGHT: usize = 512;

/// Something that happened, with what it happened to as it is after that.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "topic", rename_all = "snake_case", rename_all_fields = "camelCase")]
pub enum What {
    /// Something became of a sandbox.
    Sandbox {
        /// What.
        event: SandboxEvent,
        /// The sandbox as it is now, or was last.
        sandbox: Box<SandboxSummary>,
        /// Why, where somebody could ask.
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// Something became of a template or a snapshot, other than by a build.
    Template {
        /// What.
        event: TemplateEvent,
        /// The template.
        #[serde(rename = "templateID")]
        template_id: String,
        /// The sandbox that it is a snapshot of.
        #[serde(rename = "sandboxID", skip_serializing_if = "Option::is_none")]
        snapshot_of: Option<SandboxId>,
    },
    /// A build has come further.
    Build {
        /// How far.
        event: BuildEvent,
        /// The template that it becomes.
        #[serde(rename = "templateID")]
        template_id: String,
        /// The build.
        #[serde(rename = "buildID")]
        build_id: String,
        /// Why it failed.
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// A request was not let in.
    Admission {
        /// What.
        event: AdmissionEvent,
        /// Why.
        reason: Refused,
        /// What was to be started: a template's name or id as it was asked for, or a sandbox's id.
        subject: String,
    },
    /// The warm pool looks otherwise. At most one a second, while somebody watches.
    Pool {
        /// As it is now.
        pool: PoolStatus,
    },
    /// Other capacity is held or waited for. At most one a second, while somebody watches.
    Capacity {
        /// As it is now.
        capacity: CapacityView,
    },
    /// An artifact was found damaged, or intact again.
    Quarantine {
        /// Which of both.
        event: QuarantineEvent,
        /// The artifact.
        artifact: ArtifactId,
        /// What was found.
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// A condition of the host began or ended.
    Host {
        /// Which, and whether it is so now.
        #[serde(flatten)]
        state: ConditionState,
    },
}

/// What a change is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Topic {
    /// Sandboxes.
    Sandbox,
    /// Templates and snapshots.
    Template,
    /// Builds.
    Build,
    /// Requests that were refused.
    Admission,
    /// The warm pool.
    Pool,
    /// Capacity.
    Capacity,
    /// Damaged artifacts.
    Quarantine,
    /// The host.
    Host,
}

impl Topic {
    /// Every topic.
    pub const ALL: [Self; 8] =
        [Self::Sandbox, Self::Template, Self::Build, Self::Admission, Self::Pool, Self::Capacity, Self::Quarantine, Self::Host];

    /// Its name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sandbox => "sandbox",
            Self::Template => "template",
            Self::Build => "build",
            Self::Admission => "admission",
            Self::Pool => "pool",
            Self::Capacity => "capacity",
            Self::Quarantine => "quarantine",
            Self::Host => "host",
        }
    }
}

impl What {
    /// What it is about.
    pub fn topic(&self) -> Topic {
        match self {
            Self::Sandbox { .. } => Topic::Sandbox,
            Self::Template { .. } => Topic::Template,
            Self::Build { .. } => Topic::Build,
            Self::Admission { .. } => Topic::Admission,
            Self::Pool { .. } => Topic::Pool,
            Self::Capacity { .. } => Topic::Capacity,
            Self::Quarantine { .. } => Topic::Quarantine,
            Self::Host { .. } => Topic::Host,
        }
    }

    /// Whether every team may know, of what is of the host: why nothing new is started concerns all, and says nothing of anybody.
    pub(super) fn is_for_all(&self) -> bool {
        matches!(self, Self::Host { .. })
    }

    /// About how much memory it takes, bytes.
    pub(super) fn weight(&self) -> usize {
        let texts = match self {
            Self::Sandbox { sandbox, reason, .. } => sandbox.weight() + reason.as_ref().map_or(0, String::len),
            Self::Build { reason, .. } | Self::Quarantine { reason, .. } => reason.as_ref().map_or(0, String::len),
            Self::Admission { subject, .. } => subject.len(),
            Self::Pool { pool } => pool.templates.len() * WEIGHT,
            Self::Template { .. } | Self::Capacity { .. } | Self::Host { .. } => 0,
        };
        WEIGHT + texts
    }
}

/// What became of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SandboxEvent {
    /// It was created, or forked from another.
    Created,
    /// It is being paused.
    Pausing,
    /// It is paused.
    Paused,
    /// It could not be paused, and runs.
    PauseFailed,
    /// It runs again.
    Resumed,
    /// It was to be resumed, and is paused as it was.
    ResumeFailed,
    /// Its deadline was moved.
    TimeoutChanged,
    /// Its outbound network was changed.
    NetworkChanged,
    /// It has become what one of its snapshots holds.
    RolledBack,
    /// Its state was cut for a snapshot or for forks.
    Cut,
    /// It stands still because the host's disk has no room.
    StandsStill,
    /// It goes on after that.
    GoesOn,
    /// Its machine ended, or answers no more.
    Failed,
    /// It is gone.
    Killed,
}

/// What became of a template or snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TemplateEvent {
    /// A snapshot was taken.
    Snapshot,
    /// What is said of it was changed.
    Updated,
    /// Tags were given or taken.
    TagsChanged,
    /// It, or one of its tags, is gone.
    Deleted,
}

/// How far a build has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BuildEvent {
    /// It has a place, and waits to be started.
    Requested,
    /// It has begun.
    Started,
    /// Its template can be used.
    Ready,
    /// It failed.
    Failed,
    /// It ended because its template was deleted.
    Cancelled,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AdmissionEvent {
    /// It was refused.
    Refused,
}

/// Why a request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Refused {
    /// It is larger than the host could ever hold.
    TooLarge,
    /// As many wait as may.
    QueueFull,
    /// It waited for room in vain.
    Deadline,
    /// The host is short of memory.
    Memory,
    /// The disk is below its floor, or over its budget.
    Disk,
    /// No network slot is left.
    Network,
    /// Its team has as much as it may.
    TeamQuota,
}

/// Whether an artifact can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum QuarantineEvent {
    /// It was found damaged.
    Quarantined,
    /// It is intact, or gone.
    Released,
}

/// What can keep the host from new work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// The disk is below its floor: nothing is started.
    ShortOfDisk,
    /// Memory is below its floor, or waited for too long: nothing is started.
    ShortOfMemory,
    /// Too little of the disk is free for sessions that nobody has asked for: creates are slower.
    ShortOfDiskForPool,
}

impl Condition {
    /// What it is called in what is told and counted.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::ShortOfDisk => "short_of_disk",
            Self::ShortOfMemory => "short_of_memory",
            Self::ShortOfDiskForPool => "short_of_disk_for_pool",
        }
    }
}

/// A condition, and whether it is so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ConditionState {
    /// The condition.
    pub condition: Condition,
    /// Whether it is so now.
    pub holds: bool,
}

/// Bytes of a sandbox's labels that are told with it: far more than labels have, and little beside the thousands that are told at once.
pub const MAX_TOLD_LABELS_BYTES: usize = 4 << 10;

/// The label that stands for those that are left out.
const LEFT_OUT: &str = "firkin.labels";

/// The labels of a sandbox as they are told in lists and events: as they are where they are short, and left out where not.
pub fn short_labels(labels: BTreeMap<String, String>) -> BTreeMap<String, String> {
    if metadata_bytes(&labels) > MAX_TOLD_LABELS_BYTES { [(LEFT_OUT.to_owned(), "too long".to_owned())].into() } else { labels }
}

/// A sandbox as those see it who watch: nothing in it opens anything.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxSummary {
    /// Its id.
    #[serde(rename = "sandboxID")]
    pub id: SandboxId,
    /// Whose it is.
    #[serde(rename = "teamID")]
    pub team: TeamId,
    /// What it came from.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// Which build of that; absent for sandboxes of earlier servers.
    #[serde(rename = "buildID", skip_serializing_if = "Option::is_none")]
    pub build_id: Option<String>,
    /// That template's name.
    pub alias: Option<String>,
    /// Whether it runs.
    pub state: SandboxState,
    /// When it was created or last resumed.
    pub started_at: Timestamp,
    /// Its deadline, or when it was paused.
    pub end_at: Timestamp,
    /// Virtual CPUs.
    pub cpu_count: u32,
    /// Memory, MiB.
    #[serde(rename = "memoryMB")]
    pub memory_mib: u64,
    /// Disk, MiB.
    #[serde(rename = "diskSizeMB")]
    pub disk_mib: u64,
    /// Its creator's labels, as [`short_labels`] has them.
    pub metadata: BTreeMap<String, String>,
    /// Counts its lives: another after each pause, rollback and resume.
    pub epoch: u64,
}

impl SandboxSummary {
    pub(crate) fn of(sandbox: RuntimeSandbox, epoch: u64) -> Self {
        Self {
            id: sandbox.id,
            team: sandbox.owner,
            template_id: sandbox.template_id,
            build_id: sandbox.build_id,
            alias: sandbox.alias,
            state: sandbox.state,
            started_at: sandbox.started_at,
            end_at: sandbox.end_at,
            cpu_count: sandbox.budget.cpus,
            memory_mib: sandbox.budget.memory_mib,
            disk_mib: sandbox.budget.disk_mib,
            metadata: short_labels(sandbox.spec.metadata),
            epoch,
        }
    }

    fn weight(&self) -> usize {
        // Two allocations of an entry count too.
        self.metadata.iter().map(|(name, value)| name.len() + value.len() + 64).sum()
    }
}
