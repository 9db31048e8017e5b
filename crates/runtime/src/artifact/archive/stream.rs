//! Archives as streams: packed where one may block, and read where one may block.

use std::io::{self, Read, Write};

use bytes::{Buf, Bytes, BytesMut};
use firkin_causes::chain;
use futures::{Stream, StreamExt as _, stream::BoxStream};
use tokio::{runtime::Handle, sync::mpsc};

use super::Packing;

/// Bytes of an archive that are handed on at a time, and how many of such may wait.
const CHUNK_BYTES: usize = 256 << 10;
const CHUNKS: usize = 4;

/// The archive of `packing`, which is called `name`. An error in it is its last part: what was taken until then is no archive.
pub(crate) fn written(name: String, packing: Packing) -> impl Stream<Item = io::Result<Bytes>> + Send {
    let (to, from) = mpsc::channel(CHUNKS);
    tokio::task::spawn_blocking(move || {
        let written = packing.write(Chunks { to: &to, buffer: BytesMut::new() });
        if let Err(error) = written {
            tracing::warn!(name, error = chain(&error), "an export did not come to its end");
            // Nobody takes it any more if this fails.
            drop(to.blocking_send(Err(io::Error::other(error))));
        }
    });
    futures::stream::unfold(from, |mut from| async { from.recv().await.map(|chunk| (chunk, from)) })
}

/// Hands what is written on in chunks.
struct Chunks<'a> {
    to: &'a mpsc::Sender<io::Result<Bytes>>,
    buffer: BytesMut,
}

impl Write for Chunks<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= CHUNK_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let chunk = self.buffer.split().freeze();
        self.to.blocking_send(Ok(chunk)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// Reads a stream where one may block.
pub(crate) struct Blocking {
    stream: BoxStream<'static, io::Result<Bytes>>,
    runtime: Handle,
    chunk: Bytes,
}

impl Blocking {
    /// To be read on a thread where it may block, of the runtime that is running.
    pub(crate) fn of(stream: BoxStream<'static, io::Result<Bytes>>) -> Self {
        Self { stream, runtime: Handle::current(), chunk: Bytes::new() }
    }
}

impl Read for Blocking {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.runtime.block_on(self.stream.next()) {
                Some(chunk) => self.chunk = chunk?,
                None => return Ok(0),
            }
        }
        let read = buffer.len().min(self.chunk.len());
        self.chunk.copy_to_slice(&mut buffer[..read]);
        Ok(read)
    }
}
