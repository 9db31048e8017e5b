//! What became of each test, read from the lines that the plugin `outcomes` writes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::Path,
};

use fs_err as fs;

use super::reasons::{self, Reason};

/// Results of all parts of a run.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Tests that passed.
    pub(super) passed: u64,
    /// How many of them only when they were run again.
    again: usize,
    /// Test and the suite's own words.
    skipped: Vec<(String, String)>,
    /// Test and what went wrong.
    failed: Vec<(String, String)>,
}

impl Tally {
    /// Reads the plugin's file. One that is not there holds no results.
    pub(super) fn read(path: &Path) -> anyhow::Result<Self> {
        if !path.exists() {
            return Ok(Self::default());
        }
        Ok(Self::parse(&fs::read_to_string(path)?))
    }

    fn parse(text: &str) -> Self {
        // A test may be told of twice, when its own part and its end both went wrong.
        let mut tests: BTreeMap<&str, (&str, &str)> = BTreeMap::new();
        let mut again: BTreeSet<&str> = BTreeSet::new();
        for line in text.lines() {
            let mut fields = line.splitn(3, '\t');
            let (Some(outcome), Some(test)) = (fields.next(), fields.next()) else { continue };
            if outcome == "rerun" {
                again.insert(test);
                continue;
            }
            let known = tests.entry(test).or_insert((outcome, fields.next().unwrap_or_default()));
            if outcome == "failed" && known.0 != "failed" {
                *known = (outcome, line.rsplit('\t').next().unwrap_or_default());
            }
        }
        let mut tally = Self::default();
        for (test, (outcome, why)) in tests {
            let entry = (test.to_owned(), why.to_owned());
            match outcome {
                "passed" => {
                    tally.passed += 1;
                    tally.again += usize::from(again.contains(test));
                }
                "skipped" => tally.skipped.push(entry),
                _ => tally.failed.push(entry),
            }
        }
        tally
    }

    /// Tests that were skipped or that failed for a known reason.
    pub(super) fn excused(&self) -> u64 {
        let known = self.failed.iter().filter(|(test, why)| reasons::of(test, why).is_some()).count();
        (known + self.skipped.len()) as u64
    }

    /// Tests that failed for no known reason.
    pub(super) fn unexplained(&self) -> usize {
        self.failed.iter().filter(|(test, why)| reasons::of(test, why).is_none()).count()
    }

    /// The results as a line of the table of several SDKs.
    pub(super) fn row(&self, sdk: &str, tests: &str) -> String {
        let mut by_reason: BTreeMap<Option<Reason>, usize> = BTreeMap::new();
        for (test, why) in &self.failed {
            *by_reason.entry(reasons::of(test, why)).or_default() += 1;
        }
        let named = |(reason, count): (&Option<Reason>, &usize)| {
            format!("{count} {}", reason.map_or("for no known reason", Reason::words))
        };
        let failed: Vec<_> = by_reason.iter().map(named).collect();
        let failed = if failed.is_empty() { "0".to_owned() } else { failed.join("; ") };
        format!("| {sdk} | {tests} | {} | {} | {failed} | {} |", self.passed, self.again, self.skipped.len())
    }

    /// The results as a person reads them: counts by reason, then each test that did not pass.
    pub(super) fn table(&self) -> String {
        let mut by_reason: BTreeMap<Option<Reason>, Vec<&(String, String)>> = BTreeMap::new();
        for entry in &self.failed {
            by_reason.entry(reasons::of(&entry.0, &entry.1)).or_default().push(entry);
        }
        let words = |reason: &Option<Reason>| reason.map_or("for no known reason", Reason::words);
        let mut text = format!(
            "\npassed {:>5}  of them {} when run again\nskipped{:>5}  by the suite itself\n",
            self.passed,
            self.again,
            self.skipped.len()
        );
        for (reason, tests) in &by_reason {
            text.push_str(&format!("failed {:>5}  {}\n", tests.len(), words(reason)));
        }
        for (test, why) in &self.skipped {
            text.push_str(&format!("\nskipped {test}: {why}"));
        }
        for (reason, tests) in &by_reason {
            for (test, why) in tests {
                let written = write!(text, "\nfailed  {test}\n        {}: {why}", words(reason));
                written.expect("writing to a string does not fail");
            }
        }
        text
    }
}

/// The rows of several SDKs as a table in Markdown, for the document that keeps them.
pub(super) fn matrix(rows: &[String]) -> String {
    format!("\n| SDK | tests | passed | of them run again | failed | skipped |\n|---|---|---|---|---|---|\n{}\n", rows.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_test_counts_once_and_a_failure_wins() {
        let tally = Tally::parse(
            "passed\ta::x\t\nskipped\ta::y\tnot here\nfailed\ttests/sync/sandbox_sync/test_network.py::z\tno name\n\
             passed\ta::w\t\nfailed\ta::w\tteardown broke\nnonsense\nrerun\ta::v\ttoo slow\npassed\ta::v\t\n",
        );
        assert_eq!((tally.passed, tally.again, tally.excused(), tally.unexplained()), (2, 1, 2, 1));
        let table = tally.table();
        assert!(table.contains("a::w\n        for no known reason: teardown broke"), "{table}");
        assert!(table.contains("skipped a::y: not here") && table.contains("needs the internet"), "{table}");
    }
}
