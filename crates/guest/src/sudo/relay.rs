//! Between a terminal and that of a command: keys go in, output comes out, a new size is told, until the command has ended.

use std::{
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use fs_err::File;
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{signal::Signal, signalfd::SignalFd},
};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetpgrp, tcgetwinsize, tcsetattr, tcsetwinsize};

use super::link::{Beside, Passed, Reply, receive, send};

/// What is copied at a time.
const CHUNK_BYTES: usize = 16 << 10;
/// What is still shown of a command that has ended: more than a terminal holds, and an end for what writes on.
const LAST_PARTS: usize = 16;

/// The caller's terminal, whichever of the streams it is.
#[derive(Debug)]
pub(super) struct Tty(OwnedFd);

impl Tty {
    /// None: none of the streams is one. A terminal that is not the caller's own is read and written as it is.
    pub(super) fn of(streams: [bool; 3]) -> io::Result<Option<Self>> {
        let own = || fs_err::OpenOptions::new().read(true).write(true).open("/dev/tty").map(|file| file.into_parts().0.into());
        let stream = |number| match number {
            0 => io::stdin().as_fd().try_clone_to_owned(),
            1 => io::stdout().as_fd().try_clone_to_owned(),
            _ => io::stderr().as_fd().try_clone_to_owned(),
        };
        let first = streams.iter().position(|is_terminal| *is_terminal);
        first.map(|number| own().or_else(|_| stream(number)).map(Self)).transpose()
    }
}

