//! What a soak has found, for people while it runs and for programs after it.
//!
//! The file is written after every cycle, whole or not at all, so that a run of hours that is killed leaves what it knew.

use std::{collections::BTreeMap, path::Path};

use fs_err as fs;
use serde::Serialize;

use super::{
    census::{FIGURES, Figure, Owner, Sample},
    setting::Setting,
    tally::{Failure, Tally},
    trend::{self, Trend, Verdict},
};
use crate::table::{self, Row};

/// Generation of the report. Parts are only ever added to one.
const FORMAT: u32 = 1;
/// Samples that are written: a picture of a run has no more points.
const MAX_SAMPLES: usize = 2000;

/// How a soak has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum End {
    /// It has not.
    Running,
    /// All cycles were made, or the time was over.
    Done,
    /// Somebody asked for it.
    Interrupted,
    /// Too many cycles in a row have failed, or there was no server any more.
    GivenUp,
}

/// A figure over the run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Judged {
    pub(super) name: &'static str,
    #[serde(flatten)]
    pub(super) trend: Trend,
}

/// The report.
#[derive(Debug, Serialize)]
pub(super) struct Report<'a> {
    format: u32,
    pub(super) passed: bool,
    pub(super) ended: End,
    #[serde(flatten)]
    setting: &'a Setting,
    seconds: u64,
    cycles: u64,
    servers_killed: u64,
    failed: u64,
    operations: Vec<Row>,
    figures: Vec<Judged>,
    failures: Vec<Failure>,
    left_behind: Option<String>,
    skipped: &'a [String],
    samples: Vec<&'a Sample>,
}

/// What a report is made of.
#[derive(Debug)]
pub(super) struct Findings {
    pub(super) setting: Setting,
    pub(super) cycles: u64,
    pub(super) servers_killed: u64,
    pub(super) samples: Vec<Sample>,
    pub(super) skipped: Vec<String>,
    pub(super) left_behind: Option<String>,
    pub(super) end: End,
}

impl Findings {
    /// Nothing yet.
    pub(super) fn of(setting: Setting) -> Self {
        let (samples, skipped) = (Vec::new(), Vec::new());
        Self { setting, cycles: 0, servers_killed: 0, samples, skipped, left_behind: None, end: End::Running }
    }

    /// Keeps what a host lacks, once.
    pub(super) fn skip(&mut self, why: Vec<String>) {
        let new: Vec<String> = why.into_iter().filter(|why| !self.skipped.contains(why)).collect();
        self.skipped.extend(new);
    }

    /// The report so far.
    pub(super) fn report(&self, tally: &Tally) -> Report<'_> {
        let (figures, failed) = (judged(&self.samples), tally.failed());
        let grown = figures.iter().any(|figure| matches!(figure.trend.verdict, Verdict::Higher | Verdict::Rising));
        let every = self.samples.len().div_ceil(MAX_SAMPLES).max(1);
        Report {
            format: FORMAT,
            passed: failed == 0 && !grown && self.left_behind.is_none() && self.end != End::GivenUp && self.cycles > 0,
            ended: self.end,
            setting: &self.setting,
            seconds: tally.elapsed().as_secs(),
            cycles: self.cycles,
            servers_killed: self.servers_killed,
            failed,
            operations: tally.rows(),
            figures,
            failures: tally.failures(),
            left_behind: self.left_behind.clone(),
            skipped: &self.skipped,
            samples: self.samples.iter().step_by(every).collect(),
        }
    }
}

/// Every figure over the run: those of the server over the life of the last one, since each begins anew.
fn judged(samples: &[Sample]) -> Vec<Judged> {
    let last = samples.last().map_or(0, |sample| sample.server);
    let judge = |figure: &Figure| {
        let of_its_owner = samples.iter().filter(|sample| figure.owner == Owner::Host || sample.server == last);
        let values = of_its_owner.filter_map(|sample| Some((at(sample.cycle), *sample.values.get(figure.name)?)));
        let trend = trend::judge(&values.collect::<Vec<_>>(), figure.tolerance)?;
        Some(Judged { name: figure.name, trend })
    };
    FIGURES.iter().filter_map(judge).collect()
}

#[expect(clippy::cast_precision_loss, reason = "nobody makes 2^52 cycles")]
fn at(cycle: u64) -> f64 {
    cycle as f64
}

impl Report<'_> {
    /// Writes it whole or not at all.
    pub(super) fn write(&self, path: &Path) -> anyhow::Result<()> {
        let temporary = path.with_extension(format!("tmp{}", std::process::id()));
        fs::write(&temporary, serde_json::to_vec_pretty(self)?)?;
        fs::rename(&temporary, path)?;
        Ok(())
    }

    /// What has grown, in words.
    pub(super) fn grown(&self) -> Vec<String> {
        let grown = self.figures.iter().filter(|figure| matches!(figure.trend.verdict, Verdict::Higher | Verdict::Rising));
        let words = |Judged { name, trend }: &Judged| {
            let Trend { start, end, rise, allowed, .. } = trend;
            format!(
                "{name}: {start:.1} at the start, {end:.1} at the end, a line that rises by {rise:.1}; allowed are {allowed:.1}"
            )
        };
        grown.map(words).collect()
    }

    /// Two tables, for people and for documents.
    pub(super) fn markdown(&self) -> String {
        let Setting { firkin, acceleration, cpu, cpus, kernel, lanes } = self.setting;
        let Self { cycles, seconds, servers_killed, failed, .. } = self;
        let mut text = format!(
            "firkin {firkin}, {acceleration}, {cpus} x {cpu}, Linux {kernel}: {cycles} cycles of {lanes} at once in {seconds} s, \
             {servers_killed} servers killed, {failed} failures\n\n| | start | end | highest | line rises by | allowed | |\n|---|---|---|---|---|---|---|\n"
        );
        for Judged { name, trend } in &self.figures {
            let Trend { start, end, max, rise, allowed, verdict, samples: _ } = trend;
            let verdict = match verdict {
                Verdict::Steady => "",
                Verdict::Higher | Verdict::Rising => "GROWN",
                Verdict::TooFew => "too few samples",
            };
            text += &format!("| {name} | {start:.1} | {end:.1} | {max:.1} | {rise:.1} | {allowed:.1} | {verdict} |\n");
        }
        text + "\n" + &table::markdown(&self.operations)
    }
}

