//! The promises of every engine, as one list of tests.
//!
//! The list runs on the fake engine in this crate and on real QEMU in the VM tests; a [`Harness`] says how instances, disks and
//! guests come about on either. A failed promise panics, as in any test. Booting is slow where machines are emulated, so all
//! promises but the first work on clones of one template.

use std::{
    future::Future,
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, getsid},
};

use crate::{
    BootSpec, ControlStream, DiskFormat, Engine, Exit, Machine, MachineError, MemoryForm, RestoreSpec, RootDisk, SnapshotMemory,
    SnapshotParts, StartError, parts,
};

/// Longest wait for anything: an emulated guest on a busy host takes tens of seconds to boot.
const DEADLINE: Duration = Duration::from_secs(180);

/// How machines, disks and guests come about.
#[async_trait]
pub trait Harness: Send + Sync {
    /// The engine under test.
    fn engine(&self) -> &dyn Engine;

    /// A fresh instance to boot, with an overlay over the harness's base disk.
    async fn boot_spec(&self) -> BootSpec;

    /// A fresh instance to restore `snapshot`, with an overlay over its disk.
    async fn restore_spec(&self, snapshot: &Snapshot) -> RestoreSpec;

    /// A new empty directory to write a snapshot into.
    async fn snapshot_dir(&self) -> PathBuf;

    /// Speaks to the guest of this instance, behind its control connection.
    fn guest(&self, stream: Box<dyn ControlStream>, instance: &Path) -> Box<dyn Guest>;

    /// Ends the engine of this instance, process `pid` if it has one, as a fault of it would.
    async fn crash(&self, pid: Option<u32>, instance: &Path);

    /// Machines that still exist, whoever holds them.
    fn live(&self) -> usize;
}

/// A guest, seen from the host.
#[async_trait]
pub trait Guest: Send {
    /// Waits until the guest answers.
    async fn ready(&mut self);

    /// Makes the guest keep a number in its memory.
    async fn remember(&mut self, number: u64);

    /// The number that it keeps.
    async fn recall(&mut self) -> u64;

    /// Makes it write what it had not to its root disk, and wait until that is done.
    async fn write_disk(&mut self);

    /// Makes it power off.
    async fn power_off(&mut self);

    /// Waits until the connection ends.
    async fn closed(&mut self);
}

/// The parts of a snapshot.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Where its memory is.
    pub memory: SnapshotMemory,
    /// Device state.
    pub state: PathBuf,
    /// The overlay that is frozen with it.
    pub disk: PathBuf,
}

/// Makes a disk in `dir` over the layer `top`, down to the harness's image. What a test made may be believed.
pub fn disk_over(disks: &dyn DiskFormat, dir: &Path, top: &Path, image: &Path) -> RootDisk {
    let mut layers = vec![top.to_path_buf()];
    while let Some(below) = disks.below(&layers[layers.len() - 1]).expect("an overlay of a test").filter(|below| below != image) {
        layers.push(below);
    }
    layers.reverse();
    let overlay = dir.join("root").with_extension(disks.extension());
    disks.create_next(top, top, &overlay).expect("an overlay is created");
    RootDisk { image: image.to_path_buf(), layers, overlay }
}

/// Makes a disk of `bytes` in `dir` over the harness's image alone.
pub fn disk_of(disks: &dyn DiskFormat, dir: &Path, image: &Path, bytes: u64) -> RootDisk {
    let overlay = dir.join("root").with_extension(disks.extension());
    let disk = RootDisk { image: image.to_path_buf(), layers: Vec::new(), overlay };
    disks.create(&disk, bytes).expect("an overlay is created");
    disk
}

