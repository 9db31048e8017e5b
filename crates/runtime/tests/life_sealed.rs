//! The life of sandboxes whose states are encrypted: all of `life` but what looks into the files of disks and states, and what is about memory that
//! is flattened, which is not done then; and what is told of keys.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use firkin_engine::fake::Keeping;

#[path = "life/bases.rs"]
mod bases;
#[expect(dead_code, reason = "what is for the limits of sandboxes is of tests that look into files")]
#[path = "life/bench.rs"]
mod bench;
#[path = "life/budget.rs"]
mod budget;
#[path = "life/builds.rs"]
mod builds;
#[path = "life/deletion.rs"]
mod deletion;
#[path = "life/engines.rs"]
mod engines;
#[path = "life/floor.rs"]
mod floor;
#[path = "life/identity.rs"]
mod identity;
#[path = "life/layers.rs"]
mod layers;
#[path = "life/lineage.rs"]
mod lineage;
#[path = "life/migration.rs"]
mod migration;
#[path = "life/nonces.rs"]
mod nonces;
#[path = "life/races.rs"]
mod races;
#[path = "life/rollback.rs"]
mod rollback;
#[path = "life/sealed.rs"]
mod sealed;
#[path = "life/survival.rs"]
mod survival;

/// What the engine makes of memory and disks.
const KEEPING: Keeping = Keeping::Files;

/// Whether servers encrypt what sandboxes leave.
const SEALS: bool = true;
