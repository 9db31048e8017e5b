//! The life of sandboxes on real gVisor, with the product's agent in them: of the runtime's `life` what is about sandboxes, and neither makes
//! the engine fail nor looks into it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use firkin_engine::fake::Keeping;

#[path = "life_on_gvisor/bench.rs"]
mod bench;
#[path = "../../../crates/runtime/tests/life/generations.rs"]
mod generations;
#[path = "../../../crates/runtime/tests/life/keeping.rs"]
mod keeping;
#[path = "../../../crates/runtime/tests/life/lineage.rs"]
mod lineage;
#[path = "../../../crates/runtime/tests/life/rollback.rs"]
mod rollback;
#[path = "../../../crates/runtime/tests/life/survival.rs"]
mod survival;

/// What the engine makes of memory and disks.
const KEEPING: Keeping = Keeping::AllInState;
