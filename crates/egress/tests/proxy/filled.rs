//! Requests in which headers are put: what the host sees, what the client sees, and where no value goes.

use std::{
    collections::HashMap,
    net::Ipv4Addr,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use firkin_egress::{Authority, HostName, Reference, Sides, Termination, Transform, Transforms, ValueError, Values, Way};
use http::{Request, Response, StatusCode, Version, header};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client};
use zeroize::Zeroizing;

use crate::scene::{ALL, HELLO_A, PATIENCE, Scene, World, hello, ip, limits, way};

const RULE: &str = "Bearer ${e2b.secrets.key}";

/// Values that change.
#[derive(Debug, Default)]
struct Kept(Mutex<HashMap<Reference, String>>);

#[async_trait]
impl Values for Kept {
    async fn value(&self, reference: &Reference, host: &HostName) -> Result<Zeroizing<String>, ValueError> {
        assert_eq!(host.as_str(), "a.test");
        self.0.lock().unwrap().get(reference).cloned().map(Zeroizing::new).ok_or(ValueError::None)
    }
}

impl Kept {
    fn set(&self, name: &str, value: &str) {
        self.0.lock().unwrap().insert(Reference::Secret(name.to_owned()), value.to_owned());
    }
}

/// A scene whose host `a.test` speaks TLS, and whose way puts headers in.
struct Filled {
    scene: Scene,
    kept: Arc<Kept>,
    /// What clients trust in the place of `a.test`.
    authority: String,
    sides: Arc<Sides>,
    /// Requests that the host got.
    requests: mpsc::UnboundedReceiver<Request<()>>,
    _host: JoinSet<()>,
    _dir: tempfile::TempDir,
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// An authority for hosts, and the configuration of one of them.
fn host_identity(name: &str) -> (String, Arc<ServerConfig>) {
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    let config = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let mut config = config.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    (pem, Arc::new(config))
}

/// What the host answers: what it got in `authorization`; a request for another protocol is granted, and bytes come back doubled.
async fn answer(
    mut request: Request<Incoming>,
    got: mpsc::UnboundedSender<Request<()>>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let upgrade = request.headers().contains_key(header::UPGRADE).then(|| hyper::upgrade::on(&mut request));
    let (parts, body) = request.into_parts();
    let seen = parts.headers.get(header::AUTHORIZATION).map(|value| value.as_bytes().to_vec()).unwrap_or_default();
    let mut text = body.collect().await?.to_bytes().to_vec();
    text.extend(seen);
    got.send(Request::from_parts(parts, ())).unwrap();
    let mut response = Response::new(Full::new(Bytes::from(text)));
    if let Some(upgrade) = upgrade {
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        response.headers_mut().insert(header::UPGRADE, "doubling".parse().unwrap());
        response.headers_mut().insert(header::CONNECTION, "upgrade".parse().unwrap());
        tokio::spawn(async move {
            let mut io = TokioIo::new(upgrade.await.unwrap());
            let mut byte = [0];
            io.read_exact(&mut byte).await.unwrap();
            io.write_all(&[byte[0], byte[0]]).await.unwrap();
        });
    }
    Ok(response)
}

impl Filled {
    async fn set() -> Self {
        Self::believing(true).await
    }

    /// A scene in which the host is believed to be itself, or not.
    async fn believing(believed: bool) -> Self {
        let mut scene = Scene::set(&["a.test", "b.test"], limits()).await;
        let (pem, config) = host_identity("a.test");
        let (other, _) = host_identity("a.test");
        let dir = tempfile::tempdir().unwrap();
        let authority = Arc::new(Authority::open(&dir.path().join("authority.pem")).unwrap());
        let sides = Arc::new(Sides::new(Arc::clone(&authority), Some(if believed { &pem } else { &other })).unwrap());
        let (got, requests) = mpsc::unbounded_channel();
        let mut host = JoinSet::new();
        let listener = std::mem::replace(&mut scene.a, tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap());
        host.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let (tls, got) = (TlsAcceptor::from(Arc::clone(&config)), got.clone());
                connections.spawn(async move {
                    // Whoever does not believe us goes away.
                    let Ok(stream) = tls.accept(socket).await else { return };
                    let service = hyper::service::service_fn(move |request| answer(request, got.clone()));
                    let server = auto::Builder::new(TokioExecutor::new());
                    drop(server.serve_connection_with_upgrades(TokioIo::new(stream), service).await);
                });
            }
        });
        let kept = Arc::new(Kept::default());
        kept.set("key", "VALUE");
        let this = Self { authority: authority.certificate().to_owned(), scene, kept, sides, requests, _host: host, _dir: dir };
        this.scene.ways.send_replace(this.filling());
        this
    }

    /// The way that puts headers in.
    fn filling(&self) -> Arc<Way> {
        let headers = [("Authorization", RULE)];
        let replaced = vec![Reference::Secret("key".to_owned())];
        let transform = Transform::new(headers.into_iter(), replaced).unwrap();
        let transforms = Arc::new(Transforms::parse([("a.test", transform)].into_iter()).unwrap());
        let (values, sides) = (Arc::clone(&self.kept) as _, Arc::clone(&self.sides));
        let plain = way(&self.scene.world, &["a.test", "b.test"], &[ALL]);
        Arc::new(Way { termination: Some(Termination { transforms, values, sides }), ..Way::clone(&plain) })
    }

    /// A client's TLS with whoever takes the place of `a.test`.
    async fn tls(&self, protocols: &[&[u8]]) -> std::io::Result<client::TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.authority.as_bytes()).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        let socket = self.scene.client("6.6.6.6:443", b"").await;
        let name = ServerName::try_from("a.test").unwrap();
        timeout(PATIENCE, TlsConnector::from(Arc::new(config)).connect(name, socket)).await.expect("TLS is agreed on or not")
    }

    /// What a client is answered to some bytes of HTTP/1.1, until the connection is closed.
    async fn ask(&self, says: &str) -> String {
        let mut stream = self.tls(&[]).await.unwrap();
        stream.write_all(says.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("it is closed").unwrap();
        String::from_utf8(answer).unwrap()
    }

    async fn got(&mut self) -> Request<()> {
        timeout(PATIENCE, self.requests.recv()).await.expect("the host is asked").unwrap()
    }
}

