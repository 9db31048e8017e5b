//! Figures as rows of a table, for people and for reports.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// A p95 is one from so many samples on, a p99 from five times as many.
const P95_SAMPLES: usize = 100;
const P99_SAMPLES: usize = 500;

/// One figure with what was measured of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) samples: u32,
    pub(crate) failed: u32,
    pub(crate) min: f64,
    pub(crate) p50: f64,
    pub(crate) p95: Option<f64>,
    pub(crate) p99: Option<f64>,
    pub(crate) max: f64,
}

impl Row {
    /// Of these samples, in any order.
    pub(crate) fn of(name: &str, samples: &[f64], failed: u32) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |percent: usize| sorted.get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1))).copied();
        Self {
            name: name.to_owned(),
            samples: u32::try_from(sorted.len()).unwrap_or(u32::MAX),
            failed,
            min: at(0).unwrap_or(0.0),
            p50: at(50).unwrap_or(0.0),
            p95: at(95).filter(|_| sorted.len() >= P95_SAMPLES),
            p99: at(99).filter(|_| sorted.len() >= P99_SAMPLES),
            max: at(100).unwrap_or(0.0),
        }
    }
}

/// The rows as Markdown.
pub(crate) fn markdown(rows: &[Row]) -> String {
    let mut text = "| figure | samples | min | p50 | p95 | p99 | max |\n|---|---|---|---|---|---|---|\n".to_owned();
    let rare = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"));
    for Row { name, samples, min, p50, p95, p99, max, failed: _ } in rows {
        writeln!(text, "| {name} | {samples} | {min:.1} | {p50:.1} | {} | {} | {max:.1} |", rare(*p95), rare(*p99))
            .expect("a string takes everything");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rare_cases_are_told_of_many_samples_only() {
        let samples: Vec<f64> = (0..500).rev().map(f64::from).collect();
        let row = Row::of("x", &samples, 2);
        assert_eq!((row.samples, row.failed, row.min, row.p50, row.max), (500, 2, 0.0, 250.0, 499.0));
        assert_eq!((row.p95, row.p99), (Some(475.0), Some(495.0)));
        assert_eq!(Row::of("x", &samples[..499], 0).p99, None);
        assert_eq!(Row::of("x", &samples[..99], 0).p95, None);
        assert_eq!(Row::of("x", &[], 1).samples, 0);
    }

    #[test]
    fn the_table_is_markdown() {
        let row = Row { name: "x, ms".into(), samples: 1000, failed: 0, min: 1.0, p50: 2.0, p95: Some(3.0), p99: None, max: 4.0 };
        assert!(markdown(&[row]).ends_with("|---|\n| x, ms | 1000 | 1.0 | 2.0 | 3.0 | - | 4.0 |\n"));
    }
}
