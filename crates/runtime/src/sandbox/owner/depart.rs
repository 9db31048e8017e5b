//! A sandbox leaves for another host: it is paused, others are let have it, and its owner holds it until one has it or nobody wants it.
//!
//! ```text
//!   running ─pause─► paused ─give up─► somebody is asked ─► claimed there: let go of, nothing of the record is touched
//!                                           └─ refused ─► claimed back, and goes on until its old deadline
//! ```
//!
//! Whoever comes meanwhile waits, as for a pause.

use std::{
    error::Error,
    fmt,
    time::{Duration, Instant},
};

use firkin_causes::chain;
use firkin_wire::rest::LogLevel;
use futures::future::BoxFuture;
use jiff::Timestamp;

use super::{KillError, Next, Owner, Phase, Reply, ResumeError, SnapshotError, gone};
use crate::{
    artifact::{CutReason, Secrecy},
    ground::ids::ArtifactId,
    sandbox::trust::is_filled,
    shared::Shared,
    start::life::Until,
    store::{
        RecordedPhase, SandboxRecord, StoreError,
        claims::ClaimRefused,
        spec::{CreateSandbox, Memory, NoSuchSandbox, RuntimeSandbox, SandboxId},
    },
    telemetry::history::Event,
};

/// Why it ended here, for those who ask its history.
pub(super) const MOVED: &str = "it went to another host";

/// How long is waited for another host that has it to give it back, or for somebody to take what was given up.
const PATIENCE: Duration = Duration::from_secs(30);

/// Between two looks at whose it is.
const BETWEEN_LOOKS: Duration = Duration::from_millis(300);

/// Why a sandbox can be on no other host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Bound {
    /// It has volumes.
    #[error("sandbox `{0}` has volumes, whose files are on its own host")]
    Volumes(SandboxId),
    /// Its network rules have secrets in them, which are this host's alone, and its guest trusts this host's authority.
    #[error("the network rules of sandbox `{0}` have secrets, which are on its own host")]
    Secrets(SandboxId),
    /// What holds it is encrypted.
    #[error("what holds sandbox `{0}` is encrypted under the key of its own host")]
    Sealed(SandboxId),
    /// This server shares its catalogue with nobody.
    #[error("sandbox `{0}` has nowhere to go: this server is in no cluster")]
    Alone(SandboxId),
}

/// Why a sandbox did not go. Unless it says otherwise, it is what it was.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// No such sandbox.
    #[error(transparent)]
    NotFound(#[from] NoSuchSandbox),
    /// It is bound to its host.
    #[error("cannot move the sandbox")]
    Bound(#[from] Bound),
    /// It cannot be paused.
    #[error("cannot pause the sandbox, which is to move")]
    Pause(#[source] SnapshotError),
    /// Nobody took it.
    #[error("sandbox `{id}` did not move, and is what it was")]
    Refused {
        /// The sandbox.
        id: SandboxId,
        /// Why.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// Nobody took it, and it does not run here again.
    #[error("sandbox `{id}` did not move ({why}), and is paused where it was")]
    Paused {
        /// The sandbox.
        id: SandboxId,
        /// Why it did not.
        why: String,
        /// Why it does not run.
        #[source]
        source: ResumeError,
    },
}

/// A sandbox on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Departing {
    /// Which.
    pub id: SandboxId,
    /// Its deadline, if it ran.
    pub until: Option<Timestamp>,
}

/// One that is another host's now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Departed {
    /// Whether it ran.
    pub ran: bool,
    /// From when its pause began until the other host had it, running if it ran.
    pub took: Duration,
}

/// What an owner can be asked about other hosts.
#[derive(Debug)]
pub(crate) enum Relocation {
    /// To go to another one.
    Depart { hand_over: HandOver, reply: Reply<Result<Departed, MoveError>> },
    /// To go on after it came here, with the deadline that it had.
    GoOn { until: Timestamp, reply: Reply<Result<RuntimeSandbox, ResumeError>> },
    /// To be anybody's again, for it came here in vain.
    GiveBack { reply: Reply<Result<(), ResumeError>> },
    /// To end here without a word on record, if it is another host's still: it may have come back since that was found. Whether it ended.
    LetGo { reply: Reply<Result<bool, KillError>> },
}

type Asking = dyn FnOnce(Departing) -> BoxFuture<'static, Result<(), Box<dyn Error + Send + Sync>>> + Send;

/// Has another host take what was given up. Answers once that has it, running again if it ran.
pub(crate) struct HandOver(pub(crate) Box<Asking>);

impl fmt::Debug for HandOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HandOver")
    }
}

