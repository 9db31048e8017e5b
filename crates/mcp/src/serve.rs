//! Serving: the token, the servers, the endpoint, and the word to the process that waits for it.

use std::{
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    sync::Arc,
};

use axum::{
    Router,
    extract::{Request, State},
    http::{StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
};
use firkin_causes::chain;
use rmcp::transport::streamable_http_server::{
    StreamableHttpServerConfig, StreamableHttpService, session::local::LocalSessionManager,
};
use subtle::ConstantTimeEq as _;
use tokio::net::TcpListener;

use crate::{
    config,
    detach::READY,
    gateway::{Gateway, SameName},
    limits::{MAX_CONFIG_BYTES, PATH, PORT, SESSION_IDLE},
    token::{TOKEN, TOKEN_FILE, keep},
    upstream::{self, UpstreamError},
};

/// Why the gateway does not serve.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error("cannot read the configuration of the MCP gateway")]
    Input(#[source] io::Error),
    #[error(transparent)]
    Config(#[from] config::ConfigError),
    #[error("cannot serve without a token: `{TOKEN}` is not set")]
    NoToken,
    #[error("cannot keep the token in `{TOKEN_FILE}`")]
    Token(#[source] io::Error),
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    #[error(transparent)]
    SameName(#[from] SameName),
    #[error("cannot listen on port {PORT}: is a gateway running already?")]
    Listen(#[source] io::Error),
    #[error("cannot become a process of its own")]
    Detach(#[source] io::Error),
    #[error("cannot go on serving")]
    Serve(#[source] io::Error),
}

/// Serves until the sandbox ends. A failure is said on standard output, where it is waited for, as long as anybody waits.
pub(crate) fn run() -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = runtime.map_err(ServeError::Serve).and_then(|runtime| runtime.block_on(serve()));
    outcome.map_err(|error| {
        let reason = chain(&error);
        // Whoever waited may have gone: then the log has it.
        match tell(&reason) {
            Ok(()) => reason,
            Err(_) => format!("{reason} (and nobody waited to hear it)"),
        }
    })
}

async fn serve() -> Result<(), ServeError> {
    // The process that waits is about to end, and its terminal or session with it.
    nix::unistd::setsid().map_err(|errno| ServeError::Detach(errno.into()))?;
    let mut json = String::new();
    io::stdin().take(MAX_CONFIG_BYTES).read_to_string(&mut json).map_err(ServeError::Input)?;
    let servers = config::parse(&json)?;
    let token = std::env::var(TOKEN).ok().filter(|token| !token.is_empty()).ok_or(ServeError::NoToken)?;
    // Taken before the servers start: a second gateway shall not start them a second time.
    let listener = TcpListener::bind(("0.0.0.0", PORT)).await.map_err(ServeError::Listen)?;
    keep(Path::new(TOKEN_FILE), &token).map_err(ServeError::Token)?;
    let upstreams = upstream::start_all(servers).await?;
    let gateway = Gateway::new(upstreams)?;
    tell(READY).map_err(ServeError::Detach)?;
    leave_output().map_err(ServeError::Detach)?;
    axum::serve(listener, router(gateway, token)).await.map_err(ServeError::Serve)
}

fn router(gateway: Gateway, token: String) -> Router {
    let mut sessions = LocalSessionManager::default();
    sessions.session_config.keep_alive = Some(SESSION_IDLE);
    // Any name leads here, through the host's proxy: it is the token that lets in.
    let config = StreamableHttpServerConfig::default().disable_allowed_hosts();
    let service = StreamableHttpService::new(move || Ok(gateway.clone()), Arc::new(sessions), config);
    Router::new().nest_service(PATH, service).layer(middleware::from_fn_with_state(Arc::<str>::from(token), authorise))
}

/// Lets in only who shows the token.
async fn authorise(State(token): State<Arc<str>>, request: Request, next: Next) -> Response {
    let shown = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let shown = shown.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
    // In a time that does not tell where the two differ.
    if shown.as_bytes().ct_eq(token.as_bytes()).into() {
        return next.run(request).await;
    }
    (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer")], "unauthorized: the gateway's token is needed\n")
        .into_response()
}

fn tell(line: &str) -> io::Result<()> {
    let mut output = io::stdout().lock();
    output.write_all(line.replace('\n', " ").as_bytes())?;
    output.write_all(b"\n")?;
    output.flush()
}

/// Lets go of the pipe to the process that waited.
fn leave_output() -> io::Result<()> {
    let nothing = std::fs::OpenOptions::new().read(true).write(true).custom_flags(nix::libc::O_CLOEXEC).open("/dev/null")?;
    nix::unistd::dup2_stdin(&nothing)?;
    nix::unistd::dup2_stdout(&nothing)?;
    Ok(())
}
