//! Requirements of this host, and how to meet them.
//!
//! ```text
//!   check() ──► Vec<Check> ──► plan() ──► Vec<Action> ──► (shown, agreed to) ──► apply() ──► check() again
//! ```
//!
//! Checks change nothing. A plan is a list of sentences that a person can agree to, and only packages and package sources are
//! ever in it: what else is missing (root, memory, a kernel) has a remedy in words. Packages come from the Debian mirror that
//! this machine already uses.

mod checks;
mod choice;
mod finding;
mod guests;
pub(crate) mod gvisor;
pub(crate) mod jail;
mod packages;
mod pvm;
mod setup;

pub(crate) use checks::{Places, check, upkeep};
#[cfg(test)]
pub(crate) use finding::which;
pub(crate) use finding::{Check, Status};
pub(crate) use setup::{Action, apply, plan};

/// The guest agent's executable, the `/init` of every guest.
pub(crate) fn agent() -> &'static [u8] {
    firkin_agent::GUEST_AGENT
}
