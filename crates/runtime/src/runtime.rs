//! The runtime's public face: everything the server, the CLI or an embedding program can ask for.
//!
//! Each method finds the owner task of the sandbox it concerns and talks to it; nothing here holds a lock across a wait.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use firkin_engine::{Acceleration, Safeguard};
use jiff::Timestamp;
use tokio::{net::TcpStream, sync::oneshot, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    artifact::{ArtifactStore, CutReason},
    capacity::{
        CapacityError, CapacityLedger, CapacityView, ResourceBudget, TeamBook, TeamQuotaError, WarmEviction, admission::Admission,
    },
    ground::{
        ids::{BuildId, TemplateId},
        reference::{DEFAULT, Reference, Sought, with_team},
        team::{Scope, TeamId},
    },
    host::disk::DiskPressureGuard,
    machine::{
        command::{self, CommandError, CommandOutput, GuestCommand},
        engines::Engines,
        forward,
        groups::MachineGroups,
        instances::Instances,
        network::{Connector, Links},
        outbound::Decided,
        session::EngineLauncher,
    },
    restore::{RestoreGates, warm::PoolStatus},
    sandbox::{
        self, CreateError,
        lineage::{self, Descent, LineageNode},
        owner::{
            Access, Command, Connected, Continuation, DeadlineError, Handle, KillError, NetworkError, OnExit, Owners, Reach,
            ResumeError, RollbackError, SnapshotError, View, check_length, check_timeout, gone,
        },
        refusal, sampler,
        trust::{self, GuestTrustError, is_filled},
    },
    shared::{
        Parts, Shared,
        config::{Guests, RuntimeConfig},
    },
    start::{
        PreparedTemplate,
        pool::{self, WarmPool},
    },
    storage::{keys::Keys, secrets::TeamSecrets, uploads::Files, volumes::TeamVolumes, workload::Workload},
    store::{
        StoreError, TemplateRecord, catalog,
        spec::{CreateSandbox, Ingress, InternetAccess, InvalidTimeout, Memory, NoSuchSandbox, RuntimeSandbox, SandboxId},
        state_dir::{OpenError, whole_state_dir},
    },
    telemetry::{
        activity::ActivityMinute,
        changes::{Refused, TemplateEvent, What},
        history::Event,
        metrics::{Live, Metrics},
        webhooks::{self as sending, Webhooks},
    },
    template::build::{self, Builds},
    upkeep::{
        copies, disk_budget,
        sandbox_quota::{self, too_many_snapshots},
    },
};

mod builds;
pub mod changes;
mod copying;
mod dialled;
mod disk_floor;
mod disk_quota;
pub mod encryption;
mod ending;
mod filling;
pub mod host_templates;
mod keys;
mod looks;
pub mod moving;
pub mod outlook;
mod recorded;
pub mod relocating;
pub mod second_copies;
mod settling;
mod sharing;
pub mod sweep;
pub mod templates;
mod volumes;
pub mod webhooks;

pub use self::{
    dialled::{DialError, Dialled},
    keys::{InvalidApiKey, KeyInfo, NewKey, TeamError, TeamInfo, new_admin_token},
    volumes::DestroyVolumeError,
};
use self::{looks::Looks, sweep::Swept};

/// A sandbox that nobody has been told of: it ends with this, also where its creator has gone away.
struct Unknown<'a> {
    runtime: &'a Runtime,
    id: Option<SandboxId>,
}

impl Unknown<'_> {
    fn told(mut self) {
        self.id = None;
    }
}

impl Drop for Unknown<'_> {
    fn drop(&mut self) {
        let Some(id) = self.id.take() else { return };
        let runtime = self.runtime.clone();
        self.runtime.shared.tasks.spawn(async move {
            if let Err(error) = runtime.kill(&id).await {
                tracing::warn!(%id, error = firkin_causes::chain(&error), "cannot end a sandbox that was not created");
            }
        });
    }
}

/// The most children of one fork.
pub const MAX_FORK: u32 = 100;

/// A running Firkin without its HTTP edge, for somebody: for the host itself as it is opened, for a team by [`Runtime::within`]. What
/// others own is for a team as if it were not there. Clones share it.
#[derive(Debug, Clone)]
pub struct Runtime {
    shared: Arc<Shared>,
    owners: Arc<Owners>,
    pub(crate) builds: Arc<Builds>,
    pub(crate) pool: Arc<WarmPool>,
    looks: Arc<Looks>,
    scope: Scope,
}

