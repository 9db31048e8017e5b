//! A real machine in a control group of its own.

use std::path::Path;

use firkin_cgroup::{Groups, Limits};
use firkin_engine::{Engine as _, contract::Harness as _};
use firkin_vm_tests::engine_qemu::{QemuHarness, SHAPE};

/// Groups of which the kernel says that a process is in them.
fn groups_of(pid: u32) -> String {
    fs_err::read_to_string(format!("/proc/{pid}/cgroup")).expect("a machine has a process")
}

#[expect(clippy::print_stderr, reason = "a skip is printed")]
#[tokio::test]
async fn a_machine_is_in_its_group_from_its_first_instruction_to_its_end() {
    let Some(harness) = QemuHarness::open().await else { return };
    let groups = Groups::open(&format!("test-machine-{}", std::process::id()));
    let own = harness.engine.own_memory();
    let limits = Limits {
        memory_bytes: (u64::from(SHAPE.memory_mib) + own.most_mib) << 20,
        weight: SHAPE.vcpus,
        cpu_percent: 150,
        pids: 128,
    };
    let group = groups.make("machine", &limits).expect("a group is made");
    let dirs: Vec<_> = group.dirs().map(Path::to_owned).collect();
    if dirs.is_empty() {
        eprintln!("SKIP: {}", groups.lacks()[0]);
        return;
    }
    let mut spec = harness.boot_spec().await;
    spec.slot.groups = group.entrances().expect("its files open");
    let mut machine = harness.engine.boot(spec).await.expect("a machine boots in a group");
    let pid = machine.pid().expect("it runs");
    for dir in &dirs {
        let threads = fs_err::read_to_string(dir.join("cgroup.procs")).expect("a group tells who is in it");
        assert!(threads.lines().any(|line| line == pid.to_string()), "{}: {threads}, {}", dir.display(), groups_of(pid));
    }
    assert!(!groups_of(std::process::id()).contains("test-machine"), "who starts it stays where he is");
    let score = fs_err::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("it runs");
    assert_eq!(score.trim(), "500", "it goes before its server");
    machine.kill().await;
    drop(group);
    assert!(dirs.iter().all(|dir| !dir.exists()), "a machine that is gone leaves no group");
}
