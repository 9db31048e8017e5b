//! A stream of one guest's messages, and of the answers.
//!
//! Some requests of a guest are answered at a time, in whatever order they are done: a kernel waits with what depends on another.

use std::{io, sync::Arc};

use firkin_wire::fuse::{REQUEST_HEAD_BYTES, length};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::{Semaphore, mpsc},
};

use crate::{answer::Guest, opened::OpenHere, tree::Share};

/// Requests of one guest that are worked on at a time: each has a thread while it is, and a message.
const AT_ONCE: usize = 8;

/// What a guest may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Whatever its own permissions let it.
    Write,
    /// As that, but nothing changes.
    Read,
}

/// Why a guest is not answered any more.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The stream broke.
    #[error("the connection to a guest's volume broke")]
    Stream(#[from] io::Error),
    /// What came is no message.
    #[error("a guest sent what is no message: its length would be {0}")]
    NoMessage(u32),
}

/// Answers a guest until its stream ends.
pub async fn serve<S>(share: Arc<Share>, access: Access, stream: S) -> Result<(), LinkError>
where
    S: AsyncRead + AsyncWrite + Send,
{
    let guest = Arc::new(Guest { share, access, here: OpenHere::default() });
    let (mut requests, mut sink) = tokio::io::split(stream);
    let (answers, mut answered) = mpsc::channel::<Vec<u8>>(AT_ONCE);
    let writing = async move {
        while let Some(answer) = answered.recv().await {
            sink.write_all(&answer).await?;
        }
        sink.shutdown().await
    };
    let reading = async move {
        let places = Arc::new(Semaphore::new(AT_ONCE));
        while let Some(message) = next(&mut requests).await? {
            let place = Arc::clone(&places).acquire_owned().await.expect("the semaphore is never closed");
            let (guest, answers) = (Arc::clone(&guest), answers.clone());
            // Not joined: it ends with its answer, which nobody takes once the stream is gone.
            tokio::task::spawn_blocking(move || {
                for answer in guest.answer(&message) {
                    if answers.blocking_send(answer).is_err() {
                        break;
                    }
                }
                drop(place);
            });
        }
        Ok::<_, LinkError>(())
    };
    tokio::pin!(reading);
    tokio::select! {
        written = writing => Ok(written?),
        read = &mut reading => read,
    }
}

/// The next message of a stream, unless that has ended between two.
async fn next(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<Vec<u8>>, LinkError> {
    let mut first = [0; 4];
    match stream.read_exact(&mut first).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    };
    let length = length(first, REQUEST_HEAD_BYTES).ok_or(LinkError::NoMessage(u32::from_le_bytes(first)))?;
    let mut message = vec![0; length];
    message[..4].copy_from_slice(&first);
    stream.read_exact(&mut message[4..]).await?;
    Ok(Some(message))
}
