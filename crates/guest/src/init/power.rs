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

/// How long processes may take to end by themselves.
const TERM_GRACE: Duration = Duration::from_secs(2);

/// How often it is looked whether they have.
const POLL_MS: u16 = 20;

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
    end(RebootMode::RB_POWER_OFF)
}

/// Ends the machine at once, in the way that says it failed.
pub(super) fn reset() {
    sync();
    end(RebootMode::RB_AUTOBOOT)
}

fn end(mode: RebootMode) -> ! {
    let error: Result<Infallible, Errno> = reboot(mode);
    // PID 1 may not return: the kernel's panic is the last way to end the machine.
    panic!("cannot end the machine: {error:?}");
}

/// Asks every process but this one to end, then makes it. The reaper collects them.
fn end_processes() {
    let everyone = Pid::from_raw(-1);
    if kill(everyone, Signal::SIGTERM) == Err(Errno::ESRCH) {
        return;
    }
    let deadline = Instant::now() + TERM_GRACE;
    while Instant::now() < deadline && kill(everyone, None) != Err(Errno::ESRCH) {
        // There is no event for "no process is left": the reaper may be collecting for somebody else.
        if nix::poll::poll(&mut [], POLL_MS).is_err() {
            break;
        }
    }
    if let Err(error) = kill(everyone, Signal::SIGKILL)
        && error != Errno::ESRCH
    {
        tracing::warn!(%error, "cannot kill the remaining processes");
    }
}
