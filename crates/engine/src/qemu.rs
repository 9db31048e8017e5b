//! QEMU as an engine: one process per machine, driven over QMP.
//!
//! A template's memory is a file that the booted machine writes and that clones map privately, so a restore reads nothing but
//! what it touches and all clones share one page cache. Device state travels apart from memory, in a fraction of a
//! millisecond's worth of bytes; a clone's own pages are found and packed by [`crate::memory`]. How the acceleration is
//! chosen is [`probe`]'s matter; how a process is kept from doing harm is that of its isolation.
//!
//! ```text
//!   restore:  check files ─► listen ─► spawn ─► greet ─► prepared ─► [write the diff's pages] ─► load device state ─► paused
//! ```
//!
//! Sockets are listened on by us and accepted from by QEMU: there is no socket file to wait for, no connection to race, and a
//! later process of ours connects again.

mod calls;
mod command;
mod cost;
mod instance;
mod isolation;
mod launch;
mod machine;
mod monitor;
mod prepared;
pub mod probe;
mod state;

pub use isolation::safeguards_of_host;

use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use firkin_jail::{Confinement, Jail, Network};
use fs_err::os::unix::fs::OpenOptionsExt;
use serde_json::json;
use tokio::time::timeout;

use self::{
    command::{Begin, CODE_CACHE_MIB, DiskNumbers, Hardware, Layer, MemoryBackend, Nic, ROOT_NODE},
    instance::{CONTROL_SOCKET, MONITOR_SOCKET, MemoryRecord, Record},
    launch::Launch,
    machine::{Parts, QemuMachine, Root, State},
    monitor::{Monitor, MonitorError},
    prepared::{Phases, QemuPrepared, Snapshot},
};
use crate::{
    Acceleration, AttachmentKind, BootSpec, Compatibility, Engine, Machine, OwnMemory, Prepared, Processor, RestoreSpec,
    Safeguard, Shape, Slot, SnapshotMemory, StartError,
    directory::{self, blocking},
    disk::{DiskFormat, RootDisk},
    memory::diff::Diff,
    process::{Process, may_be_killed_for_memory},
    qcow2::{self, Format, Qcow2},
};

/// From the start of the process to its first word. 30 ms on an idle host; much longer where many start at once.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// A monitor that does not answer an adopting process within this time never will. As long as for its first word: after a
/// restart, many are asked at once.
const ADOPT_DEADLINE: Duration = Duration::from_secs(30);
/// What QEMU itself takes, whatever its guest does: 27 MiB were measured of an idle one, by its proportional share.
const PROCESS_MIB: u64 = 32;
/// An emulator's translated code, of a guest that has run Python.
const WARM_CODE_MIB: u64 = 56;
/// Beside what was measured, tables of the kernel for the guest's pages, buffers of I/O in flight, and page cache to write the disk
/// Threads of a process besides one a virtual processor: its pool for I/O has 64 at most.
const THREADS: u32 = 128;
/// through. A machine that is held to too little dies.
const MOST_MIB: u64 = 256;
/// Layers of a disk. Chains are merged long before; each has a descriptor.
const MAX_LAYERS: usize = 256;

/// Starts machines with QEMU. Made by [`probe::probe`], which finds out whether and how QEMU works on this host.
#[derive(Debug, Clone)]
pub struct QemuEngine {
    program: PathBuf,
    compatibility: Compatibility,
    jail: Arc<Jail>,
    /// Why the machine is emulated although hardware virtualisation was not ruled out by the user.
    fallback: Option<String>,
}

impl QemuEngine {
    /// Why KVM is not used, when it was to be used if possible.
    pub fn fallback(&self) -> Option<&str> {
        self.fallback.as_deref()
    }

    /// The QEMU binary in use.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Opens `/dev/kvm` for the process, which could not itself.
    fn kvm(&self) -> Result<Option<OwnedFd>, StartError> {
        open_kvm(self.compatibility.plain.acceleration).map_err(|source| StartError::File { path: KVM.into(), source })
    }
}

const KVM: &str = "/dev/kvm";

