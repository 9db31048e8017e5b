//! Programs of the image that run whenever this memory begins another life.
//!
//! The kernel's random generator is new in each life, but what a program drew before the snapshot (a generator's state, a cached id,
//! a connection's secret) is in the memory of every clone, and only the program knows where. So it is told: each executable in
//! [`DIRECTORY`] runs as root, in the order of their names, before the host hears that the machine is ready, hence before any new
//! request of a user. Who would rather look than be told watches [`EPOCH_FILE`](super::files::EPOCH_FILE).
//!
//! A hook that fails or takes too long is logged and does not hold the machine up any more: a sandbox that its owner cannot enter
//! cannot be repaired.

use std::{
    ffi::OsString,
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use firkin_causes::chain;
use firkin_wire::control::Identity;
use tokio::{runtime, time::timeout};

use crate::{
    reaper::{Exit, Reaper},
    spawner::DEFAULT_PATH,
};

/// Where an image puts them.
const DIRECTORY: &str = "/etc/firkin/resumed.d";

/// More are not run: each delays every create.
const MAX_HOOKS: usize = 16;

/// All of them together. The host waits three times as long for a machine to become somebody.
const BUDGET: Duration = Duration::from_secs(10);

/// Why a hook did not do its work.
#[derive(Debug, thiserror::Error)]
enum HookError {
    /// It cannot be executed.
    #[error("cannot start it")]
    Start(#[source] io::Error),
    /// It says so itself.
    #[error("it ended with {0:?}")]
    Ended(Exit),
    /// It goes on, and nobody waits for it.
    #[error("it is not done after {} s, the time of all hooks together", BUDGET.as_secs())]
    Slow,
    /// Its end cannot be waited for.
    #[error("cannot wait for its end")]
    Wait(#[source] io::Error),
}

/// Runs what the image has, and says in the log what failed.
pub(super) fn run(identity: &Identity, reaper: &Reaper) {
    let hooks = match list(Path::new(DIRECTORY)) {
        Ok(hooks) => hooks,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => return tracing::error!(%error, "cannot list the hooks"),
    };
    let until = Instant::now() + BUDGET;
    for hook in hooks {
        if let Err(error) = run_one(&hook, identity, reaper, until) {
            tracing::error!(hook = %hook.display(), error = chain(&error), "a hook failed");
        }
    }
}

/// Has the kernel know whether there are any. After its caches were dropped, each clone would have to ask the disk.
pub(super) fn look() {
    drop(list(Path::new(DIRECTORY)));
}

/// The executables of a directory, in the order of their names.
fn list(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut names: Vec<OsString> = Vec::new();
    for entry in fs_err::read_dir(directory)? {
        let entry = entry?;
        // Through links: an image may keep the program elsewhere.
        let executable = |found: std::fs::Metadata| found.is_file() && found.permissions().mode() & 0o111 != 0;
        if fs_err::metadata(entry.path()).is_ok_and(executable) {
            names.push(entry.file_name());
        }
    }
    names.sort();
    if names.len() > MAX_HOOKS {
        tracing::error!(count = names.len(), "only the first {MAX_HOOKS} hooks are run");
        names.truncate(MAX_HOOKS);
    }
    Ok(names.into_iter().map(|name| directory.join(name)).collect())
}

fn run_one(hook: &Path, identity: &Identity, reaper: &Reaper, until: Instant) -> Result<(), HookError> {
    let mut command = Command::new(hook);
    command.env_clear().env("PATH", DEFAULT_PATH);
    command.env("FIRKIN_EPOCH", identity.epoch.to_string()).env("E2B_SANDBOX_ID", &identity.sandbox_id);
    command.current_dir("/").stdin(Stdio::null());
    let started = reaper.spawn(&mut command).map_err(HookError::Start)?;
    // By the reaper's word, not by a descriptor of the process: builds of gVisor do not have those.
    let clock = runtime::Builder::new_current_thread().enable_time().build().map_err(HookError::Wait)?;
    let left = until.saturating_duration_since(Instant::now());
    let exit = clock.block_on(async { timeout(left, started.exit).await }).map_err(|_| HookError::Slow)?;
    match exit {
        Ok(Exit::Code(0)) => Ok(()),
        Ok(exit) => Err(HookError::Ended(exit)),
        Err(_) => Err(HookError::Wait(io::Error::other("the reaper is gone"))),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn identity() -> Identity {
        Identity {
            epoch: 7,
            sandbox_id: "iabc".to_owned(),
            template_id: String::new(),
            entropy: String::new(),
            realtime_ns: 1,
            machine_id: None,
            nonce: None,
            network: None,
            env: BTreeMap::new(),
            access_token: None,
            default_user: None,
            default_workdir: None,
            volumes: None,
        }
    }

    fn hook(directory: &Path, name: &str, mode: u32, script: &str) -> PathBuf {
        let path = directory.join(name);
        fs_err::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs_err::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn executables_run_in_the_order_of_their_names() {
        let dir = tempfile::tempdir().unwrap();
        let second = hook(dir.path(), "20-b", 0o755, "");
        let first = hook(dir.path(), "10-a", 0o700, "");
        hook(dir.path(), "15-not-executable", 0o644, "");
        fs_err::create_dir(dir.path().join("30-directory")).unwrap();
        assert_eq!(list(dir.path()).unwrap(), [first, second]);
    }

    #[test]
    fn a_hook_knows_its_life_and_its_failures_have_names() {
        let dir = tempfile::tempdir().unwrap();
        let reaper = Reaper::of_process().unwrap();
        let until = || Instant::now() + Duration::from_secs(60);
        let out = dir.path().join("out");
        let tells = hook(dir.path(), "tells", 0o755, &format!("echo $E2B_SANDBOX_ID $FIRKIN_EPOCH > {}", out.display()));
        run_one(&tells, &identity(), &reaper, until()).unwrap();
        assert_eq!(fs_err::read_to_string(out).unwrap(), "iabc 7\n");

        let fails = hook(dir.path(), "fails", 0o755, "exit 3");
        let error = run_one(&fails, &identity(), &reaper, until()).unwrap_err();
        assert!(matches!(error, HookError::Ended(Exit::Code(3))), "{error:?}");

        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let waits = hook(dir.path(), "waits", 0o755, &format!("read line < {}", fifo.display()));
        let error = run_one(&waits, &identity(), &reaper, Instant::now()).unwrap_err();
        assert!(matches!(error, HookError::Slow), "{error:?}");
        // It reads the end of the file and ends.
        fs_err::OpenOptions::new().write(true).open(&fifo).unwrap();

        let absent = run_one(&dir.path().join("absent"), &identity(), &reaper, until()).unwrap_err();
        assert!(matches!(absent, HookError::Start(_)), "{absent:?}");
    }
}
