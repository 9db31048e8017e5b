//! Which acceleration this host has, found out by running a guest with it.
//!
//! That `/dev/kvm` opens proves nothing: there are hosts where a virtual machine can be made and its guest then hangs or
//! aborts. So a kernel is booted with `firkin.probe=1`, on which the guest's init powers off at once, and only a clean power-off
//! within the deadline counts. Emulation depends on nothing but the binary and is believed once the binary answers. The
//! verdict is remembered for as long as the host has not been rebooted and none of the files involved has changed.

use std::{
    collections::BTreeMap,
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use fs_err::os::unix::fs::OpenOptionsExt;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::time::timeout;

use super::{
    QemuEngine,
    command::{self, Begin, Hardware, Memory},
    greet, instance,
    isolation::{Isolation, Network},
    listen,
    monitor::{Event, Monitor, MonitorError},
    open, open_kvm,
    process::{Launch, Process},
    spawn, start_error,
};
use crate::{Acceleration, Fingerprint, Shape, StartError};

/// The binary that is looked for.
const PROGRAM: &str = "qemu-system-x86_64";
/// `file:` migration and descriptor sets with it came together in this version.
const OLDEST: (u64, u64) = (8, 2);
/// On the kernel's command line: power off at once.
const PROBE_CMDLINE: &str = "firkin.probe=1";
/// Enough for a kernel and an initial RAM file system.
const PROBE_SHAPE: Shape = Shape { vcpus: 1, memory_mib: 256 };
/// `nobody`: the probe has no slot and needs no rights.
const PROBE_UID: u32 = 65_534;
/// Between the answers of a QEMU that runs no guest.
const ANSWER_DEADLINE: Duration = Duration::from_secs(20);
/// Raised when a verdict's meaning changes.
const VERDICT_VERSION: u32 = 2;
/// A verdict has some 500 bytes.
const MAX_VERDICT_BYTES: u64 = 64 << 10;

/// What the user asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Requested {
    /// KVM when it works, else emulation, saying why.
    Auto,
    /// KVM or nothing.
    Kvm,
    /// Emulation, even where KVM works.
    Tcg,
}

/// What to probe.
#[derive(Debug, Clone)]
pub struct ProbeRequest {
    /// The QEMU binary; `qemu-system-x86_64` from `PATH` when absent.
    pub program: Option<PathBuf>,
    /// Kernel to boot. Readable by everybody.
    pub kernel: PathBuf,
    /// Initial RAM file system whose init powers off on `firkin.probe=1`. Readable by everybody.
    pub initrd: PathBuf,
    /// What the user asked for.
    pub requested: Requested,
    /// How long a guest may take from power-on to power-off.
    pub deadline: Duration,
    /// Where the verdict is remembered.
    pub verdict_file: Option<PathBuf>,
}

