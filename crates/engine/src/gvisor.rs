//! gVisor as an engine: one sandbox of `runsc` per machine, for hosts without hardware virtualisation.
//!
//! A sandbox is a kernel in a process (the *sentry*), which serves the system calls of its guest's processes, and runs them at the
//! processor's own speed. A checkpoint is all that a guest has written, to memory or to its disk: so a snapshot's memory is in its state, and
//! its disk's layers are marks ([`Marks`]).
//!
//! ```text
//!   boot:     bundle ─► runsc create ─► record ─► runsc start ─► running
//!   restore:  prove the state ─► bundle ─► runsc create ─► record ─► prepared ─► runsc restore, pause ─► paused
//! ```
//!
//! What a sandbox is started from is in its root image: a kernel and an initial file system have no meaning here. Its network is that of its
//! slot, whose interface it takes over (`network`); its agent has the two pipes of its control channel.

mod arrival;
pub mod capability;
mod channel;
mod command;
mod connections;
mod cost;
mod disk;
mod gate;
mod instance;
mod machine;
mod netlink;
mod network;
mod prepared;
pub mod probe;
mod processors;
mod program;
mod remains;
mod room;
mod sentry;
mod spec;
mod state;
mod trial;

use std::{
    collections::HashMap,
    ffi::OsString,
    io,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;

use self::{
    command::{Call, RunError, Streams},
    instance::{LOG, PID_FILE, RUNSC_DIR, Record},
    machine::{GvisorMachine, Parts, State},
    network::{Network, View},
    prepared::GvisorPrepared,
    program::Program,
    remains::Remains,
    spec::Options,
    state::{Origin, ReadError},
};
pub use self::{disk::Marks, spec::AGENT};
use crate::{
    AttachmentKind, BootSpec, Compatibility, Engine, Machine, OwnMemory, Prepared, RestoreSpec, Safeguard, Slot, SnapshotMemory,
    StartError,
    directory::{self, blocking},
    disk::{DiskFormat, RootDisk},
    process::{self, Process, log::Log},
};

/// What an idle sandbox takes beside its guest's memory: 24 MiB were measured by proportional share, one of ten; one alone takes 34.
const USUAL_MIB: u64 = 24;
/// The kernel's tables, what the sandbox knows of its guest's files, and what runs its guest's processes: 13 MiB of its group were no
/// memory of the guest that had taken 1 GiB, 46 with a hundred processes, 71 after 20,000 files. The rest is for more of all.
const MOST_MIB: u64 = 256;

/// Processes and threads of a guest: its agent has the sandbox's own kernel refuse more (`init/tasks.rs` there). Each takes two of the host's
/// at most, and a sandbox that is refused one by the host ends.
const GUEST_TASKS: u32 = 2048;
/// The sandbox's own threads, some for each processor and for each call that waits.
const OWN_THREADS: u32 = 256;

/// Starts sandboxes with `runsc`. Made by [`probe::probe`], which finds out whether that works on this host.
#[derive(Debug, Clone)]
pub struct GvisorEngine {
    program: Program,
    /// Where binaries are kept, by their digests.
    pins: PathBuf,
    compatibility: Compatibility,
    network: Network,
    /// Digest of what all sandboxes have in common.
    fixed: String,
    /// Whether its sandboxes know the sizes of their root disks: found out by telling one.
    shows_disks: bool,
    /// Whether programs in its sandboxes can run as their owner.
    setuid: bool,
    images: Arc<Images>,
}

impl GvisorEngine {
    /// The binary in use: a copy that no upgrade changes.
    pub fn program(&self) -> &Path {
        &self.program.path
    }

    async fn boot_from(&self, start: Start) -> Result<GvisorMachine, StartError> {
        start.make().await?;
        let (mut parts, interface) = start.create(self.program.clone(), self.network).await?;
        let view = View::of_starter(self.network, parts.process.pid(), interface);
        let call = parts.call(vec!["start".into()], Streams::None, view);
        let started = command::run(call).await;
        started.map_err(|error| start_error("its start", error))?;
        parts.record.whole = true;
        parts.record.write(&parts.dir).map_err(|source| file_error(&parts.dir, source))?;
        Ok(GvisorMachine::new(parts, State::Running))
    }

    /// Proves the state before there is a process.
    async fn prepare_from(&self, start: Start, path: &Path) -> Result<GvisorPrepared, StartError> {
        const PHASE: &str = "the snapshot's state";
        start.make().await?;
        let (state, image) = (path.to_path_buf(), start.dir.join(instance::IMAGE_DIR));
        let read = tokio::task::spawn_blocking(move || state::open(&state, &image)).await;
        let made = match read.map_err(|error| file_error(path, io::Error::other(error)))? {
            Ok(made) => made,
            Err(ReadError::Io(source)) => return Err(file_error(path, source)),
            Err(error @ (ReadError::Version(_) | ReadError::Damaged(_))) => return Err(refused(PHASE, error.to_string())),
        };
        if made.image != start.origin.image {
            return Err(refused(PHASE, "it was made on another root image".to_owned()));
        }
        if made.fixed != start.origin.fixed {
            return Err(refused(PHASE, "it was made with other flags or mounts".to_owned()));
        }
        let program = self.maker(&made.program).await?;
        let network = if program == self.program { self.network } else { self.network.of_another_build() };
        let (parts, interface) = Start { origin: made, ..start }.create(program, network).await?;
        Ok(GvisorPrepared::new(parts, interface))
    }

    /// The binary that wrote a state, kept since.
    async fn maker(&self, digest: &str) -> Result<Program, StartError> {
        if digest == self.program.digest {
            return Ok(self.program.clone());
        }
        let (pins, wanted) = (self.pins.clone(), digest.to_owned());
        blocking(move || Program::kept(&wanted, &pins)).await.map_err(|error| {
            refused("the snapshot's state", format!("it was written by a `runsc` that is not kept here (`{digest}`): {error}"))
        })
    }

    /// What a sandbox of this size is made with.
    async fn origin(&self, disk: &RootDisk, memory_mib: u32) -> Result<Origin, StartError> {
        let (images, image, overlay) = (Arc::clone(&self.images), disk.image.clone(), disk.overlay.clone());
        let image = blocking(move || images.digest(&image)).await.map_err(|source| file_error(&disk.image, source))?;
        let size = blocking(move || disk::bytes(&overlay).map_err(io::Error::other));
        let bytes = size.await.map_err(|source| file_error(&disk.overlay, source))?;
        let disk_bytes = Some(bytes).filter(|bytes| *bytes > 0);
        let options = Options { memory_mib: Some(memory_mib), disk_bytes, shows_disk: self.shows_disks, setuid: self.setuid };
        Ok(Origin { program: self.program.digest.clone(), fixed: self.fixed.clone(), image, options })
    }
}

#[async_trait]
impl Engine for GvisorEngine {
    fn compatibility(&self) -> &Compatibility {
        &self.compatibility
    }

    fn own_memory(&self) -> OwnMemory {
        OwnMemory { usual_mib: USUAL_MIB, most_mib: MOST_MIB }
    }

    fn most_threads(&self) -> u32 {
        2 * GUEST_TASKS + OWN_THREADS
    }

    /// None that hosts differ in: without its user namespace and its filter of system calls a sandbox does not start.
    fn safeguards(&self) -> Vec<Safeguard> {
        Vec::new()
    }

    fn attachment(&self) -> AttachmentKind {
        AttachmentKind::Interface
    }

    fn disks(&self) -> &'static dyn DiskFormat {
        &Marks
    }

    async fn boot(&self, spec: BootSpec) -> Result<Box<dyn Machine>, StartError> {
        let origin = self.origin(&spec.disk, spec.shape.memory_mib).await?;
        let (slot, vcpus) = (spec.slot, spec.shape.vcpus);
        let start = Start { dir: spec.dir, slot, vcpus, disk: spec.disk, origin };
        Ok(Box::new(self.boot_from(start).await?))
    }

    async fn prepare(&self, spec: RestoreSpec) -> Result<Box<dyn Prepared>, StartError> {
        if spec.memory != SnapshotMemory::InState {
            return Err(refused("the snapshot's memory", "it is of another engine".to_owned()));
        }
        let origin = self.origin(&spec.disk, spec.shape.memory_mib).await?;
        let (slot, vcpus) = (spec.slot, spec.shape.vcpus);
        let start = Start { dir: spec.dir, slot, vcpus, disk: spec.disk, origin };
        Ok(Box::new(self.prepare_from(start, &spec.state).await?))
    }

    fn has_started(&self, dir: &Path) -> bool {
        Record::read(dir).is_ok()
    }

    fn spare_programs(&self) -> io::Result<Vec<String>> {
        program::others(&self.program, &self.pins)
    }

    fn forget_program(&self, program: &str) -> io::Result<()> {
        if program == self.program.digest { Ok(()) } else { program::remove(program, &self.pins) }
    }

    fn unnamed_bytes(&self, dir: &Path) -> io::Result<u64> {
        let record = Record::read(dir)?;
        if process::start_time(record.pid).is_ok_and(|start_time| start_time == record.start_time) {
            cost::disk_bytes(record.pid)
        } else {
            Ok(0)
        }
    }

    async fn adopt(&self, dir: &Path) -> Result<Box<dyn Machine>, StartError> {
        let record = Record::read(dir).map_err(|source| file_error(dir, source))?;
        let log = command::append(&dir.join(LOG)).map(Log::of_file);
        let adopted = log.and_then(|log| Process::adopt(record.pid, record.start_time, record.uid, log));
        let mut process = adopted.map_err(|source| file_error(&dir.join("instance.json"), source))?;
        let mut remains = Remains::adopted(record.uid, &dir.join(RUNSC_DIR));
        if !record.whole {
            process.kill_on_drop();
            remains.end_on_drop();
            return Err(refused("to be adopted", "its machine was never whole".to_owned()));
        }
        // What fails here leaves it as it is.
        let program = self.maker(&record.origin.program).await?;
        let outcome = sentry::is_paused(&dir.join(RUNSC_DIR)).await;
        // From here on the sandbox is either ours or of no use to anybody.
        process.kill_on_drop();
        remains.end_on_drop();
        let paused = outcome.map_err(|error| refused("to be adopted", firkin_causes::chain(&error)))?;
        let parts = Parts { process, remains, dir: dir.to_path_buf(), record, program, network: self.network };
        let mut machine = GvisorMachine::new(parts, if paused { State::Paused } else { State::Running }).perhaps_deaf();
        if let Err(error) = machine.hear().await {
            tracing::warn!(error = firkin_causes::chain(&error), "a sandbox is not reached until it is tried again");
        }
        Ok(Box::new(machine))
    }
}

