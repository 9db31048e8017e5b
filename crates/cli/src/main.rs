//! The `firkin` command: arguments are parsed, then resolved, then one match runs the command.
//!
//! Glue over libraries. Only this crate prints; what a command found out goes to standard output, everything else to standard
//! error.

mod about;
mod api;
mod args;
mod capacity;
mod catalog;
mod cluster;
mod command;
mod config;
mod copies;
mod envd;
mod failure;
mod host;
mod hostnames;
mod images;
mod interrupts;
mod logging;
mod output;
mod progress;
mod rates;
mod secretfile;
mod serverfile;
mod service;
mod settings;
mod standard;
mod stream;
mod terminal;

use std::{process::ExitCode, time::Duration};

use args::{Command, KeyCommand, TemplateCommand, configuring::ConfigCommand};
use command::moving::Kind;
use config::Line;
use failure::ExitStatus;
use firkin_traces::{Sending, Traces};
use service::Handed;
use settings::{Settings, Surroundings};
use tokio_util::sync::CancellationToken;

fn main() -> ExitCode {
    let line = match config::line() {
        Ok(line) => line,
        Err(misread) => return if misread.print() { ExitStatus::Usage } else { ExitStatus::Success }.into(),
    };
    if let Command::Warden(args) = &line.cli.command {
        return ended(command::warden::run(args));
    }
    // Before anything is written: names, tokens, memory and files of users are nobody else's on this host. Programs that are run
    // get the usual mask back.
    nix::sys::stat::umask(nix::sys::stat::Mode::S_IRWXG | nix::sys::stat::Mode::S_IRWXO);
    let state_dir_from_file = line.told.from_file.iter().any(|key| key == "state-dir");
    let handed = match handed(&line.cli.command) {
        Ok(handed) => handed,
        Err(error) => {
            output::note(failure::render(&error.into()).trim_end());
            return ExitStatus::Failure.into();
        }
    };
    let around = Surroundings { state_dir_from_file, handed: handed.addresses(), ..Surroundings::of_process() };
    let settings = settings::resolve(&line.cli, &around);
    let spans = log_to_stderr(&line.cli.command, &settings);
    if hosts(&line.cli.command) {
        raise_descriptors();
    }
    let status = match tokio::runtime::Runtime::new() {
        Ok(runtime) => {
            let patience = patience(&line.cli.command);
            let result = runtime.block_on(run(line, handed, &settings, spans));
            runtime.shutdown_timeout(patience);
            result
        }
        Err(error) => Err(anyhow::Error::from(error).context("cannot start the runtime")),
    };
    ended(status)
}

/// Tells what went wrong, if anything did.
fn ended(status: anyhow::Result<ExitStatus>) -> ExitCode {
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

/// The sockets that are for the server that this process is to be.
fn handed(command: &Command) -> Result<Handed, service::HandedError> {
    if matches!(command, Command::Up(_)) { Handed::of_process() } else { Ok(Handed::default()) }
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
        Command::Doctor(_)
        | Command::Env
        | Command::Verify(_)
        | Command::Sandbox(_)
        | Command::Template(_)
        | Command::Snapshot(_) => false,
        Command::Audit(_) | Command::Team(_) | Command::Key(_) | Command::RestoreFrom(_) => false,
        Command::Events(_) | Command::Top | Command::Webhook(_) | Command::Completions(_) | Command::Config(_) => false,
        Command::Man(_) | Command::LogLevel(_) | Command::UpgradeCheck | Command::Cluster(_) | Command::Node(_) => false,
        Command::Warden(_) => false,
    }
}

/// A server tells what it does; other commands only what goes wrong. `FIRKIN_LOG` asks for more. Gives what sends spans, where they are to be
/// sent.
fn log_to_stderr(command: &Command, settings: &Settings) -> Option<(Traces, Sending)> {
    let level = if matches!(command, Command::Up(_)) { "info" } else { "warn" };
    let Some(collector) = settings.collector.clone() else {
        logging::begin(level, settings.log_format);
        return None;
    };
    Some(logging::begin_with_traces(level, settings.log_format, collector))
}

