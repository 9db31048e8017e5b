//! Cutting a client's connection so that nobody takes the cut for an end.
//!
//! A body that breaks off must look broken. In HTTP/2 a stream is reset; in HTTP/1.1 the connection is all there is, and closing
//! it in order (with a FIN) leaves it to each client's parser to notice what is missing: some call that a protocol error, not a
//! lost connection, and then do not ask whether the sandbox is still there. So the connection is reset.
//!
//! Clients that E2B released earlier have it the other way round: they take what they call a protocol error for the loss, and a
//! reset for something that they do not know. They say who they are, and get an end that is early but in order.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use http::{Request, Version, header};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// How the user agent of E2B's Python SDK begins; its release follows.
const PYTHON_SDK: &str = "e2b-python-sdk/";

/// The first release whose calls of envd's services (not its files) know a reset, as (major, minor): from there on they go through
/// pyqwest instead of httpcore, and one that ends early is a protocol error.
const CALLS_KNOW_RESETS: (u32, u32) = (2, 35);

/// The first release that knows both ends of `/files` for a loss.
const FILES_KNOW_RESETS: (u32, u32) = (2, 53);

/// The route of envd that sends files.
const FILES: &str = "/files";

/// Has the connection of a request be reset instead of closed. Clones are for the same connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sever(Arc<AtomicBool>);

impl Sever {
    /// Of the request's own connection, if that is to be reset. A stream of an HTTP/2 connection is reset by itself, and its
    /// connection is not touched.
    pub(crate) fn of<B>(request: &Request<B>) -> Option<Self> {
        let resets = request.version() <= Version::HTTP_11 && knows_resets(request);
        resets.then(|| request.extensions().get().cloned()).flatten()
    }

    /// From now on the end of the connection is a reset.
    pub(crate) fn sever(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Whether the client takes a reset for a lost connection. Only releases of E2B's Python SDK are known that do not.
fn knows_resets<B>(request: &Request<B>) -> bool {
    let Some(release) = python_sdk(request) else { return true };
    release >= if request.uri().path() == FILES { FILES_KNOW_RESETS } else { CALLS_KNOW_RESETS }
}

/// The release of E2B's Python SDK that sent this, as (major, minor).
fn python_sdk<B>(request: &Request<B>) -> Option<(u32, u32)> {
    let agent = request.headers().get(header::USER_AGENT)?.to_str().ok()?;
    let mut numbers = agent.strip_prefix(PYTHON_SDK)?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// A client's connection that can be severed.
#[derive(Debug)]
pub(crate) struct Severable {
    stream: TcpStream,
    sever: Sever,
}

impl Severable {
    pub(crate) fn new(stream: TcpStream, sever: Sever) -> Self {
        Self { stream, sever }
    }

    /// The first byte, which stays to be read. `None` at the end of the stream.
    pub(crate) async fn first_byte(&self) -> io::Result<Option<u8>> {
        let mut byte = [0];
        Ok((self.stream.peek(&mut byte).await? == 1).then_some(byte[0]))
    }

    fn severed(&self) -> bool {
        self.sever.0.load(Ordering::Acquire)
    }
}

impl Drop for Severable {
    fn drop(&mut self) {
        if self.severed()
            && let Err(error) = self.stream.set_zero_linger()
        {
            tracing::debug!(%error, "cannot reset a connection; it is closed");
        }
    }
}

impl AsyncRead for Severable {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Severable {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A FIN that went ahead of the reset would be read first.
        if self.severed() { Poll::Ready(Ok(())) } else { Pin::new(&mut self.stream).poll_shutdown(cx) }
    }
}
