//! The host's capacity and who holds it.
//!
//! Capacity is taken before anything is launched and comes back exactly once, when its guard is dropped. A guard cannot be
//! copied, so what is used always equals the sum of the live guards.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

/// What one session needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceBudget {
    /// Virtual CPUs.
    pub cpus: u32,
    /// Guest memory, MiB.
    pub memory_mib: u64,
    /// Root disk, MiB, as the guest sees it.
    pub disk_mib: u64,
}

/// What the host offers sandboxes, after overcommit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostCapacity {
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory, MiB.
    pub memory_mib: u64,
    /// Disk, MiB.
    pub disk_mib: u64,
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

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Used {
    cpus: u64,
    memory_mib: u64,
    disk_mib: u64,
}

/// The host's capacity and what is used of it. Clones share one ledger.
#[derive(Debug, Clone)]
pub struct CapacityLedger {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    capacity: HostCapacity,
    used: Mutex<Used>,
}

impl Shared {
    fn used(&self) -> MutexGuard<'_, Used> {
        // No code can panic between a lock and its unlock here, so a poisoned value is still a whole one.
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Capacity held by one live session. Given back on drop, exactly once.
#[derive(Debug)]
#[must_use = "dropping a reservation gives the capacity back"]
pub struct ActiveSessionReservation {
    shared: Arc<Shared>,
    budget: ResourceBudget,
}

impl CapacityLedger {
    /// An empty ledger.
    pub fn new(capacity: HostCapacity) -> Self {
        Self { shared: Arc::new(Shared { capacity, used: Mutex::default() }) }
    }

    /// What the host offers.
    pub fn capacity(&self) -> HostCapacity {
        self.shared.capacity
    }

    /// What is held now.
    pub fn used(&self) -> ResourceBudget {
        let used = *self.shared.used();
        ResourceBudget {
            cpus: u32::try_from(used.cpus).unwrap_or(u32::MAX),
            memory_mib: used.memory_mib,
            disk_mib: used.disk_mib,
        }
    }

    /// Whether `budget` could be held on an idle host. What could never fit is refused at once, not queued.
    pub fn could_ever_fit(&self, budget: &ResourceBudget) -> Result<(), CapacityError> {
        check(&self.shared.capacity, &Used::default(), budget)
    }

    /// Takes all of `budget`, or nothing.
    pub fn reserve(&self, budget: ResourceBudget) -> Result<ActiveSessionReservation, CapacityError> {
        let mut used = self.shared.used();
        check(&self.shared.capacity, &used, &budget)?;
        used.cpus += u64::from(budget.cpus);
        used.memory_mib += budget.memory_mib;
        used.disk_mib += budget.disk_mib;
        drop(used);
        Ok(ActiveSessionReservation { shared: Arc::clone(&self.shared), budget })
    }
}

impl ActiveSessionReservation {
    /// What is held.
    pub fn budget(&self) -> ResourceBudget {
        self.budget
    }
}

impl Drop for ActiveSessionReservation {
    fn drop(&mut self) {
        let mut used = self.shared.used();
        debug_assert!(used.cpus >= u64::from(self.budget.cpus) && used.memory_mib >= self.budget.memory_mib);
        used.cpus -= u64::from(self.budget.cpus);
        used.memory_mib -= self.budget.memory_mib;
        used.disk_mib -= self.budget.disk_mib;
    }
}

fn check(capacity: &HostCapacity, used: &Used, budget: &ResourceBudget) -> Result<(), CapacityError> {
    let (requested, available) = (u64::from(budget.cpus), u64::from(capacity.cpus).saturating_sub(used.cpus));
    if requested > available {
        return Err(CapacityError::Cpu { requested, available });
    }
    let (requested, available) = (budget.memory_mib, capacity.memory_mib.saturating_sub(used.memory_mib));
    if requested > available {
        return Err(CapacityError::Memory { requested, available });
    }
    let (requested, available) = (budget.disk_mib, capacity.disk_mib.saturating_sub(used.disk_mib));
    if requested > available {
        return Err(CapacityError::Disk { requested, available });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOST: HostCapacity = HostCapacity { cpus: 4, memory_mib: 4096, disk_mib: 100 };

    fn budget(cpus: u32, memory_mib: u64, disk_mib: u64) -> ResourceBudget {
        ResourceBudget { cpus, memory_mib, disk_mib }
    }

    #[test]
    fn the_first_resource_that_does_not_fit_is_named_with_both_numbers() {
        let ledger = CapacityLedger::new(HOST);
        let held = ledger.reserve(budget(3, 1024, 10)).unwrap();
        let table = [
            (budget(2, 9999, 999), CapacityError::Cpu { requested: 2, available: 1 }),
            (budget(1, 9999, 999), CapacityError::Memory { requested: 9999, available: 3072 }),
            (budget(1, 3072, 999), CapacityError::Disk { requested: 999, available: 90 }),
        ];
        for (request, expected) in table {
            assert_eq!(ledger.reserve(request).unwrap_err(), expected);
        }
        assert_eq!(ledger.used(), budget(3, 1024, 10), "a refusal takes nothing");
        drop(held);
        assert_eq!(ledger.used(), budget(0, 0, 0));
    }

    proptest! {
        #[test]
        fn used_is_the_sum_of_live_reservations_and_never_exceeds_capacity(
            steps in proptest::collection::vec((any::<bool>(), 0u32..3, 0u64..2048, 0u64..60), 1..60)
        ) {
            let ledger = CapacityLedger::new(HOST);
            let mut live = Vec::new();
            for (take, cpus, memory, disk) in steps {
                if take {
                    if let Ok(held) = ledger.reserve(budget(cpus, memory, disk)) {
                        live.push(held);
                    }
                } else {
                    live.pop();
                }
                let sum = live.iter().fold(budget(0, 0, 0), |a, held| {
                    let b = held.budget();
                    budget(a.cpus + b.cpus, a.memory_mib + b.memory_mib, a.disk_mib + b.disk_mib)
                });
                prop_assert_eq!(ledger.used(), sum);
                prop_assert!(sum.cpus <= HOST.cpus && sum.memory_mib <= HOST.memory_mib && sum.disk_mib <= HOST.disk_mib);
            }
        }
    }
}
