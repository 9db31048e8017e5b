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
    BootFile, BootFiles, BootSpec, ControlStream, Engine, Processor, RestoreSpec, Shape, Slot,
    contract::{self, Guest, Harness, Snapshot},
    qemu::{
        QemuEngine,
        probe::{ProbeError, ProbeRequest, Requested, probe},
    },
};
use firkin_image::{Additions, Cache, GuestKernel, base_rootfs, guest_kernel, initramfs};
use firkin_wire::{
    control::{Answer, Call, Decoder, Identity, Request, Response, encode},
    nonce::{Nonce, Side},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, getuid},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::guest_link::{guest_network, namespace, write_file};

/// The size of every machine here.
pub const SHAPE: Shape = Shape { vcpus: 1, memory_mib: 512 };
/// First of the users that machines run as. Far from anybody's, so that a count of their processes counts machines.
const FIRST_UID: u32 = 1_900_000_000;
/// More users than one harness uses.
const UIDS: u32 = 500;
/// Harnesses of one process.
const HARNESSES_MAX: u32 = 8;
/// From power-on to power-off of an emulated guest on a busy host.
const PROBE_DEADLINE: Duration = Duration::from_secs(60);
/// The same where there is something else to run with: what a server has, with which these tests share what was found out.
const AUTO_DEADLINE: Duration = Duration::from_secs(20);
/// The answer to one request; an agent that has just been resumed translates its code anew.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
/// From the start of a machine to its agent's first answer: an emulated boot on a busy host, with room.
const READY_DEADLINE: Duration = Duration::from_secs(180);

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
        Slot { uid, netns, tap, mac: [2, 0, 0, 0, 0, 1], groups: Vec::new() }
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
    FIRST_UID + (std::process::id() % 50_000 * HARNESSES_MAX + harness) * UIDS
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
        Box::new(AgentGuest { stream, decoder: Decoder::default(), last_id: rand_id(), epoch: 0, network })
    }

    async fn crash(&self, pid: Option<u32>, _instance: &Path) {
        let pid = pid.and_then(|pid| i32::try_from(pid).ok()).expect("a live machine has a process");
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("the process is there");
    }

    fn live(&self) -> usize {
        self.processes().len()
    }
}

/// Ids of one connection must not be taken for those of the one before, whose answers may still come.
fn rand_id() -> u64 {
    static CONNECTIONS: AtomicU32 = AtomicU32::new(1);
    u64::from(CONNECTIONS.fetch_add(1, Ordering::Relaxed)) << 32
}

/// The real agent. The number that it remembers is its epoch, and what it writes to disk is a file that envd is given.
struct AgentGuest {
    stream: Box<dyn ControlStream>,
    decoder: Decoder,
    last_id: u64,
    epoch: u64,
    /// Absent: another process made the instance.
    network: Option<Arc<OwnedFd>>,
}

impl AgentGuest {
    async fn call(&mut self, call: Call) -> std::io::Result<Answer> {
        self.ask(call, None).await.map(|response| response.answer)
    }

    /// An answer to a call for the machine with the nonce `called`, and whether it is proven to come from the one with the nonce `of`.
    async fn exchange(&mut self, call: Call, called: Option<&Nonce>, of: &Nonce) -> (Answer, bool) {
        let asked = tokio::time::timeout(READY_DEADLINE, self.ask(call, called)).await;
        let response = asked.expect("the agent answers in time").expect("the agent answers");
        (response.answer, response.proof == Some(of.proof(Side::Guest, response.id)))
    }

    async fn ask(&mut self, call: Call, called: Option<&Nonce>) -> std::io::Result<Response> {
        self.last_id += 1;
        let proof = called.map(|nonce| nonce.proof(Side::Host, self.last_id));
        let frame = encode(&Request { id: self.last_id, call, proof }).expect("a request fits a frame");
        self.stream.write_all(&frame).await?;
        let mut buffer = [0; 4096];
        loop {
            while let Some(response) = self.decoder.next::<Response>() {
                if response.id == self.last_id {
                    return Ok(response);
                }
            }
            match self.stream.read(&mut buffer).await? {
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                n => self.decoder.push(&buffer[..n]),
            }
        }
    }

