//! The numbers of one server's slots, and what every slot needs of that server.
//!
//! A number is leased: the lease is a guard, a slot owns it, and whoever takes a slot's leavings away owns it last. So a number
//! is free again only when nothing of its slot is left, however the slot ends. The number of a machine that outlives its server
//! is in use without a lease.

use std::{
    collections::BTreeSet,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
};

use tokio::sync::{Notify, mpsc, oneshot};

use super::{
    claim::{ClaimIndex, SLOTS_PER_CLAIM, Uids},
    namespace::SocketOpener,
    nft::PreparedBatch,
    rules::SlotPolicy,
};

/// The remains of a slot, for the reaper.
#[derive(Debug)]
pub(super) enum Remains {
    /// A way out to delete.
    WayOut(Arc<IndexLease>),
    /// Answer when everything before this is done.
    Barrier(oneshot::Sender<()>),
}

/// The part of a server's network that its slots share.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) claim: ClaimIndex,
    pub(super) uids: Uids,
    pub(super) netns: Arc<OwnedFd>,
    pub(super) opener: SocketOpener,
    pub(super) policy: SlotPolicy,
    /// What they are in the namespace of a new slot.
    pub(super) slot_rules: PreparedBatch,
    /// Unbounded because a drop cannot wait; there is at most one entry for each slot number.
    pub(super) remains: mpsc::UnboundedSender<Remains>,
    /// There may be a number for the refiller.
    pub(super) changed: Notify,
    /// Slots that may exist at a time.
    pub(super) limit: u16,
    pub(super) numbers: Mutex<Numbers>,
}

/// Numbers in use.
#[derive(Debug)]
pub(super) struct Numbers {
    used: BTreeSet<u16>,
    /// Those of them whose slot is gone and waits for the reaper.
    leaving: usize,
    next: u16,
}

impl Numbers {
    /// At the start only those of an earlier server's machines are.
    pub(super) fn of_survivors(used: BTreeSet<u16>) -> Self {
        Self { used, leaving: 0, next: 0 }
    }
}

impl Host {
    pub(super) fn uid(&self, number: u16) -> u32 {
        self.uids.uid(self.claim, number)
    }

    /// Whether a slot, ready or in use, has this number, or a machine that was released or not yet adopted.
    pub(super) fn is_used(&self, number: u16) -> bool {
        self.numbers().used.contains(&number)
    }

    fn numbers(&self) -> MutexGuard<'_, Numbers> {
        // Nothing panics while holding it, and the data is valid between any two statements.
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the refiller: there may be a number for it.
    pub(super) fn notify(&self) {
        self.changed.notify_one();
    }

    /// The next free number, in turn, so that one is used again as late as possible.
    pub(super) fn lease(self: &Arc<Self>) -> Option<IndexLease> {
        let mut numbers = self.numbers();
        if numbers.used.len() - numbers.leaving >= usize::from(self.limit) {
            return None;
        }
        let next = numbers.next;
        let index = (next..SLOTS_PER_CLAIM).chain(0..next).find(|index| !numbers.used.contains(index))?;
        numbers.used.insert(index);
        numbers.next = (index + 1) % SLOTS_PER_CLAIM;
        Some(IndexLease { host: Arc::clone(self), index, state: AtomicU8::new(HELD) })
    }

    /// A lease of the number of an earlier server's machine, which keeps it until the lease is [held](IndexLease::hold).
    pub(super) fn lease_of_survivor(self: &Arc<Self>, index: u16) -> IndexLease {
        IndexLease { host: Arc::clone(self), index, state: AtomicU8::new(KEPT) }
    }

    /// Frees the number of an earlier server's machine that is no more.
    pub(super) fn forget_survivor(&self, number: u16) {
        self.numbers().used.remove(&number);
        self.notify();
    }
}

const HELD: u8 = 0;
const LEAVING: u8 = 1;
const KEPT: u8 = 2;

/// A slot number in use. Dropping it frees the number.
#[derive(Debug)]
pub(super) struct IndexLease {
    host: Arc<Host>,
    index: u16,
    state: AtomicU8,
}

impl IndexLease {
    pub(super) fn host(&self) -> &Host {
        &self.host
    }

    pub(super) fn index(&self) -> u16 {
        self.index
    }

    pub(super) fn uid(&self) -> u32 {
        self.host.uid(self.index)
    }

    pub(super) fn interface(&self) -> String {
        self.host.claim.interface(self.index)
    }

    /// The slot is gone: its number no longer counts, though it is not yet free.
    pub(super) fn leave(&self) {
        let mut numbers = self.host.numbers();
        if self.state.swap(LEAVING, Ordering::Relaxed) == HELD {
            numbers.leaving += 1;
        }
        drop(numbers);
        self.host.notify();
    }

    /// The number is free after this lease, which it was [not to be](Host::lease_of_survivor).
    pub(super) fn hold(&self) {
        self.state.store(HELD, Ordering::Relaxed);
    }

    /// The number stays in use after this lease: its machine lives on without us.
    pub(super) fn keep(&self) {
        self.state.store(KEPT, Ordering::Relaxed);
    }
}

impl Drop for IndexLease {
    fn drop(&mut self) {
        let mut numbers = self.host.numbers();
        match self.state.load(Ordering::Relaxed) {
            KEPT => return,
            LEAVING => numbers.leaving -= 1,
            _ => {}
        }
        let was_used = numbers.used.remove(&self.index);
        assert!(was_used, "slot number {} was freed twice", self.index);
        drop(numbers);
        self.host.notify();
    }
}
