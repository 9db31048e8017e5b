//! The engine contract's harness for real QEMU: the product's own kernel, agent and root file system, under throw-away users.

use std::{
    collections::BTreeMap,
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use firkin_engine::{
    Attachment, BootFile, BootFiles, BootSpec, ControlStream, Engine, Processor, RestoreSpec, Shape, Slot,
    contract::{self, Guest, Harness, Snapshot},
    qemu::{
        QemuEngine,
        probe::{ProbeError, ProbeRequest, Requested, probe},
    },
};
use firkin_image::{Additions, Cache, GuestKernel, base_rootfs, guest_kernel, initramfs};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, getuid},
};

use crate::{
    agent_guest::{AgentGuest, Way},
    guest_link::namespace,
    users,
};

/// The size of every machine here.
pub const SHAPE: Shape = Shape { vcpus: 1, memory_mib: 512 };
/// More users than one harness uses.
const UIDS: u32 = 500;
/// Harnesses of one process.
const HARNESSES_MAX: u32 = 8;
/// From power-on to power-off of an emulated guest on a busy host.
const PROBE_DEADLINE: Duration = Duration::from_secs(60);
/// The same where there is something else to run with: what a server has, with which these tests share what was found out.
const AUTO_DEADLINE: Duration = Duration::from_secs(20);

static HARNESSES: AtomicU32 = AtomicU32::new(0);

/// What guests are made of.
#[derive(Debug, Clone)]
pub struct GuestFiles {
    /// Linux kernel image.
    pub kernel: PathBuf,
    /// Initial RAM file system with the agent.
    pub initrd: PathBuf,
    /// Raw root file system, a file or a block device.
    pub rootfs: PathBuf,
    /// Its size.
    pub rootfs_bytes: u64,
}

impl GuestFiles {
    /// What an engine boots, undigested.
    pub fn boot(&self) -> BootFiles {
        let file = |path: &PathBuf| BootFile { path: path.clone(), digest: String::new() };
        BootFiles::new(file(&self.kernel), file(&self.initrd))
    }

    /// The product's own, built first if this machine has none yet.
    pub async fn of_this_host(cache: &Cache) -> (Self, GuestKernel) {
        let kernel = guest_kernel(cache, &|_| ()).await.expect("there is a guest kernel");
        let initrd = initramfs(cache, &kernel, firkin_agent::GUEST_AGENT).await.expect("an initramfs is packed");
        let additions = Additions { kernel: kernel.clone(), certificates: Vec::new() };
        let root = base_rootfs(cache, &additions, &|_| ()).await.expect("there is a root file system");
        let files =
            Self { kernel: kernel.kernel.clone(), initrd: initrd.path, rootfs: root.path, rootfs_bytes: root.virtual_bytes };
        (files, kernel)
    }

    /// Finds out how these guests run here.
    pub async fn probe(&self, requested: Requested, verdict_file: Option<PathBuf>) -> Result<QemuEngine, ProbeError> {
        self.probe_program(None, requested, verdict_file).await
    }

    /// The same with a binary of one's choice.
    pub async fn probe_program(
        &self,
        program: Option<PathBuf>,
        requested: Requested,
        verdict_file: Option<PathBuf>,
    ) -> Result<QemuEngine, ProbeError> {
        probe(&ProbeRequest {
            program,
            kernel: self.kernel.clone(),
            initrd: self.initrd.clone(),
            requested,
            deadline: match requested {
                Requested::Auto => AUTO_DEADLINE,
                Requested::Kvm | Requested::Tcg => PROBE_DEADLINE,
            },
            verdict_file,
        })
        .await
    }
}

/// The cache that the tests of this machine share.
pub async fn cache() -> Cache {
    let dir = std::env::var_os("FIRKIN_CACHE_DIR").map_or_else(|| PathBuf::from("/var/cache/firkin"), PathBuf::from);
    Cache::open(&dir).await.expect("the cache opens")
}

/// Everything that instances are made from.
#[derive(Debug)]
pub struct QemuHarness {
    /// The engine under test.
    pub engine: QemuEngine,
    files: GuestFiles,
    dir: tempfile::TempDir,
    first_uid: u32,
    next: AtomicU32,
    /// Network namespace of each instance, by its directory.
    networks: Mutex<BTreeMap<PathBuf, Arc<OwnedFd>>>,
}

