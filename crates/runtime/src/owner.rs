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

use std::{sync::Arc, time::Duration};

use firkin_engine::{Exit, MemoryForm};
use firkin_wire::control::{self, Stats};
use jiff::{SignedDuration, Timestamp};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    artifact::{Artifact, ArtifactKind, FORMAT, MemoryMember, Pin, SnapshotArtifactManifest},
    capacity::ActiveSessionReservation,
    core::Core,
    error::{
        CreateError, DeadlineError, InvalidTimeout, KillError, NoSuchSandbox, ResumeError, SnapshotError, SnapshotRestoreError,
    },
    link::Connector,
    restore::{self, SnapshotRestoreReport, SnapshotRestoreRequest},
    runtime::{Connected, OnExit},
    sandbox::{MAX_TIMEOUT, OnTimeout, RuntimeSandbox, SandboxId, SandboxState},
    session::Session,
    store::{RecordedPhase, SandboxRecord},
};

/// Requests waiting for one sandbox. More than this many clients pausing one sandbox at once is a mistake of theirs.
const QUEUE: usize = 32;

/// What a sandbox shows.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(crate) sandbox: RuntimeSandbox,
    pub(crate) access: Access,
}

/// Whether its ports can be reached.
#[derive(Debug, Clone)]
pub(crate) enum Access {
    Running { connector: Connector, ended: CancellationToken, generation: u64 },
    Paused,
}

/// How others reach the owner.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) view: watch::Receiver<View>,
}

type Reply<T> = oneshot::Sender<T>;

/// What an owner can be asked.
#[derive(Debug)]
pub(crate) enum Command {
    Connect {
        timeout: Duration,
        reply: Reply<Result<Connected, ResumeError>>,
    },
    Resume {
        timeout: Duration,
        reply: Reply<Result<RuntimeSandbox, ResumeError>>,
    },
    Pause {
        reply: Reply<Result<(), SnapshotError>>,
    },
    /// A state to start others from; the sandbox goes on.
    Cut {
        reply: Reply<Result<Continuation, SnapshotError>>,
    },
    Kill {
        reply: Reply<Result<(), KillError>>,
    },
    Deadline {
        timeout: Duration,
        only_extend: bool,
        reply: Reply<Result<(), DeadlineError>>,
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
    Paused { artifact: String },
}

struct Running {
    session: Session,
    reservation: ActiveSessionReservation,
    ended: CancellationToken,
}

/// Whether the owner goes on.
enum Next {
    Continue,
    Gone,
}

pub(crate) struct Owner {
    core: Arc<Core>,
    record: SandboxRecord,
    phase: Phase,
    commands: mpsc::Receiver<Command>,
    view: watch::Sender<View>,
}

impl Owner {
    /// Restores a new sandbox and starts its owner. Runs to its end even when the caller goes away: then nobody knows the
    /// sandbox, and it ends at once.
    pub(crate) fn create(
        core: Arc<Core>,
        record: SandboxRecord,
        artifact: Artifact,
    ) -> impl Future<Output = Result<RuntimeSandbox, CreateError>> {
        let (reply, result) = oneshot::channel();
        let task = Arc::clone(&core);
        core.tasks.spawn(async move {
            let template = record.template_id.clone();
            let failed = |error| match error {
                ResumeError::Store(source) => CreateError::Store(source),
                ResumeError::Restore { source, .. } => CreateError::Restore { template, source },
                ResumeError::Stopping
                | ResumeError::NotFound(_)
                | ResumeError::AlreadyRunning(_)
                | ResumeError::InvalidTimeout(_) => CreateError::Stopping,
            };
            match start(&task, record, artifact, true).await {
                Err(error) => drop(reply.send(Err(failed(error)))),
                Ok((record, running)) => {
                    let sandbox = show(&record);
                    let (owner, handle) = Self::new(task, record, Phase::Running(running));
                    owner.core.sandboxes().insert(owner.record.id.clone(), handle);
                    if reply.send(Ok(sandbox)).is_err() {
                        owner.end("its creator went away").await;
                    } else {
                        owner.run().await;
                    }
                }
            }
        });
        async move { result.await.unwrap_or(Err(CreateError::Stopping)) }
    }

    /// Starts the owner of a sandbox that is known from the store.
    pub(crate) fn restore_paused(core: &Arc<Core>, record: SandboxRecord, artifact: String) {
        let (owner, handle) = Self::new(Arc::clone(core), record, Phase::Paused { artifact });
        core.sandboxes().insert(owner.record.id.clone(), handle);
        core.tasks.spawn(owner.run());
    }

