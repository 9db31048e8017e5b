//! Who gets capacity, decided without a clock, a lock or a task: pure state, so that any interleaving can be replayed.
//!
//! ```text
//!              fits, nobody waits                        give back
//!   ask ──┬──────────────────────────────────► granted ───────────┐
//!         │ does not fit, or others wait          ▲               │ the head fits
//!         ├──────────────────────► waiting ───────┼───────────────┘
//!         │                          │  the head  │
//!         │                          └─ leave ────┘ the next one is the head
//!         └─ could never fit, or too many wait ─► denied
//! ```
//!
//! The queue is strictly first come, first served. A request that fits never passes one that waits: passing would keep the host
//! busier for moments, but a large sandbox could wait for ever behind small ones, and no rule about how often it may be passed
//! is as easy to foresee as none. What it costs is bounded by the deadline of whoever waits at the head.
//!
//! After every change the head does not fit: whatever became free was granted in the same breath.

use std::collections::VecDeque;

use super::{
    CapacityError, CapacityUsage, CapacityView, ClassUsage, HostCapacity, RequestCounts, ResourceBudget, WarmCapacityError, fits,
};

/// A session's class, which decides what its capacity counts against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Active,
    Warm,
}

/// A place in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket(u64);

/// The outcome of a request.
#[derive(Debug)]
pub(super) enum Decision {
    /// It holds its budget from now on.
    Granted,
    /// It stands in the queue until it is granted or leaves.
    Waiting(Ticket),
    /// It holds nothing and does not wait.
    Denied(Denial),
}

/// Why a request neither got capacity nor waits for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Denial {
    /// The idle host has not enough.
    NeverFits(CapacityError),
    /// As many wait as may.
    QueueFull(CapacityError),
}

/// A request that stopped waiting because it holds its budget now. `waker` is what it left behind to be told.
#[derive(Debug)]
#[must_use = "whoever waits must be told"]
pub(super) struct Grant<W> {
    pub(super) budget: ResourceBudget,
    pub(super) waker: W,
}

#[derive(Debug)]
struct Waiter<W> {
    ticket: Ticket,
    budget: ResourceBudget,
    waker: W,
}

#[derive(Debug)]
pub(super) struct Book<W> {
    pub(super) capacity: HostCapacity,
    pub(super) warm_limit: HostCapacity,
    pub(super) usage: CapacityUsage,
    pub(super) requests: RequestCounts,
    queue: VecDeque<Waiter<W>>,
    next_ticket: u64,
}

impl CapacityUsage {
    fn class(&mut self, class: Class) -> &mut ClassUsage {
        match class {
            Class::Active => &mut self.active,
            Class::Warm => &mut self.warm,
        }
    }
}

impl ClassUsage {
    pub(super) fn take(&mut self, budget: ResourceBudget) {
        self.sessions += 1;
        self.held += budget;
    }

    fn give_back(&mut self, budget: ResourceBudget) {
        assert!(self.sessions > 0, "capacity comes back once");
        self.sessions -= 1;
        self.held.cpus -= budget.cpus;
        self.held.memory_mib -= budget.memory_mib;
        self.held.disk_mib -= budget.disk_mib;
    }
}

impl<W> Book<W> {
    pub(super) fn new(capacity: HostCapacity, warm_limit: HostCapacity) -> Self {
        let (usage, requests) = (CapacityUsage::default(), RequestCounts::default());
        Self { capacity, warm_limit, usage, requests, queue: VecDeque::new(), next_ticket: 0 }
    }

    pub(super) fn view(&self) -> CapacityView {
        let Self { capacity, warm_limit, usage, requests, .. } = *self;
        CapacityView { capacity, warm_limit, usage, waiting: self.queue.len(), requests }
    }

    pub(super) fn could_ever_fit(&self, budget: &ResourceBudget) -> Result<(), CapacityError> {
        fits(&self.capacity, &ResourceBudget::default(), budget)
    }

