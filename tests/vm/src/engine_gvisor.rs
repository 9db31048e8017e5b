//! The engine contract's harness for real gVisor: the product's own agent in a small root image, under throw-away users.

use std::{
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, ensure};
use async_trait::async_trait;
use firkin_engine::{
    Attachment, BootFiles, BootSpec, ControlStream, Engine, Processor, RestoreSpec, Shape, Slot,
    contract::{self, Guest, Harness, Snapshot},
    gvisor::{
        AGENT, GvisorEngine,
        capability::Capability,
        probe::{Found, ProbeError, ProbeRequest, probe},
    },
};
use nix::{
    sched::{CloneFlags, unshare},
    sys::signal::{Signal, kill},
    unistd::{Pid, getuid},
};

use crate::{
    agent_guest::{AgentGuest, Way},
    users,
};

/// A size that nothing depends on: a sandbox takes what its processes take.
const SHAPE: Shape = Shape { vcpus: 1, memory_mib: MEMORY_MIB };
/// What guests are to see of memory and of their disks.
pub const MEMORY_MIB: u32 = 256;
/// Likewise.
pub const DISK_BYTES: u64 = 512 << 20;
/// More users than one harness uses.
const UIDS: u32 = 200;
/// Harnesses of one process.
const HARNESSES_MAX: u32 = 32;
/// For a small sandbox that is started, cut and restored, on a busy host.
pub const PROBE_DEADLINE: Duration = Duration::from_secs(60);
/// What the root image has beside the agent, as the host has it.
const PROGRAMS: [&str; 8] =
    ["/bin/sh", "/bin/rm", "/bin/df", "/bin/cat", "/bin/bash", "/usr/bin/timeout", "/bin/sleep", "/usr/bin/id"];
/// Its users: the sandbox's, and another.
const USERS: &str = "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/root:/bin/sh\nother:x:1001:1001::/root:/bin/sh\n";

static HARNESSES: AtomicU32 = AtomicU32::new(0);

/// Everything that instances are made from.
#[derive(Debug)]
pub struct GvisorHarness {
    /// The engine under test.
    pub engine: GvisorEngine,
    /// What its guests have and lack.
    pub capabilities: Vec<Capability>,
    /// The root image of all.
    pub image: PathBuf,
    dir: tempfile::TempDir,
    first_uid: u32,
    next: AtomicU32,
}

impl GvisorHarness {
    /// A harness, or `None` after saying why the host cannot have one.
    pub async fn open() -> Option<Self> {
        Self::with(None).await
    }

    /// The same with a binary of one's choice.
    #[expect(clippy::print_stderr, reason = "a skip is printed, and a test names what it runs on")]
    pub async fn with(program: Option<PathBuf>) -> Option<Self> {
        if !getuid().is_root() {
            eprintln!("SKIP: sandboxes need root");
            return None;
        }
        if !on_path("mkfs.erofs") {
            eprintln!("SKIP: there is no `mkfs.erofs` (package erofs-utils)");
            return None;
        }
        let dir = tempfile::Builder::new().prefix("firkin-gvisor-").tempdir().expect("a directory");
        let image = image(dir.path()).expect("a root image is made");
        let request = ProbeRequest { program, pins: dir.path().join("engines"), image: image.clone(), deadline: PROBE_DEADLINE };
        let Found { engine, capabilities } = match probe(&request).await {
            Ok(found) => found,
            Err(error @ ProbeError::Missing) => {
                eprintln!("SKIP: {error} (package runsc of bookworm-backports)");
                return None;
            }
            Err(error) => panic!("runsc is there and does not work: {error:?}"),
        };
        eprintln!("engine: runsc {} with {}", engine.fingerprint().version, engine.fingerprint().acceleration);
        for lacking in capabilities.iter().filter_map(|found| Some((found.name, found.lacking.as_ref()?))) {
            eprintln!("lacking: {}: {}", lacking.0, lacking.1);
        }
        Some(Self { engine, capabilities, image, dir, first_uid: first_uid(), next: AtomicU32::new(0) })
    }

