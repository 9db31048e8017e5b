//! Commands inside a guest, through envd: for template builds, and for programs that embed the runtime.

use std::{collections::BTreeMap, io, time::Duration};

use connectrpc::client::{BoxFuture, CallOptions, ClientBody, ClientConfig, ClientTransport};
use firkin_wire::{
    ENVD_PORT,
    envd::process::{
        __buffa::{
            oneof::process_event::{Event, data_event::Output as Data},
            view::StartResponseView,
        },
        ProcessClient, ProcessConfig, StartRequest, StartResponse,
    },
    headers::ACCESS_TOKEN,
};
use http::{HeaderValue, Request, Response, header};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;

use crate::machine::network::Connector;

/// Output that is kept of one command, bytes for each stream. More is counted and dropped.
pub const MAX_OUTPUT_BYTES: usize = 1 << 20;

/// A command for a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestCommand {
    /// Run by `/bin/bash -l -c`.
    pub script: String,
    /// User; the template's default when absent.
    pub user: Option<String>,
    /// Working directory; the user's home when absent.
    pub cwd: Option<String>,
    /// Added to the sandbox's environment.
    pub env: BTreeMap<String, String>,
    /// After this long the command and its children are killed.
    pub deadline: Duration,
}

impl GuestCommand {
    /// `script` as the default user, with 60 s.
    pub fn new(script: impl Into<String>) -> Self {
        Self { script: script.into(), user: None, cwd: None, env: BTreeMap::new(), deadline: Duration::from_secs(60) }
    }
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandOutput {
    /// Exit status; -1 when a signal ended it.
    pub exit_code: i32,
    /// At most [`MAX_OUTPUT_BYTES`] of standard output.
    pub stdout: Vec<u8>,
    /// At most [`MAX_OUTPUT_BYTES`] of standard error.
    pub stderr: Vec<u8>,
}

/// Why a command has no exit status.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// No such running sandbox.
    #[error(transparent)]
    NotFound(#[from] crate::store::spec::NoSuchSandbox),
    /// envd refused the command, or the connection broke.
    #[error("the command did not run to its end: {message}")]
    Rpc {
        /// The Connect code, e.g. `deadline_exceeded`.
        code: String,
        /// envd's words.
        message: String,
    },
    /// The stream ended without an end event.
    #[error("envd ended the stream without the command's end")]
    Cut,
}

/// Where envd is, as it is told.
const ENVD: &str = "http://localhost";

/// Speaks HTTP/1.1 to envd of one session, a connection for each call.
#[derive(Debug, Clone)]
struct LinkTransport {
    connector: Connector,
}

impl ClientTransport for LinkTransport {
    type ResponseBody = Incoming;
    type Error = io::Error;

    fn send(&self, mut request: Request<ClientBody>) -> BoxFuture<'static, Result<Response<Incoming>, io::Error>> {
        let connector = self.connector.clone();
        Box::pin(async move {
            let stream = connector.connect(ENVD_PORT).await?;
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
            // Ends with the response's body, or when the guest goes away.
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "a connection to envd broke");
                }
            });
            request.headers_mut().insert(header::HOST, HeaderValue::from_static("localhost"));
            sender.send_request(request).await.map_err(io::Error::other)
        })
    }
}

/// Runs a command to its end.
pub(crate) async fn run(
    connector: Connector,
    token: Option<&str>,
    command: &GuestCommand,
) -> Result<CommandOutput, CommandError> {
    let config = ClientConfig::new(http::Uri::from_static(ENVD));
    to_end(start_with(config, connector, token, command, Some(command.deadline)).await?).await
}

/// Runs a command to its end, said in JSON as E2B's SDKs say it: what the guest's agent does for them is warm afterwards.
pub(crate) async fn run_as_clients_do(
    connector: Connector,
    token: Option<&str>,
    command: &GuestCommand,
) -> Result<CommandOutput, CommandError> {
    let config = ClientConfig::new(http::Uri::from_static(ENVD)).json();
    to_end(start_with(config, connector, token, command, Some(command.deadline)).await?).await
}

