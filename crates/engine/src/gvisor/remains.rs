//! What a sandbox leaves on its host: processes of its user, and of its directory while they are not yet its user's.
//!
//! `runsc` starts a sandbox from a command that ends, so nobody is its parent, and while that command runs there are processes that
//! have no name of ours. They are found by what each bears: the user that is the slot's alone, or the directory in its command line.
//!
//! The slot goes to the next sandbox when its session ends, and with it the user. So nothing looks for them any more once all were seen to
//! be gone, and who looks behind a session's back takes nothing that began after it.

use std::{
    ffi::OsString,
    io,
    os::{fd::AsFd, unix::ffi::OsStrExt, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout},
    time::{ClockId, clock_gettime},
};
use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use crate::process::may_be_killed_for_memory;

/// A killed process is gone within milliseconds.
const GONE_MS: u16 = 2_000;
/// Each round kills all that there are; what one of them started meanwhile is seen by the next.
const ROUNDS: usize = 50;

/// The processes of a sandbox. Dropping it ends them and waits for nothing.
#[derive(Debug)]
pub(super) struct Remains {
    uid: u32,
    /// The argument of `runsc` by which they are known.
    mark: OsString,
    /// Nobody is to look for them any more.
    released: bool,
}

impl Remains {
    pub(super) fn of(uid: u32, root: &Path) -> Self {
        let mut mark = OsString::from("--root=");
        mark.push(root);
        Self { uid, mark, released: false }
    }

    /// Those of a sandbox that an earlier process of ours started: they live on, until [`Self::end_on_drop`].
    pub(super) fn adopted(uid: u32, root: &Path) -> Self {
        let mut adopted = Self::of(uid, root);
        adopted.released = true;
        adopted
    }

    /// From here on, a drop ends them.
    pub(super) fn end_on_drop(&mut self) {
        self.released = false;
    }

    /// Lets them live on without us.
    pub(super) fn release(mut self) {
        self.released = true;
    }

    /// Finds them, on a thread that may block.
    pub(super) fn searcher(&self) -> Search {
        Search { uid: self.uid, mark: self.mark.clone(), begun_by: None }
    }

    /// All were seen to be gone: what has their user from now on is another sandbox's.
    pub(super) fn are_gone(&mut self) {
        self.released = true;
    }
}

impl Drop for Remains {
    fn drop(&mut self) {
        if self.released {
            return;
        }
        let search = Search { begun_by: Some(ticks_now()), ..self.searcher() };
        let reaper = std::thread::Builder::new().name("firkin-reaper".into());
        if let Err(error) = reaper.spawn(move || search.end()) {
            tracing::error!(uid = self.uid, %error, "cannot end what a sandbox leaves");
        }
    }
}

/// Finds them.
#[derive(Debug, Clone)]
pub(super) struct Search {
    uid: u32,
    mark: OsString,
    /// What began later is another's, by its user; in ticks since the host's start.
    begun_by: Option<u64>,
}

impl Search {
    /// Kills all and waits until there is none. Says whether that was seen. Blocks.
    pub(super) fn end(&self) -> bool {
        for _ in 0..ROUNDS {
            let found = match self.find() {
                Ok(found) if found.is_empty() => return true,
                Ok(found) => found,
                Err(error) => {
                    tracing::error!(uid = self.uid, %error, "cannot look for what a sandbox leaves");
                    return false;
                }
            };
            for pid in found {
                if let Err(error) = self.kill(pid) {
                    tracing::error!(uid = self.uid, %error, "cannot end a process of a sandbox");
                }
            }
        }
        tracing::error!(uid = self.uid, "a sandbox's processes do not end");
        false
    }