    /// A directory for an instance, and its user.
    fn instance(&self) -> (PathBuf, u32) {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        assert!(n < UIDS, "UIDS has not grown with the tests");
        let path = self.dir.path().join(format!("instance-{n}"));
        // As a server makes them.
        std::fs::DirBuilder::new().mode(0o700).create(&path).expect("a directory");
        (path, self.first_uid + n)
    }

    /// Users of this harness that have a process: one for each sandbox. A zombie is init's to reap.
    pub fn users(&self) -> Vec<u32> {
        let mut users: Vec<u32> = self.found().into_iter().map(|(_, uid)| uid).collect();
        users.sort_unstable();
        users.dedup();
        users
    }

    /// Their processes.
    pub fn processes(&self) -> Vec<u32> {
        self.found().into_iter().map(|(pid, _)| pid).collect()
    }

    fn found(&self) -> Vec<(u32, u32)> {
        let ours = self.first_uid..self.first_uid + UIDS;
        let entries = fs_err::read_dir("/proc").expect("procfs").flatten();
        let process = |path: PathBuf| Some((path.file_name()?.to_str()?.parse().ok()?, user_of(&path)?));
        entries.filter_map(|entry| process(entry.path())).filter(|(_, uid)| ours.contains(uid)).collect()
    }

    /// Whether its guests have this. A capability is always named.
    pub fn has(&self, name: &str) -> bool {
        let found = self.capabilities.iter().find(|capability| capability.name == name);
        found.expect("the probe names it").lacking.is_none()
    }

    /// What a shell says that runs this script in the sandbox of this instance.
    pub fn shell(&self, instance: &Path, script: &str) -> anyhow::Result<String> {
        crate::agent_guest::shell(self.engine.program(), instance, "0:0", script)
    }

    /// The same as a user and group, by their numbers.
    pub fn shell_as(&self, instance: &Path, user: &str, script: &str) -> anyhow::Result<String> {
        crate::agent_guest::shell(self.engine.program(), instance, user, script)
    }
}

/// The user of a process that lives, by its status: a zombie has one too, and no memory.
fn user_of(process: &Path) -> Option<u32> {
    let status = fs_err::read_to_string(process.join("status")).ok()?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next());
    (!matches!(field("State:"), Some("Z" | "X"))).then_some(())?;
    field("Uid:")?.parse().ok()
}

/// Users of its own for every harness of every process that tests at the same time.
fn first_uid() -> u32 {
    let harness = HARNESSES.fetch_add(1, Ordering::Relaxed);
    assert!(harness < HARNESSES_MAX, "HARNESSES_MAX has not grown with the tests");
    users::GVISOR + (std::process::id() % 5_000 * HARNESSES_MAX + harness) * UIDS
}

