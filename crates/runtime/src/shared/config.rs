//! Configuration of a runtime, given when it is opened. Resolved by the caller; nothing here reads the environment.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use firkin_cgroup::Groups;
use firkin_copies::Copies;
use firkin_engine::BootFiles;
use ipnet::Ipv4Net;

use crate::{
    capacity::HostCapacity,
    host::{
        disk::{DiskPressureProbe, StatvfsProbe},
        memory_pressure::{MemoryPressureProbe, ProcProbe},
    },
    images::{ImageSource, OwnImage, root_image::RootImage},
    machine::{fence::Fence, network::NetworkChoice},
    restore::warm::WarmConfig,
    storage::{secrets::SharedSecrets, volumes::VolumeLimits},
    store::{catalog::Catalog, claims::Claims},
};

pub use crate::{
    artifact::{EncryptionConfig, Fetch, FlattenConfig},
    capacity::admission::{AdmissionConfig, QUEUE_DEADLINE, QUEUE_LENGTH, WARM_PERCENT},
};

/// An issuer that nobody reaches: its tokens are believed by who has the key from elsewhere.
const DEFAULT_ISSUER: &str = "https://firkin.localhost";

/// Settings of one runtime.
#[derive(Debug, Clone)]
pub struct RuntimeConfig {
    /// Directory of everything that outlives the process. Created if missing; one runtime at a time.
    pub state_dir: PathBuf,
    /// Where it is recorded what there is; `None` for a database in the state directory.
    pub catalog: Option<Arc<dyn Catalog>>,
    /// Where artifacts come from that are on record and not here; `None` where all that is on record is here.
    pub fetch: Option<Arc<dyn Fetch>>,
    /// How sandboxes go to other hosts that share the catalogue, and come from them; `None` where nobody does.
    pub claims: Option<Arc<dyn Claims>>,
    /// Secrets, and the keys of what is put into requests, where hosts that share the catalogue have them together; `None` where this one has its own.
    pub secrets: Option<Arc<dyn SharedSecrets>>,
    /// Who stops machines that others could have; `None` where nobody could.
    pub fence: Option<Arc<dyn Fence>>,
    /// The capacity that all sandboxes share.
    pub capacity: HostCapacity,
    /// How requests are admitted, and the part of the capacity that warm sessions may hold.
    pub admission: AdmissionConfig,
    /// Sessions kept ready for creates.
    pub warm: WarmConfig,
    /// Free-space floor in MiB; `None` for the default, scaled to the disk.
    pub disk_floor_mib: Option<u64>,
    /// Disk that the state directory may hold in MiB, volumes aside; `None` for all above the floor.
    pub disk_budget_mib: Option<u64>,
    /// What one sandbox may hold of the disk.
    pub sandboxes: SandboxLimits,
    /// How many volumes there may be, and how large.
    pub volumes: VolumeLimits,
    /// Measures free space.
    pub disk_probe: Arc<dyn DiskPressureProbe>,
    /// Measures the host's memory.
    pub memory_probe: Arc<dyn MemoryPressureProbe>,
    /// Who says that identity tokens of sandboxes are its own: a URL under which others reach this server, without a slash at its end.
    pub issuer: String,
    /// Variables of sandboxes that trust an authority of this installation: by which programs that bring authorities of their own are told
    /// of the guest's.
    pub authority_variables: BTreeMap<String, String>,
    /// Networks that are not the internet's and that events may be sent to all the same, also in the clear.
    pub webhook_networks: Vec<Ipv4Net>,
    /// What of this is encrypted.
    pub encryption: EncryptionConfig,
    /// Where what is durable is copied to, off this host; `None` for nowhere.
    pub copies: Option<CopyConfig>,
    /// When a paused sandbox gets a memory of its own.
    pub flatten: FlattenConfig,
    /// Network of sandboxes.
    pub network: NetworkChoice,
    /// Control groups that hold machines to what they may use of the host; `None` for no limits.
    pub groups: Option<Groups>,
    /// The guest system that template builds start from.
    pub guest: Guests,
    /// Where container images come from that builds start from.
    pub images: Arc<dyn ImageSource>,
}

