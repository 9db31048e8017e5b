//! The virtual machine seam: boot, restore, pause, snapshot, stop.
//!
//! An [`Engine`] turns a [`BootSpec`] or a [`RestoreSpec`] into a [`Machine`]; a machine is cut into files by
//! [`Machine::snapshot`]. Engines know no sandbox, no template and no tenant: they are told paths, a slot to run in and sizes,
//! and they leave nothing outside the instance directory that they were given. Policy (what to restore, whether there is room,
//! who may) is the runtime's.
//!
//! ```text
//!   boot ──────────► running ◄──────── resume ──────┐
//!                      │  └────────── pause ───► paused ◄── load ── prepared ◄── prepare
//!                      │                            │       (restore does both)
//!                      └── exit / kill ─► gone ◄────┤
//!                                                   └─ snapshot ─► paused  (CopyOnWrite machines)
//!                                                              └─► sealed  (Shared machines: only kill is left)
//! ```

use std::{
    fmt,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

mod attachment;
mod boot_files;
pub mod compatibility;
#[cfg(any(test, feature = "contract"))]
pub mod contract;
mod directory;
pub mod disk;
pub mod fake;
mod forms;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod gvisor;
pub mod memory;
mod process;
pub mod qcow2;
pub mod qemu;

pub use self::{
    attachment::{Attachment, AttachmentKind},
    boot_files::{BootFile, BootFiles, KernelFiles},
    compatibility::{Compatibility, Fingerprint, Processor},
    disk::{Below, Carried, DiskError, DiskFormat, ImageForm, RootDisk},
    forms::formats,
};

/// Name of the serial port that a guest's agent listens on. Engines carry its bytes and do not know what they mean, so `firkin-wire`
/// has the name for the guest, as `control::PORT_NAME`, and a test of the runtime, which knows both, holds them together.
pub const CONTROL_PORT: &str = "firkin.control";

/// The kernel's command line of a machine that only shows whether machines work: the agent powers off at once. The guest's is
/// `control::PROBE`, likewise.
pub const PROBE_CMDLINE: &str = "firkin.probe=1";

/// How guest instructions are executed. Always named in output; never swapped silently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Acceleration {
    /// Hardware virtualisation by the host's kernel.
    Kvm,
    /// QEMU's emulator. Real machines and real snapshots on any host, with a slow CPU.
    Tcg,
    /// No virtual machine: a kernel in a process, whose guests run on the host's processor (gVisor, platform systrap).
    Gvisor,
    /// No machine at all: the fake engine.
    None,
}

impl Acceleration {
    /// The word by which people ask for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "emulated",
            Self::Gvisor => "gvisor",
            Self::None => "none",
        }
    }

    /// What this word asks for.
    pub fn of_word(word: &str) -> Option<Self> {
        [Self::Kvm, Self::Tcg, Self::Gvisor, Self::None].into_iter().find(|acceleration| acceleration.word() == word)
    }
}

impl fmt::Display for Acceleration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "vm-emulated (tcg)",
            Self::Gvisor => "gvisor (systrap)",
            Self::None => "none",
        })
    }
}

/// Where a machine runs. All of it is prepared by the caller, who also takes it apart after the machine is gone.
#[derive(Debug)]
pub struct Slot {
    /// Unprivileged user and group id of the process; used by no other machine on the host.
    pub uid: u32,
    /// Network namespace to enter.
    pub netns: OwnedFd,
    /// The guest's end of the network in that namespace.
    pub attachment: Attachment,
    /// MAC of the guest's interface. The same for every clone of a snapshot.
    pub mac: [u8; 6],
    /// Files that the process writes `0` to before anything else: it is in the control groups behind them from its first instruction.
    pub groups: Vec<OwnedFd>,
}

/// Size of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Guest memory in MiB.
    pub memory_mib: u32,
}

