//! However a run of the bench ends, nothing of it goes on: not when it is interrupted, and not when it is killed.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking, and says what was not tried")]

use std::{
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// By then everything has come about, on a host that is busy too.
const PATIENCE: Duration = Duration::from_secs(180);

#[track_caller]
fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < PATIENCE, "waited for {what}");
        thread::park_timeout(Duration::from_millis(50));
    }
}

/// A run that ends with the test, also with one that fails.
struct Run(Child);

impl Drop for Run {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Words of living processes that name a directory.
fn processes(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs_err::read_dir("/proc").unwrap() {
        // A process may end while it is looked at: what cannot be read is gone.
        let words = fs_err::read(entry.unwrap().path().join("cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).replace('\0', " ");
        if words.contains(&dir.display().to_string()) {
            found.push(words);
        }
    }
    found
}

#[test]
fn nothing_of_a_run_goes_on_however_it_ends() {
    let is_here = |path: &str| Path::new(path).exists();
    if !nix::unistd::geteuid().is_root() || !is_here("/usr/lib/postgresql") || !is_here("/usr/sbin/ip") {
        eprintln!("skipped: it wants root, the Debian package `postgresql` and `ip`");
        return;
    }
    for (signal, removes) in [(Signal::SIGINT, true), (Signal::SIGKILL, false)] {
        // Passable, because PostgreSQL is another user's.
        let dir = tempfile::Builder::new().prefix("firkin-ends-").tempdir().unwrap();
        fs_err::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_firkin-cluster"));
        command.args(["run", "--schedules", "1", "--seconds", "600", "--seed", "1"]).env("FIRKIN_TEST_DIR", dir.path());
        let mut run = Run(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let speaks = || processes(dir.path()).iter().any(|words| words.contains(" voice "));
        wait_for("a machine to speak", || speaks() || run.0.try_wait().unwrap().is_some());
        assert_eq!(run.0.try_wait().unwrap(), None, "it ended by itself");
        kill(Pid::from_raw(run.0.id().try_into().unwrap()), signal).unwrap();
        let status = run.0.wait().unwrap();
        assert!(status.code() == Some(1) || status.signal() == Some(Signal::SIGKILL as i32), "{status}");
        wait_for("its processes to end", || processes(dir.path()).is_empty());
        let left = fs_err::read_dir(dir.path()).unwrap().count();
        // Nobody is there to remove what a run that was killed had in its directory; nothing is mounted there any more.
        assert_eq!(left == 0, removes, "{signal}");
        dir.close().unwrap();
    }
}
