//! The control channel: two FIFOs that are the first process's standard streams.
//!
//! The sandbox holds both open for reading and for writing, so neither ends while it lives, and whoever opens them later speaks to the
//! same agent. Of the connections that were given out only the last is served: the one before is told that it has ended.

use std::{
    fs::FileType,
    io,
    os::unix::fs::FileTypeExt,
    path::Path,
    pin::Pin,
    task::{Context, Poll},
};

use nix::{sys::stat::Mode, unistd::mkfifo};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::unix::pipe::{OpenOptions, Receiver, Sender},
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::directory;

/// What the agent reads.
pub(super) const INPUT: &str = "control.in";
/// What it writes.
pub(super) const OUTPUT: &str = "control.out";

/// Makes both.
pub(super) fn make(dir: &Path) -> io::Result<()> {
    for name in [INPUT, OUTPUT] {
        mkfifo(&dir.join(name), Mode::S_IRUSR | Mode::S_IWUSR)?;
    }
    Ok(())
}

/// A connection. It ends with the sandbox, or when its token is cancelled.
#[derive(Debug)]
pub(super) struct Channel {
    input: Sender,
    output: Receiver,
    ended: CancellationToken,
    end: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Channel {
    /// Opens the FIFOs in `dir` that a sandbox has open. Fails where it has not.
    pub(super) fn open(dir: &Path, ended: CancellationToken) -> io::Result<Self> {
        let held = directory::enter(dir)?;
        let look = |name| directory::look(&directory::within(&held, name), FileType::is_fifo, "it is not a FIFO");
        let (input, output) = (look(INPUT)?, look(OUTPUT)?);
        let input = OpenOptions::new().open_sender(directory::itself(&input))?;
        let output = OpenOptions::new().open_receiver(directory::itself(&output))?;
        let end = Box::pin(ended.clone().cancelled_owned());
        Ok(Self { input, output, ended, end })
    }

    fn has_ended(&mut self, context: &mut Context<'_>) -> bool {
        self.ended.is_cancelled() || self.end.as_mut().poll(context).is_ready()
    }
}

impl AsyncRead for Channel {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.has_ended(context) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.output).poll_read(context, buffer)
    }
}

impl AsyncWrite for Channel {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        if self.ended.is_cancelled() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        Pin::new(&mut self.input).poll_write(context, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.input).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.input).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_connection_ends_when_another_begins_or_nobody_is_there() {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path()).unwrap();
        let first = CancellationToken::new();
        assert!(Channel::open(dir.path(), first.clone()).is_err(), "nobody reads");
        let open = |name| fs_err::OpenOptions::new().read(true).write(true).open(dir.path().join(name)).unwrap();
        let (_agent_in, agent_out) = (open(INPUT), open(OUTPUT));
        let mut one = Channel::open(dir.path(), first.clone()).unwrap();
        one.write_all(b"ask").await.unwrap();
        first.cancel();
        assert_eq!(one.read(&mut [0; 8]).await.unwrap(), 0);
        assert!(one.write_all(b"ask").await.is_err());
        let mut other = Channel::open(dir.path(), CancellationToken::new()).unwrap();
        drop(agent_out);
        assert_eq!(other.read(&mut [0; 8]).await.unwrap(), 0, "the sandbox is gone");
    }
}