/// Runs the command. What of spans is left when it is over is sent then, for as long as that may take.
async fn run(line: Line, handed: Handed, settings: &Settings, spans: Option<(Traces, Sending)>) -> anyhow::Result<ExitStatus> {
    let (traces, sending) = spans.unzip();
    let ending = CancellationToken::new();
    let sending = sending.map(|sending| tokio::spawn(sending.run(ending.clone())));
    let outcome = Box::pin(carry_out(line, handed, settings, traces)).await;
    ending.cancel();
    if let Some(task) = sending
        && task.await.is_err()
    {
        tracing::error!("the task that sends spans fell: the last of them are lost");
    }
    outcome
}

async fn carry_out(
    Line { cli, told }: Line,
    handed: Handed,
    settings: &Settings,
    traces: Option<Traces>,
) -> anyhow::Result<ExitStatus> {
    match cli.command {
        Command::UpgradeCheck => command::upgrade_check::run(settings),
        Command::Config(ConfigCommand::Check(args)) => command::config::check(settings, &args, cli.global.config.as_deref()),
        Command::Config(ConfigCommand::Show(_)) => command::config::show(settings, &told),
        Command::Config(ConfigCommand::Example) => command::config::example(),
        Command::Up(_) => command::up::run(settings, handed, traces).await,
        Command::Quickstart(_) => command::quickstart::run(settings, traces).await,
        Command::Doctor(args) => command::doctor::run(settings, &args).await,
        Command::Bench(args) => Box::pin(command::bench::run(settings, args)).await,
        Command::Env => command::env::run(settings, cli.global.json),
        Command::Verify(_) => command::verify::run(settings).await,
        Command::Cluster(command) => command::cluster::run(settings, command).await,
        Command::Node(command) => command::node::run(settings, command).await,
        Command::Warden(args) => command::warden::run(&args),
        Command::RestoreFrom(args) => command::restore_from::run(settings, args).await,
        Command::Sandbox(command) => command::sandbox::run(settings, command).await,
        Command::Template(TemplateCommand::Build(args)) => Box::pin(command::template::build(settings, args)).await,
        Command::Template(TemplateCommand::Refresh(args)) => command::template::refresh(settings, args).await,
        Command::Template(TemplateCommand::Ls) => command::template::list(settings).await,
        Command::Template(TemplateCommand::Rm(args)) => command::template::remove(settings, args).await,
        Command::Template(TemplateCommand::Export(args)) => command::moving::export(settings, Kind::Template, args).await,
        Command::Template(TemplateCommand::Import(args)) => command::moving::import_named(settings, Kind::Template, args).await,
        Command::Snapshot(command) => command::moving::run(settings, command).await,
        Command::Events(args) => command::events::run(settings, args).await,
        Command::Top => command::top::run(settings).await,
        Command::Webhook(command) => command::webhook::run(settings, command).await,
        Command::Completions(args) => command::pages::completions(&args),
        Command::Man(args) => command::pages::man(&args),
        Command::LogLevel(args) => command::log_level::run(settings, &args).await,
        Command::Audit(args) => command::audit::run(settings, &args),
        Command::Team(command) => command::team::run(settings, command).await,
        Command::Key(KeyCommand::Rotate(_)) => command::key::rotate(settings).await,
        Command::Key(KeyCommand::Add(args)) => command::api_key::add(settings, args).await,
        Command::Key(KeyCommand::Ls(args)) => command::api_key::list(settings, args).await,
        Command::Key(KeyCommand::Revoke(args)) => command::api_key::revoke(settings, args).await,
        Command::Key(KeyCommand::Expire(args)) => command::api_key::expire(settings, args).await,
    }
}
