//! The nodes of a cluster as people are shown them: what is on record of each, and what it last said of itself.

use std::time::Duration;

/// All nodes, as they were last heard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listed {
    /// Each of them, also those that are away or off.
    pub nodes: Vec<ListedNode>,
    /// How long ago that was heard.
    pub ago: Duration,
}

/// A node. Times are as of when it was heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedNode {
    /// What it is known by: any text, where another version gave it.
    pub id: String,
    /// Its name, for people.
    pub name: String,
    /// Its state in one word: what an operator has it do, or that it is away.
    pub state: &'static str,
    /// How long it has been in that.
    pub since: Duration,
    /// Why, by its operator's word. Empty where nobody said.
    pub reason: String,
    /// Whether it takes nothing new, by its operator's word.
    pub cordoned: bool,
    /// Whether an operator has said that it is off.
    pub forgotten: bool,
    /// What is left of its lease; nothing if it is over.
    pub lease_left: Duration,
    /// How long its lease has been over; nothing if it is not.
    pub lease_over: Duration,
    /// What it said last. None where that is not understood, or nothing yet.
    pub report: Option<Report>,
}

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Its program's version.
    pub version: String,
    /// Whether it answers requests: one that begins has a lease before that.
    pub serves: bool,
    /// What it runs sandboxes by, by the words for which that is asked.
    pub engines: Vec<String>,
    /// Sandboxes that run there.
    pub running: usize,
    /// Sandboxes that are paused there.
    pub paused: usize,
    /// Of these, those that no other node has a copy of.
    pub copies_owed: usize,
    /// Memory that sandboxes hold, and all that it offers them, MiB.
    pub memory_mib: Option<(u64, u64)>,
    /// How many builds it holds, of templates and snapshots.
    pub holds: Option<usize>,
}
