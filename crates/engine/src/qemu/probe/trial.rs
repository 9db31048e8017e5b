//! A QEMU that runs for the probe: what it says of itself, and whether a guest runs in it.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsRawFd, RawFd},
    path::{Path, PathBuf},
    time::Duration,
};

use fs_err::os::unix::fs::OpenOptionsExt;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep, timeout};

use super::{ProbeError, ProbeRequest};
use crate::{
    Acceleration, Fingerprint, Shape, StartError,
    qemu::{
        command::{self, Begin, CONSOLE, CONSOLE_BYTES, Hardware, Memory},
        cost, greet, instance,
        isolation::{Isolation, Network},
        listen,
        monitor::{Event, Monitor, MonitorError},
        open, open_kvm,
        process::{Launch, Process},
        spawn, start_error,
    },
};

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
/// Between two looks at the console of the smallest guest.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// The size of the firmware that is the smallest guest: QEMU takes multiples of this.
const FIRMWARE_BYTES: usize = 64 << 10;
/// Where an x86 processor begins, from the end of the firmware.
const RESET_VECTOR: usize = FIRMWARE_BYTES - 16;
/// What the smallest guest writes to its first serial port.
const WORD: u8 = b'K';
/// Real-mode code: `mov dx, 0x3f8; mov al, WORD; out dx, al; cli; hlt; jmp -1`.
const FIRST_INSTRUCTIONS: [u8; 10] = [0xba, 0xf8, 0x03, 0xb0, WORD, 0xee, 0xfa, 0xf4, 0xeb, 0xfd];

/// The guest of a trial.
#[derive(Debug, Clone, Copy)]
pub(super) enum Guest<'a> {
    /// The product's own kernel and init, which powers off at once.
    Linux(&'a ProbeRequest),
    /// Ten bytes of firmware that say one word: what a host without the product's files can run.
    Smallest,
    /// None: QEMU is only asked about itself.
    None,
}

/// A QEMU that runs for the probe, in a directory that goes away with it.
pub(super) struct Trial {
    process: Process,
    monitor: Monitor,
    greeting: Value,
    _dir: tempfile::TempDir,
}

impl Trial {
    pub(super) async fn start(program: &Path, acceleration: Acceleration, guest: Guest<'_>) -> Result<Self, ProbeError> {
        let dir = tempfile::Builder::new().prefix("firkin-probe-").tempdir()?;
        std::os::unix::fs::chown(dir.path(), Some(PROBE_UID), Some(PROBE_UID))?;
        let monitor = listen(dir.path(), instance::MONITOR_SOCKET)?;
        let control = listen(dir.path(), instance::CONTROL_SOCKET)?;
        let unusable = |error: io::Error| ProbeError::Unusable { acceleration, reason: error.to_string() };
        let kvm = open_kvm(acceleration).map_err(unusable)?;
        let files = match guest {
            Guest::Linux(request) => vec![open(&request.kernel)?, open(&request.initrd)?],
            Guest::Smallest => vec![open(&firmware(dir.path())?)?],
            Guest::None => Vec::new(),
        };
        let begin = match files.as_slice() {
            [kernel, initrd] => Begin::Boot { kernel: fd(kernel), initrd: fd(initrd), cmdline: PROBE_CMDLINE },
            [image] => Begin::Firmware { image: fd(image) },
            _ => Begin::Stopped,
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
        let launch = Launch {
            program: program.to_path_buf(),
            arguments,
            descriptors: [monitor, control].into_iter().chain(kvm).chain(files.into_iter().map(Into::into)).collect(),
            isolation: Isolation { uid: PROBE_UID, network: Network::Fresh },
            dir: dir.path().to_path_buf(),
        };
        let mut process = spawn(launch).await?;
        let (monitor, greeting) = greet(dir.path(), &mut process).await?;
        Ok(Self { process, monitor, greeting, _dir: dir })
    }

    /// What snapshots of this binary and acceleration must agree with.
    pub(super) async fn fingerprint(&mut self, acceleration: Acceleration) -> Result<Fingerprint, ProbeError> {
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

    /// Waits for [`Guest::Linux`] to power off.
    pub(super) async fn power_off(&mut self, acceleration: Acceleration, deadline: Duration) -> Result<(), ProbeError> {
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
            Ok(Err(_)) => Err(self.ended_under_guest(acceleration).await),
            Err(_) => Err(unusable(format!("the guest did not power off within {} s", deadline.as_secs_f32()))),
        }
    }

    /// Waits for the word of [`Guest::Smallest`].
    pub(super) async fn word(&mut self, acceleration: Acceleration, deadline: Duration) -> Result<(), ProbeError> {
        let end = Instant::now() + deadline;
        let arguments = json!({"device": CONSOLE, "size": CONSOLE_BYTES, "format": "base64"});
        while Instant::now() < end {
            match timeout(deadline, self.monitor.execute("ringbuf-read", arguments.clone())).await {
                Ok(Ok(console)) => {
                    if cost::decode_console(console.as_str().unwrap_or_default()).as_bytes().contains(&WORD) {
                        return Ok(());
                    }
                }
                Ok(Err(_)) => return Err(self.ended_under_guest(acceleration).await),
                Err(_) => break,
            }
            sleep(LOOK_INTERVAL).await;
        }
        let reason = format!("the guest did not run its first instructions within {} s", deadline.as_secs_f32());
        Err(ProbeError::Unusable { acceleration, reason })
    }

    async fn ended_under_guest(&mut self, acceleration: Acceleration) -> ProbeError {
        self.process.kill();
        self.process.ended().await;
        ProbeError::Unusable { acceleration, reason: format!("QEMU ended under the guest: {}", self.process.log_tail()) }
    }

    /// Ends it and waits for that.
    pub(super) async fn end(mut self) {
        self.process.kill();
        self.process.ended().await;
    }
}

/// Writes [`Guest::Smallest`] into `dir`.
fn firmware(dir: &Path) -> io::Result<PathBuf> {
    let path = dir.join("firmware");
    let mut image = vec![0xf4; FIRMWARE_BYTES];
    image[RESET_VECTOR..RESET_VECTOR + FIRST_INSTRUCTIONS.len()].copy_from_slice(&FIRST_INSTRUCTIONS);
    let mut file = fs_err::OpenOptions::new().write(true).create_new(true).mode(0o444).open(&path)?;
    io::Write::write_all(&mut file, &image)?;
    Ok(path)
}

fn fd(file: &impl AsRawFd) -> RawFd {
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
