//! What was decided of one attempt to reach something, and by what.
//!
//! A reason is data: the audit counts and filters it, and whoever was refused is told its text.

use std::fmt;

use ipnet::Ipv4Net;

use crate::{rule::Rule, sniff::Unnamed};

/// What becomes of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It goes through.
    Allowed(Grant),
    /// It does not.
    Denied(Refusal),
}

/// By what something is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Grant {
    /// A rule that allows it.
    Rule(Rule),
    /// No rule denies it.
    Undenied,
}

/// Why something is not allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// In a network that no rule opens.
    #[error("in `{0}`, which no rule opens")]
    Bounds(Ipv4Net),
    /// A rule denies it.
    #[error("denied by the rule `{0}`")]
    Rule(Rule),
    /// Everything is denied, and no rule allows this name.
    #[error("no rule allows this name")]
    Name,
    /// Names decide, and none could be known.
    #[error("no rule allows this address, and the name is not known")]
    Unnamed(#[source] Unnamed),
    /// The name is allowed and leads nowhere.
    #[error("this name leads to no address")]
    Unresolved,
    /// It was made through a way out that another has taken the place of.
    #[error("made through a former way out")]
    Former,
}

impl Refusal {
    /// One word for each reason, for metrics and machines.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Bounds(_) => "bounds",
            Self::Rule(_) => "rule",
            Self::Name => "name",
            Self::Unnamed(_) => "unnamed",
            Self::Unresolved => "unresolved",
            Self::Former => "former",
        }
    }
}

impl From<Result<Grant, Refusal>> for Decision {
    fn from(result: Result<Grant, Refusal>) -> Self {
        result.map_or_else(Self::Denied, Self::Allowed)
    }
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule(rule) => write!(f, "allowed by the rule `{rule}`"),
            Self::Undenied => f.write_str("denied by no rule"),
        }
    }
}
