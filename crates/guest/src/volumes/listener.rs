//! Where the host comes to answer for volumes. Whoever else comes is turned away: he does not know what this machine is called.

use std::{
    io::{self, BufRead, BufReader, Read},
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use firkin_wire::fuse::{Hello, MAX_HELLO_BYTES, PORT, PROOF_ID};

use super::{Mounted, locked, relay::Relay};

/// The host says who it is as soon as it is connected. Others who come wait for as long before it is heard.
const HELLO_DEADLINE: Duration = Duration::from_secs(2);

/// Pause after a failed accept, which means that file descriptors or memory ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Waits for the host from a thread of its own.
pub(super) fn start(mounted: Arc<Mutex<Mounted>>) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT))?;
    thread::Builder::new().name("volumes".to_owned()).spawn(move || {
        loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    if let Err(error) = welcome(stream, &mounted) {
                        tracing::warn!(%error, "somebody came for a volume and was turned away");
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept the host of volumes");
                    thread::park_timeout(ACCEPT_PAUSE);
                }
            }
        }
    })?;
    Ok(())
}

fn welcome(stream: TcpStream, mounted: &Mutex<Mounted>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(HELLO_DEADLINE))?;
    let hello = read_hello(&stream)?;
    stream.set_read_timeout(None)?;
    let relay = find(&locked(mounted), &hello)?;
    relay.connect(stream)
}

fn find(mounted: &Mounted, hello: &Hello) -> io::Result<Arc<Relay>> {
    if !mounted.bond.admits(PROOF_ID, hello.proof.as_ref()) {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it is not the host of this machine"));
    }
    let found = mounted.volumes.iter().find(|(volume, _)| volume.path == hello.path);
    found.map(|(_, relay)| Arc::clone(relay)).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no volume is mounted there"))
}

/// One line. Nothing follows it until this side has asked for something.
fn read_hello(stream: impl Read) -> io::Result<Hello> {
    let mut line = Vec::new();
    BufReader::new(stream.take(MAX_HELLO_BYTES as u64)).read_until(b'\n', &mut line)?;
    Ok(serde_json::from_slice(&line)?)
}

/// What a stranger in the sandbox's network may send first: no more of it is read than a hello has, and only a line that is one is taken.
#[cfg(any(test, feature = "fuzzing"))]
pub fn volume_hello(data: &[u8]) {
    let mut rest = data;
    let hello = read_hello(&mut rest);
    let read = data.len() - rest.len();
    assert!(read <= MAX_HELLO_BYTES, "{read} bytes were read of a hello");
    if let Ok(hello) = hello {
        let again = serde_json::to_vec(&hello).expect("a hello can be written");
        assert_eq!(read_hello(&again[..]).ok(), Some(hello).filter(|_| again.len() <= MAX_HELLO_BYTES));
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use firkin_wire::nonce::{Bond, Nonce, Side};

    use super::*;

    #[test]
    fn only_who_knows_the_machine_is_let_in() {
        let nonce = Nonce::new([7; 32]);
        let mut bond = Bond::default();
        bond.take(Some(&nonce));
        let mounted = Mounted { bond, volumes: Vec::new() };
        let hello = |proof| Hello { path: "/v".to_owned(), proof };
        let kind = |hello| find(&mounted, &hello).unwrap_err().kind();
        assert_eq!(kind(hello(None)), io::ErrorKind::PermissionDenied);
        for (side, id) in [(Side::Guest, PROOF_ID), (Side::Host, 1)] {
            assert_eq!(kind(hello(Some(nonce.proof(side, id)))), io::ErrorKind::PermissionDenied);
        }
        assert_eq!(kind(hello(Some(nonce.proof(Side::Host, PROOF_ID)))), io::ErrorKind::NotFound);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_a_hello_or_none(path in ".{0,40}", torn in 0_usize..60, noise in proptest::collection::vec(proptest::num::u8::ANY, 0..2000)) {
            volume_hello(&noise);
            let line = serde_json::to_vec(&Hello { path, proof: None }).unwrap();
            volume_hello(&[&line[..line.len().saturating_sub(torn)], &noise].concat());
            volume_hello(&[&line[..], b"\n", &noise].concat());
        }
    }

    #[test]
    fn a_hello_is_a_line_and_no_request() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let said = |text: &[u8]| {
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            client.write_all(text).unwrap();
            drop(client);
            read_hello(&listener.accept().unwrap().0)
        };
        assert_eq!(said(b"{\"path\":\"a\",\"newer\":1}\n").unwrap().path, "a");
        assert!(said(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").is_err());
        assert!(said(&[b'x'; 4096]).is_err());
        assert!(said(b"").is_err());
    }
}
