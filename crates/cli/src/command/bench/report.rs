//! The report of a run: where, with what, how often, and the percentiles that so many samples allow.

use serde::{Deserialize, Serialize};

use super::{Dead, Plan, host};
use crate::{args::bench::DeadFiles, output::Table};

/// Samples that a 95th percentile needs: below, it is one or two unlucky samples.
const P95_NEEDS: usize = 100;

/// Samples that a 99th percentile needs.
const P99_NEEDS: usize = 500;

/// The row of creates while the server does nothing else.
pub(super) const IDLE: &str = "create, idle, ms";

/// The row of creates while it removes artifacts.
pub(super) const REMOVING: &str = "create while artifacts are removed, ms";

/// Measurements so far, in the order in which they began.
pub(super) type Figures = Vec<(String, Series)>;

/// Samples of one kind.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Series {
    pub(super) values: Vec<f64>,
    /// Attempts that gave no value.
    pub(super) failed: u32,
}

/// A whole run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Report {
    /// Version and commit of this program.
    pub(super) firkin: String,
    /// How guest instructions were executed.
    pub(super) acceleration: String,
    /// The server that was measured.
    pub(super) server: String,
    /// The machine that measured.
    pub(super) host: host::Hardware,
    /// The template of the sandboxes.
    pub(super) template: String,
    /// Sandboxes created at once in a burst.
    pub(super) burst: u32,
    /// The figures.
    pub(super) rows: Vec<Row>,
    /// What [`REMOVING`] is to [`IDLE`], where that was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) removal: Option<Removal>,
}

/// How much longer creates take while artifacts are removed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Removal {
    /// What was removed in each round.
    #[serde(flatten)]
    pub(super) dead: Dead,
    /// Of the medians; 1 is as long as idle.
    pub(super) p50_ratio: Option<f64>,
    /// Of the 99th percentiles. Absent where there are too few samples.
    pub(super) p99_ratio: Option<f64>,
}

/// One kind of figure. Its name ends with the unit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) samples: usize,
    pub(super) failed: u32,
    pub(super) min: f64,
    pub(super) p50: f64,
    /// Absent where there are too few samples.
    pub(super) p95: Option<f64>,
    /// Absent where there are too few samples.
    pub(super) p99: Option<f64>,
    pub(super) max: f64,
}

impl Report {
    pub(super) fn new(acceleration: &str, server: &str, plan: &Plan, figures: &Figures) -> Self {
        let rows: Vec<Row> = figures.iter().filter_map(|(name, series)| Row::new(name, series)).collect();
        Self {
            removal: plan.dead.map(|dead| Removal::of(dead, &rows)),
            firkin: concat!(env!("CARGO_PKG_VERSION"), " ", env!("FIRKIN_COMMIT")).to_owned(),
            acceleration: acceleration.to_owned(),
            server: server.to_owned(),
            host: host::hardware(),
            template: plan.template.clone(),
            burst: plan.burst,
            rows,
        }
    }

    /// For people; the last rows say where it was measured.
    pub(super) fn table(&self) -> Table {
        let mut table = Table::new(&["figure", ">samples", ">failed", ">min", ">p50", ">p95", ">p99", ">max"]);
        for row in &self.rows {
            let known = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), short);
            table.row([
                row.name.clone(),
                row.samples.to_string(),
                row.failed.to_string(),
                short(row.min),
                short(row.p50),
                known(row.p95),
                known(row.p99),
                short(row.max),
            ]);
        }
        let host::Hardware { cpu, cpus, memory_mib, kernel } = &self.host;
        let facts = [
            format!("firkin {}, acceleration {}, template {}", self.firkin, self.acceleration, self.template),
            format!("{cpus} x {cpu}, {memory_mib} MiB, Linux {kernel}"),
        ];
        for fact in self.removal.iter().map(Removal::fact).chain(facts) {
            table.row(std::iter::once(fact).chain(std::iter::repeat_n(String::new(), 7)));
        }
        table
    }
}