    /// Starts the owner of a sandbox whose machine outlived an earlier server.
    pub(crate) fn adopt(core: &Arc<Core>, record: SandboxRecord, session: Session, reservation: ActiveSessionReservation) {
        let running = Box::new(Running { session, reservation, ended: CancellationToken::new() });
        let (mut owner, handle) = Self::new(Arc::clone(core), record, Phase::Running(running));
        core.sandboxes().insert(owner.record.id.clone(), handle);
        core.tasks.spawn(async move {
            // The earlier server may have been killed while it held the machine for a cut, and before it recorded that.
            owner.go_on().await;
            owner.run().await;
        });
    }

    fn new(core: Arc<Core>, record: SandboxRecord, phase: Phase) -> (Self, Handle) {
        let (commands, queue) = mpsc::channel(QUEUE);
        let (view, watched) = watch::channel(View { sandbox: show(&record), access: access(&phase, record.epoch) });
        (Self { core, record, phase, commands: queue, view }, Handle { commands, view: watched })
    }

    async fn run(mut self) {
        loop {
            let next = match &mut self.phase {
                Phase::Paused { .. } => match self.commands.recv().await {
                    Some(command) => Wake::Command(command),
                    None => return,
                },
                Phase::Running(running) => {
                    let deadline = until(self.record.end_at);
                    tokio::select! {
                        command = self.commands.recv() => match command {
                            Some(command) => Wake::Command(command),
                            None => return,
                        },
                        exit = running.session.machine.wait() => Wake::Exited(exit),
                        () = tokio::time::sleep_until(deadline) => Wake::Deadline,
                    }
                }
            };
            let next = match next {
                Wake::Command(command) => self.obey(command).await,
                Wake::Deadline => self.expire().await,
                Wake::Exited(exit) => {
                    tracing::warn!(sandbox = %self.record.id, ?exit, "the machine of a sandbox ended");
                    Next::Gone
                }
            };
            if let Next::Gone = next {
                self.end("gone").await;
                return;
            }
        }
    }

    async fn obey(&mut self, command: Command) -> Next {
        match command {
            Command::Connect { timeout, reply } => {
                let result = self.connect(timeout).await;
                drop(reply.send(result));
            }
            Command::Resume { timeout, reply } => {
                let result = match self.phase {
                    Phase::Running(_) => Err(ResumeError::AlreadyRunning(self.record.id.clone())),
                    Phase::Paused { .. } => self.wake(timeout).await,
                };
                drop(reply.send(result));
            }
            Command::Pause { reply } => {
                let result = self.pause().await;
                drop(reply.send(result));
            }
            Command::Cut { reply } => {
                let result = self.cut().await;
                drop(reply.send(result));
            }
            Command::Deadline { timeout, only_extend, reply } => {
                let result = self.set_deadline(timeout, only_extend).await;
                drop(reply.send(result));
            }
            Command::Stats { reply } => {
                let stats = match &mut self.phase {
                    Phase::Running(running) => running.session.stats().await.ok(),
                    Phase::Paused { .. } => None,
                };
                // Whoever asked may have gone.
                reply.send(stats).ok();
            }
            Command::Kill { reply } => {
                // Answered when everything is gone: the reply travels with the end.
                let result = self.teardown("killed").await;
                drop(reply.send(result));
                return Next::Gone;
            }
            Command::Stop { on_exit: OnExit::Pause } => match self.pause().await {
                Ok(()) | Err(SnapshotError::AlreadyPaused(_)) => self.commands.close(),
                Err(error) => {
                    tracing::error!(sandbox = %self.record.id, error = chain(&error), "cannot pause a sandbox at exit; it ends");
                    return Next::Gone;
                }
            },
            Command::Stop { on_exit: OnExit::Kill } => match self.phase {
                Phase::Running(_) => return Next::Gone,
                Phase::Paused { .. } => self.commands.close(),
            },
        }
        Next::Continue
    }

    async fn expire(&mut self) -> Next {
        match self.record.spec.on_timeout {
            OnTimeout::Kill => Next::Gone,
            OnTimeout::Pause => match self.pause().await {
                Ok(()) | Err(SnapshotError::AlreadyPaused(_)) => Next::Continue,
                Err(error) => {
                    tracing::error!(sandbox = %self.record.id, error = chain(&error), "cannot pause a sandbox at its deadline; trying again");
                    // Not lost for a full disk: another attempt follows until the snapshot succeeds or someone decides.
                    self.record.end_at = Timestamp::now().saturating_add(SignedDuration::from_secs(30)).unwrap_or(Timestamp::MAX);
                    Next::Continue
                }
            },
        }
    }