/// A sandbox that is about to be.
struct Start {
    dir: PathBuf,
    slot: Slot,
    /// Processors that its guest sees.
    vcpus: u32,
    disk: RootDisk,
    origin: Origin,
}

impl Start {
    /// Makes its directory. Its overlay must be there, although it is only a mark.
    async fn make(&self) -> Result<(), StartError> {
        let overlay = &self.disk.overlay;
        directory::own_name(&self.dir, overlay).map_err(|source| file_error(overlay, source))?;
        directory::open_unfollowed(overlay, false).map_err(|source| file_error(overlay, source))?;
        let dir = self.dir.clone();
        blocking(move || instance::make(&dir)).await.map_err(|source| file_error(&self.dir, source))
    }

    /// Has `runsc` make the sandbox, with nothing in it. Gives the namespace of its interface, too.
    async fn create(self, program: Program, network: Network) -> Result<(Parts, OwnedFd), StartError> {
        let Self { dir, slot: Slot { uid, netns, attachment, mac: _, groups }, vcpus, disk, origin } = self;
        let processors = processors::to_start_on(vcpus, uid).map_err(|source| file_error(Path::new("/proc/self"), source))?;
        let interface = attachment.demand(AttachmentKind::Interface)?;
        instance::bundle(&dir, &disk.image, uid, origin.options).map_err(|source| file_error(&dir, source))?;
        let remains = Remains::of(uid, &dir.join(RUNSC_DIR));
        let with = |flag: &str, path: &Path| {
            let mut word = OsString::from(flag);
            word.push(path);
            word
        };
        let pid_file = dir.join(PID_FILE);
        let words = vec!["create".into(), with("--bundle=", &dir), with("--pid-file=", &pid_file)];
        let (view, options) = (View::of_maker(network, netns), origin.options);
        let (streams, command, at) = (Streams::OfSandbox, program.clone(), dir.clone());
        let call = Call {
            program: command,
            dir: at,
            words,
            program_words: &[],
            streams,
            network,
            view,
            options,
            groups,
            processors: Some(processors),
        };
        command::run(call).await.map_err(|error| start_error("its start", error))?;
        let watched = || {
            let pid = fs_err::read_to_string(&pid_file)?.trim().parse().map_err(io::Error::other)?;
            Process::watch(pid, Log::of_file(command::append(&dir.join(LOG))?))
        };
        let process = watched().map_err(|source| file_error(&pid_file, source))?;
        let (pid, search) = (process.pid(), remains.searcher());
        let started = move || {
            search.prefer_for_memory(pid)?;
            let processes = search.find()?.into_iter().map(|pid| pid.as_raw_nonzero().get());
            processors::let_run_everywhere(processes)
        };
        blocking(started).await.map_err(|source| file_error(Path::new("/proc"), source))?;
        let root_disk = directory::own_name(&dir, &disk.overlay).map_err(|source| file_error(&disk.overlay, source))?;
        let record = Record::new((process.pid(), process.start_time()), uid, root_disk, origin);
        record.write(&dir).map_err(|source| file_error(&dir, source))?;
        Ok((Parts { process, remains, dir, record, program, network }, interface))
    }
}

