//! What the tests with real virtual machines share.

pub mod agent_guest;
pub mod doomed_server;
pub mod engine_gvisor;
pub mod engine_qemu;
pub mod guest_link;
pub mod laboratory;
pub mod users;
