//! The process group of a kernel, or of what kernels are forked from: what is signalled, since either may have children.

use nix::{
    errno::Errno,
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

/// A process group, to be signalled.
#[derive(Debug, Clone, Copy)]
pub(super) struct Group(pub(super) Pid);

impl Group {
    /// Sends a signal. A group that is gone has done what the signal was for.
    pub(super) fn signal(self, signal: Signal) {
        match killpg(self.0, signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => tracing::warn!(group = %self.0, %error, "cannot signal a kernel"),
        }
    }
}