/// How to boot a machine from nothing.
#[derive(Debug)]
pub struct BootSpec {
    /// Directory of this instance: sockets, log, record. Exists, is empty, and is the caller's alone: the machine is handed
    /// descriptors and needs no way into it.
    pub dir: PathBuf,
    /// Its size.
    pub shape: Shape,
    /// The processor that its guest sees.
    pub processor: Processor,
    /// Where it runs.
    pub slot: Slot,
    /// What is booted.
    pub boot: BootFiles,
    /// The guest's root disk; its overlay is fresh and in `dir`.
    pub disk: RootDisk,
    /// File to create for guest memory; becomes the `memory` member of a template. Not created by an engine whose snapshots have their memory
    /// in their state.
    pub memory_file: PathBuf,
}

/// How to restore a machine from a snapshot.
#[derive(Debug)]
pub struct RestoreSpec {
    /// Directory of this instance, as for [`BootSpec::dir`].
    pub dir: PathBuf,
    /// Size of the snapshot's machine.
    pub shape: Shape,
    /// The processor that its guest was shown.
    pub processor: Processor,
    /// As its [`Fingerprint::announces`] says.
    pub announces: bool,
    /// Where it runs.
    pub slot: Slot,
    /// Where the snapshot's memory is.
    pub memory: SnapshotMemory,
    /// Device state.
    pub state: PathBuf,
    /// The snapshot's disk under a fresh overlay in `dir`.
    pub disk: RootDisk,
}

/// Where a snapshot's memory is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SnapshotMemory {
    /// All of it in a file, mapped copy-on-write and never written.
    Full(PathBuf),
    /// Pages in `diff` that differ from those in `base`, which is a whole memory.
    Diff {
        /// As for [`SnapshotMemory::Full`].
        base: PathBuf,
        /// As it was written by [`Machine::snapshot`].
        diff: PathBuf,
    },
    /// Within the state: the engine has no files of it.
    InState,
}

/// The form of a snapshot's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum MemoryForm {
    /// [`BootSpec::memory_file`] is the whole memory. The machine is sealed: it must be killed and may never run again.
    Full,
    /// `memory.diff` in the snapshot's directory holds every page that differs from the base the machine was restored from.
    Diff {
        /// Bytes of pages in it, at most.
        bytes: u64,
    },
    /// The state has it. The machine may go on.
    InState,
}

/// The result of [`Machine::snapshot`], with its timings.
#[derive(Debug)]
pub struct SnapshotParts {
    /// Form of the memory.
    pub memory: MemoryForm,
    /// Memory that is yet to be packed into [`parts::MEMORY_DIFF`], which the machine may run for: only where
    /// [`Machine::make_room`] was called before.
    pub captured: Option<memory::Captured>,
    /// Saving the device state.
    pub state_time: Duration,
    /// Finding and copying pages.
    pub memory_time: Duration,
}

/// File names inside the directory given to [`Machine::snapshot`].
pub mod parts {
    /// Device state.
    pub const STATE: &str = "state";
    /// Packed pages of a restored machine.
    pub const MEMORY_DIFF: &str = "memory.diff";
    /// Whole memory of a booted machine.
    pub const MEMORY: &str = "memory";
}

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// The guest powered its machine off.
    GuestPoweroff,
    /// The guest ended its machine in another way.
    GuestReset {
        /// The engine's word for it. QEMU says `guest-reset` of a reboot, and of a kernel's panic or a triple fault alike, and
        /// `guest-panic` where the guest told it.
        reason: String,
    },
    /// It was killed by us.
    Killed,
    /// The host ended it: its processes took more memory than their group may.
    OutOfMemory {
        /// That limit, MiB: its guest's memory, and [`OwnMemory::most_mib`].
        limit_mib: u64,
    },
    /// The engine died: exit status or signal, and the tail of what it wrote to its log.
    Crashed {
        /// As the operating system tells it.
        status: String,
        /// At most 4 KiB of the engine's standard error.
        log: String,
    },
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::GuestPoweroff => f.write_str("its guest powered it off"),
            Self::GuestReset { reason } if reason == "guest-reset" => {
                write!(f, "its guest reset it (`{reason}`: a reboot, a panic or a triple fault)")
            }
            Self::GuestReset { reason } => write!(f, "its guest ended it (`{reason}`)"),
            Self::Killed => f.write_str("it was killed"),
            Self::OutOfMemory { limit_mib } => {
                write!(
                    f,
                    "the host's memory limit ended it ({limit_mib} MiB: its guest's memory, and what its engine may take beside)"
                )
            }
            Self::Crashed { status, log } if log.is_empty() => write!(f, "its engine ended: {status}"),
            Self::Crashed { status, log } => write!(f, "its engine ended: {status}; it said last: {log}"),
        }
    }
}

