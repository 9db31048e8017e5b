//! Events and resource use of each sandbox: two bounded rings, in memory.
//!
//! A question about the past is answered without asking the sandbox. The rings outlive it for a while, so that one that just ended
//! can still be understood; they do not outlive the server.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use firkin_wire::{control::Stats, rest::LogLevel};
use jiff::Timestamp;
use tokio::time::Instant;

use crate::{
    ground::team::{Scope, TeamId},
    store::spec::SandboxId,
};

/// Samples kept of one sandbox: half an hour, 30 KiB.
const MAX_SAMPLES: usize = 360;

/// Events kept of one sandbox. A life has a handful; pausing and resuming for days has hundreds.
const MAX_EVENTS: usize = 512;

/// Sandboxes that ended and are still remembered.
const MAX_ENDED: usize = 256;

/// A guest that did not answer is left alone for so long: its owner waits for the answer, and has better things to do.
const QUIET: Duration = Duration::from_secs(60);

/// Something that happened to a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub at: Timestamp,
    /// How much it matters.
    pub level: LogLevel,
    /// For people.
    pub message: String,
    /// For programs.
    pub fields: BTreeMap<&'static str, String>,
}

impl Event {
    pub(crate) fn new(level: LogLevel, message: impl Into<String>) -> Self {
        Self { at: Timestamp::now(), level, message: message.into(), fields: BTreeMap::new() }
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.fields.insert(name, value.into());
        self
    }
}

/// The rings of every sandbox.
#[derive(Debug, Default)]
pub(crate) struct History(Mutex<Rings>);

#[derive(Debug, Default)]
struct Rings {
    sandboxes: HashMap<SandboxId, Ring>,
    /// Those that ended, the first that did in front.
    ended: VecDeque<SandboxId>,
}

#[derive(Debug, Default)]
struct Ring {
    /// Whose the sandbox is, from its first event on.
    team: Option<TeamId>,
    events: VecDeque<Event>,
    samples: VecDeque<Stats>,
    /// Until when the guest is not asked.
    quiet: Option<Instant>,
}

impl History {
    fn rings(&self) -> MutexGuard<'_, Rings> {
        // Nothing panics between a lock and its unlock here, so poisoned rings are still whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn note(&self, (team, id): (&TeamId, &SandboxId), event: Event) {
        let mut rings = self.rings();
        let ring = rings.sandboxes.entry(id.clone()).or_default();
        ring.team.get_or_insert_with(|| team.clone());
        push(&mut ring.events, event, MAX_EVENTS);
    }

    /// Notes the last event of a sandbox; the oldest of those that ended may be forgotten for it.
    pub(crate) fn close(&self, (team, id): (&TeamId, &SandboxId), event: Event) {
        self.note((team, id), event);
        let mut rings = self.rings();
        rings.ended.push_back(id.clone());
        if rings.ended.len() > MAX_ENDED
            && let Some(oldest) = rings.ended.pop_front()
        {
            rings.sandboxes.remove(&oldest);
        }
    }

    /// `None` when the sandbox was never known to the scope, or is no longer.
    pub(crate) fn events(&self, scope: &Scope, id: &SandboxId) -> Option<Vec<Event>> {
        let rings = self.rings();
        let ring = rings.sandboxes.get(id).filter(|ring| ring.team.as_ref().is_some_and(|team| scope.sees(team)))?;
        Some(ring.events.iter().cloned().collect())
    }

    pub(crate) fn samples(&self, id: &SandboxId) -> Vec<Stats> {
        self.rings().sandboxes.get(id).map(|ring| ring.samples.iter().copied().collect()).unwrap_or_default()
    }

    /// The newest of them, oldest first.
    pub(crate) fn recent(&self, id: &SandboxId, most: usize) -> Vec<Stats> {
        let rings = self.rings();
        let Some(ring) = rings.sandboxes.get(id) else { return Vec::new() };
        ring.samples.range(ring.samples.len().saturating_sub(most)..).copied().collect()
    }

    /// Remembers what the guest answered; one that did not is left alone for a while.
    pub(crate) fn sampled(&self, id: &SandboxId, answer: Option<Stats>) {
        let mut rings = self.rings();
        let ring = rings.sandboxes.entry(id.clone()).or_default();
        match answer {
            // A guest's clock has whole seconds: asked twice within one, it says the same twice.
            Some(stats) if ring.samples.back().is_some_and(|last| last.ts == stats.ts) => ring.quiet = None,
            Some(stats) => {
                push(&mut ring.samples, stats, MAX_SAMPLES);
                ring.quiet = None;
            }
            None => ring.quiet = Some(Instant::now() + QUIET),
        }
    }

    pub(crate) fn is_quiet(&self, id: &SandboxId) -> bool {
        let rings = self.rings();
        rings.sandboxes.get(id).and_then(|ring| ring.quiet).is_some_and(|until| Instant::now() < until)
    }
}

fn push<T>(ring: &mut VecDeque<T>, item: T, most: usize) {
    if ring.len() == most {
        ring.pop_front();
    }
    ring.push_back(item);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: usize) -> SandboxId {
        format!("i{number}").parse().unwrap()
    }

    fn stats(ts: i64) -> Stats {
        Stats { ts, cpu_count: 1, cpu_used_pct: 0.0, mem_total: 1, mem_used: 1, mem_cache: 0, disk_used: 0, disk_total: 1 }
    }

    #[test]
    fn rings_keep_the_newest_and_nothing_twice() {
        let history = History::default();
        for n in 0..MAX_EVENTS + 3 {
            history.note((&TeamId::first(), &id(1)), Event::new(LogLevel::Info, n.to_string()));
        }
        let events = history.events(&Scope::Host, &id(1)).unwrap();
        assert_eq!((events.len(), events[0].message.as_str()), (MAX_EVENTS, "3"));
        for ts in 0..i64::try_from(MAX_SAMPLES).unwrap() + 2 {
            history.sampled(&id(1), Some(stats(ts)));
            history.sampled(&id(1), Some(stats(ts)));
        }
        let samples = history.samples(&id(1));
        assert_eq!((samples.len(), samples[0].ts), (MAX_SAMPLES, 2));
        assert_eq!((history.recent(&id(1), 2), history.recent(&id(2), 2)), (samples[MAX_SAMPLES - 2..].to_vec(), Vec::new()));
    }

    #[test]
    fn those_that_ended_are_remembered_for_a_while() {
        let history = History::default();
        for n in 0..=MAX_ENDED {
            history.close((&TeamId::first(), &id(n)), Event::new(LogLevel::Info, "ended"));
        }
        assert_eq!(history.events(&Scope::Host, &id(0)), None);
        let (own, other) = (Scope::Team(TeamId::first()), Scope::Team("b".parse().unwrap()));
        assert!(history.events(&own, &id(1)).is_some() && history.events(&other, &id(1)).is_none());
        // An answer that came too late is of nobody.
        history.sampled(&id(0), None);
        assert_eq!(history.events(&own, &id(0)), None);
        assert!(history.events(&Scope::Host, &id(1)).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_does_not_answer_is_left_alone_for_a_while() {
        let history = History::default();
        history.sampled(&id(1), None);
        assert!(history.is_quiet(&id(1)));
        tokio::time::advance(QUIET).await;
        assert!(!history.is_quiet(&id(1)));
        history.sampled(&id(2), None);
        history.sampled(&id(2), Some(stats(1)));
        assert!(!history.is_quiet(&id(2)));
    }
}
