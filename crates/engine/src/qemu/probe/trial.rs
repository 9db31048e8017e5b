//! A QEMU that runs for the probe: what it says of itself, and whether a guest runs in it.

use std::{
    io::{self, Read},
    os::fd::{AsRawFd, OwnedFd, RawFd},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use firkin_jail::{Confinement, Jail, Network};
use fs_err::os::unix::fs::OpenOptionsExt;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep, timeout};

use super::{ProbeError, ProbeRequest, seen};
use crate::{
    Acceleration, Compatibility, Fingerprint, PROBE_CMDLINE, Processor, Shape, StartError,
    process::Process,
    qemu::{
        command::{self, Begin, CONSOLE, CONSOLE_BYTES, Hardware, MemoryBackend},
        cost, greet, in_memory, instance, isolation,
        launch::Launch,
        listen,
        monitor::{Event, Monitor, MonitorError},
        open_kvm, spawn, start_error,
    },
};

/// `file:` migration and descriptor sets with it came together in this version.
const OLDEST: (u64, u64) = (8, 2);
/// Enough for a kernel and an initial RAM file system.
const PROBE_SHAPE: Shape = Shape { vcpus: 1, memory_mib: 256 };
/// `nobody`: the probe has no slot and needs no rights.
const PROBE_UID: u32 = 65_534;
/// Between the answers of a QEMU that runs no guest.
const ANSWER_DEADLINE: Duration = Duration::from_secs(20);
/// What a QEMU writes of the layout of its devices' state. A full binary's has 800 KB.
const MAX_LAYOUT_BYTES: u64 = 16 << 20;
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

/// How a QEMU is started for the probe.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setting<'a> {
    pub(super) program: &'a Path,
    /// That of the program.
    pub(super) jail: &'a Arc<Jail>,
    pub(super) acceleration: Acceleration,
    pub(super) processor: Processor,
}

impl Setting<'_> {
    /// Its process, in a directory of its own. One that is handed a `layout` writes its devices' into it and ends.
    async fn launch(self, guest: Guest<'_>, layout: Option<OwnedFd>) -> Result<(Process, tempfile::TempDir), ProbeError> {
        let Self { program, jail, acceleration, processor } = self;
        let dir = tempfile::Builder::new().prefix("firkin-probe-").tempdir()?;
        let monitor = listen(dir.path(), instance::MONITOR_SOCKET)?;
        let control = listen(dir.path(), instance::CONTROL_SOCKET)?;
        let unusable = |error: io::Error| ProbeError::Unusable { acceleration, reason: error.to_string() };
        let kvm = open_kvm(acceleration).map_err(unusable)?;
        let files = match guest {
            Guest::Linux(request) => vec![in_memory(request.kernel.clone()).await?, in_memory(request.initrd.clone()).await?],
            Guest::Smallest => vec![in_memory(firmware(dir.path())?).await?],
            Guest::None => Vec::new(),
        };
        let begin = match files.as_slice() {
            [kernel, initrd] => Begin::Boot { kernel: fd(kernel), initrd: fd(initrd), cmdline: PROBE_CMDLINE },
            [image] => Begin::Firmware { image: fd(image) },
            _ => Begin::Stopped,
        };
        let mut arguments = command::arguments(&Hardware {
            machine: command::machine_alias(acceleration),
            acceleration,
            processor,
            kvm: kvm.as_ref().map(fd),
            shape: PROBE_SHAPE,
            memory: MemoryBackend::Anonymous,
            begin,
            monitor: fd(&monitor),
            control: fd(&control),
            nic: None,
            root_disk: None,
        });
        if let Some(layout) = &layout {
            arguments.extend(["-dump-vmstate".into(), format!("/proc/self/fd/{}", fd(layout)).into()]);
        }
        let launch = Launch {
            program: program.to_path_buf(),
            arguments,
            jail: Arc::clone(jail),
            confinement: Confinement {
                uid: PROBE_UID,
                network: Network::Fresh,
                groups: Vec::new(),
                limits: isolation::limits(PROBE_SHAPE.vcpus, MAX_LAYOUT_BYTES),
                huge_pages: acceleration != Acceleration::Kvm,
                handed: [monitor, control]
                    .into_iter()
                    .chain(kvm)
                    .chain(layout)
                    .chain(files.into_iter().map(Into::into))
                    .collect(),
            },
            dir: dir.path().to_path_buf(),
        };
        Ok((spawn(launch).await?, dir))
    }

    /// The layout of its devices' state, digested.
    pub(super) async fn layout(self) -> Result<Option<String>, ProbeError> {
        const PHASE: &str = "telling the layout of its devices' state";
        // QEMU opens it anew by its descriptor, for which the kernel asks the file itself whether it may be written.
        let layout = std::fs::File::from(
            rustix::fs::memfd_create("firkin-layout", rustix::fs::MemfdFlags::CLOEXEC).map_err(io::Error::from)?,
        );
        rustix::fs::fchmod(&layout, rustix::fs::Mode::from_raw_mode(0o666)).map_err(io::Error::from)?;
        let (mut process, _dir) = self.launch(Guest::None, Some(layout.try_clone()?.into())).await?;
        if timeout(ANSWER_DEADLINE, process.ended()).await.is_err() {
            return Err(StartError::Deadline { phase: PHASE, deadline: ANSWER_DEADLINE }.into());
        }
        let mut text = Vec::new();
        layout.take(MAX_LAYOUT_BYTES).read_to_end(&mut text)?;
        if text.is_empty() {
            return Err(StartError::Died { phase: PHASE, log: process.log_tail() }.into());
        }
        Ok(serde_json::from_slice(&text).ok().and_then(|dump| seen::devices(&dump, self.acceleration)))
    }
}

