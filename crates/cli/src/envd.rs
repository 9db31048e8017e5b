//! Commands inside a sandbox: envd's process service through the server's data plane.
//!
//! A [`Process`] yields its output as it arrives; its [`Input`] is a separate handle, so that neither direction can hold the
//! other up.

use std::{collections::HashMap, sync::Arc, time::Duration};

use anyhow::{Context as _, anyhow, bail};
use base64::Engine as _;
use connectrpc::{
    ConnectError, ErrorCode,
    client::{CallOptions, ClientConfig, HttpClient, ServerStream},
};
use firkin_wire::{
    ENVD_PORT,
    envd::filesystem::{
        EventType, FilesystemClient, WatchDirRequest, WatchDirResponse, WatchDirResponseView, watch_dir_response,
    },
    envd::process::{
        CloseStdinRequest, PTY, ProcessClient, ProcessConfig, ProcessInput, ProcessSelector, SendInputRequest, SendSignalRequest,
        Signal, StartRequest, StartResponse, StartResponseView, UpdateRequest,
        process_event::{Event, data_event},
        process_input, process_selector, pty,
    },
    headers::{ACCESS_TOKEN, ENDS_WITH_STREAM, KEEPALIVE, SANDBOX_ID, SANDBOX_PORT},
    signals,
};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::{failure::advised, serverfile::Target};

/// Names the port in a sandbox that a request is for.
pub(crate) const PORT_HEADER: HeaderName = HeaderName::from_static(SANDBOX_PORT);

/// How often an idle stream shows that it is alive, in seconds: below the idle limits of common proxies.
const KEEPALIVE_SECONDS: HeaderValue = HeaderValue::from_static("50");

/// Who talks to envd.
#[derive(Debug, Clone)]
pub(crate) struct Access<'a> {
    /// The sandbox.
    pub(crate) sandbox_id: &'a str,
    /// Its access token, if it demands one.
    pub(crate) token: Option<&'a str>,
    /// The user to run as; envd's default if absent.
    pub(crate) user: Option<&'a str>,
}

/// The headers that route a request to envd of a sandbox and let it in.
pub(crate) fn headers(access: &Access<'_>) -> anyhow::Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    let id = HeaderValue::from_str(access.sandbox_id).with_context(|| format!("`{}` is no sandbox id", access.sandbox_id))?;
    headers.insert(HeaderName::from_static(SANDBOX_ID), id);
    headers.insert(PORT_HEADER, ENVD_PORT.into());
    headers.insert(HeaderName::from_static(KEEPALIVE), KEEPALIVE_SECONDS);
    if let Some(token) = access.token {
        let token = HeaderValue::from_str(token).context("the access token cannot be sent")?;
        headers.insert(HeaderName::from_static(ACCESS_TOKEN), token);
    }
    if let Some(user) = access.user {
        let basic = base64::engine::general_purpose::STANDARD.encode(format!("{user}:"));
        headers.insert(http::header::AUTHORIZATION, HeaderValue::from_str(&format!("Basic {basic}")).context("no user name")?);
    }
    Ok(headers)
}

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    /// Columns.
    pub(crate) cols: u32,
    /// Rows.
    pub(crate) rows: u32,
}

/// The command.
#[derive(Debug, Clone, Default)]
pub(crate) struct CommandLine {
    /// Program and arguments, as the program shall get them: no shell comes between.
    pub(crate) argv: Vec<String>,
    /// Environment on top of the sandbox's.
    pub(crate) env: HashMap<String, String>,
    /// Working directory; the user's home if absent.
    pub(crate) cwd: Option<String>,
    /// A terminal of this size, instead of three pipes.
    pub(crate) pty: Option<Size>,
    /// Whether input will be sent; without, the command reads the end of file.
    pub(crate) stdin: bool,
    /// When the command is killed.
    pub(crate) timeout: Option<Duration>,
    /// Whether it is killed once nobody reads its output any more, however that came about.
    pub(crate) ends_with_stream: bool,
}

impl CommandLine {
    /// A command by its words, run in a login environment like the SDKs' commands.
    pub(crate) fn words(words: &[String]) -> Self {
        Self { argv: words.to_vec(), ..Self::default() }
    }

    /// A shell script.
    pub(crate) fn script(script: &str) -> Self {
        Self::words(&["/bin/bash".to_owned(), "-c".to_owned(), script.to_owned()])
    }
}

/// Output of a process, and its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Output {
    /// Standard output, or what the terminal shows.
    Stdout(Vec<u8>),
    /// Standard error.
    Stderr(Vec<u8>),
    /// It ended with this status, 128 + n for signal n.
    End(u8),
}

/// The processes of one sandbox, as one user.
#[derive(Clone)]
pub(crate) struct Processes {
    client: Arc<ProcessClient<HttpClient>>,
}

impl Processes {
    /// Those of the sandbox that `access` names; nothing is sent yet.
    pub(crate) fn new(target: &Target, access: &Access<'_>) -> anyhow::Result<Self> {
        let url = target.sandbox_url.parse().with_context(|| format!("`{}` is no URL", target.sandbox_url))?;
        let config = ClientConfig::new(url).with_default_headers(headers(access)?);
        Ok(Self { client: Arc::new(ProcessClient::new(HttpClient::plaintext(), config)) })
    }

