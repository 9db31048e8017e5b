//! `firkin top`: sandboxes and the host, live, on this terminal.
//!
//! What is shown is folded out of the event stream, so that a server has nothing to do for it but to tell what changes; how busy
//! sandboxes are is asked for now and then.

use std::time::Duration;

use anyhow::{Context as _, anyhow};
use futures::{FutureExt as _, future::OptionFuture};
use jiff::Timestamp;
use ratatui::crossterm::event::{self as keys, Event as Key, KeyCode, KeyEventKind, KeyModifiers};
use serde_json::Value;
use tokio::{sync::mpsc, time::interval};

use self::board::Board;
use crate::{
    api::Api,
    failure::{Advise as _, ExitStatus},
    serverfile,
    settings::Settings,
    stream::Events,
};

mod board;

/// Between two drawings where nothing happens: ages and time left go on.
const REDRAW: Duration = Duration::from_secs(1);

/// Between two questions for how busy sandboxes are: the server samples them as often.
const METRICS: Duration = Duration::from_secs(5);

/// How long a key is waited for before it is seen whether the program still runs.
const KEY_WAIT: Duration = Duration::from_millis(200);

/// Keys that were typed and not handled yet.
const KEYS: usize = 16;

/// Runs the command.
pub(crate) async fn run(settings: &Settings) -> anyhow::Result<ExitStatus> {
    if !settings.stdout_tty || !settings.stdin_tty {
        return Err(anyhow!("standard input or output is not a terminal")).hint("`firkin events --follow --json` needs none");
    }
    let api = Api::new(serverfile::find(settings)?);
    let events = Events::open(&api, &[]).await.context("cannot follow what happens")?;
    let mut terminal = ratatui::try_init().context("cannot use this terminal")?;
    let ended = show(&api, events, &mut terminal).await;
    // Whatever came of it, the terminal is given back.
    ratatui::restore();
    ended
}

async fn show(api: &Api, mut events: Events, terminal: &mut ratatui::DefaultTerminal) -> anyhow::Result<ExitStatus> {
    let mut board = Board::default();
    let (mut redraw, mut ask, mut typed) = (interval(REDRAW), interval(METRICS), typed());
    let mut metrics = OptionFuture::default();
    loop {
        terminal.draw(|frame| board.draw(frame, Timestamp::now())).context("cannot draw on this terminal")?;
        tokio::select! {
            event = events.next() => {
                board.take(&event?);
                // What has come already is one drawing.
                while let Some(event) = events.next().now_or_never() {
                    board.take(&event?);
                }
            }
            _ = redraw.tick() => {}
            _ = ask.tick() => {
                let ids = board.visible_running();
                metrics = (!ids.is_empty()).then(|| Box::pin(use_of(api, ids))).into();
            }
            Some(answer) = &mut metrics => {
                metrics = OptionFuture::default();
                // A sandbox may have ended since; the next question is about others.
                board.used(answer.as_ref().ok());
            }
            key = typed.recv() => match key {
                Some(Typed::Quit) | None => return Ok(ExitStatus::Success),
                Some(Typed::Scroll(by)) => board.scroll(by),
                Some(Typed::Other) => {}
            },
        }
    }
}

async fn use_of(api: &Api, ids: Vec<String>) -> anyhow::Result<Value> {
    api.get(&format!("/sandboxes/metrics?sandbox_ids={}", ids.join(","))).await
}

/// What a key means.
enum Typed {
    Quit,
    Scroll(i32),
    /// Also a new size: it is drawn anew.
    Other,
}

/// Reads keys, which blocks, on a thread that ends when nobody listens.
fn typed() -> mpsc::Receiver<Typed> {
    let (sender, receiver) = mpsc::channel(KEYS);
    tokio::task::spawn_blocking(move || {
        while !sender.is_closed() {
            let typed = match keys::poll(KEY_WAIT).and_then(|any| if any { keys::read().map(Some) } else { Ok(None) }) {
                Ok(None) => continue,
                Ok(Some(Key::Key(key))) if key.kind == KeyEventKind::Press => match (key.code, key.modifiers) {
                    (KeyCode::Char('q') | KeyCode::Esc, _) | (KeyCode::Char('c'), KeyModifiers::CONTROL) => Typed::Quit,
                    (KeyCode::Down | KeyCode::Char('j'), _) => Typed::Scroll(1),
                    (KeyCode::Up | KeyCode::Char('k'), _) => Typed::Scroll(-1),
                    (KeyCode::PageDown | KeyCode::Char(' '), _) => Typed::Scroll(10),
                    (KeyCode::PageUp, _) => Typed::Scroll(-10),
                    _ => Typed::Other,
                },
                Ok(Some(_)) => Typed::Other,
                Err(_) => Typed::Quit,
            };
            if sender.blocking_send(typed).is_err() {
                return;
            }
        }
    });
    receiver
}
