//! A run of the command `runsc`: in mounts of its own, in the network and the control groups of its sandbox, and not longer than it may take.
//!
//! What the command mounts for a sandbox is in a mount namespace that it and the sandbox are alone in, so there is nothing to unmount when
//! they are gone. The command is root, as any container runtime is; what it starts is not.
#![expect(unsafe_code, reason = "a process joins its control groups between fork and exec")]

use std::{
    ffi::OsString,
    fs::File,
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use fs_err::os::unix::fs::OpenOptionsExt;
use nix::{
    libc,
    mount::{MsFlags, mount},
    sched::{CloneFlags, CpuSet, sched_setaffinity, unshare},
    unistd::Pid,
};
use rustix::process::{Resource, setrlimit};
use serde::Deserialize;
use tokio::time::timeout;

use super::{
    channel,
    instance::{self, CONSOLE, LOG, MEMINFO, RUNSC_DIR, RUNSC_LOG},
    network::{Network, View},
    program::Program,
    spec::{self, CONTAINER, Options},
};
use crate::{
    directory::blocking,
    process::{Ended, Process, log::Log},
};

/// A sandbox starts in a tenth of a second, many at once on a busy host in seconds; a large checkpoint is written in seconds.
pub(super) const DEADLINE: Duration = Duration::from_secs(60);

/// What the command has as its standard streams, and so what the first process of a sandbox has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Streams {
    /// The control channel and the console.
    OfSandbox,
    /// None: the command only speaks to a sandbox.
    None,
    /// What a program in the sandbox says goes into this new file.
    Into(PathBuf),
}

/// A disk that is busy takes this much a second.
const SLOW_BYTES_A_SECOND: u64 = 20 << 20;

/// How long a run may take that writes or reads so much.
pub(super) fn deadline_for(bytes: u64) -> Duration {
    DEADLINE + Duration::from_secs(bytes / SLOW_BYTES_A_SECOND)
}

/// What to run.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) program: Program,
    /// The instance directory.
    pub(super) dir: PathBuf,
    /// The subcommand and its flags. The container's name is added.
    pub(super) words: Vec<OsString>,
    /// What comes after that name.
    pub(super) program_words: &'static [&'static str],
    pub(super) streams: Streams,
    pub(super) network: Network,
    pub(super) view: View,
    pub(super) options: Options,
    /// As [`crate::Slot::groups`].
    pub(super) groups: Vec<OwnedFd>,
    /// Those that it may run on; none for all that this process may.
    pub(super) processors: Option<CpuSet>,
}

/// Why a run came to nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum RunError {
    /// It did not start.
    #[error("cannot start `runsc`")]
    Spawn(#[source] io::Error),
    /// It failed, for this reason.
    #[error("`runsc` failed: {0}")]
    Failed(String),
    /// It was killed: it took too long.
    #[error("`runsc` did not finish within {} s", .0.as_secs())]
    Deadline(Duration),
}

/// Runs it to its end. Dropping the future kills the command; what it has started is for [`super::remains`].
pub(super) async fn run(call: Call) -> Result<(), RunError> {
    run_within(DEADLINE, call).await
}

/// The same with another deadline.
pub(super) async fn run_within(deadline: Duration, call: Call) -> Result<(), RunError> {
    let log = call.dir.join(RUNSC_LOG);
    let mut process = blocking(move || spawn(call)).await.map_err(RunError::Spawn)?;
    match timeout(deadline, process.ended()).await {
        Ok(Ended::Status(status)) if status.success() => Ok(()),
        Ok(ended) => Err(RunError::Failed(reason(&log).unwrap_or_else(|| ended.to_string()))),
        Err(_) => Err(RunError::Deadline(deadline)),
    }
}

