//! Template builds as E2B's SDKs ask for them: a source, steps, a command to leave running, and what came of it.
//!
//! ```text
//!   request ─► waiting ─ start ─► building ──► ready
//!                 │                  └───────► error (names the step)
//!                 └── delete: gone, with whatever it had made
//!
//!   source ─► prepared source ─┬─ restore ─► steps ─ cut ─► steps ─ cut ─► start, ready ─ cut ─► template
//!     image, template          └─ or the deepest layer that is known by content
//! ```
//!
//! A build is a restore like any other: it takes the deepest state that was made of the same parts, does what is left, and is cut.
//! Only a source that nobody has prepared in that shape is booted. So a second build of a source takes as long as its own steps,
//! and shares memory and disk with the first. What is kept between builds is in `cache`; it is never needed, only faster.

pub(crate) mod cache;
mod command;
mod context;
mod copy;
pub mod dockerfile;
pub mod error;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod gap;
pub(crate) mod job;
mod log;
mod machine;
pub(crate) mod names;
mod provision;
mod ready;
mod record;
mod registry;
mod room;
mod source;
mod step;
pub(crate) mod whole;

use firkin_engine::{Acceleration, Processor};
use jiff::Timestamp;

use crate::{
    ground::team::TeamId,
    images,
    images::standard::BuildTemplate,
    store::{BuildReason, BuildState},
};

pub(crate) use self::{
    cache::{drop_artifact, keeps},
    record::warms,
    registry::{Builds, Live, cancel_all, recover},
};
pub use crate::storage::uploads::FileUpload;

/// What is asked for before a build: a place for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BuildRequest {
    /// `name` or `name:tag`. Without one the template is known by its id.
    pub name: Option<String>,
    /// Further tags.
    pub tags: Vec<String>,
    /// Virtual CPUs; the SDKs' default when absent.
    pub cpus: Option<i64>,
    /// Memory in MiB; the SDKs' default when absent.
    pub memory_mib: Option<i64>,
    /// Free space in MiB that the template's root file system must have, else the build fails; nothing is asked when absent.
    pub min_free_disk_mib: Option<i64>,
}

/// The place that a build got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestedBuild {
    /// The template that it becomes.
    pub template_id: String,
    /// Its own id, a UUID.
    pub build_id: String,
    /// Whose it is.
    pub owner: TeamId,
    /// Name of the template, without tag, if it was given one.
    pub name: Option<String>,
    /// Tags that will name it.
    pub tags: Vec<String>,
    /// Whether the template is marked as public.
    pub public: bool,
}

/// What to build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildPlan {
    /// What it stands on.
    pub source: Source,
    /// Whether every step is carried out although its result is known.
    pub force: bool,
    /// In order.
    pub steps: Vec<StepSpec>,
    /// Left running in the template.
    pub start: Option<String>,
    /// Exits 0 when that is ready.
    pub ready: Option<String>,
    /// Whether its guests may run guests: they are shown the host's virtualisation.
    pub nested_virtualization: bool,
    /// What its sandboxes run on; none: what its source's do, and the first of the host's engines for one that is not built yet.
    pub engine: Option<Acceleration>,
}

impl BuildPlan {
    /// What its guests see of the processor.
    pub(crate) fn processor(&self) -> Processor {
        if self.nested_virtualization { Processor::Nested } else { Processor::Plain }
    }
}

/// What a build stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A container image.
    Image(images::ImageRequest),
    /// A template or snapshot: name, `name:tag` or id.
    Template(String),
    /// One of the host's own templates, as that is made.
    Standard(Box<BuildTemplate>),
}

/// One step as it was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StepSpec {
    /// `RUN`, `COPY`, `WORKDIR`, `USER`, `ENV`, or an alias.
    pub kind: String,
    /// By kind.
    pub args: Vec<String>,
    /// Names the uploaded files of a `COPY`.
    pub files_hash: Option<String>,
    /// Whether this step and what follows are carried out although their result is known.
    pub force: bool,
}

/// A build as the API shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildInfo {
    /// Its id.
    pub id: String,
    /// The template that it becomes.
    pub template_id: String,
    /// Tags that it was asked for under.
    pub tags: Vec<String>,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Disk in MiB, once that is known.
    pub disk_mib: Option<u64>,
    /// How far it has come.
    pub state: BuildState,
    /// Why it failed.
    pub reason: Option<BuildReason>,
    /// Requested.
    pub created_at: Timestamp,
    /// Last changed.
    pub updated_at: Timestamp,
    /// Ended.
    pub finished_at: Option<Timestamp>,
}