impl AsFd for Tty {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A terminal that hands on every key as it is, until this is dropped.
#[derive(Debug)]
struct Raw {
    tty: OwnedFd,
    before: Termios,
}

impl Raw {
    /// None: somebody else is in the foreground, whose keys they are.
    fn take(tty: &Tty) -> io::Result<Option<Self>> {
        let ours = tcgetpgrp(tty).is_ok_and(|foreground| foreground == rustix::process::getpgrp());
        if !ours {
            return Ok(None);
        }
        let before = tcgetattr(tty)?;
        let mut raw = before.clone();
        raw.make_raw();
        let tty = tty.as_fd().try_clone_to_owned()?;
        tcsetattr(&tty, OptionalActions::Drain, &raw)?;
        Ok(Some(Self { tty, before }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Whose terminal is gone needs it back no more.
        tcsetattr(&self.tty, OptionalActions::Drain, &self.before).ok();
    }
}

/// Both terminals.
#[derive(Debug)]
struct Terminals {
    /// The caller's, raw while keys are taken from it.
    tty: File,
    raw: Option<Raw>,
    /// The command's other end.
    master: File,
    /// Keys that the command's terminal has no room for yet.
    keys: Vec<u8>,
    /// Whether the command's end is closed.
    closed: bool,
}

/// All that is listened to while a command runs.
#[derive(Debug)]
pub(super) struct Relay {
    link: UnixStream,
    signals: SignalFd,
    terminals: Option<Terminals>,
}

impl Relay {
    pub(super) fn new(link: UnixStream, signals: SignalFd, terminals: Option<(Tty, OwnedFd)>) -> io::Result<Self> {
        let made = |(tty, master): (Tty, OwnedFd)| {
            let flags = OFlag::from_bits_retain(fcntl(&master, FcntlArg::F_GETFL)?);
            fcntl(&master, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
            let raw = Raw::take(&tty)?;
            let file = |fd: OwnedFd| File::from_parts(fd.into(), "a terminal");
            io::Result::Ok(Terminals { tty: file(tty.0), raw, master: file(master), keys: Vec::new(), closed: false })
        };
        Ok(Self { link, signals, terminals: terminals.map(made).transpose()? })
    }

    /// How the command ended. None: the agent went away first.
    pub(super) fn until_it_ends(mut self) -> io::Result<Option<Reply>> {
        loop {
            let ready = self.wait()?;
            if ready.signal {
                self.pass_signals()?;
            }
            if let Some(terminals) = &mut self.terminals {
                terminals.copy(ready)?;
            }
            if ready.link {
                if let Some(terminals) = &mut self.terminals {
                    terminals.show(LAST_PARTS)?;
                }
                return receive(&self.link, &mut Beside::default());
            }
        }
    }

    fn wait(&self) -> io::Result<Ready> {
        let mut polled =
            vec![PollFd::new(self.link.as_fd(), PollFlags::POLLIN), PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        if let Some(Terminals { tty, raw, master, keys, closed }) = &self.terminals {
            let for_room = if keys.is_empty() { PollFlags::empty() } else { PollFlags::POLLOUT };
            if !closed {
                polled.push(PollFd::new(master.as_fd(), PollFlags::POLLIN | for_room));
                // Only while keys are wanted: one that was hung up is ready whatever is asked of it.
                if raw.is_some() && keys.is_empty() {
                    polled.push(PollFd::new(tty.as_fd(), PollFlags::POLLIN));
                }
            }
        }
        match poll(&mut polled, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => return Ok(Ready::default()),
            polled => polled?,
        };
        let any = |at: usize| polled.get(at).is_some_and(|fd| fd.any().unwrap_or_default());
        Ok(Ready { link: any(0), signal: any(1), output: any(2), keys: any(3) })
    }

    fn pass_signals(&mut self) -> io::Result<()> {
        let Some(signal) = self.signals.read_signal()? else { return Ok(()) };
        let number = i32::try_from(signal.ssi_signo).map_err(io::Error::other)?;
        match &self.terminals {
            Some(Terminals { tty, master, .. }) if number == Signal::SIGWINCH as i32 => {
                tcsetwinsize(master, tcgetwinsize(tty)?)?;
                Ok(())
            }
            _ => send(&self.link, &Passed(number), &[]),
        }
    }
}

/// What can be done without waiting.
#[derive(Debug, Clone, Copy, Default)]
struct Ready {
    link: bool,
    signal: bool,
    output: bool,
    keys: bool,
}

impl Terminals {
    fn copy(&mut self, ready: Ready) -> io::Result<()> {
        if ready.keys && self.raw.is_some() && self.keys.is_empty() {
            let mut chunk = [0; CHUNK_BYTES];
            let count = self.tty.read(&mut chunk)?;
            if count == 0 {
                // It was hung up: nobody types any more.
                self.raw = None;
            }
            self.keys.extend_from_slice(&chunk[..count]);
        }
        if !self.keys.is_empty() {
            match self.master.write(&self.keys) {
                Ok(count) => drop(self.keys.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => self.keys.clear(),
            }
        }
        if ready.output { self.show(1) } else { Ok(()) }
    }

    /// Shows what the command has written, in so many parts at most.
    fn show(&mut self, parts: usize) -> io::Result<()> {
        let mut chunk = [0; CHUNK_BYTES];
        for _ in 0..parts {
            match self.master.read(&mut chunk) {
                Ok(count) if count > 0 => self.tty.write_all(&chunk[..count])?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A terminal that nobody has open any more cannot be read.
                Ok(_) | Err(_) => {
                    self.closed = true;
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use nix::{pty::openpty, sys::signal::SigSet};

    use super::*;

    fn relay(terminals: Option<(Tty, OwnedFd)>) -> (Relay, UnixStream) {
        let (ours, agents) = UnixStream::pair().unwrap();
        (Relay::new(ours, SignalFd::new(&SigSet::empty()).unwrap(), terminals).unwrap(), agents)
    }

    #[test]
    fn what_a_command_wrote_last_is_shown_before_its_end_is_told() {
        let (callers, commands) = (openpty(None, None).unwrap(), openpty(None, None).unwrap());
        let (relay, agent) = relay(Some((Tty(callers.slave), commands.master)));
        std::fs::File::from(commands.slave).write_all(b"last words\n").unwrap();
        send(&agent, &Reply::Code(3), &[]).unwrap();
        assert_eq!(relay.until_it_ends().unwrap(), Some(Reply::Code(3)));
        let mut shown = [0; 10];
        std::fs::File::from(callers.master).read_exact(&mut shown).unwrap();
        assert_eq!(&shown, b"last words");
    }

    #[test]
    fn a_terminal_that_was_hung_up_is_not_looked_at_again_and_again() {
        let (callers, commands) = (openpty(None, None).unwrap(), openpty(None, None).unwrap());
        let (relay, agent) = relay(Some((Tty(callers.slave), commands.master)));
        drop(callers.master);
        send(&agent, &Reply::Code(0), &[]).unwrap();
        let ready = relay.wait().unwrap();
        assert!(ready.link && !ready.keys, "{ready:?}");
    }

    #[test]
    fn an_agent_that_went_away_is_no_end_of_a_command() {
        let (relay, agent) = relay(None);
        drop(agent);
        assert_eq!(relay.until_it_ends().unwrap(), None);
    }
}
