//! Where the agent's words go: standard error, which as PID 1 is the kernel's console.
//!
//! Warnings and worse by default: under emulation each console line costs the guest milliseconds.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use tracing_subscriber::EnvFilter;

/// Starts logging to standard error, at `warn` unless `RUST_LOG` says otherwise.
pub(crate) fn start() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(false).with_target(false).init();
}

/// Writes one line to standard output; fails when nobody can read it.
pub(crate) fn say(line: &str) -> ExitCode {
    match writeln!(io::stdout(), "{line}").and_then(|()| io::stdout().flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Writes one line to standard error. There is nobody to tell when that fails.
pub(crate) fn complain(line: &str) {
    writeln!(io::stderr(), "{line}").ok();
}
