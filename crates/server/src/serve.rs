//! Listening: connections in, bounded in number and in what each may hold, and an orderly end.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body, extract::ConnectInfo};
use firkin_runtime::runtime::Runtime;
use firkin_wire::head;
use http::Request;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;

use crate::{
    App, ServerConfig, assemble,
    doors::{Doors, Held, Place, Tally},
    nodes::{FromPeer, MORE_BYTES, MORE_HEADERS, Nodes},
    redirect,
    sever::{Sever, Severable},
    tls::{Listener, TlsIdentity},
};

/// How long a connection may lie idle between two requests, the head of the next included (hyper counts both as one). Longer
/// than the 300 s that the SDKs keep idle connections, so that it is they who close them and no request meets a closing one.
const IDLE_DEADLINE: Duration = Duration::from_secs(330);

/// Requests in flight on one HTTP/2 connection: an SDK multiplexes every stream of a process over one.
const MAX_STREAMS: u32 = 1024;

/// An HTTP/2 peer that does not answer for so long is gone.
const PING_EVERY: Duration = Duration::from_secs(30);

/// The pause after a failed accept: descriptors come back when connections end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why the server stopped serving by itself.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// There is nothing to listen on.
    #[error("cannot serve without a listener")]
    NoListener,
    /// It has a door for peers, and is in no cluster.
    #[error("cannot listen for peers without a cluster")]
    NoCluster,
    /// The audit log cannot be opened.
    #[error("cannot open the audit log")]
    Audit(#[source] io::Error),
    /// A listener broke.
    #[error("cannot accept connections on {address}")]
    Accept {
        /// Its address.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Serves both planes on every listener until `shutdown` is cancelled, then lets requests under way finish for
/// [`ServerConfig::shutdown_grace`] and cuts the rest. The runtime goes on: stopping it is the caller's next step.
pub async fn serve(
    listeners: Vec<Listener>,
    runtime: Runtime,
    config: ServerConfig,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    if listeners.is_empty() {
        return Err(ServeError::NoListener);
    }
    let tls = listeners.iter().any(|listener| matches!(listener, Listener::Tls(..)));
    let app = App::new(runtime, config, tls).map_err(ServeError::Audit)?;
    let server = Server {
        router: assemble(Arc::clone(&app)),
        connections: TaskTracker::new(),
        doors: Doors::new(app.config.max_connections, app.config.max_connections_per_peer),
        // Whatever strangers hold, peers have doors of their own.
        peers: Doors::new(app.config.max_connections, app.config.max_connections),
        failures: Arc::default(),
        head_deadline: app.config.head_deadline,
        stranger_idle: app.config.stranger_idle,
        // Its own token: an accept loop that fails must stop the others, but not the caller.
        drain: shutdown.child_token(),
        cut: CancellationToken::new(),
    };
    let mut doors = Vec::new();
    for listener in listeners {
        doors.push(match listener {
            Listener::Plain(listener) => (listener, Door::Plain),
            Listener::Tls(listener, identity) => (listener, Door::Tls(identity)),
            Listener::Peers(listener) => (listener, Door::Peers(app.config.nodes.clone().ok_or(ServeError::NoCluster)?)),
        });
    }
    let sampler = tokio::spawn({
        let (runtime, stop) = (app.host().clone(), server.drain.clone());
        async move { runtime.sample_all(stop).await }
    });
    let mut loops = JoinSet::new();
    for (listener, door) in doors {
        loops.spawn(server.clone().accept(listener, door));
    }
    let mut result = Ok(());
    while let Some(ended) = loops.join_next().await {
        server.drain.cancel();
        // A loop is neither aborted nor does it panic.
        if let Ok(Err(error)) = ended {
            result = Err(error);
        }
    }
    server.finish(&app).await;
    // It was told to stop with the listeners, and does not panic.
    drop(sampler.await);
    result
}

/// Whether a request came in over TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Encrypted(pub(crate) bool);

/// How connections of a listener begin.
#[derive(Debug, Clone)]
enum Door {
    Plain,
    Tls(TlsIdentity),
    Peers(Arc<dyn Nodes>),
}

#[derive(Debug, Clone)]
struct Server {
    router: Router,
    connections: TaskTracker,
    doors: Arc<Doors>,
    /// The same of the peer port.
    peers: Arc<Doors>,
    /// Accepts that failed.
    failures: Arc<Tally>,
    head_deadline: Duration,
    stranger_idle: Duration,
    drain: CancellationToken,
    cut: CancellationToken,
}

impl Server {
    async fn accept(self, listener: TcpListener, door: Door) -> Result<(), ServeError> {
        let doors = if matches!(door, Door::Peers(_)) { &self.peers } else { &self.doors };
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.drain.cancelled() => return Ok(()),
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    // Whoever finds no place is hung up on, which costs nothing.
                    if let Some(place) = doors.enter(peer.ip()) {
                        let (server, door) = (self.clone(), door.clone());
                        self.connections.spawn(async move {
                            tokio::select! {
                                biased;
                                () = place.evicted() => tracing::debug!(%peer, "an idle connection made room for another"),
                                () = server.greet(stream, peer, door, &place) => {}
                            }
                        });
                    }
                }
                Err(error) if is_passing(&error) => {
                    if let Some(count) = self.failures.count() {
                        tracing::warn!(%error, count, "cannot accept connections");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                Err(source) => {
                    let address =
                        listener.local_addr().map_or_else(|_| "a closed socket".to_owned(), |address| address.to_string());
                    return Err(ServeError::Accept { address, source });
                }
            }
        }
    }

    /// Serves a connection, after its handshake if it is an encrypted one.
    async fn greet(self, stream: TcpStream, peer: SocketAddr, door: Door, place: &Place) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "cannot switch off Nagle's algorithm");
        }
        let sever = Sever::default();
        let stream = Severable::new(stream, sever.clone());
        match door {
            Door::Plain => self.connection(stream, (peer, place), (sever, Encrypted(false)), None).await,
            Door::Tls(TlsIdentity(acceptor)) => {
                let begins = tokio::select! {
                    () = self.drain.cancelled() => return,
                    begins = tokio::time::timeout(self.head_deadline, stream.first_byte()) => begins,
                };
                if !matches!(begins, Ok(Ok(Some(redirect::HANDSHAKE)))) {
                    if let Ok(Ok(Some(_))) = begins {
                        self.redirect(stream, peer).await;
                    }
                    return;
                }
                if let Some(stream) = self.handshake(&acceptor, stream, peer).await {
                    self.connection(stream, (peer, place), (sever, Encrypted(true)), None).await;
                }
            }
            Door::Peers(nodes) => {
                let Some(stream) = self.handshake(&nodes.greeter(), stream, peer).await else { return };
                let shown = stream.get_ref().1.peer_certificates().and_then(|chain| nodes.peer(chain));
                let Some(shown) = shown else { return };
                place.know();
                self.connection(stream, (peer, place), (sever, Encrypted(true)), Some(FromPeer(shown))).await;
            }
        }
    }

    async fn handshake(&self, acceptor: &TlsAcceptor, stream: Severable, peer: SocketAddr) -> Option<TlsStream<Severable>> {
        let handshake = tokio::time::timeout(self.head_deadline, acceptor.accept(stream));
        let handshake = tokio::select! {
            () = self.drain.cancelled() => return None,
            handshake = handshake => handshake,
        };
        match handshake {
            Ok(Ok(stream)) => return Some(stream),
            Ok(Err(error)) => tracing::debug!(%peer, %error, "a handshake failed"),
            Err(_) => tracing::debug!(%peer, "a handshake did not end in time"),
        }
        None
    }

    /// Answers the first request of a connection that should have been encrypted, and closes it.
    async fn redirect(self, stream: Severable, peer: SocketAddr) {
        let service = service_fn(|request: Request<Incoming>| async move { Ok::<_, Infallible>(redirect::to_https(&request)) });
        let builder = builder();
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        let served = tokio::select! {
            () = self.drain.cancelled() => return,
            served = tokio::time::timeout(self.head_deadline, connection) => served,
        };
        match served {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%peer, %error, "an unencrypted connection did not speak HTTP"),
            Err(_) => tracing::debug!(%peer, "no request arrived in time on an unencrypted connection"),
        }
    }

    async fn connection(
        self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        (peer, place): (SocketAddr, &Place),
        (sever, encrypted): (Sever, Encrypted),
        from_peer: Option<FromPeer>,
    ) {
        let (router, spoke) = (self.router.clone(), Arc::new(AtomicBool::new(false)));
        let (first, own) = (Arc::clone(&spoke), place.clone());
        let is_peer = from_peer.is_some();
        let service = service_fn(move |mut request: Request<Incoming>| {
            let busy = own.busy();
            request.extensions_mut().insert(ConnectInfo(peer));
            request.extensions_mut().insert(own.clone());
            first.store(true, Ordering::Relaxed);
            request.extensions_mut().insert(sever.clone());
            request.extensions_mut().insert(encrypted);
            if let Some(from_peer) = &from_peer {
                request.extensions_mut().insert(from_peer.clone());
            }
            let answer = router.clone().oneshot(request.map(Body::new));
            async move { answer.await.map(|response| response.map(|body| Held { body, _busy: busy })) }
        });
        let mut builder = builder();
        if is_peer {
            // What a client may send is as much here as where it came in, with what the node there says of it.
            builder.http1().max_headers(head::MAX_HEADERS + MORE_HEADERS).max_buf_size(head::MAX_BYTES + MORE_BYTES);
        }
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        // Until the first head is whole, not even the protocol is known, and hyper's own deadline does not run.
        let patience = tokio::time::sleep(self.head_deadline);
        tokio::pin!(connection, patience);
        let (mut draining, mut waiting, mut leaving) = (false, true, false);
        loop {
            tokio::select! {
                biased;
                () = self.cut.cancelled() => break,
                () = self.drain.cancelled(), if !draining => {
                    draining = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = patience.as_mut(), if waiting => {
                    if !spoke.load(Ordering::Relaxed) {
                        tracing::debug!(%peer, "no request arrived in time");
                        break;
                    }
                    // From now on only whoever has shown nothing is waited for so shortly.
                    let more = match place.patience(self.stranger_idle) {
                        Some(Duration::ZERO) if leaving => break,
                        // A request may be on its way already: it is answered, however long that takes.
                        Some(Duration::ZERO) => {
                            leaving = true;
                            connection.as_mut().graceful_shutdown();
                            self.stranger_idle
                        }
                        Some(more) => more,
                        // It is known, or a visitor: the longer deadline holds.
                        None => {
                            waiting = false;
                            continue;
                        }
                    };
                    patience.as_mut().reset(tokio::time::Instant::now() + more);
                }
                result = connection.as_mut() => {
                    if let Err(error) = result {
                        tracing::debug!(%peer, error = %error, "connection ended early");
                    }
                    break;
                }
            }
        }
    }

    /// Waits for what is under way, but not for ever.
    async fn finish(self, app: &App) {
        app.closing.cancel();
        self.connections.close();
        app.pool.tasks.close();
        if tokio::time::timeout(app.config.shutdown_grace, self.connections.wait()).await.is_err() {
            tracing::info!(open = self.connections.len(), "cutting connections that are still open");
        }
        self.cut.cancel();
        app.pool.stop.cancel();
        self.connections.wait().await;
        app.pool.tasks.wait().await;
    }
}

fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_DEADLINE)
        .max_headers(head::MAX_HEADERS)
        .max_buf_size(head::MAX_BYTES)
        .preserve_header_case(true);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(head::MAX_LIST_BYTES)
        .adaptive_window(true)
        .keep_alive_interval(PING_EVERY);
    builder
}

/// Errors of `accept` that say nothing about the listener: the peer left, or descriptors are short for a while.
fn is_passing(error: &io::Error) -> bool {
    const EMFILE: i32 = 24;
    const ENFILE: i32 = 23;
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
            | io::ErrorKind::OutOfMemory
    ) || matches!(error.raw_os_error(), Some(EMFILE | ENFILE))
}
