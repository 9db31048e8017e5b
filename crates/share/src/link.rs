//! A stream of one guest's messages, and of the answers.
//!
//! Some requests of a guest are answered at a time, in whatever order they are done: a kernel waits with what depends on another. Each
//! has a place until its answer is on its way. Who wants to know that whatever was done is also told ([`Gate::hold`]) waits for all of
//! the places, and then for the end of the connection: this side ends it behind the last answer, and a guest ends it only once it has
//! taken that. Of a guest that is copied then no copy asks for anything again, nor does one whose next answers come from another server.

use std::{io, sync::Arc, time::Duration};

use firkin_wire::fuse::{REQUEST_HEAD_BYTES, length};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore, mpsc, watch},
};

use crate::{
    answer::{Access, Guest},
    opened::OpenHere,
    tree::Share,
};

/// Requests of one guest that are worked on at a time: each has a thread while it is, and a message.
const AT_ONCE: u32 = 8;

/// Requests of all guests that are worked on at a time: who asks for much waits for its turn, and leaves the process threads for all else.
static OF_ALL: Semaphore = Semaphore::const_new(ALL_AT_ONCE);

/// How many these are.
const ALL_AT_ONCE: usize = 64;

/// What is read of a guest at once: most requests are some hundred bytes, and each call costs as much as answering one. What is larger
/// is read past it.
const READ_BYTES: usize = 8 << 10;

/// What a guest still sends before it has seen the end is read for so long, and not done.
const FAREWELL_DEADLINE: Duration = Duration::from_secs(2);

/// Lets requests of one guest through, also across connections.
#[derive(Debug, Clone)]
pub struct Gate {
    places: Arc<Semaphore>,
    /// Whether the present connection is to end, and none to begin.
    closes: Arc<watch::Sender<u32>>,
    /// Held for as long as there is a connection.
    connected: Arc<tokio::sync::Mutex<()>>,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            places: Arc::new(Semaphore::new(AT_ONCE as usize)),
            closes: Arc::new(watch::Sender::new(0)),
            connected: Arc::default(),
        }
    }
}

/// Nothing of a guest is done until this is dropped.
#[derive(Debug)]
#[expect(dead_code, reason = "held: they give back what they are of")]
pub struct Held {
    places: OwnedSemaphorePermit,
    connected: Option<OwnedMutexGuard<()>>,
    closed: Closed,
}

/// The turn of one connection with a guest.
#[derive(Debug)]
pub struct Turn {
    gate: Gate,
    #[expect(dead_code, reason = "held")]
    connected: OwnedMutexGuard<()>,
}

/// For as long as it lives, connections end and none begins.
#[derive(Debug)]
struct Closed(Arc<watch::Sender<u32>>);

impl Closed {
    fn new(gate: &Gate) -> Self {
        gate.closes.send_modify(|holders| *holders += 1);
        Self(Arc::clone(&gate.closes))
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        self.0.send_modify(|holders| *holders -= 1);
    }
}

impl Gate {
    /// Waits until all that is being done is answered, and lets nothing through then. If the guest runs (`hears`), it also waits until
    /// the guest has taken the answers.
    pub async fn hold(&self, hears: bool) -> Held {
        let places = Arc::clone(&self.places).acquire_many_owned(AT_ONCE).await.expect("the semaphore is never closed");
        let closed = Closed::new(self);
        let connected = if hears { Some(Arc::clone(&self.connected).lock_owned().await) } else { None };
        Held { places, connected, closed }
    }

    /// Waits until there may be a connection, and has it be the only one.
    pub async fn turn(&self) -> Turn {
        let mut closes = self.closes.subscribe();
        loop {
            // Who held it without having heard the guest has not had this. It is not kept from the next meanwhile, who waits for it.
            closes.wait_for(|holders| *holders == 0).await.expect("the gate has it");
            let connected = Arc::clone(&self.connected).lock_owned().await;
            if *closes.borrow_and_update() == 0 {
                return Turn { gate: self.clone(), connected };
            }
        }
    }
}

