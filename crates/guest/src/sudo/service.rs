//! The agent's side: who asks is looked up, what is asked is started, and how it ended is told.

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            fs::DirBuilderExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use firkin_causes::chain;
use nix::{
    sys::{
        signal::{Signal, killpg},
        stat::Mode,
    },
    unistd::Pid,
};
use rustix::net::sockopt::set_socket_passcred;

use super::{
    environment::Caller,
    launch::{Launched, launch},
    link::{Beside, Passed, Reply, Request, SOCKET, begun, receive, rest, send},
    policy,
};
use crate::{
    envd::{EnvdState, UserDb},
    reaper::{Exit, Reaper},
};

/// Commands at one time: more than a build runs, and fewer than threads that would be felt.
const MOST: usize = 256;
/// For a client to say what it wants, which it knows when it connects.
const ASK_DEADLINE: Duration = Duration::from_secs(10);
/// Pause after a failed accept, which means that descriptors or memory ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Two threads for each command, which only copy a few bytes.
const STACK_BYTES: usize = 256 << 10;

/// Listens where `sudo` asks, for as long as the agent lives.
pub(crate) fn start(state: EnvdState, reaper: Reaper) -> io::Result<()> {
    start_at(Path::new(SOCKET), state, reaper)
}

/// Listens at `socket`, in a directory that is made.
pub(super) fn start_at(socket: &Path, state: EnvdState, reaper: Reaper) -> io::Result<()> {
    let dir = socket.parent().unwrap_or(Path::new("/"));
    std::fs::DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
    match fs_err::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(socket)?;
    // Whoever asks may; what he gets is another matter.
    nix::sys::stat::fchmodat(
        nix::fcntl::AT_FDCWD,
        socket,
        Mode::from_bits_truncate(0o666),
        nix::sys::stat::FchmodatFlags::FollowSymlink,
    )?;
    let service = Arc::new(Service { state, reaper, running: AtomicUsize::new(0) });
    thread::Builder::new().name("sudo".to_owned()).spawn(move || service.serve(&listener))?;
    Ok(())
}

#[derive(Debug)]
struct Service {
    state: EnvdState,
    reaper: Reaper,
    running: AtomicUsize,
}

impl Service {
    fn serve(self: Arc<Self>, listener: &UnixListener) {
        loop {
            let link = match listener.accept() {
                Ok((link, _)) => link,
                Err(error) => {
                    tracing::warn!(%error, "cannot take a connection of sudo");
                    thread::park_timeout(ACCEPT_PAUSE);
                    continue;
                }
            };
            let service = Arc::clone(&self);
            let attend = move || {
                if let Err(error) = service.attend(&link) {
                    tracing::debug!(%error, "a client of sudo went away");
                }
            };
            if let Err(error) = thread::Builder::new().name("sudo".to_owned()).stack_size(STACK_BYTES).spawn(attend) {
                tracing::warn!(%error, "cannot attend to a client of sudo");
            }
        }
    }

    fn attend(&self, link: &UnixStream) -> io::Result<()> {
        set_socket_passcred(link, true)?;
        let place = Place::take(&self.running);
        if place.is_none() {
            return send(link, &Reply::Refused(format!("{MOST} commands run at this time already")), &[]);
        }
        link.set_read_timeout(Some(ASK_DEADLINE))?;
        let mut beside = Beside::default();
        let Some(begun) = begun(link, &mut beside)? else { return Ok(()) };
        // Before anything is read that whoever asks has made as long as he likes.
        let caller = match self.admitted(&beside) {
            Ok(caller) => caller,
            Err(reason) => return send(link, &Reply::Refused(reason), &[]),
        };
        let request: Request = rest(link, begun)?;
        link.set_read_timeout(None)?;
        let launched = match self.begin(&request, beside, &caller) {
            Ok(launched) => launched,
            Err(reason) => return send(link, &Reply::Refused(reason), &[]),
        };
        drop(request);
        self.see_to_its_end(link, launched)
    }

    /// Who asks, if he may.
    fn admitted(&self, beside: &Beside) -> Result<Caller, String> {
        let sender = beside.sender.ok_or_else(|| "nobody knows who asks".to_owned())?;
        let (uid, gid) = (sender.uid.as_raw(), sender.gid.as_raw());
        let users = UserDb::load().map_err(|error| chain(&error))?;
        let caller = Caller { uid, gid, name: users.owner_name(uid) };
        if !policy::may(&users, uid, self.state.settings().default_user(), Path::new("/")) {
            return Err(format!("{} may not run anything as another user here", caller.name));
        }
        Ok(caller)
    }

    fn begin(&self, request: &Request, beside: Beside, caller: &Caller) -> Result<Launched, String> {
        let streams = <[OwnedFd; 3]>::try_from(beside.descriptors).map_err(|_| "it takes three streams".to_owned())?;
        launch(&self.reaper, request, streams, caller).map_err(|error| chain(&error))
    }

    /// Passes signals on while it runs. A client that has gone takes nothing with it but the terminal, whose end only it has.
    fn see_to_its_end(&self, link: &UnixStream, launched: Launched) -> io::Result<()> {
        let Launched { started, terminal } = launched;
        let beside = terminal.as_ref().map(AsFd::as_fd);
        let told = send(link, &Reply::Started, beside.as_slice());
        drop(terminal);
        let group = Mutex::new(Some(started.pid));
        let exit = thread::scope(|scope| {
            let passing = || pass_signals(link, &group);
            let passer = thread::Builder::new().name("sudo".to_owned()).stack_size(STACK_BYTES);
            if let Err(error) = passer.spawn_scoped(scope, passing) {
                tracing::warn!(%error, "cannot pass signals on to a command of sudo");
            }
            let exit = started.exit.blocking_recv();
            *group.lock().unwrap_or_else(PoisonError::into_inner) = None;
            link.shutdown(std::net::Shutdown::Read).ok();
            exit
        });
        told?;
        let reply = match exit {
            Ok(Exit::Code(code)) => Reply::Code(code),
            Ok(Exit::Signal(signal)) => Reply::Signal(signal),
            Err(_) => Reply::Refused("nobody knows how it ended".to_owned()),
        };
        send(link, &reply, &[])
    }
}

fn pass_signals(link: &UnixStream, group: &Mutex<Option<Pid>>) {
    while let Ok(Some(Passed(number))) = receive::<Passed>(link, &mut Beside::default()) {
        let Ok(signal) = Signal::try_from(number) else { continue };
        if let Some(group) = *group.lock().unwrap_or_else(PoisonError::into_inner)
            && let Err(error) = killpg(group, signal)
        {
            tracing::debug!(%error, "cannot pass a signal on");
        }
    }
}

/// One of so many.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(running: &'a AtomicUsize) -> Option<Self> {
        let before = running.fetch_add(1, Ordering::Relaxed);
        let place = Self(running);
        (before < MOST).then_some(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
#[path = "service_tests.rs"]
mod tests;
