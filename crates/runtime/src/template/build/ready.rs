//! The end of every build: its start command comes up, and its ready command says when it has.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    command::Shell,
    error::{BuildFailure, CommandFailed},
};
use crate::{machine::command::Running, store::Defaults};

/// How long a template may take to be ready.
pub(super) const READY_DEADLINE: Duration = Duration::from_secs(600);

/// Between two runs of the ready command.
const READY_INTERVAL: Duration = Duration::from_secs(2);

/// What a template without a ready command gets: time for the start command to come up.
const DEFAULT_READY: &str = "sleep 20";

/// What says that a template is ready, and how long it may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ready<'a> {
    pub(super) command: &'a str,
    pub(super) deadline: Duration,
}

impl<'a> Ready<'a> {
    /// A command of a user's.
    pub(super) fn of(command: &'a str) -> Self {
        Self { command, deadline: READY_DEADLINE }
    }
}

/// Starts the command, and waits until it is ready, or has failed.
pub(super) async fn finalize(
    shell: &Shell<'_>,
    context: &Defaults,
    start: Option<&str>,
    ready: Option<Ready<'_>>,
) -> Result<Option<Running>, BuildFailure> {
    let Some(start) = start else {
        if let Some(ready) = ready {
            until_ready(shell, context, ready).await?;
        }
        return Ok(None);
    };
    shell.log.info(format!("Running start command: {start}"));
    let mut running = shell.start(context, start, context.user(), None).await.map_err(BuildFailure::Start)?;
    let mut waiting = Box::pin(until_ready(shell, context, ready.unwrap_or(Ready::of(DEFAULT_READY))));
    tokio::select! {
        ready = &mut waiting => return ready.map(|()| Some(running)),
        // One that has ended well has done what it was to do, or has left something running.
        ended = shell.follow(&mut running) => ended.map_err(BuildFailure::Start)?,
    }
    waiting.await.map(|()| None)
}

/// Runs the ready command until it succeeds.
pub(super) async fn until_ready(shell: &Shell<'_>, context: &Defaults, ready: Ready<'_>) -> Result<(), BuildFailure> {
    let Ready { command, deadline: patience } = ready;
    shell.log.info(format!("Waiting for template to be ready: {command}"));
    let deadline = Instant::now() + patience;
    loop {
        let attempt = tokio::time::timeout_at(deadline, shell.run(context, command, context.user())).await;
        let source = match attempt {
            Ok(Ok(())) => {
                shell.log.info("Template is ready");
                return Ok(());
            }
            Ok(Err(failed)) => failed,
            Err(_) => CommandFailed::Said("the ready command did not end".to_owned()),
        };
        if Instant::now() + READY_INTERVAL > deadline {
            return Err(BuildFailure::NotReady { deadline: patience, source });
        }
        tokio::time::sleep(READY_INTERVAL).await;
    }
}
