//! The seam between policy and engine: what a launcher is given, what it promises, and why a machine does not come up.

use std::{path::PathBuf, time::Duration};

use async_trait::async_trait;
use firkin_cgroup::GroupError;
use firkin_engine::{Acceleration, DiskError, Exit, MachineError, StartError};
use firkin_network::SlotError;
use firkin_wire::control;

use crate::{
    artifact::{Artifact, PublishError, UnsealError},
    capacity::ResourceBudget,
    machine::{agent::AgentError, fence::FenceError, network::LinkError, outbound::OutboundError},
    store::spec::InternetAccess,
};

/// What a launcher is given.
#[derive(Debug)]
pub struct SnapshotRestoreRequest {
    /// What to restore. Its integrity has been proven.
    pub artifact: Artifact,
    /// What the session may use.
    pub budget: ResourceBudget,
    /// Who the guest becomes.
    pub identity: control::Identity,
    /// Its outbound network.
    pub internet: InternetAccess,
    /// Whether others could have the sandbox while nobody knows that it runs: its machine is then listed before it begins.
    pub can_be_claimed: bool,
}

/// The seam between policy and engine, for those who [restore](crate::restore::restore) into sessions of their own: a program that
/// embeds the restore path, as `examples/own_parts.rs`, and the tests of the path. The runtime's own sandboxes are sessions of its
/// engine, whose launches the pool begins before there is a request.
#[async_trait]
pub trait SnapshotSessionLauncher: Send + Sync {
    /// A running session.
    type Session: Send;

    /// Restores one request into a session whose guest has become `request.identity`.
    ///
    /// Cancel-safe: a future that is dropped, or that fails, leaves no process, network slot or file.
    async fn launch(&self, request: &SnapshotRestoreRequest) -> Result<(Self::Session, LaunchTimings), LaunchError>;
}

/// How long the phases of a launch took, measured by the launcher.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LaunchTimings {
    /// Network slot, instance directory, disk overlay.
    pub staging: Duration,
    /// The engine's restore and resume.
    pub vm_restore: Duration,
    /// Control channel: from resume until the agent answered for the first time.
    pub first_answer: Duration,
    /// Control channel: from resume until the guest has its new identity.
    pub agent_connect: Duration,
}

/// Which step of a launch failed.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// No network slot. Nothing was launched.
    #[error("no network slot")]
    Network(#[source] SlotError),
    /// What it may reach cannot be kept to. Nothing was launched.
    #[error("the sandbox's outbound rules cannot be kept")]
    Outbound(#[source] OutboundError),
    /// The record that was to be taken over is of no running session.
    #[error("the sandbox is not recorded as running")]
    NotRecorded,
    /// A file of the session could not be made.
    #[error("cannot stage `{}`", path.display())]
    Stage {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The machine could not be held to its limits.
    #[error("cannot limit what the sandbox uses of the host")]
    Group(#[source] GroupError),
    /// What was to be restored is sealed, and could not be opened.
    #[error("cannot open what the sandbox left")]
    Sealed(#[source] UnsealError),
    /// What was to be restored has no memory.
    #[error("the snapshot artifact has no memory")]
    NoMemory,
    /// The session's root disk could not be made or taken over.
    #[error("cannot make the sandbox's disk")]
    Disk(#[source] DiskError),
    /// The engine did not start the machine.
    #[error("the machine did not start")]
    Start(#[source] StartError),
    /// The machine failed after it was started.
    #[error("the machine failed after its start")]
    Machine(#[source] MachineError),
    /// Others may have the sandbox by now. Its guest has not begun.
    #[error("the machine may not begin")]
    Fence(#[source] FenceError),
    /// The booted guest did not come up.
    #[error("the guest did not come up; its console ended with:\n{console}")]
    Silent {
        /// The last of its console.
        console: String,
        /// What was seen of it.
        #[source]
        source: Box<LaunchError>,
    },
    /// The guest agent did not become this sandbox.
    #[error("the guest agent did not answer properly")]
    Agent(#[source] AgentError),
}

impl From<LinkError> for LaunchError {
    fn from(error: LinkError) -> Self {
        match error {
            LinkError::Slot(source) => Self::Network(source),
            LinkError::Outbound(source) => Self::Outbound(source),
        }
    }
}

/// What was asked for is a disk without the memory of its guest, and this engine keeps what guests write in their memory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("sandboxes on {acceleration} have their files in their memory, which can only be kept: ask for it with its memory")]
pub struct FilesInMemory {
    /// How the engine executes guests.
    pub acceleration: Acceleration,
}

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
