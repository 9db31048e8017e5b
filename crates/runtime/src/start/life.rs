//! A sandbox's life in one machine, before it has begun: a create's, a fork's, or the next one of a sandbox that is paused.
//!
//! It is all of a sandbox's record but when it began to run and in what. So nothing has to be made up while it is restored, and
//! there is no record of it before there is a session to be named in it.

use std::time::Duration;

use jiff::Timestamp;

use crate::{
    artifact::SnapshotArtifactManifest,
    capacity::ResourceBudget,
    ground::{
        ids::{BuildId, LayerId, TemplateId},
        reference::TemplateName,
        team::TeamId,
    },
    machine::session::Session,
    start::PreparedTemplate,
    store::{
        Defaults, Guard, RecordedPhase, SandboxRecord,
        spec::{CreateSandbox, SandboxId},
    },
};

/// Who is about to run. Its fields are those of [`SandboxRecord`].
#[derive(Debug, Clone)]
pub(crate) struct Life {
    pub(crate) id: SandboxId,
    pub(crate) owner: TeamId,
    pub(crate) spec: CreateSandbox,
    pub(crate) template_id: TemplateId,
    pub(crate) build_id: Option<BuildId>,
    pub(crate) alias: Option<String>,
    pub(crate) budget: ResourceBudget,
    pub(crate) access_token: Option<String>,
    pub(crate) traffic_token: Option<String>,
    pub(crate) epoch: u64,
    /// The one before on record; none for a new sandbox.
    pub(crate) recorded: Option<Guard>,
    pub(crate) forked_from: Option<SandboxId>,
    pub(crate) defaults: Defaults,
    pub(crate) inherited: Option<Vec<LayerId>>,
    /// Its deadline.
    pub(crate) until: Until,
    /// Whether it is the sandbox's first: then its guest becomes another machine than its state was cut of.
    pub(crate) is_first: bool,
}

/// When a life ends.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Until {
    /// So long after it began.
    After(Duration),
    /// When an earlier one would have.
    At(Timestamp),
}

impl Life {
    /// Of a new sandbox, as its creator wants it.
    pub(crate) fn first(template: &PreparedTemplate, owner: TeamId, spec: CreateSandbox) -> Self {
        let PreparedTemplate { record, artifact, .. } = template;
        Self {
            id: SandboxId::generate(),
            owner,
            template_id: record.id.clone(),
            build_id: Some(record.build_id.clone()),
            alias: record.base_name().map(TemplateName::to_string),
            budget: artifact.manifest.budget,
            access_token: spec.secure.then(access_token),
            traffic_token: spec.ingress.private.then(access_token),
            epoch: artifact.manifest.epoch + 1,
            recorded: None,
            forked_from: None,
            defaults: record.setup.defaults.clone(),
            inherited: Some(artifact.manifest.disk.layers.clone()),
            until: Until::After(spec.timeout),
            is_first: true,
            spec,
        }
    }

    /// Of a new sandbox that is what `parent` was in `state`, with an id and tokens of its own.
    pub(crate) fn of_fork(parent: &SandboxRecord, state: &SnapshotArtifactManifest, timeout: Duration) -> Self {
        Self {
            id: SandboxId::generate(),
            spec: CreateSandbox { timeout, ..parent.spec.clone() },
            access_token: parent.access_token.as_ref().map(|_| access_token()),
            traffic_token: parent.traffic_token.as_ref().map(|_| access_token()),
            epoch: state.epoch + 1,
            recorded: None,
            forked_from: Some(parent.id.clone()),
            inherited: Some(state.disk.layers.clone()),
            until: Until::After(timeout),
            is_first: true,
            ..Self::present(parent)
        }
    }

    /// The one after that on record.
    pub(crate) fn next(record: &SandboxRecord, until: Until) -> Self {
        Self { epoch: record.epoch + 1, until, ..Self::present(record) }
    }

    /// The one on record, which was claimed before anything of it has begun.
    pub(crate) fn claimed(record: &SandboxRecord, until: Until) -> Self {
        Self { until, ..Self::present(record) }
    }

    /// Whether it was on record before it began.
    pub(crate) fn is_claimed(&self) -> bool {
        self.recorded.is_some_and(|guard| guard.epoch == self.epoch)
    }

    /// The one on record, for a guest that has it already.
    pub(crate) fn present(record: &SandboxRecord) -> Self {
        let record = record.clone();
        Self {
            recorded: Some(record.guard()),
            id: record.id,
            owner: record.owner,
            spec: record.spec,
            template_id: record.template_id,
            build_id: record.build_id,
            alias: record.alias,
            budget: record.budget,
            access_token: record.access_token,
            traffic_token: record.traffic_token,
            epoch: record.epoch,
            forked_from: record.forked_from,
            defaults: record.defaults,
            inherited: record.inherited,
            until: Until::At(record.end_at),
            is_first: false,
        }
    }

    /// Its record, now that it runs in `session`.
    pub(crate) fn begun_in(self, session: &Session) -> SandboxRecord {
        let started_at = Timestamp::now();
        SandboxRecord {
            id: self.id,
            owner: self.owner,
            spec: self.spec,
            template_id: self.template_id,
            build_id: self.build_id,
            alias: self.alias,
            budget: self.budget,
            started_at,
            end_at: match self.until {
                Until::After(timeout) => started_at.saturating_add(timeout).unwrap_or(Timestamp::MAX),
                Until::At(end_at) => end_at,
            },
            access_token: self.access_token,
            traffic_token: self.traffic_token,
            epoch: self.epoch,
            forked_from: self.forked_from,
            defaults: self.defaults,
            inherited: self.inherited,
            phase: RecordedPhase::Running {
                memory_base: session.memory_base.clone(),
                layers: session.disk.layers.clone(),
                overlay: session.disk.overlay.clone(),
                slot: session.link.index(),
                instance: Some(session.instance()),
                nonce: session.nonce(),
            },
        }
    }
}

fn access_token() -> String {
    crate::ground::random::hex::<32>()
}
