//! Network slots: who reaches whom, and what stays behind.
//!
//! Guests here are namespaces pumped to a slot's tap, so no machine has to boot, and sandboxes of gVisor where there is `runsc`. Needs root
//! and `ip`; touches nothing of the real host's network.
#![expect(clippy::unwrap_used, reason = "a helper of a test that fails, fails the test")]

#[path = "network_slots/doors.rs"]
mod doors;
#[path = "network_slots/guard.rs"]
mod guard;
#[path = "network_slots/isolation.rs"]
mod isolation;
#[path = "network_slots/lifetimes.rs"]
mod lifetimes;
#[path = "network_slots/nftables.rs"]
mod nftables;
#[path = "network_slots/sandbox.rs"]
mod sandbox;
#[path = "network_slots/sandboxes.rs"]
mod sandboxes;
#[path = "network_slots/second_place.rs"]
mod second_place;
#[path = "network_slots/world.rs"]
mod world;
