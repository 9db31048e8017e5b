//! The way to programs that listen on the loopback only.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::harness::Envd;

/// A program that tells each peer who it is and then repeats what it hears. The address that it listens on.
async fn program(address: &str) -> SocketAddr {
    let listener = TcpListener::bind((address, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, peer)) = listener.accept().await {
            tokio::spawn(async move {
                stream.write_all(format!("{}\n", peer.ip()).as_bytes()).await.unwrap();
                let (mut from, mut to) = stream.split();
                tokio::io::copy(&mut from, &mut to).await.unwrap();
            });
        }
    });
    address
}

/// Asks envd for a port: the answer's first line, and the connection.
async fn ask(envd: &Envd, port: u16, headers: &str) -> (String, TcpStream) {
    let mut stream = TcpStream::connect(envd.url.trim_start_matches("http://")).await.unwrap();
    let request = format!(
        "GET /forward?port={port} HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: firkin-forward\r\n{headers}\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    (head.lines().next().unwrap().to_owned(), stream)
}

#[tokio::test]
async fn programs_of_every_loopback_address_are_reached_by_a_peer_of_their_own_machine() {
    let envd = Envd::start();
    for address in ["127.0.0.1", "::1", "127.0.1.1"] {
        let port = program(address).await.port();
        let (answer, mut stream) = ask(&envd, port, "").await;
        assert_eq!(answer, "HTTP/1.1 101 Switching Protocols", "{address}");
        stream.write_all(b"hello").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut heard = String::new();
        stream.read_to_string(&mut heard).await.unwrap();
        let peer = if address == "::1" { "::1" } else { "127.0.0.1" };
        assert_eq!(heard, format!("{peer}\nhello"));
    }
}

#[tokio::test]
async fn what_does_not_listen_and_what_envd_serves_itself_is_not_forwarded() {
    let envd = Envd::start();
    // Bound and not listened on: it stays nobody's.
    let held = tokio::net::TcpSocket::new_v4().unwrap();
    held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let closed = held.local_addr().unwrap().port();
    let (answer, _) = ask(&envd, closed, "").await;
    assert_eq!(answer, "HTTP/1.1 502 Bad Gateway");
    for port in [49_983, 49_999, 0] {
        assert_eq!(ask(&envd, port, "").await.0, "HTTP/1.1 400 Bad Request", "{port}");
    }
    assert_eq!(envd.get(&format!("/forward?port={closed}"), &[]).await.status, 426);
    assert_eq!(envd.get("/forward?port=70000", &[]).await.status, 400);
}

#[tokio::test]
async fn forwarding_is_for_the_holder_of_the_token() {
    let envd = Envd::start_with(&["--token", "secret"]);
    let port = program("127.0.0.1").await.port();
    assert_eq!(ask(&envd, port, "").await.0, "HTTP/1.1 401 Unauthorized");
    assert_eq!(ask(&envd, port, "x-access-token: secret\r\n").await.0, "HTTP/1.1 101 Switching Protocols");
}