fn open_kvm(acceleration: Acceleration) -> io::Result<Option<OwnedFd>> {
    match acceleration {
        Acceleration::Kvm => {
            let file = fs_err::OpenOptions::new().read(true).write(true).open(KVM)?;
            Ok(Some(file.into_parts().0.into()))
        }
        Acceleration::Tcg | Acceleration::Gvisor | Acceleration::None => Ok(None),
    }
}

#[async_trait]
impl Engine for QemuEngine {
    fn compatibility(&self) -> &Compatibility {
        &self.compatibility
    }

    fn own_memory(&self) -> OwnMemory {
        match self.compatibility.plain.acceleration {
            Acceleration::Tcg => {
                OwnMemory { usual_mib: PROCESS_MIB + WARM_CODE_MIB, most_mib: MOST_MIB + u64::from(CODE_CACHE_MIB) }
            }
            Acceleration::Kvm | Acceleration::Gvisor | Acceleration::None => {
                OwnMemory { usual_mib: PROCESS_MIB, most_mib: MOST_MIB }
            }
        }
    }

    fn most_threads(&self) -> u32 {
        THREADS
    }

    fn safeguards(&self) -> Vec<Safeguard> {
        isolation::safeguards(self.jail.parts())
    }

    fn disks(&self) -> &'static dyn DiskFormat {
        &Qcow2
    }

    async fn boot(&self, spec: BootSpec) -> Result<Box<dyn Machine>, StartError> {
        let BootSpec { dir, shape, processor, slot, boot, disk, memory_file } = spec;
        let boot = boot.kernel()?;
        let (memory, unfinished) = create_memory(&memory_file, memory_bytes(shape), slot.uid)?;
        let (kernel, initrd) = tokio::try_join!(in_memory(boot.kernel.path.clone()), in_memory(boot.initrd.path.clone()))?;
        let handed = duplicate(&memory, &memory_file)?;
        let begin = Begin::Boot { kernel: kernel.as_raw_fd(), initrd: initrd.as_raw_fd(), cmdline: &boot.cmdline };
        let start = Start {
            shape,
            processor,
            announces: false,
            memory: MemoryBackend::File(handed.as_raw_fd()),
            begin,
            disk: Disk::open(&dir, &disk)?,
            record: MemoryRecord::Booted(memory_file.clone()),
            extra: vec![kernel.into(), initrd.into(), handed],
        };
        let (process, monitor) = self.start(&dir, slot, start).await?;
        unfinished.finished();
        let parts = self.parts((process, monitor), (dir, disk.overlay), (machine::Memory::Booted(memory), shape));
        Ok(Box::new(QemuMachine::new(parts, State::Running)))
    }

    async fn prepare(&self, spec: RestoreSpec) -> Result<Box<dyn Prepared>, StartError> {
        let RestoreSpec { dir, shape, processor, announces, slot, memory, state, disk } = spec;
        let (memory, memory_diff) = match memory {
            SnapshotMemory::Full(memory) => (memory, None),
            SnapshotMemory::Diff { base, diff } => (base, Some(diff)),
            SnapshotMemory::InState => return Err(refused("the snapshot's memory", "it is of another engine")),
        };
        let mut clock = Phases::begin();
        let Checked { state, form, diff } = check(state, memory_diff, memory_bytes(shape)).await?;
        let base = open(&memory)?;
        if base.metadata().map_err(|source| file_error(&memory, source))?.len() != memory_bytes(shape) {
            return Err(refused("the snapshot's memory", "its size is not the machine's"));
        }
        let handed = duplicate(&base, &memory)?;
        let diff = match diff {
            Some(diff) => Some((diff, duplicate(&base, &memory)?.into())),
            None => None,
        };
        clock.phase("checked");
        let start = Start {
            shape,
            processor,
            announces,
            memory: MemoryBackend::Clone(handed.as_raw_fd()),
            begin: Begin::Incoming { state: state.as_raw_fd() },
            disk: Disk::open(&dir, &disk)?,
            record: MemoryRecord::Cloned(memory),
            extra: vec![state, handed],
        };
        let (process, monitor) = self.start(&dir, slot, start).await?;
        clock.phase("up");
        let parts = self.parts((process, monitor), (dir, disk.overlay), (machine::Memory::Cloned(base), shape));
        Ok(Box::new(QemuPrepared::new(parts, Snapshot { form, diff }, clock)))
    }

    fn has_started(&self, dir: &Path) -> bool {
        Record::read(dir).is_ok()
    }

    fn spare_programs(&self) -> io::Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn forget_program(&self, _program: &str) -> io::Result<()> {
        Ok(())
    }

    fn unnamed_bytes(&self, _dir: &Path) -> io::Result<u64> {
        Ok(0)
    }

    async fn adopt(&self, dir: &Path) -> Result<Box<dyn Machine>, StartError> {
        let record = Record::read(dir).map_err(|source| file_error(dir, source))?;
        let memory = open_recorded(&record)?;
        let log = launch::open_log(dir).map_err(|source| file_error(dir, source))?;
        let mut process = Process::adopt(record.pid, record.start_time, record.uid, log)
            .map_err(|source| file_error(&dir.join("instance.json"), source))?;
        may_be_killed_for_memory(process.pid());
        let outcome = timeout(ADOPT_DEADLINE, greet_again(dir)).await;
        // From here on the machine is either ours or of no use to anybody.
        process.kill_on_drop();
        let (monitor, state, root) = outcome
            .map_err(|_| StartError::Deadline { phase: "to adopt it", deadline: ADOPT_DEADLINE })?
            .map_err(|error| start_error("to adopt it", error, &process))?;
        let parts = Parts {
            process,
            monitor,
            dir: dir.to_path_buf(),
            machine: self.compatibility.plain.machine.clone(),
            memory,
            memory_bytes: record.memory_bytes,
            root,
            adopted: true,
        };
        Ok(Box::new(QemuMachine::new(parts, state)))
    }
}

