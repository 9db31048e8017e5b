//! A resolver that answers allowed names only.
//!
//! A question for any other name ends here: nothing of it is sent on, so a name carries nothing out. Of an allowed name's addresses
//! those are left out that no rule opens, or whoever owns the name would lead clients to what is ours (rebinding).
//! What is asked for is the name in its normal form, never the client's own bytes.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    time::timeout,
};

mod answers;
pub(crate) mod message;

pub use answers::Answers;
use message::{Question, Received, Reply, Wanted};

use crate::{
    audit::{Attempt, AttemptKind, Audit},
    decision::{Decision, Grant, Refusal},
    name::HostName,
    resolve::{Nowhere, ResolveError, look_up, within},
    way::{Way, Ways},
};

/// Questions over UDP that are answered at a time. More are dropped, and asked again by whoever waits.
const MAX_QUESTIONS: usize = 64;
/// Clients over TCP at a time. More wait to be accepted.
const MAX_CLIENTS: usize = 16;
/// Bytes of a question: those of UDP that pass every network whole, and more than any question has.
const MAX_QUESTION_BYTES: usize = 1232;
/// How long a client over TCP may take for its next question, and for taking an answer (RFC 7766, 6.2.3 asks for some seconds).
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);
/// What is waited after a socket has failed: such as for descriptors or memory.
const PAUSE: Duration = Duration::from_millis(100);

/// Answers for one network.
#[derive(Debug)]
pub struct Resolver {
    ways: Ways,
    audit: Audit,
    answers: Answers,
}

impl Resolver {
    /// Answers by the way that `ways` tells at the time, and tells `audit` what it decided.
    pub fn new(ways: Ways, audit: Audit) -> Self {
        let answers = Answers::new(ways.clone());
        Self { ways, audit, answers }
    }

    /// The addresses that it gives out.
    pub fn answers(&self) -> Answers {
        self.answers.clone()
    }

    /// Answers on a socket. It does not return; what is under way ends when this is dropped.
    pub async fn serve_udp(self: &Arc<Self>, socket: UdpSocket) {
        let (socket, places) = (Arc::new(socket), Arc::new(Semaphore::new(MAX_QUESTIONS)));
        let mut tasks = tokio::task::JoinSet::new();
        let mut buffer = [0; MAX_QUESTION_BYTES];
        loop {
            while tasks.try_join_next().is_some() {}
            let (length, from) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                Err(error) => {
                    tracing::warn!(%error, "cannot take a question");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            match message::read(&buffer[..length]) {
                Received::Noise => {}
                Received::Error(reply) => send(&socket, &reply, from).await,
                Received::Question(question) => {
                    let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
                    let (resolver, socket) = (Arc::clone(self), Arc::clone(&socket));
                    tasks.spawn(async move {
                        send(&socket, &resolver.reply(&question).await, from).await;
                        drop(place);
                    });
                }
            }
        }
    }

    /// Answers clients that connect. It does not return; what is under way ends when this is dropped.
    pub async fn serve_tcp(self: &Arc<Self>, listener: TcpListener) {
        let places = Arc::new(Semaphore::new(MAX_CLIENTS));
        let mut tasks = tokio::task::JoinSet::new();
        loop {
            let place = Arc::clone(&places).acquire_owned().await.expect("nobody closes it");
            while tasks.try_join_next().is_some() {}
            match listener.accept().await {
                Ok((client, _)) => {
                    let resolver = Arc::clone(self);
                    tasks.spawn(async move {
                        if let Err(error) = resolver.serve_client(client).await {
                            tracing::debug!(%error, "a client of the resolver went away");
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a client of the resolver");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Answers one client after the other of its questions, until it has none.
    async fn serve_client(&self, mut client: TcpStream) -> io::Result<()> {
        let mut buffer = [0; MAX_QUESTION_BYTES];
        loop {
            let question = async {
                let length = usize::from(client.read_u16().await?);
                let question = buffer.get_mut(..length).ok_or(io::ErrorKind::InvalidData)?;
                client.read_exact(question).await.map(|_| length)
            };
            let length = timeout(CLIENT_TIMEOUT, question).await??;
            let reply = match message::read(&buffer[..length]) {
                Received::Noise => return Ok(()),
                Received::Error(reply) => reply,
                Received::Question(question) => self.reply(&question).await,
            };
            let length = u16::try_from(reply.len()).map_err(io::Error::other)?;
            let framed = [&length.to_be_bytes(), &reply[..]].concat();
            timeout(CLIENT_TIMEOUT, client.write_all(&framed)).await??;
        }
    }

    /// The answer to a question.
    async fn reply(&self, question: &Question) -> Vec<u8> {
        let way = || Arc::clone(&self.ways.borrow());
        let asked = |way: &Way| question.name.as_ref().map_or(Err(Refusal::Name), |name| way.policy.asks(name));
        let first = way();
        let (name, grant) = match (&question.name, asked(&first)) {
            (Some(name), Ok(grant)) => (name, grant),
            (_, Ok(_)) => return question.reply(&Reply::Failed),
            (_, Err(refusal)) => {
                self.tell(question.name.as_ref(), Decision::Denied(refusal));
                return question.reply(&Reply::Blocked);
            }
        };
        match question.wanted {
            // Asked together with the addresses, which are told.
            Wanted::Absent => return question.reply(&Reply::NoRecords),
            Wanted::Other => return question.reply(&Reply::NotSupported),
            Wanted::Addresses => {}
        }
        let found = look_up(&*first.resolver, name).await;
        // Meanwhile the rules may have changed.
        let present = way();
        if let Err(refusal) = asked(&present) {
            self.tell(Some(name), Decision::Denied(refusal));
            return question.reply(&Reply::Blocked);
        }
        let found = found.map_err(Nowhere::from).and_then(|found| within(found, present.policy.bounds()));
        self.tell(Some(name), decision(&found, grant));
        match found {
            Ok(found) => {
                self.answers.remember(&present, &found.addresses, found.lifetime);
                question.reply(&Reply::Addresses(&found.addresses, found.lifetime))
            }
            Err(Nowhere::Bounds(_)) => question.reply(&Reply::Blocked),
            Err(Nowhere::Resolve(ResolveError::NoName)) => question.reply(&Reply::NoName),
            Err(Nowhere::Resolve(ResolveError::NoAddress)) => question.reply(&Reply::NoRecords),
            Err(Nowhere::Resolve(error @ ResolveError::Failed(_))) => {
                tracing::debug!(%name, ?error, "cannot resolve a name");
                question.reply(&Reply::Failed)
            }
        }
    }

    fn tell(&self, name: Option<&HostName>, decision: Decision) {
        let (kind, name) = (AttemptKind::Question, name.cloned());
        self.audit.tell(Attempt { at: SystemTime::now(), kind, name, address: None, port: None, decision });
    }
}

/// A name that leads nowhere was allowed all the same; one that leads to what is ours was not.
fn decision<T>(found: &Result<T, Nowhere>, grant: Grant) -> Decision {
    match found {
        Err(Nowhere::Bounds(net)) => Decision::Denied(Refusal::Bounds(*net)),
        Ok(_) | Err(Nowhere::Resolve(_)) => Decision::Allowed(grant),
    }
}

/// Sends an answer. One that cannot be sent is as one that is lost.
async fn send(socket: &UdpSocket, reply: &[u8], to: SocketAddr) {
    if let Err(error) = socket.send_to(reply, to).await {
        tracing::debug!(%error, "cannot send an answer of the resolver");
    }
}
