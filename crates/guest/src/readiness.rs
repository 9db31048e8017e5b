//! Descriptors that the runtime can wait for: terminals and inotify queues.
#![expect(unsafe_code, reason = "registering a descriptor with the runtime is an unsafe call")]

use std::{io, os::fd::OwnedFd};

use tokio::io::unix::AsyncFd;

/// Registers a non-blocking descriptor with the runtime it is called in.
pub(crate) fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the owned descriptor is moved into the result, which is never asked to give it back mutably, so it stays open
    // and the same for as long as it is registered.
    Ok(unsafe { AsyncFd::register(fd) }?)
}
