//! Messages between processes: envd's, the control channel of host and guest, E2B's REST bodies.
//!
//! Definitions only. Nothing here opens a file or a socket, so both the static guest binary and the host link it.

pub mod builds;
pub mod control;
pub mod envd;
pub mod forward;
pub mod fuse;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod head;
pub mod headers;
pub mod nonce;
pub mod rest;
pub mod secret;
pub mod signals;
#[cfg(feature = "unread")]
pub mod unread;

/// The envd version whose contract the guest serves; SDKs gate features on it.
pub const ENVD_VERSION: &str = "0.6.13";

/// The TCP port on which envd listens inside a sandbox.
pub const ENVD_PORT: u16 = 49983;

/// The user of requests and commands that name none, as E2B's images have it.
pub const DEFAULT_USER: &str = "user";

/// The TCP port on which the code interpreter listens inside a sandbox that has one.
pub const INTERPRETER_PORT: u16 = 49999;

/// Where the code interpreter's guest has the programs of its kernels: a file system in memory.
pub const KERNELS_DIR: &str = "/run/firkin-kernels";
