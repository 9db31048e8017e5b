//! The clock of deadlines: `CLOCK_BOOTTIME`, which nobody sets and which goes on while the host sleeps.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// How long ago the host was started. Comparable between processes of one host, until that is started anew.
pub fn now() -> Duration {
    let now =
        clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has this clock since 2.6.39, and asking it fails for nothing else");
    Duration::from(now)
}