/// A named state of a sandbox, from which others are created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// The id, which creates give as their template.
    pub snapshot_id: String,
    /// Whose it is.
    pub owner: TeamId,
    /// Its names, each with its tag.
    pub names: Vec<Reference>,
    /// The sandbox it was taken of.
    pub sandbox_id: SandboxId,
    /// When.
    pub created_at: Timestamp,
}

/// Why a fork produced no children at all. A child's own failure stands in the list of results instead.
#[derive(Debug, thiserror::Error)]
pub enum ForkError {
    /// The number of children is zero or too large.
    #[error("a fork makes 1 to {max} sandboxes, {asked} were asked for")]
    Count {
        /// Asked for.
        asked: u32,
        /// The most.
        max: u32,
    },
    /// The timeout is invalid.
    #[error("{0}")]
    InvalidTimeout(InvalidTimeout),
    /// The team may not have as many.
    #[error(transparent)]
    TeamQuota(TeamQuotaError),
    /// The snapshot failed.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
}

impl Runtime {
    /// Opens a state directory: what ran before is taken over or ended, what was paused is there again, and nothing without
    /// an owner is left.
    pub async fn open(config: RuntimeConfig, engines: impl Into<Engines>) -> Result<Self, OpenError> {
        let engines = engines.into();
        let lock = whole_state_dir(&config.state_dir)?;
        let directory = |source| OpenError::Directory { path: config.state_dir.clone(), source };
        let store = catalog::open(&config.state_dir, config.catalog.as_deref()).await?;
        let teams = TeamBook::default();
        for team in store.teams().await.map_err(OpenError::Store)? {
            teams.set_quota(&team.id, team.quota);
        }
        let keys = Keys::of(store.keys(Scope::Host).await.map_err(OpenError::Store)?);
        let artifacts = ArtifactStore::open_encrypted(&config.state_dir, engines.first().disks(), &config.encryption);
        let artifacts = artifacts.map_err(|source| OpenError::Encryption(source.into()))?.sharing(config.fetch.is_some());
        if let Err(error) = artifacts.finish_rotation() {
            // As on a full disk, which is no reason to serve nobody.
            tracing::warn!(
                error = firkin_causes::chain(&error),
                "a rotation of the encryption key is not finished: all keys are kept"
            );
        }
        let files = Files::open(&config.state_dir).map_err(directory)?;
        let (secrets, workload, filling) = filling::open(&config).await?;
        let links = Links::open(config.network.clone(), engines.first().attachment(), Arc::clone(&filling)).await;
        let links = Arc::new(links.map_err(OpenError::Network)?);
        let reach = sending::reach(links.surroundings(), config.webhook_networks.clone());
        let webhooks = Webhooks::open(store.clone(), reach).await.map_err(OpenError::Store)?;
        let disk = DiskPressureGuard::new(config.state_dir.clone(), config.disk_floor_mib, Arc::clone(&config.disk_probe));
        let ledger = CapacityLedger::new(config.capacity, config.capacity.share(config.admission.warm_percent))
            .with_own_memory(engines.own_memory().usual_mib);
        let pool = WarmPool::new(config.warm.clone());
        let gates = RestoreGates {
            engines: engines.all().map(|engine| engine.compatibility().clone()).collect(),
            artifacts: artifacts.clone(),
            disk,
            admission: Admission {
                warm: Arc::clone(&pool) as Arc<dyn WarmEviction>,
                ..Admission::new(ledger, Arc::clone(&config.memory_probe), &config.admission)
            },
        };
        let groups = MachineGroups { groups: config.groups.clone() };
        let instances = Instances::new(config.state_dir.join("run"));
        let fence = config.fence.clone();
        let launcher = EngineLauncher { engines, links, artifacts, instances, groups, fence };
        let shared =
            Shared::new(Parts { config, store, gates, launcher, files, keys, teams, lock, secrets, workload, filling, webhooks });
        let run = Arc::clone(&shared.webhooks).run(sending::reader(&shared.changes));
        shared.webhooks.is_sent_by(tokio::spawn(run));
        shared.tasks.spawn(disk_budget::keep_whenever_wanted(Arc::clone(&shared)));
        let owners = Owners::new(Arc::clone(&shared), Arc::clone(&pool));
        if let Err(error) = begin(&owners).await {
            // What ran before must not end because this server cannot begin.
            ending::end(&shared, &owners, OnExit::Leave).await;
            return Err(error);
        }
        shared.collect();
        shared.tasks.spawn(sweep::periodically(Arc::clone(&shared)));
        shared.tasks.spawn(disk_quota::hold(Arc::clone(&owners)));
        shared.tasks.spawn(settling::settle(Arc::clone(&owners)));
        shared.tasks.spawn(volumes::count(Arc::clone(&shared)));
        shared.tasks.spawn(keys::note_uses(Arc::clone(&shared)));
        // Not before: what an earlier server kept warm has been swept by now.
        shared.tasks.spawn(pool::keep(Arc::clone(&shared), Arc::clone(&pool)));
        copies::begin(&shared);
        let builds = Builds::new(Arc::clone(&shared), Arc::clone(&pool));
        shared.tasks.spawn(disk_floor::hold(Arc::clone(&owners), Arc::clone(&builds)));
        Ok(Self { looks: looks::begin(&shared, &pool), shared, owners, builds, pool, scope: Scope::Host })
    }

