//! `sudo` in a sandbox of gVisor whose build runs no program as its owner.

use std::path::Path;

use firkin_engine::{Engine, Machine, contract::Harness};
use firkin_vm_tests::engine_gvisor::GvisorHarness;

use super::{cut, up};

/// What the sandbox's user, a stranger and root get.
fn holds(harness: &GvisorHarness, dir: &Path) {
    let user = |script| harness.shell_as(dir, "1000:1000", script).expect("its shell ends well");
    assert_eq!(user("id -u; sudo id -u; /usr/bin/sudo id -u"), "1000\n0\n0\n");
    let passes = "echo given | sudo -n A=set sh -c 'read line; echo $line $A $SUDO_USER $HOME; exit 7'; echo $?";
    assert_eq!(user(passes), "given set user /root\n7\n");
    assert_eq!(user("sudo -u user id -u; sudo sh -c 'kill -9 $$' 2>/dev/null; echo $?"), "1000\n137\n");
    assert_eq!(
        user("cd /usr; sudo sh -c pwd; sudo no-such-command 2>&1; echo $?"),
        "/usr\nsudo: no-such-command: command not found\n1\n"
    );
    let stranger = harness.shell_as(dir, "1001:1001", "sudo id -u 2>&1; echo $?").expect("its shell ends well");
    assert_eq!(stranger, "sudo: other may not run anything as another user here\n1\n");
    assert_eq!(harness.shell(dir, "sudo -u other id -u").expect("its shell ends well"), "1001\n");
    // The agent's children are bounded in number: one that forks beyond is told so, takes those that it has with it, and the sandbox goes on.
    let bounded = "max=/run/firkin/pids/guest/pids.max; read most <$max; echo $most; echo 30 >$max
        sudo sh -c 'trap \"kill -9 \\$p\" EXIT; while :; do sleep 600 & p=\"$p $!\"; done' 2>&1; echo $most >$max; echo alive";
    let said = harness.shell(dir, bounded).expect("its shell ends well");
    assert!(said.starts_with("2048\n") && said.ends_with("Cannot fork\nalive\n"), "{said}");
}

#[expect(clippy::print_stderr, reason = "a skip is printed")]
#[tokio::test(flavor = "multi_thread")]
async fn the_sandboxes_user_is_root_by_sudo_also_without_setuid() {
    let Some(harness) = GvisorHarness::open().await else { return };
    if harness.has("setuid") {
        eprintln!("SKIP: this build of runsc runs programs as their owner, so the image's own sudo works");
        return;
    }
    let (machine, dir) = up(&harness).await;
    holds(&harness, &dir);
    let snapshot = cut(&harness, machine).await;
    let spec = harness.restore_spec(&snapshot).await;
    let dir = spec.dir.clone();
    let mut machine: Box<dyn Machine> = harness.engine.restore(spec).await.unwrap();
    machine.resume().await.unwrap();
    holds(&harness, &dir);
    machine.kill().await;
}