    async fn connect(&mut self, timeout: Duration) -> Result<Connected, ResumeError> {
        match self.phase {
            Phase::Paused { .. } => Ok(Connected { sandbox: self.wake(timeout).await?, resumed: true }),
            Phase::Running(_) => {
                self.set_deadline(timeout, true).await.map_err(|error| match error {
                    DeadlineError::NotFound(error) => ResumeError::NotFound(error),
                    DeadlineError::InvalidTimeout(error) => ResumeError::InvalidTimeout(error),
                    DeadlineError::Store(error) => ResumeError::Store(error),
                })?;
                Ok(Connected { sandbox: show(&self.record), resumed: false })
            }
        }
    }

    /// From paused to running. The paused state stays what it is until the running one is recorded.
    async fn wake(&mut self, timeout: Duration) -> Result<RuntimeSandbox, ResumeError> {
        let Phase::Paused { artifact } = &self.phase else { return Err(ResumeError::AlreadyRunning(self.record.id.clone())) };
        check_timeout(timeout).map_err(ResumeError::InvalidTimeout)?;
        let _pin = self.core.artifacts.pin(artifact.clone());
        let loaded = self.core.artifacts.load(artifact).map_err(|source| ResumeError::Restore {
            id: self.record.id.clone(),
            source: SnapshotRestoreError::Integrity { artifact: artifact.clone(), source },
        })?;
        let mut record = self.record.clone();
        record.epoch += 1;
        record.spec.timeout = timeout;
        let (record, running) = start(&self.core, record, loaded, false).await?;
        self.record = record;
        self.become_phase(Phase::Running(running));
        self.core.collect();
        Ok(show(&self.record))
    }

    /// From running to paused, durable when this returns. On any failure the sandbox goes on running.
    async fn pause(&mut self) -> Result<(), SnapshotError> {
        if matches!(self.phase, Phase::Paused { .. }) {
            return Err(SnapshotError::AlreadyPaused(self.record.id.clone()));
        }
        let (artifact, pin) = self.publish_cut(ArtifactKind::Pause).await?;
        let mut record = self.record.clone();
        record.end_at = Timestamp::now();
        record.phase = RecordedPhase::Paused { artifact: artifact.manifest.id.clone() };
        if let Err(error) = self.core.store.put_sandbox(record.clone()).await {
            self.go_on().await;
            return Err(SnapshotError::Store(error));
        }
        drop(pin);
        self.record = record;
        if let Phase::Running(running) = self.become_phase(Phase::Paused { artifact: artifact.manifest.id }) {
            running.ended.cancel();
            running.session.end().await;
            drop(running.reservation);
        }
        Ok(())
    }

    /// A state that others can be started from.
    async fn cut(&mut self) -> Result<Continuation, SnapshotError> {
        let (artifact, pin) = match &self.phase {
            Phase::Running(_) => {
                let result = self.publish_cut(ArtifactKind::Continuation).await?;
                self.go_on().await;
                result
            }
            Phase::Paused { artifact } => {
                let pin = self.core.artifacts.pin(artifact.clone());
                let loaded = self
                    .core
                    .artifacts
                    .load(artifact)
                    .map_err(|source| SnapshotError::Integrity { id: self.record.id.clone(), source })?;
                (loaded, pin)
            }
        };
        Ok(Continuation { artifact, record: self.record.clone(), pin })
    }

    /// Cuts the running session and publishes what was cut. The machine is left paused on success, running on failure.
    async fn publish_cut(&mut self, kind: ArtifactKind) -> Result<(Artifact, Pin), SnapshotError> {
        let result = self.try_publish_cut(kind).await;
        if result.is_err() {
            self.go_on().await;
        }
        result
    }

