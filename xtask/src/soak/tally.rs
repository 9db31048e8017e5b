//! What was done, how long each took, and what failed in which cycle.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use serde::Serialize;

use crate::{household::Wish, run::say, table::Row};

/// Of one operation: a day of one each second. Later ones are counted and not kept.
const MAX_SAMPLES: usize = 86_400;
/// Failures that are told in full. More of them tell nothing new.
const MAX_FAILURES: usize = 200;

/// Something that went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Failure {
    /// In which cycle.
    pub(super) cycle: u64,
    /// How long after the start.
    pub(super) seconds: u64,
    /// What was tried.
    pub(super) operation: String,
    /// What was said.
    pub(super) error: String,
}

/// A walk has ended before its end; why is told already, or it was asked to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ended;

/// The account of a run.
#[derive(Debug)]
pub(super) struct Tally {
    started: Instant,
    wish: Wish,
    account: Mutex<Account>,
}

#[derive(Debug, Default)]
struct Account {
    operations: BTreeMap<String, Operation>,
    failures: Vec<Failure>,
    failed: u64,
}

#[derive(Debug, Default)]
struct Operation {
    milliseconds: Vec<f64>,
    failed: u32,
}

impl Tally {
    pub(super) fn new(wish: Wish) -> Self {
        Self { started: Instant::now(), wish, account: Mutex::default() }
    }

    fn account(&self) -> MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something, unless the run was asked to end, and keeps how long it took or why it failed.
    pub(super) fn step<T>(&self, cycle: u64, name: &str, body: impl FnOnce() -> anyhow::Result<T>) -> Result<T, Ended> {
        if self.wish.is_there() {
            return Err(Ended);
        }
        let started = Instant::now();
        match body() {
            Ok(value) => {
                let mut account = self.account();
                let samples = &mut account.operations.entry(name.to_owned()).or_default().milliseconds;
                if samples.len() < MAX_SAMPLES {
                    samples.push(started.elapsed().as_secs_f64() * 1000.0);
                }
                Ok(value)
            }
            Err(error) => {
                self.fail(cycle, name, &error);
                Err(Ended)
            }
        }
    }

    /// Keeps and tells a failure.
    pub(super) fn fail(&self, cycle: u64, operation: &str, error: &anyhow::Error) {
        let failure = Failure {
            cycle,
            seconds: self.started.elapsed().as_secs(),
            operation: operation.to_owned(),
            error: format!("{error:#}"),
        };
        say(&format!("FAILED in cycle {cycle}, after {} s: {operation}: {}", failure.seconds, failure.error));
        let mut account = self.account();
        account.failed += 1;
        account.operations.entry(operation.to_owned()).or_default().failed += 1;
        if account.failures.len() < MAX_FAILURES {
            account.failures.push(failure);
        }
    }

    /// How many things failed.
    pub(super) fn failed(&self) -> u64 {
        self.account().failed
    }

    pub(super) fn failures(&self) -> Vec<Failure> {
        self.account().failures.clone()
    }

    /// Milliseconds of each operation.
    pub(super) fn rows(&self) -> Vec<Row> {
        self.account()
            .operations
            .iter()
            .map(|(name, done)| Row::of(&format!("{name}, ms"), &done.milliseconds, done.failed))
            .collect()
    }

    pub(super) fn elapsed(&self) -> std::time::Duration {
        self.started.elapsed()
    }

    /// Whether the run was asked to end.
    pub(super) fn is_to_end(&self) -> bool {
        self.wish.is_there()
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;
    use crate::household::tests::of_this_process;

    /// The account of a run with a directory of its own.
    fn tally() -> (tempfile::TempDir, Tally) {
        let dir = tempfile::tempdir().unwrap();
        let wish = of_this_process(dir.path()).wish();
        (dir, Tally::new(wish))
    }

    #[test]
    fn what_fails_is_kept_with_its_cycle_and_ends_the_walk() {
        let (_dir, tally) = tally();
        assert_eq!(tally.step(1, "create", || Ok(5)), Ok(5));
        let failed = tally.step(2, "create", || Err::<(), _>(anyhow!("no memory").context("cannot create")));
        assert_eq!(failed, Err(Ended));
        let row = &tally.rows()[0];
        assert_eq!((row.name.as_str(), row.samples, row.failed, tally.failed()), ("create, ms", 1, 1, 1));
        let failures = tally.failures();
        let [Failure { cycle: 2, operation, error, .. }] = failures.as_slice() else { panic!("{failures:?}") };
        assert_eq!((operation.as_str(), error.as_str()), ("create", "cannot create: no memory"));
    }

    #[test]
    fn many_failures_are_counted_and_some_are_told() {
        let (_dir, tally) = tally();
        for cycle in 0..300 {
            tally.fail(cycle, "x", &anyhow!("y"));
        }
        assert_eq!((tally.failed(), tally.failures().len()), (300, MAX_FAILURES));
    }

    #[test]
    fn who_was_asked_to_end_begins_nothing_and_has_not_failed() {
        let (dir, tally) = tally();
        of_this_process(dir.path()).wish().make().unwrap();
        assert_eq!(tally.step(1, "create", || -> anyhow::Result<()> { unreachable!() }), Err(Ended));
        assert_eq!((tally.failed(), tally.rows().len()), (0, 0));
    }
}
