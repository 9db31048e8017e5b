//! Processes by pid and start time, and held by a pidfd: a pid that was given to another process is never hit.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

/// A process of this host, until that is started anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessId {
    /// Its number, which may be another's later.
    pub pid: u32,
    /// When it was started, in clock ticks since the host was: field 22 of `/proc/PID/stat`.
    pub start_ticks: u64,
}

impl ProcessId {
    /// That of a process that is there.
    pub fn of(pid: u32) -> io::Result<Self> {
        Ok(Self { pid, start_ticks: start_ticks(pid)? })
    }

    /// This process's.
    pub fn own() -> io::Result<Self> {
        Self::of(std::process::id())
    }

    /// Whether it is there and stands still, because it was stopped.
    pub fn is_stopped(self) -> bool {
        let Ok(stat) = fs_err::read_to_string(format!("/proc/{}/stat", self.pid)) else { return false };
        let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().next());
        // Between the two looks it may have become another's.
        state == Some("T") && start_ticks(self.pid).is_ok_and(|ticks| ticks == self.start_ticks)
    }

    /// Holds the process, if it is still there.
    pub(crate) fn hold(self) -> io::Result<Option<Held>> {
        let Some(raw) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
        let pidfd = match pidfd_open(raw, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(Errno::SRCH) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        // The process with this start time was there before the descriptor was opened. If it has the pid still, the descriptor is of it.
        let is_same = start_ticks(self.pid).is_ok_and(|ticks| ticks == self.start_ticks);
        Ok(is_same.then_some(Held { id: self, pidfd }))
    }
}

fn start_ticks(pid: u32) -> io::Result<u64> {
    let stat = fs_err::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name stands in brackets and may hold anything, brackets too. After it come the fields from the third on.
    let field = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(19));
    field
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "`stat` has no start time"))
}

/// A process that is held: it may have ended, and is never another.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) id: ProcessId,
    pidfd: OwnedFd,
}

impl Held {
    /// Stops it. One that has ended is stopped for good.
    pub(crate) fn stop(&self) -> io::Result<()> {
        self.send(Signal::STOP)
    }

    /// Lets it go on.
    pub(crate) fn go_on(&self) -> io::Result<()> {
        self.send(Signal::CONT)
    }

    /// Ends it, also where it stands still.
    pub(crate) fn kill(&self) -> io::Result<()> {
        self.send(Signal::KILL)
    }

    fn send(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&self) -> bool {
        let mut look = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        poll(&mut look, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }
}