    /// Starts a process; it runs when this returns.
    pub(crate) async fn start(&self, command: &CommandLine) -> anyhow::Result<Process> {
        let mut options = CallOptions::default();
        if let Some(timeout) = command.timeout {
            options = options.with_timeout(timeout);
        }
        if command.ends_with_stream {
            options = options.with_header(ENDS_WITH_STREAM, "1");
        }
        // A login shell sets the environment up and is then replaced: the words reach the program as they are.
        let prologue = ["-l", "-c", "exec \"$@\"", "bash"].map(str::to_owned);
        let config = ProcessConfig {
            cmd: "/bin/bash".to_owned(),
            args: prologue.into_iter().chain(command.argv.iter().cloned()).collect(),
            envs: command.env.clone().into_iter().collect(),
            cwd: command.cwd.clone(),
            ..Default::default()
        };
        let request = StartRequest {
            process: config.into(),
            pty: command.pty.map(terminal).into(),
            stdin: Some(command.stdin),
            ..Default::default()
        };
        let mut stream = self.client.start_with_options(request, options).await.map_err(refused)?;
        loop {
            match next_event(&mut stream).await? {
                Some(Event::Start(start)) => {
                    let input = Input { client: Arc::clone(&self.client), pid: start.pid, terminal: command.pty.is_some() };
                    return Ok(Process { stream, input });
                }
                Some(Event::Keepalive(_)) => {}
                Some(Event::Data(_) | Event::End(_)) | None => bail!("envd began a process without naming it"),
            }
        }
    }

    /// Runs a script to its end and returns its standard output. Another status than 0 is an error that shows its standard error.
    pub(crate) async fn output(&self, script: &str) -> anyhow::Result<String> {
        let mut process = self.start(&CommandLine::script(script)).await?;
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        loop {
            match process.next().await? {
                Output::Stdout(mut bytes) => stdout.append(&mut bytes),
                Output::Stderr(mut bytes) => stderr.append(&mut bytes),
                Output::End(0) => return Ok(String::from_utf8_lossy(&stdout).into_owned()),
                Output::End(status) => {
                    bail!("`{script}` ended with status {status}: {}", String::from_utf8_lossy(&stderr).trim_end());
                }
            }
        }
    }
}

/// The files of one sandbox, as one user.
pub(crate) struct Files {
    client: FilesystemClient<HttpClient>,
}

impl Files {
    /// Those of the sandbox that `access` names; nothing is sent yet.
    pub(crate) fn new(target: &Target, access: &Access<'_>) -> anyhow::Result<Self> {
        let url = target.sandbox_url.parse().with_context(|| format!("`{}` is no URL", target.sandbox_url))?;
        let config = ClientConfig::new(url).with_default_headers(headers(access)?);
        Ok(Self { client: FilesystemClient::new(HttpClient::plaintext(), config) })
    }

    /// What changes in a directory from now on.
    pub(crate) async fn watch(&self, path: &str, recursive: bool) -> anyhow::Result<FileChanges> {
        let request = WatchDirRequest { path: path.to_owned(), recursive, ..Default::default() };
        Ok(FileChanges(self.client.watch_dir(request).await.map_err(refused)?))
    }
}

/// Changes of files as they are told.
pub(crate) struct FileChanges(ServerStream<hyper::body::Incoming, WatchDirResponseView<'static>>);

impl FileChanges {
    /// The next one: what happened, and to which file. None when there is nobody left to tell.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<(&'static str, String)>> {
        loop {
            let Some(message) = self.0.message::<WatchDirResponse>().await.map_err(refused)? else { return Ok(None) };
            if let Some(watch_dir_response::Event::Filesystem(change)) = message.to_owned_message().event {
                let kind = match change.r#type.as_known() {
                    Some(EventType::EVENT_TYPE_CREATE) => "create",
                    Some(EventType::EVENT_TYPE_WRITE) => "write",
                    Some(EventType::EVENT_TYPE_REMOVE) => "remove",
                    Some(EventType::EVENT_TYPE_RENAME) => "rename",
                    Some(EventType::EVENT_TYPE_CHMOD) => "chmod",
                    Some(EventType::EVENT_TYPE_UNSPECIFIED) | None => "change",
                };
                return Ok(Some((kind, change.name)));
            }
        }
    }
}

/// A running process.
pub(crate) struct Process {
    stream: ServerStream<hyper::body::Incoming, StartResponseView<'static>>,
    input: Input,
}

impl Process {
    /// The way to talk to it.
    pub(crate) fn input(&self) -> Input {
        self.input.clone()
    }

