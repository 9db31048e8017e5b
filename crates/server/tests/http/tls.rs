//! The port for HTTPS, and what it says to those who speak plain HTTP.

use std::{net::SocketAddr, time::Duration};

use firkin_server::{Listener, ServerConfig, TlsIdentity, serve};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::bench::{Bench, DEADLINE};

#[tokio::test]
async fn plain_http_on_the_port_for_https_is_shown_the_way() {
    let bench = Bench::start().await;
    let dir = tempfile::tempdir().unwrap();
    let (identity, _) = TlsIdentity::internal(dir.path(), "firkin.localhost").unwrap();
    let stop = CancellationToken::new();
    let mut servers = JoinSet::new();
    let mut addresses = Vec::new();
    // One that waits for whoever asks, and one that does not wait long for those who ask nothing.
    for head_deadline in [DEADLINE, Duration::from_millis(500)] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        addresses.push(listener.local_addr().unwrap());
        let config = ServerConfig { head_deadline, ..ServerConfig::default() };
        servers.spawn(serve(vec![Listener::Tls(listener, identity.clone())], bench.runtime.clone(), config, stop.clone()));
    }
    let ask = async |address: SocketAddr, bytes: &str| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(bytes.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let read = tokio::time::timeout(DEADLINE, stream.read_to_string(&mut answer)).await;
        read.expect("the connection is closed").map(|_| answer)
    };
    let request = "GET /a?b=c HTTP/1.1\r\nHost: 3000-iabc.firkin.localhost:8443\r\nX-Api-Key: secret\r\n\r\n";
    let answer = ask(addresses[0], request).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 308 "), "{answer}");
    assert!(answer.contains("location: https://3000-iabc.firkin.localhost:8443/a?b=c\r\n"), "{answer}");
    for nothing in ["", "G"] {
        assert_eq!(ask(addresses[1], nothing).await.unwrap_or_default(), "", "{nothing:?}: not for ever");
    }
    stop.cancel();
    servers.join_all().await.into_iter().for_each(|served| served.unwrap());
    bench.stop().await;
}