/// The differences between a boot and a restore.
struct Start<'a> {
    shape: Shape,
    processor: Processor,
    announces: bool,
    memory: MemoryBackend,
    begin: Begin<'a>,
    disk: Disk,
    record: MemoryRecord,
    /// Descriptors that the command line names.
    extra: Vec<OwnedFd>,
}

/// A root disk, opened by us: the process itself could not.
struct Disk {
    /// The name of the overlay's file.
    name: String,
    overlay: OwnedFd,
    /// What the guest sees of it.
    bytes: u64,
    /// Lowest first.
    layers: Vec<(OwnedFd, Format, bool)>,
}

impl Disk {
    fn open(dir: &Path, disk: &RootDisk) -> Result<Self, StartError> {
        let (overlay, layers) = (disk.overlay.as_path(), qcow2::chain(disk));
        if layers.len() > MAX_LAYERS {
            return Err(refused("the root disk", "it has too many layers"));
        }
        let failed = |path: &Path| {
            let path = path.to_path_buf();
            move |source| StartError::File { path, source }
        };
        let name = directory::own_name(dir, overlay).map_err(failed(overlay))?.to_owned();
        let bytes = qcow2::inspect(overlay).map_err(|error| refused("the root disk", &error.to_string()))?.virtual_bytes;
        let opened = directory::open_unfollowed(overlay, true).map_err(failed(overlay))?;
        let layers = layers.iter().map(|layer| {
            let (file, is_device) = directory::open_layer(&layer.path).map_err(failed(&layer.path))?;
            Ok((file.into(), layer.format, is_device))
        });
        Ok(Self { name, overlay: opened.into(), bytes, layers: layers.collect::<Result<_, _>>()? })
    }

    fn numbers(&self) -> DiskNumbers<'_> {
        let layer = |(file, format, is_device): &(OwnedFd, Format, bool)| Layer {
            fd: file.as_raw_fd(),
            format: *format,
            is_device: *is_device,
        };
        let layers = self.layers.iter().map(layer).collect();
        DiskNumbers { name: &self.name, overlay: self.overlay.as_raw_fd(), layers }
    }

    fn into_descriptors(self) -> impl Iterator<Item = OwnedFd> {
        std::iter::once(self.overlay).chain(self.layers.into_iter().map(|(layer, ..)| layer))
    }
}

