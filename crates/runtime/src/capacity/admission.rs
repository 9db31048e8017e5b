//! Who is let in, and when: the sixth step of a restore.
//!
//! ```text
//!   could never fit ──► refused at once
//!   the host is short of memory ──► warm sessions are ended for it; refused if that does not help
//!   free capacity ────► let in at once
//!   else a place in the queue (bounded; refused when it is full)
//!        └─ warm sessions are ended, one after the other, until it is this request's turn and its budget is free
//!        └─ no warm session is left: until active sessions end
//!        └─ the deadline passes: refused
//! ```
//!
//! The queue and its order are the ledger's ([`CapacityLedger`]), because whoever gives capacity back must hand it to the first
//! that waits in the same breath. Here is what takes time: waiting and evicting.
//!
//! Each request evicts for itself while it waits, so a burst of creates has as many warm sessions ended at once, and no more
//! than one each at a time.

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use tokio::time::MissedTickBehavior;

use crate::{
    capacity::{
        ActiveSessionReservation, Asked, CapacityError, CapacityLedger, Denial, NoWarmSessions, ResourceBudget, Waiter,
        WarmCapacityError, WarmEviction, WarmSessionReservation,
    },
    host::memory_pressure::{MEMORY_STALL_PERCENT, MemoryPressure, MemoryPressureGuard, MemoryPressureProbe},
};

/// Between two looks at the memory of a host on which nothing is created. Guests write some hundred MiB in that time, which the
/// floor has room for.
const MEMORY_LOOKS: Duration = Duration::from_secs(2);

/// How capacity is given out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdmissionConfig {
    /// Hundredths of the capacity that warm sessions may hold together.
    pub warm_percent: u8,
    /// How many requests may wait for capacity at once.
    pub queue_length: NonZeroUsize,
    /// How long one may wait.
    pub queue_deadline: Duration,
    /// Available memory in MiB below which no new work is taken; `None` for the default, scaled to the host.
    pub memory_floor_mib: Option<u64>,
    /// Per cent of ten seconds in which everything waits for memory, from which on no new work is taken.
    pub memory_stall_percent: u8,
}

/// Warm sessions make creates fast but serve nobody yet. A quarter of the host leaves the rest to those that do, without having
/// to end a warm session for each of them.
pub const WARM_PERCENT: u8 = 25;

/// A queue of one sandbox's creates is short; this one holds a burst of many clients and costs nothing.
pub const QUEUE_LENGTH: NonZeroUsize = NonZeroUsize::new(64).expect("it is not zero");

/// A third of the shortest life that a sandbox has by default: a fork is answered when the last of its children is decided, and
/// the others, with their 15 s, must still be alive then. Far from the SDKs' 60 s for a request, of which the restore needs the
/// rest; and an SDK that is told so comes again by itself.
pub const QUEUE_DEADLINE: Duration = Duration::from_secs(5);

impl Default for AdmissionConfig {
    fn default() -> Self {
        Self {
            warm_percent: WARM_PERCENT,
            queue_length: QUEUE_LENGTH,
            queue_deadline: QUEUE_DEADLINE,
            memory_floor_mib: None,
            memory_stall_percent: MEMORY_STALL_PERCENT,
        }
    }
}

/// Lets active work in. Clones share one queue.
#[derive(Debug, Clone)]
pub struct Admission {
    /// The host's capacity and its holders.
    pub ledger: CapacityLedger,
    /// Warm sessions, which end when active work needs their capacity.
    pub warm: Arc<dyn WarmEviction>,
    /// How many may wait.
    pub queue_length: NonZeroUsize,
    /// How long one may wait.
    pub queue_deadline: Duration,
    /// Keeps new work away from a host that is short of memory.
    pub memory: MemoryPressureGuard,
}

