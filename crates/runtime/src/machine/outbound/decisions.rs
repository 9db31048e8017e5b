//! What was decided of a sandbox's attempts to leave it: the last of them, in the server's log, and in numbers.
//!
//! The last are kept for whoever asks about this sandbox, and end with its machine. The numbers are of all sandboxes and by outcome only,
//! so that metrics know no sandbox.

use std::{
    collections::VecDeque,
    net::Ipv4Addr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use firkin_egress::{Attempt, AttemptKind, AuditReader, Decision, Told};
use jiff::Timestamp;
use tokio::time::Instant;

/// Decisions that are kept of one sandbox: a page of them, and less than half a MiB with the longest names.
const KEPT: usize = 1000;

/// Lines of the log that one sandbox's denials may make in a [`WINDOW`]: what a person reads. A guest can make as many as it likes.
const LINES: u32 = 30;
/// For so long at a time lines are counted.
const WINDOW: Duration = Duration::from_secs(60);

/// Every outcome, by its word: [`firkin_egress::Refusal::word`] has all but the first.
const OUTCOMES: [&str; 7] = ["allowed", "bounds", "rule", "name", "unnamed", "unresolved", "former"];

/// One decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decided {
    /// When.
    pub at: Timestamp,
    /// Whether it was a question to a resolver, and not a connection.
    pub question: bool,
    /// The name that was asked for or connected to, where there was one.
    pub name: Option<String>,
    /// The address that was connected to.
    pub address: Option<Ipv4Addr>,
    /// And the port.
    pub port: Option<u16>,
    /// `allowed`, or a word for why not.
    pub outcome: &'static str,
    /// By what it is allowed, or why it is not.
    pub reason: String,
}

/// How often each outcome was, of all sandboxes since the start.
#[derive(Debug, Default)]
pub(crate) struct Outcomes([AtomicU64; OUTCOMES.len()]);

impl Outcomes {
    fn count(&self, outcome: &str) {
        if let Some(at) = OUTCOMES.iter().position(|word| *word == outcome) {
            self.0[at].fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        OUTCOMES.into_iter().zip(&self.0).map(|(word, count)| (word, count.load(Ordering::Relaxed)))
    }
}

/// The last decisions of one sandbox.
#[derive(Debug, Default)]
pub(crate) struct Decisions(Mutex<VecDeque<Arc<Attempt>>>);

impl Decisions {
    /// Those that are kept, the oldest first.
    pub(crate) fn last(&self) -> Vec<Decided> {
        let kept: Vec<_> = self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect();
        kept.iter().map(|attempt| decided(attempt)).collect()
    }

    fn keep(&self, attempt: Arc<Attempt>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(attempt);
    }

    /// Takes down what is decided, until there is no more.
    pub(crate) async fn take_down(self: Arc<Self>, mut reader: AuditReader, sandbox: Arc<str>, outcomes: Arc<Outcomes>) {
        let mut lines = Lines { since: Instant::now(), written: 0, left_out: 0 };
        while let Some(told) = reader.next().await {
            match told {
                Told::Attempt(attempt) => {
                    outcomes.count(outcome(&attempt.decision));
                    log(&sandbox, &attempt, &mut lines);
                    self.keep(attempt);
                }
                Told::Missed(count) => tracing::warn!(%sandbox, count, "decisions on outbound traffic came too fast to be kept"),
            }
        }
    }
}

fn outcome(decision: &Decision) -> &'static str {
    match decision {
        Decision::Allowed(_) => "allowed",
        Decision::Denied(refusal) => refusal.word(),
    }
}

fn decided(attempt: &Attempt) -> Decided {
    Decided {
        at: Timestamp::try_from(attempt.at).unwrap_or(Timestamp::UNIX_EPOCH),
        question: attempt.kind == AttemptKind::Question,
        name: attempt.name.as_ref().map(ToString::to_string),
        address: attempt.address,
        port: attempt.port,
        outcome: outcome(&attempt.decision),
        reason: match &attempt.decision {
            Decision::Allowed(grant) => grant.to_string(),
            Decision::Denied(refusal) => firkin_causes::chain(refusal),
        },
    }
}

/// Lines of the log since a moment.
struct Lines {
    since: Instant,
    written: u32,
    left_out: u64,
}

impl Lines {
    /// Whether one more is written. Tells, later, of those that were not.
    fn more(&mut self, sandbox: &str) -> bool {
        if self.since.elapsed() >= WINDOW {
            if self.left_out > 0 {
                tracing::info!(%sandbox, count = self.left_out, "more outbound traffic was denied");
            }
            *self = Self { since: Instant::now(), written: 0, left_out: 0 };
        }
        let more = self.written < LINES;
        if more {
            self.written += 1;
        } else {
            self.left_out += 1;
        }
        more
    }
}

/// What is denied is worth a line to whoever runs the server; what is allowed, to whoever looks for something.
fn log(sandbox: &str, attempt: &Attempt, lines: &mut Lines) {
    let Decided { at: _, question, name, address, port, outcome, reason } = decided(attempt);
    let (name, address) = (name.unwrap_or_default(), address.map(|address| address.to_string()).unwrap_or_default());
    let port = port.unwrap_or_default();
    match attempt.decision {
        Decision::Allowed(_) => tracing::debug!(%sandbox, question, name, address, port, outcome, reason, "outbound traffic"),
        Decision::Denied(_) if lines.more(sandbox) => {
            tracing::info!(%sandbox, question, name, address, port, outcome, reason, "outbound traffic")
        }
        Decision::Denied(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use firkin_egress::{Audit, Grant, Refusal};

    use super::*;

    fn attempt(port: u16, decision: Decision) -> Attempt {
        let (kind, name) = (AttemptKind::Connection, Some("a.example".parse().unwrap()));
        Attempt { at: std::time::SystemTime::UNIX_EPOCH, kind, name, address: None, port: Some(port), decision }
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_does_not_fill_the_log() {
        let mut lines = Lines { since: Instant::now(), written: 0, left_out: 0 };
        let written = |lines: &mut Lines| (0..1000).filter(|_| lines.more("i1")).count();
        assert_eq!((written(&mut lines), lines.left_out), (30, 970));
        tokio::time::advance(WINDOW).await;
        assert_eq!((written(&mut lines), lines.left_out), (30, 970));
    }

    #[tokio::test]
    async fn the_last_decisions_are_kept_and_all_are_counted() {
        let (audit, decisions, outcomes) = (Audit::default(), Arc::new(Decisions::default()), Arc::new(Outcomes::default()));
        let reader = audit.read();
        let count = u16::try_from(KEPT).unwrap() + 3;
        for port in 0..count {
            audit.tell(attempt(port, Decision::Allowed(Grant::Undenied)));
        }
        audit.tell(attempt(9, Decision::Denied(Refusal::Name)));
        drop(audit);
        Arc::clone(&decisions).take_down(reader, "i1".into(), Arc::clone(&outcomes)).await;
        let last = decisions.last();
        assert_eq!((last.len(), last[0].port), (KEPT, Some(4)));
        let denied = last.last().unwrap();
        assert_eq!((denied.outcome, denied.reason.as_str()), ("name", "no rule allows this name"));
        assert_eq!(denied.name.as_deref(), Some("a.example"));
        let counts: Vec<_> = outcomes.counts().filter(|(_, count)| *count > 0).collect();
        assert_eq!(counts, [("allowed", u64::from(count)), ("name", 1)]);
    }
}
