//! What the warden knows, in memory: what its files said last, the processes that it holds, and whether it has stopped them.
//!
//! Nothing here reads a file, so that a disk that does not answer keeps nobody from being stopped.

use std::{collections::BTreeMap, time::Duration};

use crate::{ProcessId, page::Entry, process::Held};

/// What holds until something else is read.
#[derive(Debug)]
pub(crate) struct Watched {
    deadline: Duration,
    generation: u64,
    /// The generation in which the deadline passed; `None` while machines may run.
    stopped_in: Option<u64>,
    machines: BTreeMap<String, Vec<Held>>,
}

/// What a look has led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    None,
    Stopped,
    WentOn,
}

impl Watched {
    /// What a page says to a warden that begins, when `noted` is the generation in which one before it had stopped machines last. That may have ended
    /// before it let them go on, or before it said so: unless they are to stand still in this generation, they go on first of all.
    pub(crate) fn of(entry: &Entry, noted: Option<u64>) -> Self {
        // Above that of the page it is of another start of the host.
        let noted = noted.filter(|noted| *noted <= entry.generation);
        let stopped_in = noted.or(entry.generation.checked_sub(1));
        Self { deadline: entry.deadline, generation: entry.generation, stopped_in, machines: BTreeMap::new() }
    }

    pub(crate) fn deadline(&self) -> Duration {
        self.deadline
    }

    pub(crate) fn stopped_in(&self) -> Option<u64> {
        self.stopped_in
    }

    /// Takes what the page says. One of an earlier generation is of a time that is over: somebody has put back an old file.
    pub(crate) fn learn(&mut self, entry: &Entry) {
        if entry.generation >= self.generation {
            (self.deadline, self.generation) = (entry.deadline, entry.generation);
        }
    }

    /// Whether a machine is held as these processes, but for those that have ended.
    pub(crate) fn holds(&self, name: &str, processes: &[ProcessId]) -> bool {
        self.machines.get(name).is_some_and(|held| held.iter().map(|held| held.id).eq(processes.iter().copied()))
    }

    pub(crate) fn put(&mut self, name: &str, held: Vec<Held>) {
        self.machines.insert(name.to_owned(), held);
    }

    /// Forgets all that is listed no more.
    pub(crate) fn retain(&mut self, names: &[String]) {
        self.machines.retain(|name, _| names.binary_search(name).is_ok());
    }

    /// Whether any process is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.machines.values().flatten().all(Held::has_ended)
    }

    /// How many there are.
    pub(crate) fn processes(&self) -> usize {
        self.machines.values().flatten().filter(|held| !held.has_ended()).count()
    }

    /// Stops what has to stand still at this time, or lets it go on. What is stopped is stopped again: somebody else may have let it go on, and
    /// some may have been listed since.
    pub(crate) fn apply(&mut self, now: Duration) -> Change {
        let is_over = now >= self.deadline;
        match self.stopped_in {
            Some(stopped_in) if self.generation > stopped_in && !is_over => {
                self.stopped_in = None;
                self.each("let a machine go on", Held::go_on);
                Change::WentOn
            }
            None if !is_over => Change::None,
            stopped_in => {
                if is_over {
                    self.stopped_in = Some(self.generation);
                }
                self.each("stop a machine", Held::stop);
                if stopped_in.is_none() { Change::Stopped } else { Change::None }
            }
        }
    }

    fn each(&self, what: &str, act: impl Fn(&Held) -> std::io::Result<()>) {
        for held in self.machines.values().flatten() {
            if let Err(error) = act(held) {
                tracing::error!(pid = held.id.pid, %error, "cannot {what}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::Order;

    fn entry(deadline: u64, generation: u64) -> Entry {
        let server = ProcessId { pid: 1, start_ticks: 1 };
        Entry { boot: 0, deadline: Duration::from_secs(deadline), generation, listings: 0, server, order: Order::Watch }
    }

    /// What is done at each second, by what the page says from then on.
    fn check(pages: &[(u64, (u64, u64))], expect: &[(u64, Change)]) {
        let mut watched = Watched::of(&entry(5, 1), None);
        // Whatever stood still before.
        assert_eq!(watched.apply(Duration::ZERO), Change::WentOn);
        let mut changes = Vec::new();
        for second in 0..20 {
            if let Some((_, (deadline, generation))) = pages.iter().find(|(at, _)| *at == second) {
                watched.learn(&entry(*deadline, *generation));
            }
            match watched.apply(Duration::from_secs(second)) {
                Change::None => {}
                change => changes.push((second, change)),
            }
        }
        assert_eq!(changes, expect);
    }

    #[test]
    fn a_deadline_that_passes_stops_and_only_a_later_generation_lets_go_on() {
        check(&[], &[(5, Change::Stopped)]);
        check(&[(4, (10, 1))], &[(10, Change::Stopped)]);
        check(&[(5, (99, 1))], &[]);
        // Too late: it is for the server to say what is still its own.
        check(&[(6, (99, 1))], &[(5, Change::Stopped)]);
        check(&[(6, (99, 1)), (8, (99, 2))], &[(5, Change::Stopped), (8, Change::WentOn)]);
        check(&[(8, (12, 2))], &[(5, Change::Stopped), (8, Change::WentOn), (12, Change::Stopped)]);
    }

    #[test]
    fn a_lease_that_is_over_when_it_comes_lets_nothing_go_on() {
        check(&[(8, (7, 2))], &[(5, Change::Stopped)]);
        // It was over, so the one after it is needed.
        check(&[(8, (7, 2)), (9, (99, 2))], &[(5, Change::Stopped)]);
        check(&[(8, (7, 2)), (9, (99, 3))], &[(5, Change::Stopped), (9, Change::WentOn)]);
    }

    #[test]
    fn a_warden_that_begins_lets_go_on_what_the_one_before_it_had_stopped_unless_that_is_to_stand_still() {
        let first = |noted, now| Watched::of(&entry(5, 3), noted).apply(Duration::from_secs(now));
        assert_eq!([None, Some(1), Some(2), Some(4)].map(|noted| first(noted, 1)), [Change::WentOn; 4]);
        assert_eq!(first(Some(3), 1), Change::None, "only a later generation lets it go on");
        let mut late = Watched::of(&entry(5, 3), Some(2));
        assert_eq!((late.apply(Duration::from_secs(6)), late.stopped_in()), (Change::None, Some(3)));
    }

    #[test]
    fn an_old_page_changes_nothing() {
        check(&[(1, (4, 2)), (2, (99, 1))], &[(4, Change::Stopped)]);
    }
}
