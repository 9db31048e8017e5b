//! envd through its own port: the binary in its stand-alone mode, driven by a Connect client and by plain HTTP.
//!
//! Needs nothing but the binary and a shell. As root the commands run as `root`, otherwise as whoever runs the tests.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod files;
mod filesystem;
mod forward;
mod harness;
mod http;
mod process;
