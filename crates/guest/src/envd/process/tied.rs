//! A command that ends with the stream which started it: for what nobody comes back to, as a terminal of a page that was closed.
//!
//! Whoever reads the stream may be killed, or lose its network, and then says nothing. The end of the stream is what is always seen here; a
//! restore brings it about too, since the connections of the life before are cut.

use std::sync::Arc;

use nix::sys::signal::Signal;

use super::Process;

/// Kills the command's group when it is dropped, unless the command has ended or was let go.
#[derive(Debug)]
pub(super) struct Tie(Option<Arc<Process>>);

impl Tie {
    /// Of this command to its stream.
    pub(super) fn of(process: Arc<Process>) -> Self {
        Self(Some(process))
    }

    /// Lets the command go on.
    pub(super) fn release(mut self) {
        self.0 = None;
    }
}

impl Drop for Tie {
    fn drop(&mut self) {
        if let Some(process) = &self.0
            && process.is_running()
            && let Err(error) = process.signal(Signal::SIGKILL)
        {
            tracing::warn!(pid = process.pid, %error, "cannot kill a process whose stream has ended");
        }
    }
}
