//! How fast: a bound on bytes a second, and the waits between attempts.

use std::{
    num::NonZeroU64,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

/// Bytes a second, over all that one store is asked for. What is asked for at once goes at once, and what follows waits for it: over any
/// time that is long against one part, no more passes than was allowed.
#[derive(Debug)]
pub(crate) struct Pace {
    rate: Option<NonZeroU64>,
    free_at: Mutex<Option<Instant>>,
}

impl Pace {
    pub(crate) fn new(rate: Option<NonZeroU64>) -> Self {
        Self { rate, free_at: Mutex::default() }
    }

    /// Waits until this many bytes may pass.
    pub(crate) async fn take(&self, bytes: u64) {
        let Some(rate) = self.rate else { return };
        let start = {
            let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let start = free_at.map_or(now, |free_at| free_at.max(now));
            let nanoseconds = u128::from(bytes) * 1_000_000_000 / u128::from(rate.get());
            *free_at = Some(start + Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX)));
            start
        };
        sleep_until(start).await;
    }
}

/// The wait before each next attempt: twice as long each time up to the longest, of which each takes between half and all by chance, so
/// that many who lost the same store do not come back at once.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    attempts: u32,
}

impl Backoff {
    /// One that begins with `first`.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, attempts: 0 }
    }

    /// The next wait.
    pub fn next_wait(&mut self) -> Duration {
        let whole = self.first.saturating_mul(2_u32.saturating_pow(self.attempts)).min(self.longest);
        self.attempts = self.attempts.saturating_add(1);
        whole / 2 + (whole / 2).mul_f64(chance())
    }

    /// It worked: the next wait is a first one.
    pub fn worked(&mut self) {
        self.attempts = 0;
    }
}

/// From 0 to 1.
fn chance() -> f64 {
    let mut bytes = [0; 4];
    // Without chance the wait is the longest of its kind, which does no harm.
    match getrandom::fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX),
        Err(_) => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn no_more_passes_than_is_allowed() {
        let pace = Pace::new(NonZeroU64::new(1000));
        let start = Instant::now();
        for _ in 0..5 {
            pace.take(500).await;
        }
        assert_eq!(start.elapsed().as_millis(), 2000, "the first goes at once, and four wait for half a second each");
        tokio::time::advance(Duration::from_secs(60)).await;
        let later = Instant::now();
        pace.take(500).await;
        assert_eq!(later.elapsed().as_millis(), 0, "what was not used is not saved up either");
        pace.take(500).await;
        assert_eq!(later.elapsed().as_millis(), 500);

        let free = Pace::new(None);
        free.take(u64::MAX).await;
        assert_eq!(later.elapsed().as_millis(), 500);
    }

    #[test]
    fn waits_double_up_to_the_longest_and_differ() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        for whole in [100, 200, 400, 800, 1600, 3200, 5000, 5000] {
            let wait = backoff.next_wait().as_millis();
            assert!((whole / 2..=whole).contains(&wait), "{wait} of {whole}");
        }
        for _ in 0..100 {
            assert!(backoff.next_wait() <= Duration::from_secs(5), "however often");
        }
        backoff.worked();
        assert!(backoff.next_wait() <= Duration::from_millis(100));
        let waits: Vec<Duration> =
            (0..8).map(|_| Backoff::new(Duration::from_secs(8), Duration::from_secs(8)).next_wait()).collect();
        assert!(waits.iter().any(|wait| *wait != waits[0]), "{waits:?}");
    }
}
