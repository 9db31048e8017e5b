//! What a server holds while it has a catalogue open: all of it, or what is its node's. In the words of the database: its lock, what it looks at
//! when it begins to write, and what it leaves there.

use std::{fmt, str::FromStr};

/// The lock of who serves: alone, or together with other nodes. The number has no meaning but to be ours.
const SERVER: i64 = 0x0066_6972_6b69_6e02;

/// The state of a node that an operator has said is off. Its row gives no term then.
pub(crate) const FORGOTTEN: &str = "forgotten";

/// And of one that is to be emptied.
pub(crate) const DRAINING: &str = "draining";

/// Characters of a node's id.
const ID: usize = 20;

/// What a node is known by for as long as its state directory lives.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(String);

/// A text that is not a node's id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the id of a node: it has {ID} lower-case letters and digits")]
pub struct InvalidNodeId(String);

impl NodeId {
    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for NodeId {
    type Err = InvalidNodeId;

    fn from_str(text: &str) -> Result<Self, InvalidNodeId> {
        let is_one = text.len() == ID && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        if is_one { Ok(Self(text.to_owned())) } else { Err(InvalidNodeId(text.chars().take(ID + 1).collect())) }
    }
}

/// What is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Holding {
    /// The catalogue: nobody else has it.
    Whole,
    /// What is a node's.
    Node(NodeId),
}

impl Holding {
    /// A question that takes the lock of its session, if it is free.
    pub(crate) fn lock(&self) -> String {
        match self {
            Self::Whole => format!("SELECT pg_try_advisory_lock({SERVER})"),
            Self::Node(id) => format!(
                "SELECT pg_try_advisory_lock_shared({SERVER}) AND pg_try_advisory_lock(hashtextextended('firkin node {id}', 0))"
            ),
        }
    }

    /// What it is held in: the term, the number of the last write, and for a node whether its lease goes on.
    pub(crate) fn standing(&self) -> String {
        match self {
            Self::Whole => "SELECT term, last_write FROM firkin.catalogue".to_owned(),
            Self::Node(id) => format!(
                "SELECT term, last_write, lease_until > clock_timestamp() FROM firkin.nodes
                 WHERE id = '{id}' AND state <> '{FORGOTTEN}'"
            ),
        }
    }

    /// Leaves the number of a write.
    pub(crate) fn note(&self, number: i64) -> String {
        match self {
            Self::Whole => format!("UPDATE firkin.catalogue SET last_write = {number}"),
            Self::Node(id) => format!("UPDATE firkin.nodes SET last_write = {number} WHERE id = '{id}'"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_of_a_node_is_twenty_letters_and_digits_and_nothing_that_a_statement_could_mistake() {
        assert_eq!("a1b2c3d4e5f6g7h8i9j0".parse::<NodeId>().unwrap().as_str(), "a1b2c3d4e5f6g7h8i9j0");
        for text in ["", "a", "a1b2c3d4e5f6g7h8i9j", "a1b2c3d4e5f6g7h8i9j00", "A1b2c3d4e5f6g7h8i9j0", "a1b2c3d4e5f6g7h8i9j'"] {
            assert!(text.parse::<NodeId>().is_err(), "{text}");
        }
    }
}
