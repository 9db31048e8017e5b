//! `firkin sandbox exec` and `shell`: a process in a sandbox, joined to this terminal or to these pipes.

use std::{
    collections::HashMap,
    io::{self, Write as _},
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use firkin_wire::rest::SandboxState;
use tokio::{
    io::AsyncReadExt as _,
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};

use crate::{
    api::Api,
    args::{ExecArgs, ShellArgs},
    envd::{Access, CommandLine, Input, Output, Process, Processes},
    failure::{Advise as _, ExitStatus},
    settings::Settings,
    terminal,
};

/// How much input is sent in one message.
const INPUT_CHUNK: usize = 32 << 10;

/// `firkin sandbox exec`
pub(crate) async fn exec(api: &Api, settings: &Settings, args: ExecArgs) -> anyhow::Result<ExitStatus> {
    if args.tty && !settings.stdin_tty {
        return Err(anyhow!("standard input is not a terminal")).hint("leave `--tty` out to use pipes");
    }
    let processes = processes(api, &args.id, &args.user).await?;
    let mut command = CommandLine {
        argv: args.command,
        env: if args.tty { terminal_env() } else { HashMap::new() },
        cwd: args.cwd,
        pty: args.tty.then(terminal::size),
        stdin: !settings.stdin_tty,
        timeout: args.timeout.map(|seconds| Duration::from_secs(seconds.into())),
        ends_with_stream: false,
    };
    command.env.extend(args.env);
    let process = processes.start(&command).await?;
    match (args.tty, settings.stdin_tty) {
        (true, _) => on_terminal(process).await,
        (false, stdin_tty) => on_pipes(process, !stdin_tty).await,
    }
}

/// `firkin sandbox shell`
pub(crate) async fn shell(api: &Api, settings: &Settings, args: ShellArgs) -> anyhow::Result<ExitStatus> {
    if !settings.stdin_tty {
        return Err(anyhow!("standard input is not a terminal")).hint("`firkin sandbox exec ID -- CMD` needs none");
    }
    let processes = processes(api, &args.id, &args.user).await?;
    let command = CommandLine {
        argv: ["/bin/bash", "-i", "-l"].map(str::to_owned).to_vec(),
        env: terminal_env(),
        cwd: args.cwd,
        pty: Some(terminal::size()),
        stdin: true,
        timeout: None,
        // Nobody can come back to it.
        ends_with_stream: true,
    };
    on_terminal(processes.start(&command).await?).await
}

/// The processes of a running sandbox.
pub(super) async fn processes(api: &Api, id: &str, user: &str) -> anyhow::Result<Processes> {
    let sandbox = api.sandbox(id).await?;
    match sandbox.listed.state {
        SandboxState::Running => {}
        SandboxState::Paused => {
            return Err(anyhow!("sandbox `{id}` is paused")).hint(format!("`firkin sandbox resume {id}` continues it"));
        }
    }
    let access = Access { sandbox_id: id, token: sandbox.envd_access_token.as_deref(), user: Some(user) };
    Processes::new(api.target(), &access)
}

/// Environment for programs on a terminal.
fn terminal_env() -> HashMap<String, String> {
    let term = std::env::var("TERM").unwrap_or_else(|_| "xterm-256color".to_owned());
    [("TERM", term.as_str()), ("LANG", "C.UTF-8"), ("LC_ALL", "C.UTF-8")]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
}

/// Output to our output, our input to its input; the first Ctrl-C asks the process to end, the second leaves it alone.
async fn on_pipes(mut process: Process, send_input: bool) -> anyhow::Result<ExitStatus> {
    let mut interrupts = signal(SignalKind::interrupt()).context("cannot listen for Ctrl-C")?;
    let mut pumps = JoinSet::new();
    if send_input {
        pumps.spawn(pump(process.input()));
    }
    let mut interrupted = false;
    loop {
        tokio::select! {
            output = process.next() => if let Some(status) = copy(output?)? { return Ok(status) },
            _ = interrupts.recv() => {
                if interrupted {
                    return Ok(ExitStatus::Interrupted);
                }
                interrupted = true;
                process.input().terminate().await?;
            }
            Some(ended) = pumps.join_next() => ended.context("the copy of standard input ended badly")??,
        }
    }
}

/// The whole terminal, in raw mode, until the process ends or we are told to.
async fn on_terminal(mut process: Process) -> anyhow::Result<ExitStatus> {
    let mut resized = signal(SignalKind::window_change()).context("cannot listen for size changes")?;
    let mut told_to_end = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut hung_up = signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?;
    let input = process.input();
    let _raw = terminal::Raw::enter()?;
    let mut pumps = JoinSet::new();
    pumps.spawn(pump(process.input()));
    loop {
        tokio::select! {
            output = process.next() => if let Some(status) = copy(output?)? { return Ok(status) },
            _ = resized.recv() => input.resize(terminal::size()).await?,
            _ = told_to_end.recv() => return Ok(ExitStatus::Interrupted),
            _ = hung_up.recv() => return Ok(ExitStatus::Interrupted),
            Some(ended) = pumps.join_next() => ended.context("the copy of the keyboard ended badly")??,
        }
    }
}

/// Sends standard input until it ends. A process that has ended already wants no more of it.
async fn pump(input: Input) -> anyhow::Result<()> {
    let mut stdin = tokio::io::stdin();
    let mut buffer = vec![0; INPUT_CHUNK];
    loop {
        let n = stdin.read(&mut buffer).await.context("cannot read standard input")?;
        let sent = if n == 0 { input.close().await } else { input.send(buffer[..n].to_vec()).await };
        if n == 0 || sent.is_err() {
            // The process's own end, or the break of its stream, is what gets reported.
            return Ok(());
        }
    }
}

/// Writes output where it belongs. `Some` at the end.
fn copy(output: Output) -> anyhow::Result<Option<ExitStatus>> {
    match output {
        Output::Stdout(bytes) => {
            let mut stdout = io::stdout().lock();
            stdout.write_all(&bytes).and_then(|()| stdout.flush()).context("cannot write to standard output")?;
        }
        Output::Stderr(bytes) => {
            let mut stderr = io::stderr().lock();
            stderr.write_all(&bytes).and_then(|()| stderr.flush()).context("cannot write to standard error")?;
        }
        Output::End(0) => return Ok(Some(ExitStatus::Success)),
        Output::End(status) => return Ok(Some(ExitStatus::Command(status))),
    }
    Ok(None)
}