/// Digests of root images, which are read once.
#[derive(Debug, Default)]
struct Images {
    known: Mutex<HashMap<Identity, String>>,
}

/// A file that was not written to since.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Identity {
    place: (u64, u64),
    bytes: u64,
    changed: (i64, i64),
}

impl Images {
    /// Blocks, for as long as it takes to read an image that is not known.
    fn digest(&self, image: &Path) -> io::Result<String> {
        let found = fs_err::metadata(image)?;
        let identity =
            Identity { place: (found.dev(), found.ino()), bytes: found.len(), changed: (found.ctime(), found.ctime_nsec()) };
        if let Some(known) = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&identity) {
            return Ok(known.clone());
        }
        let digest = program::digest(image)?;
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(identity, digest.clone());
        Ok(digest)
    }
}

fn refused(phase: &'static str, reason: String) -> StartError {
    StartError::Refused { phase, reason }
}

fn file_error(path: &Path, source: io::Error) -> StartError {
    StartError::File { path: path.to_path_buf(), source }
}

fn start_error(phase: &'static str, error: RunError) -> StartError {
    match error {
        RunError::Spawn(source) => StartError::Spawn { program: "runsc".to_owned(), source },
        RunError::Failed(reason) => StartError::Refused { phase, reason },
        RunError::Deadline(deadline) => StartError::Deadline { phase, deadline },
    }
}