/// Why a machine could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The engine's process did not start.
    #[error("cannot start `{program}`")]
    Spawn {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The engine ended before the machine was up.
    #[error("the engine ended during {phase}: {log}")]
    Died {
        /// The phase that it was in.
        phase: &'static str,
        /// The tail of its log.
        log: String,
    },
    /// A phase took longer than its deadline.
    #[error("{phase} did not finish within {} s", deadline.as_secs_f32())]
    Deadline {
        /// Which one.
        phase: &'static str,
        /// The deadline.
        deadline: Duration,
    },
    /// The engine refused a command or a snapshot file.
    #[error("the engine refused {phase}: {reason}")]
    Refused {
        /// The phase that it was in.
        phase: &'static str,
        /// The engine's own words.
        reason: String,
    },
    /// A file of the snapshot or of the instance could not be used.
    #[error("cannot use `{}`", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Why a running machine did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The machine is gone.
    #[error("the machine is gone: {0}")]
    Gone(Exit),
    /// The machine is in the wrong state for this call, which is the caller's mistake.
    #[error("cannot {call} a machine that is {state}")]
    WrongState {
        /// The call.
        call: &'static str,
        /// The state it is in.
        state: &'static str,
    },
    /// The engine refused.
    #[error("the engine refused {phase}: {reason}")]
    Refused {
        /// The phase that it was in.
        phase: &'static str,
        /// The engine's own words.
        reason: String,
    },
    /// It took too long.
    #[error("{phase} did not finish within {} s", deadline.as_secs_f32())]
    Deadline {
        /// Which phase.
        phase: &'static str,
        /// The deadline.
        deadline: Duration,
    },
    /// A file could not be written or read.
    #[error("cannot use `{}`", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Its root disk could not be worked on.
    #[error("cannot work on its root disk")]
    Disk(#[source] DiskError),
}

/// A machine's present cost to its host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct HostUse {
    /// Proportional set size of the engine's process, guest pages included, in bytes.
    pub pss_bytes: u64,
    /// The guest memory's share of that.
    pub guest_pss_bytes: u64,
    /// CPU time used, milliseconds.
    pub cpu_ms: u64,
}

/// The memory that an engine's process takes beside its guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnMemory {
    /// What one usually takes, MiB: what a host should count.
    pub usual_mib: u64,
    /// What none that is well takes more than, MiB, the kernel's tables for it and page cache that it works with included: what it may be
    /// held to.
    pub most_mib: u64,
}

/// The control channel to the guest agent. Carries `firkin-wire` control frames; the engine does not look inside.
pub trait ControlStream: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + fmt::Debug {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + fmt::Debug> ControlStream for T {}

/// One of the things that keep machines from their host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Safeguard {
    /// What it is.
    pub name: String,
    /// Why machines run without it on this host. Absent: every machine that starts has it.
    pub lacking: Option<String>,
}

/// Starts machines.
///
/// Every call is cancel-safe: a future that is dropped, or that fails, leaves no process and nothing outside `dir`.
#[async_trait]
pub trait Engine: Send + Sync + fmt::Debug {
    /// The fingerprints that it puts on snapshots, and those that it restores.
    fn compatibility(&self) -> &Compatibility;

