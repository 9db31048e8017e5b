//! `firkin up`: serve in the foreground until told to stop.

use firkin_runtime::owner;
use firkin_traces::Traces;
use sd_notify::NotifyState;
use serde::Serialize;

use super::hosting::{self, Begins, Interrupts};
use crate::{
    args::OnExit,
    failure::ExitStatus,
    output,
    progress::Progress,
    service::{self, Handed, Watchdog},
    settings::{Format, Settings},
};

/// The report once the server answers.
#[derive(Debug, Serialize)]
struct Ready {
    url: String,
    acceleration: String,
    state_dir: String,
    api_key_file: String,
    pid: u32,
}

/// Runs the command. Spans have their places in `traces`, if they go anywhere.
pub(crate) async fn run(settings: &Settings, mut handed: Handed, traces: Option<Traces>) -> anyhow::Result<ExitStatus> {
    let mut interrupts = Interrupts::listen()?;
    let progress = Progress::on_stderr(settings.live_progress);
    let door = hosting::bind(settings, hosting::IfTaken::Fail, &mut handed)?;
    let begins = Begins::default();
    let mut opening = Box::pin(hosting::open(settings, &progress, &begins));
    let host = tokio::select! {
        opened = &mut opening => opened?,
        () = interrupts.next() => {
            // What runs is not to end because this server was told to before it served. Dropped, a runtime ends what it has.
            if settings.on_exit != OnExit::Kill && begins.has_taken_over() {
                output::note("interrupted while it begins: what runs is left to the next server");
                let left = async {
                    if let Ok(host) = opening.await {
                        host.leave().await;
                    }
                    Ok(())
                };
                if !begins.stop() || interrupts.unless(left).await?.is_none() {
                    leave_at_once();
                }
            }
            return Ok(ExitStatus::Interrupted);
        }
    };
    let acceleration = host.acceleration();
    let mut server = host.serve(settings, door, handed, traces).await?;
    announce(
        settings,
        &Ready {
            url: server.target().api_url.clone(),
            acceleration,
            state_dir: settings.state_dir.display().to_string(),
            api_key_file: settings.known_key_file().display().to_string(),
            pid: std::process::id(),
        },
    )?;
    // What ran before was taken over when the host was opened, and the listeners listen: nobody who comes now is turned away.
    let url = server.target().api_url.clone();
    service::tell(&[NotifyState::Ready, NotifyState::Status(&format!("serves at {url}"))]);
    let mut watchdog = Watchdog::of_process(&url);
    let served = loop {
        tokio::select! {
            served = server.ended() => break served,
            () = interrupts.next() => break Ok(()),
            () = watchdog.beat() => {}
        }
    };
    let (on_exit, what) = match settings.on_exit {
        // What runs is not to end because this server cannot go on.
        _ if served.is_err() => (owner::OnExit::Leave, "leaving"),
        OnExit::Kill => (owner::OnExit::Kill, "ending"),
        OnExit::Pause => (owner::OnExit::Pause, "pausing"),
        OnExit::Leave => (owner::OnExit::Leave, "leaving"),
    };
    service::tell(&[NotifyState::Stopping, NotifyState::Status(&format!("{what} sandboxes"))]);
    output::note(&format!("stopping: {what} sandboxes; Ctrl-C again stops at once"));
    let stopped = interrupts.unless(server.stop(on_exit)).await?;
    served?;
    Ok(if stopped.is_some() { ExitStatus::Success } else { ExitStatus::Interrupted })
}

/// Ends this process as a crash does, which machines outlive.
#[expect(clippy::exit, reason = "every destructor would end something that is to go on")]
fn leave_at_once() -> ! {
    std::process::exit(ExitStatus::INTERRUPTED.into())
}

fn announce(settings: &Settings, ready: &Ready) -> anyhow::Result<()> {
    match settings.format {
        Format::Json => output::text(&format!("{}\n", serde_json::to_string(ready)?))?,
        Format::Table => output::text(&line(ready))?,
    }
    let hint = format!("hint: point the E2B SDKs at it with: eval \"$({} env{})\"", hosting::program(), settings.state_option());
    output::note(&hint);
    Ok(())
}

fn line(ready: &Ready) -> String {
    format!(
        "firkin serves at {} (acceleration: {}, state: {}, API key: {})\n",
        ready.url, ready.acceleration, ready.state_dir, ready.api_key_file
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readiness_line_names_what_one_needs() {
        let ready = Ready {
            url: "http://127.0.0.1:3000".to_owned(),
            acceleration: "kvm".to_owned(),
            state_dir: "/s".to_owned(),
            api_key_file: "/s/api-key".to_owned(),
            pid: 1,
        };
        assert_eq!(line(&ready), "firkin serves at http://127.0.0.1:3000 (acceleration: kvm, state: /s, API key: /s/api-key)\n");
    }
}