impl QemuEngine {
    /// Starts the process in its slot and greets it.
    async fn start(&self, dir: &Path, slot: Slot, start: Start<'_>) -> Result<(Process, Monitor), StartError> {
        let Slot { uid, netns, attachment, mac, groups } = slot;
        let tap = attachment.demand(AttachmentKind::Tap)?;
        let Start { shape, processor, announces, memory, begin, disk, record, extra } = start;
        let monitor = listen(dir, MONITOR_SOCKET)?;
        let control = listen(dir, CONTROL_SOCKET)?;
        let kvm = self.kvm()?;
        let kvm_absent = kvm.is_none();
        let root_disk = disk.numbers();
        let hardware = Hardware {
            machine: &self.compatibility.plain.machine,
            acceleration: self.compatibility.plain.acceleration,
            processor,
            kvm: kvm.as_ref().map(AsRawFd::as_raw_fd),
            shape,
            memory,
            begin,
            monitor: monitor.as_raw_fd(),
            control: control.as_raw_fd(),
            nic: Some(Nic { tap: tap.as_raw_fd(), mac, announces }),
            root_disk: Some(&root_disk),
        };
        let launch = Launch {
            program: self.program.clone(),
            arguments: command::arguments(&hardware),
            jail: Arc::clone(&self.jail),
            confinement: Confinement {
                uid,
                network: Network::Enter(netns),
                groups,
                limits: isolation::limits(shape.vcpus, disk.bytes),
                // They make a heap of 5 MB one of 10, and clones gain nothing: memory that is mapped from a file has none. An
                // emulator's code cache does gain.
                huge_pages: kvm_absent,
                handed: [monitor, control, tap].into_iter().chain(kvm).chain(extra).chain(disk.into_descriptors()).collect(),
            },
            dir: dir.to_path_buf(),
        };
        let mut process = spawn(launch).await?;
        let record = Record::new(process.pid(), process.start_time(), uid, memory_bytes(shape), record);
        record.write(dir).map_err(|source| file_error(dir, source))?;
        let (monitor, _) = greet(dir, &mut process).await?;
        Ok((process, monitor))
    }

    fn parts(
        &self,
        (process, monitor): (Process, Monitor),
        (dir, root_disk): (PathBuf, PathBuf),
        (memory, shape): (machine::Memory, Shape),
    ) -> Parts {
        let machine = self.compatibility.plain.machine.clone();
        let root = Root { node: 0, path: root_disk };
        Parts { process, monitor, dir, machine, memory, memory_bytes: memory_bytes(shape), root, adopted: false }
    }
}

async fn spawn(launch: Launch) -> Result<Process, StartError> {
    let program = launch.program.display().to_string();
    blocking(move || launch::spawn(launch)).await.map_err(|source| StartError::Spawn { program, source })
}

/// Waits for QEMU's greeting, or for its end.
async fn greet(dir: &Path, process: &mut Process) -> Result<(Monitor, serde_json::Value), StartError> {
    const PHASE: &str = "its start";
    let stream = directory::connect(dir, MONITOR_SOCKET).await.map_err(|source| file_error(&dir.join(MONITOR_SOCKET), source))?;
    let opened = tokio::select! {
        opened = timeout(START_DEADLINE, Monitor::open(stream)) => opened,
        _ = process.ended() => return Err(StartError::Died { phase: PHASE, log: process.log_tail() }),
    };
    opened
        .map_err(|_| StartError::Deadline { phase: PHASE, deadline: START_DEADLINE })?
        .map_err(|error| start_error(PHASE, error, process))
}

