//! For how long what is a node's is its own without the database: counted from before the database was asked, on a clock that goes on while the
//! host sleeps.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::cluster::LeaseTimes;

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
    /// Whether it had ended before it was given. Others may have taken what was the node's: it looks what is on record before it goes on
    /// with anything that was stopped.
    pub had_ended: bool,
}

impl Lease {
    /// One that was asked for at `sent`.
    pub(crate) fn given(sent: Duration, times: &LeaseTimes) -> Self {
        Self { stop_at: sent + times.stop_after, ends_at: sent + times.lasts, had_ended: false }
    }

    /// Until machines are stopped; nothing once they are.
    pub fn left(&self) -> Duration {
        self.stop_at.saturating_sub(boottime())
    }

    /// Whether anything may be begun or gone on with that others could have.
    pub fn holds(&self) -> bool {
        !self.left().is_zero()
    }
}
