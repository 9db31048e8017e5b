//! A stream of one guest's messages, and of the answers.
//!
//! Some requests of a guest are answered at a time, in whatever order they are done: a kernel waits with what depends on another. Each
//! has a place until its answer is on its way, and who holds all of them ([`Gate::hold`]) knows that whatever was done is also
//! told: of a guest that is copied then, no copy asks for it again.

use std::{io, sync::Arc};

use firkin_wire::fuse::{REQUEST_HEAD_BYTES, length};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};

use crate::{
    answer::{Access, Guest},
    opened::OpenHere,
    tree::Share,
};

/// Requests of one guest that are worked on at a time: each has a thread while it is, and a message.
const AT_ONCE: u32 = 8;

/// Requests of all guests that are worked on at a time: who asks for much waits for its turn, and leaves the process threads for all else.
static OF_ALL: Semaphore = Semaphore::const_new(64);

/// Lets requests of one guest through, also across connections.
#[derive(Debug, Clone)]
pub struct Gate(Arc<Semaphore>);

impl Default for Gate {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(AT_ONCE as usize)))
    }
}

/// Nothing of a guest is done until this is dropped.
#[derive(Debug)]
pub struct Held {
    #[expect(dead_code, reason = "held: it gives the places back")]
    places: OwnedSemaphorePermit,
}

impl Gate {
    /// Waits until all that is being done is answered, and lets nothing through then.
    pub async fn hold(&self) -> Held {
        let places = Arc::clone(&self.0).acquire_many_owned(AT_ONCE).await;
        Held { places: places.expect("the semaphore is never closed") }
    }
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
pub async fn serve<S>(share: Arc<Share>, access: Access, gate: &Gate, stream: S) -> Result<(), LinkError>
where
    S: AsyncRead + AsyncWrite + Send,
{
    let guest = Arc::new(Guest { share, access, here: OpenHere::default() });
    let (mut requests, mut sink) = tokio::io::split(stream);
    let (answers, mut answered) = mpsc::channel::<(Vec<Vec<u8>>, OwnedSemaphorePermit)>(AT_ONCE as usize);
    let writing = async move {
        while let Some((messages, place)) = answered.recv().await {
            for message in messages {
                sink.write_all(&message).await?;
            }
            drop(place);
        }
        sink.shutdown().await
    };
    let reading = async move {
        while let Some(message) = next(&mut requests).await? {
            let place = Arc::clone(&gate.0).acquire_owned().await.expect("the semaphore is never closed");
            let of_all = OF_ALL.acquire().await.expect("the semaphore is never closed");
            let (guest, answers) = (Arc::clone(&guest), answers.clone());
            // Not joined: it ends with its answer, which nobody takes once the stream is gone.
            tokio::task::spawn_blocking(move || {
                let answer = guest.answer(&message);
                drop(of_all);
                drop(answers.blocking_send((answer, place)));
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

#[cfg(test)]
mod tests {
    use std::{os::fd::OwnedFd, time::Duration};

    use rustix::io::Errno;
    use tokio::time::timeout;

    use super::*;
    use crate::{Figures, Room, Sizes};

    #[derive(Debug)]
    struct NoRoom;

    impl Room for NoRoom {
        fn size(&self, allocated: u64) -> u64 {
            allocated
        }
        fn change(&self, _: u64, _: &mut dyn FnMut() -> Result<Sizes, Errno>) -> Result<(), Errno> {
            Err(Errno::NOSPC)
        }
        fn figures(&self) -> Figures {
            Figures { used: 0, quota: 0 }
        }
    }

    fn share() -> (tempfile::TempDir, Arc<Share>) {
        let dir = tempfile::tempdir().unwrap();
        let root = OwnedFd::from(fs_err::File::open(dir.path()).unwrap().into_parts().0);
        (dir, Arc::new(Share::new(root, Arc::new(NoRoom))))
    }

    /// Asks for the attributes of the root.
    fn request(unique: u8) -> [u8; 56] {
        let mut message = [0; 56];
        (message[0], message[4], message[8], message[16]) = (56, 3, unique, 1);
        message
    }

    #[tokio::test]
    async fn who_is_held_is_answered_for_what_was_begun_and_for_the_rest_later() {
        let (_dir, share) = share();
        let gate = Gate::default();
        let (mut guest, host) = tokio::io::duplex(4096);
        let (serving, held) = (gate.clone(), gate.clone());
        let server = tokio::spawn(async move { serve(share, Access::Write, &serving, host).await });
        let mut answer = [0; 120];
        guest.write_all(&request(1)).await.unwrap();
        guest.read_exact(&mut answer).await.unwrap();
        assert_eq!((answer[4..8] == [0; 4], answer[8]), (true, 1));

        let held = held.hold().await;
        guest.write_all(&request(2)).await.unwrap();
        assert!(timeout(Duration::from_millis(100), guest.read_exact(&mut answer)).await.is_err());
        drop(held);
        guest.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer[8], 2);
        drop(guest);
        server.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn what_is_no_message_ends_the_connection() {
        let (_dir, share) = share();
        for length in [0, 39, u32::MAX] {
            let (mut guest, host) = tokio::io::duplex(4096);
            guest.write_all(&length.to_le_bytes()).await.unwrap();
            let ended = serve(Arc::clone(&share), Access::Write, &Gate::default(), host).await;
            assert!(matches!(ended, Err(LinkError::NoMessage(told)) if told == length), "{ended:?}");
        }
    }
}
