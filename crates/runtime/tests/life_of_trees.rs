//! The life of sandboxes on an engine of another form: memory within the state, and a directory for each layer of a disk. All of
//! `life` but what is about diffs of memory, of which this engine has none.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use firkin_engine::fake::Keeping;

#[expect(dead_code, reason = "several engines are those that users have")]
#[path = "life/bench.rs"]
mod bench;
#[path = "life/budget.rs"]
mod budget;
#[path = "life/building.rs"]
mod building;
#[path = "life/builds.rs"]
mod builds;
#[path = "life/crashes.rs"]
mod crashes;
#[path = "life/deletion.rs"]
mod deletion;
#[path = "life/engines.rs"]
mod engines;
#[path = "life/files.rs"]
mod files;
#[path = "life/floor.rs"]
mod floor;
#[path = "life/generations.rs"]
mod generations;
#[path = "life/identity.rs"]
mod identity;
#[path = "life/keeping.rs"]
mod keeping;
#[path = "life/layers.rs"]
mod layers;
#[path = "life/lineage.rs"]
mod lineage;
#[path = "life/migration.rs"]
mod migration;
#[path = "life/nonces.rs"]
mod nonces;
#[path = "life/privacy.rs"]
mod privacy;
#[path = "life/programs.rs"]
mod programs;
#[path = "life/quota.rs"]
mod quota;
#[path = "life/races.rs"]
mod races;
#[path = "life/rollback.rs"]
mod rollback;
#[path = "life/rollback_apart.rs"]
mod rollback_apart;
#[path = "life/survival.rs"]
mod survival;
#[path = "life/sweeps.rs"]
mod sweeps;

/// What the engine makes of memory and disks.
const KEEPING: Keeping = Keeping::InStateAndTrees;

/// Whether servers encrypt what sandboxes leave; `life_sealed` has them do so.
const SEALS: bool = false;
