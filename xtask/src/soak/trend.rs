//! Whether a figure that was taken again and again has grown.
//!
//! Two questions, of which either yes is growth. Is the end higher than the start? Medians of some samples of each are compared, so
//! that one odd sample is none. And does a straight line through all of them rise? That finds what is slow, and hidden at both ends
//! by chance. A line through noise rises or falls a little, too: it counts only if it stands out of the noise.

use serde::Serialize;

/// Samples at the start that say nothing: caches, pools and allocators fill first.
const WARM_UP: usize = 3;
/// Samples of which start and end are the median.
const ENDS: usize = 5;
/// With fewer than this many samples there is no trend: start and end would be the same ones.
pub(super) const ENOUGH: usize = WARM_UP + 2 * ENDS;
/// How many standard errors a slope is above zero that is no accident, though neighbouring samples resemble each other.
const SIGNIFICANT: f64 = 4.0;

/// By how much a figure may be higher at the end.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Tolerance {
    /// In the figure's unit.
    pub(super) absolute: f64,
    /// As a part of the start.
    pub(super) share: f64,
}

impl Tolerance {
    /// Not at all.
    pub(super) const NONE: Self = Self { absolute: 0.0, share: 0.0 };

    /// By so much in the figure's unit.
    pub(super) const fn of(absolute: f64) -> Self {
        Self { absolute, share: 0.0 }
    }

    fn allowed(self, start: f64) -> f64 {
        self.absolute + self.share * start
    }
}

/// What became of a figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    /// It has not grown.
    Steady,
    /// The end is higher than the start.
    Higher,
    /// The line through all samples rises.
    Rising,
    /// There are too few samples to tell.
    TooFew,
}

/// A figure over a run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Trend {
    /// Samples that were looked at.
    pub(super) samples: usize,
    /// The median of the first ones.
    pub(super) start: f64,
    /// The median of the last ones.
    pub(super) end: f64,
    /// The highest.
    pub(super) max: f64,
    /// By how much the line through them rises from the first to the last.
    pub(super) rise: f64,
    /// By how much either may grow.
    pub(super) allowed: f64,
    /// What follows.
    pub(super) verdict: Verdict,
}

/// Judges samples, each with the cycle after which it was taken, in order. `None` where there is none.
pub(super) fn judge(samples: &[(f64, f64)], tolerance: Tolerance) -> Option<Trend> {
    let enough = samples.len() >= ENOUGH;
    let samples = if enough { &samples[WARM_UP..] } else { samples };
    let (first, last) = (samples.first()?, samples.last()?);
    let ends = ENDS.min(samples.len());
    let (start, end) = (median(&samples[..ends]), median(&samples[samples.len() - ends..]));
    let (slope, error) = line(samples);
    let (rise, allowed) = (slope * (last.0 - first.0), tolerance.allowed(start));
    let verdict = if !enough {
        Verdict::TooFew
    } else if end - start > allowed {
        Verdict::Higher
    } else if rise > allowed && slope > SIGNIFICANT * error {
        Verdict::Rising
    } else {
        Verdict::Steady
    };
    let max = samples.iter().fold(f64::NEG_INFINITY, |max, (_, value)| max.max(*value));
    Some(Trend { samples: samples.len(), start, end, max, rise, allowed, verdict })
}

fn median(samples: &[(f64, f64)]) -> f64 {
    let mut values: Vec<f64> = samples.iter().map(|(_, value)| *value).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Slope of the line of least squares, and its standard error.
fn line(samples: &[(f64, f64)]) -> (f64, f64) {
    let mean = |of: fn(&(f64, f64)) -> f64| average(samples.iter().map(of));
    let (at, value) = (mean(|sample| sample.0), mean(|sample| sample.1));
    let spread: f64 = samples.iter().map(|sample| (sample.0 - at).powi(2)).sum();
    if spread == 0.0 {
        return (0.0, 0.0);
    }
    let slope = samples.iter().map(|sample| (sample.0 - at) * (sample.1 - value)).sum::<f64>() / spread;
    let left = average(samples.iter().map(|sample| (sample.1 - value - slope * (sample.0 - at)).powi(2)));
    (slope, (left / spread).sqrt())
}

fn average(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0.0), |(sum, count), value| (sum + value, count + 1.0));
    sum / f64::max(count, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `count` samples of what `value` says for each, with a noise that repeats.
    fn samples(count: u32, noise: f64, value: impl Fn(f64) -> f64) -> Vec<(f64, f64)> {
        let waves = [0.0, 0.7, -0.4, 1.0, -1.0, 0.3, -0.8];
        (0..count).map(f64::from).zip(waves.into_iter().cycle()).map(|(at, wave)| (at, value(at) + noise * wave)).collect()
    }

    fn verdict(samples: &[(f64, f64)], tolerance: Tolerance) -> Verdict {
        judge(samples, tolerance).unwrap().verdict
    }

    #[test]
    fn what_stays_as_it_is_has_not_grown() {
        assert_eq!(verdict(&samples(100, 0.0, |_| 7.0), Tolerance::NONE), Verdict::Steady);
        assert_eq!(verdict(&samples(100, 3.0, |_| 40.0), Tolerance::of(5.0)), Verdict::Steady);
        assert_eq!(verdict(&samples(100, 0.0, |at| 40.0 - at / 10.0), Tolerance::NONE), Verdict::Steady);
        // What fills at first and then stays.
        assert_eq!(verdict(&samples(100, 0.0, |at| at.min(2.0)), Tolerance::NONE), Verdict::Steady);
    }

    #[test]
    fn one_more_for_ever_is_growth_where_none_is_allowed() {
        assert_eq!(verdict(&samples(100, 0.0, |at| if at < 60.0 { 7.0 } else { 8.0 }), Tolerance::NONE), Verdict::Higher);
        assert_eq!(verdict(&samples(100, 0.0, |at| if at == 50.0 { 8.0 } else { 7.0 }), Tolerance::NONE), Verdict::Steady);
    }

    #[test]
    fn a_slow_rise_is_found_in_the_noise() {
        let leak = |each: f64| samples(400, 3.0, move |at| 40.0 + each * at);
        let tolerance = Tolerance { absolute: 4.0, share: 0.1 };
        assert_eq!(verdict(&leak(0.0), tolerance), Verdict::Steady);
        assert_eq!(verdict(&leak(0.015), tolerance), Verdict::Steady);
        assert_ne!(verdict(&leak(0.03), tolerance), Verdict::Steady);
        // One that is low at the end by accident.
        let mut hidden = leak(0.03);
        hidden.iter_mut().rev().take(ENDS).for_each(|sample| sample.1 = 40.0);
        assert_eq!(verdict(&hidden, tolerance), Verdict::Rising);
    }

    #[test]
    fn of_a_few_samples_nothing_is_concluded() {
        let few = samples(u32::try_from(ENOUGH).unwrap() - 1, 0.0, |at| at);
        assert_eq!(verdict(&few, Tolerance::NONE), Verdict::TooFew);
        assert_eq!(judge(&[], Tolerance::NONE), None);
        assert_eq!(verdict(&[(1.0, 5.0)], Tolerance::NONE), Verdict::TooFew);
    }

    #[test]
    fn the_figures_are_told() {
        let trend = judge(&samples(103, 0.0, |at| at), Tolerance { absolute: 1.0, share: 0.5 }).unwrap();
        assert_eq!((trend.samples, trend.start, trend.end, trend.max), (100, 5.0, 100.0, 102.0));
        assert!((trend.rise - 99.0).abs() < 1e-9 && (trend.allowed - 3.5).abs() < 1e-9, "{trend:?}");
    }
}
