//! Who is let in, and when: the sixth step of a restore.
//!
//! ```text
//!   could never fit ──► refused at once
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

use crate::{
    capacity::{
        ActiveSessionReservation, Asked, CapacityError, CapacityLedger, Denial, NoWarmSessions, ResourceBudget, Waiter,
        WarmEviction,
    },
    config::AdmissionConfig,
};

/// Lets active work in. Clones share one queue.
#[derive(Debug, Clone)]
pub struct Admission {
    /// What there is and who holds it.
    pub ledger: CapacityLedger,
    /// Warm sessions, which end when active work needs their capacity.
    pub warm: Arc<dyn WarmEviction>,
    /// How many may wait.
    pub queue_length: NonZeroUsize,
    /// How long one may wait.
    pub queue_deadline: Duration,
}

/// Why active work was not let in. It holds nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AdmissionError {
    /// The idle host has not enough: waiting and trying again are useless.
    #[error("this host can never hold it")]
    NeverFits(#[source] CapacityError),
    /// As many wait as may.
    #[error("the host is full, and {waiting} requests wait for room already")]
    QueueFull {
        /// How many wait.
        waiting: usize,
        /// What it lacks, once those have what they wait for.
        #[source]
        source: CapacityError,
    },
    /// The deadline passed.
    #[error("the host was full for {} s", waited.as_secs_f32())]
    Deadline {
        /// How long it waited.
        waited: Duration,
        /// What it lacked, once those before it had what they waited for.
        #[source]
        source: CapacityError,
    },
}

impl Admission {
    /// For a host whose sandboxes may use `ledger`'s capacity, without warm sessions.
    pub fn new(ledger: CapacityLedger, config: &AdmissionConfig) -> Self {
        Self { ledger, warm: Arc::new(NoWarmSessions), queue_length: config.queue_length, queue_deadline: config.queue_deadline }
    }

    /// Waits until `budget` is free and it is this request's turn.
    ///
    /// Cancel-safe: a future that is dropped leaves the queue and holds nothing; those behind it move up.
    pub async fn admit(&self, budget: ResourceBudget) -> Result<ActiveSessionReservation, AdmissionError> {
        let mut waiter = match self.ledger.ask(budget, self.queue_length.get()) {
            Asked::Granted(reservation) => return Ok(reservation),
            Asked::Denied(Denial::NeverFits(short)) => return Err(AdmissionError::NeverFits(short)),
            Asked::Denied(Denial::QueueFull(source)) => {
                return Err(AdmissionError::QueueFull { waiting: self.ledger.view().waiting, source });
            }
            Asked::Waiting(waiter) => waiter,
        };
        match tokio::time::timeout(self.queue_deadline, self.wait(&mut waiter)).await {
            Ok(reservation) => Ok(reservation),
            Err(_) => {
                let refused = |source| AdmissionError::Deadline { waited: self.queue_deadline, source };
                waiter.give_up().await.map_err(refused)
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