/// Checks every promise, one after the other, and names each on standard error as it is kept.
pub async fn check(harness: &dyn Harness) {
    let template = kept("boot, pause, seal", boots_and_seals(harness)).await;
    kept("a restored machine is paused and remembers", restores(harness, &template)).await;
    kept("clones do not see each other", clones_are_apart(harness, &template)).await;
    kept("a clone is snapshot, goes on, and has grandchildren", generations(harness, &template)).await;
    kept("a disk is frozen where it is switched", disk_is_switched(harness, &template)).await;
    kept("a new control connection ends the old one", reconnects(harness, &template)).await;
    kept("a machine stands still and goes on with its processes", stands_still(harness, &template)).await;
    kept("a released machine lives on and is adopted", adopts(harness, &template)).await;
    kept("nothing is adopted where nothing runs", refuses_to_adopt(harness, &template)).await;
    kept("a crash is noticed, wherever one looks", notices_a_crash(harness, &template)).await;
    kept("a guest may power off", powers_off(harness, &template)).await;
    kept("a prepared engine loads the same as a restore", prepares(harness, &template)).await;
    kept("a prepared engine that dies is noticed, and one that is given up leaves nothing", prepared_ends(harness, &template))
        .await;
    kept("damaged snapshots are refused", refuses_damage(harness, &template)).await;
    kept("a dropped machine and a dropped start leave nothing", leaves_nothing(harness, &template)).await;
    kept("a failed boot leaves nothing", failed_boot_leaves_nothing(harness)).await;
    assert_eq!(harness.live(), 0, "no machine stays behind");
}

#[expect(clippy::print_stderr, reason = "a test tells what it has checked")]
async fn kept<T>(promise: &str, test: impl Future<Output = T>) -> T {
    let started = std::time::Instant::now();
    let Ok(result) = tokio::time::timeout(DEADLINE, test).await else { panic!("no end within {DEADLINE:?}: {promise}") };
    eprintln!("kept in {:>6.2} s: {promise}", started.elapsed().as_secs_f64());
    result
}

/// A machine together with its guest and its instance.
struct Instance {
    machine: Box<dyn Machine>,
    dir: PathBuf,
    disk: PathBuf,
}

impl Instance {
    async fn restore(harness: &dyn Harness, snapshot: &Snapshot) -> Self {
        let spec = harness.restore_spec(snapshot).await;
        let (dir, disk) = (spec.dir.clone(), spec.disk.overlay.clone());
        let machine = harness.engine().restore(spec).await.expect("a whole snapshot is restored");
        Self { machine, dir, disk }
    }

    /// Restores, resumes and greets.
    async fn running(harness: &dyn Harness, snapshot: &Snapshot) -> (Self, Box<dyn Guest>) {
        let mut instance = Self::restore(harness, snapshot).await;
        instance.machine.resume().await.expect("a paused machine resumes");
        let guest = instance.guest(harness).await;
        (instance, guest)
    }

    async fn guest(&mut self, harness: &dyn Harness) -> Box<dyn Guest> {
        let stream = self.machine.control().await.expect("a live machine has a control channel");
        let mut guest = harness.guest(stream, &self.dir);
        guest.ready().await;
        guest
    }

    /// Takes room, pauses, cuts a snapshot, switches to a fresh overlay and packs what was cut, as a fork does.
    async fn cut(&mut self, harness: &dyn Harness, base: &Snapshot) -> Snapshot {
        let dir = harness.snapshot_dir().await;
        // Less than it turns out to take.
        self.machine.make_room(&dir, 0).await.expect("a running machine takes room for its cut");
        self.machine.pause().await.expect("a running machine pauses");
        let next = self.next_overlay(harness);
        let written = self.machine.cut(&dir, &next).await.expect("a paused machine is cut");
        self.sealed(&dir, next, written, base)
    }

    /// The same without room, one after the other.
    async fn cut_into(&mut self, harness: &dyn Harness, dir: PathBuf, base: &Snapshot) -> Snapshot {
        self.machine.pause().await.expect("a running machine pauses");
        let written = self.machine.snapshot(&dir).await.expect("a paused machine is snapshot");
        let next = self.next_overlay(harness);
        self.machine.switch_disk(&next).await.expect("a paused machine switches its disk");
        self.sealed(&dir, next, written, base)
    }

