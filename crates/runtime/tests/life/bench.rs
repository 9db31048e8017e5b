//! A runtime on the fake engine, guests whose memory a test can read and write, and a clock that stands still.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use firkin_engine::{
    Acceleration, BootFile, BootFiles, Engine, Fingerprint, ImageForm,
    fake::{Connection, FakeEngine, Guest, Keeping},
};
use firkin_runtime::{
    capacity::HostCapacity,
    claims::Claims,
    config::{CopyConfig, EncryptionConfig, Fetch, FlattenConfig, GuestSystem, RuntimeConfig, SandboxLimits},
    disk::DiskPressureProbe,
    engines::Engines,
    ids::LayerId,
    images::{BuildImage, ImageError, ImageRequest, ImageSource, OwnImage, SDK_BASE_IMAGE},
    memory_pressure::HostMemory,
    network::NetworkChoice,
    owner::OnExit,
    progress::Report,
    root_image::RootImage,
    runtime::Runtime,
    sandbox::{CreateSandbox, RuntimeSandbox, SandboxId},
    standard::BuildTemplate,
    state_dir::OpenError,
    store::catalog::Catalog,
};
use firkin_wire::{
    control::{Answer, Call, Decoder, GENERATION, Identity, Request, Response, Stats, encode},
    nonce::Bond,
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// How many histories are tried.
pub(crate) const CASES: u32 = 12;

/// Every wait for something real ends by then.
const PATIENCE: Duration = Duration::from_secs(120);

/// The image that stands for a template of the host's own: as `base` is, without a command that says it is ready.
pub(crate) const STANDARD: &str = "firkin.local/base";

/// The host's own image, and its own template.
#[derive(Debug)]
struct Images(OwnImage);

#[async_trait]
impl ImageSource for Images {
    async fn image(&self, request: &ImageRequest, report: Report<'_>) -> Result<BuildImage, ImageError> {
        if request.reference != STANDARD {
            return self.0.image(request, report).await;
        }
        let template = BuildTemplate { ready: None, ..BuildTemplate::base() };
        let own = ImageRequest { reference: SDK_BASE_IMAGE.to_owned(), login: None };
        Ok(BuildImage { standard: Some(Box::new(template)), ..self.0.image(&own, report).await? })
    }

    async fn changed(&self, root: RootImage, layer: &Path, _: Report<'_>) -> Result<RootImage, ImageError> {
        let changes = fs_err::metadata(layer).unwrap().len();
        Ok(RootImage { digest: format!("{}, with {changes} bytes", root.digest), ..root })
    }

    async fn in_form(&self, root: RootImage, form: ImageForm, _: Report<'_>) -> Result<RootImage, ImageError> {
        Ok(match form {
            ImageForm::Ext4 => root,
            ImageForm::ErofsWithAgent => RootImage { digest: format!("{}, as an engine has it", root.digest), ..root },
        })
    }
}

/// What a guest under test holds in its memory.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Memory {
    /// The highest epoch that it was given.
    pub(crate) epoch: u64,
    /// What the test made it remember.
    pub(crate) word: String,
    /// The name, tokens and seeds that it was given, in order.
    pub(crate) identities: Vec<Given>,
    /// Which machine it is. Absent: its agent is of a time without nonces.
    pub(crate) bond: Option<Bond>,
    /// What others were called for.
    pub(crate) overheard: Vec<String>,
}

/// What is kept of one identity.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Given {
    pub(crate) epoch: u64,
    pub(crate) sandbox_id: String,
    pub(crate) entropy: String,
    pub(crate) machine_id: Option<String>,
    pub(crate) access_token: Option<String>,
    pub(crate) env: BTreeMap<String, String>,
}

impl Memory {
    pub(crate) fn of(guest: &Guest) -> Self {
        serde_json::from_slice(&guest.memory()).unwrap_or_default()
    }

    fn put(&self, guest: &Guest) {
        guest.remember(serde_json::to_vec(self).unwrap());
    }

    fn take(&mut self, identity: &Identity) -> Answer {
        if identity.epoch < self.epoch {
            return Answer::Failed { message: format!("epoch {} after {}", identity.epoch, self.epoch) };
        }
        self.epoch = identity.epoch;
        let Identity { epoch, sandbox_id, entropy, machine_id, access_token, env, .. } = identity.clone();
        if let Some(bond) = &mut self.bond {
            bond.take(identity.nonce.as_ref());
        }
        self.identities.push(Given { epoch, sandbox_id, entropy, machine_id, access_token, env });
        Answer::Resumed { epoch: identity.epoch, clock_behind_ns: 0, volumes: None }
    }
}

type Guests = Arc<Mutex<HashMap<String, Guest>>>;

