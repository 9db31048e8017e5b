//! What each cycle does beside what all do.

use std::time::Duration;

use super::walk::Lane;

/// The part of a run in which its server is killed.
const SERVERS_DIE: f64 = 1.0 / 3.0;

/// So many cycles do everything, also where a run has no more.
const ROUND: u64 = 6;

/// What one cycle does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) cycle: u64,
    pub(super) reboots: bool,
    pub(super) builds: bool,
    pub(super) machines_die: bool,
    pub(super) walks_the_host: bool,
    pub(super) server_dies: bool,
}

impl Plan {
    /// For a cycle that begins after so much of the run. Each thing is done early and then again and again, no two of the long ones
    /// in the same cycle.
    pub(super) fn of(cycle: u64, part: f64) -> Self {
        Self {
            cycle,
            builds: cycle % 3 == 1,
            reboots: cycle % ROUND == 2,
            machines_die: cycle % ROUND == 3,
            server_dies: cycle % ROUND == 5 && (part < SERVERS_DIE || cycle < ROUND),
            walks_the_host: cycle % 24 == 6,
        }
    }

    /// For one of the users.
    pub(super) fn lane(self, lane: u64) -> Lane {
        Lane { cycle: self.cycle, lane, reboots: self.reboots, builds: self.builds }
    }
}

/// Reads a time as in `4h`, `90m` or `30s`.
pub(super) fn time(text: &str) -> Result<Duration, String> {
    let units = [("h", 3600), ("m", 60), ("s", 1)];
    let read =
        units.iter().find_map(|(unit, seconds)| text.strip_suffix(unit)?.parse::<u32>().ok().map(|count| (count, *seconds)));
    match read {
        Some((count, seconds)) if count > 0 => Ok(Duration::from_secs(u64::from(count) * seconds)),
        _ => Err("expected a time as in 4h, 90m or 30s".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_done_early_and_the_server_lives_on_in_the_end() {
        let early: Vec<Plan> = (1..=ROUND).map(|cycle| Plan::of(cycle, 0.9)).collect();
        for done in [
            |plan: &Plan| plan.builds,
            |plan: &Plan| plan.reboots,
            |plan: &Plan| plan.machines_die,
            |plan: &Plan| plan.server_dies,
            |plan: &Plan| plan.walks_the_host,
        ] {
            assert!(early.iter().any(done));
        }
        let late = |part| (ROUND..100).map(move |cycle| Plan::of(cycle, part)).filter(|plan| plan.server_dies).count();
        assert_eq!((late(0.2), late(0.4)), (15, 0));
    }

    #[test]
    fn times_have_a_unit() {
        for (text, seconds) in [("4h", 14_400), ("90m", 5400), ("30s", 30)] {
            assert_eq!(time(text), Ok(Duration::from_secs(seconds)));
        }
        for text in ["", "4", "h", "0s", "-1h", "1d", "4 h"] {
            assert!(time(text).is_err(), "{text}");
        }
    }
}
