//! The life of sandboxes whose states are encrypted: what of `life` is about states and layers, but what looks into their files, or is
//! about memory that is flattened, which is not done then; and what is told of keys.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use firkin_engine::fake::Keeping;

#[path = "life/bases.rs"]
mod bases;
#[expect(dead_code, reason = "what is for the limits of sandboxes is of tests that look into files")]
#[path = "life/bench.rs"]
mod bench;
#[path = "life/building.rs"]
mod building;
#[path = "life/builds.rs"]
mod builds;
#[path = "life/copies.rs"]
mod copies;
#[path = "life/deletion.rs"]
mod deletion;
#[path = "life/layers.rs"]
mod layers;
#[path = "life/lineage.rs"]
mod lineage;
#[path = "life/rollback.rs"]
mod rollback;
#[path = "life/rollback_apart.rs"]
mod rollback_apart;
#[path = "life/sealed.rs"]
mod sealed;
#[path = "life/several.rs"]
mod several;
#[path = "life/survival.rs"]
mod survival;
#[path = "life/sweeps.rs"]
mod sweeps;

/// What the engine makes of memory and disks.
const KEEPING: Keeping = Keeping::Files;

/// Whether servers encrypt what sandboxes leave.
const SEALS: bool = true;
