//! The dashboard as a client of a sandbox's envd: the same way in as the SDKs', over the same connections, with the sandbox's own token.

use std::sync::Arc;

use axum::body::Body;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use connectrpc::client::{BoxFuture, ClientBody, ClientConfig, ClientTransport};
use firkin_runtime::sandbox::{RuntimeSandbox, SandboxState};
use firkin_wire::{
    ENVD_PORT,
    envd::{filesystem::FilesystemClient, process::ProcessClient},
    headers::ACCESS_TOKEN,
};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Uri, header};

use crate::{
    App,
    error::{ApiError, ProxyError},
    proxy::{self, pool::ConnectionPool},
    target::Target,
};

/// Where envd is, as it is told.
const ENVD: &str = "http://localhost";

/// Longest message of envd that is read: a directory of as many entries as a page shows has less.
const MAX_MESSAGE_BYTES: usize = 8 << 20;

/// Users that one can be in a sandbox.
pub(super) const USERS: [&str; 2] = ["user", "root"];

/// Requests to envd of one sandbox.
#[derive(Debug, Clone)]
pub(super) struct Transport {
    pool: Arc<ConnectionPool>,
    target: Target,
}

impl ClientTransport for Transport {
    type ResponseBody = Body;
    type Error = ProxyError;

    fn send(&self, request: Request<ClientBody>) -> BoxFuture<'static, Result<Response<Body>, ProxyError>> {
        let Self { pool, target } = self.clone();
        Box::pin(async move { proxy::forward(&pool, target, request.map(Body::new)).await })
    }
}

/// envd of one running sandbox, as one of its users.
pub(super) struct Envd {
    transport: Transport,
    headers: HeaderMap,
}

impl Envd {
    /// Of this sandbox, as this user. A paused one has none: it is not woken by somebody who looks.
    pub(super) fn of(app: &App, sandbox: &RuntimeSandbox, user: &str) -> Result<Self, ApiError> {
        if sandbox.state != SandboxState::Running {
            return Err(ApiError::conflict(format!("sandbox `{}` is paused: resume it first", sandbox.id)));
        }
        let user =
            USERS.iter().find(|known| **known == user).ok_or_else(|| ApiError::bad_request("`user` is `user` or `root`"))?;
        let mut headers = HeaderMap::new();
        let basic = format!("Basic {}", STANDARD.encode(format!("{user}:")));
        headers.insert(header::AUTHORIZATION, HeaderValue::from_str(&basic).expect("base64 is a header"));
        if let Some(token) = &sandbox.envd_access_token {
            let token = HeaderValue::from_str(token).map_err(|_| ApiError::bad_request("the sandbox's token is no header"))?;
            headers.insert(HeaderName::from_static(ACCESS_TOKEN), token);
        }
        let transport = Transport { pool: Arc::clone(&app.pool), target: Target { id: sandbox.id.clone(), port: ENVD_PORT } };
        Ok(Self { transport, headers })
    }

    fn config(&self) -> ClientConfig {
        ClientConfig::new(Uri::from_static(ENVD))
            .with_default_headers(self.headers.clone())
            .with_default_max_message_size(MAX_MESSAGE_BYTES)
    }

    /// Its processes.
    pub(super) fn processes(&self) -> ProcessClient<Transport> {
        ProcessClient::new(self.transport.clone(), self.config())
    }

    /// Its files.
    pub(super) fn filesystem(&self) -> FilesystemClient<Transport> {
        FilesystemClient::new(self.transport.clone(), self.config())
    }

    /// Any request to it.
    pub(super) async fn send(&self, mut request: Request<Body>) -> Result<Response<Body>, ApiError> {
        request.headers_mut().extend(self.headers.clone());
        proxy::forward(&self.transport.pool, self.transport.target.clone(), request)
            .await
            .map_err(|error| ApiError::unreachable(&error))
    }
}
