//! What a client says first, and what is understood of it.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{sync::Arc, time::Duration};

use firkin_egress::{Greeting, MAX_GREETING_BYTES, Protocol, Unnamed, greeting};
use proptest::prelude::*;
use rustls::{ClientConfig, ClientConnection, RootCertStore, pki_types::ServerName};
use tokio::io::AsyncWriteExt;

const WITHIN: Duration = Duration::from_secs(5);

/// What a client of TLS says first.
fn hello(name: &str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    let mut client = ClientConnection::new(Arc::new(config), ServerName::try_from(name.to_owned()).unwrap()).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

/// The same greeting with another extension behind its own.
fn extended(hello: &[u8], kind: u16, content: &[u8]) -> Vec<u8> {
    let length = |bytes: &[u8]| bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
    let short = |value: usize| u16::try_from(value).unwrap().to_be_bytes();
    let extension = [&kind.to_be_bytes()[..], &short(content.len()), content].concat();
    let body = &hello[9..];
    let session = 35 + usize::from(body[34]);
    let suites = session + 2 + length(&body[session..session + 2]);
    let at = suites + 1 + usize::from(body[suites]);
    let extensions = length(&body[at..at + 2]) + extension.len();
    let body = [&body[..at], &short(extensions), &body[at + 2..], &extension].concat();
    record(&[&[1, 0], &short(body.len())[..], &body].concat())
}

fn record(handshake: &[u8]) -> Vec<u8> {
    [&[22, 3, 1], &u16::try_from(handshake.len()).unwrap().to_be_bytes()[..], handshake].concat()
}

/// A name as the extension of server names holds it.
fn server_name(name: &str) -> Vec<u8> {
    let short = |value: usize| u16::try_from(value).unwrap().to_be_bytes();
    [&short(name.len() + 3), &[0][..], &short(name.len()), name.as_bytes()].concat()
}

/// What is understood of `pieces`, after which the client waits.
async fn heard(pieces: &[&[u8]]) -> Greeting {
    // One byte at a time: no piece is read with the next one.
    heard_by(1, pieces).await
}

/// The same, read in as many bytes at a time.
async fn heard_by(bytes: usize, pieces: &[&[u8]]) -> Greeting {
    let (mut client, mut server) = tokio::io::duplex(bytes);
    let write = async {
        for piece in pieces {
            client.write_all(piece).await.unwrap();
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = write => unreachable!("it waits"),
        greeting = greeting(&mut server, WITHIN) => greeting,
    }
}

/// The name, in one piece and without the rest.
async fn name(bytes: &[u8]) -> Result<String, Unnamed> {
    let (mut client, mut server) = tokio::io::duplex(2 * MAX_GREETING_BYTES);
    client.write_all(bytes).await.unwrap();
    let greeting = greeting(&mut server, WITHIN).await;
    assert!(bytes.starts_with(&greeting.bytes), "what was read is kept as it was");
    greeting.name.map(|name| name.to_string())
}

#[tokio::test(start_paused = true)]
async fn a_server_name_is_read() {
    let hello = hello("Example.com");
    let greeting = heard(&[&hello]).await;
    assert_eq!((greeting.protocol, greeting.name.unwrap().as_str()), (Protocol::Tls, "example.com"));
    assert_eq!(greeting.bytes, hello, "what was read is kept as it was");
}

#[tokio::test(start_paused = true)]
async fn a_greeting_may_be_cut_into_records() {
    let hello = hello("example.com");
    for size in [1, 2, 7, 50, 100] {
        let records: Vec<u8> = hello[5..].chunks(size).flat_map(record).collect();
        assert_eq!(name(&records).await.as_deref(), Ok("example.com"), "records of {size}");
        assert_eq!(heard(&[&records]).await.name.unwrap().as_str(), "example.com", "records of {size}, byte by byte");
    }
}

#[tokio::test(start_paused = true)]
async fn a_greeting_without_a_name_has_none() {
    assert_eq!(name(&hello("1.2.3.4")).await, Err(Unnamed::NoName));
    let literal = extended(&hello("1.2.3.4"), 0, &server_name("1.2.3.4"));
    assert_eq!(name(&literal).await, Err(Unnamed::NoName));
}

#[tokio::test(start_paused = true)]
async fn a_greeting_that_servers_refuse_has_no_name() {
    let twice = extended(&hello("example.com"), 0, &server_name("evil.test"));
    assert_eq!(name(&twice).await, Err(Unnamed::Malformed));
    let both = [&[0, 0], &server_name("example.com")[2..], &server_name("evil.test")[2..]].concat();
    let mut both = extended(&hello("1.2.3.4"), 0, &both);
    let end = both.len();
    // The length of the list, which is that of both names.
    both[end - 27] = 26;
    assert!(name(&both).await.is_err());
    for bad in ["a b", "*.test", "a\0.test", "a..test", "127.1", ""] {
        assert!(name(&extended(&hello("1.2.3.4"), 0, &server_name(bad))).await.is_err(), "{bad}");
    }
    assert_eq!(name(&record(&[2, 0, 0, 0])).await, Err(Unnamed::Malformed));
    assert_eq!(name(&[22, 3, 1, 255, 255, 1]).await, Err(Unnamed::Malformed));
}

#[tokio::test(start_paused = true)]
async fn of_an_encrypted_greeting_the_outer_name_counts() {
    // Browsers say this to everybody; whether it is meant cannot be seen.
    let encrypted = extended(&hello("example.com"), 0xfe0d, &[0, 0, 1, 0, 1, 7, 0, 4, 1, 2, 3, 4, 0, 4, 1, 2, 3, 4]);
    assert_eq!(name(&encrypted).await.as_deref(), Ok("example.com"));
}

#[tokio::test(start_paused = true)]
async fn the_host_of_a_request_is_its_name() {
    for (request, expected) in [
        ("GET / HTTP/1.1\r\nHost: Example.com\r\n\r\n", Ok("example.com")),
        ("POST /a?b HTTP/1.1\r\nA: b\r\nhost:example.com:8080 \r\n\r\nbody", Ok("example.com")),
        ("GET / HTTP/1.0\nHost: example.com.\n\n", Ok("example.com")),
        ("OPTIONS * HTTP/1.1\r\nHost: example.com\r\n\r\n", Ok("example.com")),
        ("GET http://EXAMPLE.com:80/a HTTP/1.1\r\nHost: example.com\r\n\r\n", Ok("example.com")),
        ("GET http://example.com?a HTTP/1.1\r\nHost: example.com\r\n\r\n", Ok("example.com")),
        ("GET http://evil.test/ HTTP/1.1\r\nHost: example.com\r\n\r\n", Err(Unnamed::Several)),
        ("GET http://example.com@evil.test/ HTTP/1.1\r\nHost: example.com\r\n\r\n", Err(Unnamed::Malformed)),
        ("GET / HTTP/1.1\r\nHost: example.com\r\nHost: example.com\r\n\r\n", Err(Unnamed::Several)),
        ("GET / HTTP/1.1\r\nHost: example.com\r\nhOST: evil.test\r\n\r\n", Err(Unnamed::Several)),
        ("GET / HTTP/1.1\r\nHost: example.com, evil.test\r\n\r\n", Err(Unnamed::Malformed)),
        ("GET / HTTP/1.1\r\nHost : example.com\r\n\r\n", Err(Unnamed::Malformed)),
        ("GET / HTTP/1.1\r\nX: a\r\n Host: example.com\r\n\r\n", Err(Unnamed::Malformed)),
        ("GET / HTTP/1.1\r\nHost: exa mple.com\r\n\r\n", Err(Unnamed::Malformed)),
        ("GET / HTTP/1.1\r\nHost: example.com:x\r\n\r\n", Err(Unnamed::Malformed)),
        ("GET / HTTP/1.1\r\nHost: 1.2.3.4\r\n\r\n", Err(Unnamed::Literal)),
        ("GET / HTTP/1.1\r\nHost: 127.1:80\r\n\r\n", Err(Unnamed::Literal)),
        ("GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", Err(Unnamed::Literal)),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n", Err(Unnamed::NoName)),
        ("GET / HTTP/1.1\r\nA: b\r\n\r\n", Err(Unnamed::NoName)),
        ("CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n", Err(Unnamed::Tunnel)),
        ("GET example.com HTTP/1.1\r\nHost: example.com\r\n\r\n", Err(Unnamed::Tunnel)),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0", Err(Unnamed::Http2)),
        ("SSH-2.0-OpenSSH_9.2\r\n", Err(Unnamed::Unknown)),
        ("EHLO example.com\r\n", Err(Unnamed::Unknown)),
        ("GET /\r\n", Err(Unnamed::Unknown)),
        ("\0\0\0\x08\x04\x12\x16\x2f", Err(Unnamed::Unknown)),
    ] {
        assert_eq!(name(request.as_bytes()).await.as_deref(), expected.as_ref().map(|name| *name), "{request:?}");
        let heard = heard(&[request.as_bytes()]).await.name;
        assert_eq!(heard.as_ref().map(|name| name.as_str()), expected.as_ref().map(|name| *name), "{request:?}, byte by byte");
    }
}

#[tokio::test(start_paused = true)]
async fn a_greeting_has_an_end_in_bytes_and_time() {
    let endless = format!("GET / HTTP/1.1\r\nHost: example.com\r\nA: {}", "a".repeat(2 * MAX_GREETING_BYTES));
    for size in [1, 5000] {
        let greeting = heard_by(size, &[endless.as_bytes()]).await;
        assert_eq!((greeting.name, greeting.bytes.len()), (Err(Unnamed::TooLong), MAX_GREETING_BYTES));
    }

    let begun = tokio::time::Instant::now();
    for slow in ["", "P", "GET / HTTP/1.1\r\nHost: example.com\r\n"] {
        assert_eq!(heard(&[slow.as_bytes()]).await.name, Err(Unnamed::TooLate), "{slow}");
    }
    assert_eq!(begun.elapsed(), 3 * WITHIN);
}

#[tokio::test]
async fn a_client_that_goes_away_has_no_name() {
    let (mut client, mut server) = tokio::io::duplex(64);
    client.write_all(b"GET / HT").await.unwrap();
    drop(client);
    assert_eq!(greeting(&mut server, WITHIN).await.name, Err(Unnamed::Closed));
}

proptest! {
    #[test]
    fn a_greeting_may_be_cut_anywhere(cuts in proptest::collection::vec(0usize..300, 0..5), other in any::<bool>()) {
        let bytes = if other { b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n".to_vec() } else { hello("example.com") };
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).chain([0, bytes.len()]).collect();
        cuts.sort_unstable();
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let greeting = runtime.block_on(heard(&pieces));
        prop_assert_eq!(greeting.name.unwrap().to_string(), "example.com");
    }
}
