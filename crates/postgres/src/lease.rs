//! For how long what is a node's is its own without the database: counted from before the database was asked, on a clock that goes on while the
//! host sleeps.
//!
//! The times are the cluster's and not a node's: how long a lease lasts is decided where it is given, and how long is waited after it where it is
//! taken from somebody, so that two nodes which disagreed about them could both have a sandbox.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use tokio_postgres::Row;

/// The longest that any of the times may be: a day.
const MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// How long what is a node's stays its own without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseTimes {
    /// A lease, from when the database has given it.
    pub lasts: Duration,
    /// Between two renewals.
    pub renew_every: Duration,
    /// From before a renewal was asked for until the machines of what others could start are stopped, unless another one came.
    pub stop_after: Duration,
    /// After a lease, until others may take what was its node's. It is for clocks that run otherwise, and for a process that is not scheduled.
    pub grace: Duration,
}

impl Default for LeaseTimes {
    fn default() -> Self {
        let [lasts, renew_every, stop_after, grace] = [120, 4, 100, 30].map(Duration::from_secs);
        Self { lasts, renew_every, stop_after, grace }
    }
}

impl LeaseTimes {
    pub(crate) fn columns(self) -> Option<[i64; 4]> {
        let Self { lasts, renew_every, stop_after, grace } = self;
        let is_sound = renew_every < stop_after && stop_after < lasts && lasts <= MAX && grace <= MAX && !renew_every.is_zero();
        let ms = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        is_sound.then(|| [lasts, renew_every, stop_after, grace].map(ms))
    }

    pub(crate) fn read(row: &Row, first: usize) -> Result<Self, tokio_postgres::Error> {
        let ms =
            |at: usize| Ok::<_, tokio_postgres::Error>(Duration::from_millis(row.try_get::<_, i64>(first + at)?.unsigned_abs()));
        Ok(Self { lasts: ms(0)?, renew_every: ms(1)?, stop_after: ms(2)?, grace: ms(3)? })
    }
}

/// Since the host was started, also while it slept.
pub(crate) fn boottime() -> Duration {
    // The kernel has had this clock for longer than anything else here.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Into::into)
}

/// A lease, on `CLOCK_BOOTTIME` of the node's host: whoever reads that clock, of whichever process, reads the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// When the machines of what others could start are stopped, unless it was renewed.
    pub stop_at: Duration,
    /// When it ends, at the latest when the database says so.
    pub ends_at: Duration,
    /// Whether one before it may have ended before it was renewed, and what is on record was not looked at since. Others may have taken what
    /// was the node's: nothing that was stopped goes on, and nothing is begun, before [`Membership::looked`](crate::Membership::looked).
    pub had_ended: bool,
    /// How often that was so, in this term.
    gaps: u64,
}

impl Lease {
    /// One that was asked for at `sent`.
    pub(crate) fn given(sent: Duration, times: &LeaseTimes) -> Self {
        Self { stop_at: sent + times.stop_after, ends_at: sent + times.lasts, had_ended: false, gaps: 0 }
    }

    /// Until machines are stopped; nothing once they are.
    pub fn left(&self) -> Duration {
        self.stop_at.saturating_sub(boottime())
    }

    /// Until it ends, as its node counts: at the latest when the database says so.
    pub fn until_end(&self) -> Duration {
        self.ends_at.saturating_sub(boottime())
    }

    /// Whether anything may be begun or gone on with that others could have.
    pub fn holds(&self) -> bool {
        !self.had_ended && !self.left().is_zero()
    }
}

/// The leases of a node, in one term.
#[derive(Debug)]
pub(crate) struct Leases {
    last: Lease,
    /// At which gap what is on record was looked at last.
    looked: u64,
}

impl Leases {
    pub(crate) fn of(first: Lease) -> Self {
        Self { last: first, looked: 0 }
    }

    /// As it is now.
    pub(crate) fn last(&self) -> Lease {
        Lease { had_ended: self.looked < self.last.gaps, ..self.last }
    }

    /// A renewal was answered. Whether the lease before had ended is said by the database; but the answer to an earlier renewal, which would
    /// have said it, may have been lost. So it may have whenever an answer comes after the time at which machines are stopped: one that came
    /// before was given before the lease that is known had ended.
    pub(crate) fn renewed(&mut self, lease: Lease, had_ended: bool) -> Lease {
        let gaps = self.last.gaps + u64::from(had_ended || self.last.left().is_zero());
        // Of two renewals at the same time, the later one may have been answered first.
        let newer = if lease.ends_at > self.last.ends_at { lease } else { self.last };
        self.last = Lease { gaps, ..newer };
        self.last()
    }

    /// What is on record was looked at, after this lease was given.
    pub(crate) fn looked(&mut self, after: &Lease) {
        self.looked = self.looked.max(after.gaps);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_known_until_somebody_has_looked_also_where_the_answer_that_told_of_it_was_lost() {
        let times = LeaseTimes::default();
        let now = boottime() + times.lasts;
        let at = |seconds: u64| Lease::given(now + Duration::from_secs(seconds), &times);
        let mut leases = Leases::of(at(0));
        assert!(leases.last().holds());
        assert!(leases.last().until_end() > leases.last().left(), "machines are stopped before that");
        assert!(leases.renewed(at(4), false).holds());
        let gap = leases.renewed(at(8), true);
        assert!(gap.had_ended && !gap.holds());
        // Later ones go on without one, and it has not been looked yet.
        assert!(leases.renewed(at(12), false).had_ended);
        leases.looked(&gap);
        assert!(leases.last().holds());
        let second = leases.renewed(at(16), true);
        leases.looked(&gap);
        assert!(leases.last().had_ended, "that was before");
        leases.looked(&second);
        assert!(leases.last().holds());
        // The one that is known is over when an answer comes; what the database says of a later one says nothing of it.
        let mut late = Leases::of(Lease::given(Duration::ZERO, &LeaseTimes { stop_after: Duration::ZERO, ..times }));
        assert!(late.renewed(at(0), false).had_ended);
    }
}
