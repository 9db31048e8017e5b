//! What two processes exchange: envd's messages, the control channel between host and guest, E2B's REST bodies.
//!
//! Definitions only. Nothing here opens a file or a socket, so both the static guest binary and the host link it.

pub mod control;
pub mod envd;
pub mod rest;
