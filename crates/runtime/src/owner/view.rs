//! What a sandbox shows without being asked: published by its owner, read by anybody, waited for by nobody.

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{Command, Phase};
use crate::{
    link::Connector,
    sandbox::{Memory, RuntimeSandbox, SandboxState},
    store::{RecordedPhase, SandboxRecord},
};

/// How others reach the owner.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) view: watch::Receiver<View>,
}

/// What a sandbox shows.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(crate) sandbox: RuntimeSandbox,
    pub(crate) access: Access,
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

/// The view of a record in a phase, or of one that is `changing` from one life to the next.
pub(super) fn view(record: &SandboxRecord, phase: &Phase, changing: bool) -> View {
    let access = match phase {
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
    View { sandbox, access }
}

pub(crate) fn show(record: &SandboxRecord) -> RuntimeSandbox {
    RuntimeSandbox {
        id: record.id.clone(),
        template_id: record.template_id.clone(),
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
