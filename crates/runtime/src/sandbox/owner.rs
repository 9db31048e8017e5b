//! One task owns each sandbox. Everything that changes it goes through this task, one thing at a time.
//!
//! ```text
//!            create                    pause, deadline (on_timeout = pause)
//!   (nothing) ─────► running ─────────────────────────────► paused
//!                     │  ▲                                   │  │
//!                     │  └──────── connect, resume, traffic ─┘  │
//!                     │                                         │
//!                     └─ kill, deadline, crash ─► gone ◄─ kill ─┘
//! ```
//!
//! What the rest of the program may know is published by a `watch` channel: readers never wait for the owner.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use firkin_causes::chain;
use firkin_wire::{control::Stats, rest::LogLevel};
use jiff::Timestamp;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use self::{
    pulse::{End, Pulse},
    upkeep::{Progress, Upkeep},
    view::view,
};
use crate::{
    artifact::{Artifact, CutReason, Pin},
    capacity::{ActiveSessionReservation, SandboxShare},
    machine::{outbound::Decided, session::Session, volumes::VolumeLinks},
    sandbox::mounts,
    shared::Shared,
    start::{Recorded, forgetting},
    store::{
        Held, SandboxRecord, StoreError,
        spec::{InternetAccess, InvalidTimeout, MAX_TIMEOUT, Memory, NoSuchSandbox, OnTimeout, RuntimeSandbox, SandboxId},
    },
    telemetry::{
        changes::{SandboxEvent, SandboxSummary, What},
        history::Event,
        metrics::Timing,
    },
};

mod cut;
mod depart;
mod internet;
mod one_of_several;
mod pulse;
mod refused;
mod registry;
mod rollback;
mod room;
mod upkeep;
mod view;
mod wake;

pub use self::{
    cut::SnapshotError,
    depart::{Bound, Departed, Departing, MoveError},
    internet::NetworkError,
    rollback::RollbackError,
    wake::ResumeError,
};
pub(crate) use self::{
    depart::{HandOver, Relocation, demand_unbound, demand_unbound_as, is_sealed},
    registry::Owners,
    room::{Relief, StillError},
    view::{Access, Handle, Reach, Seen, View, show},
};

/// Why a sandbox ended, for those who ask or watch.
const KILLED: &str = "killed";
const DEADLINE: &str = "its deadline passed";
const MACHINE_ENDED: &str = "its machine ended";
const SILENT: &str = "neither guest nor machine answered";
const STOPPED: &str = "the server stopped";

/// Requests waiting for one sandbox. More than this many clients pausing one sandbox at once is a mistake of theirs.
const QUEUE: usize = 32;

/// Between two attempts to pause at the deadline: long enough for a full disk to be noticed, short enough to hold a budget.
const PAUSE_RETRY: Duration = Duration::from_secs(30);

type Reply<T> = oneshot::Sender<T>;

/// A sandbox after [`Runtime::connect`](crate::runtime::Runtime::connect).
#[derive(Debug, Clone)]
pub struct Connected {
    /// The sandbox.
    pub sandbox: RuntimeSandbox,
    /// Whether it was paused before.
    pub resumed: bool,
}

/// What happens to running sandboxes when the runtime stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnExit {
    /// They end.
    Kill,
    /// They are paused, and can be resumed by the next server with this state directory.
    Pause,
    /// They go on without a server, and the next one with this state directory takes them over.
    Leave,
}

