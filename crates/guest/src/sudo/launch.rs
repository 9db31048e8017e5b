//! Starting what was asked for: as whom, in which directory, on a terminal of its own where one is wanted.
#![expect(unsafe_code, reason = "only pre_exec runs code between fork and exec; nothing else sets groups and terminal")]

use std::{
    ffi::{CString, OsStr},
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStrExt, process::CommandExt},
    },
    process::Command,
};

use nix::{
    sys::signal::{SigHandler, Signal, signal},
    unistd::{Gid, Uid, chdir, setgid, setgroups, setsid, setuid},
};

use super::{
    environment::{Caller, of_command},
    link::{Request, Shell, Text},
};
use crate::{
    envd::{self, Size, Terminal, User, UserDb, UserError},
    reaper::{Reaper, Started},
    spawner::DEFAULT_PATH,
};

/// Why it was not started. `sudo: ` stands before it.
#[derive(Debug, thiserror::Error)]
pub(super) enum LaunchError {
    #[error("cannot look up users")]
    Users(#[from] UserError),
    #[error("unknown user {0}")]
    User(String),
    #[error("unknown group {0}")]
    Group(String),
    #[error("{0}: command not found")]
    Absent(String),
    #[error("cannot use what was asked for: it has a NUL in it")]
    Nul(#[from] std::ffi::NulError),
    #[error("cannot open a terminal")]
    Terminal(#[source] io::Error),
    #[error("cannot run {program}")]
    Start {
        program: String,
        #[source]
        source: io::Error,
    },
}

/// A child, and the other end of its terminal.
#[derive(Debug)]
pub(super) struct Launched {
    pub(super) started: Started,
    pub(super) terminal: Option<OwnedFd>,
}

/// Starts it with the caller's streams, in place of those that are terminals.
pub(super) fn launch(
    reaper: &Reaper,
    request: &Request,
    streams: [OwnedFd; 3],
    caller: &Caller,
) -> Result<Launched, LaunchError> {
    let users = UserDb::load()?;
    let user = user_of(request, &users)?;
    let (words, name) = words_of(request, &user);
    let first = words.first().ok_or_else(|| LaunchError::Absent(String::new()))?;
    let env = of_command(request, &words, &user, caller);
    let word = OsStr::from_bytes(first);
    let path = env.get(OsStr::new("PATH")).and_then(|path| path.to_str().map(str::to_owned));
    let shown = word.to_string_lossy().into_owned();
    let program = match word.to_str() {
        Some(word) => envd::find(word, path.or(Some(DEFAULT_PATH.to_owned())).as_ref()),
        None => Ok(word.into()),
    };
    let program = program.map_err(|_| LaunchError::Absent(shown.clone()))?;
    let mut command = Command::new(program);
    command.arg0(OsStr::from_bytes(&name)).args(words[1..].iter().map(|word| OsStr::from_bytes(word)));
    command.env_clear().envs(env);
    let size = Size { cols: request.size.0, rows: request.size.1 };
    let wanted = request.terminals.contains(&true);
    let terminal = wanted.then(|| envd::open_terminal(size, &user)).transpose().map_err(LaunchError::Terminal)?;
    let (slave, master) = terminal.map_or((None, None), |Terminal { master, slave }| (Some(slave), Some(master)));
    dress(&mut command, request, streams, slave.as_ref()).map_err(LaunchError::Terminal)?;
    let directory = if request.shell == Shell::Login { user.home.as_os_str().as_bytes() } else { request.cwd.as_slice() };
    become_user(&mut command, &user, CString::new(directory)?, slave);
    let started = reaper.spawn(&mut command).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => LaunchError::Absent(shown.clone()),
        _ => LaunchError::Start { program: shown.clone(), source },
    })?;
    Ok(Launched { started, terminal: master })
}

fn user_of(request: &Request, users: &UserDb) -> Result<User, LaunchError> {
    let asked = request.user.as_deref().unwrap_or("root");
    let name = match asked.strip_prefix('#').and_then(|id| id.parse().ok()) {
        Some(id) => users.owner_name(id),
        None => asked.to_owned(),
    };
    let mut user = match users.user(&name) {
        Ok(user) => user,
        // An image may have no list of users, and root all the same.
        Err(_) if asked == "root" => root(),
        Err(_) => return Err(LaunchError::User(asked.to_owned())),
    };
    if let Some(asked) = &request.group {
        let number = asked.strip_prefix('#').and_then(|id| id.parse().ok().map(Gid::from_raw));
        user.gid = number.or_else(|| users.group_id(asked)).ok_or_else(|| LaunchError::Group(asked.clone()))?;
    }
    Ok(user)
}

fn root() -> User {
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    User { name: "root".into(), uid, gid, groups: vec![gid], home: "/root".into(), shell: "/bin/sh".into() }
}

/// What is run, and under which name.
fn words_of(request: &Request, user: &User) -> (Vec<Text>, Text) {
    let shell = match request.shell {
        Shell::None => return (request.words.clone(), request.words.first().cloned().unwrap_or_default()),
        Shell::Plain => {
            let of_caller = request.kept.iter().find_map(|pair| pair.strip_prefix(b"SHELL="));
            of_caller.map_or_else(|| user.shell.clone().into_bytes(), <[u8]>::to_vec)
        }
        Shell::Login => user.shell.clone().into_bytes(),
    };
    let own = shell.rsplit(|byte| *byte == b'/').next().unwrap_or_default().to_vec();
    let name = if request.shell == Shell::Login { [b"-", own.as_slice()].concat() } else { own };
    let mut words = vec![shell];
    if !request.words.is_empty() {
        words.push(b"-c".to_vec());
        words.push(request.words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(&b' '));
    }
    (words, name)
}

/// A word that a shell reads as itself, except for a dollar, which `sudo` leaves to it.
fn quoted(word: &[u8]) -> Text {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"_-$".contains(byte) || !byte.is_ascii();
    word.iter().flat_map(|byte| if plain(byte) { vec![*byte] } else { vec![b'\\', *byte] }).collect()
}

/// Gives it its streams.
fn dress(command: &mut Command, request: &Request, streams: [OwnedFd; 3], slave: Option<&File>) -> io::Result<()> {
    let mut ends = streams.into_iter().zip(request.terminals).map(|(stream, is_terminal)| match slave {
        Some(slave) if is_terminal => slave.try_clone(),
        Some(_) | None => Ok(File::from(stream)),
    });
    let mut end = || ends.next().expect("there are three streams");
    command.stdin(end()?).stdout(end()?).stderr(end()?);
    Ok(())
}

/// The child becomes the user before it enters the directory. One that it may not enter is no reason to run nothing.
fn become_user(command: &mut Command, user: &User, directory: CString, slave: Option<File>) {
    let User { uid, gid, groups, .. } = user.clone();
    // SAFETY: between fork and exec only async-signal-safe calls may be made and nothing may be allocated. The closure makes
    // plain system calls on values that were built before the fork; turning an errno into an io::Error does not allocate.
    unsafe {
        command.pre_exec(move || {
            // What the agent was started with may ignore some. Two cannot be set, and need not be.
            for number in Signal::iterator() {
                signal(number, SigHandler::SigDfl).ok();
            }
            setsid()?;
            if let Some(slave) = &slave {
                rustix::process::ioctl_tiocsctty(slave.as_fd())?;
            }
            if nix::unistd::geteuid().is_root() {
                setgroups(&groups)?;
                setgid(gid)?;
                setuid(uid)?;
            }
            if chdir(directory.as_c_str()).is_err() {
                chdir(c"/")?;
            }
            Ok(())
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_is_told_words_that_it_reads_as_they_were() {
        let words: Vec<Text> = ["echo", "a b", "$HOME", "it's"].map(|word| word.as_bytes().to_vec()).into();
        let asked =
            |shell| Request { words: words.clone(), shell, kept: vec![b"SHELL=/bin/dash".to_vec()], ..Request::default() };
        let (login, name) = words_of(&asked(Shell::Login), &root());
        assert_eq!((login[0].as_slice(), name.as_slice()), (&b"/bin/sh"[..], &b"-sh"[..]));
        assert_eq!(login[2], br"echo a\ b $HOME it\'s");
        assert_eq!(words_of(&asked(Shell::Plain), &root()).0[0], b"/bin/dash");
        let none = words_of(&Request { shell: Shell::Login, ..Request::default() }, &root()).0;
        assert_eq!(none.len(), 1, "a shell of its own");
    }
}
