//! Real QEMU keeps the engine contract, and runs without any privilege while it does.

use std::{
    collections::BTreeSet,
    io::Write as _,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use firkin_engine::{
    BootFiles, Engine, Exit, KernelFiles, Machine, MachineError, MemoryForm,
    contract::{self, Harness},
};
use firkin_vm_tests::{
    agent_guest::{bind, hello_for},
    doomed_server::{self, DoomedServer},
    engine_qemu::QemuHarness,
};
use firkin_wire::{control::Answer, nonce::Nonce};
use fs_err::os::unix::fs::OpenOptionsExt as _;

/// It probes the host, perhaps without a memory of that, and boots an emulated machine beside other tests.
const CHILD_DEADLINE: Duration = Duration::from_secs(300);

#[tokio::test(flavor = "multi_thread")]
async fn qemu_keeps_the_contract() {
    if let Some(harness) = QemuHarness::open().await {
        contract::check(&harness).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_has_no_privileges() {
    let Some(harness) = QemuHarness::open().await else { return };
    let spec = harness.boot_spec().await;
    let uid = spec.slot.uid;
    let mut machine = harness.engine.boot(spec).await.unwrap();
    let pid = machine.pid().unwrap();

    let status = fs_err::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {status}"));
        line[name.len()..].split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(field("Uid:"), format!("{uid} {uid} {uid} {uid}"));
    assert_eq!(field("Gid:"), format!("{uid} {uid} {uid} {uid}"));
    assert_eq!(field("Groups:"), "");
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!((field("NoNewPrivs:").as_str(), field("Seccomp:").as_str()), ("1", "2"));

    let namespace = |pid: &str, kind: &str| fs_err::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
    for kind in ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"] {
        assert_ne!(namespace(&pid.to_string(), kind), namespace("self", kind));
    }
    let root: BTreeSet<_> =
        fs_err::read_dir(format!("/proc/{pid}/root")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(root.is_subset(&["dev", "etc", "lib", "lib64", "proc", "usr"].map(Into::into).into()), "{root:?}");
    let session = fs_err::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let session = session.rsplit_once(')').unwrap().1.split_whitespace().nth(3).unwrap().to_owned();
    assert_eq!(session, pid.to_string(), "it leads its own session");
    // What a process of this user can say or do to its own instance: nothing, for there is no way in.
    let open: Vec<PathBuf> = fs_err::read_dir(format!("/proc/{pid}/fd")).unwrap().map(|fd| fd.unwrap().path()).collect();
    assert!(open.iter().filter_map(|fd| fs_err::read_link(fd).ok()).all(|target| !target.is_dir()), "no directory is open");
    assert_eq!(fs_err::read_link(format!("/proc/{pid}/cwd")).unwrap(), Path::new("/"));
    // By which operators and `firkin bench` find it all the same.
    let variables = fs_err::read_to_string(format!("/proc/{pid}/environ")).unwrap();
    let dir = variables.trim_end_matches('\0').strip_prefix("FIRKIN_INSTANCE=").map(Path::new);
    assert!(dir.is_some_and(Path::is_dir), "{variables:?}");
    let limits = fs_err::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().filter(|word| *word == "0").count(), 2, "{core}");
    for limit in ["Max file size", "Max processes"] {
        let line = limits.lines().find(|line| line.starts_with(limit)).unwrap();
        assert!(!line.contains("unlimited"), "{line}");
    }

    machine.kill().await;
    assert_eq!(harness.processes(), Vec::<u32>::new());
}

/// A machine that is up, with the directory that it is in and its user.
async fn up(harness: &QemuHarness) -> (Box<dyn Machine>, PathBuf, u32) {
    let spec = harness.boot_spec().await;
    let (dir, uid) = (spec.dir.clone(), spec.slot.uid);
    let mut machine = harness.engine.boot(spec).await.expect("a machine boots");
    let stream = machine.control().await.expect("a live machine has a control channel");
    harness.guest(stream, &dir).ready().await;
    (machine, dir, uid)
}

/// What a process of this user reads of these directories, and does in the one of its machine.
fn tries(uid: u32, dir: &Path, state: &Path) -> BTreeSet<String> {
    let script = "cd /; find \"$1\" \"$2\"; for file in control.sock qmp.sock instance.json root.qcow2 memory; do
        cat \"$1/$file\" >/proc/self/fd/2 && echo \"read $file\"
        true >>\"$1/$file\" && echo \"wrote $file\"
        ln -sfn /etc/passwd \"$1/$file\" && echo \"replaced $file\"
        mv \"$1/$file\" /tmp && echo \"took $file\"
        done; true >\"$1/new\" && echo made one; exit 0";
    let mut child = Command::new("setpriv");
    child.args([format!("--reuid={uid}"), format!("--regid={uid}")]).args(["--clear-groups", "--", "sh", "-c", script, "sh"]);
    let done = child.arg(dir).arg(state).stderr(Stdio::null()).output().expect("setpriv is a part of every Debian");
    assert!(done.status.success(), "{done:?}");
    String::from_utf8_lossy(&done.stdout).lines().map(str::to_owned).collect()
}

/// What a QEMU that its guest has taken over could do, by a process of its user.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_has_no_way_to_its_directory() {
    let Some(harness) = QemuHarness::open().await else { return };
    let (mut machine, dir, uid) = up(&harness).await;
    let state = dir.parent().unwrap();
    let mode = |path: &Path, mode| fs_err::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    let own = |path: &Path| path.to_str().unwrap().to_owned();
    mode(state, 0o700);
    assert_eq!(tries(uid, &dir, state), BTreeSet::from([own(state)]), "the state directory is there, and shut");
    // Each door by itself is shut, too.
    mode(state, 0o711);
    assert_eq!(tries(uid, &dir, state), BTreeSet::from([own(state), own(&dir)]));
    mode(&dir, 0o711);
    let memory = ["read memory", "wrote memory"].map(str::to_owned);
    let found = BTreeSet::from([own(state), own(&dir)]).into_iter().chain(memory).collect();
    assert_eq!(tries(uid, &dir, state), found, "its own memory is its own, and all else that it runs from is the server's");
    mode(&dir, 0o755);
    assert!(tries(uid, &dir, state).contains(&own(&dir.join("control.sock"))), "the test itself looks");
    machine.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_says_without_end_fills_no_disk() {
    let Some(harness) = QemuHarness::open().await else { return };
    let (mut machine, dir, _) = up(&harness).await;
    let stderr = format!("/proc/{}/fd/2", machine.pid().unwrap());
    let nonblocking = nix::fcntl::OFlag::O_NONBLOCK.bits();
    let mut stderr = fs_err::OpenOptions::new().write(true).append(true).custom_flags(nonblocking).open(stderr).unwrap();
    let flood = vec![b'x'; 1 << 20];
    for _ in 0..64 {
        match stderr.write(&flood) {
            Ok(written) => assert!(written > 0),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "its words are lost and nobody waits"),
        }
    }
    let bytes: u64 = fs_err::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("qemu.")))
        .map(|path| fs_err::metadata(path).unwrap().len())
        .sum();
    assert!(bytes <= 256 << 10, "{bytes} bytes are kept of what it says");
    machine.answer().await.unwrap();
    machine.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_answers_no_call_for_another() {
    let Some(harness) = QemuHarness::open().await else { return };
    let ((mut one, dir, _), (mut other, others, _)) = tokio::join!(up(&harness), up(&harness));
    let (nonce, others_nonce) = (Nonce::new([1; 32]), Nonce::new([2; 32]));
    bind(one.control().await.unwrap(), 1, &nonce).await;
    bind(other.control().await.unwrap(), 1, &others_nonce).await;

    let (socket, others_socket, aside) = (dir.join("control.sock"), others.join("control.sock"), dir.join("aside"));
    let swap = || {
        fs_err::rename(&socket, &aside).unwrap();
        fs_err::rename(&others_socket, &socket).unwrap();
        fs_err::rename(&aside, &others_socket).unwrap();
    };
    // Each takes leave of its own machine with the next connection, which leads to the other.
    swap();
    for called in [Some((&nonce, &others_nonce)), None] {
        let (to_other, to_one) = (one.control().await.unwrap(), other.control().await.unwrap());
        let (answer, is_others) = hello_for(to_other, called.map(|(one, _)| one), &others_nonce).await;
        assert!(matches!(answer, Answer::Failed { .. }) && is_others, "{answer:?}");
        let (answer, is_ones) = hello_for(to_one, called.map(|(_, other)| other), &nonce).await;
        assert!(matches!(answer, Answer::Failed { .. }) && is_ones, "{answer:?}");
    }
    swap();
    let (to_one, _to_other) = (one.control().await.unwrap(), other.control().await.unwrap());
    let (answer, is_its) = hello_for(to_one, Some(&nonce), &nonce).await;
    assert!(matches!(answer, Answer::Hello { epoch: 1, .. }) && is_its, "{answer:?}");

    fs_err::rename(&socket, &aside).unwrap();
    symlink(&others_socket, &socket).unwrap();
    assert!(matches!(one.control().await, Err(MachineError::File { .. })), "a link is not followed");
    fs_err::rename(dir.join("instance.json"), &aside).unwrap();
    symlink(others.join("instance.json"), dir.join("instance.json")).unwrap();
    assert!(harness.engine.adopt(&dir).await.is_err(), "nor one to another machine's record");
    one.kill().await;
    other.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_outlives_its_server() {
    let Some(harness) = QemuHarness::open().await else { return };
    let server = DoomedServer::start(&harness.snapshot_dir().await);
    let dir = server.instance(CHILD_DEADLINE).await;
    server.kill();

    let mut machine = harness.engine.adopt(&dir).await.unwrap();
    let mut guest = harness.guest(machine.control().await.unwrap(), &dir);
    guest.ready().await;
    assert_eq!(guest.recall().await, 77, "its guest did not notice");
    machine.pause().await.unwrap();
    let out = harness.snapshot_dir().await;
    assert_eq!(machine.snapshot(&out).await.unwrap().memory, MemoryForm::Full);
    harness.crash(machine.pid(), &dir).await;
    assert!(matches!(machine.wait().await, Exit::Crashed { .. }), "another's child is watched like one's own");
    fs_err::remove_dir_all(dir.parent().unwrap()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_is_not_a_power_off_and_leaves_what_the_guest_said_last() {
    let Some(harness) = QemuHarness::open().await else { return };
    // A kernel without an init or a root panics, and a panic resets the machine by a triple fault.
    let mut spec = harness.boot_spec().await;
    let files = spec.boot.kernel().unwrap().clone();
    spec.boot = BootFiles::Kernel(KernelFiles { cmdline: "rdinit=/absent root=/dev/absent".into(), ..files });
    let dir = spec.dir.clone();
    let mut machine = harness.engine.boot(spec).await.unwrap();
    assert_eq!(machine.wait().await, Exit::GuestReset { reason: "guest-reset".into() });
    let console = machine.console_tail().await.unwrap();
    assert!(console.contains("Kernel panic"), "{console}");
    fs_err::remove_dir_all(dir).unwrap();
}

/// Not a test of its own: the process that [`a_machine_outlives_its_server`] starts and kills.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_will_be_killed() {
    let Some(file) = doomed_server::file() else { return };
    let harness = QemuHarness::open().await.unwrap();
    let spec = harness.boot_spec().await;
    let dir = spec.dir.clone();
    let mut machine = harness.engine.boot(spec).await.unwrap();
    let mut guest = harness.guest(machine.control().await.unwrap(), &dir);
    guest.ready().await;
    guest.remember(77).await;
    doomed_server::tell(&file, &dir);
    machine.wait().await;
}