fn spawn(call: Call) -> io::Result<Process> {
    let Call { program, dir, words, program_words, streams, network, view, options, groups, processors } = call;
    let root = dir.join(RUNSC_DIR);
    let mut command = Command::new(&program.path);
    let flags = spec::flags((network, options), &root, &dir.join(RUNSC_LOG), &dir.join(LOG));
    command.args(flags).args(words).arg(CONTAINER).args(program_words);
    command.env_clear().current_dir("/").process_group(0);
    match &streams {
        Streams::OfSandbox => {
            let open = |name| fs_err::OpenOptions::new().read(true).write(true).open(dir.join(name)).map(fs_err::File::into_file);
            let console = append(&dir.join(CONSOLE))?;
            command.stdin(open(channel::INPUT)?).stdout(open(channel::OUTPUT)?).stderr(console);
        }
        Streams::None => {
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        }
        Streams::Into(path) => {
            let file = fs_err::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.into_file();
            command.stdin(Stdio::null()).stdout(file).stderr(append(&dir.join(CONSOLE))?);
        }
    }
    let most = options.most_file_bytes().filter(|_| streams == Streams::OfSandbox);
    let join = move || {
        groups.iter().try_for_each(join_group)?;
        most.map_or(Ok(()), |most| setrlimit(Resource::Fsize, most)).map_err(io::Error::from)?;
        processors.map_or(Ok(()), |processors| Ok(sched_setaffinity(Pid::from_raw(0), &processors)?))
    };
    // SAFETY: what runs between fork and exec only calls `write`, `setrlimit` and `sched_setaffinity`, bare system calls, on descriptors that
    // are open in the child.
    unsafe { command.pre_exec(join) };
    let log = Log::of_file(append(&dir.join(LOG))?);
    let meminfo = Some(dir.join(MEMINFO)).filter(|path| streams == Streams::OfSandbox && path.exists());
    let child = apart(command, meminfo, view)?;
    Process::watch(child, log)
}

pub(super) fn append(path: &Path) -> io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    Ok(fs_err::OpenOptions::new().read(true).append(true).custom_flags(flags).open(path)?.into_file())
}

/// Writes `0` to the file: the writing process.
fn join_group(group: &OwnedFd) -> io::Result<()> {
    // SAFETY: the byte lives until the call returns, and it is as long as is said.
    let written = unsafe { libc::write(group.as_raw_fd(), b"0".as_ptr().cast(), 1) };
    if written == 1 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Starts it from a thread whose mounts and view of networks are its own: a child has the namespaces of the thread that starts it.
///
/// A sandbox has as much memory as the command believes that its host has. There is no flag for it, so there it is shown `meminfo`.
fn apart(mut command: Command, meminfo: Option<PathBuf>, view: View) -> io::Result<u32> {
    let start = move || {
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
        if let Some(shown) = meminfo {
            mount(Some(&shown), "/proc/meminfo", None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        }
        view.enter()?;
        command.spawn().map(|child| child.id())
    };
    let thread = std::thread::Builder::new().name("firkin-runsc".into()).spawn(start)?;
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that starts `runsc` has panicked")))
}

/// Longest end of the command's log that is looked at, and longest reason that is passed on.
const MAX_LOG_BYTES: u64 = 64 << 10;
const MAX_REASON_CHARS: usize = 1000;

/// The last thing that the command said: an object of JSON, in whose text there may be anything.
fn reason(log: &Path) -> Option<String> {
    #[derive(Deserialize)]
    struct Line {
        msg: String,
    }
    let text = instance::last(log, MAX_LOG_BYTES).ok()?;
    let line = |(at, _)| serde_json::Deserializer::from_str(&text[at..]).into_iter::<Line>().next()?.ok();
    let last = text.rmatch_indices('{').find_map(line)?;
    Some(last.msg.chars().take(MAX_REASON_CHARS).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_the_last_that_was_said_whatever_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let said = |text: &str| {
            fs_err::write(&log, text).unwrap();
            reason(&log)
        };
        let first = r#"{"msg":"first","level":"info"}"#;
        for last in [r#"{"msg":"last","level":"error"}"#, "{\"msg\":\"last\"}\n"] {
            assert_eq!(said(&format!("{first}{last}")).as_deref(), Some("last"));
        }
        let odd = r#"open files: map[] {"a": 1} } of \"{\""#;
        let line = serde_json::json!({"msg": odd, "level": "error"}).to_string();
        assert_eq!(said(&format!("{first}\n{line}\n")).as_deref(), Some(odd));
        let long = serde_json::json!({"msg": "x".repeat(20_000)}).to_string();
        assert_eq!(said(&format!("{first}{long}")), Some("x".repeat(MAX_REASON_CHARS)));
        assert_eq!([said(""), said("no object {")], [None, None]);
    }
}
