//! Real gVisor keeps the engine contract, and has no rights on its host while it does.

use std::{
    ffi::OsString,
    io::{self, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use firkin_engine::{
    Engine, Exit, Machine, SnapshotMemory, StartError,
    contract::{self, Harness, Snapshot},
    gvisor::probe::{ProbeRequest, probe},
    parts,
};
use firkin_vm_tests::{
    doomed_server::{self, DoomedServer},
    engine_gvisor::{DISK_BYTES, GvisorHarness, MEMORY_MIB, PROBE_DEADLINE},
};

#[path = "engine_gvisor/limits.rs"]
mod limits;
#[path = "engine_gvisor/sudo.rs"]
mod sudo;

/// It keeps a binary, tries it and starts one more sandbox, beside other tests.
const CHILD_DEADLINE: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread")]
async fn gvisor_keeps_the_contract() {
    if let Some(harness) = GvisorHarness::open().await {
        contract::check(&harness).await;
    }
}

/// A sandbox whose guest answers, with its directory.
async fn up(harness: &GvisorHarness) -> (Box<dyn Machine>, PathBuf) {
    let spec = harness.boot_spec().await;
    let dir = spec.dir.clone();
    let mut machine = harness.engine.boot(spec).await.expect("a sandbox starts");
    harness.guest(machine.control().await.expect("it has a control channel"), &dir).ready().await;
    (machine, dir)
}

/// A cut of what this sandbox is now. Ends it.
async fn cut(harness: &GvisorHarness, mut machine: Box<dyn Machine>) -> Snapshot {
    let dir = harness.snapshot_dir().await;
    machine.pause().await.expect("it pauses");
    machine.snapshot(&dir).await.expect("it is cut");
    let disk = machine.root_disk();
    machine.kill().await;
    Snapshot { memory: SnapshotMemory::InState, state: dir.join(parts::STATE), disk }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_sandbox_wrote_to_its_disk_is_in_its_state_alone() {
    let Some(harness) = GvisorHarness::open().await else { return };
    let (machine, dir) = up(&harness).await;
    harness.shell(&dir, "echo kept >/root/file; rm /bin/rm").unwrap();
    let snapshot = cut(&harness, machine).await;
    for other in ["one", "two"] {
        let spec = harness.restore_spec(&snapshot).await;
        let dir = spec.dir.clone();
        let mut machine = harness.engine.restore(spec).await.unwrap();
        machine.resume().await.unwrap();
        let said = harness.shell(&dir, "read text </root/file; echo $text; test -e /bin/rm && echo back; true").unwrap();
        assert_eq!(said, "kept\n", "and no sibling wrote to it");
        harness.shell(&dir, &format!("echo {other} >/root/file")).unwrap();
        assert_eq!(machine.kill().await, Exit::Killed);
    }
}

/// MiB of memory and bytes of the root disk, as a guest sees them.
fn sizes(harness: &GvisorHarness, dir: &Path) -> (u64, u64) {
    let memory = "while read name size unit; do [ $name = MemTotal: ] && echo $size; done </proc/meminfo; true";
    let told = |script| harness.shell(dir, script).expect("its shell ends well");
    let number = |text: String| text.lines().last().and_then(|line| line.trim().parse::<u64>().ok()).expect("it is a number");
    (number(told(memory)) / 1024, number(told("df --block-size=1 --output=size /")))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_sees_the_sizes_that_it_has_and_so_does_its_clone() {
    let Some(harness) = GvisorHarness::open().await else { return };
    let (machine, dir) = up(&harness).await;
    let seen = sizes(&harness, &dir);
    assert_eq!(seen.0, u64::from(MEMORY_MIB));
    assert_eq!(seen.1 == DISK_BYTES, harness.has("disk size"), "{seen:?}");
    let snapshot = cut(&harness, machine).await;
    let mut spec = harness.restore_spec(&snapshot).await;
    spec.shape.memory_mib *= 2;
    let dir = spec.dir.clone();
    let mut machine = harness.engine.restore(spec).await.unwrap();
    machine.resume().await.unwrap();
    assert_eq!(sizes(&harness, &dir), seen, "what a snapshot was made with stands in it");
    machine.kill().await;
}

/// What is told of a process, or nothing once it has ended, as helpers of runsc do while they are looked at.
fn unless_ended<T>(harness: &GvisorHarness, pid: u32, look: impl Fn() -> io::Result<T>) -> Option<T> {
    let deadline = Instant::now() + CHILD_DEADLINE;
    loop {
        match look() {
            Ok(seen) => return Some(seen),
            Err(_) if !harness.processes().contains(&pid) => return None,
            // On its way out it has no namespaces any more, and is not yet a zombie.
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    }
}

const NAMESPACES: [&str; 5] = ["user", "mnt", "net", "ipc", "uts"];

/// A process, as the host has it.
struct Seen {
    status: String,
    /// In the order of [`NAMESPACES`].
    namespaces: Vec<PathBuf>,
    users: String,
    root: Vec<OsString>,
}

fn see(pid: u32) -> io::Result<Seen> {
    let of = |name: &str| format!("/proc/{pid}/{name}");
    Ok(Seen {
        status: fs_err::read_to_string(of("status"))?,
        namespaces: NAMESPACES.iter().map(|kind| fs_err::read_link(of(&format!("ns/{kind}")))).collect::<Result<_, _>>()?,
        users: fs_err::read_to_string(of("uid_map"))?,
        root: fs_err::read_dir(of("root"))?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<_>>()?,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_has_no_rights_on_its_host() {
    let Some(harness) = GvisorHarness::open().await else { return };
    let (mut machine, dir) = up(&harness).await;
    let [uid] = harness.users()[..] else { panic!("one sandbox has one user") };
    let processes = harness.processes();
    assert!(processes.contains(&machine.pid().unwrap()) && processes.len() > 1, "{processes:?}");
    let mut looked_at = 0;
    for pid in processes {
        let Some(Seen { status, namespaces, users, root }) = unless_ended(&harness, pid, || see(pid)) else { continue };
        looked_at += 1;
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned();
        let [uids, gids] = ["Uid:", "Gid:"].map(|name| field(name).split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        assert_eq!((uids, gids), (vec![uid.to_string(); 4], vec![uid.to_string(); 4]));
        assert_eq!((field("NoNewPrivs:"), field("Seccomp:")), ("1".to_owned(), "2".to_owned()));
        // What rights it has are in a user namespace of its own, in which there is one user, and of networks it has none.
        for (kind, namespace) in NAMESPACES.into_iter().zip(namespaces) {
            assert_ne!(namespace, fs_err::read_link(format!("/proc/self/ns/{kind}")).unwrap(), "{kind}");
        }
        assert_eq!(users.split_whitespace().collect::<Vec<_>>(), ["0", &uid.to_string(), "1"]);
        let root: Vec<_> = root.into_iter().filter(|name| !["etc", "proc"].map(Into::into).contains(name)).collect();
        assert!(root.is_empty(), "{root:?}");
    }
    assert!(looked_at > 1, "all but one have ended");
    let mounts = fs_err::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(dir.to_str().unwrap()), "nothing is mounted on the host");
    machine.kill().await;
    assert_eq!(harness.users(), Vec::<u32>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_is_refused_on_another_root_and_restored_by_the_binary_that_wrote_it() {
    let Some(harness) = GvisorHarness::open().await else { return };
    let (machine, _) = up(&harness).await;
    let snapshot = cut(&harness, machine).await;

    let other = harness.image.with_extension("other");
    fs_err::copy(&harness.image, &other).unwrap();
    fs_err::OpenOptions::new().append(true).open(&other).unwrap().write_all(&[0; 4096]).unwrap();
    let mut spec = harness.restore_spec(&snapshot).await;
    spec.disk.image = other;
    let refused = harness.engine.restore(spec).await.err();
    assert!(matches!(&refused, Some(StartError::Refused { reason, .. }) if reason.contains("root image")), "{refused:?}");

    // An upgrade: the same program with another digest.
    let upgraded = harness.image.with_extension("runsc");
    fs_err::copy(harness.engine.program(), &upgraded).unwrap();
    fs_err::set_permissions(&upgraded, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    fs_err::OpenOptions::new().append(true).open(&upgraded).unwrap().write_all(b"\0").unwrap();
    let kept = harness.engine.program().parent().unwrap().parent().unwrap().to_path_buf();
    let request = ProbeRequest { program: Some(upgraded), pins: kept, image: harness.image.clone(), deadline: PROBE_DEADLINE };
    let after = probe(&request).await.unwrap().engine;
    assert_ne!(after.program(), harness.engine.program());
    assert!(after.compatibility().processor(harness.engine.fingerprint()).is_ok(), "an upgrade strands nothing");
    let mut machine = after.restore(harness.restore_spec(&snapshot).await).await.unwrap();
    let runs = |machine: &dyn Machine| fs_err::read_link(format!("/proc/{}/exe", machine.pid().unwrap())).unwrap();
    assert_eq!(runs(machine.as_ref()), harness.engine.program(), "the one that wrote it is kept");
    machine.resume().await.unwrap();
    machine.kill().await;
    let mut fresh = after.boot(harness.boot_spec().await).await.unwrap();
    assert_eq!(runs(fresh.as_ref()), after.program(), "what is new is of the new one");
    fresh.kill().await;

    fs_err::remove_file(harness.engine.program()).unwrap();
    let refused = after.restore(harness.restore_spec(&snapshot).await).await.err();
    assert!(matches!(&refused, Some(StartError::Refused { reason, .. }) if reason.contains("not kept")), "{refused:?}");
    assert_eq!(harness.users(), Vec::<u32>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_outlives_its_server() {
    let Some(harness) = GvisorHarness::open().await else { return };
    let server = DoomedServer::start(&harness.snapshot_dir().await);
    let dir = server.instance(CHILD_DEADLINE).await;
    server.kill();

    let mut machine = harness.engine.adopt(&dir).await.unwrap();
    let mut guest = harness.guest(machine.control().await.unwrap(), &dir);
    guest.ready().await;
    assert_eq!(guest.recall().await, 77, "its guest did not notice");
    machine.pause().await.unwrap();
    machine.snapshot(&harness.snapshot_dir().await).await.unwrap();
    harness.crash(machine.pid(), &dir).await;
    assert!(matches!(machine.wait().await, Exit::Crashed { .. }));
    fs_err::remove_dir_all(dir.parent().unwrap()).unwrap();
}

/// Not a test of its own: the process that [`a_sandbox_outlives_its_server`] starts and kills.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_will_be_killed() {
    let Some(file) = doomed_server::file() else { return };
    let harness = GvisorHarness::open().await.unwrap();
    let (mut machine, dir) = up(&harness).await;
    harness.guest(machine.control().await.unwrap(), &dir).remember(77).await;
    doomed_server::tell(&file, &dir);
    machine.wait().await;
}
