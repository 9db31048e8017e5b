//! The process of a machine: watched by pidfd, killed and reaped, what it says kept short (`process/log.rs`).
//!
//! The process outlives us on purpose: an adopted machine is a process that we find again by
//! pid *and* start time. Everything that ends it goes through its pidfd, so a reused pid is never hit. Dropping a [`Process`]
//! kills it; [`Process::release`] does not.

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{fs::MetadataExt, process::ExitStatusExt},
    },
    process::ExitStatus,
};

use firkin_cgroup::MemoryWatch;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid},
};
use tokio::io::{Interest, unix::AsyncFd};

pub(crate) mod log;

use log::Log;

use crate::Exit;

/// How likely a machine is to be killed when the host has no memory left, beside what its size says; 1000 is always. Its guest is one
/// sandbox, and everything else on the host is more.
const OOM_SCORE: &str = "500";

/// How a process ended, as far as we may know it: only a parent is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    Status(ExitStatus),
    /// It was started by an earlier process of ours.
    Unknown,
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Status(status) => status.fmt(f),
            Self::Unknown => f.write_str("exit status unknown: not our child"),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Process {
    pid: u32,
    start_time: u64,
    pidfd: AsyncFd<OwnedFd>,
    log: Log,
    /// Absent: its memory has no limit of its own.
    memory: Option<MemoryWatch>,
    ended: Option<Ended>,
    kill_on_drop: bool,
}

/// Told of a process that is taken over too: the server that started it may have been killed before it said so.
pub(crate) fn may_be_killed_for_memory(pid: u32) {
    if let Err(error) = fs_err::write(format!("/proc/{pid}/oom_score_adj"), OOM_SCORE) {
        tracing::warn!(pid, %error, "a machine is as likely to be killed for memory as everybody");
    }
}

impl Process {
    /// A process that an earlier process of ours started, if `pid` still is that process.
    pub(crate) fn adopt(pid: u32, start_time: u64, uid: u32, log: Log) -> io::Result<Self> {
        let mut process = Self::watch(pid, log)?;
        process.kill_on_drop = false;
        // The pidfd is held, so what is read below is of the process that it names, or of none.
        let owner = fs_err::metadata(format!("/proc/{pid}"))?.uid();
        if process.start_time != start_time || owner != uid {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the process id belongs to another process now"));
        }
        Ok(process)
    }

    /// A process that is to end with what is returned, unless that is released.
    pub(crate) fn watch(pid: u32, log: Log) -> io::Result<Self> {
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
        let pidfd = watched(pidfd_open(raw, PidfdFlags::empty())?)?;
        let memory = MemoryWatch::of(pid);
        Ok(Self { pid, start_time: start_time(pid)?, pidfd, log, memory, ended: None, kill_on_drop: true })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Clock ticks between the host's start and the process's.
    pub(crate) fn start_time(&self) -> u64 {
        self.start_time
    }

    /// From here on, a drop kills the process.
    pub(crate) fn kill_on_drop(&mut self) {
        self.kill_on_drop = true;
    }

    /// Lets it live on without us.
    pub(crate) fn release(mut self) {
        self.kill_on_drop = false;
    }

    /// Ends when the process has ended and is reaped. Cancel-safe.
    pub(crate) async fn ended(&mut self) -> Ended {
        if let Some(ended) = self.ended {
            return ended;
        }
        loop {
            match self.pidfd.readable().await {
                Ok(mut guard) => {
                    if has_ended(guard.get_inner()) {
                        let ended = reap(guard.get_inner().as_fd());
                        self.ended = Some(ended);
                        return ended;
                    }
                    guard.clear_ready();
                }
                // The runtime is shutting down: nothing can be awaited any more.
                Err(_) => return Ended::Unknown,
            }
        }
    }

    /// Whether it has ended already, without waiting.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.is_some() || has_ended(self.pidfd.get_ref())
    }

    /// Sends SIGKILL. A process that has ended is no error.
    pub(crate) fn kill(&self) {
        match pidfd_send_signal(self.pidfd.get_ref(), Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => tracing::error!(pid = self.pid, %error, "cannot kill a machine's process"),
        }
    }

    /// How it came to its end, where nobody meant it to. A parent knows by what signal; who is not is not told, and goes by the count.
    pub(crate) fn crash(&self, ended: Ended) -> Exit {
        let killed = match ended {
            Ended::Status(status) => status.signal() == Some(Signal::KILL.as_raw()),
            Ended::Unknown => true,
        };
        match self.memory.as_ref().and_then(MemoryWatch::limit_reached) {
            Some(bytes) if killed => Exit::OutOfMemory { limit_mib: bytes >> 20 },
            Some(_) | None => Exit::Crashed { status: ended.to_string(), log: self.log_tail() },
        }
    }

    /// Where others of its group may be ended for want of memory, and it goes on: such an end is not its own, if it was long ago.
    pub(crate) fn look_at_memory(&mut self) {
        if let Some(memory) = &mut self.memory {
            memory.look();
        }
    }

