//! Ending the machine.

use std::{
    convert::Infallible,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sys::{
        reboot::{RebootMode, reboot},
        signal::{Signal, kill},
    },
    unistd::{Pid, sync},
};

use crate::logging;

/// What Linux says on the console when it powers off, and what a container's engine looks for there.
const POWERED_OFF: &str = "reboot: Power down";

/// What Linux says when it restarts.
const RESET: &str = "reboot: Restarting system";

/// How long processes may take to end by themselves.
const TERM_GRACE: Duration = Duration::from_secs(2);

/// How often it is looked whether they have.
const POLL_MS: u16 = 20;

/// Marks threads of the kernel (`PF_KTHREAD` of `linux/sched.h`).
const PF_KTHREAD: u32 = 0x0020_0000;

/// Ends all processes, makes the disk consistent and powers off.
pub(crate) fn off() -> ! {
    end_processes();
    sync();
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    if let Err(error) = mount(None::<&str>, "/", None::<&str>, read_only, None::<&str>) {
        // During a probe, or when a process does not die. The file system has a journal.
        tracing::debug!(%error, "cannot make the root file system read-only");
    }
    sync();
    end(RebootMode::RB_POWER_OFF, POWERED_OFF, 0)
}

/// Ends the machine at once, in the way that says it failed.
pub(crate) fn reset() {
    sync();
    end(RebootMode::RB_AUTOBOOT, RESET, 1)
}

/// A container has no machine to end: its end is that of its first process, and the last line on its console says why. In a machine
/// that is the kernel's panic, the last way to end it.
#[expect(clippy::exit, reason = "PID 1 ends what it is PID 1 of")]
fn end(mode: RebootMode, last_words: &str, status: i32) -> ! {
    let Err(error): Result<Infallible, Errno> = reboot(mode);
    tracing::debug!(%error, "there is no machine to end");
    logging::complain(last_words);
    std::process::exit(status)
}

/// Asks every process but this one to end, then makes it. The reaper collects them.
fn end_processes() {
    let everyone = |signal| match kill(Pid::from_raw(-1), signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => tracing::warn!(%error, %signal, "cannot signal the remaining processes"),
    };
    if !others_run() {
        return;
    }
    everyone(Signal::SIGTERM);
    let deadline = Instant::now() + TERM_GRACE;
    while Instant::now() < deadline && others_run() {
        // There is no event for "no process is left": the reaper may be collecting for somebody else.
        if nix::poll::poll(&mut [], POLL_MS).is_err() {
            break;
        }
    }
    everyone(Signal::SIGKILL);
}

/// Whether a process runs beside this one. Threads of the kernel do not count, though signals "reach" them.
fn others_run() -> bool {
    let Ok(entries) = fs_err::read_dir("/proc") else { return false };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|&pid| pid != 1).any(|pid| fs_err::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| is_alive(&stat)))
}

/// Reads one `/proc/<pid>/stat` (proc(5)): neither a zombie nor of the kernel.
fn is_alive(stat: &str) -> bool {
    // The name, in parentheses, may hold anything; what follows the last one does not.
    let mut fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    let state = fields.next().unwrap_or("X");
    let flags: u32 = fields.nth(5).and_then(|flags| flags.parse().ok()).unwrap_or(PF_KTHREAD);
    !matches!(state, "Z" | "X") && flags & PF_KTHREAD == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zombies_and_kernel_threads_do_not_hold_the_machine() {
        assert!(is_alive("7 (a ) b) S 1 7 7 0 -1 4194304 1 2 3"));
        assert!(!is_alive("7 (sh) Z 1 7 7 0 -1 4194304 1 2 3"));
        assert!(!is_alive("2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0"));
        assert!(!is_alive("garbage"));
    }
}
