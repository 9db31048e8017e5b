//! What differs between the processes of a jail.

use std::os::fd::OwnedFd;

/// The network that a process sees.
#[derive(Debug)]
pub enum Network {
    /// This namespace.
    Enter(OwnedFd),
    /// A new one, with nothing in it.
    Fresh,
}

/// What a process may use up, for those limits that are a process's own.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The size that no file may be made to grow beyond. A write beyond it fails.
    pub file_bytes: u64,
    /// Open descriptors.
    pub descriptors: u64,
    /// Threads of its user.
    pub threads: u64,
}

/// What differs between the processes of a jail.
#[derive(Debug)]
pub struct Confinement {
    /// User and group id.
    pub uid: u32,
    /// Its network.
    pub network: Network,
    /// Open `cgroup.procs` files of the control groups that it belongs to.
    pub groups: Vec<OwnedFd>,
    /// What it may use up.
    pub limits: Limits,
    /// Whether its memory may be in huge pages.
    pub huge_pages: bool,
    /// Descriptors that it is handed, under the numbers they have. Ours are closed after the start.
    pub handed: Vec<OwnedFd>,
}
