//! Connections into sandboxes, kept between requests.
//!
//! A connection belongs to one generation of a sandbox: a pause ends it without a word from the guest, so every connection
//! carries the generation's `ended` token and is unusable once that is cancelled. A connection is lent to one request at a time
//! and comes back when its response has been read to the end.

use std::{
    collections::HashMap,
    fmt, io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use axum::body::Body;
use bytes::Bytes;
use firkin_runtime::{
    runtime::{DialError, Dialled, Runtime},
    sandbox::SandboxId,
};
use firkin_wire::head;
use http::{Request, Response};
use http_body::{Body as _, Frame, SizeHint};
use hyper::{
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use tokio_util::{
    sync::{CancellationToken, WaitForCancellationFutureOwned},
    task::TaskTracker,
};

use super::guest_tls;
use crate::{error::ProxyError, sever::Sever, target::Target};

/// How long a connection may lie idle. Shorter than what servers in guests commonly allow, so that the guest rarely closes first.
const IDLE: Duration = Duration::from_secs(4);

/// Idle connections kept per port of a sandbox: more parallel requests than that open their own.
const IDLE_PER_TARGET: usize = 8;

/// Longest head of a guest's answer: more than the client's own limit is none of ours, but somewhere it must end.
const MAX_ANSWER_HEAD_BYTES: usize = 2 * head::MAX_BYTES;

/// A connection into a sandbox, in the clear or not.
trait Io: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}

impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Io for T {}

/// How a connection into a sandbox is opened. The runtime, or a test.
#[async_trait]
pub(crate) trait Dial: fmt::Debug + Send + Sync {
    /// Opens one. Cancel-safe.
    async fn dial(&self, id: &SandboxId, port: u16) -> Result<Dialled, DialError>;
}

#[async_trait]
impl Dial for Runtime {
    async fn dial(&self, id: &SandboxId, port: u16) -> Result<Dialled, DialError> {
        Runtime::dial(self, id, port).await
    }
}

/// Every connection into sandboxes.
#[derive(Debug)]
pub(crate) struct ConnectionPool {
    dial: Arc<dyn Dial>,
    idle: Mutex<HashMap<(SandboxId, u16), Vec<Idle>>>,
    /// Runs connections and upgraded streams.
    pub(crate) tasks: TaskTracker,
    /// Cuts all of them.
    pub(crate) stop: CancellationToken,
}

#[derive(Debug)]
struct Idle {
    connection: Connection,
    since: Instant,
}

#[derive(Debug)]
struct Connection {
    sender: SendRequest<Body>,
    ended: CancellationToken,
    leaving: CancellationToken,
}

impl Connection {
    fn usable(&self) -> bool {
        !self.ended.is_cancelled() && !self.leaving.is_cancelled() && !self.sender.is_closed() && self.sender.is_ready()
    }
}

/// An answer of a guest, with what is needed to go on with the connection.
pub(crate) struct Answer {
    /// The answer; its body cuts itself when the sandbox ends, and gives the connection back when it was read.
    pub(crate) response: Response<GuestBody>,
    /// Cancelled when this generation of the sandbox ends.
    pub(crate) ended: CancellationToken,
}

impl ConnectionPool {
    pub(crate) fn new(dial: Arc<dyn Dial>) -> Arc<Self> {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        Arc::new(Self { dial, idle: Mutex::default(), tasks, stop })
    }

    /// Sends one request, over an idle connection if there is one.
    ///
    /// An idle connection may turn out to be dead. The request is sent again only where nothing of it can have had an effect:
    /// it was not written at all, or it has neither a body nor an effect by its method.
    pub(crate) async fn send(self: &Arc<Self>, target: &Target, mut request: Request<Body>) -> Result<Answer, ProxyError> {
        let (replay, bodied) = (replayable(&request), !request.body().is_end_stream());
        while let Some(mut connection) = self.take(target) {
            match until_ended(&connection.ended.clone(), target, connection.sender.try_send_request(request)).await? {
                Ok(response) => return Ok(self.answer(target, connection, response, bodied)),
                Err(mut error) => match (error.take_message(), &replay) {
                    (Some(unsent), _) => request = unsent,
                    (None, Some(copy)) => request = copy.clone_request(),
                    (None, None) => return Err(broken(target, &connection.ended, &error.into_error())),
                },
            }
        }
        let mut connection = self.open(target).await?;
        match until_ended(&connection.ended.clone(), target, connection.sender.send_request(request)).await? {
            Ok(response) => Ok(self.answer(target, connection, response, bodied)),
            Err(error) => Err(broken(target, &connection.ended, &error)),
        }
    }

    /// Opens a connection before anybody asks for it, so that the first request finds it. One that cannot be opened is not missed.
    pub(crate) fn open_ahead(self: &Arc<Self>, target: Target) {
        let pool = Arc::clone(self);
        self.tasks.spawn(async move {
            let opened = tokio::select! {
                opened = pool.open(&target) => opened,
                () = pool.stop.cancelled() => return,
            };
            match opened {
                Ok(connection) => pool.put((target.id, target.port), connection),
                Err(error) => tracing::debug!(?error, sandbox = %target.id, "cannot connect ahead"),
            }
        });
    }

    async fn open(self: &Arc<Self>, target: &Target) -> Result<Connection, ProxyError> {
        let Dialled { stream, ended, leaving, https, .. } = self.dial.dial(&target.id, target.port).await?;
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "cannot switch off Nagle's algorithm");
        }
        let stream: Box<dyn Io> = if https {
            let greeted = until_ended(&ended, target, guest_tls::greet(stream)).await?;
            let unspoken =
                |error| ProxyError::BadAnswer(target.id.clone(), target.port, format!("it does not speak TLS: {error}"));
            Box::new(greeted.map_err(unspoken)?)
        } else {
            Box::new(stream)
        };
        let (sender, connection) = http1::Builder::new()
            .max_headers(head::MAX_HEADERS)
            .max_buf_size(MAX_ANSWER_HEAD_BYTES)
            .preserve_header_case(true)
            .title_case_headers(true)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| broken(target, &ended, &error))?;
        let (pool, key, token) = (Arc::clone(self), (target.id.clone(), target.port), ended.clone());
        self.tasks.spawn(async move {
            tokio::select! {
                result = connection.with_upgrades() => {
                    if let Err(error) = result {
                        tracing::debug!(sandbox = %key.0, port = key.1, %error, "connection into a sandbox broke");
                    }
                }
                () = token.cancelled() => {}
                () = pool.stop.cancelled() => {}
            }
            pool.sweep(&key);
        });
        Ok(Connection { sender, ended, leaving })
    }

    /// An answer and its connection, which is used no more after a refusal of a request with a body (`bodied`): many servers
    /// refuse by the head alone, leave the body unread and close without a word, and the next request would run into that.
    fn answer(self: &Arc<Self>, target: &Target, connection: Connection, response: Response<Incoming>, bodied: bool) -> Answer {
        let ended = connection.ended.clone();
        let refused = response.status().is_client_error() || response.status().is_server_error();
        let lease = Lease { pool: Arc::clone(self), key: (target.id.clone(), target.port), connection };
        let lease = (!(bodied && refused)).then_some(lease);
        let cut = Box::pin(ended.clone().cancelled_owned());
        let response = response.map(|inner| GuestBody { finished: inner.is_end_stream(), inner, cut, lease, sever: None });
        Answer { response, ended }
    }

    fn take(&self, target: &Target) -> Option<Connection> {
        let mut idle = self.idle();
        let key = (target.id.clone(), target.port);
        let connections = idle.get_mut(&key)?;
        connections.retain(|idle| idle.since.elapsed() < IDLE && idle.connection.usable());
        let taken = connections.pop();
        if connections.is_empty() {
            idle.remove(&key);
        }
        Some(taken?.connection)
    }

    fn put(&self, key: (SandboxId, u16), connection: Connection) {
        if connection.ended.is_cancelled() || connection.sender.is_closed() {
            return;
        }
        let mut idle = self.idle();
        let connections = idle.entry(key).or_default();
        if connections.len() < IDLE_PER_TARGET {
            connections.push(Idle { connection, since: Instant::now() });
        }
    }

    /// Forgets the connections of one target that have ended.
    fn sweep(&self, key: &(SandboxId, u16)) {
        let mut idle = self.idle();
        if let Some(connections) = idle.get_mut(key) {
            connections.retain(|idle| !idle.connection.ended.is_cancelled() && !idle.connection.sender.is_closed());
            if connections.is_empty() {
                idle.remove(key);
            }
        }
    }

    fn idle(&self) -> MutexGuard<'_, HashMap<(SandboxId, u16), Vec<Idle>>> {
        // Nothing panics between a lock and its unlock here, so a poisoned map is still whole.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn until_ended<T>(ended: &CancellationToken, target: &Target, wait: impl Future<Output = T>) -> Result<T, ProxyError> {
    tokio::select! {
        biased;
        () = ended.cancelled() => Err(ProxyError::NotFound(target.id.clone())),
        output = wait => Ok(output),
    }
}

