//! Outbound network that changes while the sandbox runs.

use std::net::Ipv4Addr;

use firkin_wire::rest::LogLevel;

use super::{Owner, Phase, gone};
use crate::{
    machine::{
        network::{LinkError, Reaching},
        outbound::{Decided, OutboundError},
    },
    sandbox::trust::GuestTrustError,
    store::{
        StoreError,
        spec::{InternetAccess, NoSuchSandbox, SandboxId},
    },
    telemetry::{changes::SandboxEvent, history::Event},
};

/// Why a sandbox's network was not changed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// No such sandbox.
    #[error(transparent)]
    NotFound(#[from] NoSuchSandbox),
    /// It is paused.
    #[error("cannot change the network of sandbox `{0}`: it does not run; resume it first")]
    NotRunning(SandboxId),
    /// The new rules are recorded, but may not be in force. Asking again is safe.
    #[error("cannot change the network of sandbox `{id}`")]
    Apply {
        /// The sandbox.
        id: SandboxId,
        /// Why.
        #[source]
        source: LinkError,
    },
    /// It does not trust the authority that the rules need, and nothing was changed.
    #[error(transparent)]
    Trust(#[from] GuestTrustError),
    /// It cannot be kept, and nothing was changed.
    #[error(transparent)]
    Refused(#[from] OutboundError),
    /// The change could not be recorded, and was not made.
    #[error("cannot record the change of a sandbox's network")]
    Store(#[source] StoreError),
}

impl Owner {
    /// What was decided last of what it tried to reach, in the machine that it has.
    pub(super) fn decisions(&self) -> Vec<Decided> {
        match &self.phase {
            Phase::Running(running) => running.session.link.decisions(),
            Phase::Paused(_) | Phase::Gone => Vec::new(),
        }
    }

    /// Records the new rules, then puts them in force: a resume never has looser ones than its caller was told.
    pub(super) async fn set_internet(
        &mut self,
        internet: InternetAccess,
        dns_servers: Option<Vec<Ipv4Addr>>,
    ) -> Result<(), NetworkError> {
        let internet = internet.of_team(self.record.owner.clone(), &self.record.spec.tokens);
        let running = match &mut self.phase {
            Phase::Running(running) => running,
            Phase::Paused(_) => return Err(NetworkError::NotRunning(self.record.id.clone())),
            Phase::Gone => return Err(gone(&self.record.id).into()),
        };
        self.shared.links.check(&internet).await?;
        let mut record = self.record.clone();
        record.spec.internet = internet;
        record.spec.dns_servers = dns_servers;
        self.shared.store.update_sandbox(record.clone(), self.record.guard()).await.map_err(NetworkError::Store)?;
        self.record = record;
        let id = &self.record.id;
        let reaching = Reaching { internet: &self.record.spec.internet, sandbox: id.as_str() };
        let applied = running.session.link.set_internet(reaching).await;
        let applied = applied.map_err(|source| NetworkError::Apply { id: id.clone(), source });
        self.publish_view();
        if applied.is_ok() {
            self.note(Event::new(LogLevel::Info, "outbound network changed"));
            self.tell(SandboxEvent::NetworkChanged, None);
        }
        applied
    }
}
