//! The caller's side: what the command line asks is asked of the agent, and this process ends as the command does.

use std::{
    ffi::{OsStr, OsString},
    io::{self, IsTerminal},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{ffi::OsStrExt, net::UnixStream},
    },
    path::Path,
    process::ExitCode,
};

use firkin_causes::chain;
use nix::sys::{
    signal::{SigSet, Signal, raise},
    signalfd::SignalFd,
};
use rustix::{net::sockopt::set_socket_passcred, termios::tcgetwinsize};

use super::{
    link::{Beside, Reply, SOCKET, receive, send},
    relay::{Relay, Tty},
    words::{Asked, USAGE, Wanted, parse},
};
use crate::logging;

/// What an end by a signal is told as where the signal does not end this process, by the custom of shells.
const SIGNALLED: u8 = 128;
/// How the program is called where this program stands in for it.
const NAME: &str = "sudo";
/// What is passed on, as far as it reaches this process.
const PASSED: [Signal; 7] =
    [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGALRM];

/// Why nothing was run.
#[derive(Debug, thiserror::Error)]
enum SudoError {
    #[error("cannot ask for it at `{}`", SOCKET)]
    Connect(#[source] io::Error),
    #[error("cannot ask for it")]
    Ask(#[source] io::Error),
    #[error("cannot use the terminal")]
    Terminal(#[source] io::Error),
    #[error("cannot wait for its end")]
    Wait(#[source] io::Error),
    #[error("{0}")]
    Refused(String),
    #[error("the agent went away")]
    Gone,
}

/// Whether the first word of a command line means this.
pub(crate) fn is_meant(program: &OsStr) -> bool {
    Path::new(program).file_name() == Some(OsStr::new(NAME))
}

/// Does what the words after the program's name say.
pub(crate) fn run(words: impl Iterator<Item = OsString>) -> ExitCode {
    let wanted = match parse(words) {
        Ok(wanted) => wanted,
        Err(error) => {
            logging::complain(&format!("{NAME}: {error}\n{USAGE}"));
            return ExitCode::FAILURE;
        }
    };
    match wanted {
        Wanted::Run(asked) => ended(ask(*asked, Path::new(SOCKET))),
        Wanted::Version => logging::say(concat!("firkin-guest ", env!("CARGO_PKG_VERSION"), " as sudo")),
        Wanted::Usage => logging::say(USAGE),
        Wanted::List => logging::say("(ALL : ALL) NOPASSWD: ALL, for root, the sandbox's user and the members of sudo"),
        Wanted::Nothing => ExitCode::SUCCESS,
    }
}

fn ended(outcome: Result<Reply, SudoError>) -> ExitCode {
    match outcome {
        Ok(Reply::Code(code)) => ExitCode::from(u8::try_from(code & 0xff).unwrap_or(u8::MAX)),
        Ok(Reply::Signal(number)) => {
            if let Ok(signal) = Signal::try_from(number) {
                // Whoever waits for this process sees what ended the command.
                SigSet::from(signal).thread_unblock().and_then(|()| raise(signal)).ok();
            }
            ExitCode::from(u8::try_from(number).map_or(u8::MAX, |number| SIGNALLED.saturating_add(number)))
        }
        Ok(Reply::Started) => ended(Err(SudoError::Gone)),
        Ok(Reply::Refused(reason)) => ended(Err(SudoError::Refused(reason))),
        Err(error) => {
            logging::complain(&format!("{NAME}: {}", chain(&error)));
            ExitCode::FAILURE
        }
    }
}

/// Has it run, and waits for its end.
fn ask(asked: Asked, socket: &Path) -> Result<Reply, SudoError> {
    let Asked { mut request, keep, directory } = asked;
    request.kept = keep.of(std::env::vars_os());
    let here = std::env::current_dir().map_err(SudoError::Ask);
    request.cwd = match directory {
        Some(directory) if Path::new(&directory).is_absolute() => directory.as_bytes().to_vec(),
        Some(directory) => here?.join(directory).as_os_str().as_bytes().to_vec(),
        None => here.map_or(b"/".to_vec(), |here| here.as_os_str().as_bytes().to_vec()),
    };
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    request.terminals = [stdin.is_terminal(), stdout.is_terminal(), stderr.is_terminal()];
    let mut signals: SigSet = PASSED.into_iter().collect();
    let tty = Tty::of(request.terminals).map_err(SudoError::Terminal)?;
    if let Some(tty) = &tty {
        // Nobody has to have a size.
        request.size = tcgetwinsize(tty).map_or((0, 0), |size| (size.ws_col, size.ws_row));
        signals.add(Signal::SIGWINCH);
    }
    // From before it is asked, so that none is lost that comes meanwhile.
    signals.thread_block().map_err(|errno| SudoError::Ask(errno.into()))?;
    let signals = SignalFd::new(&signals).map_err(|errno| SudoError::Ask(errno.into()))?;
    let link = UnixStream::connect(socket).map_err(SudoError::Connect)?;
    // The kernel says who sends where either end wants it, and the other has not said so yet when it has only just accepted.
    set_socket_passcred(&link, true).map_err(|error| SudoError::Connect(error.into()))?;
    let streams: [BorrowedFd<'_>; 3] = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
    let asked = send(&link, &request, &streams);
    let mut beside = Beside::default();
    // Who may not is told so by an agent that has not read all that he wanted.
    let reply = receive(&link, &mut beside).or_else(|error| asked.and(Err(error)));
    match reply.map_err(SudoError::Ask)? {
        Some(Reply::Started) => {}
        Some(reply) => return Ok(reply),
        None => return Err(SudoError::Gone),
    }
    let relay = Relay::new(link, signals, tty.zip(beside.descriptors.pop())).map_err(SudoError::Terminal)?;
    relay.until_it_ends().map_err(SudoError::Wait)?.ok_or(SudoError::Gone)
}
