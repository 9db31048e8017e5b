//! Cutting a client's connection so that nobody takes the cut for an end.
//!
//! A body that breaks off must look broken. In HTTP/2 a stream is reset; in HTTP/1.1 the connection is all there is, and closing
//! it in order (with a FIN) leaves it to each client's parser to notice what is missing: some call that a protocol error, not a
//! lost connection, and then do not ask whether the sandbox is still there. So the connection is reset.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use http::{Request, Version};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// Has the connection of a request be reset instead of closed. Clones are for the same connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sever(Arc<AtomicBool>);

impl Sever {
    /// Of the request's own connection. A stream of an HTTP/2 connection is reset by itself, and its connection is not touched.
    pub(crate) fn of<B>(request: &Request<B>) -> Option<Self> {
        (request.version() <= Version::HTTP_11).then(|| request.extensions().get().cloned()).flatten()
    }

    /// From now on the end of the connection is a reset.
    pub(crate) fn sever(&self) {
        self.0.store(true, Ordering::Release);
    }
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
