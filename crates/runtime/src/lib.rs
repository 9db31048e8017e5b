//! Everything that decides: which snapshot is restored, whether there is room, who runs, until when, and what is kept.
//!
//! [`runtime::Runtime`] is the whole system without its HTTP edge. It is opened on a state directory with an engine, and asked
//! to build templates, to create, pause, resume, fork and kill sandboxes, and to connect to their ports.

pub mod artifact;
pub mod capacity;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod ground;
mod host;
pub mod images;
mod machine;
pub mod restore;
pub mod runtime;
pub mod sandbox;
mod shared;
mod start;
mod storage;
pub mod store;
mod telemetry;
pub mod template;
mod upkeep;

pub use capacity::admission;
pub use ground::{ids, progress, reference, team};
pub use host::{disk, memory_pressure};
pub use images::{desktop, root_image, standard};
pub use machine::{agent, command, engines, fence, groups, guest_file, launch, network, outbound};
pub use restore::warm;
pub use runtime::{
    changes as overview, encryption, host_templates, moving, outlook, relocating, second_copies, sweep, templates, webhooks,
};
pub use sandbox::{lineage, owner, stale_state, trust};
pub use shared::config;
pub use start::pool;
pub use storage::{keys, secrets, volumes, workload};
pub use store::{claims, state_dir};
pub use telemetry::{activity, changes, copies, history, lifecycle, metrics, nodes, phases};
pub use template::{build, tags};
pub use upkeep::{catalogue, restore_from, sandbox_quota, upgrade, verify};