fn get(headers: &str) -> String {
    format!("GET /path?q HTTP/1.1\r\nHost: a.test\r\n{headers}Connection: close\r\n\r\n")
}

#[tokio::test]
async fn the_host_sees_the_value_that_its_client_does_not_have() {
    let mut filled = Filled::set().await;
    let answer = filled.ask(&get("Authorization: mine\r\nX-Mine: 1\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nBearer VALUE"), "{answer}");
    let got = filled.got().await;
    assert_eq!(got.version(), Version::HTTP_11);
    assert_eq!(got.uri(), "/path?q");
    assert_eq!(got.headers()["x-mine"], "1");
    assert_eq!(got.headers().get_all(header::AUTHORIZATION).iter().count(), 1);
    // To where the name leads, whatever the client meant.
    assert_eq!(filled.scene.dialed(), ["1.1.1.1:443"]);

    filled.kept.set("key", "NEWER");
    assert!(filled.ask(&get("")).await.ends_with("Bearer NEWER"), "a new value counts at once");
}

#[tokio::test]
async fn http_2_is_spoken_on_both_sides_or_on_none() {
    let mut filled = Filled::set().await;
    let stream = filled.tls(&[b"h2", b"http/1.1"]).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { drop(connection.await) });
    let ask = |uri: &str| {
        let request = Request::post(uri).body(Full::new(Bytes::from_static(b"body "))).unwrap();
        let mut sender = sender.clone();
        async move {
            let response = timeout(PATIENCE, sender.send_request(request)).await.expect("it answers").unwrap();
            (response.status(), response.into_body().collect().await.unwrap().to_bytes())
        }
    };
    // At the same time, on one connection.
    let (first, second) = tokio::join!(ask("https://a.test/1"), ask("https://a.test/2"));
    for answer in [first, second] {
        assert_eq!(answer, (StatusCode::OK, Bytes::from_static(b"body Bearer VALUE")));
        assert_eq!(filled.got().await.version(), Version::HTTP_2);
    }
    let (status, _) = ask("https://b.test/").await;
    assert_eq!(status, StatusCode::MISDIRECTED_REQUEST);
    assert_eq!(filled.scene.dialed().len(), 1);

    let stream = filled.tls(&[b"http/1.1"]).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    filled.tls(&[b"imap"]).await.unwrap_err();
}

#[tokio::test]
async fn no_value_goes_to_another_host_than_the_one_that_it_is_for() {
    let mut filled = Filled::set().await;
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: b.test\r\n\r\n", "421"),
        ("GET / HTTP/1.1\r\nHost: a.test\r\nHost: b.test\r\n\r\n", "421"),
        ("GET / HTTP/1.1\r\nHost: a.test@b.test\r\n\r\n", "421"),
        ("GET https://b.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n", "421"),
        ("GET / HTTP/1.1\r\n\r\n", "421"),
        ("GET / HTTP/1.1\r\nHost: a.test:x.b.test\r\n\r\n", "421"),
        // The host would tell what it got.
        ("TRACE / HTTP/1.1\r\nHost: a.test\r\n\r\n", "405"),
        ("CONNECT a.test:443 HTTP/1.1\r\nHost: a.test\r\n\r\n", "405"),
    ] {
        let mut stream = filled.tls(&[]).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        timeout(PATIENCE, stream.read_exact(&mut answer)).await.expect("it answers").unwrap();
        assert_eq!(answer, *format!("HTTP/1.1 {status}").as_bytes(), "{request}");
    }
    // The port may be said, and capitals.
    assert!(filled.ask("GET / HTTP/1.1\r\nHost: A.test:443\r\nConnection: close\r\n\r\n").await.ends_with("Bearer VALUE"));
    filled.got().await;
    assert!(filled.requests.try_recv().is_err(), "the host got nothing of the others");
}