    fn sealed(&mut self, dir: &Path, next: PathBuf, written: SnapshotParts, base: &Snapshot) -> Snapshot {
        let diff = dir.join(parts::MEMORY_DIFF);
        let memory = match (&base.memory, &written.memory) {
            (SnapshotMemory::Full(base) | SnapshotMemory::Diff { base, .. }, MemoryForm::Diff { .. }) => {
                SnapshotMemory::Diff { base: base.clone(), diff }
            }
            (SnapshotMemory::InState, MemoryForm::InState) => SnapshotMemory::InState,
            other => panic!("a restored machine keeps its memory in another form than it came in: {other:?}"),
        };
        let snapshot = Snapshot { memory, state: dir.join(parts::STATE), disk: self.disk.clone() };
        self.disk = next;
        assert_eq!(self.machine.root_disk(), self.disk);
        if let Some(captured) = written.captured {
            captured.pack(&dir.join(parts::MEMORY_DIFF)).expect("what was captured is packed");
        }
        snapshot
    }

    /// A fresh overlay over the current one.
    fn next_overlay(&self, harness: &dyn Harness) -> PathBuf {
        let disks = harness.engine().disks();
        let name = |n: u32| self.disk.with_extension(format!("{n}.{}", disks.extension()));
        let path = (1..).map(name).find(|path| !path.exists()).expect("some name is free");
        disks.create_next(&self.disk, &self.disk, &path).expect("an overlay is created");
        path
    }
}

async fn boots_and_seals(harness: &dyn Harness) -> Snapshot {
    let spec = harness.boot_spec().await;
    let (memory, disk, dir) = (spec.memory_file.clone(), spec.disk.overlay.clone(), spec.dir.clone());
    let machine = harness.engine().boot(spec).await.expect("a machine boots");
    let mut instance = Instance { machine, dir, disk };
    let mut guest = instance.guest(harness).await;
    guest.remember(1).await;
    guest.write_disk().await;
    let out = harness.snapshot_dir().await;
    let machine = &mut instance.machine;
    assert!(!machine.console_tail().await.expect("a live machine has a console").is_empty());
    machine.answer().await.expect("a live machine gives a sign of life");
    assert!(machine.host_use().await.expect("a live machine costs something").pss_bytes > 0);
    wrong_state(machine.snapshot(&out).await, "running");
    wrong_state(machine.switch_disk(&out).await, "running");
    machine.resume().await.expect("resume of a running machine has no effect");
    machine.pause().await.expect("a running machine pauses");
    machine.pause().await.expect("pause of a paused machine has no effect");
    machine.resume().await.expect("a paused machine resumes");
    assert_eq!(guest.recall().await, 1);
    machine.pause().await.expect("it pauses again");
    let written = machine.snapshot(&out).await.expect("a paused machine is snapshot");
    let memory = match written.memory {
        MemoryForm::Full => {
            wrong_state(machine.resume().await, "sealed");
            wrong_state(machine.pause().await, "sealed");
            wrong_state(machine.snapshot(&out).await, "sealed");
            SnapshotMemory::Full(memory)
        }
        MemoryForm::InState => {
            machine.pause().await.expect("it is still paused");
            assert!(!memory.exists(), "its memory is in its state alone");
            SnapshotMemory::InState
        }
        MemoryForm::Diff { .. } => panic!("a booted machine differs from nothing"),
    };
    assert_eq!(machine.kill().await, Exit::Killed);
    assert_eq!(machine.kill().await, Exit::Killed, "a second kill is none");
    assert_eq!(machine.wait().await, Exit::Killed);
    assert!(matches!(machine.resume().await, Err(MachineError::Gone(Exit::Killed))));
    assert!(matches!(machine.control().await, Err(MachineError::Gone(Exit::Killed))));
    assert_eq!(harness.live(), 0, "a killed machine is gone");
    Snapshot { memory, state: out.join(parts::STATE), disk: instance.disk }
}