impl Turn {
    /// Whether the connection is to end.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        *self.gate.closes.borrow() > 0
    }

    /// Comes once the connection is to end.
    pub async fn ended(&self) {
        self.gate.closes.subscribe().wait_for(|holders| *holders > 0).await.expect("the gate has it");
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

/// Answers a guest until its stream ends, or its turn.
pub async fn serve<S>(share: Arc<Share>, access: Access, turn: &Turn, stream: S) -> Result<(), LinkError>
where
    S: AsyncRead + AsyncWrite + Send,
{
    let guest = Arc::new(Guest { share, access, here: OpenHere::default() });
    let (requests, mut sink) = tokio::io::split(stream);
    let mut requests = BufReader::with_capacity(READ_BYTES, requests);
    let (answers, mut answered) = mpsc::channel::<(Vec<Vec<u8>>, OwnedSemaphorePermit)>(AT_ONCE as usize);
    let writing = async move {
        while let Some((messages, place)) = answered.recv().await {
            // A guest is woken once for what belongs together.
            match messages.as_slice() {
                [one] => sink.write_all(one).await?,
                several => sink.write_all(&several.concat()).await?,
            }
            drop(place);
        }
        sink.shutdown().await
    };
    tokio::pin!(writing);
    tokio::select! {
        written = &mut writing => return Ok(written?),
        read = perform(&guest, &mut requests, turn, answers) => return read,
        () = turn.ended() => {}
    }
    // Whoever held the gate had all places, so nothing is under way: `writing` ends the stream behind the last answer.
    writing.await?;
    let farewell = async { tokio::io::copy(&mut requests, &mut tokio::io::sink()).await };
    if tokio::time::timeout(FAREWELL_DEADLINE, farewell).await.is_err() {
        tracing::debug!("a guest did not end its connection to a volume");
    }
    Ok(())
}

/// Does what a guest asks until its stream ends.
async fn perform(
    guest: &Arc<Guest>,
    requests: &mut (impl AsyncRead + Unpin),
    turn: &Turn,
    answers: mpsc::Sender<(Vec<Vec<u8>>, OwnedSemaphorePermit)>,
) -> Result<(), LinkError> {
    while let Some(message) = next(requests).await? {
        let place = Arc::clone(&turn.gate.places).acquire_owned().await.expect("the semaphore is never closed");
        let of_all = OF_ALL.acquire().await.expect("the semaphore is never closed");
        let (guest, answers) = (Arc::clone(guest), answers.clone());
        // Not joined: it ends with its answer, which nobody takes once the stream is gone.
        tokio::task::spawn_blocking(move || {
            let answer = guest.answer(&message);
            drop(of_all);
            drop(answers.blocking_send((answer, place)));
        });
    }
    Ok(())
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
    use std::{
        os::fd::OwnedFd,
        sync::{
            Condvar, Mutex,
            atomic::{AtomicUsize, Ordering::SeqCst},
        },
        time::Duration,
    };

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
        let places = dir.path().join("places");
        (dir, Arc::new(Share::new(root, &places, Arc::new(NoRoom))))
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
        let server = tokio::spawn(async move { serve(share, Access::Write, &serving.turn().await, host).await });
        let mut answer = [0; 120];
        guest.write_all(&request(1)).await.unwrap();
        guest.read_exact(&mut answer).await.unwrap();
        assert_eq!((answer[4..8] == [0; 4], answer[8]), (true, 1));

        // Of a guest that stands still: it is not waited for, but the connection is of no more use.
        let still = held.hold(false).await;
        guest.write_all(&request(2)).await.unwrap();
        let mut rest = Vec::new();
        guest.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"", "what was asked meanwhile is for the next connection");
        drop((guest, still));
        server.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn who_holds_a_guest_knows_that_it_has_taken_what_was_done() {
        let (_dir, share) = share();
        let gate = Gate::default();
        let (mut guest, host) = tokio::io::duplex(4096);
        let (serving, again) = (gate.clone(), Arc::clone(&share));
        let server = tokio::spawn(async move { serve(again, Access::Write, &serving.turn().await, host).await });
        guest.write_all(&request(1)).await.unwrap();
        let mut first = [0; 1];
        guest.read_exact(&mut first).await.unwrap();
        let mut holding = Box::pin(gate.hold(true));
        assert!(timeout(Duration::from_millis(100), &mut holding).await.is_err(), "most of the answer has not been taken");
        // Asked after the gate was closed: for the next connection.
        guest.write_all(&request(2)).await.unwrap();
        let mut rest = Vec::new();
        guest.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest.len(), 119);
        assert!(timeout(Duration::from_millis(100), &mut holding).await.is_err(), "the guest has not said that it has taken it");
        drop(guest);
        let held = timeout(Duration::from_secs(60), holding).await.unwrap();
        server.await.unwrap().unwrap();

        let mut turn = Box::pin(gate.turn());
        assert!(timeout(Duration::from_millis(100), &mut turn).await.is_err(), "nobody is served while it is held");
        drop(held);
        let turn = timeout(Duration::from_secs(60), turn).await.unwrap();
        let (mut guest, host) = tokio::io::duplex(4096);
        let server = tokio::spawn(async move { serve(share, Access::Write, &turn, host).await });
        let mut answer = [0; 120];
        guest.write_all(&request(2)).await.unwrap();
        guest.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer[8], 2);
        drop(guest);
        server.await.unwrap().unwrap();
    }

    /// A guest that is held again as soon as it was let go, before there is another connection: there is nothing to wait for.
    #[tokio::test]
    async fn who_waits_for_a_turn_keeps_nobody_from_holding_the_guest() {
        let gate = Gate::default();
        let still = gate.hold(false).await;
        let mut turn = Box::pin(gate.turn());
        assert!(timeout(Duration::from_millis(100), &mut turn).await.is_err(), "nobody is served while it is held");
        drop(still);
        let held = timeout(Duration::from_secs(60), gate.hold(true)).await.expect("no connection has to end first");
        assert!(timeout(Duration::from_millis(100), &mut turn).await.is_err());
        drop(held);
        drop(timeout(Duration::from_secs(60), turn).await.unwrap());
    }

    #[tokio::test]
    async fn what_is_no_message_ends_the_connection() {
        let (_dir, share) = share();
        for length in [0, 39, u32::MAX] {
            let (mut guest, host) = tokio::io::duplex(4096);
            guest.write_all(&length.to_le_bytes()).await.unwrap();
            let ended = serve(Arc::clone(&share), Access::Write, &Gate::default().turn().await, host).await;
            assert!(matches!(ended, Err(LinkError::NoMessage(told)) if told == length), "{ended:?}");
        }
    }

    /// Has everybody who changes something wait, and counts them.
    #[derive(Debug, Default)]
    struct Waits {
        waiting: AtomicUsize,
        most: AtomicUsize,
        is_open: Mutex<bool>,
        opened: Condvar,
    }

    impl Room for Waits {
        fn size(&self, allocated: u64) -> u64 {
            allocated
        }
        fn change(&self, _: u64, _: &mut dyn FnMut() -> Result<Sizes, Errno>) -> Result<(), Errno> {
            let waiting = self.waiting.fetch_add(1, SeqCst) + 1;
            self.most.fetch_max(waiting, SeqCst);
            let is_open = self.opened.wait_while(self.is_open.lock().unwrap(), |is_open| !*is_open).unwrap();
            drop(is_open);
            self.waiting.fetch_sub(1, SeqCst);
            Err(Errno::NOSPC)
        }
        fn figures(&self) -> Figures {
            Figures { used: 0, quota: 0 }
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn all_guests_together_are_answered_for_so_much_at_a_time_and_each_in_the_end() {
        const GUESTS: usize = 12;
        let room = Arc::new(Waits::default());
        let dir = tempfile::tempdir().unwrap();
        let root = OwnedFd::from(fs_err::File::open(dir.path()).unwrap().into_parts().0);
        let share = Arc::new(Share::new(root, &dir.path().join("places"), Arc::clone(&room) as Arc<dyn Room>));
        let mut guests = Vec::new();
        for _ in 0..GUESTS {
            let (mut guest, host) = tokio::io::duplex(1 << 16);
            let share = Arc::clone(&share);
            tokio::spawn(async move { serve(share, Access::Write, &Gate::default().turn().await, host).await });
            for unique in 0..=u8::try_from(AT_ONCE).unwrap() {
                // A directory is made.
                let mut message =
                    [&[50, 0, 0, 0, 9, 0, 0, 0, unique][..], &[0; 7], &[1, 0, 0, 0, 0, 0, 0, 0], &[0; 24], b"d\0"].concat();
                (message[16], message[0]) = (1, u8::try_from(message.len()).unwrap());
                guest.write_all(&message).await.unwrap();
            }
            guests.push(guest);
        }
        let all_at_once = async {
            while room.waiting.load(SeqCst) < ALL_AT_ONCE {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(60), all_at_once).await.unwrap();
        *room.is_open.lock().unwrap() = true;
        room.opened.notify_all();
        for guest in &mut guests {
            for _ in 0..=AT_ONCE {
                let mut answer = [0; 16];
                timeout(Duration::from_secs(60), guest.read_exact(&mut answer)).await.unwrap().unwrap();
                assert_eq!(i32::from_le_bytes(answer[4..8].try_into().unwrap()), -28, "no room");
            }
        }
        assert_eq!(room.most.load(SeqCst), ALL_AT_ONCE);
    }
}
