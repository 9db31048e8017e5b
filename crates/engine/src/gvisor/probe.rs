//! Whether and how sandboxes work on this host, found out by running one.
//!
//! The socket on which a sandbox is paused, its stacks and many of its flags are gVisor's own affair, so nothing is concluded from a
//! version: a small sandbox is started, paused, cut and restored, and what did not do as it was told is named.

use std::{
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::time::timeout;

use super::{
    GvisorEngine, GvisorMachine, Images, Start,
    capability::{self, Capability, DISK_SIZE, NETWORK},
    network::{self, Network},
    program,
    program::Program,
    spec,
    trial::Trial,
};
use crate::{
    Acceleration, Attachment, Compatibility, DiskError, DiskFormat, Engine, Fingerprint, Machine, MachineError, Prepared,
    RootDisk, Slot, StartError, directory::blocking, parts,
};

/// First of the users of trials; a machine's is a slot's. Each process has some, so that trials at one time are of different users.
const TRIAL_UIDS: u32 = 1_800_000_000;
/// Users of one process's trials, which are few and short.
const TRIALS: u32 = 16;
/// What a trial is shown of memory and disk. It uses next to nothing of either.
const TRIAL_MIB: u32 = 128;
const TRIAL_DISK_BYTES: u64 = 64 << 20;

/// One request to probe.
#[derive(Debug, Clone)]
pub struct ProbeRequest {
    /// The binary; `runsc` from `PATH` when absent.
    pub program: Option<PathBuf>,
    /// Where binaries are kept by their digests, and where trials are made: a directory of the server's alone.
    pub pins: PathBuf,
    /// A small root image with the agent in it, at [`super::AGENT`].
    pub image: PathBuf,
    /// For all steps of the trial together.
    pub deadline: Duration,
}

/// Why there is no engine.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// No `runsc`.
    #[error("cannot find `runsc`")]
    Missing,
    /// It cannot be kept, or a file of the trial could not be used.
    #[error("cannot probe `runsc`")]
    Io(#[from] io::Error),
    /// A sandbox did not start.
    #[error("cannot {step} a sandbox")]
    Start {
        /// What was to be done to it.
        step: &'static str,
        /// Why it was not.
        #[source]
        source: StartError,
    },
    /// One that was up did not do as it was told.
    #[error("cannot {step} a sandbox")]
    Machine {
        /// What was to be done to it.
        step: &'static str,
        /// Why it was not.
        #[source]
        source: MachineError,
    },
    /// It says that it did, and has not.
    #[error("a sandbox that was to be {0} is not")]
    Otherwise(&'static str),
    /// It took too long.
    #[error("a small sandbox was not started, cut and restored within {} s", .0.as_secs())]
    Deadline(Duration),
}

/// What was found.
#[derive(Debug)]
pub struct Found {
    /// The engine.
    pub engine: GvisorEngine,
    /// What its guests have and lack.
    pub capabilities: Vec<Capability>,
}

/// Keeps the binary and tries it. Takes half a second, or twice that where its network has to be helped.
pub async fn probe(request: &ProbeRequest) -> Result<Found, ProbeError> {
    let found = request.program.clone().or_else(program::find).filter(|path| path.is_file()).ok_or(ProbeError::Missing)?;
    let pins = request.pins.clone();
    let (engine, told) = blocking(move || {
        let program = Program::pin(&found, &pins)?;
        let (flags, version) = (program::known_flags(&program.path)?, program::version(&program.path)?);
        let told = capability::of_build(&version, &flags);
        let setuid = flags.contains(spec::SETUID_FLAG);
        Ok((describe((program, version), pins, setuid)?, told))
    })
    .await?;
    // A large image on a slow disk takes its time, which tells nothing of what is tried.
    let (images, image) = (Arc::clone(&engine.images), request.image.clone());
    blocking(move || images.digest(&image)).await?;
    let pins = request.pins.clone();
    let trial = blocking(move || Trial::begin(&pins)).await?;
    let tried = timeout(request.deadline, choose(&engine, &request.image, trial.dir.path())).await;
    let (engine, no_network) = tried.map_err(|_| ProbeError::Deadline(request.deadline))??;
    let capabilities = capabilities(&engine, told, no_network);
    Ok(Found { engine, capabilities })
}

/// An engine that works, with a network where there can be one, and why there is none.
async fn choose(engine: &GvisorEngine, image: &Path, dir: &Path) -> Result<(GvisorEngine, Option<String>), ProbeError> {
    let mut no_network = None;
    for (name, network) in [("plain", Network::OfSlot { hiding: false }), ("hiding", Network::OfSlot { hiding: true })] {
        match sized(engine.with(network), image, &trial_dir(dir, name)?).await {
            Ok(engine) => return Ok((engine, None)),
            Err(error) => no_network = Some(firkin_causes::chain(&error)),
        }
    }
    Ok((sized(engine.clone(), image, &trial_dir(dir, "none")?).await?, no_network))
}

/// The engine as it works here: with disks that have a size, if they can.
async fn sized(mut engine: GvisorEngine, image: &Path, dir: &Path) -> Result<GvisorEngine, ProbeError> {
    match try_out(&engine, image, &trial_dir(dir, "sized")?).await {
        Err(error) if is_of_disk_size(&error) => engine.shows_disks = false,
        tried => return tried.map(|()| engine),
    }
    try_out(&engine, image, &trial_dir(dir, "unsized")?).await.map(|()| engine)
}

/// Whether a sandbox did not start for the size that its disk was to have: a build that does not know the annotation names it.
fn is_of_disk_size(error: &ProbeError) -> bool {
    matches!(error, ProbeError::Start { source: StartError::Refused { reason, .. }, .. } if reason.contains("rootfs annotation"))
}

fn trial_dir(dir: &Path, name: &str) -> io::Result<PathBuf> {
    let dir = dir.join(name);
    std::fs::DirBuilder::new().mode(0o700).create(&dir)?;
    Ok(dir)
}

/// The engine without a network.
fn describe((program, version): (Program, String), pins: PathBuf, setuid: bool) -> io::Result<GvisorEngine> {
    let fixed = spec::digest(Network::None);
    let plain = Fingerprint {
        engine: "gvisor".into(),
        version,
        machine: machine(&fixed),
        acceleration: Acceleration::Gvisor,
        cpu: cpu(&fs_err::read_to_string("/proc/cpuinfo")?),
        devices: None,
        program: Some(program.digest.clone()),
        announces: false,
    };
    let (network, compatibility, images) = (Network::None, Compatibility::from(plain), Arc::new(Images::default()));
    Ok(GvisorEngine { program, pins, compatibility, network, fixed, shows_disks: true, setuid, images })
}

fn machine(fixed: &str) -> String {
    format!("runsc-{}", &fixed[..16])
}

impl GvisorEngine {
    /// The same with this network.
    fn with(&self, network: Network) -> Self {
        let fixed = spec::digest(network);
        let plain = Fingerprint { machine: machine(&fixed), ..self.compatibility.plain.clone() };
        Self { network, fixed, compatibility: Compatibility::from(plain), ..self.clone() }
    }
}

/// Digest of what guests see of the first processor, which is the host's own: they run on it.
fn cpu(cpuinfo: &str) -> String {
    const SEEN: [&str; 4] = ["vendor_id", "cpu family", "model", "flags"];
    let first = cpuinfo.lines().take_while(|line| !line.is_empty());
    let seen = first.filter(|line| line.split(':').next().is_some_and(|name| SEEN.contains(&name.trim())));
    let mut hasher = blake3::Hasher::new();
    for line in seen {
        hasher.update(line.as_bytes()).update(b"\n");
    }
    hasher.finalize().to_hex()[..32].to_owned()
}

/// What was tried, and what was told.
fn capabilities(engine: &GvisorEngine, told: Vec<Capability>, no_network: Option<String>) -> Vec<Capability> {
    use capability::{CUT, PAUSE, RESTORE, START};
    let tried = [START, PAUSE, CUT, RESTORE].map(|name| Capability { name, lacking: None });
    let no_size = "this build of `runsc` takes no size of a root disk: `df` shows none, and the bound is rounded up to whole GiB";
    let rest = [
        Capability { name: DISK_SIZE, lacking: (!engine.shows_disks).then(|| no_size.to_owned()) },
        Capability { name: NETWORK, lacking: no_network },
    ];
    tried.into_iter().chain(told).chain(rest).collect()
}

/// The whole course of a sandbox, in `dir`.
async fn try_out(engine: &GvisorEngine, image: &Path, dir: &Path) -> Result<(), ProbeError> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let uid = || TRIAL_UIDS + std::process::id() * TRIALS + COUNT.fetch_add(1, Ordering::Relaxed) % TRIALS;
    let disk = trial_disk(engine, image, &dir.join("first")).map_err(io::Error::other)?;
    let origin = engine.origin(&disk, TRIAL_MIB).await.map_err(|source| ProbeError::Start { step: "start", source })?;
    let slot = empty_slot(uid())?;
    let namespace = slot.netns.try_clone()?;
    let start = Start { dir: dir.join("first"), slot, vcpus: 1, disk, origin };
    let machine = engine.boot_from(start).await.map_err(|source| ProbeError::Start { step: "start", source })?;
    if engine.network != Network::None && !machine.pid().is_some_and(|pid| network::is_in(pid, &namespace)) {
        return Err(ProbeError::Otherwise("in its slot"));
    }
    let state = cut(machine, dir).await?;

    let second = dir.join("second");
    let disk = trial_disk(engine, image, &second).map_err(io::Error::other)?;
    let origin = engine.origin(&disk, TRIAL_MIB).await.map_err(|source| ProbeError::Start { step: "restore", source })?;
    let start = Start { dir: second, slot: empty_slot(uid())?, vcpus: 1, disk, origin };
    let prepared = engine.prepare_from(start, &state).await.map_err(|source| ProbeError::Start { step: "restore", source })?;
    let mut machine = Box::new(prepared).load().await.map_err(|source| ProbeError::Start { step: "restore", source })?;
    let told = |step| move |source| ProbeError::Machine { step, source };
    machine.answer().await.map_err(told("restore"))?;
    machine.resume().await.map_err(told("resume"))?;
    machine.kill().await;
    Ok(())
}

/// One with nothing to reach and nobody to be reached by.
fn empty_slot(uid: u32) -> io::Result<Slot> {
    let interface = Attachment::Interface(network::empty_namespace()?);
    Ok(Slot { uid, netns: network::empty_namespace()?, attachment: interface, mac: [0; 6], groups: Vec::new() })
}

async fn cut(mut machine: GvisorMachine, dir: &Path) -> Result<PathBuf, ProbeError> {
    let told = |step| move |source| ProbeError::Machine { step, source };
    if machine.is_paused().await.map_err(told("look at"))? {
        return Err(ProbeError::Otherwise("running"));
    }
    for _ in 0..2 {
        machine.resume().await.map_err(told("resume"))?;
        machine.pause().await.map_err(told("pause"))?;
        if !machine.is_paused().await.map_err(told("look at"))? {
            return Err(ProbeError::Otherwise("paused"));
        }
    }
    machine.snapshot(dir).await.map_err(told("cut"))?;
    machine.kill().await;
    Ok(dir.join(parts::STATE))
}

fn trial_disk(engine: &GvisorEngine, image: &Path, dir: &Path) -> Result<RootDisk, DiskError> {
    let made = std::fs::DirBuilder::new().mode(0o700).create(dir);
    made.map_err(|source| DiskError::File { path: dir.to_path_buf(), source })?;
    let format: &dyn DiskFormat = engine.disks();
    let disk =
        RootDisk { image: image.to_path_buf(), layers: Vec::new(), overlay: dir.join("root").with_extension(format.extension()) };
    format.create(&disk, TRIAL_DISK_BYTES)?;
    Ok(disk)
}
