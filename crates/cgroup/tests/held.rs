//! Processes in groups of this host: what holds them, and what is left.

use std::{
    os::{fd::AsRawFd, unix::process::ExitStatusExt},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use firkin_cgroup::{Group, GroupError, Groups, Limits, Resource};

const LIMITS: Limits = Limits { memory_bytes: 64 << 20, weight: 1, cpu_percent: 100, pids: 8 };
/// From a kill to the end of what was killed, on a busy host.
const DEADLINE: Duration = Duration::from_secs(20);

/// Groups of an owner of this test's own, or `None` after saying what this host lacks.
#[expect(clippy::print_stderr, reason = "a skip is printed")]
fn groups(test: &str) -> Option<Groups> {
    let groups = Groups::open(&format!("test-{test}-{}", std::process::id()));
    let lack = groups.lacks().iter().find(|lack| {
        let text = lack.to_string();
        [Resource::Memory, Resource::Pids].iter().any(|resource| text.contains(&format!("limit of {resource}:")))
    });
    if let Some(lack) = lack {
        eprintln!("SKIP: {lack}");
        return None;
    }
    Some(groups)
}

/// Runs `script` in the group.
fn run(group: &Group, script: &str) -> std::process::Output {
    let entrances = group.entrances().expect("it works");
    let enter = |entrance| format!("echo 0 > /proc/{}/fd/{}; ", std::process::id(), AsRawFd::as_raw_fd(entrance));
    let script = entrances.iter().map(enter).chain([script.to_owned()]).collect::<String>();
    Command::new("/bin/sh").args(["-c", &script]).stdin(Stdio::null()).output().expect("it works")
}

fn processes(dir: &Path) -> Vec<i32> {
    let text = fs_err::read_to_string(dir.join("cgroup.procs")).expect("it works");
    text.lines().map(|line| line.parse().expect("it works")).collect()
}

fn kill(pid: i32) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).expect("it works");
}

/// Waits for a level, with a deadline.
fn until(what: &str, reached: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !reached() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

#[test]
fn a_group_holds_its_processes_and_is_gone_after() {
    let Some(groups) = groups("held") else { return };
    let group = groups.make("a", &LIMITS).unwrap();
    assert!(matches!(groups.make("a", &LIMITS), Err(GroupError::Owned { .. })));
    let dirs: Vec<_> = group.dirs().map(Path::to_owned).collect();

    let small = run(&group, "head -c 20000000 /dev/zero | tail | wc -c");
    assert_eq!(String::from_utf8_lossy(&small.stdout).trim(), "20000000", "{small:?}");
    let large = run(&group, "head -c 300000000 /dev/zero | tail > /dev/null");
    assert!(large.status.code() == Some(137) || large.status.signal() == Some(9), "more memory than the limit: {large:?}");

    let bomb = run(&group, "for n in $(seq 20); do sleep 600 > /dev/null 2>&1 & done; wait");
    assert!(!bomb.status.success(), "more processes than the limit: {bomb:?}");
    let left = processes(&dirs[0]);
    assert!((1..=8).contains(&left.len()), "{left:?}");

    drop(group);
    assert!(dirs[0].is_dir(), "a group with processes stays");
    assert!(groups.sweep().is_empty());
    left.into_iter().for_each(kill);
    until("a group without processes is swept", || {
        groups.sweep();
        dirs.iter().all(|dir| !dir.exists())
    });
    let owner = dirs[0].parent().unwrap().to_owned();
    assert!(owner.is_dir());
    drop(groups);
    assert!(!owner.exists(), "an owner leaves nothing");
}

#[test]
fn whoever_is_ended_for_the_limit_of_its_group_is_told_from_others() {
    let Some(groups) = groups("memory") else { return };
    let group = groups.make("m", &LIMITS).unwrap();
    run(&group, "sleep 600 > /dev/null 2>&1 &");
    let dir = group.dirs().next().unwrap().to_owned();
    let pid = processes(&dir)[0];
    let watch = firkin_cgroup::MemoryWatch::of(pid.try_into().unwrap()).expect("it is in a group of its own");
    assert_eq!(watch.limit_reached(), None);
    run(&group, "head -c 300000000 /dev/zero | tail > /dev/null");
    assert_eq!(watch.limit_reached(), Some(LIMITS.memory_bytes));
    kill(pid);
    until("it ends", || processes(&dir).is_empty());
}

#[test]
fn a_released_group_is_found_again_by_the_next_of_its_owner() {
    let Some(groups) = groups("adopted") else { return };
    let group = groups.make("b", &LIMITS).unwrap();
    let dirs: Vec<_> = group.dirs().map(Path::to_owned).collect();
    run(&group, "sleep 600 > /dev/null 2>&1 &");
    let pid = processes(&dirs[0])[0];
    group.release();
    drop(groups);
    let Some(groups) = self::groups("adopted") else { return };
    let group = groups.adopt("b", u32::try_from(pid).ok()).unwrap();
    assert!(groups.sweep().is_empty() && dirs.iter().all(|dir| dir.is_dir()), "what is adopted has an owner");
    kill(pid);
    until("it ends", || processes(&dirs[0]).is_empty());
    drop(group);
    assert!(dirs.iter().all(|dir| !dir.exists()));
}