async fn restores(harness: &dyn Harness, template: &Snapshot) {
    let mut instance = Instance::restore(harness, template).await;
    instance.machine.pause().await.expect("a restored machine is paused");
    instance.machine.resume().await.expect("it resumes");
    let mut guest = instance.guest(harness).await;
    assert_eq!(guest.recall().await, 1, "memory came back");
    guest.write_disk().await;
    guest.remember(2).await;
    instance.machine.pause().await.expect("it pauses");
    instance.machine.resume().await.expect("it resumes");
    assert_eq!(guest.recall().await, 2);
    instance.machine.pause().await.expect("it pauses");
    assert_eq!(instance.machine.kill().await, Exit::Killed, "a paused machine is killed too");
}

async fn clones_are_apart(harness: &dyn Harness, template: &Snapshot) {
    let before = content(&template.disk);
    let (mut a, mut guest_a) = Instance::running(harness, template).await;
    let (mut b, mut guest_b) = Instance::running(harness, template).await;
    guest_a.remember(10).await;
    guest_b.remember(20).await;
    guest_a.write_disk().await;
    assert_eq!((guest_a.recall().await, guest_b.recall().await), (10, 20));
    a.machine.kill().await;
    assert_eq!(guest_b.recall().await, 20, "a clone's end is not its sibling's");
    b.machine.kill().await;
    let (mut c, mut guest_c) = Instance::running(harness, template).await;
    assert_eq!(guest_c.recall().await, 1, "the template is as it was");
    c.machine.kill().await;
    assert!(content(&template.disk) == before, "no clone wrote to its disk");
}

async fn generations(harness: &dyn Harness, template: &Snapshot) {
    let (mut parent, mut guest) = Instance::running(harness, template).await;
    guest.remember(100).await;
    guest.write_disk().await;
    let first = parent.cut(harness, template).await;
    parent.machine.resume().await.expect("the parent goes on");
    assert_eq!(guest.recall().await, 100, "over the connection that it had");
    guest.remember(101).await;

    let (mut child, mut child_guest) = Instance::running(harness, &first).await;
    assert_eq!(child_guest.recall().await, 100, "a child begins where its parent was cut");
    child_guest.remember(200).await;
    child_guest.write_disk().await;
    let second = child.cut_into(harness, harness.snapshot_dir().await, template).await;
    child.machine.kill().await;

    let (mut grandchild, mut grandchild_guest) = Instance::running(harness, &second).await;
    assert_eq!(grandchild_guest.recall().await, 200, "a grandchild is base plus one diff");
    let (mut sibling, mut sibling_guest) = Instance::running(harness, &first).await;
    assert_eq!((sibling_guest.recall().await, guest.recall().await), (100, 101), "nobody was disturbed");
    for instance in [&mut parent, &mut grandchild, &mut sibling] {
        instance.machine.kill().await;
    }
}

async fn disk_is_switched(harness: &dyn Harness, template: &Snapshot) {
    let (mut instance, mut guest) = Instance::running(harness, template).await;
    guest.write_disk().await;
    for _ in 0..2 {
        instance.machine.pause().await.expect("it pauses");
        let (frozen, next) = (instance.disk.clone(), instance.next_overlay(harness));
        instance.machine.switch_disk(&next).await.expect("a paused machine switches its disk");
        let before = content(&frozen);
        let empty = content(&next);
        instance.machine.resume().await.expect("it resumes");
        guest.write_disk().await;
        instance.machine.pause().await.expect("it pauses");
        assert!(content(&frozen) == before, "a frozen overlay is written to");
        let held = harness.engine().disks().holds_writes();
        assert!(content(&next) != empty || !held, "the new overlay is not written to");
        instance.machine.resume().await.expect("it resumes");
        instance.disk = next;
    }
    cut_is_prepared(harness, &mut instance, &mut *guest).await;
    instance.machine.pause().await.expect("it pauses");
    let absent = instance.dir.join("absent");
    let refused = instance.machine.switch_disk(&absent).await;
    assert!(matches!(refused, Err(MachineError::Refused { .. } | MachineError::File { .. })));
    instance.machine.resume().await.expect("a refused switch leaves the machine as it was");
    guest.write_disk().await;
    cut_fails(harness, &mut instance, &mut *guest, template).await;
    instance.machine.kill().await;
}

