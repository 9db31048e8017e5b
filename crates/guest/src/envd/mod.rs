//! envd: what the SDKs talk to inside a sandbox, on port 49983.
//!
//! Connect services for processes and files, plain HTTP for file contents and figures, all on one port over HTTP/1.1 and
//! cleartext HTTP/2. Everything that only the host may say comes over the control channel instead.

mod auth;
mod error;
mod files;
mod filesystem;
mod forward;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod keepalive;
mod metrics;
mod paths;
mod process;
mod server;
mod state;
mod trouble;
mod users;
mod xattrs;

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    middleware,
    response::{IntoResponse, Response},
    routing::{any_service, get, post},
};
use connectrpc::{CompressionPolicy, ConnectRpcService, Limits};
use firkin_causes::chain;
use tower_http::cors::{AllowHeaders, AllowOrigin, Any, CorsLayer, ExposeHeaders};

pub(crate) use self::{
    auth::{ACCESS_TOKEN, Token, token_of},
    metrics::Meter,
    process::{Ends, Launch, Size, Streams, Terminal, find, launch, nonblocking, open_terminal},
    server::{ServeError, accept, bind, runtime, serve},
    state::{EnvdState, Settings, sandbox_env},
    users::{User, UserDb, UserError},
};
use self::{
    error::ApiError,
    filesystem::FilesystemService,
    process::{ProcessService, Processes},
};
use crate::reaper::Reaper;

/// The largest Connect message taken, in bytes. Standard input is sent whole by some clients; file contents are not.
const MAX_MESSAGE_BYTES: usize = 32 << 20;

/// envd's routes.
pub(crate) fn routes(state: &EnvdState, reaper: Reaper) -> Router {
    let meter = Arc::new(Meter::default());
    let processes = Processes::new(reaper);
    let services = connectrpc::Router::new()
        .add_service(Arc::new(ProcessService::new(state.clone(), processes)))
        .add_service(Arc::new(FilesystemService::new(state.clone())));
    let connect = ConnectRpcService::new(services)
        .with_limits(Limits::default().with_max_request_body_size(MAX_MESSAGE_BYTES).with_max_message_size(MAX_MESSAGE_BYTES))
        // SDKs read event by event and do not expect encoded bodies.
        .with_compression_policy(CompressionPolicy::disabled());
    let cors = CorsLayer::new()
        .allow_origin(AllowOrigin::any())
        .allow_methods(Any)
        // Not a wildcard: browsers exclude `Authorization` from it.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(ExposeHeaders::any());
    Router::new()
        .route("/health", get(|| async { StatusCode::NO_CONTENT }))
        .route("/metrics", get(move || figures(meter)))
        .route("/envs", get(envs))
        .route("/files", get(files::get).post(files::post))
        .route("/files/compose", post(files::compose))
        .route(firkin_wire::forward::PATH, get(forward::forward))
        .route("/process.Process/{method}", any_service(connect.clone()))
        .route("/filesystem.Filesystem/{method}", any_service(connect))
        .fallback(|| async { ApiError::new(StatusCode::NOT_FOUND, "no such route") })
        .method_not_allowed_fallback(|| async { ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method not allowed") })
        .layer(middleware::from_fn_with_state(state.clone(), auth::require_token))
        .layer(cors)
        .with_state(state.clone())
}

async fn figures(meter: Arc<Meter>) -> Response {
    match tokio::task::spawn_blocking(move || meter.read()).await {
        Ok(Ok(stats)) => Json(metrics::Figures::from(stats)).into_response(),
        Ok(Err(error)) => ApiError::internal(chain(&error)).into_response(),
        Err(error) => ApiError::internal(error.to_string()).into_response(),
    }
}

async fn envs(State(state): State<EnvdState>) -> Response {
    ([("cache-control", "no-store")], Json(&state.settings().env)).into_response()
}