/// A guest that is being killed closes its sockets first: then the sandbox, not the port, is what is gone.
fn broken(target: &Target, ended: &CancellationToken, error: &hyper::Error) -> ProxyError {
    if ended.is_cancelled() {
        return ProxyError::NotFound(target.id.clone());
    }
    ProxyError::BadAnswer(target.id.clone(), target.port, error.to_string())
}

/// The head of a request that may be sent twice.
struct Replay(http::request::Parts);

impl Replay {
    fn clone_request(&self) -> Request<Body> {
        Request::from_parts(self.0.clone(), Body::empty())
    }
}

fn replayable(request: &Request<Body>) -> Option<Replay> {
    if !request.method().is_safe() || !request.body().is_end_stream() {
        return None;
    }
    let mut copy = Request::new(());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    copy.headers_mut().clone_from(request.headers());
    Some(Replay(copy.into_parts().0))
}

#[derive(Debug)]
struct Lease {
    pool: Arc<ConnectionPool>,
    key: (SandboxId, u16),
    connection: Connection,
}

/// The body of a guest's answer, passed on frame by frame.
#[derive(Debug)]
pub(crate) struct GuestBody {
    inner: Incoming,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    lease: Option<Lease>,
    finished: bool,
    /// The client's connection, which must not end in order when this does not.
    sever: Option<Sever>,
}

impl GuestBody {
    /// The body, for a client whose connection is reset when the body breaks off.
    pub(crate) fn severing(mut self, sever: Option<Sever>) -> Self {
        self.sever = sever;
        self
    }

    fn broken(&self) {
        if let Some(sever) = &self.sever {
            sever.sever();
        }
    }
}

impl http_body::Body for GuestBody {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        if this.cut.as_mut().poll(cx).is_ready() {
            // An error, not an end: the client must see that its stream was cut.
            this.lease = None;
            this.broken();
            return Poll::Ready(Some(Err(io::Error::from(io::ErrorKind::ConnectionReset).into())));
        }
        let frame = std::task::ready!(Pin::new(&mut this.inner).poll_frame(cx));
        this.finished = frame.is_none() || this.inner.is_end_stream();
        if matches!(frame, Some(Err(_))) {
            this.broken();
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for GuestBody {
    fn drop(&mut self) {
        if let Some(Lease { pool, key, connection }) = self.lease.take().filter(|_| self.finished) {
            pool.put(key, connection);
        }
    }
}
