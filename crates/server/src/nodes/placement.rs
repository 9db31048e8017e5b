//! Where a new sandbox may be made, and why not elsewhere: as it is decided, told to people, and written into the head of an answer.

use std::fmt::{self, Write as _};

use super::NodeId;

/// Nodes that a head names beside the one that made it, of which there may be hundreds.
const MOST_NAMED: usize = 8;

/// What a node has of that from which a sandbox starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holding {
    /// It has it.
    Holds,
    /// It does not say what it has.
    Unsaid,
    /// It has it not, and gets it from another one.
    Fetches,
}

impl fmt::Display for Holding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Holds => "holds the template",
            Self::Unsaid => "may hold the template",
            Self::Fetches => "gets the template from another node",
        })
    }
}

/// A node that may have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The node.
    pub node: NodeId,
    /// Its name, for people.
    pub name: String,
    /// What it has of it.
    pub holding: Holding,
    /// Memory that it has for new sandboxes, MiB, if that is known.
    pub free_memory_mib: Option<u64>,
}

/// Why a node is not asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PassedOver {
    /// It does not hold its lease.
    Away,
    /// It takes nothing new, by its operator's word.
    Cordoned,
    /// It does not serve yet, or does not say what room it has.
    Begins,
    /// It has not the engine.
    OtherEngine {
        /// What it has.
        has: Vec<String>,
        /// What is wanted.
        wants: String,
    },
    /// It is full.
    TooLittleMemory {
        /// What it has, MiB.
        free_mib: u64,
        /// What is wanted, MiB.
        wanted_mib: u64,
    },
    /// Most that it was asked to make lately it could not make.
    Fails {
        /// How many.
        failed: usize,
        /// Of so many.
        asked: usize,
    },
    /// It could have it, and others come before it: those of the better kind, and of its own kind those that were drawn.
    AfterOthers(Holding),
    /// The key of the request leads to another node, and to no other.
    KeyOfAnother,
}

impl fmt::Display for PassedOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Away => f.write_str("away"),
            Self::Cordoned => f.write_str("cordoned"),
            Self::Begins => f.write_str("does not serve yet"),
            Self::OtherEngine { has, wants } => write!(f, "runs by {}, not {wants}", has.join(" and ")),
            Self::Fails { failed, asked } => write!(f, "{failed} of the last {asked} creates failed there"),
            Self::TooLittleMemory { free_mib, wanted_mib } => write!(f, "{free_mib} MiB of memory free, {wanted_mib} wanted"),
            Self::AfterOthers(holding) => write!(f, "has room and {holding}, after the others"),
            Self::KeyOfAnother => f.write_str("the request's key leads to another node"),
        }
    }
}

/// What was decided of all nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Placement {
    /// Those that are asked, in this order. Each has the last word.
    pub asked: Vec<Place>,
    /// The others, by name, with why.
    pub passed_over: Vec<(String, PassedOver)>,
}

impl Placement {
    /// What came of it, in a line for the head of an answer: who made it, who said no before, and who was not asked. Names of nodes are visible ASCII.
    pub(crate) fn line(&self, made: &Place, refused: &[String]) -> String {
        let refused = refused.iter().map(|name| (name.clone(), "had no room, or did not answer".to_owned()));
        let mut line = format!("{}: {}", made.name, made.holding);
        let others = named(refused.chain(self.passed_over()));
        if !others.is_empty() {
            line += "; passed over: ";
            line += &others;
        }
        line
    }

    /// The nodes that are not asked, by name, with why.
    pub(crate) fn passed_over(&self) -> impl Iterator<Item = (String, String)> {
        self.passed_over.iter().map(|(name, why)| (name.clone(), why.to_string()))
    }
}

/// Nodes with what is said of each, the first of them by name.
pub(crate) fn named(nodes: impl Iterator<Item = (String, String)>) -> String {
    let mut said: Vec<String> = nodes.map(|(name, why)| format!("{name} ({why})")).collect();
    let more = said.len().saturating_sub(MOST_NAMED);
    said.truncate(MOST_NAMED);
    let mut line = said.join(", ");
    if more > 0 {
        // A string takes everything.
        write!(line, ", and {more} more").ok();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_who_and_why_not_the_others_and_has_an_end() {
        let place = |name: &str, holding| Place {
            node: "a".repeat(20).parse().unwrap(),
            name: name.to_owned(),
            holding,
            free_memory_mib: Some(1),
        };
        let mut placement = Placement { asked: vec![place("n1", Holding::Holds)], passed_over: Vec::new() };
        assert_eq!(placement.line(&placement.asked[0], &[]), "n1: holds the template");
        placement.passed_over = vec![
            ("n2".to_owned(), PassedOver::Away),
            ("n3".to_owned(), PassedOver::OtherEngine { has: vec!["kvm".to_owned()], wants: "gvisor".to_owned() }),
            ("n4".to_owned(), PassedOver::TooLittleMemory { free_mib: 3, wanted_mib: 512 }),
        ];
        assert_eq!(
            placement.line(&place("n1", Holding::Fetches), &["n0".to_owned()]),
            "n1: gets the template from another node; passed over: n0 (had no room, or did not answer), n2 (away), \
             n3 (runs by kvm, not gvisor), n4 (3 MiB of memory free, 512 wanted)"
        );
        placement.passed_over = (0..500).map(|n| (format!("{n:063}"), PassedOver::Cordoned)).collect();
        let line = placement.line(&placement.asked[0], &[]);
        assert!(line.ends_with(", and 492 more") && line.len() < 1024, "{}", line.len());
    }
}