    /// The stamp of its snapshots, as far as guests have a plain processor.
    fn fingerprint(&self) -> &Fingerprint {
        &self.compatibility().plain
    }

    /// The memory of each of its processes beside its guest's.
    fn own_memory(&self) -> OwnMemory;

    /// Threads and processes of a machine on its host beside one a virtual processor, at most: what it may be held to.
    fn most_threads(&self) -> u32;

    /// What keeps its machines from this host, where hosts differ in it.
    fn safeguards(&self) -> Vec<Safeguard>;

    /// What its slots must have to join a guest by.
    fn attachment(&self) -> AttachmentKind {
        AttachmentKind::Tap
    }

    /// How it keeps disks.
    fn disks(&self) -> &'static dyn DiskFormat;

    /// Starts a machine from a kernel. It runs when this returns; whether the guest comes up is seen on the control channel.
    async fn boot(&self, spec: BootSpec) -> Result<Box<dyn Machine>, StartError>;

    /// Does all of a restore that needs no guest memory of its own: the files are checked, then the engine starts. What it gives
    /// waits for [`Prepared::load`], as long as one likes.
    async fn prepare(&self, spec: RestoreSpec) -> Result<Box<dyn Prepared>, StartError>;

    /// Brings a snapshot back. The machine is paused when this returns. An engine may have let its guest run for a moment, so what a guest
    /// must not do before it is told who it is, it must wait to be told.
    async fn restore(&self, spec: RestoreSpec) -> Result<Box<dyn Machine>, StartError> {
        self.prepare(spec).await?.load().await
    }

    /// Whether what is recorded in `dir` is a machine of this engine.
    fn has_started(&self, dir: &Path) -> bool;

    /// Bytes of the disk that a machine which it started in `dir` holds in files without a name, and which are so not found there: zero for
    /// one that has ended, or that has all of its files in that directory. Reads files of the kernel, which blocks.
    fn unnamed_bytes(&self, dir: &Path) -> std::io::Result<u64>;

    /// Takes over a machine that an earlier process of ours started in `dir` and that still runs. Its slot stays as it was.
    /// A future that is dropped leaves the machine as it is; one that fails because the machine can no longer be talked to
    /// has killed it.
    async fn adopt(&self, dir: &Path) -> Result<Box<dyn Machine>, StartError>;

    /// Programs that it keeps for the sake of what they made, by the name that they have in [`Fingerprint::program`], but for the one that
    /// it starts machines with. Blocks.
    fn spare_programs(&self) -> std::io::Result<Vec<String>>;

    /// Removes one of these: nothing is there that it made, and no machine that it runs. Blocks.
    fn forget_program(&self, program: &str) -> std::io::Result<()>;
}

/// An engine that is up and waits for the state of its snapshot. Dropping it kills the engine and waits for nothing;
/// [`Prepared::kill`] also reaps it. It cannot be adopted: an [`Engine::adopt`] of its directory fails and kills it.
#[async_trait]
pub trait Prepared: Send + Sync + fmt::Debug {
    /// Process id of the engine.
    fn pid(&self) -> Option<u32>;

    /// Brings the snapshot back. The machine is paused when this returns. Cancel-safe as [`Engine::restore`] is.
    async fn load(self: Box<Self>) -> Result<Box<dyn Machine>, StartError>;

    /// Ends when the engine does. Cancel-safe, and may be called again.
    async fn wait(&mut self) -> Exit;

    /// Kills the engine and returns when it is gone and reaped. Idempotent.
    async fn kill(&mut self) -> Exit;
}

/// One machine, owned by one task. Dropping it kills the machine and waits for nothing; [`Machine::kill`] also reaps it.
#[async_trait]
pub trait Machine: Send + Sync + fmt::Debug {
    /// Process id of the engine, for accounting and journals.
    fn pid(&self) -> Option<u32>;

