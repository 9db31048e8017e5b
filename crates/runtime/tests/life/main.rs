//! The life of sandboxes through the runtime's public face, on the fake engine: pauses, wakes, crashes, and what they keep.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bench;
mod budget;
mod builds;
mod crashes;
mod deletion;
mod engines;
mod files;
mod flatten;
mod generations;
mod identity;
mod keeping;
mod layers;
mod lineage;
mod migration;
mod nonces;
mod privacy;
mod races;
mod rollback;
mod survival;