    async fn try_publish_cut(&mut self, kind: ArtifactKind) -> Result<(Artifact, Pin), SnapshotError> {
        let id = self.record.id.clone();
        let core = Arc::clone(&self.core);
        let Phase::Running(running) = &mut self.phase else { return Err(SnapshotError::AlreadyPaused(id)) };
        core.gates.disk.check().map_err(|source| SnapshotError::DiskPressure { id: id.clone(), source })?;
        running.session.sync().await.map_err(|source| SnapshotError::Guest { id: id.clone(), source })?;
        let draft = core.artifacts.draft().map_err(|source| SnapshotError::Publish {
            id: id.clone(),
            source: crate::error::PublishError::File { path: core.config.state_dir.clone(), source },
        })?;
        let begun = Instant::now();
        let cut = running
            .session
            .cut(draft.dir(), &core.artifacts)
            .await
            .map_err(|source| SnapshotError::Machine { id: id.clone(), source })?;
        debug_assert!(matches!(cut.parts.memory, MemoryForm::Diff { .. }), "a restored machine is never whole");
        let base = core.artifacts.load(&running.session.memory_base);
        let base = base.map_err(|source| SnapshotError::Integrity { id: id.clone(), source })?.manifest;
        let manifest = SnapshotArtifactManifest {
            format: FORMAT,
            id: draft.id().to_owned(),
            kind,
            logical_id: id.to_string(),
            parent: Some(running.session.memory_base.clone()),
            created_at: Timestamp::now(),
            epoch: self.record.epoch,
            memory: MemoryMember::Diff { base: running.session.memory_base.clone() },
            disk: crate::artifact::DiskMembers { layers: cut.layers, ..base.disk.clone() },
            ..base
        };
        let pin = core.artifacts.pin(draft.id());
        if kind == ArtifactKind::Continuation {
            // Nothing that is still to be written is touched by the guest: it may go on while the files are made durable.
            if let Err(error) = running.session.machine.resume().await {
                tracing::warn!(sandbox = %id, error = chain(&error), "cannot let a sandbox go on after a snapshot");
            }
        }
        let artifacts = core.artifacts.clone();
        let published = tokio::task::spawn_blocking(move || artifacts.publish(draft, manifest))
            .await
            .expect("publishing does not panic and the runtime does not stop under it")
            .map_err(|source| SnapshotError::Publish { id: id.clone(), source })?;
        tracing::info!(sandbox = %id, ?kind, freeze_ms = ms(cut.freeze), save_ms = ms(begun.elapsed()), memory = ?cut.parts.memory, "cut a sandbox");
        drop(cut.pin);
        Ok((published, pin))
    }

    /// Lets a cut machine run again, with the right time.
    async fn go_on(&mut self) {
        let identity = identity(&self.record, false);
        let Phase::Running(running) = &mut self.phase else { return };
        let RecordedPhase::Running { layers, overlay, .. } = &mut self.record.phase else { return };
        layers.clone_from(&running.session.layers);
        overlay.clone_from(&running.session.overlay);
        if let Err(error) = running.session.machine.resume().await {
            tracing::warn!(sandbox = %self.record.id, error = chain(&error), "cannot let a sandbox go on");
            return;
        }
        if let Err(error) = running.session.set_clock(&identity).await {
            tracing::warn!(sandbox = %self.record.id, error = chain(&error), "cannot set a guest's clock");
        }
        if let Err(error) = self.core.store.put_sandbox(self.record.clone()).await {
            tracing::error!(sandbox = %self.record.id, error = chain(&error), "cannot record a sandbox's new disk layer");
        }
    }

    async fn set_deadline(&mut self, timeout: Duration, only_extend: bool) -> Result<(), DeadlineError> {
        if matches!(self.phase, Phase::Paused { .. }) {
            return Err(DeadlineError::NotFound(NoSuchSandbox(self.record.id.clone())));
        }
        if timeout > MAX_TIMEOUT {
            return Err(DeadlineError::InvalidTimeout(too_long()));
        }
        let end_at = Timestamp::now().saturating_add(timeout).unwrap_or(Timestamp::MAX);
        if only_extend && end_at <= self.record.end_at {
            return Ok(());
        }
        let mut record = self.record.clone();
        record.end_at = end_at;
        self.core.store.put_sandbox(record.clone()).await.map_err(DeadlineError::Store)?;
        self.record = record;
        self.publish_view();
        Ok(())
    }

    fn become_phase(&mut self, phase: Phase) -> Phase {
        let old = std::mem::replace(&mut self.phase, phase);
        self.publish_view();
        old
    }

    fn publish_view(&self) {
        self.view.send_replace(View { sandbox: show(&self.record), access: access(&self.phase, self.record.epoch) });
    }

    /// Ends the session, if any, and forgets the sandbox. Idempotent.
    async fn teardown(&mut self, why: &str) -> Result<(), KillError> {
        let id = self.record.id.clone();
        if self.core.sandboxes().remove(&id).is_none() {
            return Ok(());
        }
        if let Phase::Running(running) = std::mem::replace(&mut self.phase, Phase::Paused { artifact: String::new() }) {
            running.ended.cancel();
            let exit = running.session.end().await;
            drop(running.reservation);
            tracing::info!(sandbox = %id, why, ?exit, "a sandbox ended");
        }
        let deleted = self.core.store.delete_sandbox(id).await.map_err(KillError::Store);
        self.core.collect();
        deleted
    }

