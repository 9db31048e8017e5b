//! Accepting connections: bounded in number, cut when a restore begins a new era.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, extract::ConnectInfo, middleware::from_fn};
use firkin_wire::{head, unread};
use http::Request;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::{Builder, Runtime},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tower::ServiceExt;

use super::state::EnvdState;

/// Connections open at once. A client opens a few; the host's proxy, one per request in flight.
const MAX_CONNECTIONS: usize = 1024;

/// How long a request's head may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Pause after a failed accept, which means that file descriptors or memory ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why envd does not serve.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// Threads or timers cannot be had.
    #[error("cannot start the runtime")]
    Runtime(#[source] io::Error),
    /// The port cannot be had.
    #[error("cannot listen on `{address}`")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The runtime: two workers, because one may hold a long copy while the other answers; threads for blocking calls on demand.
pub(crate) fn runtime() -> Result<Runtime, ServeError> {
    Builder::new_multi_thread().worker_threads(2).max_blocking_threads(32).enable_all().build().map_err(ServeError::Runtime)
}

/// Opens the port.
pub(crate) fn bind(address: SocketAddr) -> Result<std::net::TcpListener, ServeError> {
    let bind = || {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    bind().map_err(|source| ServeError::Listen { address, source })
}

/// Serves envd for ever.
pub(crate) async fn serve(listener: std::net::TcpListener, routes: Router, state: EnvdState) -> Result<(), ServeError> {
    state.set_serving();
    accept(listener, routes, state).await
}

/// Serves routes for ever. Their connections end with the era too.
pub(crate) async fn accept(listener: std::net::TcpListener, routes: Router, state: EnvdState) -> Result<(), ServeError> {
    let listener = TcpListener::from_std(listener).map_err(ServeError::Runtime)?;
    let routes = routes.layer(from_fn(unread::settle));
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let permit = Arc::clone(&permits).acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, peer)) => {
                tokio::spawn(connection((stream, peer), routes.clone(), state.clone(), permit));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection((stream, peer): (TcpStream, SocketAddr), routes: Router, state: EnvdState, permit: OwnedSemaphorePermit) {
    let era = state.era();
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot switch off Nagle's algorithm");
    }
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(head::MAX_HEADERS)
        .max_buf_size(head::MAX_BYTES);
    builder.http2().timer(TokioTimer::new()).max_header_list_size(head::MAX_LIST_BYTES);
    let service = TowerToHyperService::new(routes.map_request(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        request
    }));
    let serving = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::select! {
        result = serving => if let Err(error) = result {
            tracing::debug!(error, "connection ended early");
        },
        // Dropping the connection drops its streams, and with them their subscriptions.
        () = era.cancelled() => {}
    }
    drop(permit);
}