impl RuntimeConfig {
    /// Every choice that has a default made by it.
    pub fn new(state_dir: PathBuf, capacity: HostCapacity, network: NetworkChoice, guest: GuestSystem) -> Self {
        Self {
            state_dir,
            catalog: None,
            fetch: None,
            claims: None,
            secrets: None,
            fence: None,
            capacity,
            admission: AdmissionConfig::default(),
            warm: WarmConfig::default(),
            disk_floor_mib: None,
            disk_budget_mib: None,
            sandboxes: SandboxLimits::default(),
            volumes: VolumeLimits::default(),
            disk_probe: Arc::new(StatvfsProbe),
            memory_probe: Arc::new(ProcProbe::new()),
            issuer: DEFAULT_ISSUER.to_owned(),
            authority_variables: BTreeMap::new(),
            webhook_networks: Vec::new(),
            encryption: EncryptionConfig::default(),
            copies: None,
            flatten: FlattenConfig::default(),
            network,
            groups: None,
            images: Arc::new(OwnImage(guest.root())),
            guest: guest.into(),
        }
    }
}

/// How long a copy stays of what has gone here, unless the operator says otherwise: long enough to notice that it was a mistake.
pub const KEEP_COPIES: Duration = Duration::from_secs(7 * 24 * 3600);

/// Copies off the host.
#[derive(Debug, Clone)]
pub struct CopyConfig {
    /// Where to.
    pub copies: Copies,
    /// How long a copy stays of what has gone here.
    pub keep: Duration,
    /// How often what has gone for so long is looked for.
    pub clean_every: Duration,
}

impl CopyConfig {
    /// With every choice made by its default.
    pub fn new(copies: Copies) -> Self {
        Self { copies, keep: KEEP_COPIES, clean_every: Duration::from_secs(3600) }
    }
}

/// What guests are made of: what an engine boots, and the root image, with its digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestSystem {
    /// What an engine of the kind that is used boots.
    pub boot: BootFiles,
    /// Root image, raw ext4, immutable and readable by everyone.
    pub rootfs: PathBuf,
    /// Its digest.
    pub rootfs_digest: String,
    /// Its size as the guest sees it, bytes.
    pub rootfs_bytes: u64,
}

impl GuestSystem {
    /// The root image of templates that name no other.
    pub fn root(&self) -> RootImage {
        RootImage { path: self.rootfs.clone(), digest: self.rootfs_digest.clone(), bytes: self.rootfs_bytes }
    }
}

/// The guest system that is used now. Whoever opened a runtime keeps a clone, and renews the system while the runtime serves: what is
/// built or booted from then on is made of the new one. What was built before stands on the files that it was made of.
#[derive(Debug, Clone)]
pub struct Guests(Arc<RwLock<Arc<GuestSystem>>>);

impl Guests {
    /// The one that is used now.
    pub fn now(&self) -> Arc<GuestSystem> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on `guest` is used.
    pub fn renew(&self, guest: GuestSystem) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(guest);
    }
}

impl From<GuestSystem> for Guests {
    fn from(guest: GuestSystem) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(guest))))
    }
}

/// Snapshots of one sandbox unless the operator says how many: each is a record and an artifact, however small.
pub const MAX_SNAPSHOTS: usize = 1000;

/// What one sandbox may hold of the disk, running or paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SandboxLimits {
    /// MiB of overlay, own layers, paused state and snapshots together; `None` for a quarter of the disk, or the sandbox's own disk and
    /// memory where these are more.
    pub disk_mib: Option<u64>,
    /// The most snapshots.
    pub snapshots: usize,
}

impl Default for SandboxLimits {
    fn default() -> Self {
        Self { disk_mib: None, snapshots: MAX_SNAPSHOTS }
    }
}

/// How much more is promised to sandboxes than the host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overcommit {
    /// How many times the host's processors sandboxes may hold together.
    pub cpus: u32,
    /// Per cent of the host's memory that sandboxes may hold together; above 100, more than there is.
    pub memory_percent: u32,
    /// How many times the free space sandboxes may be promised together.
    pub disk: u32,
}

impl Default for Overcommit {
    /// Processors 16 times: most agents' sandboxes wait most of the time. Memory 90 %: clones share most of theirs, but each
    /// may write all of it, and only so much of the host is left for that. Disk 16 times: it is promised as sparse overlays,
    /// and the floor stops new work before promises can all be called in.
    fn default() -> Self {
        Self { cpus: 16, memory_percent: 90, disk: 16 }
    }
}

impl HostCapacity {
    /// The capacity of a host with these processors, this memory and this free space.
    pub fn with_overcommit(cpus: u32, memory_mib: u64, free_disk_mib: u64, overcommit: Overcommit) -> Self {
        Self {
            cpus: cpus.saturating_mul(overcommit.cpus),
            memory_mib: memory_mib.saturating_mul(overcommit.memory_percent.into()) / 100,
            disk_mib: free_disk_mib.saturating_mul(overcommit.disk.into()),
        }
    }
}