/// Refuses what can be on no host but its own.
pub(crate) fn demand_unbound(shared: &Shared, record: &SandboxRecord) -> Result<(), Bound> {
    demand_unbound_as(shared, &record.id, &record.spec)
}

/// The same by what was asked for when it was created.
pub(crate) fn demand_unbound_as(shared: &Shared, id: &SandboxId, spec: &CreateSandbox) -> Result<(), Bound> {
    let id = || id.clone();
    if shared.config.claims.is_none() {
        return Err(Bound::Alone(id()));
    }
    if !spec.volumes.is_empty() {
        return Err(Bound::Volumes(id()));
    }
    if is_filled(&spec.internet) && shared.config.secrets.is_none() {
        return Err(Bound::Secrets(id()));
    }
    Ok(())
}

/// Whether what holds a paused sandbox is encrypted, as far as it is here.
pub(crate) fn is_sealed(shared: &Shared, artifact: &ArtifactId) -> bool {
    shared.artifacts.load(artifact).is_ok_and(|artifact| artifact.manifest.is_sealed() || artifact.is_sealed())
}

/// Whose it turned out to be.
enum Whose {
    Ours,
    /// Another's, or nobody's.
    Anothers,
}

impl Owner {
    pub(super) async fn relocate(&mut self, relocation: Relocation) -> Next {
        match relocation {
            Relocation::Depart { hand_over, reply } => {
                let result = self.depart(hand_over).await;
                drop(reply.send(result));
            }
            Relocation::GoOn { until, reply } => {
                let result = self.wake(Until::At(until), Memory::Kept).await;
                drop(reply.send(result));
            }
            Relocation::GiveBack { reply } => self.give_back(reply).await,
            Relocation::LetGo { reply } => {
                let is_own = self.shared.store.is_own(self.record.id.clone()).await;
                if let Ok(false) = is_own {
                    self.end_as_anothers().await;
                }
                drop(reply.send(is_own.map(|is_own| !is_own).map_err(KillError::Store)));
            }
        }
        if let Phase::Gone = self.phase { Next::Gone(MOVED) } else { Next::Continue }
    }

    /// Goes to whoever `hand_over` asks, or is what it was.
    async fn depart(&mut self, HandOver(ask): HandOver) -> Result<Departed, MoveError> {
        demand_unbound(&self.shared, &self.record)?;
        self.demand_open()?;
        self.move_again().await.map_err(|error| MoveError::Pause(error.of_cut(self.record.id.clone())))?;
        let until = match &self.phase {
            Phase::Running(_) => Some(self.record.end_at),
            Phase::Paused(_) => None,
            Phase::Gone => return Err(gone(&self.record.id).into()),
        };
        let begun = Instant::now();
        self.changing = true;
        self.publish_view();
        let result = self.try_depart(until, ask).await;
        self.changing = false;
        self.publish_view();
        result.map(|()| Departed { ran: until.is_some(), took: begun.elapsed() })
    }

    async fn try_depart(&mut self, until: Option<Timestamp>, ask: Box<Asking>) -> Result<(), MoveError> {
        if until.is_some() {
            self.pause(Memory::Kept, CutReason::Moved).await.map_err(MoveError::Pause)?;
        }
        let id = self.record.id.clone();
        // Whatever is on record of it meanwhile.
        let _pin = match &self.phase {
            Phase::Paused(held) => self.shared.artifacts.pin(held.artifact.clone()),
            Phase::Running(_) | Phase::Gone => return Err(gone(&id).into()),
        };
        // Merging its layers would go on with files that are another's.
        self.upkeep.wake();
        let stopping = self.shared.stopping.clone();
        let asked = async {
            self.give_up().await?;
            ask(Departing { id: id.clone(), until }).await
        };
        let source = tokio::select! {
            asked = asked => match asked {
                Ok(()) => {
                    self.let_go();
                    return Ok(());
                }
                Err(source) => source,
            },
            () = stopping.cancelled() => "the server is stopping".into(),
        };
        tracing::warn!(sandbox = %id, error = chain(&*source), "a sandbox did not move");
        if let Whose::Anothers = self.take_back().await {
            self.let_go();
            return Ok(());
        }
        self.note(Event::new(LogLevel::Warn, "the sandbox did not move to another host").with("error", chain(&*source)));
        match until {
            None => Err(MoveError::Refused { id, source }),
            Some(at) => match self.wake(Until::At(at), Memory::Kept).await {
                Ok(_) => Err(MoveError::Refused { id, source }),
                // What nobody knows whether it is on record runs all the same.
                Err(_) if matches!(self.phase, Phase::Running(_)) => Err(MoveError::Refused { id, source }),
                Err(error) => Err(MoveError::Paused { id, why: chain(&*source), source: error }),
            },
        }
    }

