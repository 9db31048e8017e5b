//! The start of a QEMU process: without privileges, in a session of its own, its standard error in a log.

use std::{
    ffi::OsString,
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

use firkin_jail::{Confinement, Jail};

use crate::process::{Process, log::Log, may_be_killed_for_memory};

/// Name of the log in the instance directory.
const LOG_FILE: &str = "qemu.log";
/// Name of the pipe in the instance directory, by which the next server finds what is said meanwhile.
const PIPE_FILE: &str = "qemu.stderr";
/// Variable of a machine's process that names its instance directory.
const INSTANCE_VARIABLE: &str = "FIRKIN_INSTANCE";

/// What to run.
#[derive(Debug)]
pub(super) struct Launch {
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<OsString>,
    /// That of the program.
    pub(super) jail: Arc<Jail>,
    /// What it is handed is what the arguments name by number.
    pub(super) confinement: Confinement,
    /// Where the log is written, and the value of [`INSTANCE_VARIABLE`]. The process itself has no way there.
    pub(super) dir: PathBuf,
}

/// Starts it. Blocking, and to be called within a runtime. No error leaves a process behind.
pub(super) fn spawn(launch: Launch) -> io::Result<Process> {
    let (log, stderr) = Log::create(&launch.dir.join(LOG_FILE), &launch.dir.join(PIPE_FILE))?;
    let mut command = Command::new(&launch.program);
    command
        .args(&launch.arguments)
        .env_clear()
        // For operators, who look for the machine of a directory: it works in none of its own, and its files have no names.
        .env(INSTANCE_VARIABLE, &launch.dir)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr)
        .arg0("firkin-vm");
    let child = launch.jail.spawn(command, launch.confinement)?;
    let pid = child.id();
    may_be_killed_for_memory(pid);
    match Process::watch(pid, log) {
        Ok(process) => Ok(process),
        Err(error) => {
            abandon(child);
            Err(error)
        }
    }
}

/// The log of a machine that an earlier process of ours started.
pub(super) fn open_log(dir: &Path) -> io::Result<Log> {
    Log::open(&dir.join(LOG_FILE), &dir.join(PIPE_FILE))
}

/// A child without a pidfd: out of descriptors. It must not stay.
fn abandon(mut child: std::process::Child) {
    if let Err(error) = child.kill().and_then(|()| child.wait()) {
        tracing::error!(pid = child.id(), %error, "cannot end a process that cannot be watched");
    }
}
