//! Bytes passed on in both directions, until both ends have closed, one has failed, or nothing has come for too long.
//!
//! A side that closes its half is passed on as that: the other may go on sending. Each direction holds one buffer, and reads no more
//! while that is not taken.

use std::{
    io,
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes},
    time::{Instant, sleep_until},
};

use crate::dial::Connection;

/// Of one direction. Two a connection: with as many connections as one network may have, 8 MiB.
const BUFFER_BYTES: usize = 8 << 10;

/// Why a connection ended that was passed on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Both sides have closed.
    Closed,
    /// One side failed.
    Failed,
    /// Nothing came from either side.
    Idle,
}

/// Passes bytes on between two connections. Both are closed, at once, when it is dropped.
pub(crate) async fn relay(client: &mut dyn Connection, server: &mut dyn Connection, idle: Duration) -> Ended {
    let heard = Heard::new();
    let mut client = Watched { inner: client, heard: &heard };
    let mut server = Watched { inner: server, heard: &heard };
    tokio::select! {
        copied = copy_bidirectional_with_sizes(&mut client, &mut server, BUFFER_BYTES, BUFFER_BYTES) => match copied {
            Ok(_) => Ended::Closed,
            Err(error) => {
                tracing::debug!(%error, "a connection was cut by one side");
                Ended::Failed
            }
        },
        () = heard.nothing_for(idle) => Ended::Idle,
    }
}

/// When a side last took something. What was read is offered to the other side at once.
pub(crate) struct Heard {
    begun: Instant,
    last_ms: AtomicU64,
}

impl Heard {
    pub(crate) fn new() -> Self {
        Self { begun: Instant::now(), last_ms: AtomicU64::new(0) }
    }

    pub(crate) fn something(&self) {
        self.last_ms.store(u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(crate) async fn nothing_for(&self, idle: Duration) {
        loop {
            let end = self.begun + Duration::from_millis(self.last_ms.load(Ordering::Relaxed)) + idle;
            if Instant::now() >= end {
                return;
            }
            sleep_until(end).await;
        }
    }
}

/// A connection that tells when it takes bytes.
struct Watched<'a> {
    inner: &'a mut dyn Connection,
    heard: &'a Heard,
}

impl AsyncRead for Watched<'_> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.inner).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Watched<'_> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut *self.inner).poll_write(cx, bytes))?;
        self.heard.something();
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn no_more_is_read_than_is_taken() {
        let (mut client, mut ours) = duplex(1);
        let (mut theirs, mut server) = duplex(1);
        let relay = tokio::spawn(async move { relay(&mut ours, &mut theirs, HOUR).await });
        let mut sent = 0;
        while tokio::time::timeout(Duration::from_secs(1), client.write_all(b"x")).await.is_ok() {
            sent += 1;
        }
        assert!((BUFFER_BYTES..=BUFFER_BYTES + 2).contains(&sent), "{sent}");
        // The last one was given up.
        drop(client);
        let mut taken = Vec::new();
        server.read_to_end(&mut taken).await.unwrap();
        assert_eq!(taken.len(), sent);
        drop(server);
        assert_eq!(relay.await.unwrap(), Ended::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_connection_on_which_nothing_comes_is_idle() {
        let (mut client, mut ours) = duplex(64);
        let (mut theirs, mut server) = duplex(64);
        let relay = tokio::spawn(async move { relay(&mut ours, &mut theirs, HOUR).await });
        let begun = Instant::now();
        for _ in 0..3 {
            tokio::time::sleep(HOUR / 2).await;
            // Either side counts for both.
            server.write_all(b"x").await.unwrap();
            client.read_exact(&mut [0]).await.unwrap();
        }
        assert_eq!(relay.await.unwrap(), Ended::Idle);
        let lasted = begun.elapsed();
        assert!(lasted >= HOUR * 5 / 2 && lasted < HOUR * 5 / 2 + Duration::from_secs(1), "{lasted:?}");
    }
}
