//! The rules of writing, as the catalogue has them, with what can be left out of them.

use std::collections::{HashMap, HashSet};

/// Milliseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    pub(crate) lasts: u64,
    pub(crate) renew_every: u64,
    pub(crate) stop_after: u64,
    pub(crate) grace: u64,
}

/// What holds in a run. The model has all; each mutant lacks one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    pub(crate) times: Times,
    pub(crate) has_warden: bool,
    pub(crate) compares_epochs: bool,
    /// A guest begins first, and its life is claimed then.
    pub(crate) records_after: bool,
    /// Whether a lease had ended is known only from the answer that says so, which may be lost.
    pub(crate) forgets_gaps: bool,
}

impl Rules {
    pub(crate) fn all(times: firkin_postgres::LeaseTimes) -> Self {
        let ms = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap();
        let times = Times {
            lasts: ms(times.lasts),
            renew_every: ms(times.renew_every),
            stop_after: ms(times.stop_after),
            grace: ms(times.grace),
        };
        Self { times, has_warden: true, compares_epochs: true, records_after: false, forgets_gaps: false }
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    pub(crate) sandbox: usize,
    pub(crate) node: usize,
    pub(crate) term: u64,
    pub(crate) epoch: u64,
    /// The last state that is durable; also while it runs.
    pub(crate) held: u64,
    pub(crate) is_running: bool,
    given_up: Option<u64>,
}

impl Row {
    pub(crate) fn paused(sandbox: usize) -> Self {
        Self { sandbox, node: sandbox, term: 0, epoch: 1, held: 0, is_running: false, given_up: None }
    }
}

#[derive(Debug, Clone)]
pub(crate) enum Ask {
    Join,
    Renew {
        term: u64,
    },
    /// What is the node's own.
    Rows {
        gap: u64,
        term: u64,
    },
    Find {
        sandbox: usize,
    },
    /// With what was read of it.
    Claim {
        sandbox: usize,
        epoch: u64,
        state: u64,
        term: u64,
    },
    /// The next life of one's own.
    Resume {
        sandbox: usize,
        epoch: u64,
        state: u64,
        term: u64,
    },
    Run {
        sandbox: usize,
        epoch: u64,
        term: u64,
    },
    Pause {
        sandbox: usize,
        epoch: u64,
        term: u64,
        state: u64,
    },
    GiveUp {
        sandbox: usize,
        epoch: u64,
        term: u64,
    },
}

impl Ask {
    /// The sandbox whose owner waits for it.
    pub(crate) fn sandbox(&self) -> Option<usize> {
        match self {
            Self::Find { sandbox }
            | Self::Claim { sandbox, .. }
            | Self::Resume { sandbox, .. }
            | Self::Pause { sandbox, .. }
            | Self::GiveUp { sandbox, .. } => Some(*sandbox),
            Self::Join | Self::Renew { .. } | Self::Rows { .. } | Self::Run { .. } => None,
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) enum Told {
    Rows {
        rows: Vec<Row>,
        term: u64,
    },
    Lease {
        had_ended: bool,
    },
    Found {
        row: Row,
        is_claimable: bool,
    },
    Life {
        epoch: u64,
        state: u64,
    },
    Done,
    /// It is not in that state any more.
    No,
    /// The lease is over: nothing is written.
    Away,
}

#[derive(Debug)]
pub(crate) struct Database {
    /// Terms, and when leases end.
    pub(crate) nodes: Vec<(u64, u64)>,
    pub(crate) rows: Vec<Row>,
}

impl Database {
    /// One statement of a node, at a time.
    pub(crate) fn answer(&mut self, (node, now): (usize, u64), ask: &Ask, rules: &Rules) -> Told {
        let is_now = |nodes: &[(u64, u64)], term: u64| term == nodes[node].0;
        match *ask {
            Ask::Join => {
                let term = self.nodes[node].0 + 1;
                self.nodes[node] = (term, now + rules.times.lasts);
                let mut own = Vec::new();
                for row in self.rows.iter_mut().filter(|row| row.node == node) {
                    row.term = term;
                    own.push(*row);
                }
                Told::Rows { rows: own, term }
            }
            Ask::Renew { term } if is_now(&self.nodes, term) => {
                let had_ended = self.nodes[node].1 <= now;
                self.nodes[node].1 = now + rules.times.lasts;
                Told::Lease { had_ended }
            }
            Ask::Rows { term, .. } if is_now(&self.nodes, term) => {
                let own = self.rows.iter().filter(|row| row.node == node).copied().collect();
                Told::Rows { rows: own, term }
            }
            Ask::Find { sandbox } => {
                let row = self.rows[sandbox];
                Told::Found { row, is_claimable: self.is_claimable(&row, row.epoch, (now, rules)) }
            }
            Ask::Claim { term, .. }
            | Ask::Resume { term, .. }
            | Ask::Run { term, .. }
            | Ask::Pause { term, .. }
            | Ask::GiveUp { term, .. }
                if is_now(&self.nodes, term) =>
            {
                if self.nodes[node].1 <= now {
                    Told::Away
                } else {
                    self.write((node, now), ask, rules)
                }
            }
            _ => Told::No,
        }
    }

    fn is_claimable(&self, row: &Row, read: u64, (now, rules): (u64, &Rules)) -> bool {
        let given_up = row.given_up.is_some_and(|epoch| epoch == read || !rules.compares_epochs) && !row.is_running;
        given_up || self.nodes[row.node].1 + rules.times.grace < now
    }

    fn write(&mut self, (node, now): (usize, u64), ask: &Ask, rules: &Rules) -> Told {
        let own_term = self.nodes[node].0;
        let Some(sandbox) = ask.sandbox().or(match ask {
            Ask::Run { sandbox, .. } => Some(*sandbox),
            _ => None,
        }) else {
            return Told::No;
        };
        let row = self.rows[sandbox];
        let is_in = |epoch: u64| row.epoch == epoch || !rules.compares_epochs;
        let is_own = row.node == node && row.term == own_term;
        // A life begins with what holds the sandbox when it is claimed: its home may have paused it since it was looked for.
        let held = |read: u64| if rules.compares_epochs { row.held } else { read };
        let (change, told) = match *ask {
            Ask::Claim { epoch, state, .. } if is_in(epoch) && self.is_claimable(&row, epoch, (now, rules)) => {
                let next =
                    Row { node, term: own_term, epoch: epoch + 1, held: held(state), is_running: false, given_up: None, ..row };
                (next, Told::Life { epoch: next.epoch, state: next.held })
            }
            Ask::Resume { epoch, state, .. } if is_own && is_in(epoch) => {
                let next = Row { epoch: epoch + 1, held: held(state), is_running: false, ..row };
                (next, Told::Life { epoch: next.epoch, state: next.held })
            }
            Ask::Run { epoch, .. } if is_own && is_in(epoch) => (Row { is_running: true, ..row }, Told::Done),
            Ask::Pause { epoch, state, .. } if is_own && is_in(epoch) => {
                (Row { is_running: false, held: state, ..row }, Told::Done)
            }
            Ask::GiveUp { epoch, .. } if is_own && is_in(epoch) && !row.is_running => {
                (Row { given_up: Some(epoch), ..row }, Told::Done)
            }
            _ => return Told::No,
        };
        self.rows[sandbox] = change;
        told
    }
}

/// A machine, which runs or is stopped.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) epoch: u64,
    pub(crate) is_stopped: bool,
    /// The state that is to be durable.
    pub(crate) pausing: Option<u64>,
}

/// A node: its server, what it knows, and what outlives it.
#[derive(Debug, Default)]
pub(crate) struct Node {
    pub(crate) is_up: bool,
    pub(crate) life: u64,
    /// 0 before it has joined.
    pub(crate) term: u64,
    pub(crate) waits_for: HashMap<u64, (Ask, u64)>,
    /// Sandboxes whose owners wait for something.
    pub(crate) busy: HashSet<usize>,
    /// How often a lease had ended before it was renewed, and at which of these what is on record was looked at.
    pub(crate) gap: u64,
    pub(crate) looked: u64,
    /// On the page that the warden reads.
    pub(crate) stop_at: u64,
    pub(crate) machines: HashMap<usize, Machine>,
}
