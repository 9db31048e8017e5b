//! Why a guest did not boot, or did not live long enough to be cut.

use firkin_engine::{Exit, MachineError};

use super::{AgentError, LaunchError, PublishError};
use crate::network::SlotError;

/// Why no guest was booted and cut. Nothing of it is left behind.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// No network slot is left.
    #[error("no network slot to boot with")]
    Network(#[source] SlotError),
    /// The guest did not come up, after every attempt.
    #[error("the guest did not come up in {attempts} attempts")]
    Up {
        /// How many boots were tried.
        attempts: u32,
        /// The last failure.
        #[source]
        source: LaunchError,
    },
    /// The guest ended while it worked.
    #[error("{0}")]
    Died(Obituary),
    /// The guest did not get ready to be cut.
    #[error("the guest did not get ready to be cut")]
    Shrink(#[source] AgentError),
    /// The machine could not be cut.
    #[error("the booted machine could not be cut")]
    Machine(#[source] MachineError),
    /// The artifact could not be written.
    #[error("what was booted could not be published")]
    Publish(#[source] PublishError),
}

/// How a guest that was booted ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obituary {
    /// How its machine ended.
    pub exit: Exit,
    /// The last of its console, if it said anything.
    pub console: String,
}

impl std::fmt::Display for Obituary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the machine ended before it could be cut: {}", self.exit)?;
        if self.console.is_empty() { Ok(()) } else { write!(f, "; its console ended with:\n{}", self.console) }
    }
}