    /// What came here in vain is given back: whoever had it before may have it again, or anybody. Told once others can have it; where nobody
    /// wants it, it stays.
    async fn give_back(&mut self, reply: Reply<Result<(), ResumeError>>) {
        if let Phase::Running(_) = self.phase {
            reply.send(Err(ResumeError::AlreadyRunning(self.record.id.clone()))).ok();
            return;
        }
        self.changing = true;
        self.publish_view();
        let given = self.give_up().await;
        let is_given = given.is_ok();
        // Whoever asked may have gone.
        reply.send(given.map_err(ResumeError::Store)).ok();
        if is_given {
            let until = Instant::now() + PATIENCE;
            while Instant::now() < until && self.is_in_its_life().await && !self.shared.stopping.is_cancelled() {
                tokio::time::sleep(BETWEEN_LOOKS).await;
            }
        }
        let whose = if self.is_in_its_life().await { self.take_back().await } else { Whose::Anothers };
        self.changing = false;
        match whose {
            Whose::Ours => self.publish_view(),
            Whose::Anothers => self.let_go(),
        }
    }

    /// Encrypted files leave their host under no circumstances.
    fn demand_open(&self) -> Result<(), Bound> {
        let is_sealed = match &self.phase {
            Phase::Running(_) => self.shared.artifacts.secrecy() == Secrecy::Sealed,
            Phase::Paused(held) => is_sealed(&self.shared, &held.artifact),
            Phase::Gone => false,
        };
        if is_sealed { Err(Bound::Sealed(self.record.id.clone())) } else { Ok(()) }
    }

    async fn give_up(&mut self) -> Result<(), StoreError> {
        let fenced = || StoreError::Fenced { what: format!("sandbox `{}`", self.record.id) };
        let claims = self.shared.config.claims.as_ref().ok_or_else(fenced)?;
        claims.give_up(&self.record.id, self.record.epoch).await
    }

    /// Whether nobody has begun another life of it, as far as is known.
    async fn is_in_its_life(&mut self) -> bool {
        let found = self.shared.store.anyones_sandbox(self.record.id.clone()).await;
        !matches!(found, Ok(Some(found)) if found.epoch != self.record.epoch)
    }

    /// Has it be this host's again, in a life that nobody has given up.
    async fn take_back(&mut self) -> Whose {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.try_take_back().await {
                Ok(Some(whose)) => return whose,
                Ok(None) if Instant::now() >= until => return Whose::Anothers,
                Ok(None) => {}
                // Nobody else can say whose it is.
                Err(error) => {
                    tracing::warn!(sandbox = %self.record.id, error = chain(&error), "it is not known whose a sandbox is")
                }
            }
            if self.shared.stopping.is_cancelled() {
                // The next server finds what is on record.
                return Whose::Ours;
            }
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
    }

    /// Whose it is; none where another has it and may give it back.
    async fn try_take_back(&mut self) -> Result<Option<Whose>, StoreError> {
        let id = self.record.id.clone();
        let Some(found) = self.shared.store.anyones_sandbox(id.clone()).await? else { return Ok(Some(Whose::Anothers)) };
        if found.epoch == self.record.epoch || self.shared.store.is_in_doubt(&id) {
            return match self.claim().await {
                Ok(()) => Ok(Some(Whose::Ours)),
                Err(ResumeError::Store(error)) if !matches!(error, StoreError::Fenced { .. }) => Err(error),
                Err(_) => Ok(None),
            };
        }
        if let RecordedPhase::Running { .. } = found.phase {
            return Ok(Some(Whose::Anothers));
        }
        let Some(claims) = self.shared.config.claims.clone() else { return Ok(Some(Whose::Anothers)) };
        let body = match claims.claim(&id, found.epoch).await {
            Ok(body) => body,
            Err(ClaimRefused::Held(_)) => return Ok(None),
            Err(ClaimRefused::Store(error)) => return Err(error),
        };
        let record = SandboxRecord::read(&body)?;
        let RecordedPhase::Paused(held) = record.phase.clone() else { return Ok(Some(Whose::Anothers)) };
        self.record = record;
        self.phase = Phase::Paused(held);
        Ok(Some(Whose::Ours))
    }

    /// It is found here no more. What is on record of it is another's.
    pub(super) fn let_go(&mut self) {
        let id = &self.record.id;
        self.owners.forget(id, self.record.access_token.as_deref());
        self.phase = Phase::Gone;
        drop(self.share.take());
        self.shared.history.close((&self.record.owner, id), Event::new(LogLevel::Info, MOVED));
        tracing::info!(sandbox = %id, "a sandbox went to another host");
        self.shared.collect();
    }
}
