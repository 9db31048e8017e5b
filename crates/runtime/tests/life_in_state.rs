//! The life of sandboxes on an engine that keeps all of a guest within its state, its files too, as gVisor does: of `life` what is about
//! sandboxes, and what such an engine cannot do.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(dead_code, reason = "the bench is that of all")]

use firkin_engine::fake::Keeping;

#[path = "life/bench.rs"]
mod bench;
#[path = "life/building.rs"]
mod building;
#[path = "life/files_in_memory.rs"]
mod files_in_memory;
#[path = "life/generations.rs"]
mod generations;
#[path = "life/identity.rs"]
mod identity;
#[path = "life/keeping.rs"]
mod keeping;
#[path = "life/lineage.rs"]
mod lineage;
#[path = "life/moving.rs"]
mod moving;
#[path = "life/programs.rs"]
mod programs;
#[path = "life/survival.rs"]
mod survival;
#[path = "life/sweeps.rs"]
mod sweeps;

/// What the engine makes of memory and disks.
const KEEPING: Keeping = Keeping::AllInState;

/// Whether servers encrypt what sandboxes leave; `life_sealed` has them do so.
const SEALS: bool = false;