/// One line on how it goes.
pub(super) fn progress(findings: &Findings, tally: &Tally) -> String {
    let values = findings.samples.last().map(|sample| &sample.values);
    let value = |name: &str| values.and_then(|values: &BTreeMap<_, _>| values.get(name)).copied().unwrap_or(f64::NAN);
    format!(
        "cycle {}, {} s: {} failures; server {:.1} MiB, {} descriptors, {} threads; state {:.0} MiB in {} files",
        findings.cycles,
        tally.elapsed().as_secs(),
        tally.failed(),
        value("server, PSS, MiB"),
        value("server, descriptors"),
        value("server, threads"),
        value("state directory, MiB"),
        value("state directory, files"),
    )
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;
    use serde_json::Value;

    use super::*;
    use crate::household::tests::of_this_process;

    const MEMORY: &str = "server, PSS, MiB";
    const MOUNTS: &str = "host, mounts";

    /// A run of 40 cycles, whose server was killed once; `value` says what a figure is after a cycle.
    fn findings(name: &'static str, value: impl Fn(u64) -> f64) -> Findings {
        let setting = Setting {
            firkin: "0.1.0".into(),
            acceleration: "kvm".into(),
            cpu: "EPYC".into(),
            cpus: 2,
            kernel: "6.12".into(),
            lanes: 2,
        };
        let sample =
            |cycle| Sample { cycle, seconds: cycle, server: u64::from(cycle > 15), values: [(name, value(cycle))].into() };
        Findings { cycles: 40, samples: (1..=40).map(sample).collect(), end: End::Done, ..Findings::of(setting) }
    }

    #[test]
    fn a_figure_that_has_grown_fails_the_run_and_is_named() {
        let tally = Tally::new(of_this_process(Path::new("/nonexistent")).wish());
        let steady = findings(MOUNTS, |_| 7.0);
        assert!(steady.report(&tally).passed);
        let grown = findings(MOUNTS, |cycle| if cycle < 30 { 7.0 } else { 8.0 });
        let report = grown.report(&tally);
        assert!(!report.passed && report.markdown().contains("GROWN"));
        let words = report.grown();
        assert!(words.len() == 1 && words[0].starts_with("host, mounts: 7.0 at the start, 8.0 at the end"), "{words:?}");
    }

    #[test]
    fn memory_is_that_of_the_last_server() {
        let tally = Tally::new(of_this_process(Path::new("/nonexistent")).wish());
        // The first one had little time.
        let new = findings(MEMORY, |cycle| if cycle > 15 { 60.0 } else { 30.0 });
        let report = new.report(&tally);
        assert!(report.passed && report.figures[0].trend.start > 59.0, "{:?}", report.figures);
        let leaks = findings(MEMORY, |cycle| if cycle > 15 { 40.0 + 10.0 * at(cycle - 15) } else { 30.0 });
        assert!(!leaks.report(&tally).passed);
    }

    #[test]
    fn one_failure_or_one_thing_that_is_left_fails_the_run() {
        let tally = Tally::new(of_this_process(Path::new("/nonexistent")).wish());
        let left = Findings { left_behind: Some("a mount".into()), ..findings(MOUNTS, |_| 7.0) };
        assert!(!left.report(&tally).passed);
        for end in [End::Interrupted, End::GivenUp] {
            let ended = Findings { end, ..findings(MOUNTS, |_| 7.0) };
            assert_eq!(ended.report(&tally).passed, end == End::Interrupted);
        }
        tally.fail(3, "pause", &anyhow!("no"));
        assert!(!findings(MOUNTS, |_| 7.0).report(&tally).passed);
    }

    #[test]
    fn the_file_says_it_all() {
        let tally = Tally::new(of_this_process(Path::new("/nonexistent")).wish());
        tally.fail(3, "pause", &anyhow!("no"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("soak.json");
        findings(MOUNTS, |_| 7.0).report(&tally).write(&path).unwrap();
        let told: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!((&told["passed"], &told["ended"], &told["cycles"]), (&false.into(), &"done".into(), &40.into()));
        assert_eq!((&told["failures"][0]["cycle"], &told["failures"][0]["operation"]), (&3.into(), &"pause".into()));
        assert_eq!((&told["figures"][0]["name"], &told["figures"][0]["verdict"]), (&MOUNTS.into(), &"steady".into()));
        assert_eq!((&told["samples"][39]["values"][MOUNTS], &told["acceleration"]), (&7.0.into(), &"kvm".into()));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
