//! What a sandbox shows without being asked: published by its owner, read by anybody, waited for by nobody.

use std::sync::Arc;

use tokio::sync::{Mutex, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{Command, Phase};
use crate::{
    ground::team::TeamId,
    machine::network::Connector,
    store::{
        RecordedPhase, SandboxRecord,
        spec::{Memory, RuntimeSandbox, SandboxState},
    },
};

/// How others reach the owner.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    /// Whose the sandbox is, for good.
    pub(crate) team: TeamId,
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) view: watch::Receiver<View>,
    /// Held by who takes a snapshot of it, until that is on record.
    pub(crate) snapshots: Arc<Mutex<()>>,
}

impl Handle {
    pub(crate) fn is_running(&self) -> bool {
        self.view.borrow().sandbox.state == SandboxState::Running
    }
}

/// What a sandbox shows.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(crate) sandbox: RuntimeSandbox,
    pub(crate) access: Access,
    pub(crate) epoch: u64,
    /// The name of its machine's directory.
    pub(crate) instance: String,
}

impl View {
    pub(crate) fn seen(&self) -> Seen {
        let state = match self.access {
            Access::Running(_) => SeenState::Running,
            Access::Pausing => SeenState::Changing,
            Access::Paused => SeenState::Paused,
        };
        Seen { epoch: self.epoch, state }
    }
}

/// What whoever asks for a change could know of the sandbox at that moment. Of several who ask for the same change at once, one
/// has it made and the others get the same answer; who asks after it was made is told that there is nothing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(super) epoch: u64,
    pub(super) state: SeenState,
}

/// How a sandbox looked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SeenState {
    Running,
    Changing,
    Paused,
}

/// Whether its ports can be reached.
#[derive(Debug, Clone)]
pub(crate) enum Access {
    Running(Reach),
    /// It is being paused, or rolled back: what comes now waits for the outcome.
    Pausing,
    Paused,
}

/// How the ports of a running sandbox are reached.
#[derive(Debug, Clone)]
pub(crate) struct Reach {
    pub(crate) connector: Connector,
    /// Cancelled when this life of the sandbox ends.
    pub(crate) ended: CancellationToken,
    /// Cancelled when it begins to pause: nothing new may be sent over a connection from before.
    pub(crate) leaving: CancellationToken,
    pub(crate) generation: u64,
}

/// The view of a record in a phase, or of one that is `changing` from one life to the next. What is gone shows nothing.
pub(super) fn view(record: &SandboxRecord, phase: &Phase, changing: bool) -> Option<View> {
    let access = match phase {
        Phase::Gone => return None,
        _ if changing => Access::Pausing,
        Phase::Paused(_) => Access::Paused,
        Phase::Running(running) if running.leaving.is_cancelled() => Access::Pausing,
        Phase::Running(running) => Access::Running(Reach {
            connector: running.session.link.connector(),
            ended: running.ended.clone(),
            leaving: running.leaving.clone(),
            generation: record.epoch,
        }),
    };
    let mut sandbox = show(record);
    if let Access::Pausing = access {
        sandbox.state = SandboxState::Paused;
    }
    Some(View { sandbox, access, epoch: record.epoch, instance: record.instance().to_owned() })
}

pub(crate) fn show(record: &SandboxRecord) -> RuntimeSandbox {
    RuntimeSandbox {
        id: record.id.clone(),
        owner: record.owner.clone(),
        template_id: record.template_id.to_string(),
        build_id: record.build_id.as_ref().map(ToString::to_string),
        alias: record.alias.clone(),
        state: match record.phase {
            RecordedPhase::Running { .. } => SandboxState::Running,
            RecordedPhase::Paused(_) => SandboxState::Paused,
        },
        memory: match &record.phase {
            RecordedPhase::Running { .. } => Memory::Kept,
            RecordedPhase::Paused(held) => held.memory,
        },
        // Such a machine got its name before there was a sandbox.
        claimed: record.instance() != record.id.as_str(),
        started_at: record.started_at,
        end_at: record.end_at,
        budget: record.budget,
        envd_access_token: record.access_token.clone(),
        traffic_access_token: record.traffic_token.clone(),
        spec: record.spec.clone(),
    }
}