/// Why active work was not let in. It holds nothing.
#[derive(Debug, thiserror::Error)]
pub enum AdmissionError {
    /// The idle host has not enough: waiting and trying again are useless.
    #[error("it is larger than this host can ever hold")]
    NeverFits(#[source] CapacityError),
    /// As many wait as may.
    #[error("the host is full, and {waiting} requests wait for room already")]
    QueueFull {
        /// How many wait.
        waiting: usize,
        /// The resource that it lacks, once those have what they wait for.
        #[source]
        source: CapacityError,
    },
    /// The deadline passed.
    #[error("the host was full for {} s", waited.as_secs_f32())]
    Deadline {
        /// How long it waited.
        waited: Duration,
        /// The resource that it lacked, once those before it had what they waited for.
        #[source]
        source: CapacityError,
    },
    /// The host is short of memory, whatever the ledger says.
    #[error("the host takes no new work")]
    Memory(#[source] MemoryPressure),
}

/// Why no warm session may be made now.
#[derive(Debug, thiserror::Error)]
pub enum WarmAdmissionError {
    /// Its class or the host has no room for it.
    #[error(transparent)]
    Capacity(#[from] WarmCapacityError),
    /// The host is short of memory.
    #[error("the host takes no new work")]
    Memory(#[source] MemoryPressure),
}

impl Admission {
    /// For a host whose sandboxes may use `ledger`'s capacity, without warm sessions.
    pub fn new(ledger: CapacityLedger, memory: Arc<dyn MemoryPressureProbe>, config: &AdmissionConfig) -> Self {
        Self {
            ledger,
            warm: Arc::new(NoWarmSessions),
            queue_length: config.queue_length,
            queue_deadline: config.queue_deadline,
            memory: MemoryPressureGuard {
                floor_mib: config.memory_floor_mib,
                stall_percent: config.memory_stall_percent,
                probe: memory,
            },
        }
    }

    /// Waits until `budget` is free and it is this request's turn.
    ///
    /// Cancel-safe: a future that is dropped leaves the queue and holds nothing; those behind it move up.
    pub async fn admit(&self, budget: ResourceBudget) -> Result<ActiveSessionReservation, AdmissionError> {
        // What could never fit is told that below, whatever the memory.
        if self.ledger.could_ever_fit(&budget).is_ok() {
            self.find_memory().await.map_err(AdmissionError::Memory)?;
        }
        let mut waiter = match self.ledger.ask(budget, self.queue_length.get()) {
            Asked::Granted(reservation) => return Ok(reservation),
            Asked::Denied(Denial::NeverFits(short)) => return Err(AdmissionError::NeverFits(short)),
            Asked::Denied(Denial::QueueFull(source)) => {
                return Err(AdmissionError::QueueFull { waiting: self.ledger.view().waiting, source });
            }
            Asked::Waiting(waiter) => waiter,
        };
        let reservation = match tokio::time::timeout(self.queue_deadline, self.wait(&mut waiter)).await {
            Ok(reservation) => reservation,
            Err(_) => {
                let refused = |source| AdmissionError::Deadline { waited: self.queue_deadline, source };
                waiter.give_up().await.map_err(refused)?
            }
        };
        // Much may have been written while it waited.
        self.find_memory().await.map_err(AdmissionError::Memory)?;
        Ok(reservation)
    }

    /// Takes all of `budget` for a warm session, or nothing: nothing is warmed while active work waits or memory is short.
    pub fn admit_warm(&self, budget: ResourceBudget) -> Result<WarmSessionReservation, WarmAdmissionError> {
        self.memory.check().map_err(WarmAdmissionError::Memory)?;
        Ok(self.ledger.reserve_warm(budget)?)
    }

    /// Ends warm sessions, one at each look, while the host is short of memory. Goes on until it is dropped.
    pub async fn watch_memory(&self) {
        let mut looks = tokio::time::interval(MEMORY_LOOKS);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            if let Err(pressure) = self.memory.check()
                && self.warm.evict_one().await
            {
                tracing::info!(%pressure, "ended a warm session because the host is short of memory");
            }
        }
    }

    /// Whether there is memory for new work, if need be that of warm sessions.
    async fn find_memory(&self) -> Result<(), MemoryPressure> {
        loop {
            let Err(pressure) = self.memory.check() else { return Ok(()) };
            match pressure {
                MemoryPressure::BelowFloor { .. } if self.warm.evict_one().await => {}
                // An average does not fall at once. The watch ends warm sessions until it does.
                MemoryPressure::BelowFloor { .. } | MemoryPressure::Stalled { .. } | MemoryPressure::ProbeFailed(_) => {
                    return Err(pressure);
                }
            }
        }
    }

    async fn wait(&self, waiter: &mut Waiter) -> ActiveSessionReservation {
        loop {
            tokio::select! {
                biased;
                reservation = waiter.granted() => return reservation,
                evicted = self.warm.evict_one() => if !evicted {
                    break;
                }
            }
        }
        waiter.granted().await
    }
}
