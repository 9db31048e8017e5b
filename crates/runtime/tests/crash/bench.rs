//! A host on the fake engine whose machines outlive every server of it, and what of it may be found when a server was killed.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use firkin_engine::{
    BootFile, BootFiles,
    fake::{Connection, FakeEngine},
};
use firkin_runtime::{
    artifact::{ArtifactKind, MemoryMember, SnapshotArtifactManifest},
    capacity::{HostCapacity, ResourceBudget},
    config::{FlattenConfig, GuestSystem, RuntimeConfig},
    ids::LayerId,
    memory_pressure::HostMemory,
    owner::OnExit,
    runtime::Runtime,
    sandbox::{CreateSandbox, RuntimeSandbox, SandboxId, SandboxState},
    standard::BuildTemplate,
};
use firkin_wire::control::{Answer, Call, Decoder, GENERATION, Request, Response, Stats, encode};
use fs_err as fs;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    builds::{self, ToldBuild},
    envd,
};

/// Every wait of these tests ends by then.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

/// Longer than any of these tests.
const LIFETIME: Duration = Duration::from_secs(3600);

/// A directory that holds a host.
#[derive(Debug)]
pub(crate) struct Bench {
    dir: PathBuf,
    /// Whether each paused sandbox gets a memory of its own at once.
    pub(crate) flattens: bool,
}

/// What clients have been told. It must be so whatever happens to the server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Told {
    pub(crate) running: BTreeSet<String>,
    pub(crate) paused: BTreeSet<String>,
    pub(crate) killed: BTreeSet<String>,
    /// Templates and snapshots, by what a create names them.
    pub(crate) templates: BTreeSet<String>,
    /// The sandbox that something is being done to: it may be as it was, or as it is to become.
    pub(crate) subject: Option<String>,
    /// Whether it may be gone, too.
    pub(crate) is_ending: bool,
    /// A build through the API, where that is what is being done.
    pub(crate) build: Option<ToldBuild>,
}

impl Bench {
    pub(crate) fn new(dir: &Path) -> Self {
        let bench = Self { dir: dir.to_owned(), flattens: false };
        for name in ["machines", "guest"] {
            fs::create_dir_all(dir.join(name)).unwrap();
        }
        for name in ["kernel", "initrd", "rootfs"] {
            fs::write(dir.join("guest").join(name), vec![0; 4096]).unwrap();
        }
        bench
    }

    /// The engine, with every machine that runs.
    fn engine(&self) -> FakeEngine {
        FakeEngine::kept_in(&self.dir.join("machines"), agent).unwrap()
    }

    async fn open_with(&self, engine: FakeEngine, disk_budget_mib: Option<u64>) -> Runtime {
        let file = |name: &str| self.dir.join("guest").join(name);
        let guest = GuestSystem {
            boot: BootFiles::new(
                BootFile { path: file("kernel"), digest: "k".into() },
                BootFile { path: file("initrd"), digest: "i".into() },
            ),
            rootfs: file("rootfs"),
            rootfs_digest: "r".into(),
            rootfs_bytes: 1 << 20,
        };
        let capacity = HostCapacity { cpus: 16, memory_mib: 1 << 20, disk_mib: 1 << 30 };
        let mut config = RuntimeConfig::new(self.dir.join("state"), capacity, envd::serve().await, guest);
        config.disk_floor_mib = Some(0);
        config.disk_budget_mib = disk_budget_mib;
        config.memory_probe = Arc::new(HostMemory::PLENTY);
        if self.flattens {
            config.flatten = FlattenConfig { floor_bytes: 0, percent: 0, after: Duration::ZERO };
        }
        Runtime::open(config, Arc::new(engine)).await.unwrap()
    }

    /// A server.
    pub(crate) async fn open(&self) -> Runtime {
        self.open_with(self.engine(), None).await
    }

