//! A client whose first bytes were read already, to see what it wants: they are read again.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use crate::relay::Heard;

pub(super) struct Rewound {
    first: Vec<u8>,
    /// How many of them were read again.
    read: usize,
    client: TcpStream,
    /// Is told of all that comes and goes.
    heard: Arc<Heard>,
}

impl Rewound {
    pub(super) fn new(first: Vec<u8>, client: TcpStream, heard: Arc<Heard>) -> Self {
        Self { first, read: 0, client, heard }
    }
}

impl AsyncRead for Rewound {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let left = &self.first[self.read..];
        if !left.is_empty() {
            let taken = left.len().min(buffer.remaining());
            buffer.put_slice(&left[..taken]);
            self.read += taken;
            return Poll::Ready(Ok(()));
        }
        ready!(Pin::new(&mut self.client).poll_read(cx, buffer))?;
        self.heard.something();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Rewound {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.client).poll_write(cx, bytes))?;
        self.heard.something();
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.client).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.client).poll_shutdown(cx)
    }
}