/// The agent of every guest: keeps identities in the guest's memory and answers at once.
async fn agent(connection: Connection, guests: Guests, age: Age) {
    let Connection { mut stream, guest } = connection;
    let (mut decoder, mut buffer) = (Decoder::default(), vec![0; 64 << 10]);
    loop {
        match stream.read(&mut buffer).await {
            Ok(read) if read > 0 => decoder.push(&buffer[..read]),
            Ok(_) | Err(_) => return,
        }
        while let Some(request) = decoder.next::<Request>() {
            let mut memory = Memory::of(&guest);
            if memory.word == DEAF {
                continue;
            }
            if age == Age::Present {
                memory.bond.get_or_insert_default();
            }
            let Request { id, call, proof } = request;
            let meant = memory.bond.as_ref().is_none_or(|bond| bond.admits(id, proof.as_ref()));
            let answer = match call {
                stranger if !meant => {
                    memory.overheard.push(format!("{stranger:?}"));
                    memory.put(&guest);
                    Answer::Failed { message: "this is another machine".to_owned() }
                }
                Call::Hello => {
                    Answer::Hello { generation: GENERATION, version: "test".into(), epoch: memory.epoch, envd_ready: true }
                }
                Call::Resume(identity) => {
                    let answer = memory.take(&identity);
                    memory.put(&guest);
                    guests.lock().unwrap().insert(identity.sandbox_id.clone(), guest.clone());
                    answer
                }
                Call::Stats => Answer::Stats(STATS),
                Call::Sync | Call::Shrink => Answer::Done,
                Call::PowerOff => {
                    guest.power_off();
                    Answer::Done
                }
            };
            let proof = memory.bond.as_ref().and_then(|bond| bond.proof(id));
            if stream.write_all(&encode(&Response { id, answer, proof }).unwrap()).await.is_err() {
                return;
            }
        }
    }
}

/// When an agent was frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Age {
    /// Before there were nonces.
    Early,
    Present,
}

/// A guest that remembers this word answers nothing.
pub(crate) const DEAF: &str = "deaf";

/// Of the 8 MiB that a guest's root image has, 5 are free.
const STATS: Stats = Stats {
    ts: 1,
    cpu_count: 1,
    cpu_used_pct: 1.0,
    mem_total: 2,
    mem_used: 1,
    mem_cache: 0,
    disk_used: 3 << 20,
    disk_total: 8 << 20,
};

/// A host with its disk: servers come and go on it.
pub(crate) struct Host {
    pub(crate) engine: FakeEngine,
    guests: Guests,
    dir: tempfile::TempDir,
    /// Ports of guests that are others of the host.
    ports: BTreeMap<u16, u16>,
    /// What servers encrypt from now on.
    pub(crate) encryption: Mutex<EncryptionConfig>,
    /// Where servers record what there is, if not in the state directory.
    pub(crate) catalog: Option<Arc<dyn Catalog>>,
    /// Where artifacts come from that are on record and not here.
    pub(crate) fetch: Option<Arc<dyn Fetch>>,
    /// How sandboxes go to other hosts, and come from them.
    pub(crate) claims: Option<Arc<dyn Claims>>,
    /// Where servers copy to from now on.
    pub(crate) copies: Mutex<Option<CopyConfig>>,
}

/// What stands for envd in every guest: it is called and says nothing, for ever.
pub(crate) struct SilentEnvd(Arc<AtomicBool>);

impl SilentEnvd {
    pub(crate) fn was_called(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

impl Host {
    pub(crate) fn new() -> Self {
        Self::with_agents(Age::Present)
    }

    /// The same with agents of this age.
    pub(crate) fn with_agents(age: Age) -> Self {
        let guests = Guests::default();
        let seen = Arc::clone(&guests);
        let engine = FakeEngine::with_agent(move |connection| agent(connection, Arc::clone(&seen), age)).keeping(crate::KEEPING);
        let dir = tempfile::tempdir().unwrap();
        for name in ["kernel", "initrd", "rootfs"] {
            fs_err::write(dir.path().join(name), vec![0; 4096]).unwrap();
        }
        let encryption = Mutex::new(EncryptionConfig { seal: crate::SEALS, key_file: None });
        Self {
            engine,
            guests,
            dir,
            ports: BTreeMap::new(),
            encryption,
            catalog: None,
            fetch: None,
            claims: None,
            copies: Mutex::default(),
        }
    }

    /// The same with a root image that other hosts have not.
    pub(crate) fn with_image(self, content: u8) -> Self {
        fs_err::write(self.dir.path().join("rootfs"), vec![content; 4096]).unwrap();
        self
    }

    /// The same, with an envd in its guests that never answers.
    pub(crate) fn with_silent_envd() -> (Self, SilentEnvd) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let ports = BTreeMap::from([(49983, listener.local_addr().unwrap().port())]);
        let called = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&called);
        // Ends with the test's process.
        std::thread::spawn(move || {
            let mut open = Vec::new();
            for stream in listener.incoming() {
                seen.store(true, Ordering::SeqCst);
                open.push(stream);
            }
        });
        (Self { ports, ..Self::new() }, SilentEnvd(called))
    }