    fn entries(&self, name: &str) -> Vec<PathBuf> {
        fs::read_dir(self.dir.join(name)).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    /// Opens a server after another was killed, and checks that everything is as it was `told`, works, and has an owner.
    pub(crate) async fn check(&self, told: &Told) {
        let engine = self.engine();
        let runtime = self.open_with(engine.clone(), None).await;
        let found = settled(&runtime).await;
        compare(told, &found);
        let names: BTreeSet<String> = names_of(&runtime).await;
        assert!(names.is_superset(&told.templates), "{:?} of {names:?}", told.templates);
        self.check_half_written();

        let running: Vec<&RuntimeSandbox> = found.values().filter(|s| s.state == SandboxState::Running).collect();
        assert_eq!(engine.live(), running.len(), "a machine without a sandbox, or the other way round");
        assert_eq!(self.entries("state/run").len(), running.len());
        let mut sum = ResourceBudget::default();
        running.iter().for_each(|sandbox| sum += sandbox.budget);
        assert_eq!(runtime.capacity().usage.total(), sum);

        for sandbox in found.values() {
            works(&runtime, &sandbox.id).await;
        }
        self.check_chains();
        if let Some(build) = &told.build {
            builds::check(&runtime, build).await;
        }
        for name in names_of(&runtime).await {
            let sandbox = runtime.create(request(&name)).await.unwrap();
            runtime.kill(&sandbox.id).await.unwrap();
        }
        self.ends(runtime, &engine, told.build.is_some()).await;
    }

    /// Gives the host another root image in the place of its own.
    pub(crate) fn renew_image(&self) {
        fs::write(self.dir.join("guest/rootfs"), vec![1; 4096]).unwrap();
    }

    /// Artifacts that there are.
    pub(crate) fn artifacts(&self) -> usize {
        self.entries("state/artifacts").len()
    }

    /// Whether a sandbox is held by a memory of its own.
    pub(crate) fn has_flat_state(&self) -> bool {
        let manifests = self.entries("state/artifacts").into_iter().filter_map(|dir| fs::read(dir.join("manifest.json")).ok());
        // One that is being written is not there yet.
        let is_flat = |text: Vec<u8>| {
            serde_json::from_slice::<SnapshotArtifactManifest>(&text)
                .is_ok_and(|manifest| manifest.kind == ArtifactKind::Pause && manifest.memory == MemoryMember::Full)
        };
        manifests.into_iter().any(is_flat)
    }

    /// Whether layers were merged: the name of the result is a digest in hexadecimal.
    pub(crate) fn has_merged_layer(&self) -> bool {
        let is_digest = |path: &PathBuf| path.file_stem().unwrap().as_encoded_bytes().iter().all(u8::is_ascii_hexdigit);
        self.entries("state/layers").iter().any(is_digest)
    }

    /// Each layer of every artifact lies over the one below it.
    fn check_chains(&self) {
        for artifact in self.entries("state/artifacts") {
            let Ok(text) = fs::read(artifact.join("manifest.json")) else { continue };
            let manifest: SnapshotArtifactManifest = serde_json::from_slice(&text).unwrap();
            let layer = |id: &LayerId| self.dir.join("state/layers").join(format!("{id}.qcow2"));
            for pair in manifest.disk.layers.windows(2) {
                // It may be collected just now, after its artifact; a restore proves that those that are needed are there.
                let Ok(above) = firkin_engine::qcow2::inspect(&layer(&pair[1])) else { continue };
                assert_eq!(above.backing.unwrap().path, layer(&pair[0]), "{manifest:?}");
            }
        }
    }

    /// Nothing is left of what was arriving or being cut. Drafts of artifacts are looked for at the end: what is being collected
    /// looks like one.
    fn check_half_written(&self) {
        let is_hidden = |path: &PathBuf| path.file_name().unwrap().as_encoded_bytes().starts_with(b".");
        let uploads = self.entries("state/uploads");
        assert!(!uploads.iter().any(is_hidden), "{uploads:?}");
        // Made by the first archive. A root image that is being collected looks half written, too.
        if self.dir.join("state/incoming").exists() {
            let incoming = self.entries("state/incoming");
            assert!(!incoming.iter().any(is_hidden), "{incoming:?}");
        }
        let state = fs::canonicalize(self.dir.join("state")).unwrap();
        let digest = blake3::hash(state.as_os_str().as_encoded_bytes()).to_hex();
        // A host without shared memory has nothing there.
        let rooms = fs::read_dir("/dev/shm").into_iter().flatten().map(|entry| entry.unwrap().file_name());
        let ours: Vec<_> = rooms.filter(|name| name.to_string_lossy().contains(&digest[..16])).collect();
        assert!(ours.is_empty(), "{ours:?}");
    }

    /// Ends everything, and checks that nothing is left.
    async fn ends(&self, mut runtime: Runtime, engine: &FakeEngine, was_built: bool) {
        for sandbox in runtime.sandboxes() {
            runtime.kill(&sandbox.id).await.unwrap();
        }
        // What stands on a template keeps it.
        for snapshot in runtime.snapshots().await.unwrap() {
            runtime.delete_template(&snapshot.snapshot_id).await.unwrap();
        }
        if was_built {
            builds::end(&runtime).await;
        } else {
            for name in names_of(&runtime).await {
                runtime.delete_template(&name).await.unwrap();
            }
        }
        assert_eq!(runtime.capacity().usage.total(), ResourceBudget::default());
        assert_eq!((engine.live(), self.entries("machines").len()), (0, 0));
        assert_eq!(self.entries("state/run"), Vec::<PathBuf>::new());
        // What a build kept for others goes when there is no room for it.
        let kept = if was_built { 1 } else { 0 };
        if was_built {
            stop(runtime).await;
            runtime = self.open_with(engine.clone(), Some(0)).await;
        }
        let roots = || if self.dir.join("state/roots").exists() { self.entries("state/roots") } else { Vec::new() };
        let left = || [self.entries("state/artifacts"), self.entries("state/layers"), roots()];
        let gone = async {
            while left().iter().any(|entries| entries.len() > kept) {
                tokio::task::yield_now().await;
            }
        };
        assert!(tokio::time::timeout(DEADLINE, gone).await.is_ok(), "nobody needs {:?}", left());
        stop(runtime).await;
    }
}

async fn stop(runtime: Runtime) {
    tokio::time::timeout(DEADLINE, runtime.shutdown(OnExit::Kill)).await.expect("a server stops");
}

/// The smallest template.
pub(crate) async fn build(runtime: &Runtime) {
    let base = BuildTemplate { ready: None, memory_mib: 1, ..BuildTemplate::base() };
    Box::pin(runtime.build_template(base, &|_| {})).await.unwrap();
}

/// A sandbox that no deadline of a test ends.
pub(crate) fn request(template: &str) -> CreateSandbox {
    CreateSandbox { timeout: LIFETIME, ..CreateSandbox::from_template(template) }
}

/// Every sandbox, once each owner has done what it does first.
async fn settled(runtime: &Runtime) -> BTreeMap<String, RuntimeSandbox> {
    let mut found = BTreeMap::new();
    for sandbox in runtime.sandboxes() {
        let stats = runtime.stats(&sandbox.id).await.unwrap();
        assert_eq!(stats.is_some(), sandbox.state == SandboxState::Running, "it runs and answers, or is paused: {sandbox:?}");
        found.insert(sandbox.id.to_string(), sandbox);
    }
    found
}

async fn names_of(runtime: &Runtime) -> BTreeSet<String> {
    // By each of their tags.
    let templates = runtime.templates().await.unwrap().into_iter().flat_map(|template| {
        let named = |tag: &str| if tag == "default" { template.id.clone() } else { format!("{}:{tag}", template.id) };
        template.tags.iter().map(|tag| named(&tag.tag)).collect::<Vec<_>>()
    });
    templates.chain(runtime.snapshots().await.unwrap().into_iter().map(|snapshot| snapshot.snapshot_id)).collect()
}

fn compare(told: &Told, found: &BTreeMap<String, RuntimeSandbox>) {
    let is_subject = |id: &&String| told.subject.as_ref() == Some(*id);
    for (ids, state) in [(&told.running, SandboxState::Running), (&told.paused, SandboxState::Paused)] {
        for id in ids.iter().filter(|id| !is_subject(id)) {
            assert_eq!(found.get(id).map(|sandbox| sandbox.state), Some(state), "{id} of {told:?}");
        }
    }
    let subject = told.running.iter().chain(&told.paused).find(is_subject).filter(|_| !told.is_ending);
    assert!(subject.is_none_or(|id| found.contains_key(id)), "{subject:?} is lost");
    for id in &told.killed {
        assert!(!found.contains_key(id), "{id} was killed, and is back");
    }
    // What nobody was told of either runs or is not there at all.
    let known: BTreeSet<&String> = told.running.iter().chain(&told.paused).collect();
    for (id, sandbox) in found.iter().filter(|(id, _)| !known.contains(id)) {
        assert_eq!(sandbox.state, SandboxState::Running, "{id}");
    }
}

/// How often the guest has become somebody: one more with each restore, and never less.
async fn lives(runtime: &Runtime, id: &SandboxId) -> u64 {
    runtime.stats(id).await.unwrap().expect("it runs").mem_used
}

/// A sandbox keeps its memory through a pause, and can be copied.
async fn works(runtime: &Runtime, id: &SandboxId) {
    if runtime.sandbox(id).unwrap().state == SandboxState::Paused {
        runtime.resume(id, LIFETIME).await.unwrap();
    }
    let before = lives(runtime, id).await;
    assert!(before >= 2, "its memory is the template's: it was started anew");
    for child in runtime.fork(id, 1, LIFETIME).await.unwrap() {
        let child = child.unwrap();
        assert_eq!(lives(runtime, &child.id).await, before + 1);
        runtime.kill(&child.id).await.unwrap();
    }
    runtime.pause(id).await.unwrap();
    runtime.resume(id, LIFETIME).await.unwrap();
    assert_eq!(lives(runtime, id).await, before + 1, "memory did not come back");
}

/// The guest's agent. It remembers every epoch that it was in, and shows how many those were as its memory in use.
async fn agent(connection: Connection) {
    let Connection { mut stream, guest } = connection;
    let (mut decoder, mut buffer) = (Decoder::default(), vec![0; 64 << 10]);
    loop {
        match stream.read(&mut buffer).await {
            Ok(read) if read > 0 => decoder.push(&buffer[..read]),
            Ok(_) | Err(_) => return,
        }
        while let Some(Request { id, call, .. }) = decoder.next() {
            let mut epochs: Vec<u64> = serde_json::from_slice(&guest.memory()).unwrap_or_default();
            let answer = match call {
                Call::Hello => Answer::Hello {
                    generation: GENERATION,
                    version: "test".into(),
                    epoch: epochs.last().copied().unwrap_or(0),
                    envd_ready: true,
                },
                Call::Resume(identity) => {
                    if epochs.last() != Some(&identity.epoch) {
                        epochs.push(identity.epoch);
                        guest.remember(serde_json::to_vec(&epochs).unwrap());
                    }
                    Answer::Resumed { epoch: identity.epoch, clock_behind_ns: 0, volumes: None }
                }
                Call::Stats => Answer::Stats(Stats {
                    ts: 0,
                    cpu_count: 1,
                    cpu_used_pct: 0.0,
                    mem_total: 0,
                    mem_used: epochs.len() as u64,
                    mem_cache: 0,
                    disk_used: 0,
                    disk_total: 0,
                }),
                Call::Sync | Call::Shrink | Call::PowerOff => Answer::Done,
            };
            if stream.write_all(&encode(&Response { id, answer, proof: None }).unwrap()).await.is_err() {
                return;
            }
        }
    }
}
