//! A runtime on real gVisor, in a network that is the test's own, and guests whose memory a test reads and writes by a shell. It has the names
//! of the bench of the fake engine, so that tests are the same.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use firkin_engine::{
    AttachmentKind, BootFiles, BootSpec, Compatibility, DiskFormat, Engine, ImageForm, Machine, OwnMemory, Prepared, RestoreSpec,
    Safeguard, StartError, gvisor::GvisorEngine,
};
use firkin_network::NetworkConfig;
use firkin_runtime::{
    capacity::HostCapacity,
    config::{EncryptionConfig, GuestSystem, RuntimeConfig},
    images::{BuildImage, ImageError, ImageRequest, ImageSource, OwnImage},
    memory_pressure::HostMemory,
    network::NetworkChoice,
    owner::OnExit,
    progress::Report,
    root_image::RootImage,
    runtime::Runtime,
    sandbox::{CreateSandbox, SandboxId},
    standard::BuildTemplate,
};
use firkin_vm_tests::{
    agent_guest::shell,
    engine_gvisor::{DISK_BYTES, GvisorHarness},
    users::LIFE_ON_GVISOR,
};
use nix::{
    sched::{CloneFlags, unshare},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// How many histories are tried. Each is minutes of a fake engine's.
pub(crate) const CASES: u32 = 3;

/// What was killed is gone by then.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where a guest keeps its word: in memory.
const WORD: &str = "/tmp/word";

/// What a guest under test holds in its memory.
#[derive(Debug)]
pub(crate) struct Memory {
    /// What the test made it remember.
    pub(crate) word: String,
    /// The last life that it was told of.
    pub(crate) identities: Vec<Given>,
}

/// What is known of one life.
#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) epoch: u64,
}

/// The engine, which counts what a test asks for.
#[derive(Debug, Clone)]
pub(crate) struct Counting {
    engine: GvisorEngine,
    restores: Arc<AtomicU64>,
    run_dir: PathBuf,
}

impl Counting {
    /// How many restores were begun.
    pub(crate) fn restores(&self) -> u64 {
        self.restores.load(Ordering::SeqCst)
    }

    /// Instance directories whose sandbox is alive.
    pub(crate) fn live_dirs(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs_err::read_dir(&self.run_dir) else { return Vec::new() };
        entries.map(|entry| entry.unwrap().path()).filter(|dir| sandbox_of(dir).is_some()).collect()
    }

    pub(crate) fn live(&self) -> usize {
        self.live_dirs().len()
    }

    /// Ends a sandbox as a power cut does.
    pub(crate) fn crash(&self, dir: &Path) {
        kill(sandbox_of(dir).unwrap(), Signal::SIGKILL).unwrap();
        let begun = Instant::now();
        while sandbox_of(dir).is_some() {
            assert!(begun.elapsed() < PATIENCE, "a killed sandbox does not end");
            std::thread::yield_now();
        }
    }
}

/// The process of a sandbox that lives. A zombie does not.
fn sandbox_of(dir: &Path) -> Option<Pid> {
    let pid: i32 = fs_err::read_to_string(dir.join("sandbox.pid")).ok()?.trim().parse().ok()?;
    let status = fs_err::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, state) = status.rsplit_once(") ")?;
    (!state.starts_with(['Z', 'X'])).then(|| Pid::from_raw(pid))
}

#[async_trait]
impl Engine for Counting {
    fn compatibility(&self) -> &Compatibility {
        self.engine.compatibility()
    }

    fn own_memory(&self) -> OwnMemory {
        self.engine.own_memory()
    }

    fn most_threads(&self) -> u32 {
        self.engine.most_threads()
    }

    fn safeguards(&self) -> Vec<Safeguard> {
        self.engine.safeguards()
    }

    fn attachment(&self) -> AttachmentKind {
        self.engine.attachment()
    }

    fn disks(&self) -> &'static dyn DiskFormat {
        self.engine.disks()
    }

    async fn boot(&self, spec: BootSpec) -> Result<Box<dyn Machine>, StartError> {
        self.engine.boot(spec).await
    }

    async fn prepare(&self, spec: RestoreSpec) -> Result<Box<dyn Prepared>, StartError> {
        self.restores.fetch_add(1, Ordering::SeqCst);
        self.engine.prepare(spec).await
    }

    fn has_started(&self, dir: &Path) -> bool {
        self.engine.has_started(dir)
    }

    fn unnamed_bytes(&self, dir: &Path) -> std::io::Result<u64> {
        self.engine.unnamed_bytes(dir)
    }

    async fn adopt(&self, dir: &Path) -> Result<Box<dyn Machine>, StartError> {
        self.engine.adopt(dir).await
    }

    fn spare_programs(&self) -> std::io::Result<Vec<String>> {
        self.engine.spare_programs()
    }

    fn forget_program(&self, program: &str) -> std::io::Result<()> {
        self.engine.forget_program(program)
    }
}

/// The harness's root image, which is in the engine's form already.
#[derive(Debug)]
struct Images(OwnImage);

#[async_trait]
impl ImageSource for Images {
    async fn image(&self, request: &ImageRequest, report: Report<'_>) -> Result<BuildImage, ImageError> {
        self.0.image(request, report).await
    }

    async fn in_form(&self, root: RootImage, _: ImageForm, _: Report<'_>) -> Result<RootImage, ImageError> {
        Ok(root)
    }
}

