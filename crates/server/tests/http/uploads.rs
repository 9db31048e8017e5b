//! Uploads that begin and do not go on.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::bench::{Bench, DEADLINE};

#[tokio::test]
async fn an_upload_that_falls_silent_ends() {
    let bench = Bench::start().await;
    let place = bench.call("POST", "/v3/templates", r#"{"name":"quiet"}"#).await.expect(202);
    let path = format!("/templates/{}/files/{}", place.text("/templateID"), "a".repeat(64));
    let mut stream = TcpStream::connect(bench.address).await.unwrap();
    let head = format!("PUT {path} HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {}\r\nContent-Length: 100\r\n\r\nbegun", bench.key);
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 512];
    let read = tokio::time::timeout(DEADLINE, stream.read(&mut answer)).await.expect("an answer in time").unwrap();
    assert!(answer[..read].starts_with(b"HTTP/1.1 408 "), "{}", String::from_utf8_lossy(&answer[..read]));
    bench.stop().await;
}
