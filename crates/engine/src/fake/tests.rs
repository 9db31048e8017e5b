//! The fake keeps the contract that real engines keep, and fails the way that tests ask it to.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use async_trait::async_trait;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufStream};

use super::{Connection, FakeEngine, Fault, Keeping, Point};
use crate::{
    Attachment, BootFile, BootFiles, BootSpec, ControlStream, Engine, Exit, ImageForm, Machine, MachineError, Processor,
    RestoreSpec, Shape, Slot, SnapshotMemory, StartError,
    contract::{self, Guest, Harness, Snapshot},
};

/// An agent that speaks lines: `recall`, `write`, `off`, or a number to remember.
async fn agent(connection: Connection) {
    let guest = connection.guest;
    let mut stream = BufStream::new(connection.stream);
    let mut line = String::new();
    while matches!(stream.read_line(&mut line).await, Ok(n) if n > 0) {
        let answer = match line.trim() {
            "recall" => String::from_utf8(guest.memory()).unwrap(),
            "write" => {
                let disk = guest.written();
                let mut bytes = fs_err::read(&disk).unwrap_or_default();
                bytes.push(1);
                fs_err::write(disk, bytes).unwrap();
                "written".into()
            }
            "off" => return guest.power_off(),
            number => {
                guest.remember(number);
                "remembered".into()
            }
        };
        if stream.write_all(format!("{answer}\n").as_bytes()).await.and(stream.flush().await).is_err() {
            return;
        }
        line.clear();
    }
}

struct FakeHarness {
    engine: FakeEngine,
    dir: tempfile::TempDir,
    used: AtomicUsize,
}

impl FakeHarness {
    fn new() -> Self {
        Self::keeping(Keeping::Files)
    }

    fn keeping(keeping: Keeping) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs_err::write(dir.path().join("file"), b"").unwrap();
        Self { engine: FakeEngine::with_agent(agent).keeping(keeping), dir, used: AtomicUsize::new(0) }
    }

    fn fresh(&self) -> PathBuf {
        let path = self.dir.path().join(self.used.fetch_add(1, Ordering::Relaxed).to_string());
        fs_err::create_dir(&path).unwrap();
        path
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("file")
    }

    fn slot() -> Slot {
        let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        Slot { uid: 0, netns: null(), attachment: Attachment::Tap(null()), mac: [0; 6], groups: Vec::new() }
    }

    async fn template(&self) -> Snapshot {
        let spec = self.boot_spec().await;
        let (memory, disk) = (spec.memory_file.clone(), spec.disk.overlay.clone());
        let mut machine = self.engine.boot(spec).await.unwrap();
        machine.pause().await.unwrap();
        let dir = self.fresh();
        machine.snapshot(&dir).await.unwrap();
        machine.kill().await;
        Snapshot { memory: SnapshotMemory::Full(memory), state: dir.join("state"), disk }
    }

    async fn running(&self, template: &Snapshot) -> Box<dyn Machine> {
        let mut machine = self.engine.restore(self.restore_spec(template).await).await.unwrap();
        machine.resume().await.unwrap();
        machine
    }
}

const SHAPE: Shape = Shape { vcpus: 1, memory_mib: 64 };

#[async_trait]
impl Harness for FakeHarness {
    fn engine(&self) -> &dyn Engine {
        &self.engine
    }

    async fn boot_spec(&self) -> BootSpec {
        let (dir, file) = (self.fresh(), self.image());
        BootSpec {
            disk: contract::disk_of(self.engine.disks(), &dir, &file, 1 << 20),
            memory_file: dir.join("memory"),
            dir,
            shape: SHAPE,
            processor: Processor::Plain,
            slot: Self::slot(),
            boot: match self.engine.disks().image_form() {
                ImageForm::Ext4 => {
                    let file = BootFile { path: file, digest: String::new() };
                    BootFiles::new(file.clone(), file)
                }
                ImageForm::ErofsWithAgent => BootFiles::InRootImage { agent: String::new() },
            },
        }
    }

    async fn restore_spec(&self, snapshot: &Snapshot) -> RestoreSpec {
        let dir = self.fresh();
        RestoreSpec {
            disk: contract::disk_over(self.engine.disks(), &dir, &snapshot.disk, &self.image()),
            dir,
            shape: SHAPE,
            processor: Processor::Plain,
            announces: false,
            slot: Self::slot(),
            memory: snapshot.memory.clone(),
            state: snapshot.state.clone(),
        }
    }

    async fn snapshot_dir(&self) -> PathBuf {
        self.fresh()
    }

    fn guest(&self, stream: Box<dyn ControlStream>, _instance: &Path) -> Box<dyn Guest> {
        Box::new(LineGuest(BufStream::new(stream)))
    }

    async fn crash(&self, _pid: Option<u32>, instance: &Path) {
        assert!(self.engine.crash(instance));
    }

    fn live(&self) -> usize {
        self.engine.live()
    }
}

struct LineGuest(BufStream<Box<dyn ControlStream>>);

impl LineGuest {
    async fn ask(&mut self, line: &str) -> String {
        self.0.write_all(format!("{line}\n").as_bytes()).await.unwrap();
        self.0.flush().await.unwrap();
        let mut answer = String::new();
        self.0.read_line(&mut answer).await.unwrap();
        answer.trim().into()
    }
}

#[async_trait]
impl Guest for LineGuest {
    async fn ready(&mut self) {}

    async fn remember(&mut self, number: u64) {
        assert_eq!(self.ask(&number.to_string()).await, "remembered");
    }