    /// The end of what it wrote to its standard error.
    pub(crate) fn log_tail(&self) -> String {
        self.log.tail()
    }

    /// Takes what it wrote to its standard error, of which a bounded part is kept.
    pub(crate) fn look_at_log(&self) {
        if let Err(error) = self.log.look() {
            tracing::warn!(pid = self.pid, %error, "cannot keep what a machine's process says");
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.kill_on_drop || self.ended.is_some() {
            return;
        }
        self.kill();
        // A killed process is gone within milliseconds, but a drop must not wait for it, and a zombie must not stay.
        let Ok(pidfd) = self.pidfd.get_ref().try_clone() else { return };
        let reaper = std::thread::Builder::new().name("firkin-reaper".into());
        if let Err(error) = reaper.spawn(move || reap(pidfd.as_fd())) {
            tracing::warn!(pid = self.pid, %error, "cannot reap a machine's process");
        }
    }
}

/// Puts a descriptor under the runtime's watch.
#[expect(unsafe_code, reason = "the runtime cannot know that a descriptor stays open while it watches it")]
fn watched(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the `AsyncFd` owns the `OwnedFd`, which gives the same descriptor at every call and closes it only when dropped.
    let watched = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
    Ok(watched?)
}

/// A pidfd is readable once its process has ended.
fn has_ended(pidfd: &OwnedFd) -> bool {
    let mut poll = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    matches!(nix::poll::poll(&mut poll, PollTimeout::ZERO), Ok(n) if n > 0)
}

/// Waits for the end of a process that has been killed or has ended, and collects its exit status.
fn reap(pidfd: BorrowedFd<'_>) -> Ended {
    loop {
        match waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED) {
            Ok(Some(status)) => {
                let raw = match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => code << 8,
                    (None, signal) => signal.unwrap_or_default(),
                };
                return Ended::Status(ExitStatus::from_raw(raw));
            }
            Ok(None) | Err(Errno::INTR) => {}
            // Not our child, or reaped before.
            Err(_) => return Ended::Unknown,
        }
    }
}

/// Field 22 of `/proc/<pid>/stat`. The command's name, field 2, may hold spaces and parentheses.
pub(crate) fn start_time(pid: u32) -> io::Result<u64> {
    stat_field(pid, 22)
}

/// A numeric field of `/proc/<pid>/stat`, counted from 1 as in proc(5); at least 4.
pub(crate) fn stat_field(pid: u32, field: usize) -> io::Result<u64> {
    let stat = fs_err::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = stat.rsplit_once(')').map(|(_, rest)| rest);
    after_name
        .and_then(|rest| rest.split_ascii_whitespace().nth(field - 3)?.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a stat file of the kernel does not have its fields"))
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        os::fd::AsRawFd,
        process::{Command, Stdio},
    };

    use firkin_cgroup::{Groups, Limits};

    use super::*;

    /// For a shell on a busy host.
    const DEADLINE: std::time::Duration = std::time::Duration::from_secs(20);

    #[expect(clippy::print_stderr, reason = "a skip is printed")]
    #[tokio::test]
    async fn an_end_for_want_of_memory_is_told_from_a_kill() {
        let groups = Groups::open(&format!("test-process-{}", std::process::id()));
        if let Some(lack) = groups.lacks().iter().find(|lack| lack.to_string().contains("limit of memory:")) {
            eprintln!("SKIP: {lack}");
            return;
        }
        let group = groups.make("a", &Limits { memory_bytes: 64 << 20, weight: 1, cpu_percent: 100, pids: 8 }).unwrap();
        let entrances = group.entrances().unwrap();
        let enter = |file: &OwnedFd| format!("echo 0 > /proc/{}/fd/{}; ", std::process::id(), file.as_raw_fd());
        let script = entrances.iter().map(enter).chain(["read go; exec tail /dev/zero".into()]).collect::<String>();
        for (go, killed) in [(true, Exit::OutOfMemory { limit_mib: 64 }), (false, Exit::Killed)] {
            let child = Command::new("/bin/sh").args(["-c", &script]).stdin(Stdio::piped()).spawn();
            // Its end is waited for by its pidfd.
            let (pid, stdin) = child.map(|mut child| (child.id(), child.stdin.take())).unwrap();
            let joined = async {
                while MemoryWatch::of(pid).is_none() {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(DEADLINE, joined).await.expect("it joins its group");
            let log = Log::of_file(tempfile::tempfile().unwrap());
            let mut process = Process::watch(pid, log).unwrap();
            if go {
                stdin.unwrap().write_all(b"go\n").unwrap();
            } else {
                process.kill();
            }
            let ended = process.ended().await;
            match process.crash(ended) {
                Exit::Crashed { status, .. } => assert!(killed == Exit::Killed && status.contains("SIGKILL"), "{status}"),
                exit => assert_eq!(exit, killed),
            }
        }
    }
}
