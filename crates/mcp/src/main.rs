//! The MCP gateway: one streamable HTTP endpoint inside a sandbox, behind which are tool servers that run as children, and
//! tools for the sandbox itself.
//!
//! E2B's SDKs start it as root, `mcp-gateway --config JSON`, and wait for its end: so it starts a copy of itself, waits until that
//! answers or says why it cannot, and ends with the status that tells.

mod args;
mod catalogue;
mod config;
mod detach;
mod gateway;
mod limits;
mod sandbox;
mod serve;
mod token;
mod upstream;

use std::process::ExitCode;

use args::Mode;
use firkin_causes::chain;

fn main() -> ExitCode {
    let outcome = match args::parse(std::env::args().skip(1)) {
        Ok(Mode::Version) => {
            say(concat!("mcp-gateway ", env!("CARGO_PKG_VERSION")));
            Ok(())
        }
        Ok(Mode::Start { config }) => detach::start(&config).map_err(|error| chain(&error)),
        Ok(Mode::Serve) => serve::run(),
        Ok(Mode::Pull { names }) => catalogue::pull(&names).map_err(|error| chain(&error)),
        Err(error) => Err(format!("{error}\nusage: {}", args::USAGE)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            complain(&message);
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "the version is what was asked for")]
fn say(line: &str) {
    println!("{line}");
}

#[expect(clippy::print_stderr, reason = "the SDK shows what a failed start said here")]
fn complain(message: &str) {
    eprintln!("{message}");
}