    /// Those that live. A zombie is its parent's to reap, which is not us.
    pub(super) fn find(&self) -> io::Result<Vec<Pid>> {
        let entries = fs_err::read_dir("/proc")?.flatten();
        let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok().and_then(Pid::from_raw));
        Ok(numbers.filter(|pid| self.is_ours(*pid)).collect())
    }

    /// Those that open files for the sandbox, and are none of its own.
    pub(super) fn gofers(&self) -> io::Result<Vec<u32>> {
        let pids = self.find()?.into_iter().filter_map(|pid| u32::try_from(pid.as_raw_nonzero().get()).ok());
        let is_gofer = |pid: &u32| {
            // One may have ended meanwhile.
            let line = fs_err::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).any(|word| word == b"gofer")
        };
        Ok(pids.filter(is_gofer).collect())
    }

    fn is_ours(&self, pid: Pid) -> bool {
        let process = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
        // Nobody's processes are root's, which is everybody's.
        let Ok(owner) = fs_err::metadata(&process).map(|process| process.uid()) else { return false };
        let stat = Stat::of(&process);
        let in_time = |begun: u64| self.begun_by.is_none_or(|by| begun <= by);
        let of_user = self.uid != 0 && owner == self.uid && stat.as_ref().is_some_and(|stat| in_time(stat.begun));
        // The command is root's until what it starts has the user. Of others the kernel may make whoever asks wait.
        let marked = || {
            if owner != 0 {
                return false;
            }
            let line = fs_err::read(process.join("cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).any(|word| word == self.mark.as_bytes())
        };
        (of_user || marked()) && stat.is_some_and(|stat| stat.lives)
    }

    /// Has what runs its guest's processes be ended before it when there is no memory, that of their group or that of the host: the sandbox
    /// `sandbox` loses a process by that, and not its life. What it starts later inherits it. Blocks.
    pub(super) fn prefer_for_memory(&self, sandbox: u32) -> io::Result<()> {
        for pid in self.find()?.into_iter().filter_map(|pid| u32::try_from(pid.as_raw_nonzero().get()).ok()) {
            if pid != sandbox {
                may_be_killed_for_memory(pid);
            }
        }
        Ok(())
    }

    fn kill(&self, pid: Pid) -> Result<(), Errno> {
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Err(Errno::SRCH) => return Ok(()),
            opened => opened?,
        };
        // The number may be another's by now. While the descriptor is held, it stays whose it is.
        if !self.is_ours(pid) {
            return Ok(());
        }
        match pidfd_send_signal(&pidfd, Signal::KILL) {
            Err(Errno::SRCH) => return Ok(()),
            sent => sent?,
        }
        let mut gone = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        let waited = nix::poll::poll(&mut gone, PollTimeout::from(GONE_MS));
        waited.map(drop).map_err(|errno| Errno::from_raw_os_error(errno as i32))
    }
}

/// Ticks since the host's start, as processes' beginnings are counted (proc_pid_stat(5)).
fn ticks_now() -> u64 {
    // It cannot fail for a clock that there is.
    let Ok(now) = clock_gettime(ClockId::CLOCK_BOOTTIME) else { return u64::MAX };
    let hertz = rustix::param::clock_ticks_per_second();
    let whole = u64::try_from(now.tv_sec()).unwrap_or_default().saturating_mul(hertz);
    whole.saturating_add(u64::try_from(now.tv_nsec()).unwrap_or_default().saturating_mul(hertz) / 1_000_000_000)
}

/// What the kernel says of a process.
struct Stat {
    lives: bool,
    /// In ticks since the host's start.
    begun: u64,
}

impl Stat {
    /// The field with a process's beginning, counted from the one behind its name.
    const BEGUN: usize = 19;

    fn of(process: &Path) -> Option<Self> {
        let stat = fs_err::read_to_string(process.join("stat")).ok()?;
        let (_, rest) = stat.rsplit_once(')')?;
        let mut fields = rest.split_ascii_whitespace();
        let state = fields.next()?;
        Some(Self { lives: !matches!(state, "Z" | "X"), begun: fields.nth(Self::BEGUN - 1)?.parse().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::process::CommandExt,
        process::{Child, Command},
    };

    use super::*;

    /// A user that nothing else on a host has.
    const UID: u32 = 3_999_999_999;

    /// A process of the user of a slot.
    fn of_slot() -> Child {
        Command::new("sleep").arg("600").uid(UID).spawn().unwrap()
    }

    #[test]
    #[expect(clippy::print_stderr, reason = "a skip is printed")]
    fn who_looks_behind_a_sandbox_takes_nothing_of_the_next_one_in_its_slot() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIP: another user's processes need root");
            return;
        }
        let remains = Remains::of(UID, Path::new("/nowhere"));
        let mut left = of_slot();
        let behind = Search { begun_by: Some(ticks_now()), ..remains.searcher() };
        while ticks_now() == behind.begun_by.unwrap() {
            std::thread::yield_now();
        }
        let mut next = of_slot();
        assert!(behind.end());
        assert!(!left.wait().unwrap().success(), "it was left, and is ended");
        assert!(next.try_wait().unwrap().is_none(), "it is the next sandbox's");
        assert!(remains.searcher().end(), "who has the slot ends all");
        next.wait().unwrap();
        remains.release();
    }

    #[test]
    fn a_process_began_before_now_and_lives() {
        let own = Stat::of(Path::new("/proc/self")).unwrap();
        assert!(own.lives && own.begun <= ticks_now());
        // Not more than a few years of ticks: the field is the right one.
        assert!(ticks_now() - own.begun < 100 * 60 * 60 * 24, "{} {}", own.begun, ticks_now());
    }
}
