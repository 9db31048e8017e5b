//! The control thread goes first.
//!
//! A machine that was restored has much to do at once: its devices tell of themselves, timers are due, the clock is wrong. None of it is
//! of use to anybody before the machine is who it shall be, and on a slow CPU becoming that would wait for all the rest.
#![expect(unsafe_code, reason = "neither nix nor rustix wraps the scheduler's policies, and musl's wrapper does nothing")]

use std::io;

use nix::libc::{SCHED_FIFO, SCHED_OTHER, SCHED_RESET_ON_FORK, SYS_sched_setscheduler, sched_param, syscall};

/// Above every thread that is not of real time (sched(7)).
const PRIORITY: i32 = 1;

/// Lets the calling thread run whenever it can. What it starts is as important as any other.
pub(super) fn before_others() -> io::Result<()> {
    set(SCHED_FIFO | SCHED_RESET_ON_FORK, PRIORITY)
}

/// Does work that takes long, and that others need not wait for.
pub(super) fn as_others<T>(work: impl FnOnce() -> T) -> T {
    let warn = |set: io::Result<()>| {
        if let Err(error) = set {
            tracing::warn!(%error, "cannot change how important the control thread is");
        }
    };
    warn(set(SCHED_OTHER, 0));
    let done = work();
    warn(before_others());
    done
}

fn set(policy: i32, priority: i32) -> io::Result<()> {
    // SAFETY: all zeros are a value of this plain struct, which is only read by the kernel during the call.
    let mut param: sched_param = unsafe { std::mem::zeroed() };
    param.sched_priority = priority;
    // SAFETY: thread 0 is the caller, and the pointer is to a `sched_param` that lives until the call returns.
    let result = unsafe { syscall(SYS_sched_setscheduler, 0, policy, std::ptr::from_ref(&param)) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
