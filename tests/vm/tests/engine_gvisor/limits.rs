//! What a sandbox of gVisor may take of its host's memory, and what is told when it takes more.

use std::{path::Path, time::Duration};

use firkin_cgroup::{Groups, Limits, Resource};
use firkin_engine::{Engine, Exit, Machine, contract::Harness};
use firkin_vm_tests::engine_gvisor::{DISK_BYTES, GvisorHarness};

use super::{unless_ended, up};

/// More than a sandbox takes that is idle, and less than what is taken here.
const LIMIT_MIB: u64 = 192;
/// Between the end of a sandbox and of what is left of it, where it has come to its end.
const LOOK: Duration = Duration::from_secs(4);
/// The same once it must have.
const DEADLINE: Duration = Duration::from_secs(60);
/// A string that doubles until there is no memory for it.
const HOG: &str = "s=0123456789abcdef; while :; do s=$s$s; done";
/// Fills the file systems of a sandbox that are in memory, half of it each, until it has ended: it has more then than any of its guest's
/// processes.
async fn full(harness: &GvisorHarness, dir: &Path, machine: &mut dyn Machine) -> Exit {
    for file in ["/run/memory", "/dev/shm/memory"] {
        let said = harness.shell(dir, &fill(file, 2 * LIMIT_MIB));
        assert!(said.is_err(), "there was room for {said:?}");
        if let Ok(exit) = tokio::time::timeout(LOOK, machine.wait()).await {
            return exit;
        }
    }
    tokio::time::timeout(DEADLINE, machine.wait()).await.expect("a sandbox has no more memory than is its limit")
}

/// Writes so many mebibytes to a file.
fn fill(file: &str, mib: u64) -> String {
    format!(
        "m=0123456789abcdef; while [ ${{#m}} -lt 1048576 ]; do m=$m$m; done; n=0; \
         while [ $n -lt {mib} ]; do echo $m >>{file} || exit 9; n=$((n+1)); done"
    )
}

#[expect(clippy::print_stderr, reason = "a skip is printed")]
#[tokio::test(flavor = "multi_thread")]
async fn memory_ends_a_process_and_else_its_sandbox_which_says_so() {
    let Some(harness) = GvisorHarness::open().await else { return };
    let groups = Groups::open(&format!("test-gvisor-{}", std::process::id()));
    let of_memory = format!("limit of {}:", Resource::Memory);
    if let Some(lack) = groups.lacks().iter().find(|lack| lack.to_string().contains(&of_memory)) {
        eprintln!("SKIP: {lack}");
        return;
    }
    let limits = Limits { memory_bytes: LIMIT_MIB << 20, weight: 1, cpu_percent: 200, pids: 500 };
    let group = groups.make("sandbox", &limits).expect("a group is made");
    let mut spec = harness.boot_spec().await;
    spec.slot.groups = group.entrances().expect("its files open");
    let dir = spec.dir.clone();
    let mut machine = harness.engine.boot(spec).await.expect("a sandbox starts in a group");
    harness.guest(machine.control().await.expect("it has a control channel"), &dir).ready().await;

    let said = harness.shell(&dir, &format!("/bin/sh -c '{HOG}' || echo ended; echo alive")).unwrap();
    assert_eq!(said, "ended\nalive\n", "whoever takes too much is ended, and nobody else");
    let sandbox = machine.pid().unwrap();
    for pid in harness.processes().into_iter().filter(|pid| *pid != sandbox) {
        let score = || fs_err::read_to_string(format!("/proc/{pid}/oom_score_adj"));
        let Some(score) = unless_ended(&harness, pid, score) else { continue };
        assert_eq!(score.trim(), "500", "a process of the guest goes before the sandbox");
    }

    harness.shell(&dir, &fill("/root/disk", 2 * LIMIT_MIB)).expect("what is on the disk is no memory");
    assert_eq!(harness.shell(&dir, "rm /root/disk; echo alive").unwrap(), "alive\n");

    let exit = full(&harness, &dir, machine.as_mut()).await;
    assert_eq!(exit, Exit::OutOfMemory { limit_mib: LIMIT_MIB });
    assert!(exit.to_string().starts_with("the host's memory limit ended it (192 MiB"), "{exit}");
    assert_eq!(harness.users(), Vec::<u32>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_disk_has_a_bound_and_a_sandbox_outlives_it() {
    let Some(harness) = GvisorHarness::open().await else { return };
    let (mut machine, dir) = up(&harness).await;
    let more = DISK_BYTES.next_multiple_of(1 << 30) >> 20;
    let said = harness.shell(&dir, &format!("/bin/sh -c '{}' || echo full", fill("/root/disk", more))).unwrap();
    assert_eq!(said, "full\n");
    machine.pause().await.unwrap();
    machine.snapshot(&harness.snapshot_dir().await).await.expect("one whose disk is full is cut all the same");
    machine.resume().await.unwrap();
    assert_eq!(harness.shell(&dir, "rm /root/disk; echo kept >/root/file; read text </root/file; echo $text").unwrap(), "kept\n");
    machine.kill().await;
}
