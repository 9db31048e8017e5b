//! The code interpreter through its own port: the binary in its stand-alone mode, driven by plain HTTP.
//!
//! Bash needs Debian's python3; JavaScript needs node; Python needs IPython too. What a host lacks is a printed skip; real
//! sandboxes have all of it (tests/conformance/interpreter).
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod cells;
mod contexts;
mod harness;
mod javascript;
mod lives;
mod values;
