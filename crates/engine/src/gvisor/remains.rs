//! What a sandbox leaves on its host: processes of its user, and of its directory while they are not yet its user's.
//!
//! `runsc` starts a sandbox from a command that ends, so nobody is its parent, and while that command runs there are processes that
//! have no name of ours. They are found by what each bears: the user that is the slot's alone, or the directory in its command line.

use std::{
    ffi::OsString,
    io,
    os::{fd::AsFd, unix::ffi::OsStrExt, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

use nix::poll::{PollFd, PollFlags, PollTimeout};
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
        Search { uid: self.uid, mark: self.mark.clone() }
    }
}

impl Drop for Remains {
    fn drop(&mut self) {
        if self.released {
            return;
        }
        let search = self.searcher();
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
}

impl Search {
    /// Kills all and waits until there is none. Blocks.
    pub(super) fn end(&self) {
        for _ in 0..ROUNDS {
            let found = match self.find() {
                Ok(found) if found.is_empty() => return,
                Ok(found) => found,
                Err(error) => return tracing::error!(uid = self.uid, %error, "cannot look for what a sandbox leaves"),
            };
            for pid in found {
                if let Err(error) = self.kill(pid) {
                    tracing::error!(uid = self.uid, %error, "cannot end a process of a sandbox");
                }
            }
        }
        tracing::error!(uid = self.uid, "a sandbox's processes do not end");
    }

    /// Those that live. A zombie is its parent's to reap, which is not us.
    pub(super) fn find(&self) -> io::Result<Vec<Pid>> {
        let entries = fs_err::read_dir("/proc")?.flatten();
        let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok().and_then(Pid::from_raw));
        Ok(numbers.filter(|pid| self.is_ours(*pid)).collect())
    }

    fn is_ours(&self, pid: Pid) -> bool {
        let process = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
        // Nobody's processes are root's, which is everybody's.
        let Ok(owner) = fs_err::metadata(&process).map(|process| process.uid()) else { return false };
        let of_user = self.uid != 0 && owner == self.uid;
        // The command is root's until what it starts has the user. Of others the kernel may make whoever asks wait.
        let marked = || {
            if owner != 0 {
                return false;
            }
            let line = fs_err::read(process.join("cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).any(|word| word == self.mark.as_bytes())
        };
        (of_user || marked()) && lives(&process)
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

fn lives(process: &Path) -> bool {
    let stat = fs_err::read_to_string(process.join("stat")).unwrap_or_default();
    let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}
