//! Templates: golden snapshots that sandboxes are restored from, as the API shows them.

use jiff::Timestamp;

use crate::{
    capacity::ResourceBudget,
    ground::team::TeamId,
    store::{BuildState, spec::SandboxId},
};

/// A template as the API shows it. Of a template without a build that has ended, its newest build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateInfo {
    /// Its id, whatever its tags.
    pub id: String,
    /// Whose it is.
    pub owner: TeamId,
    /// Its name, without team and tag. Absent for snapshots, and where none was given.
    pub name: Option<String>,
    /// Id of the build that is shown, a UUID: that of the tag that was asked for, else that of `default`, else the newest.
    pub build_id: String,
    /// How far that build has come.
    pub state: BuildState,
    /// How many builds of it are remembered.
    pub builds: usize,
    /// Names without team, e.g. `base`, with `:tag` unless that is `default`.
    pub aliases: Vec<String>,
    /// Its tags and their builds.
    pub tags: Vec<TagInfo>,
    /// Size of the sandboxes of what is shown.
    pub budget: ResourceBudget,
    /// What that has to be run by, by the word for which it is asked; absent where nothing is built yet, and for what earlier versions built.
    pub runs_on: Option<String>,
    /// Asked for first.
    pub created_at: Timestamp,
    /// Last built.
    pub updated_at: Timestamp,
    /// How many sandboxes were started from it.
    pub spawn_count: u64,
    /// When the last one was.
    pub last_spawned_at: Option<Timestamp>,
    /// The sandbox that it is a snapshot of; absent for a template.
    pub snapshot_of: Option<SandboxId>,
    /// Whether other teams may start from it, by its id or as `team/name`.
    pub public: bool,
    /// Its description, if it has one.
    pub description: Option<String>,
}

/// One tag of a template, and the build that it leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagInfo {
    /// Without the name.
    pub tag: String,
    /// The build.
    pub build_id: String,
    /// When the tag was given to it.
    pub assigned_at: Timestamp,
    /// When that was built.
    pub built_at: Timestamp,
}

/// Changes of a template. Absent fields stay as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TemplateUpdate {
    /// Whether it is marked as public.
    pub public: Option<bool>,
    /// Its description. An empty text removes it.
    pub description: Option<String>,
}