    /// The same runtime for a team. It sees what that team owns, and what it makes is that team's.
    #[must_use]
    pub fn within(&self, team: TeamId) -> Self {
        Self { scope: Scope::Team(team), ..self.clone() }
    }

    /// For whom it looks things up.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Has a running sandbox trust this installation's authority, if it has rules that need it.
    async fn trust(&self, id: &SandboxId, internet: &InternetAccess) -> Result<(), GuestTrustError> {
        if !is_filled(internet) {
            return Ok(());
        }
        let gone = || GuestTrustError::Gone(gone(id));
        let View { sandbox, access, .. } = self.handle(id).map_err(|_| gone())?.view.borrow().clone();
        // One that is paused is refused by its owner, with the reason.
        let Access::Running(reach) = access else { return Ok(()) };
        trust::tell(&self.shared.filling, reach.connector, sandbox.envd_access_token.as_deref()).await
    }

    /// Creates a sandbox by restoring a template or a snapshot.
    pub async fn create(&self, request: CreateSandbox) -> Result<RuntimeSandbox, CreateError> {
        let internet = request.internet.clone();
        let template = request.template.clone();
        let created = sandbox::create(&self.owners, &self.scope, request).await.inspect_err(|error| {
            refusal::tell(&self.shared, &self.scope.owner(), &template, refusal::of_create(error));
        })?;
        if is_filled(&internet) {
            let unknown = Unknown { runtime: self, id: Some(created.id.clone()) };
            self.trust(&created.id, &internet).await?;
            unknown.told();
        }
        Ok(created)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn handle(&self, id: &SandboxId) -> Result<Handle, NoSuchSandbox> {
        self.owners.handles().get(id).filter(|handle| self.scope.sees(&handle.team)).cloned().ok_or_else(|| gone(id))
    }

    /// Asks the owner of a sandbox. An owner that is gone before it answers is a sandbox that does not exist.
    async fn ask<T, E: From<NoSuchSandbox>>(
        &self,
        id: &SandboxId,
        command: impl FnOnce(oneshot::Sender<Result<T, E>>) -> Command,
    ) -> Result<T, E> {
        let handle = self.handle(id)?;
        let (reply, result) = oneshot::channel();
        handle.commands.send(command(reply)).await.map_err(|_| gone(id))?;
        result.await.map_err(|_| gone(id))?
    }

    /// One sandbox.
    pub fn sandbox(&self, id: &SandboxId) -> Result<RuntimeSandbox, NoSuchSandbox> {
        Ok(self.handle(id)?.view.borrow().sandbox.clone())
    }

    /// Whether there is such a sandbox, running or paused.
    pub fn has(&self, id: &SandboxId) -> bool {
        self.handle(id).is_ok()
    }

    /// The number of the life that a sandbox of this host is in, or that was claimed for it. None where there is no such sandbox here.
    pub fn epoch(&self, id: &SandboxId) -> Option<u64> {
        self.handle(id).ok().map(|handle| handle.view.borrow().epoch)
    }

    /// Every sandbox, running and paused, in no order.
    pub fn sandboxes(&self) -> Vec<RuntimeSandbox> {
        let seen = |handle: &&Handle| self.scope.sees(&handle.team);
        self.owners.handles().values().filter(seen).map(|handle| handle.view.borrow().sandbox.clone()).collect()
    }

    /// The sandbox that has this envd token, whosever it is. It costs the same however many there are.
    pub fn with_token(&self, token: &str) -> Option<SandboxId> {
        self.owners.with_token(token)
    }

    /// The sandbox, whosever it is, whose envd token `is_wanted`, looked for among all without a copy of anything.
    pub fn whose_token(&self, is_wanted: impl Fn(&str) -> bool) -> Option<SandboxId> {
        let views: Vec<_> = self.owners.handles().values().map(|handle| handle.view.clone()).collect();
        views.into_iter().find_map(|view| {
            let View { sandbox, .. } = &*view.borrow();
            sandbox.envd_access_token.as_deref().is_some_and(&is_wanted).then(|| sandbox.id.clone())
        })
    }

    /// A running sandbox as it is (its deadline may only move outwards), or a paused one after resuming it.
    pub async fn connect(&self, id: &SandboxId, timeout: Duration) -> Result<Connected, ResumeError> {
        self.connect_with(id, timeout, Memory::Kept).await
    }

    /// As [`Runtime::connect`]; with memory dropped, a paused sandbox boots from its disk. A running one is left as it is.
    pub async fn connect_with(&self, id: &SandboxId, timeout: Duration, memory: Memory) -> Result<Connected, ResumeError> {
        check_length(timeout).map_err(ResumeError::InvalidTimeout)?;
        self.ask(id, |reply| Command::Connect { timeout, memory, reply }).await
    }

    /// Resumes a paused sandbox; a running one is an error, but not to those who asked while it was paused.
    pub async fn resume(&self, id: &SandboxId, timeout: Duration) -> Result<RuntimeSandbox, ResumeError> {
        self.resume_with(id, timeout, Memory::Kept).await
    }

    /// As [`Runtime::resume`]; with memory dropped, it boots from its disk.
    pub async fn resume_with(&self, id: &SandboxId, timeout: Duration, memory: Memory) -> Result<RuntimeSandbox, ResumeError> {
        check_length(timeout).map_err(ResumeError::InvalidTimeout)?;
        let seen = self.handle(id)?.view.borrow().seen();
        self.ask(id, |reply| Command::Resume { timeout, memory, seen, reply }).await
    }

    /// Pauses with memory. Returns when the state is durable. A paused sandbox is an error, but not to those who asked before it was.
    pub async fn pause(&self, id: &SandboxId) -> Result<(), SnapshotError> {
        self.pause_with(id, Memory::Kept).await
    }

    /// As [`Runtime::pause`]; with memory dropped, only the disk is kept, and a resume boots from it.
    pub async fn pause_with(&self, id: &SandboxId, memory: Memory) -> Result<(), SnapshotError> {
        let handle = self.handle(id)?;
        let seen = handle.view.borrow().seen();
        // Until it counts as paused. Who finds it paused already is told that, and not of a quota.
        let _pausing = match handle.is_running().then(|| self.shared.teams.admit_pause(&handle.team)) {
            Some(Err(source)) => return Err(SnapshotError::Quota { id: id.clone(), source: source.into() }),
            admitted => admitted,
        };
        self.ask(id, |reply| Command::Pause { memory, seen, reply }).await?;
        self.shared.collect();
        Ok(())
    }

    /// `count` copies of a running sandbox, which goes on, or of a paused one. One result per child.
    pub async fn fork(
        &self,
        id: &SandboxId,
        count: u32,
        timeout: Duration,
    ) -> Result<Vec<Result<RuntimeSandbox, CreateError>>, ForkError> {
        if !(1..=MAX_FORK).contains(&count) {
            return Err(ForkError::Count { asked: count, max: MAX_FORK });
        }
        check_timeout(timeout).map_err(ForkError::InvalidTimeout)?;
        let handle = self.handle(id).map_err(SnapshotError::NotFound)?;
        let budget = handle.view.borrow().sandbox.budget;
        // Before the source stands still for it.
        let shares = self.shared.teams.take(&handle.team, count, budget, std::time::Instant::now());
        let shares = shares.map_err(|error| {
            refusal::tell(&self.shared, &handle.team, id.as_str(), Some(Refused::TeamQuota));
            ForkError::TeamQuota(error)
        })?;
        let source: Continuation =
            self.ask(id, |reply| Command::Cut { memory: Memory::Kept, reason: CutReason::Fork, reply }).await?;
        let results = sandbox::fork(&self.owners, &source, shares, timeout).await;
        refusal::tell_of_fork(&self.shared, &handle.team, id.as_str(), &results);
        drop(source.pin);
        self.shared.collect();
        Ok(results)
    }

    /// A state of a running or paused sandbox, from which others are created by its id or name. A name that exists moves to
    /// the new snapshot.
    pub async fn snapshot(&self, id: &SandboxId, name: Option<String>) -> Result<SnapshotInfo, SnapshotError> {
        self.snapshot_with(id, name, Memory::Kept).await
    }

    /// As [`Runtime::snapshot`]; with memory dropped, only the disk is kept, and what is created from it boots.
    pub async fn snapshot_with(
        &self,
        id: &SandboxId,
        name: Option<String>,
        memory: Memory,
    ) -> Result<SnapshotInfo, SnapshotError> {
        let name = name.map(|name| Reference::given(&self.scope, &name)).transpose()?;
        let handle = self.handle(id)?;
        // Until it is on record, so that the next one counts it.
        let _turn = handle.snapshots.lock().await;
        let most = self.shared.teams.quota(&handle.team).snapshots;
        let counted = sandbox_quota::admit_snapshot(&self.shared, (&handle.team, most), id).await;
        counted.map_err(|source| SnapshotError::Quota { id: id.clone(), source })?;
        disk_budget::admit(&self.shared).await.map_err(|source| SnapshotError::DiskPressure { id: id.clone(), source })?;
        let source: Continuation = self.ask(id, |reply| Command::Cut { memory, reason: CutReason::Snapshot, reply }).await?;
        let now = Timestamp::now();
        let record = TemplateRecord {
            id: TemplateId::generate(),
            owner: source.record.owner.clone(),
            build_id: BuildId::generate(),
            artifact: source.artifact.manifest.id.clone(),
            budget: source.record.budget,
            created_at: now,
            updated_at: now,
            spawn_count: 0,
            last_spawned_at: None,
            description: None,
            snapshot_of: Some(id.clone()),
            made_from: Some(source.record.template_id.clone()),
            recipe: None,
            warm_up: None,
            setup: source.record.setup(),
            runs_on: Some(source.artifact.manifest.engine.acceleration.word().to_owned()),
            names: name.map(Reference::full).into_iter().collect(),
        };
        let recorded = self.shared.store.put_snapshot(record, most).await.map_err(SnapshotError::Store)?;
        let record = recorded.map_err(|used| SnapshotError::Quota { id: id.clone(), source: too_many_snapshots(most, used) })?;
        drop(source.pin);
        self.tell_template(TemplateEvent::Snapshot, &record.owner, record.id.as_str(), record.snapshot_of.as_ref());
        self.shared.collect();
        show_snapshot(&record).ok_or_else(|| SnapshotError::NotFound(gone(id)))
    }

    /// Takes a sandbox back to one of its own snapshots, in place: it keeps its id, token and deadline, and connections into it are
    /// cut. A paused sandbox stays paused. On failure it is what it was.
    pub async fn rollback(&self, id: &SandboxId, snapshot: &str) -> Result<RuntimeSandbox, RollbackError> {
        self.handle(id)?;
        let absent = || RollbackError::SnapshotNotFound(snapshot.to_owned());
        let sought: Sought = snapshot.parse().map_err(|_| absent())?;
        let found = self.shared.store.template(self.scope.clone(), sought).await.map_err(RollbackError::Store)?.found();
        let found = found.ok_or_else(absent)?;
        if found.snapshot_of.as_ref() != Some(id) {
            return Err(RollbackError::NotItsOwn { snapshot: snapshot.to_owned(), id: id.clone() });
        }
        let PreparedTemplate { artifact, pin, .. } =
            PreparedTemplate::load(&self.shared, found).await.map_err(RollbackError::Checkpoint)?;
        let result = self.ask(id, |reply| Command::Rollback { checkpoint: Box::new(artifact), reply }).await;
        drop(pin);
        result
    }

    /// Everything on record of this scope, as a forest: each template, snapshot and sandbox below what it came from.
    pub async fn lineage(&self) -> Result<Vec<LineageNode>, StoreError> {
        self.lineage_with(Vec::new()).await
    }

    /// The same with sandboxes of other nodes, as those tell of them.
    pub async fn lineage_with(&self, others: Vec<Descent>) -> Result<Vec<LineageNode>, StoreError> {
        let sandboxes: Vec<_> = self.descents().await?.into_iter().chain(others).collect();
        Ok(lineage::of(&self.shared.store.templates(self.scope.clone()).await?, &sandboxes))
    }

    /// Where each sandbox of this scope came from.
    pub async fn descents(&self) -> Result<Vec<Descent>, StoreError> {
        Ok(self.shared.store.sandboxes(self.scope.clone()).await?.iter().map(Descent::from).collect())
    }

    /// Every snapshot, newest first.
    pub async fn snapshots(&self) -> Result<Vec<SnapshotInfo>, StoreError> {
        let templates = self.shared.store.templates(self.scope.clone()).await?;
        let mut snapshots: Vec<SnapshotInfo> = templates.iter().filter_map(show_snapshot).collect();
        snapshots.sort_by(|a, b| (b.created_at, &b.snapshot_id).cmp(&(a.created_at, &a.snapshot_id)));
        Ok(snapshots)
    }

    /// Ends a sandbox, running or paused, and returns when it is gone.
    pub async fn kill(&self, id: &SandboxId) -> Result<(), KillError> {
        self.ask(id, |reply| Command::Kill { reply }).await
    }

    /// Sets the deadline to `timeout` from now; zero expires it now.
    pub async fn set_timeout(&self, id: &SandboxId, timeout: Duration) -> Result<(), DeadlineError> {
        check_length(timeout).map_err(DeadlineError::InvalidTimeout)?;
        self.ask(id, |reply| Command::Deadline { timeout, only_extend: false, reply }).await
    }

    /// Moves the deadline to `timeout` from now, but never inwards.
    pub async fn extend_timeout(&self, id: &SandboxId, timeout: Duration) -> Result<(), DeadlineError> {
        check_length(timeout).map_err(DeadlineError::InvalidTimeout)?;
        self.ask(id, |reply| Command::Deadline { timeout, only_extend: true, reply }).await
    }

    /// Replaces the outbound network of a running sandbox. What is not allowed any more is cut, also where it was under way.
    ///
    /// Recorded first: whatever fails then, a later resume has the new rules.
    pub async fn set_internet(
        &self,
        id: &SandboxId,
        internet: InternetAccess,
        dns_servers: Option<Vec<Ipv4Addr>>,
    ) -> Result<(), NetworkError> {
        if is_filled(&internet) {
            // A guest is told nothing for rules that are refused.
            let asked = {
                let view = self.handle(id)?.view;
                let View { sandbox, .. } = &*view.borrow();
                internet.clone().of_team(sandbox.owner.clone(), &sandbox.spec.tokens)
            };
            self.shared.links.check(&asked).await?;
            self.trust(id, &internet).await?;
        }
        self.ask(id, |reply| Command::Network { internet, dns_servers, reply }).await
    }

    /// What was decided last of what a sandbox tried to reach by name or through a proxy, the oldest first: of its present machine, and
    /// since it has such rules.
    pub async fn outbound_decisions(&self, id: &SandboxId) -> Result<Vec<Decided>, NoSuchSandbox> {
        let handle = self.handle(id)?;
        let (reply, result) = oneshot::channel();
        handle.commands.send(Command::Decisions { reply }).await.map_err(|_| gone(id))?;
        result.await.map_err(|_| gone(id))
    }

    /// Who may reach the ports of a sandbox and by which token, without copying the rest of it.
    pub fn ingress(&self, id: &SandboxId) -> Result<(Ingress, Option<String>), NoSuchSandbox> {
        let view = self.handle(id)?.view;
        let View { sandbox, .. } = &*view.borrow();
        Ok((sandbox.spec.ingress.clone(), sandbox.traffic_access_token.clone()))
    }

    /// Current resource use as the guest agent sees it; `None` when it is paused or does not answer.
    pub async fn stats(&self, id: &SandboxId) -> Result<Option<firkin_wire::control::Stats>, NoSuchSandbox> {
        let handle = self.handle(id)?;
        let (reply, result) = oneshot::channel();
        handle.commands.send(Command::Stats { reply }).await.map_err(|_| gone(id))?;
        result.await.map_err(|_| gone(id))
    }

    /// Resource use of a sandbox over the last half hour, oldest first. The newest sample is taken now where there is none of the
    /// last seconds.
    pub async fn samples(&self, id: &SandboxId) -> Result<Vec<firkin_wire::control::Stats>, NoSuchSandbox> {
        let handle = self.handle(id)?;
        let recent = |stats: &firkin_wire::control::Stats| {
            Timestamp::now().as_second() - stats.ts < sampler::SAMPLE_EVERY.as_secs().cast_signed()
        };
        if !self.shared.history.samples(id).last().is_some_and(recent) {
            sampler::sample(&self.shared.history, id, &handle).await;
        }
        Ok(self.shared.history.samples(id))
    }

    /// The last samples of a sandbox that there are, oldest first, at most so many. Nobody is asked for a newer one, so that it costs
    /// little for many sandboxes.
    pub fn recent_samples(&self, id: &SandboxId, most: usize) -> Vec<firkin_wire::control::Stats> {
        if self.handle(id).is_err() { Vec::new() } else { self.shared.history.recent(id, most) }
    }

    /// Samples every running sandbox at an interval, until `stop` or the end of the runtime.
    pub async fn sample_all(&self, stop: CancellationToken) {
        sampler::sample_all(Arc::clone(&self.owners), stop).await;
    }

    /// How many sandboxes of a team ran at once and how often one started, by the minute, oldest first, for a week at most and since this server
    /// began. For the host itself, of the first team.
    pub fn activity(&self, start: Timestamp, end: Timestamp) -> Vec<ActivityMinute> {
        self.shared.activity.between(&self.scope.owner(), start, end)
    }

    /// Events of a sandbox, oldest first; for a while also of one that ended.
    pub fn events(&self, id: &SandboxId) -> Result<Vec<Event>, NoSuchSandbox> {
        self.shared.history.events(&self.scope, id).ok_or_else(|| gone(id))
    }

    /// Runs a command in a running sandbox to its end.
    pub async fn run(&self, id: &SandboxId, command: &GuestCommand) -> Result<CommandOutput, CommandError> {
        let View { sandbox, access, .. } = self.handle(id)?.view.borrow().clone();
        match access {
            Access::Paused | Access::Pausing => Err(CommandError::NotFound(gone(id))),
            Access::Running(reach) => command::run(reach.connector, sandbox.envd_access_token.as_deref(), command).await,
        }
    }

    /// A TCP connection to a port inside a sandbox: to who listens on its outer address, else on its loopback. Traffic wakes a
    /// paused sandbox that was created with `auto_resume` and has its memory, and gives what it woke ten seconds to open the port,
    /// since its pause may have come before that; while a sandbox is being paused, it waits for the outcome.
    pub async fn dial(&self, id: &SandboxId, port: u16) -> Result<Dialled, DialError> {
        let mut patience = None;
        for _ in 0..DIAL_ATTEMPTS {
            let mut view = self.handle(id)?.view;
            let View { sandbox, access, .. } = view.borrow_and_update().clone();
            match access {
                Access::Running(reach) => tokio::select! {
                    stream = connect(&reach.connector, port, sandbox.envd_access_token.as_deref(), patience) => {
                        let stream = stream.map_err(|source| DialError::PortClosed { id: id.clone(), port, source });
                        match stream {
                            // A guest that was stopped for its pause did not refuse anything.
                            Err(_) if reach.leaving.is_cancelled() => {}
                            stream => {
                                let Reach { ended, leaving, generation, .. } = reach;
                                let https = sandbox.spec.ingress.https_ports.contains(&port);
                                return Ok(Dialled { stream: stream?, ended, leaving, generation, https });
                            }
                        }
                    }
                    () = reach.leaving.cancelled() => {}
                    () = reach.ended.cancelled() => {}
                },
                Access::Pausing => match tokio::time::timeout(PAUSE_PATIENCE, view.changed()).await {
                    // A sender that is gone is a sandbox that is.
                    Ok(_) => {}
                    Err(_) => return Err(DialError::Transitioning(id.clone())),
                },
                Access::Paused if sandbox.spec.auto_resume && sandbox.memory == Memory::Kept => {
                    let woken = self.ask(id, |reply| Command::Wake { reply }).await;
                    woken.map_err(|source| DialError::Wake { id: id.clone(), source: Box::new(source) })?;
                    patience.get_or_insert_with(|| Instant::now() + WAKE_PATIENCE);
                }
                Access::Paused => return Err(DialError::NotFound(gone(id))),
            }
        }
        Err(DialError::Transitioning(id.clone()))
    }

    /// Takes away what nobody owns. Done at the start and every minute; a session that is just being launched has an owner.
    pub async fn sweep(&self) -> Swept {
        sweep::sweep(&self.shared).await
    }

    /// Secrets, which outlive sandboxes.
    pub fn secrets(&self) -> TeamSecrets<'_> {
        TeamSecrets { secrets: &self.shared.secrets, scope: &self.scope }
    }

