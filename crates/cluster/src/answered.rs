//! What nodes said that were asked for sandboxes, for as long as their own figures may not say it yet: these are some seconds old, and in that time a
//! burst would all go to the node that was the emptiest. And a node on which creates fail looks emptier with each: it is asked last, until a minute has
//! passed since.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use firkin_server::nodes::{NodeId, Said};

/// How long it counts: until a node has renewed its lease, said what it has, and was heard.
const COUNTS_FOR: Duration = Duration::from_secs(5);

/// How long a node is taken to be full that said so. What ends there makes room at any time.
const FULL_FOR: Duration = Duration::from_secs(1);

/// How long a create that failed counts against a node, and one that did not for it.
const JUDGED_BY: Duration = Duration::from_secs(60);

/// From so many failures on, if they are nine of ten or more, others are asked first.
const FAILS_FROM: usize = 5;

/// More of one node than most make in that time: beyond that the oldest are forgotten.
const MOST: usize = 10_000;

/// What was said lately, by node.
#[derive(Debug, Default)]
pub(crate) struct Answered(Mutex<HashMap<NodeId, VecDeque<(Instant, Said)>>>);

impl Answered {
    pub(crate) fn note(&self, node: &NodeId, said: Said, now: Instant) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of = all.entry(node.clone()).or_default();
        while of.len() >= MOST || of.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) >= JUDGED_BY) {
            of.pop_front();
        }
        of.push_back((now, said));
    }

    /// How much of the memory that a node said it had is taken since, MiB; all of it, where it said that it is full.
    pub(crate) fn taken(&self, node: &NodeId, now: Instant) -> u64 {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of = all.get(node).into_iter().flatten().filter(|(at, _)| now.saturating_duration_since(*at) < COUNTS_FOR);
        let taken = of.map(|(at, said)| match said {
            Said::Made(memory_mib) => *memory_mib,
            Said::Full if now.saturating_duration_since(*at) < FULL_FOR => u64::MAX,
            Said::Full | Said::Failed => 0,
        });
        taken.fold(0, u64::saturating_add)
    }

    /// How many creates failed on a node lately, of how many, if it is to be asked last for that.
    pub(crate) fn failing(&self, node: &NodeId, now: Instant) -> Option<(usize, usize)> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of = all.get(node)?.iter().filter(|(at, _)| now.saturating_duration_since(*at) < JUDGED_BY);
        let (mut failed, mut made) = (0, 0);
        for (_, said) in of {
            match said {
                Said::Failed => failed += 1,
                Said::Made(_) => made += 1,
                Said::Full => {}
            }
        }
        let fails = failed >= FAILS_FROM && failed >= 9 * made;
        fails.then_some((failed, failed + made))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_took_counts_until_it_says_so_itself() {
        let (answered, begin) = (Answered::default(), Instant::now());
        let [one, other]: [NodeId; 2] = ["a", "b"].map(|name| name.repeat(20).parse().unwrap());
        let at = |ms| begin + Duration::from_millis(ms);
        answered.note(&one, Said::Made(512), at(0));
        answered.note(&one, Said::Made(256), at(3000));
        answered.note(&other, Said::Full, at(3000));
        assert_eq!([answered.taken(&one, at(3000)), answered.taken(&other, at(3000))], [768, u64::MAX]);
        assert_eq!([answered.taken(&one, at(5000)), answered.taken(&other, at(4000))], [256, 0]);
        assert_eq!(answered.failing(&one, at(5000)), None);
        answered.note(&one, Said::Made(1), at(9000));
        assert_eq!(answered.taken(&one, at(9000)), 1);
        // However much was answered, it is the newest that counts.
        (0..MOST).for_each(|_| answered.note(&other, Said::Made(1), at(9000)));
        answered.note(&other, Said::Made(1), at(14_000));
        assert_eq!(answered.taken(&other, at(14_000)), 1);
    }

    #[test]
    fn who_fails_again_and_again_is_told_from_who_failed_once() {
        let (answered, begin) = (Answered::default(), Instant::now());
        let node: NodeId = "a".repeat(20).parse().unwrap();
        let at = |s| begin + Duration::from_secs(s);
        for second in 0..FAILS_FROM as u64 {
            assert_eq!(answered.failing(&node, at(second)), None);
            answered.note(&node, Said::Failed, at(second));
        }
        assert_eq!(answered.failing(&node, at(5)), Some((5, 5)));
        // One that succeeds is soon forgiven, and so is who was not asked.
        answered.note(&node, Said::Made(1), at(5));
        assert_eq!(answered.failing(&node, at(5)), None);
        (0..4).for_each(|_| answered.note(&node, Said::Failed, at(6)));
        assert_eq!(answered.failing(&node, at(6)), Some((9, 10)));
        assert_eq!(answered.failing(&node, at(66)), None);
    }
}
