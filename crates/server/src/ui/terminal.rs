//! A terminal in the page: a shell of the sandbox, by the same way as `firkin sandbox shell`, on a screen that is kept here.
//!
//! ```text
//!   sandbox ──PTY──► screen (vt100) ──rows that changed, as texts──► page
//!      ▲                                                               │
//!      └────────── queue (bounded) ◄──── keys, sizes, scrolling ───────┘
//! ```
//!
//! What a program writes ends at the screen: a page gets the characters in its cells and words of our own for their looks, so that no
//! escape reaches a browser. Nobody is written to who does not read: while a page takes nothing, the sandbox's output is not read either,
//! and then it is hung up.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{
        FromRequestParts, State, WebSocketUpgrade,
        ws::{Message, WebSocket},
    },
    response::Response,
};
use connectrpc::client::{CallOptions, ServerStream};
use firkin_dashboard::{
    frame::Section,
    terminal::{self as pages, Show},
};
use firkin_runtime::sandbox::{SandboxId, SandboxState};
use firkin_wire::{
    envd::process::{
        PTY, ProcessClient, ProcessConfig, ProcessInput, ProcessSelector, SendInputRequest, SendSignalRequest, Signal,
        StartRequest, StartResponse, StartResponseView, UpdateRequest,
        process_event::{Event, data_event::Output},
        process_input, process_selector, pty,
    },
    headers::ENDS_WITH_STREAM,
};
use http::request::Parts;
use serde::Deserialize;
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Visitor, answer,
    envd::{Envd, Transport, USERS},
    place,
    screen::Screen,
};
use crate::{App, doors, error::ApiError, extract::Sandbox, listing::Query};

/// Terminals of all pages at once: each is a screen with what has scrolled off it, some megabytes at the largest size.
pub(crate) const MAX_TERMINALS: usize = 64;

/// Longest message of a page: what somebody pastes, and quotes.
const MAX_MESSAGE_BYTES: usize = 64 << 10;

/// Keys that wait for the sandbox. A program that reads nothing fills the terminal's own buffer first.
const QUEUE: usize = 64;

/// A page says so soon which size it has.
const GREETING: Duration = Duration::from_secs(10);

/// Nobody waits longer for a page to take a screen, or for envd to take keys.
const PATIENCE: Duration = Duration::from_secs(10);

/// Between two screens: faster than people read.
const FRAME: Duration = Duration::from_millis(30);

/// Between two looks at whether the session still holds; each also shows the page that there is somebody.
const CHECK: Duration = Duration::from_secs(15);

/// `GET /ui/sandboxes/{id}/terminal`.
pub(super) async fn page(visitor: Visitor, Sandbox(id): Sandbox, query: Query) -> Result<Response, ApiError> {
    let sandbox = visitor.caller.runtime.sandbox(&id)?;
    let user = query.get("user").and_then(|user| USERS.iter().find(|known| **known == user)).unwrap_or(&USERS[0]);
    let viewer = visitor.viewer();
    Ok(answer::page(pages::page(&viewer, place(&viewer, Section::Sandboxes), &super::sandbox::head(&sandbox), user)))
}

/// A request to stop being HTTP, and the place of its connection.
pub(super) struct Upgrade {
    upgrade: WebSocketUpgrade,
    place: Option<doors::Place>,
}

impl FromRequestParts<Arc<App>> for Upgrade {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        let upgrade = WebSocketUpgrade::from_request_parts(parts, app).await;
        let upgrade = upgrade.map_err(|error| ApiError::bad_request(error.body_text()))?;
        Ok(Self { upgrade, place: parts.extensions.get::<doors::Place>().cloned() })
    }
}

/// What a page says.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Said {
    /// Its token and size, before all else.
    Hello { token: String, cols: u16, rows: u16 },
    /// Keys, as the bytes that a terminal sends for them.
    Keys { text: String },
    /// Another size.
    Size { cols: u16, rows: u16 },
    /// How many lines back it looks.
    Scroll { back: usize },
}

/// `GET /ui/sandboxes/{id}/terminal/socket`.
pub(super) async fn socket(
    State(app): State<Arc<App>>,
    visitor: Visitor,
    Sandbox(id): Sandbox,
    query: Query,
    Upgrade { upgrade, place }: Upgrade,
) -> Result<Response, ApiError> {
    let sandbox = visitor.caller.runtime.sandbox(&id)?;
    let envd = Envd::of(&app, &sandbox, query.get("user").unwrap_or(USERS[0]))?;
    let permit = Arc::clone(&app.terminals).try_acquire_owned().map_err(|_| ApiError::too_many_terminals(MAX_TERMINALS))?;
    // The connection counts for as long as it is open.
    let busy = place.map(|place| place.busy());
    let upgrade = upgrade.max_message_size(MAX_MESSAGE_BYTES).max_frame_size(MAX_MESSAGE_BYTES);
    let token = app.pool.tasks.token();
    Ok(upgrade.on_upgrade(async move |mut socket| {
        let guards = (busy, token);
        let terminal = Terminal { visitor, id, envd, place: Arc::new(permit) };
        let told = tokio::select! {
            told = serve(&app, &terminal, &mut socket) => told,
            () = app.pool.stop.cancelled() => Err("the server is stopping".to_owned()),
        };
        let end = serde_json::json!({ "end": told.err() }).to_string();
        // Whoever is gone is not told.
        drop(timeout(PATIENCE, socket.send(Message::text(end))).await);
        drop(guards);
    }))
}

