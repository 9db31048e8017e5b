//! Carries what the kernel asks about one mount to the host, and the answers back.
//!
//! What was asked is kept until it is answered. A connection that breaks loses nothing: on the next one all of that is asked anew, in the
//! order in which it was asked. That is what a restored guest goes on by, and a guest whose server was killed.
//!
//! ```text
//!   /dev/fuse ──► asked, in `waiting` ──► sent on the present connection ──► answered, and gone
//!                        ▲                          │ it broke
//!                        └──────────────────────────┘
//! ```
//!
//! Who waits can be interrupted while there is no connection, and only then: a host that is there answers soon, and programs do not expect
//! that a disk is interrupted.

use std::{
    fs::File,
    io::{self, BufReader, Read, Write},
    net::{Shutdown, TcpStream},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use firkin_wire::fuse::{MAX_MESSAGE_BYTES, REPLY_HEAD_BYTES, interrupted, is_answered, length, unique};
use nix::errno::Errno;

use super::locked;

/// Requests that wait for the host at a time, each of which may be as large as a write. The kernel keeps the rest.
const MAX_WAITING: usize = 64;

/// A request that is not answered.
#[derive(Debug)]
struct Asked {
    unique: u64,
    message: Arc<[u8]>,
    /// The connection that it was sent on.
    sent_on: Option<u64>,
    is_interrupted: bool,
}

/// The connection to the host.
#[derive(Debug)]
struct Link {
    number: u64,
    stream: TcpStream,
}

/// The newest connection to the host.
#[derive(Debug)]
struct Present {
    number: u64,
    stream: TcpStream,
    /// Nothing more is answered on it.
    has_ended: bool,
}

/// One mount.
#[derive(Debug)]
pub(super) struct Relay {
    device: File,
    waiting: Mutex<Vec<Asked>>,
    /// Told when one of them is answered.
    answered: Condvar,
    /// Held by who sends. Never while somebody waits for an answer to be taken.
    link: Mutex<Option<Link>>,
    /// The same connection, for who breaks it off while another sends on it.
    present: Mutex<Option<Present>>,
    has_ended: AtomicBool,
}

impl Relay {
    /// Takes what the kernel asks through `device`.
    pub(super) fn start(device: File) -> io::Result<Arc<Self>> {
        let relay = Arc::new(Self {
            device,
            waiting: Mutex::default(),
            answered: Condvar::new(),
            link: Mutex::default(),
            present: Mutex::default(),
            has_ended: AtomicBool::new(false),
        });
        let asking = Arc::clone(&relay);
        thread::Builder::new().name("volume-asks".to_owned()).spawn(move || asking.ask())?;
        Ok(relay)
    }

    /// Takes requests until the file system is unmounted.
    fn ask(&self) {
        let mut buffer = vec![0; MAX_MESSAGE_BYTES];
        loop {
            let message = match (&self.device).read(&mut buffer) {
                Ok(read) => &buffer[..read],
                // What was asked has been taken back.
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::Interrupted) => continue,
                Err(error) => return tracing::debug!(%error, "a volume is not mounted any more"),
            };
            if let Some(unique) = interrupted(message) {
                self.interrupt(unique);
            } else if is_answered(message)
                && let Some(unique) = unique(message)
            {
                self.keep(Asked { unique, message: message.into(), sent_on: None, is_interrupted: false });
                self.send();
            }
        }
    }

    fn keep(&self, asked: Asked) {
        let mut waiting = locked(&self.waiting);
        while waiting.len() >= MAX_WAITING && !self.has_ended.load(Ordering::Acquire) {
            waiting = self.answered.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        waiting.push(asked);
    }

    /// Sends what has not been sent on the present connection. Without one, it waits for the next.
    fn send(&self) {
        if self.has_ended.load(Ordering::Acquire) {
            return self.refuse(|_| true, Errno::ENOTCONN);
        }
        let mut link = locked(&self.link);
        let Some(Link { number, stream }) = link.as_mut() else { return };
        while let Some(message) = self.next_for(*number) {
            if let Err(error) = stream.write_all(&message) {
                tracing::debug!(%error, "the host of a volume takes nothing more");
                // What it has answered before is still to be taken: whoever reads that loses the connection when it ends.
                stream.shutdown(Shutdown::Write).ok();
                *link = None;
                return;
            }
        }
    }

    fn next_for(&self, link: u64) -> Option<Arc<[u8]>> {
        let mut waiting = locked(&self.waiting);
        let asked = waiting.iter_mut().find(|asked| asked.sent_on != Some(link))?;
        asked.sent_on = Some(link);
        Some(Arc::clone(&asked.message))
    }

    /// Has the host at the other end of `stream` from now on, instead of at that of any other.
    pub(super) fn connect(self: &Arc<Self>, stream: TcpStream) -> io::Result<()> {
        let answers = stream.try_clone()?;
        let number = {
            let mut present = locked(&self.present);
            let number = present.as_ref().map_or(0, |present| present.number + 1);
            if let Some(earlier) = present.replace(Present { number, stream: stream.try_clone()?, has_ended: false }) {
                // Whoever sends on it is not to hold up this one. What it has answered is taken all the same.
                earlier.stream.shutdown(Shutdown::Write).ok();
            }
            number
        };
        *locked(&self.link) = Some(Link { number, stream });
        let relay = Arc::clone(self);
        thread::Builder::new().name("volume-answers".to_owned()).spawn(move || {
            if let Err(error) = relay.take_answers(answers) {
                tracing::debug!(%error, "the host of a volume is gone");
            }
            relay.lose(number);
        })?;
        self.send();
        Ok(())
    }

    /// Hands answers to the kernel until the stream ends.
    fn take_answers(&self, stream: TcpStream) -> io::Result<()> {
        let mut stream = BufReader::new(stream);
        loop {
            let mut first = [0; 4];
            stream.read_exact(&mut first)?;
            let length = length(first, REPLY_HEAD_BYTES).ok_or(io::ErrorKind::InvalidData)?;
            let mut message = vec![0; length];
            message[..4].copy_from_slice(&first);
            stream.read_exact(&mut message[4..])?;
            let unique = unique(&message).unwrap_or_default();
            // Nobody asked for what has no number, and a kernel may not know it.
            if (unique == 0 || self.done(unique))
                && let Err(error) = (&self.device).write(&message)
            {
                tracing::debug!(%error, "the kernel does not take an answer about a volume");
            }
        }
    }

    /// Whether somebody waits for that; nobody does from now on.
    fn done(&self, unique: u64) -> bool {
        let mut waiting = locked(&self.waiting);
        let Some(at) = waiting.iter().position(|asked| asked.unique == unique) else { return false };
        waiting.remove(at);
        drop(waiting);
        self.answered.notify_all();
        true
    }

    /// That connection is gone. Who was to be interrupted meanwhile is.
    fn lose(&self, number: u64) {
        {
            let mut present = locked(&self.present);
            let Some(present) = present.as_mut().filter(|present| present.number == number) else { return };
            present.has_ended = true;
            // Who sends on it hears of it.
            present.stream.shutdown(Shutdown::Both).ok();
        }
        let mut link = locked(&self.link);
        if link.as_ref().is_some_and(|link| link.number == number) {
            *link = None;
        }
        drop(link);
        self.refuse(|asked| asked.is_interrupted, Errno::EINTR);
    }

    /// A signal has come to who waits for this.
    fn interrupt(&self, unique: u64) {
        if let Some(asked) = locked(&self.waiting).iter_mut().find(|asked| asked.unique == unique) {
            asked.is_interrupted = true;
        }
        if locked(&self.present).as_ref().is_none_or(|present| present.has_ended) {
            self.refuse(|asked| asked.is_interrupted, Errno::EINTR);
        }
    }

    /// Nothing is asked of the host any more: the volume was taken away.
    pub(super) fn end(&self) {
        self.has_ended.store(true, Ordering::Release);
        if let Some(present) = locked(&self.present).as_ref() {
            present.stream.shutdown(Shutdown::Both).ok();
        }
        self.refuse(|_| true, Errno::ENOTCONN);
    }

    /// Answers in the host's place.
    fn refuse(&self, which: impl Fn(&Asked) -> bool, error: Errno) {
        let mut refused = Vec::new();
        locked(&self.waiting).retain(|asked| {
            let stays = !which(asked);
            if !stays {
                refused.push(asked.unique);
            }
            stays
        });
        self.answered.notify_all();
        for unique in refused {
            if let Err(error) = (&self.device).write(&refusal(unique, error)) {
                tracing::debug!(%error, "the kernel does not take a refusal about a volume");
            }
        }
    }
}

/// An answer that says only why there is none.
fn refusal(unique: u64, error: Errno) -> [u8; REPLY_HEAD_BYTES] {
    let mut message = [0; REPLY_HEAD_BYTES];
    message[0] = 16;
    message[4..8].copy_from_slice(&(-(error as i32)).to_le_bytes());
    message[8..].copy_from_slice(&unique.to_le_bytes());
    message
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, time::Duration};

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    use super::*;

    /// The kernel's side of a device, which like that keeps messages apart.
    fn device() -> (File, Arc<Relay>) {
        let (kernel, agent) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        (File::from(kernel), Relay::start(File::from(agent)).unwrap())
    }

    fn request(unique: u64, opcode: u8) -> Vec<u8> {
        let mut message = vec![0; 48];
        (message[0], message[4]) = (48, opcode);
        message[8..16].copy_from_slice(&unique.to_le_bytes());
        message
    }

    fn interrupt(of: u64) -> Vec<u8> {
        let mut message = request(1000 + of, 36);
        message[40..].copy_from_slice(&of.to_le_bytes());
        message
    }

    /// A host that was connected.
    fn host(relay: &Arc<Relay>) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        host.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        relay.connect(listener.accept().unwrap().0).unwrap();
        host
    }

    fn asked(host: &mut TcpStream) -> u64 {
        let mut message = [0; 48];
        host.read_exact(&mut message).unwrap();
        unique(&message).unwrap()
    }

    fn answer(kernel: &mut File) -> [u8; 16] {
        let mut message = [0; 16];
        assert_eq!(kernel.read(&mut message).unwrap(), 16);
        message
    }

    #[test]
    fn what_was_not_answered_is_asked_anew_in_order() {
        let (mut kernel, relay) = device();
        for unique in 1..=3 {
            kernel.write_all(&request(unique, 1)).unwrap();
        }
        // Nobody waits for it, so nobody is asked.
        kernel.write_all(&request(4, 2)).unwrap();
        let mut first = host(&relay);
        assert_eq!([(); 3].map(|()| asked(&mut first)), [1, 2, 3]);
        first.write_all(&refusal(2, Errno::ENOENT)).unwrap();
        assert_eq!(answer(&mut kernel), refusal(2, Errno::ENOENT));
        let mut second = host(&relay);
        assert_eq!([(); 2].map(|()| asked(&mut second)), [1, 3]);
        kernel.write_all(&request(5, 1)).unwrap();
        assert_eq!(asked(&mut second), 5);
        // What the first had still answered counts, and once.
        for unique in [5, 3, 1, 1] {
            second.write_all(&refusal(unique, Errno::EIO)).unwrap();
        }
        for unique in [5, 3, 1] {
            assert_eq!(answer(&mut kernel), refusal(unique, Errno::EIO));
        }
    }

    /// A host that goes has answered some: to find that it takes nothing more does not lose these.
    #[test]
    fn what_was_answered_before_the_end_is_taken() {
        let (mut kernel, relay) = device();
        let mut first = host(&relay);
        kernel.write_all(&request(1, 1)).unwrap();
        assert_eq!(asked(&mut first), 1);
        // Half of it, so that whoever takes answers waits for the rest.
        first.write_all(&refusal(1, Errno::EIO)[..8]).unwrap();
        first.shutdown(Shutdown::Read).unwrap();
        locked(&relay.link).as_ref().unwrap().stream.shutdown(Shutdown::Write).unwrap();
        kernel.write_all(&request(2, 1)).unwrap();
        kernel.write_all(&interrupt(1)).unwrap();
        while locked(&relay.waiting).iter().all(|asked| !asked.is_interrupted) {
            thread::yield_now();
        }
        first.write_all(&refusal(1, Errno::EIO)[8..]).unwrap();
        assert_eq!(answer(&mut kernel), refusal(1, Errno::EIO));
        let mut second = host(&relay);
        assert_eq!(asked(&mut second), 2);
    }

    #[test]
    fn who_waits_for_no_host_can_be_interrupted() {
        let (mut kernel, relay) = device();
        kernel.write_all(&request(1, 1)).unwrap();
        kernel.write_all(&interrupt(1)).unwrap();
        assert_eq!(answer(&mut kernel), refusal(1, Errno::EINTR));
        // With a host, only once that is gone.
        let mut host = host(&relay);
        for message in [request(2, 1), interrupt(2), request(3, 1)] {
            kernel.write_all(&message).unwrap();
        }
        assert_eq!((asked(&mut host), asked(&mut host)), (2, 3));
        drop(host);
        assert_eq!(answer(&mut kernel), refusal(2, Errno::EINTR));
    }

    #[test]
    fn a_volume_that_was_taken_away_answers_so() {
        let (mut kernel, relay) = device();
        let _host = host(&relay);
        kernel.write_all(&request(1, 1)).unwrap();
        relay.end();
        assert_eq!(answer(&mut kernel), refusal(1, Errno::ENOTCONN));
        kernel.write_all(&request(2, 1)).unwrap();
        assert_eq!(answer(&mut kernel), refusal(2, Errno::ENOTCONN));
    }
}