/// Of a cut that fails, the machine says what it has done.
async fn cut_fails(harness: &dyn Harness, instance: &mut Instance, guest: &mut dyn Guest, template: &Snapshot) {
    guest.remember(60).await;
    instance.machine.pause().await.expect("it pauses");
    let (absent, next) = (instance.dir.join("absent"), instance.next_overlay(harness));
    assert!(matches!(instance.machine.cut(&absent, &next).await, Err(MachineError::File { .. })));
    let (disk, other) = (instance.machine.root_disk(), if instance.machine.root_disk() == next { &instance.disk } else { &next });
    let before = content(other);
    instance.machine.resume().await.expect("a failed cut leaves the machine able to go on");
    guest.write_disk().await;
    assert!(content(other) == before, "it writes to another disk than it says");
    instance.disk = disk;
    instance.cut(harness, template).await;
    instance.machine.resume().await.expect("it resumes after one that succeeds");
    assert_eq!(guest.recall().await, 60);
}

async fn cut_is_prepared(harness: &dyn Harness, instance: &mut Instance, guest: &mut dyn Guest) {
    guest.remember(50).await;
    let machine = &mut instance.machine;
    assert!(matches!(
        machine.prepare_cut(&instance.dir.join("absent")).await,
        Err(MachineError::Refused { .. } | MachineError::File { .. })
    ));
    let next = instance.next_overlay(harness);
    let bytes = instance.machine.prepare_cut(&next).await.expect("a running machine prepares a cut");
    assert!(bytes > 0, "what was written since the restore is told");
    let frozen = instance.disk.clone();
    guest.write_disk().await;
    assert_eq!(instance.machine.root_disk(), frozen, "a preparation switches nothing");
    // Prepared again, and for a machine that was given up meanwhile: the last one counts.
    let other = instance.next_overlay(harness);
    instance.machine.prepare_cut(&other).await.expect("another preparation takes the place of the first");
    instance.machine.pause().await.expect("it pauses");
    instance.machine.switch_disk(&other).await.expect("it switches to what was prepared");
    instance.machine.resume().await.expect("it resumes");
    let before = content(&frozen);
    guest.write_disk().await;
    assert!(content(&frozen) == before, "a frozen overlay is written to");
    instance.disk = other;
}

async fn reconnects(harness: &dyn Harness, template: &Snapshot) {
    let (mut instance, mut first) = Instance::running(harness, template).await;
    let mut second = instance.guest(harness).await;
    first.closed().await;
    second.remember(3).await;
    drop(second);
    let mut third = instance.guest(harness).await;
    assert_eq!(third.recall().await, 3);
    instance.machine.kill().await;
    third.closed().await;
}

/// An engine whose machines are no processes has nothing to be stopped.
async fn stands_still(harness: &dyn Harness, template: &Snapshot) {
    let (mut instance, mut guest) = Instance::running(harness, template).await;
    guest.remember(4).await;
    let processes = instance.machine.processes().await.expect("a machine has its processes told");
    assert_eq!(processes.first().copied(), instance.machine.pid(), "its engine's is the first");
    for pid in &processes {
        let pid = Pid::from_raw(i32::try_from(*pid).expect("a process has a number"));
        // The end of nobody else's session lets it go on.
        assert_eq!(getsid(Some(pid)), Ok(pid), "it leads its own session");
        kill(pid, Signal::SIGSTOP).expect("it can be stopped");
    }
    for pid in &processes {
        while !fs_err::read_to_string(format!("/proc/{pid}/stat")).expect("it is there").contains(") T ") {
            tokio::task::yield_now().await;
        }
    }
    for pid in processes {
        kill(Pid::from_raw(pid.cast_signed()), Signal::SIGCONT).expect("it goes on");
    }
    assert_eq!(guest.recall().await, 4);
    instance.machine.kill().await;
}