    /// What makes the tokens by which others know a sandbox.
    pub fn workload(&self) -> &Workload {
        &self.shared.workload
    }

    /// Volumes, which do too.
    pub fn volumes(&self) -> TeamVolumes<'_> {
        let most = self.shared.teams.quota(&self.scope.owner()).volumes;
        TeamVolumes { volumes: &self.shared.volumes, scope: &self.scope, most }
    }

    /// The acceleration in use unless another is asked for, for output.
    pub fn acceleration(&self) -> Acceleration {
        self.shared.launcher.engines.first().fingerprint().acceleration
    }

    /// All that there are, that one first.
    pub fn accelerations(&self) -> Vec<Acceleration> {
        self.shared.launcher.engines.accelerations()
    }

    /// What keeps machines from this host, and what of it the host lacks.
    pub fn safeguards(&self) -> Vec<Safeguard> {
        self.shared.launcher.engines.safeguards()
    }

    /// The guest system, which may be renewed at any time.
    pub fn guests(&self) -> &Guests {
        &self.shared.config.guest
    }

    /// The host's capacity: offered, held, and waited for.
    pub fn capacity(&self) -> CapacityView {
        self.shared.gates.admission.ledger.view()
    }

    /// Whether a sandbox with this budget would be let in at once, or what it would wait for. Holds nothing: the next may take it.
    pub fn has_room(&self, budget: &ResourceBudget) -> Result<(), CapacityError> {
        self.shared.gates.admission.ledger.has_room(budget)
    }

    /// Where the code that does something takes down how long it took.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.shared.metrics
    }

    /// Everything that is counted and timed, as [`metrics::CONTENT_TYPE`](crate::telemetry::metrics::CONTENT_TYPE).
    /// With what each team holds for who administers teams, and nobody else.
    pub fn render_metrics(&self, with_teams: bool) -> String {
        let (all, running) = self.owners.count();
        let (capacity, pool, outbound) = (self.capacity(), self.pool(), self.shared.links.outcomes().counts().collect());
        let live = Live { running, paused: all - running, capacity, pool, outbound, standing: self.standing() };
        let teams = with_teams.then(|| self.shared.teams.figures());
        self.shared.metrics.render(&live, teams.as_deref(), self.shared.copying.as_deref())
    }

    /// Tells those who watch what became of a template or a snapshot.
    fn tell_template(&self, event: TemplateEvent, owner: &TeamId, id: &str, snapshot_of: Option<&SandboxId>) {
        let what = What::Template { event, template_id: id.to_owned(), snapshot_of: snapshot_of.cloned() };
        self.shared.changes.tell(Some(owner), what);
    }

    /// The warm pool in numbers.
    pub fn pool(&self) -> PoolStatus {
        self.pool.status()
    }

    /// Stops: no new work, then every running sandbox ends or is paused. Returns when nothing is left.
    pub async fn shutdown(&self, on_exit: OnExit) {
        ending::end(&self.shared, &self.owners, on_exit).await;
    }
}

