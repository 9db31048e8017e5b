//! gVisor as an engine: one sandbox of `runsc` per machine, for hosts without hardware virtualisation.
//!
//! A sandbox is a kernel in a process (the *sentry*), which serves the system calls of its guest's processes, and runs them at the
//! processor's own speed. What a guest writes, to memory or to its disk, is memory of that process, and a checkpoint is all of it: so a
//! snapshot's memory is in its state, and its disk's layers are marks ([`Marks`]).
//!
//! ```text
//!   boot:     bundle ─► runsc create ─► record ─► runsc start ─► running
//!   restore:  prove the state ─► bundle ─► runsc create ─► record ─► prepared ─► runsc restore, pause ─► paused
//! ```
//!
//! What a sandbox is started from is in its root image: a kernel and an initial file system have no meaning here. There is no network yet: a
//! guest has its loopback, and its agent the two pipes of its control channel.

mod channel;
mod command;
mod cost;
mod disk;
mod instance;
mod machine;
mod program;
mod remains;
mod sentry;
mod spec;
mod state;

pub use self::disk::Marks;
