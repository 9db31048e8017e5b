//! Starting in the background: the caller's process ends when the gateway answers, or with the reason why it does not.
//!
//! The copy is a process of its own from the beginning, not a fork of this one: a fork would have to come before every thread.
//! It reads its configuration from its standard input, where no other user sees it, and says one line on its standard output.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    process::{Child, Command, Stdio},
};

use fs_err as fs;

use crate::{args::SERVE, config};

/// Where the gateway and its servers write what they complain about.
const LOG: &str = "/var/log/mcp-gateway.log";

/// The line that says that clients are served.
pub(crate) const READY: &str = "ready";

/// The longest line that is read from the copy.
const MAX_LINE_BYTES: u64 = 64 << 10;

/// Why there is no gateway.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// The configuration is not one.
    #[error(transparent)]
    Config(#[from] config::ConfigError),
    /// The log cannot be written.
    #[error("cannot open the log of the MCP gateway")]
    Log(#[source] io::Error),
    /// No copy runs.
    #[error("cannot start the MCP gateway in the background")]
    Spawn(#[source] io::Error),
    /// It did not take its configuration, or said nothing.
    #[error("cannot speak with the MCP gateway that was started")]
    Pipe(#[source] io::Error),
    /// It ended, or said why it will.
    #[error("{0}")]
    Refused(String),
}

/// Starts a gateway in the background and returns once it serves.
pub(crate) fn start(config: &str) -> Result<(), StartError> {
    // What is wrong with the words is told before anything happens.
    config::parse(config)?;
    let log = fs::OpenOptions::new().create(true).append(true).open(LOG).map_err(StartError::Log)?;
    let program = std::env::current_exe().map_err(StartError::Spawn)?;
    let mut copy = Command::new(program)
        .arg(SERVE)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(log.into_parts().0)
        .spawn()
        .map_err(StartError::Spawn)?;
    let line = exchange(&mut copy, config).map_err(StartError::Pipe)?;
    match line.trim_end() {
        READY => Ok(()),
        "" => Err(StartError::Refused(format!("cannot tell why the MCP gateway ended; `{LOG}` may say more"))),
        reason => Err(StartError::Refused(reason.to_owned())),
    }
}

/// Gives the copy its configuration and reads its one line.
fn exchange(copy: &mut Child, config: &str) -> io::Result<String> {
    if let Some(mut input) = copy.stdin.take() {
        input.write_all(config.as_bytes())?;
    }
    let mut line = String::new();
    if let Some(output) = copy.stdout.take() {
        BufReader::new(output.take(MAX_LINE_BYTES)).read_line(&mut line)?;
    }
    Ok(line)
}
