//! Room for a cut: a sandbox may write larger files then than while its guest runs.
//!
//! What a guest writes to its root disk is bounded by the largest file that its sandbox may write, and a checkpoint, which the sandbox writes
//! too, has disk and memory in one file.

use std::io;

use rustix::{
    io::Errno,
    process::{Pid, Resource, Rlimit, prlimit},
};

use super::spec::Options;

/// A sandbox with that room, until this is dropped.
#[derive(Debug)]
pub(super) struct Room {
    pid: Pid,
    usual: Rlimit,
}

impl Room {
    /// None: its files have no bound.
    pub(super) fn make(pid: u32, options: Options) -> io::Result<Option<Self>> {
        let Some(usual) = options.most_file_bytes() else { return Ok(None) };
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
        prlimit(Some(pid), Resource::Fsize, Rlimit { current: usual.maximum, maximum: usual.maximum })?;
        Ok(Some(Self { pid, usual }))
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        match prlimit(Some(self.pid), Resource::Fsize, self.usual) {
            Ok(_) | Err(Errno::SRCH) => {}
            Err(error) => tracing::warn!(%error, "a sandbox's files are bounded as while it was cut"),
        }
    }
}