async fn adopts(harness: &dyn Harness, template: &Snapshot) {
    let (mut instance, mut guest) = Instance::running(harness, template).await;
    guest.remember(30).await;
    let pid = instance.machine.pid();
    instance.machine.release();
    assert_eq!(harness.live(), 1, "a released machine lives");
    instance.machine = harness.engine().adopt(&instance.dir).await.expect("a released machine is adopted");
    assert_eq!(instance.machine.pid(), pid);
    assert_eq!(instance.machine.root_disk(), instance.disk);
    let mut guest = instance.guest(harness).await;
    assert_eq!(guest.recall().await, 30);
    // An adopted machine can do what any machine can, in the state that it was left in.
    let cut = instance.cut(harness, template).await;
    instance.machine.release();
    instance.machine = harness.engine().adopt(&instance.dir).await.expect("a paused machine is adopted");
    assert_eq!(instance.machine.root_disk(), instance.disk, "the engine says which disk it was switched to");
    let next = instance.next_overlay(harness);
    instance.machine.switch_disk(&next).await.expect("it is still paused, on the disk that it was switched to");
    instance.machine.resume().await.expect("it resumes");
    assert_eq!(instance.guest(harness).await.recall().await, 30);
    assert_eq!(instance.machine.kill().await, Exit::Killed);
    let (mut child, mut guest) = Instance::running(harness, &cut).await;
    assert_eq!(guest.recall().await, 30);
    child.machine.kill().await;
}

async fn refuses_to_adopt(harness: &dyn Harness, template: &Snapshot) {
    let spec = harness.restore_spec(template).await;
    assert!(harness.engine().adopt(&spec.dir).await.is_err(), "nothing ever ran there");
    let (mut instance, _guest) = Instance::running(harness, template).await;
    instance.machine.kill().await;
    assert!(harness.engine().adopt(&instance.dir).await.is_err(), "what ran there is gone");
    assert_eq!(harness.live(), 0);
}

async fn notices_a_crash(harness: &dyn Harness, template: &Snapshot) {
    let (mut instance, mut guest) = Instance::running(harness, template).await;
    {
        // A wait that is given up takes nothing with it.
        let wait = instance.machine.wait();
        assert!(tokio::time::timeout(Duration::from_millis(20), wait).await.is_err(), "a running machine does not end");
    }
    harness.crash(instance.machine.pid(), &instance.dir).await;
    let exit = instance.machine.wait().await;
    assert!(matches!(exit, Exit::Crashed { .. }), "{exit:?}");
    assert_eq!(instance.machine.wait().await, exit, "an exit is told as often as one asks");
    assert_eq!(instance.machine.kill().await, exit, "what is gone cannot be killed");
    guest.closed().await;

    let (mut instance, _guest) = Instance::running(harness, template).await;
    harness.crash(instance.machine.pid(), &instance.dir).await;
    let paused = instance.machine.pause().await;
    assert!(matches!(paused, Err(MachineError::Gone(Exit::Crashed { .. }))), "{paused:?}");
    assert_eq!(instance.machine.pid(), None);
}

async fn powers_off(harness: &dyn Harness, template: &Snapshot) {
    let (mut instance, mut guest) = Instance::running(harness, template).await;
    guest.power_off().await;
    assert_eq!(instance.machine.wait().await, Exit::GuestPoweroff);
    assert_eq!(instance.machine.kill().await, Exit::GuestPoweroff);
}