/// Why a sandbox was not killed.
#[derive(Debug, thiserror::Error)]
pub enum KillError {
    /// No such sandbox.
    #[error(transparent)]
    NotFound(#[from] NoSuchSandbox),
    /// The store failed.
    #[error("cannot record the end of the sandbox")]
    Store(#[source] StoreError),
}

/// Why a deadline was not moved.
#[derive(Debug, thiserror::Error)]
pub enum DeadlineError {
    /// No such running sandbox.
    #[error(transparent)]
    NotFound(#[from] NoSuchSandbox),
    /// The timeout is invalid.
    #[error("{0}")]
    InvalidTimeout(InvalidTimeout),
    /// The store failed.
    #[error("cannot record the deadline")]
    Store(#[source] StoreError),
}

/// What an owner can be asked.
#[derive(Debug)]
pub(crate) enum Command {
    Connect {
        timeout: Duration,
        memory: Memory,
        reply: Reply<Result<Connected, ResumeError>>,
    },
    Resume {
        timeout: Duration,
        memory: Memory,
        seen: Seen,
        reply: Reply<Result<RuntimeSandbox, ResumeError>>,
    },
    /// Traffic has come: a paused sandbox resumes, a running one stays as it is.
    Wake {
        reply: Reply<Result<(), ResumeError>>,
    },
    Pause {
        memory: Memory,
        seen: Seen,
        reply: Reply<Result<(), SnapshotError>>,
    },
    /// To stop writing to a disk that is nearly full.
    MakeRoom {
        /// What it has written lately, bytes.
        grown: u64,
        reply: Reply<Result<Relief, SnapshotError>>,
    },
    /// To go on, if it stood still for that and the disk has room again. Answers when it does not.
    MoveAgain {
        reply: Reply<Result<(), StillError>>,
    },
    /// To be recorded as it is, if nobody knows what is on record of it.
    Record,
    /// Its machine stood still, if it is one that others could have, and goes on.
    WentOn,
    /// To stop writing if it holds more of the disk than it may. Answers whether it did.
    HoldQuota {
        reply: Reply<Result<bool, SnapshotError>>,
    },
    /// A state to start others from; the sandbox goes on.
    Cut {
        memory: Memory,
        reason: CutReason,
        reply: Reply<Result<Continuation, SnapshotError>>,
    },
    /// To become what one of its own snapshots holds.
    Rollback {
        checkpoint: Box<Artifact>,
        reply: Reply<Result<RuntimeSandbox, RollbackError>>,
    },
    /// To go to another host, or to go on after it came from one.
    Relocate(Relocation),
    Kill {
        reply: Reply<Result<(), KillError>>,
    },
    Deadline {
        timeout: Duration,
        only_extend: bool,
        reply: Reply<Result<(), DeadlineError>>,
    },
    Network {
        internet: InternetAccess,
        dns_servers: Option<Vec<Ipv4Addr>>,
        reply: Reply<Result<(), NetworkError>>,
    },
    Decisions {
        reply: Reply<Vec<Decided>>,
    },
    Stats {
        reply: Reply<Option<Stats>>,
    },
    Stop {
        on_exit: OnExit,
    },
}

/// A published state of a sandbox, kept from collection until the pin is dropped.
#[derive(Debug)]
pub(crate) struct Continuation {
    pub(crate) artifact: Artifact,
    pub(crate) record: SandboxRecord,
    pub(crate) pin: Pin,
}

enum Phase {
    Running(Box<Running>),
    Paused(Held),
    /// It has ended, and nobody finds its owner any more.
    Gone,
}

impl Phase {
    /// What runs, to be cut.
    fn running(&mut self, id: &SandboxId) -> Result<&mut Running, SnapshotError> {
        match self {
            Self::Running(running) => Ok(running),
            Self::Paused(_) => Err(SnapshotError::AlreadyPaused(id.clone())),
            Self::Gone => Err(gone(id).into()),
        }
    }
}

struct Running {
    session: Session,
    reservation: ActiveSessionReservation,
    /// Answers its guest for its volumes.
    volumes: VolumeLinks,
    /// Cancelled when this life ends.
    ended: CancellationToken,
    /// Cancelled while it is being paused.
    leaving: CancellationToken,
    pulse: Pulse,
    /// Since when its processors are stopped because the disk has no room, not even for its pause, and its deadline with them.
    still: Option<Instant>,
    /// Whether it was to go on and could not, because others might have had it.
    owes_go_on: bool,
}

impl Running {
    fn new(shared: &Shared, record: &SandboxRecord, session: Session, reservation: ActiveSessionReservation) -> Self {
        let volumes = mounts::serve(shared, record, &session);
        let (ended, leaving) = (CancellationToken::new(), CancellationToken::new());
        Self { session, reservation, volumes, ended, leaving, pulse: Pulse::new(), still: None, owes_go_on: false }
    }
}

/// Whether the owner goes on.
enum Next {
    Continue,
    /// For this reason.
    Gone(&'static str),
    /// The machine goes on without an owner, until the next server.
    Left,
}

pub(crate) struct Owner {
    shared: Arc<Shared>,
    /// Itself among them.
    owners: Arc<Owners>,
    record: SandboxRecord,
    /// Its team's, until it is gone.
    share: Option<SandboxShare>,
    phase: Phase,
    commands: mpsc::Receiver<Command>,
    view: watch::Sender<View>,
    /// After a pause at the deadline failed: when it is tried again.
    retry_at: Option<Instant>,
    /// Between two lives of one operation: what comes from outside waits for its end.
    changing: bool,
    /// With what this life began, when it began with a resume.
    woken_with: Memory,
    upkeep: Upkeep,
}

impl Owner {
    /// The owner of a sandbox that has just been created. It can be found from now on.
    pub(crate) fn of_created(owners: &Arc<Owners>, created: Recorded) -> Self {
        let Recorded { session, reservation, sandbox, record, in_doubt: _ } = created;
        let running = Box::new(Running::new(&owners.shared, &record, session, reservation));
        let (owner, handle) = Self::new(owners, (record, sandbox), Phase::Running(running));
        owners.register(owner.record.id.clone(), owner.record.access_token.as_deref(), handle);
        owners.note_start(&owner.record.owner);
        owner.note(Event::new(LogLevel::Info, "sandbox created").with("template", owner.record.template_id.as_str()));
        owner.tell(SandboxEvent::Created, None);
        owner
    }

    /// What others see of the sandbox.
    pub(crate) fn shown(&self) -> RuntimeSandbox {
        show(&self.record)
    }

    /// Starts the owner of a sandbox that is known from the store.
    pub(crate) fn restore_paused(owners: &Arc<Owners>, record: SandboxRecord, held: Held) {
        let owner = Self::of_paused(owners, record, held);
        owner.note(Event::new(LogLevel::Info, "sandbox found paused by a new server"));
        owners.shared.tasks.spawn(owner.run());
    }

    /// Starts the owner of a sandbox that came from another host.
    pub(crate) fn of_imported(owners: &Arc<Owners>, record: SandboxRecord, held: Held) {
        let owner = Self::of_paused(owners, record, held);
        owner.note(Event::new(LogLevel::Info, "sandbox came paused from another host"));
        owner.tell(SandboxEvent::Paused, None);
        owners.shared.tasks.spawn(owner.run());
    }

    /// Starts the owner of a sandbox that was another host's until now.
    pub(crate) fn of_taken(owners: &Arc<Owners>, record: SandboxRecord, held: Held) {
        let owner = Self::of_paused(owners, record, held);
        owner.note(Event::new(LogLevel::Info, "sandbox taken over from another host of the cluster"));
        owners.shared.tasks.spawn(owner.run());
    }

    /// It can be found from now on.
    fn of_paused(owners: &Arc<Owners>, record: SandboxRecord, held: Held) -> Self {
        let (owner, handle) = Self::new(owners, (record, None), Phase::Paused(held));
        owners.register(owner.record.id.clone(), owner.record.access_token.as_deref(), handle);
        owner
    }

    /// Starts the owner of a sandbox whose machine outlived an earlier server.
    pub(crate) fn adopt(owners: &Arc<Owners>, record: SandboxRecord, session: Session, reservation: ActiveSessionReservation) {
        let share = owners.shared.teams.count_session(&record.owner, record.budget);
        let running = Box::new(Running::new(&owners.shared, &record, session, reservation.of_team(share)));
        let (mut owner, handle) = Self::new(owners, (record, None), Phase::Running(running));
        owners.register(owner.record.id.clone(), owner.record.access_token.as_deref(), handle);
        owner.note(Event::new(LogLevel::Info, "sandbox taken over by a new server"));
        owners.shared.tasks.spawn(async move {
            // The earlier server may have been killed while it held the machine for a cut, and before it recorded that.
            owner.go_on().await;
            Box::pin(owner.run()).await;
        });
    }

    fn new(owners: &Arc<Owners>, (record, share): (SandboxRecord, Option<SandboxShare>), phase: Phase) -> (Self, Handle) {
        let count = || owners.shared.teams.count_sandbox(&record.owner, record.budget.disk_mib);
        let share = Some(share.unwrap_or_else(count));
        let (commands, queue) = mpsc::channel(QUEUE);
        let shown = view(&record, &phase, false).expect("an owner begins with a sandbox that runs or is paused");
        let (view, watched) = watch::channel(shown);
        let owner = Self {
            shared: Arc::clone(&owners.shared),
            owners: Arc::clone(owners),
            record,
            share,
            phase,
            commands: queue,
            view,
            retry_at: None,
            changing: false,
            woken_with: Memory::Kept,
            upkeep: Upkeep::default(),
        };
        let team = owner.record.owner.clone();
        (owner, Handle { team, commands, view: watched, snapshots: Arc::default() })
    }

    /// Does what is asked of it, and what is due, until the sandbox is gone.
    pub(crate) async fn run(mut self) {
        loop {
            self.keep_up().await;
            self.settle_listing();
            self.go_on_if_owed().await;
            let next = match &mut self.phase {
                Phase::Gone => return,
                Phase::Paused(_) => tokio::select! {
                    command = self.commands.recv() => match command {
                        Some(command) => Wake::Command(command),
                        None => return,
                    },
                    progress = self.upkeep.progress() => Wake::Upkeep(progress),
                },
                Phase::Running(running) => {
                    let deadline = until(self.record.end_at).max(self.retry_at.unwrap_or_else(Instant::now));
                    let moves = running.still.is_none();
                    tokio::select! {
                        command = self.commands.recv() => match command {
                            Some(command) => Wake::Command(command),
                            None => return,
                        },
                        end = pulse::watch(running, &self.record.id) => Wake::Ended(end),
                        () = tokio::time::sleep_until(deadline), if moves => Wake::Deadline,
                        progress = self.upkeep.progress() => Wake::Upkeep(progress),
                    }
                }
            };
            let next = match next {
                Wake::Command(command) => self.obey(command).await,
                Wake::Deadline => self.deadline().await,
                Wake::Upkeep(progress) => {
                    self.advance(progress).await;
                    Next::Continue
                }
                Wake::Ended(End::Silent) => {
                    tracing::error!(sandbox = %self.record.id, "neither guest nor engine of a sandbox answers; it ends");
                    self.note(Event::new(LogLevel::Error, "neither the guest nor its machine answers; the sandbox ends"));
                    self.tell(SandboxEvent::Failed, Some(SILENT));
                    Next::Gone(SILENT)
                }
                Wake::Ended(End::Exited(exit)) => {
                    tracing::warn!(sandbox = %self.record.id, ?exit, "the machine of a sandbox ended");
                    self.note(Event::new(LogLevel::Warn, "the machine of the sandbox ended").with("exit", format!("{exit:?}")));
                    self.tell(SandboxEvent::Failed, Some(MACHINE_ENDED));
                    Next::Gone(MACHINE_ENDED)
                }
            };
            match next {
                Next::Continue => {}
                Next::Gone(why) => {
                    self.end(why).await;
                    return;
                }
                Next::Left => {
                    if let Phase::Running(running) = self.phase {
                        running.ended.cancel();
                        running.session.release();
                    }
                    return;
                }
            }
        }
    }

    async fn obey(&mut self, command: Command) -> Next {
        match command {
            Command::Connect { timeout, memory, reply } => {
                let result = self.connect(timeout, memory).await;
                drop(reply.send(result));
            }
            Command::Resume { timeout, memory, seen, reply } => {
                let result = self.resume(timeout, memory, seen).await;
                drop(reply.send(result));
            }
            Command::Wake { reply } => {
                let result = self.wake_for_traffic().await;
                drop(reply.send(result));
            }
            Command::Pause { memory, seen, reply } => {
                let result =
                    if self.has_been_paused_for(seen, memory) { Ok(()) } else { self.pause(memory, CutReason::Asked).await };
                drop(reply.send(result));
            }
            Command::MakeRoom { grown, reply } => {
                let result = self.make_room(grown).await;
                drop(reply.send(result));
            }
            Command::MoveAgain { reply } => {
                let result = self.move_again().await;
                drop(reply.send(result));
            }
            Command::Record => return Box::pin(self.settle()).await,
            Command::WentOn => self.went_on().await,
            Command::HoldQuota { reply } => {
                let result = self.pause_over_quota().await;
                drop(reply.send(result));
            }
            Command::Cut { memory, reason, reply } => {
                let result = self.cut(memory, reason).await;
                drop(reply.send(result));
            }
            Command::Rollback { checkpoint, reply } => {
                let result = self.rollback(*checkpoint).await;
                drop(reply.send(result));
            }
            Command::Relocate(relocation) => return Box::pin(self.relocate(relocation)).await,
            Command::Deadline { timeout, only_extend, reply } => {
                let result = self.set_deadline(timeout, only_extend).await;
                drop(reply.send(result));
            }
            Command::Network { internet, dns_servers, reply } => {
                let result = self.set_internet(internet, dns_servers).await;
                drop(reply.send(result));
            }
            Command::Decisions { reply } => drop(reply.send(self.decisions())),
            Command::Stats { reply } => {
                let stats = match &mut self.phase {
                    Phase::Running(running) if running.still.is_none() => running.session.stats().await.ok(),
                    Phase::Running(_) | Phase::Paused(_) | Phase::Gone => None,
                };
                // Whoever asked may have gone.
                reply.send(stats).ok();
            }
            Command::Kill { reply } => {
                // Answered when everything is gone: the reply travels with the end.
                let metrics = Arc::clone(&self.shared.metrics);
                let result = metrics.measured(Timing::KillDelete, self.kill()).await;
                let stays = result.is_err() && self.owners.handles().contains_key(&self.record.id);
                drop(reply.send(result));
                return if stays { Next::Continue } else { Next::Gone(KILLED) };
            }
            Command::Stop { on_exit } => return self.stop(on_exit).await,
        }
        Next::Continue
    }

    /// The server ends.
    async fn stop(&mut self, on_exit: OnExit) -> Next {
        match on_exit {
            OnExit::Pause => match self.pause(Memory::Kept, CutReason::Stopped).await {
                Ok(()) | Err(SnapshotError::AlreadyPaused(_)) => self.commands.close(),
                Err(error) if is_for_the_next_server(&error) || self.stands_still() || self.is_kept_from_going_on() => {
                    tracing::error!(sandbox = %self.record.id, error = chain(&error), "cannot pause a sandbox at exit; it is left to the next server");
                    return self.leave().await;
                }
                Err(error) => {
                    tracing::error!(sandbox = %self.record.id, error = chain(&error), "cannot pause a sandbox at exit; it ends");
                    return Next::Gone(STOPPED);
                }
            },
            OnExit::Leave => return self.leave().await,
            OnExit::Kill => match self.phase {
                Phase::Running(_) | Phase::Gone => return Next::Gone(STOPPED),
                Phase::Paused(_) => self.commands.close(),
            },
        }
        Next::Continue
    }

    /// Leaves the machine to the next server.
    async fn leave(&mut self) -> Next {
        let hears = !self.stands_still();
        if let Phase::Running(running) = &mut self.phase {
            // What was done for the guest is told, or it would ask the next server for it again.
            running.volumes.leave(hears).await;
        }
        if self.stands_still() {
            self.keep_time_left();
            self.record_again().await;
        }
        self.record_in_doubt().await;
        // What stays listed would be stopped with nobody there to let it go on.
        self.settle_listing();
        Next::Left
    }

    /// Nobody knows what is on record of one in doubt: as paused, the next server would end its machine.
    async fn record_in_doubt(&mut self) {
        if self.shared.store.is_in_doubt(&self.record.id) {
            self.record_again().await;
        }
    }

    async fn record_again(&mut self) {
        if let Err(error) = self.shared.store.update_sandbox(self.record.clone(), self.record.guard()).await {
            tracing::error!(sandbox = %self.record.id, error = chain(&error), "cannot record a sandbox as it is");
        }
    }

    /// The deadline has passed. What had been asked by then is answered first: a connect or a later deadline among it still counts.
    async fn deadline(&mut self) -> Next {
        let due = self.record.end_at;
        for _ in 0..self.commands.len() {
            let Ok(command) = self.commands.try_recv() else { break };
            match self.obey(command).await {
                Next::Continue => {}
                last => return last,
            }
        }
        match self.phase {
            Phase::Running(_) if self.record.end_at == due && !self.stands_still() => self.expire().await,
            Phase::Running(_) | Phase::Paused(_) => Next::Continue,
            Phase::Gone => Next::Gone(KILLED),
        }
    }

    async fn expire(&mut self) -> Next {
        let memory = match self.record.spec.on_timeout {
            OnTimeout::Kill => return Next::Gone(DEADLINE),
            OnTimeout::Pause => Memory::Kept,
            OnTimeout::PauseFiles => Memory::Dropped,
        };
        match self.pause(memory, CutReason::Idle).await {
            Ok(()) | Err(SnapshotError::AlreadyPaused(_)) => {}
            Err(error) => {
                tracing::error!(sandbox = %self.record.id, error = chain(&error), "cannot pause a sandbox at its deadline; trying again");
                self.note(Event::new(LogLevel::Error, "cannot pause the sandbox at its deadline").with("error", chain(&error)));
                // Not lost for a full disk: another attempt follows until the snapshot succeeds or someone decides.
                self.retry_at = Some(Instant::now() + PAUSE_RETRY);
            }
        }
        Next::Continue
    }

    async fn set_deadline(&mut self, timeout: Duration, only_extend: bool) -> Result<(), DeadlineError> {
        check_length(timeout).map_err(DeadlineError::InvalidTimeout)?;
        if !matches!(self.phase, Phase::Running(_)) {
            return Err(DeadlineError::NotFound(NoSuchSandbox(self.record.id.clone())));
        }
        let end_at = Timestamp::now().saturating_add(timeout).unwrap_or(Timestamp::MAX);
        if only_extend && end_at <= self.record.end_at {
            return Ok(());
        }
        let mut record = self.record.clone();
        record.end_at = end_at;
        self.shared.store.update_sandbox(record.clone(), self.record.guard()).await.map_err(DeadlineError::Store)?;
        self.record = record;
        self.retry_at = None;
        if let Phase::Running(running) = &mut self.phase {
            // From now on, not from when it began to stand still.
            running.still = running.still.map(|_| Instant::now());
        }
        self.publish_view();
        self.tell(SandboxEvent::TimeoutChanged, None);
        Ok(())
    }

    fn become_phase(&mut self, phase: Phase) -> Phase {
        let old = std::mem::replace(&mut self.phase, phase);
        self.retry_at = None;
        self.publish_view();
        old
    }

    /// Remembers what happened, for those who ask later.
    fn note(&self, event: Event) {
        self.shared.history.note((&self.record.owner, &self.record.id), event);
    }

    /// Tells those who watch what became of it.
    fn tell(&self, event: SandboxEvent, reason: Option<&str>) {
        let sandbox = Box::new(SandboxSummary::of(self.shown(), self.record.epoch));
        let what = What::Sandbox { event, sandbox, reason: reason.map(str::to_owned) };
        self.shared.changes.tell(Some(&self.record.owner), what);
    }

    fn publish_view(&self) {
        if let Some(view) = view(&self.record, &self.phase, self.changing) {
            self.view.send_replace(view);
        }
    }

    /// Ends the sandbox because its user asks for it. A paused one that cannot be forgotten stays: it would be back after a
    /// restart. A running one ends in any case, and a restart finds no machine for its record.
    async fn kill(&mut self) -> Result<(), KillError> {
        if matches!(self.phase, Phase::Paused(_)) {
            self.shared.store.remove_sandbox(self.record.id.clone(), self.record.guard()).await.map_err(KillError::Store)?;
        }
        self.teardown(KILLED).await
    }

    /// Ends the session, if any, and forgets the sandbox. Idempotent.
    async fn teardown(&mut self, why: &str) -> Result<(), KillError> {
        let id = self.record.id.clone();
        if !self.owners.forget(&id, self.record.access_token.as_deref()) {
            return Ok(());
        }
        if let Phase::Running(running) = std::mem::replace(&mut self.phase, Phase::Gone) {
            running.ended.cancel();
            let exit = running.session.end().await;
            drop(running.reservation);
            tracing::info!(sandbox = %id, why, ?exit, "a sandbox ended");
        }
        // Before anybody hears that it is gone: they may want another one.
        drop(self.share.take());
        self.shared.history.close((&self.record.owner, &id), Event::new(LogLevel::Info, "sandbox ended").with("reason", why));
        self.tell(SandboxEvent::Killed, Some(why));
        let deleted = self.shared.store.remove_sandbox(id, self.record.guard()).await;
        if deleted.as_ref().is_err_and(forgetting::passes) {
            forgetting::forget_later(&self.shared, &self.record);
        }
        self.shared.collect();
        deleted.map_err(KillError::Store)
    }

    /// Ends the sandbox before anybody has had it, or because nobody can have it any more.
    pub(crate) async fn end(mut self, why: &str) {
        if let Err(error) = self.teardown(why).await {
            tracing::error!(sandbox = %self.record.id, error = chain(&error), "cannot forget a sandbox");
        }
    }
}

enum Wake {
    Command(Command),
    Ended(End),
    Deadline,
    /// What was done in the background is done.
    Upkeep(Progress),
}

/// Whether a pause failed for a reason that passes: its disk is full, or its catalogue is away.
fn is_for_the_next_server(error: &SnapshotError) -> bool {
    match error {
        SnapshotError::DiskPressure { .. } => true,
        SnapshotError::Store(error) => forgetting::passes(error),
        _ => false,
    }
}

/// A life that can be had.
pub(crate) fn check_timeout(timeout: Duration) -> Result<(), InvalidTimeout> {
    if timeout.is_zero() { Err(InvalidTimeout::Zero) } else { check_length(timeout) }
}

/// A life that is not longer than any may be. Whether a sandbox is there does not matter for that.
pub(crate) fn check_length(timeout: Duration) -> Result<(), InvalidTimeout> {
    if timeout > MAX_TIMEOUT { Err(InvalidTimeout::TooLong { max_hours: MAX_TIMEOUT.as_secs() / 3600 }) } else { Ok(()) }
}

/// When a wall-clock deadline falls on the monotonic clock.
fn until(end_at: Timestamp) -> Instant {
    let left = Duration::try_from(end_at.duration_since(Timestamp::now())).unwrap_or_default();
    // The bound keeps the sum representable; no deadline is further away than a day.
    Instant::now() + left.min(MAX_TIMEOUT * 2)
}

/// The id of a sandbox whose owner is gone.
pub(crate) fn gone(id: &SandboxId) -> NoSuchSandbox {
    NoSuchSandbox(id.clone())
}
