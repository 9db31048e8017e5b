//! How far a node's clock may be off, by the one clock that all nodes can be held against: the database's.
//!
//! Leases go by the database's clock and by one that nobody sets, so a wrong clock harms neither them nor any claim. Two things go by the clock
//! that people set: certificates, which nodes with clocks that are too far apart refuse each other, and the deadline of a sandbox, which is a time
//! of day and comes early or late where it has moved to.

use std::time::Duration;

use firkin_postgres::ClockOffset;

use crate::certificate::BACKDATED;

/// What two nodes may differ by is what a certificate is backdated by: each of them is off by half of that at most.
pub const BEARABLE: Duration = BACKDATED.checked_div(2).expect("it is not divided by nothing");

/// From here on deadlines of what moves are noticeably wrong, and an operator is told.
pub const NOTICEABLE: Duration = Duration::from_secs(5);

/// The clock of this host is further off than certificates of nodes bear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the clock of this host is {} s {} that of the cluster's database, and certificates of nodes bear {} s: other nodes would refuse this one",
    ahead_ms.unsigned_abs() / 1000, if *ahead_ms > 0 { "ahead of" } else { "behind" }, BEARABLE.as_secs()
)]
pub struct ClockTooFarOff {
    /// By how many milliseconds it is ahead; below zero it is behind.
    pub ahead_ms: i64,
}

/// Refuses a clock that is surely too far off.
pub fn bear(offset: ClockOffset) -> Result<(), ClockTooFarOff> {
    if offset.at_least() > BEARABLE { Err(ClockTooFarOff { ahead_ms: offset.ahead_ms }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_off_is_refused_once_it_is_sure() {
        let off = |ahead_ms, within| bear(ClockOffset { ahead_ms, within: Duration::from_millis(within) });
        for bears in [0, 1_800_000, -1_800_000] {
            assert_eq!(off(bears, 0), Ok(()));
        }
        assert_eq!(off(1_800_500, 500), Ok(()), "it may be what it should");
        let ahead = off(1_800_502, 500).unwrap_err();
        assert_eq!(
            ahead.to_string(),
            "the clock of this host is 1800 s ahead of that of the cluster's database, and certificates of nodes bear 1800 s: \
             other nodes would refuse this one"
        );
        assert!(off(-7_200_000, 500).unwrap_err().to_string().contains("7200 s behind"));
    }
}
