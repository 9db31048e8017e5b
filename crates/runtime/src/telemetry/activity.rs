//! How many sandboxes of each team ran at once and how often one started: by the minute, for a week, in memory.
//!
//! A minute remembers the most that ran at once in it, seen at each start and at each look of the sampler, so that a short burst
//! does not fall between two looks. The ring does not outlive the server.
//!
//! Minutes of several servers are added minute by minute, and made points of only then. What ran at once on all of them is at most the sum of
//! what did on each: when in a minute each had most, nobody remembers.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ground::team::TeamId;

/// Seconds that one entry stands for.
const MINUTE_S: i64 = 60;

/// A week of minutes, 240 KiB.
const MAX_MINUTES: usize = 7 * 24 * 60;

/// The most points that one answer has: beyond them, neighbours are one.
const MAX_POINTS: usize = 1000;

/// Activity from a time on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ActivityPoint {
    /// When it began.
    pub at: Timestamp,
    /// The most sandboxes that ran at once.
    pub concurrent: u32,
    /// Sandboxes that began to run, by create, fork, resume or traffic, in a second.
    pub start_rate: f64,
}

/// What a minute remembers, also for another server that asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActivityMinute {
    /// In minutes since 1970.
    #[serde(rename = "minute")]
    pub number: i64,
    /// The most sandboxes that ran at once.
    pub concurrent: u32,
    /// Sandboxes that began to run.
    pub starts: u32,
}

/// The ring of each team that ever ran a sandbox.
#[derive(Debug, Default)]
pub(crate) struct Activity(Mutex<HashMap<TeamId, VecDeque<ActivityMinute>>>);

impl Activity {
    /// A sandbox of a team began to run, with which so many of it do.
    pub(crate) fn started(&self, team: &TeamId, running: usize, now: Timestamp) {
        in_minute(self.rings().entry(team.clone()).or_default(), running, now, 1);
    }

    /// So many run, of each team that has sandboxes.
    pub(crate) fn observed(&self, running: &HashMap<TeamId, usize>, now: Timestamp) {
        let mut rings = self.rings();
        // The first team has minutes without a sandbox, too.
        rings.entry(TeamId::first()).or_default();
        for (team, minutes) in rings.iter_mut() {
            in_minute(minutes, running.get(team).copied().unwrap_or_default(), now, 0);
        }
    }

    /// Activity of a team in the minutes that begin in this time, both ends included, oldest first.
    pub(crate) fn between(&self, team: &TeamId, start: Timestamp, end: Timestamp) -> Vec<ActivityMinute> {
        let within = |minute: &ActivityMinute| {
            let begins = minute.number.saturating_mul(MINUTE_S);
            // The minute that is under way at the start counts: its end is within.
            begins + MINUTE_S > start.as_second() && begins <= end.as_second()
        };
        self.rings().get(team).into_iter().flatten().copied().filter(within).collect()
    }