    async fn end(mut self, why: &str) {
        if let Err(error) = self.teardown(why).await {
            tracing::error!(sandbox = %self.record.id, error = chain(&error), "cannot forget a sandbox");
        }
    }
}

enum Wake {
    Command(Command),
    Exited(Exit),
    Deadline,
}

/// Restores `artifact` as `record`, and records that it runs.
async fn start(
    core: &Arc<Core>,
    mut record: SandboxRecord,
    artifact: Artifact,
    fresh: bool,
) -> Result<(SandboxRecord, Box<Running>), ResumeError> {
    let id = record.id.clone();
    let begun = Instant::now();
    let request = SnapshotRestoreRequest {
        artifact,
        budget: record.budget,
        identity: identity(&record, fresh),
        internet: record.spec.internet,
    };
    let restored = tokio::select! {
        restored = restore::restore(request, &core.gates, &core.launcher) => restored,
        () = core.stopping.cancelled() => return Err(ResumeError::Stopping),
    };
    let report = restored.map_err(|source| ResumeError::Restore { id: id.clone(), source })?;
    let SnapshotRestoreReport { session, reservation, checks, launch } = report;
    record.started_at = Timestamp::now();
    record.end_at = record.started_at.saturating_add(record.spec.timeout).unwrap_or(Timestamp::MAX);
    record.phase = RecordedPhase::Running {
        memory_base: session.memory_base.clone(),
        layers: session.layers.clone(),
        overlay: session.overlay.clone(),
        slot: session.link.index(),
    };
    if let Err(error) = core.store.put_sandbox(record.clone()).await {
        session.end().await;
        return Err(ResumeError::Store(error));
    }
    tracing::info!(
        sandbox = %id, epoch = record.epoch,
        total_ms = ms(begun.elapsed()), checks_ms = ms(checks), staging_ms = ms(launch.staging),
        vm_restore_ms = ms(launch.vm_restore), agent_ms = ms(launch.agent_connect),
        "restored a sandbox"
    );
    Ok((record, Box::new(Running { session, reservation, ended: CancellationToken::new() })))
}

/// Who the guest of this record is: fresh entropy always, a new machine id when the sandbox is new.
fn identity(record: &SandboxRecord, fresh: bool) -> control::Identity {
    use base64::Engine as _;
    control::Identity {
        epoch: record.epoch,
        sandbox_id: record.id.to_string(),
        template_id: record.template_id.clone(),
        entropy: base64::engine::general_purpose::STANDARD.encode(crate::random::bytes::<32>()),
        realtime_ns: crate::session::realtime_ns(),
        machine_id: fresh.then(crate::random::hex::<16>),
        network: None,
        env: record.spec.env.clone(),
        access_token: record.access_token.clone(),
        default_user: None,
        default_workdir: None,
    }
}

pub(crate) fn show(record: &SandboxRecord) -> RuntimeSandbox {
    RuntimeSandbox {
        id: record.id.clone(),
        template_id: record.template_id.clone(),
        alias: record.alias.clone(),
        state: match record.phase {
            RecordedPhase::Running { .. } => SandboxState::Running,
            RecordedPhase::Paused { .. } => SandboxState::Paused,
        },
        started_at: record.started_at,
        end_at: record.end_at,
        budget: record.budget,
        envd_access_token: record.access_token.clone(),
        spec: record.spec.clone(),
    }
}

fn access(phase: &Phase, generation: u64) -> Access {
    match phase {
        Phase::Paused { .. } => Access::Paused,
        Phase::Running(running) => {
            Access::Running { connector: running.session.link.connector(), ended: running.ended.clone(), generation }
        }
    }
}

/// A life that can be had.
pub(crate) fn check_timeout(timeout: Duration) -> Result<(), InvalidTimeout> {
    if timeout.is_zero() {
        Err(InvalidTimeout::Zero)
    } else if timeout > MAX_TIMEOUT {
        Err(too_long())
    } else {
        Ok(())
    }
}

fn too_long() -> InvalidTimeout {
    InvalidTimeout::TooLong { max_hours: MAX_TIMEOUT.as_secs() / 3600 }
}

/// When a wall-clock deadline falls on the monotonic clock.
fn until(end_at: Timestamp) -> Instant {
    let left = Duration::try_from(end_at.duration_since(Timestamp::now())).unwrap_or_default();
    // The bound keeps the sum representable; no deadline is further away than a day.
    Instant::now() + left.min(MAX_TIMEOUT * 2)
}

fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10_000.0).round() / 10.0
}

/// An error with its sources, for a log.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// The id of a sandbox whose owner is gone.
pub(crate) fn gone(id: &SandboxId) -> NoSuchSandbox {
    NoSuchSandbox(id.clone())
}