/// Why there is no engine.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// No QEMU.
    #[error("cannot find `{program}`: install QEMU 8.2 or newer")]
    Missing {
        /// What was looked for.
        program: String,
    },
    /// QEMU lacks what the engine needs.
    #[error("cannot use QEMU {version}: 8.2 or newer is needed")]
    TooOld {
        /// Its version.
        version: String,
    },
    /// A guest does not run the way that was asked for.
    #[error("cannot run guests with {acceleration}: {reason}")]
    Unusable {
        /// Which way.
        acceleration: Acceleration,
        /// What happened instead.
        reason: String,
    },
    /// QEMU did not start.
    #[error("cannot start QEMU")]
    Start(#[from] StartError),
    /// A file of the probe could not be used.
    #[error("cannot probe QEMU")]
    Io(#[from] io::Error),
}

/// Finds out how guests run on this host. Takes seconds the first time and nothing after that.
pub async fn probe(request: &ProbeRequest) -> Result<QemuEngine, ProbeError> {
    let program = find_program(request.program.as_deref())?;
    let key = Key::of(request, &program)?;
    if let Some(verdict) = request.verdict_file.as_deref().and_then(|path| Verdict::recall(path, &key)) {
        return Ok(QemuEngine { program, fingerprint: verdict.fingerprint, fallback: verdict.fallback });
    }
    let (fingerprint, fallback) = match request.requested {
        Requested::Kvm => (try_kvm(request, &program).await?, None),
        Requested::Tcg => (try_tcg(&program).await?, None),
        Requested::Auto => match try_kvm(request, &program).await {
            Ok(fingerprint) => (fingerprint, None),
            Err(error @ (ProbeError::Unusable { .. } | ProbeError::Start(_))) => {
                let reason = chain(&error);
                tracing::info!(reason, "guests are emulated");
                (try_tcg(&program).await?, Some(reason))
            }
            Err(error) => return Err(error),
        },
    };
    let verdict = Verdict { version: VERDICT_VERSION, key, fingerprint: fingerprint.clone(), fallback: fallback.clone() };
    if let Some(path) = &request.verdict_file
        && let Err(error) = verdict.remember(path)
    {
        tracing::warn!(%error, "the next start will probe again");
    }
    Ok(QemuEngine { program, fingerprint, fallback })
}

fn find_program(given: Option<&Path>) -> Result<PathBuf, ProbeError> {
    let missing = |program: &Path| ProbeError::Missing { program: program.display().to_string() };
    match given {
        Some(path) => fs_err::canonicalize(path).map_err(|_| missing(path)),
        None => std::env::var_os("PATH")
            .into_iter()
            .flat_map(|path| std::env::split_paths(&path).collect::<Vec<_>>())
            .find_map(|dir| fs_err::canonicalize(dir.join(PROGRAM)).ok())
            .ok_or_else(|| missing(Path::new(PROGRAM))),
    }
}

/// A QEMU that runs for the probe, in a directory that goes away with it.
struct Trial {
    process: Process,
    monitor: Monitor,
    greeting: Value,
    _dir: tempfile::TempDir,
}

impl Trial {
    async fn start(program: &Path, acceleration: Acceleration, boot: Option<&ProbeRequest>) -> Result<Self, ProbeError> {
        let dir = tempfile::Builder::new().prefix("firkin-probe-").tempdir()?;
        std::os::unix::fs::chown(dir.path(), Some(PROBE_UID), Some(PROBE_UID))?;
        let monitor = listen(dir.path(), instance::MONITOR_SOCKET)?;
        let control = listen(dir.path(), instance::CONTROL_SOCKET)?;
        let unusable = |error: io::Error| ProbeError::Unusable { acceleration, reason: error.to_string() };
        let kvm = open_kvm(acceleration).map_err(unusable)?;
        let files = boot.map(|request| Ok::<_, StartError>((open(&request.kernel)?, open(&request.initrd)?))).transpose()?;
        let begin = match &files {
            Some((kernel, initrd)) => Begin::Boot { kernel: fd(kernel), initrd: fd(initrd), cmdline: PROBE_CMDLINE },
            None => Begin::Stopped,
        };
        let arguments = command::arguments(&Hardware {
            machine: command::machine_alias(acceleration),
            acceleration,
            kvm: kvm.as_ref().map(fd),
            shape: PROBE_SHAPE,
            memory: Memory::Anonymous,
            begin,
            monitor: fd(&monitor),
            control: fd(&control),
            nic: None,
            root_disk: None,
        });
        let files = files.into_iter().flat_map(|(kernel, initrd)| [kernel.into(), initrd.into()]);
        let launch = Launch {
            program: program.to_path_buf(),
            arguments,
            descriptors: [monitor, control].into_iter().chain(kvm).chain(files).collect(),
            isolation: Isolation { uid: PROBE_UID, network: Network::Fresh },
            dir: dir.path().to_path_buf(),
        };
        let mut process = spawn(launch).await?;
        let (monitor, greeting) = greet(dir.path(), &mut process).await?;
        Ok(Self { process, monitor, greeting, _dir: dir })
    }

    /// What snapshots of this binary and acceleration must agree with.
    async fn fingerprint(&mut self, acceleration: Acceleration) -> Result<Fingerprint, ProbeError> {
        let version = version(&self.greeting)?;
        let asking = async {
            let machines = self.monitor.execute("query-machines", json!({})).await?;
            let left_out: Map<String, Value> =
                command::features_left_out(acceleration).iter().map(|&feature| (feature.to_owned(), false.into())).collect();
            let model = json!({"type": "full", "model": {"name": command::cpu_model(acceleration), "props": left_out}});
            Ok::<_, MonitorError>((machines, self.monitor.execute("query-cpu-model-expansion", model).await?))
        };
        const PHASE: &str = "describing itself";
        let (machines, cpu) = timeout(ANSWER_DEADLINE, asking)
            .await
            .map_err(|_| StartError::Deadline { phase: PHASE, deadline: ANSWER_DEADLINE })?
            .map_err(|error| start_error(PHASE, error, &self.process))?;
        let alias = command::machine_alias(acceleration);
        let machine = full_name(&machines, alias)
            .ok_or_else(|| ProbeError::Unusable { acceleration, reason: format!("QEMU {version} has no machine `{alias}`") })?;
        Ok(Fingerprint { engine: "qemu".into(), version, machine, acceleration, cpu: cpu_digest(&cpu) })
    }

    /// Waits for the guest to power off.
    async fn power_off(&mut self, acceleration: Acceleration, deadline: Duration) -> Result<(), ProbeError> {
        let unusable = |reason: String| ProbeError::Unusable { acceleration, reason };
        let event = async {
            loop {
                if let Event::Shutdown { guest, reason } = self.monitor.event().await? {
                    return Ok::<_, MonitorError>((guest, reason));
                }
            }
        };
        match timeout(deadline, event).await {
            Ok(Ok((true, reason))) if reason == "guest-shutdown" => Ok(()),
            Ok(Ok((_, reason))) => Err(unusable(format!("the guest did not power off but ended by `{reason}`"))),
            Ok(Err(_)) => {
                self.process.ended().await;
                Err(unusable(format!("QEMU ended under the guest: {}", self.process.log_tail())))
            }
            Err(_) => Err(unusable(format!("the guest did not power off within {} s", deadline.as_secs_f32()))),
        }
    }

    /// Ends it and waits for that.
    async fn end(mut self) {
        self.process.kill();
        self.process.ended().await;
    }
}

async fn try_kvm(request: &ProbeRequest, program: &Path) -> Result<Fingerprint, ProbeError> {
    let mut trial = Trial::start(program, Acceleration::Kvm, Some(request)).await?;
    // The guest runs already and may end while QEMU is asked, which is why its end is looked for in any case.
    let fingerprint = trial.fingerprint(Acceleration::Kvm).await;
    let powered_off = trial.power_off(Acceleration::Kvm, request.deadline).await;
    trial.end().await;
    powered_off.and(fingerprint)
}

async fn try_tcg(program: &Path) -> Result<Fingerprint, ProbeError> {
    let mut trial = Trial::start(program, Acceleration::Tcg, None).await?;
    let fingerprint = trial.fingerprint(Acceleration::Tcg).await;
    trial.end().await;
    fingerprint
}

fn fd(file: &impl std::os::fd::AsRawFd) -> std::os::fd::RawFd {
    file.as_raw_fd()
}

/// The version in a greeting, with the distribution's own; an error when it is too old.
fn version(greeting: &Value) -> Result<String, ProbeError> {
    let number = |field: &str| greeting["version"]["qemu"][field].as_u64().unwrap_or_default();
    let (major, minor) = (number("major"), number("minor"));
    let package = greeting["version"]["package"].as_str().unwrap_or_default();
    let version = format!("{major}.{minor}.{}{}{package}", number("micro"), if package.is_empty() { "" } else { " " });
    if (major, minor) < OLDEST { Err(ProbeError::TooOld { version }) } else { Ok(version) }
}

/// The machine that an alias stands for; a name stands for itself.
fn full_name(machines: &Value, alias: &str) -> Option<String> {
    let matches = |machine: &&Value| machine["alias"] == alias || machine["name"] == alias;
    Some(machines.as_array()?.iter().find(matches)?["name"].as_str()?.to_owned())
}

/// A digest of every property of a CPU model, in an order of our own.
fn cpu_digest(expansion: &Value) -> String {
    let properties: BTreeMap<&String, &Value> = expansion["model"]["props"].as_object().into_iter().flatten().collect();
    let mut hasher = blake3::Hasher::new();
    for (name, value) in properties {
        hasher.update(format!("{name}={value}\n").as_bytes());
    }
    hasher.finalize().to_hex()[..32].to_owned()
}

/// An error and its causes on one line, for a person who asks why the machine is emulated.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// A file as it was when it was probed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    path: PathBuf,
    bytes: u64,
    inode: u64,
    modified_ns: i128,
}

