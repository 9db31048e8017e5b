//! State that every part of the runtime shares, and that outlives single sandboxes.

use std::sync::Arc;

use firkin_engine::{Acceleration, BootFiles, Engine, Fingerprint, ImageForm};
use tokio::sync::{Notify, Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    artifact::ArtifactStore,
    capacity::TeamBook,
    machine::{launch::FilesInMemory, network::Links, outbound::Filling, session::EngineLauncher},
    restore::RestoreGates,
    storage::{keys::Keys, secrets::Secrets, uploads::Files, volumes::Volumes, workload::Workload},
    store::{Store, state_dir::StateLock},
    telemetry::{
        activity::Activity, changes::Feed, copies::Copying, history::History, metrics::Metrics, spawns::SpawnCounts,
        webhooks::Webhooks,
    },
};

pub mod config;

use self::config::{GuestSystem, RuntimeConfig};

/// Merges and the like at once: they read and write whole layers, and nobody waits for them.
const UPKEEP_AT_ONCE: usize = 1;

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: RuntimeConfig,
    pub(crate) store: Store,
    pub(crate) artifacts: ArtifactStore,
    pub(crate) gates: RestoreGates,
    pub(crate) launcher: EngineLauncher,
    pub(crate) links: Arc<Links>,
    pub(crate) metrics: Arc<Metrics>,
    /// Files that clients upload for builds.
    pub(crate) files: Files,
    /// One task per sandbox, per warm session and per build, the pool's keeper, and collection.
    pub(crate) tasks: TaskTracker,
    /// Cancelled once: no new work.
    pub(crate) stopping: CancellationToken,
    pub(crate) keys: Keys,
    /// What each team holds of what it may have.
    pub(crate) teams: TeamBook,
    pub(crate) history: History,
    pub(crate) activity: Activity,
    /// What is told as it happens.
    pub(crate) changes: Arc<Feed>,
    pub(crate) webhooks: Arc<Webhooks>,
    pub(crate) secrets: Arc<Secrets>,
    pub(crate) volumes: Arc<Volumes>,
    pub(crate) workload: Arc<Workload>,
    pub(crate) filling: Arc<Filling>,
    /// What is owed to a store off the host, where there is one.
    pub(crate) copying: Option<Arc<Copying>>,
    pub(crate) spawns: SpawnCounts,
    collect: Notify,
    /// A sandbox was paused, and nobody has looked since.
    paused: Notify,
    /// Held by who collects: one collection at a time, with what it does for the budget.
    pub(crate) collecting: tokio::sync::Mutex<()>,
    /// Held by who brings an artifact here from another host.
    pub(crate) fetching: Arc<tokio::sync::Mutex<()>>,
    /// Held by who brings a copy of another host's: of these at most one stands before who needs something now.
    pub(crate) keeping: tokio::sync::Mutex<()>,
    /// Held by who takes a sandbox over from another host, until it has an owner here.
    pub(crate) taking: tokio::sync::Mutex<()>,
    /// Whose turn it is for work that nobody waits for.
    pub(crate) upkeep: Semaphore,
    /// Held for the life of the process: one server per state directory.
    #[expect(dead_code, reason = "held, not read")]
    lock: StateLock,
}

/// The parts that are made before the rest.
pub(crate) struct Parts {
    pub(crate) config: RuntimeConfig,
    pub(crate) store: Store,
    pub(crate) gates: RestoreGates,
    pub(crate) launcher: EngineLauncher,
    pub(crate) files: Files,
    pub(crate) keys: Keys,
    pub(crate) teams: TeamBook,
    pub(crate) lock: StateLock,
    pub(crate) secrets: Arc<Secrets>,
    pub(crate) workload: Arc<Workload>,
    pub(crate) filling: Arc<Filling>,
    pub(crate) webhooks: Arc<Webhooks>,
}

impl Shared {
    pub(crate) fn new(parts: Parts) -> Arc<Self> {
        let shared = Arc::new(Self {
            secrets: parts.secrets,
            volumes: Arc::new(Volumes::of(&parts.config.state_dir, parts.gates.disk.clone(), parts.config.volumes)),
            workload: parts.workload,
            filling: parts.filling,
            files: parts.files,
            copying: parts.config.copies.as_ref().map(|_| Arc::default()),
            config: parts.config,
            artifacts: parts.gates.artifacts.clone(),
            metrics: Arc::new(Metrics::new(parts.launcher.engines.first().fingerprint().acceleration, parts.store.seconds())),
            store: parts.store,
            gates: parts.gates,
            links: Arc::clone(&parts.launcher.links),
            launcher: parts.launcher,
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
            keys: parts.keys,
            teams: parts.teams,
            history: History::default(),
            activity: Activity::default(),
            changes: Feed::new(),
            webhooks: parts.webhooks,
            spawns: SpawnCounts::default(),
            collect: Notify::new(),
            paused: Notify::new(),
            collecting: tokio::sync::Mutex::default(),
            fetching: Arc::default(),
            keeping: tokio::sync::Mutex::default(),
            taking: tokio::sync::Mutex::default(),
            upkeep: Semaphore::new(UPKEEP_AT_ONCE),
            lock: parts.lock,
        });
        shared.tasks.spawn(Arc::clone(&shared).memory_watch());
        shared
    }

    /// What an engine boots a guest of this system from, beside its root disk.
    pub(crate) fn boot_files(engine: &dyn Engine, guest: &GuestSystem) -> BootFiles {
        match engine.disks().image_form() {
            ImageForm::Ext4 => guest.boot.clone(),
            ImageForm::ErofsWithAgent => BootFiles::InRootImage { agent: guest.boot.digests()[1].to_owned() },
        }
    }

    /// Refuses what needs a disk that is whole without its guest's memory, where there is none.
    pub(crate) fn demand_disk(&self, made: &Fingerprint) -> Result<(), FilesInMemory> {
        let holds = match self.launcher.engines.its_own(made) {
            Some(engine) => engine.disks().holds_writes(),
            // Nobody is there to ask.
            None => made.acceleration != Acceleration::Gvisor,
        };
        if holds { Ok(()) } else { Err(FilesInMemory { acceleration: made.acceleration }) }
    }

    /// Has what nobody needs any more removed, soon; and what is new copied off the host, where it is.
    pub(crate) fn collect(&self) {
        self.collect_again();
        if let Some(copying) = &self.copying {
            copying.changed();
        }
    }

    /// Has what nobody needs any more removed, soon: what has been let go of by whoever only looked at it.
    pub(crate) fn collect_again(&self) {
        self.collect.notify_one();
    }

    /// Ends once somebody has asked for that.
    pub(crate) async fn collection_wanted(&self) {
        self.collect.notified().await;
    }

    /// Tells whoever sees to second copies that a sandbox is paused, and on record so.
    pub(crate) fn note_paused(&self) {
        self.paused.notify_one();
    }

    /// Ends once a sandbox was paused since the last time.
    pub(crate) async fn was_paused(&self) {
        self.paused.notified().await;
    }

    async fn memory_watch(self: Arc<Self>) {
        tokio::select! {
            () = self.gates.admission.watch_memory() => {}
            () = self.stopping.cancelled() => {}
        }
    }
}
