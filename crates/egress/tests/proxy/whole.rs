//! Whole conversations: what passes is not changed, and what it leads to is decided anew.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore, ServerConfig, pki_types::PrivateKeyDer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::scene::{HELLO_A, HELLO_B, PATIENCE, Scene, limits, read};

#[tokio::test]
async fn tls_is_between_client_and_server_and_so_is_http_2() {
    let scene = Scene::set(&["a.test"], limits()).await;
    let key = rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions().unwrap();
    let private = PrivateKeyDer::Pkcs8(key.signing_key.serialize_der().into());
    let mut server = server.with_no_client_auth().with_single_cert(vec![key.cert.der().clone()], private).unwrap();
    server.alpn_protocols = vec![b"h2".to_vec()];
    let mut roots = RootCertStore::empty();
    roots.add(key.cert.der().clone()).unwrap();
    let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut client = client.with_root_certificates(roots).with_no_client_auth();
    client.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];

    let socket = scene.client("6.6.6.6:443", b"").await;
    let serve = async {
        let (socket, _) = scene.a.accept().await.unwrap();
        let mut connection = TlsAcceptor::from(Arc::new(server)).accept(socket).await.unwrap();
        let mut bytes = [0; 4];
        connection.read_exact(&mut bytes).await.unwrap();
        connection.write_all(&bytes).await.unwrap();
        connection.shutdown().await.unwrap();
    };
    let ask = async {
        let connector = TlsConnector::from(Arc::new(client));
        let mut connection = connector.connect("a.test".try_into().unwrap(), socket).await.unwrap();
        assert_eq!(connection.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        connection.write_all(b"ping").await.unwrap();
        let mut answer = Vec::new();
        connection.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"ping");
    };
    timeout(PATIENCE, async { tokio::join!(serve, ask) }).await.expect("they agree");
}

#[tokio::test]
async fn where_a_server_sends_a_client_on_is_decided_anew() {
    const MOVED: &[u8] = b"HTTP/1.1 302 Found\r\nLocation: http://b.test/\r\nContent-Length: 0\r\n\r\n";
    let scene = Scene::set(&["a.test"], limits()).await;
    let (mut client, mut server) = (scene.client("6.6.6.6:80", HELLO_A).await, Scene::arrives(&scene.a, HELLO_A).await);
    server.write_all(MOVED).await.unwrap();
    assert_eq!(read(&mut client, MOVED.len()).await, MOVED, "as it was sent");
    assert!(scene.answer("2.2.2.2:80", HELLO_B).await.starts_with(b"HTTP/1.1 403 "));
    assert_eq!(scene.dialed(), ["1.1.1.1:80"]);
}