async fn to_end(mut running: Running) -> Result<CommandOutput, CommandError> {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let exit_code = running
        .end(&mut |stream, bytes| match stream {
            OutputStream::Stdout => keep(&mut stdout, bytes),
            OutputStream::Stderr => keep(&mut stderr, bytes),
        })
        .await?;
    Ok(CommandOutput { exit_code, stdout, stderr })
}

/// Where a command wrote something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OutputStream {
    Stdout,
    Stderr,
}

/// Takes output as it comes.
pub(crate) type OnOutput<'a> = &'a mut (dyn FnMut(OutputStream, &[u8]) + Send);

/// A command that has been started. Dropped, it goes on in the guest and nobody hears of it.
pub(crate) struct Running {
    stream: connectrpc::client::ServerStream<Incoming, StartResponseView<'static>>,
}

/// Starts a command. Without a deadline it may run for ever; that of `command` is not looked at.
pub(crate) async fn start(
    connector: Connector,
    token: Option<&str>,
    command: &GuestCommand,
    deadline: Option<Duration>,
) -> Result<Running, CommandError> {
    start_with(ClientConfig::new(http::Uri::from_static(ENVD)), connector, token, command, deadline).await
}

async fn start_with(
    config: ClientConfig,
    connector: Connector,
    token: Option<&str>,
    command: &GuestCommand,
    deadline: Option<Duration>,
) -> Result<Running, CommandError> {
    use base64::Engine as _;
    let client = ProcessClient::new(LinkTransport { connector }, config);
    let mut options = CallOptions::default();
    if let Some(deadline) = deadline {
        options = options.with_timeout(deadline);
    }
    if let Some(user) = &command.user {
        let credentials = base64::engine::general_purpose::STANDARD.encode(format!("{user}:"));
        options = options.with_header("authorization", format!("Basic {credentials}"));
    }
    if let Some(token) = token {
        options = options.with_header(ACCESS_TOKEN, token);
    }
    let request = StartRequest {
        process: ProcessConfig {
            cmd: "/bin/bash".into(),
            args: vec!["-l".into(), "-c".into(), command.script.clone()],
            envs: command.env.clone().into_iter().collect(),
            cwd: command.cwd.clone(),
            ..Default::default()
        }
        .into(),
        stdin: Some(false),
        ..Default::default()
    };
    Ok(Running { stream: client.start_with_options(request, options).await.map_err(rpc)? })
}

impl Running {
    /// Its exit status, once it has ended. Cancel-safe: what was not waited for can be waited for again.
    pub(crate) async fn end(&mut self, output: OnOutput<'_>) -> Result<i32, CommandError> {
        while let Some(message) = self.stream.message::<StartResponse>().await.map_err(rpc)? {
            let Some(event) = message.to_owned_message().event.into_option().and_then(|e| e.event) else { continue };
            match event {
                Event::Data(data) => match data.output {
                    Some(Data::Stdout(bytes)) => output(OutputStream::Stdout, &bytes),
                    Some(Data::Stderr(bytes) | Data::Pty(bytes)) => output(OutputStream::Stderr, &bytes),
                    None => {}
                },
                Event::End(end) => return Ok(end.exit_code),
                Event::Start(_) | Event::Keepalive(_) => {}
            }
        }
        Err(CommandError::Cut)
    }
}

fn keep(kept: &mut Vec<u8>, bytes: &[u8]) {
    let room = MAX_OUTPUT_BYTES.saturating_sub(kept.len());
    kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
}

#[expect(clippy::needless_pass_by_value, reason = "used as a function of an error that is being mapped")]
fn rpc(error: connectrpc::ConnectError) -> CommandError {
    CommandError::Rpc { code: error.code.as_str().to_owned(), message: error.message.clone().unwrap_or_default() }
}