    /// Its next output. After [`Output::End`] there is nothing more.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Output> {
        loop {
            let output = match next_event(&mut self.stream).await? {
                Some(Event::Data(data)) => match data.output {
                    Some(data_event::Output::Stdout(bytes) | data_event::Output::Pty(bytes)) => Output::Stdout(bytes),
                    Some(data_event::Output::Stderr(bytes)) => Output::Stderr(bytes),
                    None => continue,
                },
                Some(Event::End(end)) => Output::End(exit_status(end.exited, end.exit_code, &end.status)),
                Some(Event::Start(_) | Event::Keepalive(_)) => continue,
                None => bail!("the stream ended before the process did"),
            };
            return Ok(output);
        }
    }
}

/// The way to talk to a process.
#[derive(Clone)]
pub(crate) struct Input {
    client: Arc<ProcessClient<HttpClient>>,
    pid: u32,
    terminal: bool,
}

impl Input {
    /// Writes to standard input, or types on the terminal.
    pub(crate) async fn send(&self, bytes: Vec<u8>) -> anyhow::Result<()> {
        let input = if self.terminal { process_input::Input::Pty(bytes) } else { process_input::Input::Stdin(bytes) };
        let input = ProcessInput { input: Some(input), ..Default::default() };
        let request = SendInputRequest { process: self.selector().into(), input: input.into(), ..Default::default() };
        self.client.send_input(request).await.map(drop).map_err(refused)
    }

    /// Ends standard input.
    pub(crate) async fn close(&self) -> anyhow::Result<()> {
        let request = CloseStdinRequest { process: self.selector().into(), ..Default::default() };
        self.client.close_stdin(request).await.map(drop).map_err(refused)
    }

    /// Tells the terminal its new size.
    pub(crate) async fn resize(&self, size: Size) -> anyhow::Result<()> {
        let request = UpdateRequest { process: self.selector().into(), pty: terminal(size).into(), ..Default::default() };
        self.client.update(request).await.map(drop).map_err(refused)
    }

    /// Asks the process to end.
    pub(crate) async fn terminate(&self) -> anyhow::Result<()> {
        let signal = Signal::SIGNAL_SIGTERM.into();
        let request = SendSignalRequest { process: self.selector().into(), signal, ..Default::default() };
        self.client.send_signal(request).await.map(drop).map_err(refused)
    }

    fn selector(&self) -> ProcessSelector {
        ProcessSelector { selector: Some(process_selector::Selector::Pid(self.pid)), ..Default::default() }
    }
}

async fn next_event(
    stream: &mut ServerStream<hyper::body::Incoming, StartResponseView<'static>>,
) -> anyhow::Result<Option<Event>> {
    let message = stream.message::<StartResponse>().await.map_err(refused)?;
    Ok(message.and_then(|message| message.to_owned_message().event.into_option()).and_then(|event| event.event))
}

fn terminal(size: Size) -> PTY {
    PTY { size: pty::Size { cols: size.cols, rows: size.rows, ..Default::default() }.into(), ..Default::default() }
}

/// envd's error in its own words, with the next step.
fn refused(error: ConnectError) -> anyhow::Error {
    let hint = match error.code {
        ErrorCode::DeadlineExceeded => Some("the command was killed; `--timeout` gives it longer"),
        ErrorCode::Unavailable => Some("the sandbox may have ended; `firkin sandbox ls` tells"),
        _ => None,
    };
    let words = match (&error.message, error.code) {
        (_, ErrorCode::DeadlineExceeded) => "the command did not end in time".to_owned(),
        (Some(message), _) => message.clone(),
        (None, code) => code.as_str().to_owned(),
    };
    advised(anyhow!(words), hint.map(str::to_owned), None)
}

/// The exit status that a shell would give.
fn exit_status(exited: bool, code: i32, status: &str) -> u8 {
    const KILLED_BY_UNKNOWN: u8 = 255;
    if exited {
        return u8::try_from(code).unwrap_or(KILLED_BY_UNKNOWN);
    }
    let signal = signals::number(status).and_then(|signal| u8::try_from(signal).ok()?.checked_add(128));
    signal.unwrap_or(KILLED_BY_UNKNOWN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_headers_route_and_let_in() {
        let access = Access { sandbox_id: "i1", token: Some("t"), user: Some("root") };
        let headers = headers(&access).unwrap();
        let value = |name: &str| headers[name].to_str().unwrap();
        assert_eq!((value("e2b-sandbox-id"), value("e2b-sandbox-port")), ("i1", "49983"));
        assert_eq!((value("x-access-token"), value("authorization")), ("t", "Basic cm9vdDo="));
    }

    #[test]
    fn an_id_that_cannot_be_a_header_is_refused() {
        assert!(headers(&Access { sandbox_id: "i\n1", token: None, user: None }).is_err());
    }

    #[test]
    fn statuses_are_those_of_a_shell() {
        assert_eq!(exit_status(true, 7, "exit status 7"), 7);
        assert_eq!(exit_status(false, -1, "signal: killed"), 137);
        assert_eq!(exit_status(false, -1, "signal: segmentation fault (core dumped)"), 139);
        assert_eq!(exit_status(false, -1, "signal: real-time 9"), 255);
        assert_eq!(exit_status(false, -1, "signal: signal 2147483647"), 255);
    }
}
