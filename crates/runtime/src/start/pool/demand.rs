//! How many creates of one template came at once, lately.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// What counts as at once: a pool that was emptied is full again about this much later.
const SPAN: Duration = Duration::from_secs(10);

/// How long a burst is remembered. Agents work in rounds of minutes.
const WINDOW: Duration = Duration::from_secs(300);

/// Creates that are remembered; more than any depth in use.
const MAX_CREATES: usize = 1024;

/// The creates of the last [`WINDOW`].
#[derive(Debug, Default)]
pub(super) struct Demand {
    /// Ascending.
    creates: VecDeque<Instant>,
}

impl Demand {
    /// One more create.
    pub(super) fn record(&mut self, now: Instant) {
        while self.creates.len() >= MAX_CREATES || self.creates.front().is_some_and(|at| *at + WINDOW <= now) {
            self.creates.pop_front();
        }
        self.creates.push_back(now);
    }

    /// The most creates within any [`SPAN`] of the last [`WINDOW`].
    pub(super) fn peak(&self, now: Instant) -> usize {
        let recent = self.creates.partition_point(|at| *at + WINDOW <= now);
        let (mut first, mut peak) = (recent, 0);
        for (last, at) in self.creates.iter().enumerate().skip(recent) {
            while self.creates[first] + SPAN <= *at {
                first += 1;
            }
            peak = peak.max(last + 1 - first);
        }
        peak
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_burst_is_remembered_for_five_minutes() {
        let begun = Instant::now();
        let mut demand = Demand::default();
        assert_eq!(demand.peak(begun), 0);
        for n in 0..7 {
            demand.record(begun + Duration::from_millis(100 * n));
        }
        let later = begun + Duration::from_secs(60);
        demand.record(later);
        assert_eq!(demand.peak(later), 7);
        assert_eq!(demand.peak(begun + WINDOW + Duration::from_secs(1)), 1, "the burst is forgotten, the later create is not");
        assert_eq!(demand.peak(later + WINDOW), 0);
    }

    proptest! {
        #[test]
        fn the_peak_is_what_counting_every_span_gives(gaps_ms in proptest::collection::vec(0u64..20_000, 0..80), rest_ms in 0u64..400_000) {
            let mut at = Instant::now();
            let mut demand = Demand::default();
            let mut creates = Vec::new();
            for gap in gaps_ms {
                at += Duration::from_millis(gap);
                demand.record(at);
                creates.push(at);
            }
            let now = at + Duration::from_millis(rest_ms);
            let recent: Vec<_> = creates.into_iter().filter(|at| *at + WINDOW > now).collect();
            let counts = recent.iter().map(|first| recent.iter().filter(|at| *at >= first && **at < *first + SPAN).count());
            prop_assert_eq!(demand.peak(now), counts.max().unwrap_or(0));
        }
    }
}
