//! How long phases took, as percentiles for those who look: counts of the buckets that metrics have, kept beside those because what
//! Prometheus is given cannot be read back.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use serde::Serialize;

use super::timing::{BUCKETS, Timing};

/// One for each bucket, and one for what took longer than the last.
type Counts = [AtomicU64; BUCKETS.len() + 1];

/// The counts of every phase.
#[derive(Debug, Default)]
pub(super) struct Phases([Counts; Timing::ALL.len()]);

/// How long a phase took since the server began.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PhaseFigures {
    /// Its name in metrics.
    pub phase: &'static str,
    /// How many came to their end.
    pub count: u64,
    /// Half took no longer, by estimate from the buckets; none without any.
    pub p50_ms: Option<f64>,
    /// 95 of 100 took no longer.
    pub p95_ms: Option<f64>,
}

impl Phases {
    pub(super) fn observe(&self, phase: Timing, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = BUCKETS.iter().position(|bound| seconds <= *bound).unwrap_or(BUCKETS.len());
        self.0[phase as usize][bucket].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn figures(&self) -> Vec<PhaseFigures> {
        let figures = |phase: Timing| {
            let counts: Vec<u64> = self.0[phase as usize].iter().map(|count| count.load(Ordering::Relaxed)).collect();
            let (p50_ms, p95_ms) = (percentile(&counts, 50), percentile(&counts, 95));
            PhaseFigures { phase: phase.name(), count: counts.iter().sum(), p50_ms, p95_ms }
        };
        Timing::ALL.into_iter().map(figures).collect()
    }
}

/// Milliseconds that so many hundredths took at most: within its bucket as if they lay evenly. Beyond the last bucket, its bound, which
/// is too little.
fn percentile(counts: &[u64], hundredths: u32) -> Option<f64> {
    let total: u64 = counts.iter().sum();
    if total == 0 {
        return None;
    }
    let rank = count(total) * f64::from(hundredths) / 100.0;
    let mut below = 0.0;
    let mut lower = 0.0;
    for (bound, inside) in BUCKETS.iter().zip(counts) {
        let inside = count(*inside);
        if inside > 0.0 && below + inside >= rank {
            let seconds = lower + (bound - lower) * (rank - below) / inside;
            return Some((seconds * 1e4).round() / 10.0);
        }
        below += inside;
        lower = *bound;
    }
    Some(lower * 1e3)
}

#[expect(clippy::cast_precision_loss, reason = "as many phases as lose precision are not gone through in a century")]
fn count(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_lie_in_the_bucket_that_holds_them() {
        let phases = Phases::default();
        for ms in 1..=100 {
            phases.observe(Timing::KillDelete, Duration::from_millis(ms));
        }
        let figures = phases.figures();
        let of = |name: &str| figures.iter().find(|figures| figures.phase == name).unwrap().clone();
        assert_eq!(of("kill_delete"), PhaseFigures { phase: "kill_delete", count: 100, p50_ms: Some(50.0), p95_ms: Some(95.0) });
        assert_eq!((of("ready_probe").count, of("ready_probe").p50_ms), (0, None));
        phases.observe(Timing::ReadyProbe, Duration::from_secs(3600));
        assert_eq!(phases.figures().iter().find(|figures| figures.phase == "ready_probe").unwrap().p95_ms, Some(60_000.0));
    }
}