    /// Asks for an active session's capacity, and for a place in the queue if `queue_length` allows and it is needed.
    pub(super) fn ask(&mut self, budget: ResourceBudget, queue_length: usize, waker: impl FnOnce() -> W) -> Decision {
        if let Err(short) = self.could_ever_fit(&budget) {
            self.requests.too_large += 1;
            return Decision::Denied(Denial::NeverFits(short));
        }
        match self.take(budget) {
            Ok(()) => {
                self.requests.immediate += 1;
                Decision::Granted
            }
            Err(short) if self.queue.len() >= queue_length => {
                self.requests.rejected += 1;
                Decision::Denied(Denial::QueueFull(short))
            }
            Err(_) => {
                let ticket = Ticket(self.next_ticket);
                self.next_ticket += 1;
                self.queue.push_back(Waiter { ticket, budget, waker: waker() });
                Decision::Waiting(ticket)
            }
        }
    }

    /// Takes an active session's capacity now, unless others wait for it.
    pub(super) fn take(&mut self, budget: ResourceBudget) -> Result<(), CapacityError> {
        self.fits_behind(self.queue.len(), &budget)?;
        self.usage.active.take(budget);
        Ok(())
    }

    /// Whether an active session would be let in now, if need be in the place of warm ones, without anybody before it.
    pub(super) fn has_room(&self, budget: &ResourceBudget) -> Result<(), CapacityError> {
        self.fits_behind(self.queue.len(), budget).or_else(|short| match self.queue.is_empty() {
            true => fits(&self.capacity, &self.usage.active.held, budget),
            false => Err(short),
        })
    }

    /// Takes a warm session's capacity now, unless active work waits for it.
    pub(super) fn take_warm(&mut self, budget: ResourceBudget) -> Result<(), WarmCapacityError> {
        fits(&self.warm_limit, &self.usage.warm.held, &budget).map_err(WarmCapacityError::Share)?;
        self.fits_behind(self.queue.len(), &budget).map_err(WarmCapacityError::Host)?;
        self.usage.warm.take(budget);
        Ok(())
    }

    /// Counts what is held already, whether it fits or not.
    pub(super) fn adopt(&mut self, budget: ResourceBudget) {
        self.usage.active.take(budget);
    }

    /// Counts a warm session as an active one.
    pub(super) fn promote(&mut self, budget: ResourceBudget) {
        self.usage.warm.give_back(budget);
        self.usage.active.take(budget);
    }

    /// Takes back what a session held. Returns those who need not wait any longer.
    pub(super) fn give_back(&mut self, class: Class, budget: ResourceBudget) -> Vec<Grant<W>> {
        self.usage.class(class).give_back(budget);
        self.grant_heads()
    }

    /// Leaves the queue, if `ticket` is still in it. Returns those who need not wait any longer: those behind a head that left.
    pub(super) fn leave(&mut self, ticket: Ticket) -> Vec<Grant<W>> {
        if let Some(place) = self.queue.iter().position(|waiter| waiter.ticket == ticket) {
            self.queue.remove(place);
            self.requests.timed_out += 1;
        }
        self.grant_heads()
    }

    /// The resource that a waiting request lacks; `None` when it does not wait any more.
    pub(super) fn shortage(&self, ticket: Ticket) -> Option<CapacityError> {
        let place = self.queue.iter().position(|waiter| waiter.ticket == ticket)?;
        self.fits_behind(place, &self.queue[place].budget).err()
    }

    /// Whether `budget` fits once the first `ahead` of the queue have what they wait for.
    fn fits_behind(&self, ahead: usize, budget: &ResourceBudget) -> Result<(), CapacityError> {
        let mut held = self.usage.total();
        for waiter in self.queue.iter().take(ahead) {
            held += waiter.budget;
        }
        fits(&self.capacity, &held, budget)?;
        // A request for nothing of what the head lacks fits in numbers, and comes after the head all the same.
        match self.queue.front() {
            Some(head) if ahead > 0 => fits(&self.capacity, &self.usage.total(), &head.budget),
            Some(_) | None => Ok(()),
        }
    }

    fn grant_heads(&mut self) -> Vec<Grant<W>> {
        let mut grants = Vec::new();
        while let Some(head) = self.queue.front()
            && fits(&self.capacity, &self.usage.total(), &head.budget).is_ok()
            && let Some(Waiter { budget, waker, .. }) = self.queue.pop_front()
        {
            self.usage.active.take(budget);
            self.requests.queued += 1;
            grants.push(Grant { budget, waker });
        }
        grants
    }
}

#[cfg(test)]
#[path = "book_tests.rs"]
mod tests;