async fn prepares(harness: &dyn Harness, template: &Snapshot) {
    let (mut parent, mut guest) = Instance::running(harness, template).await;
    guest.remember(60).await;
    let cut = parent.cut(harness, template).await;
    parent.machine.kill().await;
    for (snapshot, number) in [(template, 1), (&cut, 60)] {
        let mut waiting = Vec::new();
        for _ in 0..2 {
            let spec = harness.restore_spec(snapshot).await;
            let (dir, disk) = (spec.dir.clone(), spec.disk.overlay.clone());
            waiting.push((harness.engine().prepare(spec).await.expect("a whole snapshot is prepared"), dir, disk));
        }
        assert_eq!(harness.live(), 2, "both engines are up");
        let mut clones = Vec::new();
        for (prepared, dir, disk) in waiting {
            let pid = prepared.pid();
            let machine = prepared.load().await.expect("what is prepared is loaded");
            assert_eq!((machine.pid(), machine.root_disk()), (pid, disk.clone()), "in the engine that waited");
            clones.push(Instance { machine, dir, disk });
        }
        for (clone, other) in clones.iter_mut().zip([600, 601]) {
            clone.machine.pause().await.expect("a loaded machine is paused");
            clone.machine.resume().await.expect("it resumes");
            let mut guest = clone.guest(harness).await;
            assert_eq!(guest.recall().await, number, "memory came back, and its sibling's did not");
            guest.remember(other).await;
            guest.write_disk().await;
        }
        for (mut clone, other) in clones.into_iter().zip([600, 601]) {
            assert_eq!(clone.guest(harness).await.recall().await, other);
            let grandchild = clone.cut(harness, snapshot).await;
            clone.machine.kill().await;
            let (mut grandchild, mut guest) = Instance::running(harness, &grandchild).await;
            assert_eq!(guest.recall().await, other, "a machine that was prepared is cut as any other");
            grandchild.machine.kill().await;
        }
    }
    assert_eq!(harness.live(), 0);
}

async fn prepared_ends(harness: &dyn Harness, template: &Snapshot) {
    let prepared = async || {
        let spec = harness.restore_spec(template).await;
        let dir = spec.dir.clone();
        (harness.engine().prepare(spec).await.expect("a whole snapshot is prepared"), dir)
    };
    let (mut dies, dir) = prepared().await;
    assert!(tokio::time::timeout(Duration::from_millis(20), dies.wait()).await.is_err(), "it waits as long as one likes");
    harness.crash(dies.pid(), &dir).await;
    let exit = dies.wait().await;
    assert!(matches!(exit, Exit::Crashed { .. }), "{exit:?}");
    assert_eq!((dies.wait().await, dies.kill().await, dies.pid()), (exit.clone(), exit, None));
    let error = dies.load().await.err();
    assert!(matches!(error, Some(StartError::Died { .. })), "{error:?}");

    let (dies, dir) = prepared().await;
    harness.crash(dies.pid(), &dir).await;
    let error = dies.load().await.err();
    assert!(matches!(error, Some(StartError::Died { .. })), "although nobody waited for its end: {error:?}");
    gone(harness, "an engine that died is gone").await;

    let (mut killed, _dir) = prepared().await;
    assert_eq!((killed.kill().await, killed.kill().await), (Exit::Killed, Exit::Killed));
    assert_eq!(harness.live(), 0, "a killed engine is gone");

    drop(prepared().await);
    gone(harness, "a dropped engine is killed").await;
    for milliseconds in [0, 1, 5, 20] {
        let (prepared, _dir) = prepared().await;
        drop(tokio::time::timeout(Duration::from_millis(milliseconds), prepared.load()).await);
        gone(harness, "a load that was given up leaves no machine").await;
    }
}

