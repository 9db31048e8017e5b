//! What is owed to a store off the host: how many artifacts and bytes, how long copies take, what fails, and when the last one came about.
//! Only a server that copies has these series.

use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};
use tokio::sync::{Notify, watch};

use super::{standing::number, timing::BUCKETS};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

/// What is owed now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CopiesState {
    /// Artifacts that are durable here and not there.
    pub owed: usize,
    /// Bytes of their files, holes included, those that are there already as well.
    pub owed_bytes: u64,
    /// When the catalogue was last found to be there as it is here.
    pub catalogue: Option<Timestamp>,
    /// Why the last attempt came to nothing, as metrics have it; absent when it did not.
    pub failing: Option<&'static str>,
    /// Changes up to this one are all there.
    settled: u64,
}

/// What is known of copies by whoever is not at them.
#[derive(Debug)]
pub(crate) struct Copying {
    state: watch::Sender<CopiesState>,
    changes: AtomicU64,
    wanted: Notify,
    owed: Gauge,
    owed_bytes: Gauge,
    last: Gauge,
    catalogue: Gauge,
    seconds: Histogram,
    bytes: Counter,
    failures: Family<KindLabel, Counter>,
}

impl Default for Copying {
    fn default() -> Self {
        let failures = Family::default();
        for kind in KINDS {
            // One that appears with its first failure would hide that from rates.
            drop(failures.get_or_create(&KindLabel { kind }));
        }
        Self {
            state: watch::Sender::default(),
            changes: AtomicU64::default(),
            wanted: Notify::default(),
            owed: Gauge::default(),
            owed_bytes: Gauge::default(),
            last: Gauge::default(),
            catalogue: Gauge::default(),
            seconds: Histogram::new(BUCKETS),
            bytes: Counter::default(),
            failures,
        }
    }
}

/// Why copies fail.
const KINDS: [&str; 8] = ["away", "refused", "full", "absent", "damaged", "file", "foreign", "store"];

impl Copying {
    /// Something became durable, or went.
    pub(crate) fn changed(&self) {
        self.changes.fetch_add(1, Ordering::Relaxed);
        self.wanted.notify_one();
    }

    /// Ends once something has changed since the last time.
    pub(crate) async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// The number of the last change.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    pub(crate) fn state(&self) -> watch::Receiver<CopiesState> {
        self.state.subscribe()
    }

    /// Waits until all that is durable now is there.
    pub(crate) async fn settle(&self) {
        self.changed();
        let wanted = self.changes();
        // The sender is here, so it is not closed.
        drop(self.state.subscribe().wait_for(|state| state.settled >= wanted).await);
    }

    /// So much is owed.
    pub(crate) fn owe(&self, owed: usize, bytes: u64) {
        self.owed.set(number(owed));
        self.owed_bytes.set(number(bytes));
        self.state.send_modify(|state| (state.owed, state.owed_bytes) = (owed, bytes));
    }

    /// An artifact was copied, of so many packed bytes.
    pub(crate) fn copied(&self, seconds: f64, stored: u64) {
        self.seconds.observe(seconds);
        self.bytes.inc_by(stored);
        self.last.set(Timestamp::now().as_second());
    }

    /// The catalogue is there as it is here.
    pub(crate) fn backed_up(&self) {
        let now = Timestamp::now();
        self.catalogue.set(now.as_second());
        self.state.send_modify(|state| state.catalogue = Some(now));
    }

    pub(crate) fn failed(&self, kind: &'static str) {
        self.failures.get_or_create(&KindLabel { kind }).inc();
        self.state.send_modify(|state| state.failing = Some(kind));
    }

    /// All that had changed up to `changes` is there.
    pub(crate) fn settled(&self, changes: u64) {
        self.state.send_modify(|state| (state.settled, state.failing) = (changes, None));
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("copies_owed", "Artifacts that are durable here and not yet off the host", self.owed.clone());
        let help = "Bytes of their files, holes and what is there already included";
        registry.register("copies_owed_bytes", help, self.owed_bytes.clone());
        let help = "How long it took to copy an artifact with all that was not there";
        registry.register_with_unit("copies", help, Unit::Seconds, self.seconds.clone());
        registry.register("copies_stored_bytes", "Packed bytes that were sent", self.bytes.clone());
        registry.register("copies_failures", "Attempts that came to nothing, by why", self.failures.clone());
        let help = "When an artifact was last copied, in Unix time; 0 before the first";
        registry.register_with_unit("copies_last_success", help, Unit::Seconds, self.last.clone());
        let help = "When the catalogue was last seen to be off the host as it is here, in Unix time; 0 before the first";
        registry.register_with_unit("copies_catalogue", help, Unit::Seconds, self.catalogue.clone());
    }
}
