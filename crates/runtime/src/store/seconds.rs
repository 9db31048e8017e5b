//! How long the catalogue takes, and how often it is not there: by what an operation was for, and what came of it.

use std::time::Duration;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, histogram::Histogram},
};

use super::{StoreError, database::Mode};

/// Upper bounds in seconds: from a read of SQLite to the longest that is waited for PostgreSQL.
const BUCKETS: [f64; 12] = [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OperationLabel {
    catalog: &'static str,
    operation: &'static str,
    outcome: &'static str,
}

/// The histogram. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct CatalogSeconds(Family<OperationLabel, Histogram, fn() -> Histogram>);

impl CatalogSeconds {
    /// Series of the catalogue that there is are there from the start.
    pub(crate) fn of(catalog: &'static str) -> Self {
        let seconds = Self(Family::new_with_constructor(|| Histogram::new(BUCKETS)));
        for operation in [Mode::Read, Mode::Write, Mode::Unsynced].map(word) {
            for outcome in ["done", "refused", "away"] {
                drop(seconds.0.get_or_create(&OperationLabel { catalog, operation, outcome }));
            }
        }
        seconds
    }

    pub(crate) fn observe<T>(&self, catalog: &'static str, mode: Mode, took: Duration, done: &Result<T, StoreError>) {
        let outcome = match done {
            Ok(_) => "done",
            Err(StoreError::Away { .. } | StoreError::Unknown { .. } | StoreError::Closed) => "away",
            Err(_) => "refused",
        };
        let label = OperationLabel { catalog, operation: word(mode), outcome };
        self.0.get_or_create(&label).observe(took.as_secs_f64());
    }

    /// What metrics show.
    pub(crate) fn family(self) -> Family<OperationLabel, Histogram, fn() -> Histogram> {
        self.0
    }
}

fn word(mode: Mode) -> &'static str {
    match mode {
        Mode::Read => "read",
        Mode::Write => "write",
        Mode::Unsynced => "write_unsynced",
    }
}
