//! Turning a request into a running child: identity, session, environment, pipes or terminal.
//!
//! The child becomes the user *before* it enters the working directory and runs the program, so a command can do nothing that
//! its user could not. It leads its own session and process group: the group is what a timeout kills.
#![expect(unsafe_code, reason = "only pre_exec runs code between fork and exec; nothing else sets groups and terminal")]

use std::{
    collections::BTreeMap,
    ffi::CString,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::PermissionsExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::Command,
};

use nix::{
    fcntl::OFlag,
    unistd::{chdir, pipe2, setgid, setgroups, setsid, setuid},
};

use super::pty::{self, Size, Terminal};
use crate::{
    envd::users::User,
    reaper::{Reaper, Started},
    spawner::{Credentials, DEFAULT_PATH, Order},
};

/// A program and how to run it.
#[derive(Debug)]
pub(crate) struct Launch {
    /// Program, looked up in the child's `PATH`.
    pub(crate) program: String,
    /// Its arguments.
    pub(crate) args: Vec<String>,
    /// Variables that the request sets; they win over all others.
    pub(crate) request_env: BTreeMap<String, String>,
    /// Variables of the sandbox.
    pub(crate) sandbox_env: BTreeMap<String, String>,
    /// Working directory; known to exist.
    pub(crate) cwd: PathBuf,
    /// Who runs it.
    pub(crate) user: User,
    /// Where its standard streams go.
    pub(crate) streams: Streams,
}

/// Where the standard streams of a command go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Streams {
    /// Pipes for output, and for input when wanted, else `/dev/null`.
    Pipes {
        /// Whether the client may write to standard input.
        stdin: bool,
    },
    /// One terminal for all three.
    Terminal(Size),
}

/// A started command and our ends of its streams.
#[derive(Debug)]
pub(crate) struct Launched {
    /// The child.
    pub(crate) started: Started,
    /// Our ends.
    pub(crate) ends: Ends,
}

/// Our ends of a command's streams.
#[derive(Debug)]
pub(crate) enum Ends {
    /// Pipes.
    Pipes {
        /// Write end of standard input, when wanted.
        stdin: Option<OwnedFd>,
        /// Read end of standard output.
        stdout: OwnedFd,
        /// Read end of standard error.
        stderr: OwnedFd,
    },
    /// The terminal's master.
    Terminal(OwnedFd),
}

/// Starts the command. Blocks for an exec, and with a terminal for a fork too.
pub(crate) fn launch(reaper: &Reaper, launch: &Launch) -> io::Result<Launched> {
    match launch.streams {
        Streams::Pipes { stdin } => launch_with_pipes(reaper, launch, stdin),
        Streams::Terminal(size) => launch_on_terminal(reaper, launch, size),
    }
}

fn launch_with_pipes(reaper: &Reaper, launch: &Launch, stdin: bool) -> io::Result<Launched> {
    let (our_out, child_out) = pipe2(OFlag::O_CLOEXEC)?;
    let (our_err, child_err) = pipe2(OFlag::O_CLOEXEC)?;
    let (our_in, child_in) = if stdin {
        let (child, ours) = pipe2(OFlag::O_CLOEXEC)?;
        (Some(ours), child)
    } else {
        (None, fs_err::File::open("/dev/null")?.into_parts().0.into())
    };
    let env = environment(launch);
    let User { uid, gid, groups, .. } = launch.user.clone();
    let order = Order {
        program: c_string(find(&launch.program, env.get("PATH"))?.as_os_str().as_bytes())?,
        args: std::iter::once(&launch.program)
            .chain(&launch.args)
            .map(|text| c_string(text.as_str()))
            .collect::<io::Result<_>>()?,
        env: env.iter().map(|(key, value)| c_string(format!("{key}={value}"))).collect::<io::Result<_>>()?,
        cwd: c_string(launch.cwd.as_os_str().as_bytes())?,
        user: nix::unistd::geteuid().is_root().then_some(Credentials { uid, gid, groups }),
        streams: [child_in, child_out, child_err],
    };
    let started = reaper.spawn_order(order)?;
    Ok(Launched { started, ends: Ends::Pipes { stdin: our_in, stdout: our_out, stderr: our_err } })
}