async fn refuses_damage(harness: &dyn Harness, template: &Snapshot) {
    let (mut instance, _guest) = Instance::running(harness, template).await;
    let whole = instance.cut(harness, template).await;
    instance.machine.kill().await;
    let refused = async |snapshot: Snapshot, what: &str| {
        let spec = harness.restore_spec(&snapshot).await;
        let error = harness.engine().restore(spec).await.err();
        let typed = matches!(error, Some(StartError::Refused { .. } | StartError::File { .. }));
        assert!(typed, "{what}: {error:?}");
        assert_eq!(harness.live(), 0, "{what}: a process was left");
    };
    let damaged = |path: &Path, damage: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = fs_err::read(path).expect("a member is there");
        damage(&mut bytes);
        let copy = path.with_extension("damaged");
        fs_err::write(&copy, bytes).expect("a copy is written");
        copy
    };
    let flip = |bytes: &mut Vec<u8>| {
        if let Some(byte) = bytes.last_mut() {
            *byte ^= 1
        }
    };
    let halve = |bytes: &mut Vec<u8>| bytes.truncate(bytes.len() / 2);
    for (damage, name) in [(&flip as &dyn Fn(&mut Vec<u8>), "flipped"), (&halve, "halved"), (&|bytes| bytes.clear(), "emptied")] {
        let state = damaged(&whole.state, damage);
        refused(Snapshot { state, ..whole.clone() }, &format!("{name} state")).await;
        if let SnapshotMemory::Diff { base, diff } = whole.memory.clone() {
            let memory = SnapshotMemory::Diff { base, diff: damaged(&diff, damage) };
            refused(Snapshot { memory, ..whole.clone() }, &format!("{name} diff")).await;
        }
    }
    refused(Snapshot { state: whole.state.with_extension("absent"), ..whole.clone() }, "absent state").await;
    if let SnapshotMemory::Diff { base, diff } = whole.memory.clone() {
        let memory = SnapshotMemory::Diff { base, diff: diff.with_extension("absent") };
        refused(Snapshot { memory, ..whole.clone() }, "absent diff").await;
        let memory = SnapshotMemory::Diff { base: whole.state.clone(), diff };
        refused(Snapshot { memory, ..whole.clone() }, "memory of another size").await;
    }
    let (mut child, _guest) = Instance::running(harness, &whole).await;
    child.machine.kill().await;
}

async fn leaves_nothing(harness: &dyn Harness, template: &Snapshot) {
    let instance = Instance::restore(harness, template).await;
    drop(instance);
    gone(harness, "a dropped machine is killed").await;
    // Wherever in its course a start is given up, nothing is left.
    for milliseconds in [0, 1, 5, 10, 20, 40, 80] {
        let spec = harness.restore_spec(template).await;
        let start = harness.engine().restore(spec);
        drop(tokio::time::timeout(Duration::from_millis(milliseconds), start).await);
        gone(harness, "a start that was given up leaves no machine").await;
    }
}

async fn failed_boot_leaves_nothing(harness: &dyn Harness) {
    let mut spec = harness.boot_spec().await;
    spec.disk.overlay = spec.dir.join("absent");
    let memory = spec.memory_file.clone();
    assert!(harness.engine().boot(spec).await.is_err(), "a machine without its disk does not boot");
    gone(harness, "a failed boot leaves no machine").await;
    assert!(!memory.exists(), "a failed boot leaves no memory file");
}

/// What a disk's file holds, or all files of one that is a directory.
fn content(disk: &Path) -> Vec<u8> {
    if !disk.is_dir() {
        return fs_err::read(disk).expect("a disk is there");
    }
    let entries = fs_err::read_dir(disk).expect("a disk is there").map(|entry| entry.expect("a directory is read").path());
    let mut entries: Vec<PathBuf> = entries.collect();
    entries.sort();
    entries.iter().flat_map(|entry| content(entry)).collect()
}

/// Waits for the last process to go: a drop waits for nothing.
async fn gone(harness: &dyn Harness, promise: &str) {
    let all_gone = async {
        while harness.live() > 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(30), all_gone).await.is_ok(), "{promise}");
}

fn wrong_state<T: std::fmt::Debug>(result: Result<T, MachineError>, expected: &str) {
    assert!(matches!(&result, Err(MachineError::WrongState { state, .. }) if *state == expected), "{result:?}");
}
