//! What keeps the warden running when the host is short of something, and what of it this host does not give.

use std::fmt;

use nix::{
    errno::Errno,
    sys::mman::{MlockAllFlags, mlockall},
    unistd::setsid,
};

/// Never chosen when the host has no memory left. To go below what one was given takes `CAP_SYS_RESOURCE`.
const OOM_SCORE: &str = "-1000";

/// The most favourable there is. Takes `CAP_SYS_NICE`.
const NICE: i32 = -20;

/// Something that the warden has to do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lack {
    /// It has the session of whoever started it, and ends with that.
    Session(Errno),
    /// It can be paged out, so that it may come late on a host that swaps: the limit on locked memory is too low, and there is no
    /// `CAP_IPC_LOCK`.
    LockedMemory(Errno),
    /// It may be killed when the host has no memory left: there is no `CAP_SYS_RESOURCE`.
    OomScore,
    /// It gets no more of the processors than others: there is no `CAP_SYS_NICE`.
    Priority,
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Session(_) => "it has no session of its own, and may end with its server's",
            Self::LockedMemory(_) => "its memory is not locked (CAP_IPC_LOCK, or a higher limit on locked memory): where the host swaps, it may be late",
            Self::OomScore => "it may be killed when the host has no memory left (CAP_SYS_RESOURCE)",
            Self::Priority => "it is no more urgent than others (CAP_SYS_NICE)",
        })
    }
}

/// Takes what there is, and gives what there is not.
pub(crate) fn take() -> Vec<Lack> {
    let mut lacks = Vec::new();
    // Whoever leads a group is nobody's child in it any more, so it leads its session too, or cannot.
    if let Err(errno) = setsid() {
        lacks.push(Lack::Session(errno));
    }
    if let Err(errno) = mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE) {
        lacks.push(Lack::LockedMemory(errno));
    }
    if fs_err::write("/proc/self/oom_score_adj", OOM_SCORE).is_err() {
        lacks.push(Lack::OomScore);
    }
    if rustix::process::setpriority_process(None, NICE).is_err() {
        lacks.push(Lack::Priority);
    }
    lacks
}
