//! The `firkin` command: arguments are parsed, then resolved, then one match runs the command.
//!
//! Glue over libraries. Only this crate prints; what a command found out goes to standard output, everything else to standard
//! error.

mod api;
mod args;
mod capacity;
mod command;
mod envd;
mod failure;
mod host;
mod hostnames;
mod images;
mod output;
mod progress;
mod rates;
mod secretfile;
mod serverfile;
mod settings;
mod standard;
mod terminal;

use std::{process::ExitCode, time::Duration};

use args::{Cli, Command, KeyCommand, TemplateCommand};
use clap::Parser as _;
use failure::ExitStatus;
use settings::Settings;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors, and nobody is left to tell when the output is gone.
            drop(error.print());
            return if error.use_stderr() { ExitStatus::Usage } else { ExitStatus::Success }.into();
        }
    };
    // Before anything is written: names, tokens, memory and files of users are nobody else's on this host. Programs that are run
    // get the usual mask back.
    nix::sys::stat::umask(nix::sys::stat::Mode::S_IRWXG | nix::sys::stat::Mode::S_IRWXO);
    let settings = settings::resolve(&cli, &settings::Surroundings::of_process());
    log_to_stderr(&cli.command);
    if hosts(&cli.command) {
        raise_descriptors();
    }
    let status = match tokio::runtime::Runtime::new() {
        Ok(runtime) => {
            let patience = patience(&cli.command);
            let result = runtime.block_on(run(cli, &settings));
            runtime.shutdown_timeout(patience);
            result
        }
        Err(error) => Err(anyhow::Error::from(error).context("cannot start the runtime")),
    };
    let status = status.unwrap_or_else(|error| {
        if !output::is_broken_pipe(&error) {
            output::note(failure::render(&error).trim_end());
        }
        failure::status_of(&error)
    });
    status.into()
}

/// Takes as many descriptors as this process may have: shells give few, and each connection and machine takes some.
fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, "cannot raise the limit of open files; fewer connections are served");
    }
}

/// How long tasks may take to let go of what they hold once a command is over. Machines die with their tasks; a client's only
/// leftover is a read of standard input, which must not hold the end up.
fn patience(command: &Command) -> Duration {
    if hosts(command) { Duration::from_secs(5) } else { Duration::ZERO }
}

/// Whether a command runs machines in this process.
fn hosts(command: &Command) -> bool {
    match command {
        Command::Up(_) | Command::Quickstart(_) | Command::Bench(_) => true,
        Command::Template(TemplateCommand::Build(_) | TemplateCommand::Refresh(_)) => true,
        Command::Doctor(_) | Command::Env | Command::Verify | Command::Sandbox(_) | Command::Template(_) => false,
        Command::Audit(_) | Command::Team(_) | Command::Key(_) => false,
    }
}

/// A server tells what it does; other commands only what goes wrong. `FIRKIN_LOG` asks for more.
fn log_to_stderr(command: &Command) {
    let level = if matches!(command, Command::Up(_)) { "info" } else { "warn" };
    let filter = tracing_subscriber::EnvFilter::try_from_env("FIRKIN_LOG").unwrap_or_else(|_| level.into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
}

async fn run(cli: Cli, settings: &Settings) -> anyhow::Result<ExitStatus> {
    match cli.command {
        Command::Up(_) => command::up::run(settings).await,
        Command::Quickstart(_) => command::quickstart::run(settings).await,
        Command::Doctor(args) => command::doctor::run(settings, &args).await,
        Command::Bench(args) => Box::pin(command::bench::run(settings, args)).await,
        Command::Env => command::env::run(settings, cli.global.json),
        Command::Verify => command::verify::run(settings).await,
        Command::Sandbox(command) => command::sandbox::run(settings, command).await,
        Command::Template(TemplateCommand::Build(args)) => command::template::build(settings, args).await,
        Command::Template(TemplateCommand::Refresh(args)) => command::template::refresh(settings, args).await,
        Command::Template(TemplateCommand::Ls) => command::template::list(settings).await,
        Command::Template(TemplateCommand::Rm(args)) => command::template::remove(settings, args).await,
        Command::Audit(args) => command::audit::run(settings, &args),
        Command::Team(command) => command::team::run(settings, command).await,
        Command::Key(KeyCommand::Rotate(_)) => command::key::rotate(settings).await,
        Command::Key(KeyCommand::Add(args)) => command::api_key::add(settings, args).await,
        Command::Key(KeyCommand::Ls(args)) => command::api_key::list(settings, args).await,
        Command::Key(KeyCommand::Revoke(args)) => command::api_key::revoke(settings, args).await,
        Command::Key(KeyCommand::Expire(args)) => command::api_key::expire(settings, args).await,
    }
}