    /// The processes that have to be stopped on the host for its guest to stand still, its engine's first: by SIGSTOP they do, and by SIGCONT they go
    /// on. None of them is stopped or let go on by the kernel when whoever started it ends. None of a machine that is gone.
    async fn processes(&self) -> std::io::Result<Vec<u32>>;

    /// Runs a paused machine. No effect on a running one.
    async fn resume(&mut self) -> Result<(), MachineError>;

    /// Stops every virtual CPU and drains the disk. No effect on a paused one.
    async fn pause(&mut self) -> Result<(), MachineError>;

    /// Does what of the next cut can be done before its freeze, while the machine may run: opens `overlay`, made by
    /// [`DiskFormat::create_next`] in the instance's directory, so that [`Machine::switch_disk`] to it only switches. Gives the bytes of memory that a
    /// snapshot would write now, at most: zero for a booted machine, whose memory is written already. A cut needs no preparation,
    /// and a preparation needs no cut: the next one takes its place.
    async fn prepare_cut(&mut self, overlay: &Path) -> Result<u64, MachineError>;

    /// Takes room in `dir` for `bytes` of memory, so that a snapshot into that directory has only to copy them. The snapshot then
    /// leaves the memory as it found it, and [`SnapshotParts::captured`] is to be packed when the machine runs again. An engine
    /// that would gain nothing by it does nothing.
    async fn make_room(&mut self, dir: &Path, bytes: u64) -> Result<(), MachineError>;

    /// Writes device state and memory of a *paused* machine into `dir` ([`parts`]). The disk at that instant is whatever the
    /// current root overlay holds: seal it with [`Machine::switch_disk`] or by killing the machine.
    async fn snapshot(&mut self, dir: &Path) -> Result<SnapshotParts, MachineError>;

    /// The file that its root disk is: the overlay that it was given last. Of an adopted machine this is what the engine says,
    /// so that a switch is known of although whoever asked for it was killed before it was told.
    fn root_disk(&self) -> PathBuf;

    /// Makes `overlay`, made by [`DiskFormat::create_next`], what a *paused* machine writes from now on.
    async fn switch_disk(&mut self, overlay: &Path) -> Result<(), MachineError>;

    /// [`Machine::snapshot`] and [`Machine::switch_disk`] of one instant, in whatever order or beside each other. Where it fails,
    /// [`Machine::root_disk`] tells whether the disk was switched.
    async fn cut(&mut self, dir: &Path, overlay: &Path) -> Result<SnapshotParts, MachineError>;

    /// Writes what its guest has changed of the root image to `into`, which must not exist, as a layer of a container image that is not
    /// compressed. Only where its disk does not hold that ([`DiskFormat::holds_writes`]). The machine must run.
    async fn root_changes(&mut self, _into: &Path) -> Result<(), MachineError> {
        Err(MachineError::Refused { phase: "to tell what it has changed", reason: "its disk holds that".to_owned() })
    }

    /// A fresh connection to the guest agent's port. The previous one, if any, is dead from then on.
    async fn control(&mut self) -> Result<Box<dyn ControlStream>, MachineError>;

    /// The last that the guest wrote to its console, at most 64 KiB: what to show when a guest does not come up. Of a booted machine
    /// that its guest ended, it is kept.
    async fn console_tail(&mut self) -> Result<String, MachineError>;

    /// Its present cost to the host.
    async fn host_use(&self) -> Result<HostUse, MachineError>;

    /// Asks the engine itself for a sign of life, whatever its guest does.
    async fn answer(&mut self) -> Result<(), MachineError>;

    /// Ends when the machine does. Cancel-safe, and may be called again.
    async fn wait(&mut self) -> Exit;

    /// Kills the machine and returns when it is gone and reaped. Idempotent.
    async fn kill(&mut self) -> Exit;

    /// Gives the machine up without stopping it, so that a later [`Engine::adopt`] finds it. Its control connection ends.
    fn release(self: Box<Self>);
}