/// Speaks to a machine that was started before: its state, and its current root disk.
async fn greet_again(dir: &Path) -> Result<(Monitor, State, Root), MonitorError> {
    let stream = directory::connect(dir, MONITOR_SOCKET).await.map_err(MonitorError::Closed)?;
    let (mut monitor, _) = Monitor::open(stream).await?;
    let status = monitor.execute("query-status", json!({})).await?;
    let state = machine::state_of(&status).ok_or(MonitorError::Protocol("its machine was never whole"))?;
    let blocks = monitor.execute("query-block", json!({})).await?;
    let sets = monitor.execute("query-fdsets", json!({})).await?;
    Ok((monitor, state, root_of(dir, &blocks, &sets).ok_or(MonitorError::Protocol("its machine has no root disk"))?))
}

/// Which file of `dir` a machine's root disk is, from what QEMU says of its disks and descriptors.
fn root_of(dir: &Path, blocks: &serde_json::Value, sets: &serde_json::Value) -> Option<Root> {
    let mut disks = blocks.as_array()?.iter().map(|block| &block["inserted"]);
    let node = disks.find_map(|disk| disk["node-name"].as_str()?.strip_prefix(ROOT_NODE)?.parse::<u32>().ok())?;
    let set = command::root_set(node.min(command::MAX_ROOT_NODE));
    let set = sets.as_array()?.iter().find(|found| found["fdset-id"].as_u64() == Some(set.into()))?;
    let name = set["fds"].as_array()?.iter().find_map(|fd| fd["opaque"].as_str())?;
    // A file of the directory and nothing else, whatever a machine that was taken over says.
    let plain = !name.is_empty() && name != "." && name != ".." && !name.contains('/');
    plain.then(|| Root { node, path: dir.join(name) })
}

/// Opens the memory file of an adopted machine. The record is the server's own; that of a booted machine must also still belong
/// to the machine's user, because it is written to.
fn open_recorded(record: &Record) -> Result<machine::Memory, StartError> {
    let (MemoryRecord::Cloned(path) | MemoryRecord::Booted(path)) = &record.memory;
    let booted = matches!(record.memory, MemoryRecord::Booted(_));
    let file = directory::open_unfollowed(path, booted).map_err(|source| file_error(path, source))?;
    let metadata = file.metadata().map_err(|source| file_error(path, source))?;
    if metadata.len() != record.memory_bytes || booted && metadata.uid() != record.uid {
        return Err(refused("adopting it", "its memory file is not what it was"));
    }
    Ok(if booted { machine::Memory::Booted(file) } else { machine::Memory::Cloned(file) })
}

/// The part of a snapshot that is read before a process exists.
struct Checked {
    state: OwnedFd,
    form: state::Form,
    diff: Option<Diff>,
}

async fn check(state: PathBuf, diff: Option<PathBuf>, memory_bytes: u64) -> Result<Checked, StartError> {
    let work = move || Ok(check_now(&state, diff.as_deref(), memory_bytes));
    blocking(work).await.map_err(|source| file_error(Path::new("/proc/self"), source))?
}

fn check_now(state: &Path, diff: Option<&Path>, memory_bytes: u64) -> Result<Checked, StartError> {
    let diff = diff.map(|path| Diff::open(path, memory_bytes)).transpose();
    let diff = diff.map_err(|error| refused("the snapshot's memory diff", &error.to_string()))?;
    let path = state;
    let state = state::DeviceState::read(path).map_err(|error| match error {
        state::ReadError::Io(source) => file_error(path, source),
        damaged => refused("the snapshot's device state", &damaged.to_string()),
    })?;
    let form = state.form;
    Ok(Checked { state: state.into_descriptor().map_err(|source| file_error(path, source))?, form, diff })
}

fn start_error(phase: &'static str, error: MonitorError, process: &Process) -> StartError {
    match error {
        MonitorError::Refused(reason) => StartError::Refused { phase, reason },
        MonitorError::Closed(_) => StartError::Died { phase, log: process.log_tail() },
        MonitorError::Protocol(problem) => StartError::Refused { phase, reason: problem.into() },
    }
}

fn refused(phase: &'static str, reason: &str) -> StartError {
    StartError::Refused { phase, reason: reason.to_owned() }
}

fn file_error(path: &Path, source: io::Error) -> StartError {
    StartError::File { path: path.to_path_buf(), source }
}

fn memory_bytes(shape: Shape) -> u64 {
    u64::from(shape.memory_mib) << 20
}