impl QemuHarness {
    /// A harness, or `None` after saying why the host cannot have one.
    #[expect(clippy::print_stderr, reason = "a skip is printed")]
    pub async fn open() -> Option<Self> {
        if !getuid().is_root() {
            eprintln!("SKIP: machines need root");
            return None;
        }
        let cache = cache().await;
        let (files, _) = GuestFiles::of_this_host(&cache).await;
        match files.probe(Requested::Auto, Some(cache.dir().join("acceleration.json"))).await {
            Ok(engine) => Some(Self::new(engine, files)),
            Err(error @ (ProbeError::Missing { .. } | ProbeError::TooOld { .. })) => {
                eprintln!("SKIP: {error}");
                None
            }
            Err(error) => panic!("QEMU is there and does not work: {error:?}"),
        }
    }

    /// A harness for this engine and these guests.
    #[expect(clippy::print_stderr, reason = "a test names what it runs on")]
    pub fn new(engine: QemuEngine, files: GuestFiles) -> Self {
        eprintln!("engine: {} with {}", engine.fingerprint().version, engine.fingerprint().acceleration);
        let dir = tempfile::Builder::new().prefix("firkin-engine-").tempdir().expect("a directory");
        Self { engine, files, dir, first_uid: first_uid(), next: AtomicU32::new(0), networks: Mutex::default() }
    }

    /// A directory for an instance, and its user.
    fn instance(&self) -> (PathBuf, u32) {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        let (path, uid) = (self.dir.path().join(format!("instance-{n}")), self.first_uid + n);
        // As a server makes them.
        std::fs::DirBuilder::new().mode(0o700).create(&path).expect("a directory");
        (path, uid)
    }

    fn slot(&self, instance: &Path, uid: u32) -> Slot {
        let (netns, tap) = namespace().expect("a namespace with a tap");
        let ours = Arc::new(netns.try_clone().expect("a descriptor is duplicated"));
        self.networks.lock().expect("no panic").insert(instance.to_path_buf(), ours);
        Slot { uid, netns, attachment: Attachment::Tap(tap), mac: [2, 0, 0, 0, 0, 1], groups: Vec::new() }
    }

    /// Processes of this harness's users.
    pub fn processes(&self) -> Vec<u32> {
        let ours = self.first_uid..self.first_uid + UIDS;
        let entries = fs_err::read_dir("/proc").expect("procfs").flatten();
        let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        numbers
            .filter(|pid| fs_err::metadata(format!("/proc/{pid}")).is_ok_and(|process| ours.contains(&process.uid())))
            .collect()
    }
}

/// Users of its own for every harness of every process that tests at the same time.
fn first_uid() -> u32 {
    let harness = HARNESSES.fetch_add(1, Ordering::Relaxed);
    assert!(harness < HARNESSES_MAX, "HARNESSES_MAX has not grown with the tests");
    users::QEMU + (std::process::id() % 3_500 * HARNESSES_MAX + harness) * UIDS
}

#[async_trait]
impl Harness for QemuHarness {
    fn engine(&self) -> &dyn Engine {
        &self.engine
    }

    async fn boot_spec(&self) -> BootSpec {
        let (dir, uid) = self.instance();
        BootSpec {
            disk: contract::disk_of(self.engine.disks(), &dir, &self.files.rootfs, self.files.rootfs_bytes),
            memory_file: dir.join("memory"),
            slot: self.slot(&dir, uid),
            dir,
            shape: SHAPE,
            processor: Processor::Plain,
            boot: self.files.boot(),
        }
    }

    async fn restore_spec(&self, snapshot: &Snapshot) -> RestoreSpec {
        // A frozen layer is the server's to read, and nobody's to write.
        fs_err::set_permissions(&snapshot.disk, std::fs::Permissions::from_mode(0o400)).expect("a disk is frozen");
        let (dir, uid) = self.instance();
        RestoreSpec {
            disk: contract::disk_over(self.engine.disks(), &dir, &snapshot.disk, &self.files.rootfs),
            slot: self.slot(&dir, uid),
            dir,
            shape: SHAPE,
            processor: Processor::Plain,
            announces: false,
            memory: snapshot.memory.clone(),
            state: snapshot.state.clone(),
        }
    }

    async fn snapshot_dir(&self) -> PathBuf {
        let path = self.dir.path().join(format!("snapshot-{}", self.next.fetch_add(1, Ordering::Relaxed)));
        fs_err::create_dir(&path).expect("a directory");
        path
    }

    fn guest(&self, stream: Box<dyn ControlStream>, instance: &Path) -> Box<dyn Guest> {
        let network = self.networks.lock().expect("no panic").get(instance).cloned();
        Box::new(AgentGuest::behind(stream, network.map(Way::Network)))
    }

    async fn crash(&self, pid: Option<u32>, _instance: &Path) {
        let pid = pid.and_then(|pid| i32::try_from(pid).ok()).expect("a live machine has a process");
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("the process is there");
    }

    fn live(&self) -> usize {
        self.processes().len()
    }
}
