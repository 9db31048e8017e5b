//! What is written down while a schedule runs: what was heard of machines, what clients were answered, what was promised, what went wrong.
//!
//! All times are of one clock, that of the host, in nanoseconds since its start: every "host" of the bench is a part of the same.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A time, on [`firkin_warden::clock`].
pub(crate) type At = u64;

/// Now.
pub(crate) fn now() -> At {
    at(firkin_warden::clock::now())
}

/// As it is written down.
pub(crate) fn at(time: Duration) -> At {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// So much time, as a difference.
pub(crate) const fn seconds(count: u64) -> At {
    count * 1_000_000_000
}

/// Something that a machine said. It is true of the time `at`, however late it came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Heard {
    /// A time at which it ran.
    pub(crate) at: At,
    /// Which node's it is.
    pub(crate) node: usize,
    pub(crate) sandbox: String,
    pub(crate) epoch: u64,
    /// What it remembers: every epoch that its memory has been in, the template's first.
    pub(crate) life: Vec<u64>,
    /// Whether it could be claimed: it was paused before.
    pub(crate) can_be_claimed: bool,
    /// Counts what this machine has said.
    pub(crate) sequence: u64,
}

/// What a client asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ask {
    /// With so many seconds to live, and not to be paused.
    Create {
        timeout_s: u64,
    },
    Pause,
    Resume,
    Kill,
    /// To another node.
    Move {
        to: usize,
    },
    /// What became of it.
    Look,
    /// Something that is told from within it, whole or in part.
    Listen,
}

/// What it was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It is so.
    Done,
    /// It is not so, and nothing was done.
    Refused(u16, String),
    /// Nobody knows: there was no answer, or one that says so.
    Unknown(String),
}

/// One request with its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    /// Who was asked, whoever answered.
    pub(crate) node: usize,
    /// Empty for a create that was not answered.
    pub(crate) sandbox: String,
    pub(crate) ask: Ask,
    pub(crate) from: At,
    /// When the answer's head was there.
    pub(crate) to: At,
    pub(crate) answer: Answer,
    /// Which life answered, if it says so.
    pub(crate) epoch: Option<u64>,
}

/// A lease that a node was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Leased {
    pub(crate) at: At,
    pub(crate) until: At,
}

/// A stream through a server into a machine that was cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Severed {
    pub(crate) at: At,
    /// Through which node: not the one that has the machine, or that one.
    pub(crate) node: usize,
    pub(crate) sandbox: String,
    pub(crate) why: String,
}

/// A row of a sandbox that was written, or removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Written {
    /// When: before it was kept.
    pub(crate) at: At,
    pub(crate) sandbox: String,
    /// Whose it is then. Absent for a removal.
    pub(crate) row: Option<Row>,
}

/// What is on record of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) node: usize,
    pub(crate) term: u64,
    pub(crate) epoch: u64,
    pub(crate) is_paused: bool,
    /// So that others may have it.
    pub(crate) is_given_up: bool,
}

/// How a sandbox is found at the end, by its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    Running,
    Paused,
    Gone,
}

/// Everything of one schedule.
#[derive(Debug, Clone, Default)]
pub(crate) struct Record {
    /// In the order of their times.
    pub(crate) heard: Vec<Heard>,
    pub(crate) asked: Vec<Asked>,
    /// In the order in which it was kept.
    pub(crate) written: Vec<Written>,
    /// By node.
    pub(crate) leases: Vec<Vec<Leased>>,
    pub(crate) severed: Vec<Severed>,
    /// What was wrong from when to when.
    pub(crate) troubles: Vec<Trouble>,
    /// One for each node: it runs from the beginning, is left alone, and has a stream.
    pub(crate) anchors: Vec<String>,
    /// At the end, when nothing has been wrong for a while.
    pub(crate) found: Vec<(String, Found)>,
}

/// How often sandboxes came to another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Taken {
    /// By a move, or back after one.
    pub(crate) moved: usize,
    /// Because their node was lost.
    pub(crate) lost: usize,
}

impl Record {
    /// How often they did, as it was kept.
    pub(crate) fn taken(&self) -> Taken {
        let mut last = std::collections::BTreeMap::new();
        let mut taken = Taken { moved: 0, lost: 0 };
        for Written { sandbox, row, .. } in &self.written {
            let Some(row) = row else { continue };
            if let Some((node, was_given_up)) = last.insert(sandbox, (row.node, row.is_given_up))
                && node != row.node
            {
                *(if was_given_up { &mut taken.moved } else { &mut taken.lost }) += 1;
            }
        }
        taken
    }
}

/// Something that was wrong for a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trouble {
    pub(crate) fault: crate::schedule::Fault,
    pub(crate) from: At,
    /// When it was mended, and a server that had been killed answered again.
    pub(crate) to: At,
}
