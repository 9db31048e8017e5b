//! Templates: golden snapshots that sandboxes are restored from, and how they are built.

use std::time::Duration;

use jiff::Timestamp;

use crate::capacity::ResourceBudget;

/// A template as the API shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateInfo {
    /// Its id.
    pub id: String,
    /// Id of the build that made it, a UUID.
    pub build_id: String,
    /// Names without team, e.g. `base`.
    pub aliases: Vec<String>,
    /// Size of its sandboxes.
    pub budget: ResourceBudget,
    /// First built.
    pub created_at: Timestamp,
    /// Last built.
    pub updated_at: Timestamp,
    /// How many sandboxes were started from it.
    pub spawn_count: u64,
    /// When the last one was.
    pub last_spawned_at: Option<Timestamp>,
    /// Whether it is a snapshot of a sandbox.
    pub is_snapshot: bool,
}

/// What to build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildTemplate {
    /// Name, e.g. `base`. An existing template of that name is replaced for new sandboxes.
    pub name: String,
    /// Size of its sandboxes.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Commands run as root, in order, before the snapshot.
    pub setup: Vec<String>,
    /// Command left running in the snapshot.
    pub start: Option<String>,
    /// Command that exits 0 when the template is ready.
    pub ready: Option<String>,
    /// How long to wait for that.
    pub ready_deadline: Duration,
}
