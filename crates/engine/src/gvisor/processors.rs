//! How many processors a guest sees: there is no flag for it, and a sandbox counts those that it may run on when it starts.
//!
//! So it starts on that many, and may run on all of the host's as soon as it has counted: which they are is for the host's scheduler to
//! decide, and how much of them it gets for its control group.

use std::io;

use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

/// Threads start others while they are gone through: what these start later has what they have by then.
const ROUNDS: usize = 3;

/// The processors to start on: so many of those that this process may use, from a place on that is `at`'s own.
pub(super) fn to_start_on(count: u32, at: u32) -> io::Result<CpuSet> {
    let usable = sched_getaffinity(Pid::from_raw(0))?;
    let all: Vec<usize> = (0..CpuSet::count()).filter(|cpu| usable.is_set(*cpu).unwrap_or(false)).collect();
    let mut chosen = CpuSet::new();
    let count = usize::try_from(count).unwrap_or(usize::MAX).clamp(1, all.len());
    for cpu in all.iter().cycle().skip(at as usize % all.len()).take(count) {
        chosen.set(*cpu)?;
    }
    Ok(chosen)
}

/// Lets the processes of a sandbox run wherever this one may. One that has ended meanwhile needs nothing.
pub(super) fn let_run_everywhere(pids: impl Iterator<Item = i32> + Clone) -> io::Result<()> {
    let everywhere = sched_getaffinity(Pid::from_raw(0))?;
    for _ in 0..ROUNDS {
        let tasks = pids.clone().filter_map(|pid| fs_err::read_dir(format!("/proc/{pid}/task")).ok()).flatten().flatten();
        for task in tasks.filter_map(|task| task.file_name().to_str()?.parse().ok()) {
            match sched_setaffinity(Pid::from_raw(task), &everywhere) {
                Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(set: CpuSet) -> usize {
        (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap()).count()
    }

    #[test]
    fn a_guest_starts_on_as_many_as_it_is_to_see() {
        let all = count(sched_getaffinity(Pid::from_raw(0)).unwrap());
        for at in 0..3 {
            assert_eq!(count(to_start_on(1, at).unwrap()), 1);
            assert_eq!(count(to_start_on(4096, at).unwrap()), all, "more than there are is all of them");
        }
    }
}