    async fn hello(&mut self) -> Option<(u64, bool)> {
        match tokio::time::timeout(ANSWER_DEADLINE, self.call(Call::Hello)).await {
            Ok(Ok(Answer::Hello { epoch, envd_ready, .. })) => Some((epoch, envd_ready)),
            Ok(Ok(other)) => panic!("an answer to no question: {other:?}"),
            Ok(Err(error)) => panic!("the control channel broke: {error}"),
            Err(_) => None,
        }
    }

    async fn resume(&mut self, epoch: u64) {
        self.epoch = epoch;
        let machine_id = format!("{:032x}", u128::from(self.last_id) << 64 | u128::from(epoch));
        let identity = Identity { network: Some(guest_network()), ..identity(epoch, machine_id, None) };
        let answer = self.call(Call::Resume(Box::new(identity))).await.expect("the agent answers");
        assert!(matches!(answer, Answer::Resumed { epoch: in_force, .. } if in_force == epoch), "{answer:?}");
    }
}

fn identity(epoch: u64, machine_id: String, nonce: Option<Nonce>) -> Identity {
    Identity {
        epoch,
        sandbox_id: "contract".into(),
        template_id: String::new(),
        entropy: "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=".into(),
        realtime_ns: 1_800_000_000_000_000_000,
        machine_id: Some(machine_id),
        nonce,
        network: None,
        env: BTreeMap::new(),
        access_token: None,
        default_user: None,
        default_workdir: None,
    }
}

/// Gives the real agent behind this channel an identity with this nonce, by which it is called from then on.
pub async fn bind(stream: Box<dyn ControlStream>, epoch: u64, nonce: &Nonce) {
    let identity = Box::new(identity(epoch, format!("{epoch:032x}"), Some(nonce.clone())));
    let mut guest = unbound(stream);
    let (answer, is_its) = guest.exchange(Call::Resume(identity), None, nonce).await;
    assert!(matches!(answer, Answer::Resumed { .. }) && is_its, "{answer:?}");
}

/// What the real agent behind this channel says to a hello for the machine with the nonce `called`, or for one that has none, and
/// whether it proves to be the one with the nonce `of`.
pub async fn hello_for(stream: Box<dyn ControlStream>, called: Option<&Nonce>, of: &Nonce) -> (Answer, bool) {
    unbound(stream).exchange(Call::Hello, called, of).await
}

fn unbound(stream: Box<dyn ControlStream>) -> AgentGuest {
    AgentGuest { stream, decoder: Decoder::default(), last_id: rand_id(), epoch: 0, network: None }
}

#[async_trait]
impl Guest for AgentGuest {
    async fn ready(&mut self) {
        let deadline = tokio::time::Instant::now() + READY_DEADLINE;
        loop {
            if let Some((epoch, true)) = self.hello().await {
                self.epoch = epoch;
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "the guest did not come up within {READY_DEADLINE:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn remember(&mut self, number: u64) {
        self.resume(number).await;
    }

    async fn recall(&mut self) -> u64 {
        let deadline = tokio::time::Instant::now() + READY_DEADLINE;
        loop {
            if let Some((epoch, _)) = self.hello().await {
                return epoch;
            }
            assert!(tokio::time::Instant::now() < deadline, "the guest did not answer within {READY_DEADLINE:?}");
        }
    }

    async fn write_disk(&mut self) {
        self.resume(self.epoch).await;
        let network = self.network.clone().expect("this process made the instance");
        // What is in it is new each time: a page that is clean is not written.
        let content = rand_id().to_be_bytes();
        let written = tokio::task::spawn_blocking(move || write_file(&network, "/root/written", &content)).await;
        written.expect("no panic").expect("envd writes a file");
        let answer = self.call(Call::Sync).await.expect("the agent answers");
        assert!(matches!(answer, Answer::Done), "{answer:?}");
    }

    async fn power_off(&mut self) {
        let answer = self.call(Call::PowerOff).await.expect("the agent answers");
        assert!(matches!(answer, Answer::Done), "{answer:?}");
    }

    async fn closed(&mut self) {
        let mut rest = Vec::new();
        // Ended by the other side in one way or another.
        drop(self.stream.read_to_end(&mut rest).await);
    }
}