impl Seen {
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs_err::metadata(path)?;
        let modified_ns = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
        Ok(Self { path: path.to_path_buf(), bytes: metadata.len(), inode: metadata.ino(), modified_ns })
    }
}

/// What a verdict depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Key {
    boot_id: String,
    program: Seen,
    kernel: Seen,
    initrd: Seen,
    requested: Requested,
}

impl Key {
    fn of(request: &ProbeRequest, program: &Path) -> io::Result<Self> {
        Ok(Self {
            boot_id: fs_err::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned(),
            program: Seen::of(program)?,
            kernel: Seen::of(&request.kernel)?,
            initrd: Seen::of(&request.initrd)?,
            requested: request.requested,
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Verdict {
    version: u32,
    key: Key,
    fingerprint: Fingerprint,
    fallback: Option<String>,
}

impl Verdict {
    /// The verdict in `path`, if it is about the same host, files and wish. A damaged one is none.
    fn recall(path: &Path, key: &Key) -> Option<Self> {
        if fs_err::metadata(path).ok()?.len() > MAX_VERDICT_BYTES {
            return None;
        }
        let verdict: Self = serde_json::from_slice(&fs_err::read(path).ok()?).ok()?;
        (verdict.version == VERDICT_VERSION && verdict.key == *key).then_some(verdict)
    }

    fn remember(&self, path: &Path) -> io::Result<()> {
        let temporary = path.with_extension(format!("new-{}", std::process::id()));
        let mut file = fs_err::OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&temporary)?;
        serde_json::to_writer_pretty(&mut file, self)?;
        fs_err::rename(temporary, path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(dir: &Path) -> Verdict {
        let seen = Seen::of(dir).unwrap();
        let key =
            Key { boot_id: "b".into(), program: seen.clone(), kernel: seen.clone(), initrd: seen, requested: Requested::Auto };
        let fingerprint = Fingerprint {
            engine: "qemu".into(),
            version: "10.0.2".into(),
            machine: "pc-q35-10.0".into(),
            acceleration: Acceleration::Tcg,
            cpu: "c".into(),
        };
        Verdict { version: VERDICT_VERSION, key, fingerprint, fallback: Some("no /dev/kvm".into()) }
    }

    #[test]
    fn a_verdict_is_recalled_until_something_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("verdict.json");
        let verdict = verdict(dir.path());
        verdict.remember(&path).unwrap();
        assert_eq!(Verdict::recall(&path, &verdict.key), Some(verdict.clone()));
        let rebooted = Key { boot_id: "c".into(), ..verdict.key.clone() };
        assert_eq!(Verdict::recall(&path, &rebooted), None);
        fs_err::write(&path, b"{").unwrap();
        assert_eq!(Verdict::recall(&path, &verdict.key), None);
    }

    #[test]
    fn an_old_qemu_is_named_and_refused() {
        let greeting = |minor| json!({"version": {"qemu": {"major": 8, "minor": minor, "micro": 1}, "package": "Debian"}});
        assert_eq!(version(&greeting(2)).unwrap(), "8.2.1 Debian");
        assert!(matches!(version(&greeting(1)), Err(ProbeError::TooOld { version }) if version == "8.1.1 Debian"));
    }

    #[test]
    fn an_alias_is_resolved() {
        let machines = json!([{"name": "microvm"}, {"name": "pc-q35-10.0", "alias": "q35"}]);
        assert_eq!(full_name(&machines, "q35").unwrap(), "pc-q35-10.0");
        assert_eq!(full_name(&machines, "microvm").unwrap(), "microvm");
        assert_eq!(full_name(&machines, "virt"), None);
    }

    #[tokio::test]
    async fn a_missing_binary_is_told_as_such() {
        let request = ProbeRequest {
            program: Some("/nonexistent/qemu".into()),
            kernel: "/nonexistent".into(),
            initrd: "/nonexistent".into(),
            requested: Requested::Auto,
            deadline: Duration::from_secs(1),
            verdict_file: None,
        };
        assert!(matches!(probe(&request).await, Err(ProbeError::Missing { .. })));
    }
}