    fn rings(&self) -> MutexGuard<'_, HashMap<TeamId, VecDeque<ActivityMinute>>> {
        // Nothing panics between a lock and its unlock here, so poisoned rings are still whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What several servers remember, as one that had all of it would.
pub fn sum(parts: impl IntoIterator<Item = Vec<ActivityMinute>>) -> Vec<ActivityMinute> {
    let mut minutes = BTreeMap::<i64, ActivityMinute>::new();
    for ActivityMinute { number, concurrent, starts } in parts.into_iter().flatten() {
        let minute = minutes.entry(number).or_insert(ActivityMinute { number, concurrent: 0, starts: 0 });
        minute.concurrent = minute.concurrent.saturating_add(concurrent);
        minute.starts = minute.starts.saturating_add(starts);
    }
    minutes.into_values().collect()
}

/// Minutes as points from a time on: where there are too many for one answer, neighbours are one.
pub fn points(minutes: &[ActivityMinute], start: Timestamp) -> Vec<ActivityPoint> {
    let together = minutes.len().div_ceil(MAX_POINTS).max(1);
    minutes.chunks(together).filter_map(|chunk| point(chunk, start)).collect()
}

fn in_minute(minutes: &mut VecDeque<ActivityMinute>, running: usize, now: Timestamp, starts: u32) {
    let number = now.as_second().div_euclid(MINUTE_S);
    let concurrent = u32::try_from(running).unwrap_or(u32::MAX);
    match minutes.back_mut() {
        // A clock that was set back goes on in the last minute.
        Some(last) if last.number >= number => {
            last.concurrent = last.concurrent.max(concurrent);
            last.starts = last.starts.saturating_add(starts);
        }
        _ => {
            if minutes.len() == MAX_MINUTES {
                minutes.pop_front();
            }
            minutes.push_back(ActivityMinute { number, concurrent, starts });
        }
    }
}

fn point(minutes: &[ActivityMinute], start: Timestamp) -> Option<ActivityPoint> {
    let first = Timestamp::from_second(minutes.first()?.number.saturating_mul(MINUTE_S)).ok()?;
    let starts: u32 = minutes.iter().fold(0, |sum, minute| sum.saturating_add(minute.starts));
    let seconds = u32::try_from(minutes.len()).ok()?.saturating_mul(60);
    Some(ActivityPoint {
        at: first.max(start),
        concurrent: minutes.iter().map(|minute| minute.concurrent).max()?,
        start_rate: f64::from(starts) / f64::from(seconds),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn team() -> TeamId {
        TeamId::first()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_minute_keeps_its_most_and_its_starts() {
        let activity = Activity::default();
        activity.started(&team(), 1, at(600));
        activity.started(&team(), 2, at(610));
        activity.observed(&HashMap::from([(team(), 1)]), at(650));
        activity.observed(&HashMap::from([(team(), 0)]), at(700));
        let shown = |start, end| points(&activity.between(&team(), at(start), at(end)), at(start));
        let expected = [(600, 2, 2.0 / 60.0), (660, 0, 0.0)].map(|(second, concurrent, start_rate)| ActivityPoint {
            at: at(second),
            concurrent,
            start_rate,
        });
        assert_eq!(shown(0, 10_000), expected);
        assert_eq!(shown(630, 655), [ActivityPoint { at: at(630), ..expected[0] }]);
        assert_eq!(shown(661, 10_000).len(), 1);
        assert!(shown(0, 599).is_empty());
    }

    #[test]
    fn what_several_servers_remember_is_added_by_the_minute_before_minutes_are_put_together() {
        let minute = |number, concurrent, starts| ActivityMinute { number, concurrent, starts };
        // The second one began later, and has a minute that the first one lacks.
        let summed = sum([vec![minute(1, 2, 2), minute(2, 3, 1), minute(4, 0, 0)], vec![minute(2, 4, 4), minute(3, 5, 1)]]);
        assert_eq!(summed, [minute(1, 2, 2), minute(2, 7, 5), minute(3, 5, 1), minute(4, 0, 0)]);
        // So many that two are one: the most of both is that of one of them, and not of the second server's next.
        let busy_in = |odd: i64| (0..2000).map(|number| minute(number, u32::from(number % 2 == odd) * 6, 1)).collect::<Vec<_>>();
        let shown = points(&sum([busy_in(0), busy_in(1)]), at(0));
        assert_eq!(shown.len(), MAX_POINTS);
        let expected = |point: &ActivityPoint| point.concurrent == 6 && (point.start_rate - 4.0 / 120.0).abs() < 1e-9;
        assert!(shown.iter().all(expected), "{:?}", shown[0]);
        assert_eq!(sum([vec![minute(1, u32::MAX, 1)], vec![minute(1, 1, u32::MAX)]]), [minute(1, u32::MAX, u32::MAX)]);
    }

    #[test]
    fn a_week_is_kept_and_answers_are_bounded() {
        let activity = Activity::default();
        let minutes = i64::try_from(MAX_MINUTES).unwrap() + 5;
        for minute in 0..minutes {
            activity.started(&team(), usize::try_from(minute % 7).unwrap(), at(minute * MINUTE_S));
        }
        let shown = || points(&activity.between(&team(), at(0), at(minutes * MINUTE_S)), at(0));
        let all = shown();
        assert!(all.len() <= MAX_POINTS && all[0].at == at(5 * MINUTE_S), "{}", all.len());
        // The last stands for what is left, which is less.
        assert!(all[..all.len() - 1].iter().all(|point| point.concurrent == 6 && (point.start_rate - 1.0 / 60.0).abs() < 1e-9));
        activity.started(&team(), 9, at(0));
        assert_eq!(shown().last().unwrap().concurrent, 9, "a clock that was set back");
    }
}