fn open(path: &Path) -> Result<File, StartError> {
    Ok(fs_err::File::open(path).map_err(|source| file_error(path, source))?.into_parts().0)
}

/// A copy of a file that any user may open, and only by its descriptor: QEMU opens what it boots anew, by `/proc/self/fd`, for
/// which the kernel asks the file itself whether it may be read.
async fn in_memory(path: PathBuf) -> Result<File, StartError> {
    let from = path.clone();
    let copy = blocking(move || {
        let mut copy = File::from(rustix::fs::memfd_create("firkin-boot", rustix::fs::MemfdFlags::CLOEXEC)?);
        io::copy(&mut directory::open_unfollowed(&from, false)?, &mut copy)?;
        rustix::fs::fchmod(&copy, rustix::fs::Mode::from_raw_mode(0o444))?;
        Ok(copy)
    });
    copy.await.map_err(|source| file_error(&path, source))
}

fn listen(dir: &Path, name: &str) -> Result<OwnedFd, StartError> {
    directory::listen(dir, name).map_err(|source| file_error(&dir.join(name), source))
}

fn duplicate(file: &File, path: &Path) -> Result<OwnedFd, StartError> {
    Ok(file.try_clone().map_err(|source| file_error(path, source))?.into())
}

/// Creates a booted machine's memory file. It is removed again unless the machine comes up.
fn create_memory(path: &Path, bytes: u64, uid: u32) -> Result<(File, Unfinished), StartError> {
    let failed = |source| file_error(path, source);
    let file = fs_err::OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    let unfinished = Unfinished(Some(path.to_path_buf()));
    let file = file.into_parts().0;
    file.set_len(bytes).map_err(failed)?;
    std::os::unix::fs::fchown(&file, Some(uid), Some(uid)).map_err(failed)?;
    Ok((file, unfinished))
}

/// A file that is removed on drop unless it was finished.
struct Unfinished(Option<PathBuf>);

impl Unfinished {
    fn finished(mut self) {
        self.0 = None;
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(path) = &self.0
            && let Err(error) = fs_err::remove_file(path)
        {
            tracing::warn!(%error, "cannot remove the memory file of a machine that did not start");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adopted_disk_is_a_file_of_the_instance_and_no_other() {
        let blocks = json!([{"device": ""}, {"inserted": {"node-name": "root-2", "file": "/etc/passwd"}}]);
        let named = |name: &str| json!([{"fdset-id": 1026, "fds": [{"fd": 9, "opaque": name}]}, {"fdset-id": 1, "fds": []}]);
        let root = root_of(Path::new("/run/x"), &blocks, &named("a.qcow2")).unwrap();
        assert_eq!((root.node, root.path), (2, PathBuf::from("/run/x/a.qcow2")));
        for hostile in ["", ".", "..", "../y/a.qcow2", "/etc/passwd"] {
            assert!(root_of(Path::new("/run/x"), &blocks, &named(hostile)).is_none(), "{hostile}");
        }
        let huge = json!([{"inserted": {"node-name": "root-4294967295"}}]);
        assert!(root_of(Path::new("/run/x"), &huge, &named("a.qcow2")).is_none());
    }

    #[test]
    fn a_recorded_memory_that_is_no_file_of_its_size_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let (pipe, file) = (dir.path().join("pipe"), dir.path().join("file"));
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        fs_err::File::create(&file).unwrap().set_len(4096).unwrap();
        let recorded = |memory| open_recorded(&Record::new(7, 9, nix::unistd::getuid().as_raw(), 4096, memory));
        for path in [&pipe, Path::new("/dev/zero"), dir.path(), Path::new("/etc/hostname")] {
            assert!(recorded(MemoryRecord::Cloned(path.to_path_buf())).is_err(), "{}", path.display());
            assert!(recorded(MemoryRecord::Booted(path.to_path_buf())).is_err(), "{}", path.display());
        }
        recorded(MemoryRecord::Cloned(file.clone())).unwrap();
        recorded(MemoryRecord::Booted(file)).unwrap();
    }
}
