//! The report of a run: where, with what, how often, and the percentiles that so many samples allow.

use serde::{Deserialize, Serialize};

use super::{Plan, host};
use crate::output::Table;

/// Samples that a 95th percentile needs: below, it is one or two unlucky samples.
const P95_NEEDS: usize = 100;

/// Samples that a 99th percentile needs.
const P99_NEEDS: usize = 500;

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
        Self {
            firkin: concat!(env!("CARGO_PKG_VERSION"), " ", env!("FIRKIN_COMMIT")).to_owned(),
            acceleration: acceleration.to_owned(),
            server: server.to_owned(),
            host: host::hardware(),
            template: plan.template.clone(),
            burst: plan.burst,
            rows: figures.iter().filter_map(|(name, series)| Row::new(name, series)).collect(),
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
        for fact in facts {
            table.row(std::iter::once(fact).chain(std::iter::repeat_n(String::new(), 7)));
        }
        table
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
    fn a_report_survives_its_file() {
        let plan = Plan { template: "base".to_owned(), samples: 1, burst: 1, clones: 1 };
        let figures = vec![("create, ms".to_owned(), Series { values: vec![1.5], failed: 0 })];
        let report = Report::new("kvm", "http://x", &plan, &figures);
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
        assert!(report.table().render().contains("create, ms"));
    }
}
