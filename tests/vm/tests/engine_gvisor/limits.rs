//! What a sandbox of gVisor may take of its host's memory, and what is told when it takes more.

use std::time::Duration;

use firkin_cgroup::{Groups, Limits, Resource};
use firkin_engine::{Engine, Exit, contract::Harness};
use firkin_vm_tests::engine_gvisor::GvisorHarness;

/// More than a sandbox takes that is idle, and less than what is taken here.
const LIMIT_MIB: u64 = 192;
/// For a shell that takes all memory, on a busy host.
const DEADLINE: Duration = Duration::from_secs(60);
/// A string that doubles until there is no memory for it.
const HOG: &str = "s=0123456789abcdef; while :; do s=$s$s; done";
/// Files are memory too: a thousand times a mebibyte.
const FILL: &str = "m=0123456789abcdef; while [ ${#m} -lt 1048576 ]; do m=$m$m; done; n=0; \
                    while [ $n -lt 1000 ]; do echo $m >>/root/full; n=$((n+1)); done";

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
        let score = fs_err::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
        assert_eq!(score.trim(), "500", "a process of the guest goes before the sandbox");
    }

    let full = harness.shell(&dir, FILL);
    assert!(full.is_err(), "there was room for {full:?}");
    let exit = tokio::time::timeout(DEADLINE, machine.wait()).await.expect("it has ended");
    assert_eq!(exit, Exit::OutOfMemory { limit_mib: LIMIT_MIB });
    assert!(exit.to_string().starts_with("the host's memory limit ended it (192 MiB"), "{exit}");
    assert_eq!(harness.users(), Vec::<u32>::new());
}