fn on_path(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

/// A root image with the agent, a user, a shell and what they need.
fn image(dir: &Path) -> anyhow::Result<PathBuf> {
    let tree = dir.join("tree");
    for name in ["etc", "proc", "sys", "dev", "run", "tmp", "root", "usr/lib/firkin"] {
        fs_err::create_dir_all(tree.join(name))?;
    }
    fs_err::write(tree.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    fs_err::write(tree.join("etc/group"), "root:x:0:\n")?;
    let agent = tree.join(AGENT.trim_start_matches('/'));
    fs_err::write(&agent, firkin_agent::GUEST_AGENT)?;
    fs_err::set_permissions(&agent, std::fs::Permissions::from_mode(0o755))?;
    for program in PROGRAMS {
        for file in std::iter::once(program.to_owned()).chain(libraries(program)?) {
            let to = tree.join(file.trim_start_matches('/'));
            fs_err::create_dir_all(to.parent().context("a file is in a directory")?)?;
            fs_err::copy(fs_err::canonicalize(&file)?, to)?;
        }
    }
    fs_err::write(tree.join("etc/passwd"), USERS)?;
    // It stands for one that works where programs run as their owner.
    let sudo = tree.join("usr/bin/sudo");
    fs_err::write(&sudo, "#!/bin/sh\necho the image has a sudo of its own\n")?;
    fs_err::set_permissions(&sudo, std::fs::Permissions::from_mode(0o4755))?;
    let image = dir.join("root.erofs");
    // Tails that are not in blocks of their own cannot be mapped into memory by runsc.
    // Of the same files it is the same image, as a state demands that another harness restores.
    let same = ["-T", "0", "-U", "00000000-0000-0000-0000-000000000001"];
    let made = Command::new("mkfs.erofs").args(["-E", "noinline_data", "--quiet"]).args(same).arg(&image).arg(&tree).output()?;
    ensure!(made.status.success(), "mkfs.erofs failed: {made:?}");
    fs_err::remove_dir_all(tree)?;
    Ok(image)
}

/// Paths that the loader tells of.
fn libraries(program: &str) -> anyhow::Result<Vec<String>> {
    let told = Command::new("ldd").arg(program).stdin(Stdio::null()).output()?;
    let text = String::from_utf8(told.stdout)?;
    let path = |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(str::to_owned);
    Ok(text.lines().filter_map(path).collect())
}

/// One with nothing to reach.
fn slot(uid: u32) -> Slot {
    let attachment = Attachment::Interface(empty_namespace());
    Slot { uid, netns: empty_namespace(), attachment, mac: [2, 0, 0, 0, 0, 1], groups: Vec::new() }
}

fn empty_namespace() -> OwnedFd {
    let make = || {
        unshare(CloneFlags::CLONE_NEWNET).expect("root makes namespaces");
        fs_err::File::open("/proc/thread-self/ns/net").expect("a namespace").into_file().into()
    };
    std::thread::spawn(make).join().expect("no panic")
}

#[async_trait]
impl Harness for GvisorHarness {
    fn engine(&self) -> &dyn Engine {
        &self.engine
    }

    async fn boot_spec(&self) -> BootSpec {
        let (dir, uid) = self.instance();
        BootSpec {
            disk: contract::disk_of(self.engine.disks(), &dir, &self.image, DISK_BYTES),
            memory_file: dir.join("memory"),
            slot: slot(uid),
            dir,
            shape: SHAPE,
            processor: Processor::Plain,
            boot: BootFiles::InRootImage { agent: String::new() },
        }
    }

    async fn restore_spec(&self, snapshot: &Snapshot) -> RestoreSpec {
        fs_err::set_permissions(&snapshot.disk, std::fs::Permissions::from_mode(0o400)).expect("a disk is frozen");
        let (dir, uid) = self.instance();
        RestoreSpec {
            disk: contract::disk_over(self.engine.disks(), &dir, &snapshot.disk, &self.image),
            slot: slot(uid),
            dir,
            shape: SHAPE,
            processor: Processor::Plain,
            announces: false,
            memory: snapshot.memory.clone(),
            state: snapshot.state.clone(),
        }
    }

    async fn snapshot_dir(&self) -> PathBuf {
        let path = self.dir.path().join(format!("snapshot-{}", self.next.fetch_add(1, Ordering::Relaxed)));
        fs_err::create_dir(&path).expect("a directory");
        path
    }

    fn guest(&self, stream: Box<dyn ControlStream>, instance: &Path) -> Box<dyn Guest> {
        let way = Way::Command { program: self.engine.program().to_path_buf(), dir: instance.to_path_buf() };
        Box::new(AgentGuest::behind(stream, Some(way)))
    }

    async fn crash(&self, pid: Option<u32>, _instance: &Path) {
        let pid = pid.and_then(|pid| i32::try_from(pid).ok()).expect("a live sandbox has a process");
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("the process is there");
    }

    fn live(&self) -> usize {
        self.users().len()
    }
}