#[tokio::test]
async fn a_placeholder_of_the_clients_is_replaced() {
    let mut filled = Filled::set().await;
    filled.ask(&get("X-Key: ${e2b.secrets.key}\r\nX-Other: ${e2b.secrets.other}\r\n")).await;
    let got = filled.got().await;
    assert_eq!(got.headers()["x-key"], "VALUE");
    assert_eq!(got.headers()["x-other"], "${e2b.secrets.other}");
}

#[tokio::test]
async fn a_request_whose_value_is_not_there_is_not_passed_on() {
    let mut filled = Filled::set().await;
    filled.kept.0.lock().unwrap().clear();
    let answer = filled.ask(&get("")).await;
    assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("secret `key`"), "{answer}");
    filled.kept.set("key", "with\nline");
    let answer = filled.ask(&get("")).await;
    assert!(answer.starts_with("HTTP/1.1 502 ") && !answer.contains("line"), "{answer}");
    assert!(filled.requests.try_recv().is_err());
}

#[tokio::test]
async fn a_host_that_is_not_believed_is_told_nothing() {
    let mut filled = Filled::believing(false).await;
    filled.tls(&[]).await.unwrap_err();
    assert!(filled.requests.try_recv().is_err());
}

#[tokio::test]
async fn what_leads_to_where_nothing_may_be_reached_is_not_filled() {
    let filled = Filled::set().await;
    let mut world = HashMap::from([("a.test", vec![ip("10.0.0.1"), Ipv4Addr::LOCALHOST])]);
    world.insert("b.test", vec![ip("2.2.2.2")]);
    let moved = Arc::new(World { names: world, ..World::default() });
    let way = Way { resolver: moved, ..Way::clone(&filled.filling()) };
    filled.scene.ways.send_replace(Arc::new(way));
    filled.tls(&[]).await.unwrap_err();
    assert!(filled.scene.dialed().is_empty());
}

#[tokio::test]
async fn clear_text_and_other_hosts_are_passed_on_as_they_are() {
    let filled = Filled::set().await;
    let plain = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let names = HashMap::from([("a.test", vec![ip("1.1.1.1")]), ("b.test", vec![ip("2.2.2.2")])]);
    let servers =
        HashMap::from([(ip("1.1.1.1"), plain.local_addr().unwrap()), (ip("2.2.2.2"), filled.scene.b.local_addr().unwrap())]);
    let world = Arc::new(World { names, servers, ..World::default() });
    let way = Way { dialer: world, ..Way::clone(&filled.filling()) };
    filled.scene.ways.send_replace(Arc::new(way));
    let _client = filled.scene.client("6.6.6.6:80", HELLO_A).await;
    Scene::arrives(&plain, HELLO_A).await;
    // The greeting itself: TLS is between the client and the host alone.
    let greeting = hello("b.test");
    let _client = filled.scene.client("6.6.6.6:443", &greeting).await;
    Scene::arrives(&filled.scene.b, &greeting).await;
}

#[tokio::test]
async fn a_connection_ends_when_its_rule_comes_or_goes() {
    let filled = Filled::set().await;
    let mut stream = filled.tls(&[]).await.unwrap();
    let plain = Way { termination: None, ..Way::clone(&filled.filling()) };
    filled.scene.ways.send_replace(Arc::new(plain));
    let mut rest = Vec::new();
    // It is cut, without the farewell of TLS or with it.
    drop(timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("it is cut"));
    assert!(rest.is_empty());

    // The host has answered its greeting: it is passed on.
    let mut raw = filled.scene.client("6.6.6.6:443", &hello("a.test")).await;
    raw.read_exact(&mut [0]).await.unwrap();
    filled.scene.ways.send_replace(filled.filling());
    let mut rest = Vec::new();
    let ended = timeout(PATIENCE, raw.read_to_end(&mut rest)).await.expect("it is cut");
    assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_changed_protocol_goes_on() {
    let filled = Filled::set().await;
    let stream = filled.tls(&[]).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { drop(connection.with_upgrades().await) });
    let request = Request::get("/").header(header::HOST, "a.test").header(header::UPGRADE, "doubling");
    let request = request.header(header::CONNECTION, "upgrade").body(Empty::<Bytes>::new()).unwrap();
    let response = timeout(PATIENCE, sender.send_request(request)).await.expect("it answers").unwrap();
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    let mut io = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    io.write_all(b"a").await.unwrap();
    let mut doubled = [0; 2];
    timeout(PATIENCE, io.read_exact(&mut doubled)).await.expect("bytes come back").unwrap();
    assert_eq!(doubled, *b"aa");
}
