//! `firkin warden`: what a node of a cluster starts, and nobody else. It stops machines when the node's lease is over, also when its server is gone.

use std::{io, os::unix::process::CommandExt as _, path::Path, process::Command};

use anyhow::Context as _;

use crate::{args::node::WardenArgs, failure::ExitStatus, logging, logging::LogFormat};

/// Its name among commands.
const NAME: &str = "warden";

/// Watches until there is nothing to watch. Before any thread is there, and without what other commands need.
pub(crate) fn run(args: &WardenArgs) -> anyhow::Result<ExitStatus> {
    logging::begin("info", args.log_format.unwrap_or_default());
    firkin_warden::run(&args.page).context("the warden of this node ended").map(|_| ExitStatus::Success)
}

/// This program as the warden of the node with this page.
pub(crate) fn program(page: &Path, format: LogFormat) -> io::Result<Command> {
    // The program itself, also where its file was replaced by another version since.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("firkin").arg(NAME).arg("--page").arg(page);
    if format == LogFormat::Json {
        command.args(["--log-format", "json"]);
    }
    Ok(command)
}