/// A host with its disk and its network: servers come and go on it.
pub(crate) struct Host {
    pub(crate) engine: Counting,
    harness: GvisorHarness,
    dir: tempfile::TempDir,
    /// Of its servers, the same for all.
    first_uid: u32,
}

impl Host {
    /// On this thread, which is in a network of its own from now on, and on those that it starts. Ends the test where there is no gVisor,
    /// which is said.
    pub(crate) fn new() -> Self {
        unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
        let harness = on_a_thread(GvisorHarness::open).expect("the set-up of the tests installs `runsc` and `mkfs.erofs`");
        let dir = tempfile::Builder::new().prefix("firkin-life-").tempdir().unwrap();
        let engine = harness.engine.clone();
        let engine = Counting { engine, restores: Arc::default(), run_dir: dir.path().join("state/run") };
        Self { engine, harness, dir, first_uid: own_uids() }
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn claims(&self) -> PathBuf {
        self.dir.path().join("claims")
    }

    fn config(&self) -> RuntimeConfig {
        let capacity = HostCapacity { cpus: 64, memory_mib: 1 << 20, disk_mib: 1 << 30 };
        let guest = GuestSystem {
            boot: BootFiles::InRootImage { agent: String::new() },
            rootfs: self.harness.image.clone(),
            rootfs_digest: "r".into(),
            rootfs_bytes: DISK_BYTES,
        };
        let network = NetworkConfig {
            claims_dir: self.claims(),
            first_uid: self.first_uid,
            attachment: AttachmentKind::Interface,
            prepared: 0,
            prepared_sealed: 0,
            ..NetworkConfig::new(self.dir.path().display().to_string())
        };
        let defaults = RuntimeConfig::new(self.state_dir(), capacity, NetworkChoice::Isolated(network), guest);
        let images = Arc::new(Images(OwnImage(defaults.guest.now().root())));
        let encryption = EncryptionConfig { seal: false, key_file: None };
        RuntimeConfig { disk_floor_mib: Some(0), memory_probe: Arc::new(HostMemory::PLENTY), images, encryption, ..defaults }
    }

    /// A server on this host, with template `base`. One at a time.
    pub(crate) async fn server(&self) -> Runtime {
        let engine: Arc<dyn Engine> = Arc::new(self.engine.clone());
        let runtime = Runtime::open(self.config(), engine).await.unwrap();
        let base = BuildTemplate { ready: None, ..BuildTemplate::base() };
        Box::pin(runtime.ensure_template(base, &|_| {})).await.unwrap();
        runtime
    }

    /// Runs a server until `work` has ended, then has it leave its sandboxes, which live on. The fake engine's bench kills it; here the
    /// threads that see to its network would go on in this process, beside those of the next. Servers on gVisor are killed in the tests of
    /// the SDK.
    pub(crate) fn crash_after<T>(&self, work: impl AsyncFnOnce(Runtime) -> T) -> T {
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio.block_on(async {
            let server = self.server().await;
            let result = work(server.clone()).await;
            server.shutdown(OnExit::Leave).await;
            result
        })
    }

    /// Runs a server to a clean end.
    pub(crate) fn serve<T>(&self, work: impl AsyncFnOnce(&Runtime) -> T) -> T {
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio.block_on(async {
            let server = self.server().await;
            let result = work(&server).await;
            server.shutdown(OnExit::Kill).await;
            assert_eq!(self.engine.live(), 0, "a server that stopped leaves no sandbox");
            result
        })
    }

    fn shell(&self, id: &SandboxId, script: &str) -> String {
        let dir = self.engine.run_dir.join(id.as_str());
        shell(self.engine.engine.program(), &dir, "0:0", script).unwrap()
    }

    pub(crate) fn memory(&self, id: &SandboxId) -> Memory {
        let said = self.shell(id, &format!("cat /run/firkin/epoch; test -e {WORD} && cat {WORD}; true"));
        let mut lines = said.lines();
        let epoch = lines.next().unwrap().parse().unwrap();
        Memory { word: lines.next().unwrap_or_default().to_owned(), identities: vec![Given { epoch }] }
    }

    pub(crate) fn remember(&self, id: &SandboxId, word: &str) {
        self.shell(id, &format!("echo {word} >{WORD}"));
    }

    /// Ids of the artifacts that are whole.
    pub(crate) fn artifacts(&self) -> Vec<String> {
        names(&self.state_dir().join("artifacts")).into_iter().filter(|name| !name.starts_with('.')).collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // A test that failed leaves them; one that passed has none.
        for dir in self.engine.live_dirs() {
            self.engine.crash(&dir);
        }
    }
}

/// A future's end, awaited by a thread with a runtime of its own: tests are asynchronous and not.
fn on_a_thread<F: Future>(work: impl FnOnce() -> F + Send) -> F::Output
where
    F::Output: Send,
{
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work()));
        waits.join().unwrap()
    })
}

/// The first of 65,536 users for one host of one process.
fn own_uids() -> u32 {
    static HOSTS: AtomicU32 = AtomicU32::new(0);
    LIFE_ON_GVISOR + (std::process::id() % 64) * 0x10_0000 + HOSTS.fetch_add(1, Ordering::Relaxed) % 16 * 0x1_0000
}

/// Names in a directory, sorted.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let entries = fs_err::read_dir(dir).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// A request for a sandbox of `base` that lives long.
pub(crate) fn base() -> CreateSandbox {
    CreateSandbox { timeout: Duration::from_secs(3600), ..CreateSandbox::from_template("base") }
}
