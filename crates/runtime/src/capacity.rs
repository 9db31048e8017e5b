//! The host's capacity and who holds it.
//!
//! Capacity is taken before anything is launched and comes back exactly once, when its guard is dropped. A guard cannot be
//! copied, so what is held always equals the sum of the live guards.
//!
//! ```text
//!                 reserve                          drop
//!      free ─────────────────► active session ───────────► free
//!        │                        ▲
//!        │ reserve_warm           │ promote: no moment in between at which the capacity is free
//!        └───────────────► warm session ──────────────────► free
//!                                           drop
//! ```
//!
//! Warm sessions are restored and stopped, and wait for a create to claim them. They hold their whole budget, so that a claim
//! can never fail for want of capacity, but at most a share of the host, and active work may have them ended
//! ([`WarmEviction`]).

use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

pub mod admission;
mod book;
mod ledger;
mod teams;
mod warm;

pub(crate) use book::Denial;
pub use ledger::{ActiveSessionReservation, CapacityLedger, WarmSessionReservation};
pub(crate) use ledger::{Asked, Waiter};
pub(crate) use teams::{SandboxShare, SessionShare, Shares, TeamBook, TeamFigures, within};
pub use teams::{TeamQuota, TeamQuotaError};
pub use warm::{NoWarmSessions, WarmCapacityError, WarmEviction};

/// The resources that one session needs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceBudget {
    /// Virtual CPUs.
    pub cpus: u32,
    /// Guest memory, MiB.
    pub memory_mib: u64,
    /// Root disk, MiB, as the guest sees it.
    pub disk_mib: u64,
}

impl AddAssign for ResourceBudget {
    fn add_assign(&mut self, other: Self) {
        self.cpus += other.cpus;
        self.memory_mib += other.memory_mib;
        self.disk_mib += other.disk_mib;
    }
}

/// The resources that the host offers sandboxes, after overcommit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostCapacity {
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory, MiB.
    pub memory_mib: u64,
    /// Disk, MiB.
    pub disk_mib: u64,
}

impl HostCapacity {
    /// `percent` hundredths of it, rounded down. More than all of it is all of it.
    pub fn share(&self, percent: u8) -> Self {
        let percent = u64::from(percent.min(100));
        let part = |whole: u64| whole / 100 * percent + whole % 100 * percent / 100;
        Self {
            cpus: u32::try_from(part(u64::from(self.cpus))).expect("a share is not more than the whole"),
            memory_mib: part(self.memory_mib),
            disk_mib: part(self.disk_mib),
        }
    }
}

/// The resources that the sessions of one class hold together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ClassUsage {
    /// How many there are.
    pub sessions: u64,
    /// The sum of their budgets.
    pub held: ResourceBudget,
}

/// The resources that are held, by class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct CapacityUsage {
    /// Sessions that somebody uses, or that a template is being built in.
    pub active: ClassUsage,
    /// Sessions that wait to be claimed.
    pub warm: ClassUsage,
}

impl CapacityUsage {
    /// Both classes together.
    pub fn total(&self) -> ResourceBudget {
        let mut total = self.active.held;
        total += self.warm.held;
        total
    }
}

/// Outcomes of requests for active sessions since the ledger was opened. Those that wait now are in none of these.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct RequestCounts {
    /// Let in without waiting.
    pub immediate: u64,
    /// Let in after waiting.
    pub queued: u64,
    /// Left the queue without any: the deadline passed, or the request was cancelled.
    pub timed_out: u64,
    /// Found the queue full.
    pub rejected: u64,
    /// Could never fit.
    pub too_large: u64,
}

/// The ledger at one instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct CapacityView {
    /// The resources that the host offers.
    pub capacity: HostCapacity,
    /// The part of it that warm sessions may hold together.
    pub warm_limit: HostCapacity,
    /// The part of it that is held.
    pub usage: CapacityUsage,
    /// Requests that wait.
    pub waiting: usize,
    /// Requests that do not wait any more.
    pub requests: RequestCounts,
}

/// The first resource that does not suffice; checked in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CapacityError {
    /// Virtual CPUs.
    #[error("{requested} cpus requested, {available} available")]
    Cpu {
        /// Asked for.
        requested: u64,
        /// Left.
        available: u64,
    },
    /// Memory in MiB.
    #[error("{requested} MiB of memory requested, {available} MiB available")]
    Memory {
        /// Asked for.
        requested: u64,
        /// Left.
        available: u64,
    },
    /// Disk in MiB.
    #[error("{requested} MiB of disk requested, {available} MiB available")]
    Disk {
        /// Asked for.
        requested: u64,
        /// Left.
        available: u64,
    },
}

/// Whether `budget` fits into what of `capacity` is not held. More may be held than there is (see [`CapacityLedger::adopt`]).
fn fits(capacity: &HostCapacity, held: &ResourceBudget, budget: &ResourceBudget) -> Result<(), CapacityError> {
    let (requested, available) = (u64::from(budget.cpus), u64::from(capacity.cpus.saturating_sub(held.cpus)));
    if requested > available {
        return Err(CapacityError::Cpu { requested, available });
    }
    let (requested, available) = (budget.memory_mib, capacity.memory_mib.saturating_sub(held.memory_mib));
    if requested > available {
        return Err(CapacityError::Memory { requested, available });
    }
    let (requested, available) = (budget.disk_mib, capacity.disk_mib.saturating_sub(held.disk_mib));
    if requested > available {
        return Err(CapacityError::Disk { requested, available });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_rounded_down_and_never_more_than_the_whole() {
        let host = HostCapacity { cpus: u32::MAX, memory_mib: u64::MAX, disk_mib: 7 };
        assert_eq!(host.share(0), HostCapacity { cpus: 0, memory_mib: 0, disk_mib: 0 });
        assert_eq!((host.share(50).cpus, host.share(50).disk_mib), (u32::MAX / 2, 3));
        assert_eq!((host.share(100), host.share(255)), (host, host));
    }
}
