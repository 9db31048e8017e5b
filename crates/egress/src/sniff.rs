//! What a client calls the host that it connects to: the first bytes of a connection, read and kept.
//!
//! Only what the client says first and in clear text is looked at: the server name of a TLS greeting, the `Host` of an HTTP/1
//! request. Where that says two things, or something that two readers could understand in two ways, there is no name:
//! what we read and what a server reads must be the same.
//!
//! * **Encrypted ClientHello.** The outer name counts. Browsers send a meaningless one to every server (GREASE), on purpose not to be
//!   told from a real one, so it cannot be refused; and the keys for a real one are in records that our resolver does not give out.
//! * **HTTP/2 in clear text** has its name behind a compression with a memory. It is rare, and has no name here.
//! * **A second request** on a connection may name another host. It reaches the server of the first all the same.
//! * **Inside of TLS** nothing is heard: a server of several names can be asked there for another one than it was greeted with. It is a
//!   server of the allowed name all the same.
//! * **Protocols that begin without TLS** (SSH, STARTTLS, databases) have no name: they are allowed by address.
//! * **QUIC** is UDP and never comes here.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};

use crate::name::HostName;

mod http;
mod tls;

/// Most that is read before a name is known. A greeting with post-quantum keys has some 2 KiB, and servers take 8 to 16 KiB of
/// headers.
pub const MAX_GREETING_BYTES: usize = 16 << 10;
/// Read at a time.
const CHUNK_BYTES: usize = 4 << 10;
/// What a client of HTTP/2 says first (RFC 9113, 3.4).
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// TLS, in records.
    Tls,
    /// A request of HTTP/1.
    Http1,
    /// HTTP/2 without TLS.
    Http2,
    /// Something else, or nothing yet.
    Unknown,
}

/// Why a connection has no name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Unnamed {
    /// A greeting or request without a name.
    #[error("the client named no host")]
    NoName,
    /// An address where a name could be.
    #[error("the client named an address")]
    Literal,
    /// More than one name, or the same twice.
    #[error("the client named more than one host")]
    Several,
    /// A request to another server than the one that it is sent to.
    #[error("the client asked for a tunnel")]
    Tunnel,
    /// HTTP/2 without TLS.
    #[error("HTTP/2 without TLS tells no name that is looked at")]
    Http2,
    /// Neither TLS nor HTTP.
    #[error("the client speaks neither TLS nor HTTP")]
    Unknown,
    /// It began like one of them and went on wrong.
    #[error("the client's greeting is malformed")]
    Malformed,
    /// No name in [`MAX_GREETING_BYTES`].
    #[error("the client's greeting is longer than {MAX_GREETING_BYTES} bytes")]
    TooLong,
    /// No name in time.
    #[error("the client named no host in time")]
    TooLate,
    /// The client went away.
    #[error("the client closed before it named a host")]
    Closed,
}

/// What was heard.
#[derive(Debug)]
pub struct Greeting {
    /// What the client speaks.
    pub protocol: Protocol,
    /// What it calls its host.
    pub name: Result<HostName, Unnamed>,
    /// All that was read, for whoever continues.
    pub bytes: Vec<u8>,
}

/// A name or why there is none, once that is known.
type Heard = Option<Result<HostName, Unnamed>>;

/// Reads until the name is known or cannot be, no longer than `within`.
pub async fn greeting(client: &mut (impl AsyncRead + Unpin), within: Duration) -> Greeting {
    let mut listener = Listener::default();
    let read = async {
        let mut chunk = [0; CHUNK_BYTES];
        loop {
            let room = CHUNK_BYTES.min(MAX_GREETING_BYTES - listener.bytes.len());
            match client.read(&mut chunk[..room]).await {
                Ok(0) | Err(_) => return Err(Unnamed::Closed),
                Ok(read) => {
                    if let Some(name) = listener.hear(&chunk[..read]) {
                        return name;
                    }
                }
            }
        }
    };
    let name = tokio::time::timeout(within, read).await.unwrap_or(Err(Unnamed::TooLate));
    Greeting { protocol: listener.protocol(), name, bytes: listener.bytes }
}

/// Understands a greeting in the pieces that it comes in. Work is linear in its bytes, however small the pieces are.
#[derive(Default)]
pub(crate) struct Listener {
    bytes: Vec<u8>,
    state: State,
}

#[derive(Default)]
enum State {
    /// Too little to tell.
    #[default]
    Beginning,
    Tls(Box<tls::Reader>),
    Http1(http::Reader),
    Http2,
    Unknown,
}

impl Listener {
    /// Takes the next piece.
    pub(crate) fn hear(&mut self, piece: &[u8]) -> Heard {
        let heard = self.bytes.len();
        self.bytes.extend_from_slice(piece);
        let fresh = if matches!(self.state, State::Beginning) {
            self.state = begin(&self.bytes);
            &self.bytes[..]
        } else {
            &self.bytes[heard..]
        };
        let name = match &mut self.state {
            State::Beginning => None,
            State::Tls(reader) => reader.read(fresh),
            State::Http1(reader) => reader.read(&self.bytes),
            State::Http2 => Some(Err(Unnamed::Http2)),
            State::Unknown => Some(Err(Unnamed::Unknown)),
        };
        if name == Some(Err(Unnamed::Unknown)) {
            self.state = State::Unknown;
        }
        name.or_else(|| (self.bytes.len() >= MAX_GREETING_BYTES).then_some(Err(Unnamed::TooLong)))
    }

    fn protocol(&self) -> Protocol {
        match self.state {
            State::Beginning | State::Unknown => Protocol::Unknown,
            State::Tls(_) => Protocol::Tls,
            State::Http1(_) => Protocol::Http1,
            State::Http2 => Protocol::Http2,
        }
    }
}

fn begin(bytes: &[u8]) -> State {
    match bytes.first() {
        None => State::Beginning,
        Some(&tls::HANDSHAKE) => State::Tls(Box::default()),
        _ if bytes.starts_with(HTTP2) => State::Http2,
        _ if HTTP2.starts_with(bytes) => State::Beginning,
        Some(byte) if byte.is_ascii_uppercase() => State::Http1(http::Reader::default()),
        Some(_) => State::Unknown,
    }
}