    async fn recall(&mut self) -> u64 {
        self.ask("recall").await.parse().unwrap()
    }

    async fn write_disk(&mut self) {
        assert_eq!(self.ask("write").await, "written");
    }

    async fn power_off(&mut self) {
        self.ask("off").await;
    }

    async fn closed(&mut self) {
        let mut rest = Vec::new();
        self.0.read_to_end(&mut rest).await.unwrap();
    }
}

#[tokio::test]
async fn the_fake_keeps_the_contract() {
    for keeping in [Keeping::Files, Keeping::InStateAndTrees, Keeping::AllInState] {
        contract::check(&FakeHarness::keeping(keeping)).await;
    }
}

#[tokio::test]
async fn a_paused_guest_answers_once_it_runs() {
    let harness = FakeHarness::new();
    let template = harness.template().await;
    let mut machine = harness.running(&template).await;
    let mut guest = harness.guest(machine.control().await.unwrap(), Path::new(""));
    guest.remember(5).await;
    machine.pause().await.unwrap();
    let recalled = tokio::spawn(async move { guest.recall().await });
    tokio::task::yield_now().await;
    assert!(!recalled.is_finished());
    machine.resume().await.unwrap();
    assert_eq!(recalled.await.unwrap(), 5);
}

#[tokio::test(start_paused = true)]
async fn faults_are_suffered_once_and_in_order() {
    let harness = FakeHarness::new();
    let template = harness.template().await;
    harness.engine.inject(Point::Restore, Fault::Refuse);
    harness.engine.inject(Point::Restore, Fault::Crash);
    let spec = harness.restore_spec(&template).await;
    assert!(matches!(harness.engine.restore(spec).await, Err(StartError::Refused { .. })));
    let spec = harness.restore_spec(&template).await;
    assert!(matches!(harness.engine.restore(spec).await, Err(StartError::Died { .. })));
    assert_eq!((harness.engine.live(), harness.engine.boots(), harness.engine.restores()), (0, 1, 0));

    let mut machine = harness.running(&template).await;
    harness.engine.inject(Point::Pause, Fault::Hang);
    harness.engine.inject(Point::Pause, Fault::Delay(Duration::from_secs(3)));
    harness.engine.inject(Point::Resume, Fault::Crash);
    assert!(tokio::time::timeout(Duration::from_secs(3600), machine.pause()).await.is_err());
    let began = tokio::time::Instant::now();
    machine.pause().await.unwrap();
    assert_eq!(began.elapsed(), Duration::from_secs(3));
    assert!(matches!(machine.resume().await, Err(MachineError::Gone(Exit::Crashed { .. }))));
    assert_eq!(harness.engine.live(), 0);
}

#[tokio::test]
async fn what_is_prepared_is_adopted_by_nobody() {
    let harness = FakeHarness::new();
    let template = harness.template().await;
    let kept = harness.fresh();
    let engine = FakeEngine::kept_in(&kept, agent).unwrap();
    let spec = harness.restore_spec(&template).await;
    let dir = spec.dir.clone();
    let prepared = engine.prepare(spec).await.unwrap();
    // As if the process had been killed: nothing is dropped.
    std::mem::forget((prepared, engine));
    let later = FakeEngine::kept_in(&kept, agent).unwrap();
    assert_eq!(later.live_dirs(), std::slice::from_ref(&dir));
    assert!(matches!(later.adopt(&dir).await, Err(StartError::Refused { .. })));
    assert_eq!((later.live(), fs_err::read_dir(&kept).unwrap().count()), (0, 0), "it is ended");
}

#[tokio::test]
async fn the_default_agent_is_an_echo() {
    let harness = FakeHarness::new();
    let engine = FakeEngine::new();
    let mut machine = engine.boot(harness.boot_spec().await).await.unwrap();
    let mut stream = machine.control().await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"hello");
    assert_eq!(engine.live_dirs().len(), 1);
}

#[tokio::test]
async fn a_machine_that_is_kept_outlives_its_engine() {
    let harness = FakeHarness::new();
    let template = harness.template().await;
    let kept = harness.fresh();
    let engine = FakeEngine::kept_in(&kept, agent).unwrap();
    let spec = harness.restore_spec(&template).await;
    let (dir, disk) = (spec.dir.clone(), spec.disk.overlay.clone());
    let mut machine = engine.restore(spec).await.unwrap();
    machine.resume().await.unwrap();
    let mut stream = BufStream::new(machine.control().await.unwrap());
    stream.write_all(b"7\n").await.unwrap();
    stream.flush().await.unwrap();
    stream.read_line(&mut String::new()).await.unwrap();
    // As if the process had been killed: nothing is dropped.
    std::mem::forget((machine, engine));

    let later = FakeEngine::kept_in(&kept, agent).unwrap();
    assert_eq!(later.live_dirs(), std::slice::from_ref(&dir));
    let mut machine = later.adopt(&dir).await.unwrap();
    assert_eq!(machine.root_disk(), disk);
    let mut stream = BufStream::new(machine.control().await.unwrap());
    stream.write_all(b"recall\n").await.unwrap();
    stream.flush().await.unwrap();
    let mut answer = String::new();
    stream.read_line(&mut answer).await.unwrap();
    assert_eq!(answer, "7\n", "it runs, and remembers");
    machine.kill().await;
    assert_eq!(FakeEngine::kept_in(&kept, agent).unwrap().live(), 0);
    assert_eq!(fs_err::read_dir(&kept).unwrap().count(), 0);
}
