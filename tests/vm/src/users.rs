//! Users that machines of tests run as. Programs of tests run at the same time, and some of them look for all processes of their users: so
//! each has users that no other one has, and that no server of this host has. Which of them are a process's, its number says.

/// First of 14,000,000, of machines on QEMU. A server's own are before them.
pub(crate) const QEMU: u32 = 0x7010_0000;
/// First of 134,217,728, of worlds with networks.
pub const NETWORK_SLOTS: u32 = 0x7100_0000;
/// First of 67,108,864, of hosts with sandboxes on gVisor.
pub const LIFE_ON_GVISOR: u32 = 0x7900_0000;
/// First of 32,000,000, of sandboxes on gVisor.
pub(crate) const GVISOR: u32 = 0x7d00_0000;