/// Takes over what an earlier server left.
async fn begin(owners: &Arc<Owners>) -> Result<(), OpenError> {
    sweep::take_over(owners).await?;
    build::recover(&owners.shared).await.map_err(OpenError::Store)
}

/// Looks at a sandbox that changes under a connection: each is a whole pause or resume, so the second finds it at rest.
const DIAL_ATTEMPTS: u32 = 8;

/// How long a port of a sandbox that traffic woke may stay closed.
const WAKE_PATIENCE: Duration = Duration::from_secs(10);

/// Between attempts to reach a port that is not open yet.
const WAKE_RETRY: Duration = Duration::from_millis(100);

/// Connects, again and again until `patience` has passed, if there is any.
async fn connect(connector: &Connector, port: u16, token: Option<&str>, patience: Option<Instant>) -> std::io::Result<TcpStream> {
    loop {
        match forward::reach(connector, port, token).await {
            Err(_) if patience.is_some_and(|until| Instant::now() < until) => tokio::time::sleep(WAKE_RETRY).await,
            connected => return connected,
        }
    }
}

/// Traffic waits this long for a pause to end, which is as long as the longest of its steps may take.
const PAUSE_PATIENCE: Duration = Duration::from_secs(60);

fn show_snapshot(record: &TemplateRecord) -> Option<SnapshotInfo> {
    Some(SnapshotInfo {
        snapshot_id: match record.names.first() {
            Some(name) => with_team(&record.owner, name),
            None => format!("{}:{DEFAULT}", record.id),
        },
        owner: record.owner.clone(),
        names: record.names.iter().filter(|_| record.base_name().is_some()).cloned().collect(),
        sandbox_id: record.snapshot_of.clone()?,
        created_at: record.created_at,
    })
}
