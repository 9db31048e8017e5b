//! Who gets a connection, and for how long, when many want one.

use std::{net::SocketAddr, time::Duration};

use firkin_server::{ServeError, ServerConfig, serve};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::bench::{Bench, DEADLINE, send_to};

/// A second server on the same runtime, with its own limits.
pub(crate) async fn server(
    bench: &Bench,
    config: ServerConfig,
) -> (SocketAddr, CancellationToken, JoinHandle<Result<(), ServeError>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    let serving = serve(vec![listener.into()], bench.runtime.clone(), config, stop.clone());
    (address, stop, tokio::spawn(serving))
}

/// Asks once over a connection of one's own, which stays open.
async fn ask(address: SocketAddr, path: &str, headers: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n").as_bytes()).await.unwrap();
    let mut answer = vec![0; 4096];
    let read = tokio::time::timeout(DEADLINE, stream.read(&mut answer)).await.expect("an answer in time").unwrap();
    (stream, String::from_utf8_lossy(&answer[..read]).into_owned())
}

#[tokio::test]
async fn idle_strangers_lock_nobody_out_and_who_has_a_key_keeps_its_connection() {
    let bench = Bench::start().await;
    let (address, stop, serving) = server(&bench, ServerConfig { max_connections: 16, ..ServerConfig::default() }).await;
    let key = format!("X-API-Key: {}\r\n", bench.key);
    let (mut own, answer) = ask(address, "/v2/sandboxes", &key).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let mut idle = Vec::new();
    for _ in 0..40 {
        let (stream, answer) = ask(address, "/health", "").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        idle.push(stream);
    }
    let request = bench.request("GET", "/v2/sandboxes", "");
    assert_eq!(send_to(address, request).await.status(), 200, "the operator is answered");
    own.write_all(format!("GET /v2/sandboxes HTTP/1.1\r\nHost: localhost\r\n{key}\r\n").as_bytes()).await.unwrap();
    let mut answer = [0; 64];
    let read = tokio::time::timeout(DEADLINE, own.read(&mut answer)).await.expect("an answer in time").unwrap();
    assert!(answer[..read].starts_with(b"HTTP/1.1 200 "), "a connection that has shown a key was kept");
    let gone = tokio::time::timeout(DEADLINE, idle[0].read(&mut answer)).await.expect("the oldest made room").unwrap_or(0);
    assert_eq!(gone, 0);
    drop(idle);
    stop.cancel();
    serving.await.unwrap().unwrap();
    bench.stop().await;
}

#[tokio::test]
async fn who_has_shown_nothing_may_be_idle_for_a_short_time_only() {
    let bench = Bench::start().await;
    // The first request has to come in time, and only from then on a stranger may be idle for less.
    let (stranger_idle, head_deadline) = (Duration::from_millis(300), Duration::from_secs(5));
    let config = ServerConfig { stranger_idle, head_deadline, ..ServerConfig::default() };
    let (address, stop, serving) = server(&bench, config).await;
    let key = format!("X-API-Key: {}\r\n", bench.key);
    let (mut own, _) = ask(address, "/v2/sandboxes", &key).await;
    let (mut stranger, _) = ask(address, "/health", "").await;
    let mut byte = [0];
    let read = tokio::time::timeout(DEADLINE, stranger.read(&mut byte)).await.expect("it is hung up on").unwrap_or(0);
    assert_eq!(read, 0);
    own.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let read = tokio::time::timeout(DEADLINE, own.read(&mut byte)).await.expect("an answer in time").unwrap();
    assert_eq!(read, 1, "who has a key is waited for");
    stop.cancel();
    serving.await.unwrap().unwrap();
    bench.stop().await;
}