    /// The same host with another program of its engine.
    pub(crate) fn with_program(self, program: &str) -> Self {
        let fingerprint = Fingerprint { program: Some(program.into()), ..self.engine.fingerprint().clone() };
        Self { engine: self.engine.with_fingerprint(fingerprint), ..self }
    }

    /// The same host with another version of its engine.
    pub(crate) fn with_engine_version(self, version: &str) -> Self {
        let fingerprint = Fingerprint { version: version.into(), ..self.engine.fingerprint().clone() };
        Self { engine: self.engine.with_fingerprint(fingerprint), ..self }
    }

    /// The layer that a layer or an overlay lies over, by its own word; none where that is the root image.
    pub(crate) fn below(&self, file: &Path) -> Option<PathBuf> {
        self.engine.disks().below(file).unwrap().filter(|below| *below != self.dir.path().join("rootfs"))
    }

    /// Where a layer is.
    pub(crate) fn layer(&self, id: &LayerId) -> PathBuf {
        self.state_dir().join("layers").join(id.as_str()).with_extension(self.engine.disks().extension())
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub(crate) fn config(&self) -> RuntimeConfig {
        let file = |name: &str| self.dir.path().join(name);
        let capacity = HostCapacity { cpus: 64, memory_mib: 1 << 20, disk_mib: 1 << 30 };
        let guest = GuestSystem {
            boot: BootFiles::new(
                BootFile { path: file("kernel"), digest: "k".into() },
                BootFile { path: file("initrd"), digest: "i".into() },
            ),
            rootfs: file("rootfs"),
            rootfs_digest: "r".into(),
            rootfs_bytes: 8 << 20,
        };
        let defaults = RuntimeConfig::new(self.state_dir(), capacity, NetworkChoice::LoopbackPorts(self.ports.clone()), guest);
        // What tests remember is small; a part of the smallest machine's memory is not.
        let flatten = FlattenConfig { floor_bytes: 0, ..FlattenConfig::default() };
        let images = Arc::new(Images(OwnImage(defaults.guest.now().root())));
        let encryption = self.encryption.lock().unwrap().clone();
        let copies = self.copies.lock().unwrap().clone();
        let memory_probe = Arc::new(HostMemory::PLENTY);
        let (catalog, fetch, claims) = (self.catalog.clone(), self.fetch.clone(), self.claims.clone());
        RuntimeConfig {
            catalog,
            fetch,
            claims,
            copies,
            disk_floor_mib: Some(0),
            memory_probe,
            flatten,
            images,
            encryption,
            ..defaults
        }
    }

    /// A server on this host, with template `base`. One at a time.
    pub(crate) async fn server(&self) -> Runtime {
        self.server_within(None).await
    }

    /// The same, with a disk budget.
    pub(crate) async fn server_within(&self, disk_budget_mib: Option<u64>) -> Runtime {
        self.opened(RuntimeConfig { disk_budget_mib, ..self.config() }).await
    }

    /// The same, on a disk that is as full as `probe` says, with a floor of 100 MiB.
    pub(crate) async fn server_on(&self, probe: Arc<dyn DiskPressureProbe>) -> Runtime {
        let config = RuntimeConfig { disk_floor_mib: Some(100), disk_probe: probe, ..self.config() };
        self.opened(config).await
    }

    /// The same, where each sandbox may hold so much of the disk.
    pub(crate) async fn server_that_limits(&self, sandboxes: SandboxLimits) -> Runtime {
        self.opened(RuntimeConfig { sandboxes, ..self.config() }).await
    }

    /// Another engine of this host, whose guests a test reads and writes like those of the first.
    pub(crate) fn another_engine(&self, keeping: Keeping, acceleration: Acceleration) -> FakeEngine {
        let seen = Arc::clone(&self.guests);
        let engine =
            FakeEngine::with_agent(move |connection| agent(connection, Arc::clone(&seen), Age::Present)).keeping(keeping);
        let fingerprint = Fingerprint { engine: "another".into(), acceleration, ..engine.fingerprint().clone() };
        engine.with_fingerprint(fingerprint)
    }

    /// Runs a server with these engines, the first for what is new, to a clean end.
    pub(crate) fn serve_on<T>(&self, engines: &[&FakeEngine], work: impl AsyncFnOnce(&Runtime) -> T) -> T {
        let mut all = engines.iter().map(|engine| Arc::new((*engine).clone()) as Arc<dyn Engine>);
        let engines = Engines::new(all.next().unwrap(), all.collect());
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio.block_on(async {
            let server = self.opened_on(self.config(), engines).await;
            let result = work(&server).await;
            server.shutdown(OnExit::Kill).await;
            result
        })
    }

    /// Why there is no server with this engine alone.
    pub(crate) fn refused_on(&self, engine: &FakeEngine) -> OpenError {
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio.block_on(async { Runtime::open(self.config(), Arc::new(engine.clone())).await.unwrap_err() })
    }

    pub(crate) async fn opened(&self, config: RuntimeConfig) -> Runtime {
        self.opened_on(config, Arc::new(self.engine.clone()).into()).await
    }

    async fn opened_on(&self, config: RuntimeConfig, engines: Engines) -> Runtime {
        let runtime = Runtime::open(config, engines).await.unwrap();
        let base = BuildTemplate { ready: None, ..BuildTemplate::base() };
        Box::pin(runtime.ensure_template(base, &|_| {})).await.unwrap();
        runtime
    }

    /// Runs a server until `work` has ended, then kills it as `kill -9` does: nothing of it runs on and nothing of it is tidied up,
    /// while its machines live.
    pub(crate) fn crash_after<T>(&self, work: impl AsyncFnOnce(Runtime) -> T) -> T {
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let result = tokio.block_on(async { work(self.server().await).await });
        // Its tasks are never polled again, nor dropped: no guard gives anything back. A process's end would release its lock.
        std::mem::forget(tokio);
        fs_err::remove_file(self.state_dir().join("lock")).unwrap();
        result
    }

    /// Runs a server to a clean end.
    pub(crate) fn serve<T>(&self, work: impl AsyncFnOnce(&Runtime) -> T) -> T {
        self.serve_within(None, work)
    }

    /// The same, with a disk budget.
    pub(crate) fn serve_within<T>(&self, disk_budget_mib: Option<u64>, work: impl AsyncFnOnce(&Runtime) -> T) -> T {
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio.block_on(async {
            let server = self.server_within(disk_budget_mib).await;
            let result = work(&server).await;
            server.shutdown(OnExit::Kill).await;
            assert_eq!(self.engine.live(), 0, "a server that stopped leaves no machine");
            result
        })
    }

    /// The same, of a test that is asynchronous itself.
    pub(crate) async fn serve_async<T>(&self, work: impl AsyncFnOnce(&Runtime) -> T) -> T {
        let server = self.server().await;
        let result = work(&server).await;
        server.shutdown(OnExit::Kill).await;
        result
    }

    /// Why there is no server on the state directory as it is.
    pub(crate) async fn refused(&self) -> OpenError {
        Runtime::open(self.config(), Arc::new(self.engine.clone())).await.unwrap_err()
    }

    /// The guest of a sandbox, as it was seen last.
    pub(crate) fn guest(&self, id: &SandboxId) -> Guest {
        self.guests.lock().unwrap().get(id.as_str()).unwrap().clone()
    }

    pub(crate) fn memory(&self, id: &SandboxId) -> Memory {
        Memory::of(&self.guest(id))
    }

    pub(crate) fn remember(&self, id: &SandboxId, word: &str) {
        let guest = self.guest(id);
        Memory { word: word.to_owned(), ..Memory::of(&guest) }.put(&guest);
    }

    /// Ids of the artifacts that are whole.
    pub(crate) fn artifacts(&self) -> Vec<String> {
        names(&self.state_dir().join("artifacts")).into_iter().filter(|name| !name.starts_with('.')).collect()
    }
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

/// How long a sandbox lives, by what it shows.
pub(crate) fn life(sandbox: &RuntimeSandbox) -> Duration {
    let life = Duration::try_from(sandbox.end_at.duration_since(sandbox.started_at)).unwrap();
    Duration::from_millis(u64::try_from(life.as_millis()).unwrap())
}

/// Waits for a level. The clock of the test stands still meanwhile.
pub(crate) async fn until(what: &str, level: impl Fn() -> bool) {
    let begun = Instant::now();
    while !level() {
        assert!(begun.elapsed() < PATIENCE, "{what} did not come about");
        tokio::task::yield_now().await;
    }
}

/// Keeps a paused clock from running ahead of threads that the runtime waits for: it moves by `tokio::time::advance` alone.
pub(crate) fn hold_the_clock() -> tokio::task::JoinHandle<()> {
    tokio::spawn(async {
        loop {
            tokio::task::yield_now().await;
        }
    })
}