impl Trial {
    pub(super) async fn start(setting: Setting<'_>, guest: Guest<'_>) -> Result<Self, ProbeError> {
        let (mut process, dir) = setting.launch(guest, None).await?;
        let (monitor, greeting) = greet(dir.path(), &mut process).await?;
        Ok(Self { process, monitor, greeting, _dir: dir })
    }

    /// What is stamped on snapshots of this QEMU and which it takes. Starts others like it.
    pub(super) async fn describe(&mut self, setting: Setting<'_>) -> Result<Compatibility, ProbeError> {
        let Setting { acceleration, program, .. } = setting;
        let version = version(&self.greeting)?;
        let alias = command::machine_alias(acceleration);
        let machines = self.ask("query-machines", json!({})).await?;
        let machine = full_name(&machines, alias)
            .ok_or_else(|| ProbeError::Unusable { acceleration, reason: format!("QEMU {version} has no machine `{alias}`") })?;
        let plain = self.cpu(setting).await?;
        let setting = Setting { processor: Processor::Nested, ..setting };
        let mut other = Self::start(setting, Guest::None).await?;
        let nested = other.cpu(setting).await;
        other.end().await;
        let nested = nested?;
        let plain = Fingerprint {
            engine: "qemu".into(),
            version,
            machine,
            acceleration,
            cpu: seen::cpu(&plain),
            devices: setting.layout().await?,
            program: program.file_name().map(|name| name.to_string_lossy().into_owned()),
            announces: false,
        };
        Ok(Compatibility { plain, nested_cpu: seen::cpu(&nested), earlier_cpus: seen::earlier_cpus(&nested) })
    }

    /// The CPU model of a guest, expanded. Features that the command line leaves out are left out here, too.
    async fn cpu(&mut self, setting: Setting<'_>) -> Result<Value, ProbeError> {
        let left_out = command::features_left_out(setting.acceleration, setting.processor);
        let left_out: Map<String, Value> = left_out.iter().map(|&feature| (feature.to_owned(), false.into())).collect();
        let model = json!({"type": "full", "model": {"name": command::cpu_model(setting.acceleration), "props": left_out}});
        self.ask("query-cpu-model-expansion", model).await
    }

    async fn ask(&mut self, command: &str, arguments: Value) -> Result<Value, ProbeError> {
        const PHASE: &str = "describing itself";
        let answer = timeout(ANSWER_DEADLINE, self.monitor.execute(command, arguments))
            .await
            .map_err(|_| StartError::Deadline { phase: PHASE, deadline: ANSWER_DEADLINE })?;
        Ok(answer.map_err(|error| start_error(PHASE, error, &self.process))?)
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
