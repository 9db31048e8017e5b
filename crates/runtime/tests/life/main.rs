//! The life of sandboxes through the runtime's public face, on the fake engine: pauses, wakes, crashes, and what they keep.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use firkin_engine::fake::Keeping;

mod bases;
mod bench;
mod budget;
mod building;
mod builds;
mod catalog;
mod copies;
mod crashes;
mod deletion;
mod engines;
mod fence;
mod fetching;
mod files;
mod flatten;
mod floor;
mod generations;
mod identity;
mod keeping;
mod layers;
mod lineage;
mod migration;
mod moving;
mod network;
mod nonces;
mod privacy;
mod programs;
mod quota;
mod races;
mod relocating;
mod rollback;
mod rollback_apart;
mod several;
mod survival;
mod sweeps;
mod tenants;
mod volumes;

/// What the engine makes of memory and disks; `life_of_trees` has the other form.
const KEEPING: Keeping = Keeping::Files;

/// Whether servers encrypt what sandboxes leave; `life_sealed` has them do so.
const SEALS: bool = false;