/// One terminal: whose, where, and its place among all.
struct Terminal {
    visitor: Visitor,
    id: SandboxId,
    envd: Envd,
    place: Arc<OwnedSemaphorePermit>,
}

/// A terminal from the first word of its page to the end of its shell. The reason, if there is one to tell.
async fn serve(app: &App, terminal: &Terminal, socket: &mut WebSocket) -> Result<(), String> {
    let Terminal { visitor, id, envd, place } = terminal;
    let hello = timeout(GREETING, heard(socket)).await.map_err(|_| "the page did not say what size it has".to_owned())?;
    let Some(Said::Hello { token, cols, rows }) = hello? else { return Err("the page did not say who it is".to_owned()) };
    if !visitor.ticket.is_token(&token) {
        return Err("this page is of another session: load it again".to_owned());
    }
    let mut screen = Screen::new(cols, rows);
    let client = envd.processes();
    let (mut output, pid) = start(&client, &screen).await?;
    let (keys, queue) = mpsc::channel(QUEUE);
    // It ends after this, when it has hung up on the shell, and keeps the place for so long: what is queued takes memory.
    let (runtime, of, place) = (visitor.caller.runtime.clone(), id.clone(), Arc::clone(place));
    let gone = CancellationToken::new();
    let _gone_with_this = gone.clone().drop_guard();
    app.pool.tasks.spawn(async move {
        let _place = place;
        // What was typed and not taken yet goes with its page.
        gone.run_until_cancelled(write(&client, pid, queue)).await;
        // One that was paused meanwhile would be woken by what its shell is sent.
        if runtime.sandbox(&of).is_ok_and(|sandbox| sandbox.state == SandboxState::Running) {
            hang_up(&client, pid).await;
        }
    });
    let mut check = interval(CHECK);
    check.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut due: Option<Instant> = Some(Instant::now());
    loop {
        tokio::select! {
            said = heard(socket) => match said? {
                None => return Ok(()),
                Some(said) => {
                    take(&mut screen, &keys, said);
                    due.get_or_insert_with(Instant::now);
                }
            },
            event = output.message::<StartResponse>() => {
                let message = event.map_err(|error| error.message.unwrap_or_else(|| error.code.as_str().to_owned()))?;
                let event = message.and_then(|message| message.to_owned_message().event.into_option()).and_then(|event| event.event);
                match event {
                    Some(Event::Data(data)) => {
                        if let Some(Output::Pty(bytes) | Output::Stdout(bytes) | Output::Stderr(bytes)) = data.output {
                            screen.write(&bytes);
                        }
                        due.get_or_insert_with(|| Instant::now() + FRAME);
                    }
                    Some(Event::End(_)) => { show(socket, screen.changed()).await?; return Err("the shell has ended".to_owned()); }
                    Some(Event::Start(_) | Event::Keepalive(_)) => {}
                    None => return Err("the sandbox ended the connection".to_owned()),
                }
            }
            () = until(due) => {
                due = None;
                show(socket, screen.changed()).await?;
            }
            _ = check.tick() => {
                let holds = app.sessions.holds(&visitor.ticket) && app.host().authenticate_digest(visitor.ticket.key).is_some();
                if !holds {
                    return Err("you are signed out".to_owned());
                }
                visitor.caller.runtime.sandbox(id).map_err(|absent| absent.to_string())?;
                let ping = timeout(PATIENCE, socket.send(Message::Ping(bytes::Bytes::new()))).await;
                ping.ok().and_then(Result::ok).ok_or_else(|| "the page is gone".to_owned())?;
            }
        }
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// The next that a page says; nothing once it is gone.
async fn heard(socket: &mut WebSocket) -> Result<Option<Said>, String> {
    loop {
        match socket.recv().await {
            None | Some(Err(_) | Ok(Message::Close(_))) => return Ok(None),
            Some(Ok(Message::Text(text))) => {
                return serde_json::from_str(&text)
                    .map(Some)
                    .map_err(|_| "the page said what a page of ours does not".to_owned());
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Binary(_))) => {}
        }
    }
}

/// What the sandbox is to be told.
enum Told {
    Keys(Vec<u8>),
    Size { cols: u32, rows: u32 },
}

fn take(screen: &mut Screen, keys: &mpsc::Sender<Told>, said: Said) {
    let told = match said {
        // It has said so before.
        Said::Hello { .. } => return,
        Said::Keys { text } => {
            screen.scroll(0);
            Told::Keys(text.into_bytes())
        }
        Said::Size { cols, rows } => {
            let (rows, cols) = screen.resize(cols, rows);
            Told::Size { cols: cols.into(), rows: rows.into() }
        }
        Said::Scroll { back } => return screen.scroll(back),
    };
    // A program that takes nothing misses what is typed, as on any terminal whose buffer is full.
    if keys.try_send(told).is_err() {
        tracing::debug!("keys were dropped: the sandbox takes none");
    }
}

async fn show(socket: &mut WebSocket, show: Option<Show>) -> Result<(), String> {
    let Some(show) = show else { return Ok(()) };
    let sent = timeout(PATIENCE, socket.send(Message::text(show.json()))).await;
    sent.map_err(|_| "the page takes nothing".to_owned())?.map_err(|_| "the page is gone".to_owned())
}

type Started = (ServerStream<axum::body::Body, StartResponseView<'static>>, u32);

fn size(rows: u32, cols: u32) -> PTY {
    PTY { size: pty::Size { cols, rows, ..Default::default() }.into(), ..Default::default() }
}

/// Starts a shell on a terminal of the screen's size.
async fn start(client: &ProcessClient<Transport>, screen: &Screen) -> Result<Started, String> {
    let (rows, cols) = screen.size();
    let environment = [("TERM", "xterm-256color"), ("LANG", "C.UTF-8"), ("LC_ALL", "C.UTF-8")];
    let process = ProcessConfig {
        cmd: "/bin/bash".to_owned(),
        args: ["-i", "-l"].map(str::to_owned).to_vec(),
        envs: environment.map(|(name, value)| (name.to_owned(), value.to_owned())).into_iter().collect(),
        ..Default::default()
    };
    let pty = size(rows.into(), cols.into());
    let request = StartRequest { process: process.into(), pty: pty.into(), stdin: Some(true), ..Default::default() };
    // However this server ends, and wherever the answer stops, no shell is left that nobody sees.
    let options = CallOptions::default().with_header(ENDS_WITH_STREAM, "1");
    let started = timeout(PATIENCE, client.start_with_options(request, options)).await;
    let mut stream = started.map_err(|_| "the sandbox did not answer".to_owned())?.map_err(words)?;
    loop {
        let message =
            timeout(PATIENCE, stream.message::<StartResponse>()).await.map_err(|_| "the sandbox did not answer".to_owned())?;
        let event = message
            .map_err(words)?
            .and_then(|message| message.to_owned_message().event.into_option())
            .and_then(|event| event.event);
        match event {
            Some(Event::Start(start)) => return Ok((stream, start.pid)),
            Some(Event::Keepalive(_)) => {}
            Some(Event::Data(_) | Event::End(_)) | None => return Err("envd began a shell without naming it".to_owned()),
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "used as a function of an error that is being mapped")]
fn words(error: connectrpc::ConnectError) -> String {
    error.message.clone().unwrap_or_else(|| error.code.as_str().to_owned())
}

fn process(pid: u32) -> ProcessSelector {
    ProcessSelector { selector: Some(process_selector::Selector::Pid(pid)), ..Default::default() }
}

/// Tells the sandbox what is typed, in order.
async fn write(client: &ProcessClient<Transport>, pid: u32, mut queue: mpsc::Receiver<Told>) {
    while let Some(told) = queue.recv().await {
        let done = match told {
            Told::Keys(bytes) => {
                let input = ProcessInput { input: Some(process_input::Input::Pty(bytes)), ..Default::default() };
                let request = SendInputRequest { process: process(pid).into(), input: input.into(), ..Default::default() };
                timeout(PATIENCE, client.send_input(request)).await.map(|sent| sent.map(drop))
            }
            Told::Size { cols, rows } => {
                let request = UpdateRequest { process: process(pid).into(), pty: size(rows, cols).into(), ..Default::default() };
                timeout(PATIENCE, client.update(request)).await.map(|sent| sent.map(drop))
            }
        };
        if !matches!(done, Ok(Ok(()))) {
            tracing::debug!("a sandbox did not take what was typed");
        }
    }
}

/// Ends the shell of a page that is gone.
async fn hang_up(client: &ProcessClient<Transport>, pid: u32) {
    // An interactive shell takes no other signal that envd can send; what runs in it loses its terminal.
    let signal = Signal::SIGNAL_SIGKILL.into();
    let request = SendSignalRequest { process: process(pid).into(), signal, ..Default::default() };
    if !matches!(timeout(PATIENCE, client.send_signal(request)).await, Ok(Ok(_))) {
        tracing::debug!("a shell was gone before it was hung up on");
    }
}
