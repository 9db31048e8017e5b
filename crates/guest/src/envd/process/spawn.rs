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
        unix::{ffi::OsStrExt, process::CommandExt},
    },
    path::PathBuf,
    process::{Command, Stdio},
};

use nix::{
    fcntl::OFlag,
    unistd::{chdir, pipe2, setgid, setgroups, setsid, setuid},
};

use super::pty::{self, Size, Terminal};
use crate::{
    envd::users::User,
    reaper::{Reaper, Started},
};

/// `PATH` of commands whose sandbox sets none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What to run.
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

/// The child's sides of its standard streams, before the fork.
struct ChildSides {
    stdin: Stdio,
    stdout: Stdio,
    stderr: Stdio,
    ends: Ends,
    controlling_terminal: bool,
}

/// Starts the command. Blocks for a fork and an exec.
pub(crate) fn launch(reaper: &Reaper, launch: &Launch) -> io::Result<Launched> {
    let sides = open_streams(launch)?;
    let mut command = Command::new(&launch.program);
    command.args(&launch.args).env_clear().envs(environment(launch));
    command.stdin(sides.stdin).stdout(sides.stdout).stderr(sides.stderr);
    enter_identity(&mut command, launch, sides.controlling_terminal)?;
    let started = reaper.spawn(&mut command)?;
    Ok(Launched { started, ends: sides.ends })
}

fn open_streams(launch: &Launch) -> io::Result<ChildSides> {
    match launch.streams {
        Streams::Terminal(size) => {
            let Terminal { master, slave } = pty::open(size, &launch.user)?;
            Ok(ChildSides {
                stdin: slave.try_clone()?.into(),
                stdout: slave.try_clone()?.into(),
                stderr: slave.into(),
                ends: Ends::Terminal(master),
                controlling_terminal: true,
            })
        }
        Streams::Pipes { stdin } => {
            let (our_out, child_out) = pipe2(OFlag::O_CLOEXEC)?;
            let (our_err, child_err) = pipe2(OFlag::O_CLOEXEC)?;
            let (our_in, child_in) = if stdin {
                let (child, ours) = pipe2(OFlag::O_CLOEXEC)?;
                (Some(ours), child.into())
            } else {
                (None, Stdio::null())
            };
            Ok(ChildSides {
                stdin: child_in,
                stdout: child_out.into(),
                stderr: child_err.into(),
                ends: Ends::Pipes { stdin: our_in, stdout: our_out, stderr: our_err },
                controlling_terminal: false,
            })
        }
    }
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

fn enter_identity(command: &mut Command, launch: &Launch, controlling_terminal: bool) -> io::Result<()> {
    let cwd = CString::new(launch.cwd.as_os_str().as_bytes())?;
    let User { uid, gid, groups, .. } = launch.user.clone();
    // SAFETY: between fork and exec only async-signal-safe calls may be made and nothing may be allocated. The closure makes
    // plain system calls on values that were built before the fork; turning an errno into an io::Error does not allocate.
    unsafe {
        command.pre_exec(move || {
            setsid()?;
            if controlling_terminal {
                rustix::process::ioctl_tiocsctty(io::stdin().as_fd())?;
            }
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