/// Where a program is: a name without a slash is looked for in the child's `PATH` (execvp(3)).
pub(crate) fn find(program: &str, path: Option<&String>) -> io::Result<PathBuf> {
    if program.contains('/') {
        return Ok(program.into());
    }
    let directories = path.map(String::as_str).unwrap_or(DEFAULT_PATH).split(':').filter(|directory| !directory.is_empty());
    let found = directories.map(|directory| Path::new(directory).join(program)).find(|path| {
        let executable = |found: std::fs::Metadata| found.is_file() && found.permissions().mode() & 0o111 != 0;
        fs_err::metadata(path).is_ok_and(executable)
    });
    found.ok_or_else(|| io::ErrorKind::NotFound.into())
}

fn c_string(text: impl Into<Vec<u8>>) -> io::Result<CString> {
    CString::new(text).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

/// A terminal becomes the child's own by a call that only the child can make, so this child begins as a copy of the agent.
fn launch_on_terminal(reaper: &Reaper, launch: &Launch, size: Size) -> io::Result<Launched> {
    let Terminal { master, slave } = pty::open(size, &launch.user)?;
    let mut command = Command::new(&launch.program);
    command.args(&launch.args).env_clear().envs(environment(launch));
    command.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(slave);
    enter_identity(&mut command, launch)?;
    let started = reaper.spawn(&mut command)?;
    Ok(Launched { started, ends: Ends::Terminal(master) })
}

/// Login variables, then the sandbox's, then the request's: later ones win.
fn environment(launch: &Launch) -> BTreeMap<String, String> {
    let user = &launch.user;
    let mut env = BTreeMap::from([
        ("PATH".to_owned(), DEFAULT_PATH.to_owned()),
        ("HOME".to_owned(), user.home.to_string_lossy().into_owned()),
        ("USER".to_owned(), user.name.clone()),
        ("LOGNAME".to_owned(), user.name.clone()),
        ("SHELL".to_owned(), user.shell.clone()),
    ]);
    for (key, value) in launch.sandbox_env.iter().chain(&launch.request_env) {
        env.insert(key.clone(), value.clone());
    }
    env
}

fn enter_identity(command: &mut Command, launch: &Launch) -> io::Result<()> {
    let cwd = CString::new(launch.cwd.as_os_str().as_bytes())?;
    let User { uid, gid, groups, .. } = launch.user.clone();
    // SAFETY: between fork and exec only async-signal-safe calls may be made and nothing may be allocated. The closure makes
    // plain system calls on values that were built before the fork; turning an errno into an io::Error does not allocate.
    unsafe {
        command.pre_exec(move || {
            setsid()?;
            rustix::process::ioctl_tiocsctty(io::stdin().as_fd())?;
            if nix::unistd::geteuid().is_root() {
                setgroups(&groups)?;
                setgid(gid)?;
                setuid(uid)?;
            }
            chdir(cwd.as_c_str())?;
            Ok(())
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use nix::unistd::{Gid, Uid};

    use super::*;

    #[test]
    fn the_request_wins_over_the_sandbox_and_the_sandbox_over_login() {
        let map = |pairs: &[(&str, &str)]| pairs.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect();
        let launch = Launch {
            program: "x".to_owned(),
            args: Vec::new(),
            request_env: map(&[("A", "request"), ("HOME", "/elsewhere")]),
            sandbox_env: map(&[("A", "sandbox"), ("PATH", "/p")]),
            cwd: PathBuf::from("/"),
            user: User {
                name: "u".to_owned(),
                uid: Uid::from_raw(1),
                gid: Gid::from_raw(1),
                groups: Vec::new(),
                home: PathBuf::from("/home/u"),
                shell: "/bin/sh".to_owned(),
            },
            streams: Streams::Pipes { stdin: false },
        };
        let env = environment(&launch);
        assert_eq!((env["A"].as_str(), env["PATH"].as_str(), env["HOME"].as_str()), ("request", "/p", "/elsewhere"));
        assert_eq!(env["LOGNAME"], "u");
    }
}
