//! Where a run lives, so that nothing of it is left however it ends: namespaces that die with their first process, and one directory.
//!
//! The first process of a namespace of processes takes all others with it when it ends, whatever session or group they are in: the kernel sees
//! to that. So do networks and mounts end that only they had. It ends with its parent, who removes the directory.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};
use fs_err as fs;
use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::{
        prctl,
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, setsid},
};
use tokio::signal::unix::{SignalKind, signal};

use crate::{run::Plan, say};

/// What is needed beside root.
const PROGRAMS: [&str; 2] = ["ip", "mount"];

/// Runs the plan in namespaces of its own, and removes what it leaves in its directory.
pub(crate) fn keep(plan: &Plan) -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("namespaces are root's to make");
    }
    let found = |program: &&str| {
        std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).exists()))
    };
    if let Some(missing) = PROGRAMS.iter().find(|program| !found(program)) {
        bail!("`{missing}` is not on this host");
    }
    let place = std::env::var_os("FIRKIN_TEST_DIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
    let dir = tempfile::Builder::new().prefix("firkin-cluster-").tempdir_in(place)?;
    // PostgreSQL is another user's.
    fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(async {
        unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNET).context("cannot make namespaces")?;
        let mut command = tokio::process::Command::new(std::env::current_exe()?);
        command.arg("init").arg(dir.path()).args(plan.arguments()).stdin(Stdio::null()).kill_on_drop(true);
        let mut child = command.spawn().context("cannot start the first process")?;
        let (mut interrupted, mut terminated) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        tokio::select! {
            status = child.wait() => match status? {
                status if status.success() => Ok(()),
                status => bail!("it ended: {status}"),
            },
            _ = interrupted.recv() => stop(&mut child).await,
            _ = terminated.recv() => stop(&mut child).await,
        }
    });
    if ended.is_err() && plan.keep_logs {
        say(&format!("kept: {}", dir.keep().display()));
    }
    ended
}

async fn stop(child: &mut tokio::process::Child) -> anyhow::Result<()> {
    child.kill().await?;
    bail!("it was interrupted")
}

/// The first process of the namespace: it buries the dead, and ends with the one that it has started.
pub(crate) fn init(dir: &Path, plan: &Plan) -> anyhow::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL).context("cannot ask to end with the household")?;
    // A group whose shell ends is let go on by the kernel, also what a warden has stopped.
    setsid().context("cannot begin a session")?;
    // What is mounted from here on is nobody else's, and ends before the directory is removed.
    unshare(CloneFlags::CLONE_NEWNS).context("cannot make a namespace of mounts")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .context("cannot part the mounts")?;
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), None::<&str>).context("cannot mount /proc")?;
    let run = Command::new(std::env::current_exe()?)
        .arg("inside")
        .arg(dir)
        .args(plan.arguments())
        .spawn()
        .context("cannot start the run")?;
    let run = Pid::from_raw(i32::try_from(run.id())?);
    loop {
        match waitpid(None, None::<WaitPidFlag>) {
            Ok(WaitStatus::Exited(pid, 0)) if pid == run => return Ok(()),
            Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..)) if pid == run => bail!("the run failed"),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).context("cannot wait for the run"),
        }
    }
}

/// Processes that are there, but for this one and the first; the dead only wait for being buried.
pub(crate) fn processes() -> anyhow::Result<Vec<(i32, String)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        if pid == 1 || pid == std::process::id().cast_signed() {
            continue;
        }
        // A process may end while it is looked at: what cannot be read is gone.
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let is_dead = stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']));
        if !is_dead {
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            found.push((pid, String::from_utf8_lossy(&words).replace('\0', " ")));
        }
    }
    Ok(found)
}

/// Processes that one has started itself.
pub(crate) fn children(parent: i32) -> anyhow::Result<Vec<i32>> {
    let of = |(pid, _): (i32, String)| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (_, rest) = stat.rsplit_once(") ")?;
        (rest.split(' ').nth(1)?.parse() == Ok(parent)).then_some(pid)
    };
    Ok(processes()?.into_iter().filter_map(of).collect())
}

/// Kills whatever has to do with a directory, all of it being of this namespace.
pub(crate) fn end(dir: &Path) -> anyhow::Result<()> {
    let here = dir.display().to_string();
    for (pid, _) in processes()?.into_iter().filter(|(_, words)| words.contains(&here)) {
        match kill(Pid::from_raw(pid), Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => return Err(errno).context("cannot kill what is left"),
        }
    }
    Ok(())
}