impl Removal {
    fn of(dead: Dead, rows: &[Row]) -> Self {
        let row = |name: &str| rows.iter().find(|row| row.name == name);
        let ratio = |figure: fn(&Row) -> Option<f64>| {
            let idle = row(IDLE).and_then(figure).filter(|idle| *idle > 0.0)?;
            Some(row(REMOVING).and_then(figure)? / idle)
        };
        Self { dead, p50_ratio: ratio(|row| Some(row.p50)), p99_ratio: ratio(|row| row.p99) }
    }

    /// For people.
    fn fact(&self) -> String {
        let known = |ratio: Option<f64>| ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
        let Dead { artifacts, mib, files } = self.dead;
        let kind = match files {
            DeadFiles::Sparse => "sparse",
            DeadFiles::Allocated => "allocated",
            DeadFiles::Written => "written",
        };
        let (p50, p99) = (known(self.p50_ratio), known(self.p99_ratio));
        format!("while {artifacts} {kind} artifacts of {mib} MiB are removed, of idle: p50 x {p50}, p99 x {p99}")
    }
}

impl Row {
    /// `None` where nothing was measured at all.
    pub(super) fn new(name: &str, series: &Series) -> Option<Self> {
        let mut sorted = series.values.clone();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let from = |needed: usize, percent| (sorted.len() >= needed).then(|| percentile(&sorted, percent));
        Some(Self {
            name: name.to_owned(),
            samples: sorted.len(),
            failed: series.failed,
            min,
            p50: percentile(&sorted, 50),
            p95: from(P95_NEEDS, 95),
            p99: from(P99_NEEDS, 99),
            max,
        })
    }
}

/// The smallest sample that `percent` of them do not exceed. `sorted` is not empty.
fn percentile(sorted: &[f64], percent: usize) -> f64 {
    sorted[(sorted.len() * percent).div_ceil(100).saturating_sub(1)]
}

/// Three digits are as many as such figures have.
pub(super) fn short(value: f64) -> String {
    if value.abs() >= 100.0 { format!("{value:.0}") } else { format!("{value:.1}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(count: u32) -> Row {
        let values = (1..=count).rev().map(f64::from).collect();
        Row::new("create, ms", &Series { values, failed: 2 }).unwrap()
    }

    #[test]
    fn percentiles_need_samples() {
        let few = row(99);
        assert_eq!((few.samples, few.failed, few.min, few.p50, few.p95, few.max), (99, 2, 1.0, 50.0, None, 99.0));
        assert_eq!((row(100).p50, row(100).p95, row(100).p99), (50.0, Some(95.0), None));
        assert_eq!((row(500).p95, row(500).p99), (Some(475.0), Some(495.0)));
        assert_eq!(row(1).p50, 1.0);
        assert_eq!(Row::new("nothing", &Series::default()), None);
    }

    #[test]
    fn removal_is_told_as_a_part_of_idle() {
        let dead = Some(Dead { artifacts: 200, mib: 1024, files: DeadFiles::Allocated });
        let plan = Plan { template: "base".to_owned(), samples: 500, burst: 1, clones: 1, dead };
        let series = |count: usize, value| Series { values: vec![value; count], failed: 0 };
        let report = |count| {
            let figures = vec![(IDLE.to_owned(), series(count, 40.0)), (REMOVING.to_owned(), series(count, 44.0))];
            Report::new("kvm", "http://x", &plan, &figures)
        };
        let fact = "while 200 allocated artifacts of 1024 MiB are removed, of idle: p50 x 1.10, p99 x";
        assert!(report(500).table().render().contains(&format!("{fact} 1.10")));
        assert!(report(499).table().render().contains(&format!("{fact} -")));
        let json = serde_json::to_value(report(500)).unwrap();
        assert_eq!(
            json["removal"],
            serde_json::json!({
                "artifacts": 200, "mib": 1024, "files": "allocated", "p50_ratio": 1.1, "p99_ratio": 1.1,
            })
        );
    }

    #[test]
    fn a_report_survives_its_file() {
        let plan = Plan { template: "base".to_owned(), samples: 1, burst: 1, clones: 1, dead: None };
        let figures = vec![("create, ms".to_owned(), Series { values: vec![1.5], failed: 0 })];
        let report = Report::new("kvm", "http://x", &plan, &figures);
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
        assert!(report.table().render().contains("create, ms"));
    }
}
