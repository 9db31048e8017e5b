//! A connection to a program of a guest that listens on its loopback only: made from inside by the agent, at our request.
//!
//! The request is HTTP, what follows are the program's own bytes. Not one of them may be read with the answer's head, because the
//! stream is handed on as a plain socket: so the head is looked at before it is taken.

use std::{io, time::Duration};

use firkin_wire::{
    ENVD_PORT,
    forward::{PATH, PROTOCOL},
    headers::ACCESS_TOKEN,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::machine::network::Connector;

/// How long the agent may take, on an emulated CPU that is busy: it has its own limit of five seconds for the program.
const DEADLINE: Duration = Duration::from_secs(20);

/// The longest head of an answer.
const MAX_HEAD_BYTES: usize = 8 << 10;

/// Ends a head.
const END: &[u8] = b"\r\n\r\n";

/// The beginning of an answer that grants the request.
const GRANTED: &[u8] = b"HTTP/1.1 101 ";

/// Connects to who listens at `port` of the guest's outer address, else to who does on its loopback.
pub(crate) async fn reach(connector: &Connector, port: u16, token: Option<&str>) -> io::Result<TcpStream> {
    match connector.connect(port).await {
        Err(refusal) if refusal.kind() == io::ErrorKind::ConnectionRefused && port != ENVD_PORT => {
            let forwarded = connect(connector, port, token).await;
            // What is told is what was asked for: an agent of an old snapshot knows no other way.
            forwarded.map_err(|error| {
                tracing::debug!(%error, port, "the loopback is not reached either");
                refusal
            })
        }
        connected => connected,
    }
}

/// Connects to `port` of the guest's loopback.
async fn connect(connector: &Connector, port: u16, token: Option<&str>) -> io::Result<TcpStream> {
    let connecting = async {
        let mut stream = connector.connect(ENVD_PORT).await?;
        let token = token.map(|token| format!("{ACCESS_TOKEN}: {token}\r\n")).unwrap_or_default();
        let request = format!(
            "GET {PATH}?port={port} HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: {PROTOCOL}\r\n{token}\r\n"
        );
        stream.write_all(request.as_bytes()).await?;
        if read_head(&mut stream).await?.starts_with(GRANTED) {
            return Ok(stream);
        }
        Err(io::Error::new(io::ErrorKind::ConnectionRefused, "the agent reaches nothing that listens there"))
    };
    tokio::time::timeout(DEADLINE, connecting).await?
}

/// Takes the head of an answer from the stream, and nothing after it.
async fn read_head(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let mut ahead = [0; 1024];
    while head.len() < MAX_HEAD_BYTES {
        let seen = stream.peek(&mut ahead).await?;
        if seen == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let before = head.len();
        head.extend_from_slice(&ahead[..seen]);
        let end = head.windows(END.len()).position(|window| window == END).map(|at| at + END.len());
        head.truncate(end.unwrap_or(head.len()));
        let taken = head.len() - before;
        stream.read_exact(&mut ahead[..taken]).await?;
        if end.is_some() {
            return Ok(head);
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "the head of the agent's answer is too long"))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use tokio::net::TcpListener;

    use super::*;

    /// An agent that answers in these pieces, each sent when the one before was taken.
    async fn agent(pieces: &[&[u8]]) -> Connector {
        let pieces: Vec<Vec<u8>> = pieces.iter().map(|piece| piece.to_vec()).collect();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let read = stream.read(&mut request).await.unwrap();
            assert!(request[..read].ends_with(END));
            for piece in pieces {
                stream.write_all(&piece).await.unwrap();
                tokio::task::yield_now().await;
            }
        });
        Connector::Loopback(Arc::new(BTreeMap::from([(ENVD_PORT, port)])))
    }

    #[tokio::test]
    async fn what_a_program_says_first_is_not_lost_with_the_head() {
        for pieces in [
            &[b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\nSSH-2.0".as_slice()] as &[&[u8]],
            &[b"HTTP/1.1 101 S\r", b"\n", b"a: b\r\n\r", b"\nSSH", b"-2.0"],
        ] {
            let mut stream = connect(&agent(pieces).await, 22, Some("t")).await.unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).await.unwrap();
            assert_eq!(text, "SSH-2.0");
        }
    }

    #[tokio::test]
    async fn an_agent_that_knows_no_forwarding_or_makes_no_sense_reaches_nothing() {
        let long = [b'a'; 10_000];
        for pieces in [
            &[b"HTTP/1.1 404 Not Found\r\n\r\n".as_slice()] as &[&[u8]],
            &[b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 2\r\n\r\n{}"],
            &[b"HTTP/1.1 101"],
            &[&long],
            &[],
        ] {
            assert!(connect(&agent(pieces).await, 22, None).await.is_err(), "{pieces:?}");
        }
    }
}
