//! The proxy, as its clients see it. Names have made-up addresses, and whoever connects to one reaches a server on loopback, if
//! the test has one there.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use firkin_egress::{
    Audit, AuditReader, Bounds, Connection, Decision, Dial, DialError, Found, Grant, HostName, Limits, Origin, Policy, Proxy,
    Refusal, Resolve, ResolveError, Rules, Told, Unnamed, Way,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::timeout,
};

const ALL: &str = "0.0.0.0/0";
/// Nothing here takes as long.
const PATIENCE: Duration = Duration::from_secs(30);
const HELLO_A: &[u8] = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";
const HELLO_B: &[u8] = b"GET / HTTP/1.1\r\nHost: b.test\r\n\r\n";

/// The internet: names, and servers.
#[derive(Debug, Default)]
struct World {
    names: HashMap<&'static str, Vec<Ipv4Addr>>,
    servers: HashMap<Ipv4Addr, SocketAddr>,
    asked: Mutex<Vec<String>>,
    dialed: Mutex<Vec<SocketAddrV4>>,
}

#[async_trait]
impl Resolve for World {
    async fn resolve(&self, name: &HostName) -> Result<Found, ResolveError> {
        self.asked.lock().unwrap().push(name.to_string());
        let addresses = self.names.get(name.as_str()).cloned().ok_or(ResolveError::NoName)?;
        Ok(Found { addresses, lifetime: Duration::from_secs(1) })
    }
}

#[async_trait]
impl Dial for World {
    async fn dial(&self, to: SocketAddrV4) -> Result<Box<dyn Connection>, DialError> {
        self.dialed.lock().unwrap().push(to);
        let refused = || DialError::Connect(to, io::ErrorKind::ConnectionRefused.into());
        let server = self.servers.get(to.ip()).ok_or_else(refused)?;
        Ok(Box::new(TcpStream::connect(server).await.map_err(|error| DialError::Connect(to, error))?))
    }
}

/// Where the next client means to go.
#[derive(Debug, Clone)]
struct Meant(Arc<Mutex<SocketAddrV4>>);

impl Origin for Meant {
    fn origin(&self, _: &TcpStream) -> io::Result<SocketAddrV4> {
        Ok(*self.0.lock().unwrap())
    }
}

/// A proxy in a world of two servers: `a.test` at 1.1.1.1 and `b.test` at 2.2.2.2.
struct Scene {
    world: Arc<World>,
    ways: watch::Sender<Arc<Way>>,
    a: TcpListener,
    b: TcpListener,
    proxy: Arc<Proxy>,
    address: SocketAddr,
    meant: Meant,
    told: AuditReader,
    tasks: JoinSet<()>,
}

fn ip(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

fn way(world: &Arc<World>, allow: &[&str], deny: &[&str]) -> Arc<Way> {
    let closed = ["10.0.0.0/8", "127.0.0.0/8"].map(|net| net.parse().unwrap()).to_vec();
    let bounds = Bounds { own: vec!["203.0.113.7/32".parse().unwrap()], opened: Vec::new(), closed };
    let policy = Policy::new(Rules::parse(allow, deny).unwrap(), Arc::new(bounds));
    Arc::new(Way { policy, resolver: Arc::clone(world) as _, dialer: Arc::clone(world) as _ })
}

fn limits() -> Limits {
    Limits { connections: 64, greeting: PATIENCE, dial: PATIENCE, idle: PATIENCE }
}

impl Scene {
    async fn set(allow: &[&str], limits: Limits) -> Self {
        let (a, b) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let names = [
            ("a.test", vec![ip("1.1.1.1")]),
            ("b.test", vec![ip("2.2.2.2")]),
            ("ours.test", vec![ip("127.0.0.1"), ip("10.0.0.1"), ip("203.0.113.7")]),
            ("half-ours.test", vec![ip("127.0.0.1"), ip("1.1.1.1")]),
            ("half-dead.test", vec![ip("9.9.9.9"), ip("1.1.1.1")]),
            ("dead.test", vec![ip("9.9.9.9"), ip("9.9.9.8"), ip("9.9.9.7"), ip("9.9.9.6")]),
        ];
        let servers = [(ip("1.1.1.1"), a.local_addr().unwrap()), (ip("2.2.2.2"), b.local_addr().unwrap())];
        let world = Arc::new(World { names: names.into(), servers: servers.into(), ..World::default() });
        let ways = watch::Sender::new(way(&world, allow, &[ALL]));
        let audit = Audit::default();
        let told = audit.read();
        let proxy = Arc::new(Proxy::new(ways.subscribe(), audit, limits));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let meant = Meant(Arc::new(Mutex::new("6.6.6.6:443".parse().unwrap())));
        let mut tasks = JoinSet::new();
        let (serving, origin) = (Arc::clone(&proxy), meant.clone());
        tasks.spawn(async move { serving.serve(listener, origin).await });
        Self { world, ways, a, b, proxy, address, meant, told, tasks }
    }

    /// A client that means to go to `meant` and has said something.
    async fn client(&self, meant: &str, says: &[u8]) -> TcpStream {
        *self.meant.0.lock().unwrap() = meant.parse().unwrap();
        let mut client = TcpStream::connect(self.address).await.unwrap();
        client.write_all(says).await.unwrap();
        client
    }

    /// The other end of a client's connection, at `server`, which has heard `expected`.
    async fn arrives(server: &TcpListener, expected: &[u8]) -> TcpStream {
        let (mut connection, _) = timeout(PATIENCE, server.accept()).await.expect("somebody connects").unwrap();
        assert_eq!(read(&mut connection, expected.len()).await, expected);
        connection
    }

    fn dialed(&self) -> Vec<String> {
        self.world.dialed.lock().unwrap().iter().map(SocketAddrV4::to_string).collect()
    }

    /// Everything that a refused client is told.
    async fn answer(&self, meant: &str, says: &[u8]) -> Vec<u8> {
        let mut client = self.client(meant, says).await;
        let mut answer = Vec::new();
        timeout(PATIENCE, client.read_to_end(&mut answer)).await.expect("it is closed").unwrap();
        answer
    }

    /// The next decision: name, address, reason.
    async fn decision(&mut self) -> (Option<String>, Option<Ipv4Addr>, Decision) {
        match timeout(PATIENCE, self.told.next()).await.expect("it is told") {
            Some(Told::Attempt(attempt)) => {
                (attempt.name.as_ref().map(ToString::to_string), attempt.address, attempt.decision.clone())
            }
            other => panic!("a decision, not {other:?}"),
        }
    }
}

async fn read(stream: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    timeout(PATIENCE, stream.read_exact(&mut bytes)).await.expect("it comes").unwrap();
    bytes
}

/// Whether both can still talk.
async fn talk(client: &mut TcpStream, server: &mut TcpStream) {
    client.write_all(b"ping").await.unwrap();
    assert_eq!(read(server, 4).await, b"ping");
    server.write_all(b"pong").await.unwrap();
    assert_eq!(read(client, 4).await, b"pong");
}

/// Waits for an end that does not look like a whole answer.
async fn is_cut(stream: &mut TcpStream) {
    let read = timeout(PATIENCE, stream.read(&mut [0])).await.expect("it is cut");
    assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

/// What a client of TLS says first, to a host of this name.
fn hello(name: &str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name.to_owned().try_into().unwrap()).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

fn by(rule: &str) -> Decision {
    Decision::Allowed(Grant::Rule(rule.parse().unwrap()))
}

#[tokio::test]
async fn a_name_that_does_not_fit_the_address_leads_to_the_host_of_the_name() {
    let mut scene = Scene::set(&["a.test"], limits()).await;
    for (meant, says) in [("6.6.6.6:443", hello("a.test")), ("127.0.0.1:443", hello("A.test")), ("2.2.2.2:443", HELLO_A.to_vec())]
    {
        let mut client = scene.client(meant, &says).await;
        let mut server = Scene::arrives(&scene.a, &says).await;
        talk(&mut client, &mut server).await;
        assert_eq!(scene.decision().await, (Some("a.test".into()), Some(ip("1.1.1.1")), by("a.test")));
    }
    assert_eq!(scene.dialed(), ["1.1.1.1:443"; 3], "never to where the client meant");
}

#[tokio::test]
async fn what_is_not_allowed_is_refused_in_the_clients_protocol_and_goes_nowhere() {
    let mut scene = Scene::set(&["a.test"], limits()).await;
    let denied = &[21, 3, 3, 0, 2, 2, 49];
    assert_eq!(scene.answer("1.1.1.1:443", &hello("b.test")).await, denied);
    assert_eq!(scene.decision().await, (Some("b.test".into()), Some(ip("1.1.1.1")), Decision::Denied(Refusal::Name)));
    assert_eq!(scene.answer("1.1.1.1:443", &hello("1.1.1.1")).await, denied);
    let unnamed = |unnamed| (None, Some(ip("1.1.1.1")), Decision::Denied(Refusal::Unnamed(unnamed)));
    assert_eq!(scene.decision().await, unnamed(Unnamed::NoName));
    let answer = String::from_utf8(scene.answer("1.1.1.1:80", HELLO_B).await).unwrap();
    assert!(answer.starts_with("HTTP/1.1 403 Forbidden\r\n") && answer.ends_with("no rule allows this name\n"), "{answer}");
    assert_eq!(scene.decision().await, (Some("b.test".into()), Some(ip("1.1.1.1")), Decision::Denied(Refusal::Name)));
    let answer = scene.answer("1.1.1.1:80", b"GET / HTTP/1.1\r\nHost: 1.1.1.1\r\n\r\n").await;
    assert!(String::from_utf8(answer).unwrap().ends_with("the client named an address\n"));
    assert_eq!(scene.decision().await, unnamed(Unnamed::Literal));
    let answer = scene.answer("1.1.1.1:80", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    assert_eq!(answer[..9], [0, 0, 0, 4, 0, 0, 0, 0, 0], "settings");
    assert_eq!(answer[12..26], [7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 13], "the end, in favour of HTTP/1.1");
    assert_eq!(scene.decision().await, unnamed(Unnamed::Http2));
    assert_eq!(scene.answer("1.1.1.1:22", b"SSH-2.0-x\r\n").await, b"");
    assert_eq!(scene.decision().await, unnamed(Unnamed::Unknown));
    assert_eq!(scene.dialed(), [] as [String; 0]);
    assert!(scene.world.asked.lock().unwrap().is_empty(), "no name was asked for either");
}

#[tokio::test]
async fn a_reason_arrives_though_the_client_has_sent_more_than_was_read() {
    let scene = Scene::set(&["a.test"], limits()).await;
    let long = [HELLO_B, &[b'x'; 60_000]].concat();
    let answer = String::from_utf8(scene.answer("1.1.1.1:80", &long).await).unwrap();
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
}

#[tokio::test]
async fn an_allowed_name_does_not_lead_to_what_is_ours() {
    let mut scene = Scene::set(&["*.test", ALL], limits()).await;
    assert_eq!(scene.answer("10.0.0.1:443", &hello("ours.test")).await, [21, 3, 3, 0, 2, 2, 49]);
    let refusal = Decision::Denied(Refusal::Bounds("127.0.0.0/8".parse().unwrap()));
    assert_eq!(scene.decision().await, (Some("ours.test".into()), None, refusal));
    // Nor does any address, whatever allows it.
    let answer = String::from_utf8(scene.answer("10.0.0.1:80", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await).unwrap();
    assert!(answer.ends_with("in `10.0.0.0/8`, which no rule opens\n"), "{answer}");
    assert_eq!(scene.dialed(), [] as [String; 0]);
    let hello = hello("half-ours.test");
    let _client = scene.client("10.0.0.1:443", &hello).await;
    Scene::arrives(&scene.a, &hello).await;
    assert_eq!(scene.dialed(), ["1.1.1.1:443"]);
}

#[tokio::test]
async fn the_next_address_is_tried_and_not_for_ever() {
    let mut scene = Scene::set(&["*.test"], limits()).await;
    let hello_half = hello("half-dead.test");
    let _client = scene.client("6.6.6.6:443", &hello_half).await;
    Scene::arrives(&scene.a, &hello_half).await;
    assert_eq!(scene.dialed(), ["9.9.9.9:443", "1.1.1.1:443"]);
    for tried in ["9.9.9.9", "1.1.1.1"] {
        assert_eq!(scene.decision().await, (Some("half-dead.test".into()), Some(ip(tried)), by("*.test")));
    }
    assert_eq!(scene.answer("6.6.6.6:443", &hello("dead.test")).await, [21, 3, 3, 0, 2, 2, 80]);
    let answer = scene.answer("6.6.6.6:80", b"GET / HTTP/1.1\r\nHost: dead.test\r\n\r\n").await;
    assert!(answer.starts_with(b"HTTP/1.1 502 "));
    assert_eq!(scene.dialed().len(), 2 + 3 + 3);
}

#[tokio::test]
async fn an_allowed_address_is_reached_before_anything_is_said() {
    let mut scene = Scene::set(&["a.test", "2.2.2.0/24"], limits()).await;
    let mut client = scene.client("2.2.2.2:22", b"").await;
    let mut server = Scene::arrives(&scene.b, b"").await;
    server.write_all(b"SSH-2.0-server\r\n").await.unwrap();
    assert_eq!(read(&mut client, 16).await, b"SSH-2.0-server\r\n");
    talk(&mut client, &mut server).await;
    assert_eq!(scene.decision().await, (None, Some(ip("2.2.2.2")), by("2.2.2.0/24")));
}

#[tokio::test]
async fn either_side_may_close_its_half_first() {
    let scene = Scene::set(&["a.test"], limits()).await;
    let (mut client, mut server) = (scene.client("6.6.6.6:80", HELLO_A).await, Scene::arrives(&scene.a, HELLO_A).await);
    client.shutdown().await.unwrap();
    assert_eq!(timeout(PATIENCE, server.read(&mut [0])).await.unwrap().unwrap(), 0);
    server.write_all(b"late").await.unwrap();
    assert_eq!(read(&mut client, 4).await, b"late");
    drop(server);
    assert_eq!(timeout(PATIENCE, client.read(&mut [0])).await.unwrap().unwrap(), 0, "an end, not a cut");

    let (mut client, mut server) = (scene.client("6.6.6.6:80", HELLO_A).await, Scene::arrives(&scene.a, HELLO_A).await);
    server.shutdown().await.unwrap();
    assert_eq!(timeout(PATIENCE, client.read(&mut [0])).await.unwrap().unwrap(), 0);
    client.write_all(b"late").await.unwrap();
    assert_eq!(read(&mut server, 4).await, b"late");
}

#[tokio::test]
async fn a_server_that_fails_does_not_look_as_if_it_had_finished() {
    let scene = Scene::set(&["a.test"], limits()).await;
    let (mut client, server) = (scene.client("6.6.6.6:80", HELLO_A).await, Scene::arrives(&scene.a, HELLO_A).await);
    server.set_zero_linger().unwrap();
    drop(server);
    is_cut(&mut client).await;
}

#[tokio::test]
async fn slow_clients_and_idle_connections_end() {
    let short = Duration::from_millis(200);
    let mut scene = Scene::set(&["a.test"], Limits { greeting: short, idle: short, ..limits() }).await;
    for says in [&b""[..], b"G", b"GET / HTTP/1.1\r\nHost: a.test\r\n", &hello("a.test")[..100]] {
        scene.answer("6.6.6.6:80", says).await;
        let refusal = Decision::Denied(Refusal::Unnamed(Unnamed::TooLate));
        assert_eq!(scene.decision().await, (None, Some(ip("6.6.6.6")), refusal));
    }
    let (mut client, mut server) = (scene.client("6.6.6.6:80", HELLO_A).await, Scene::arrives(&scene.a, HELLO_A).await);
    talk(&mut client, &mut server).await;
    is_cut(&mut client).await;
}

#[tokio::test]
async fn connections_at_a_time_are_bounded_and_the_next_waits() {
    let scene = Scene::set(&["a.test"], Limits { connections: 2, ..limits() }).await;
    let (mut one, mut first) = (scene.client("6.6.6.6:80", HELLO_A).await, Scene::arrives(&scene.a, HELLO_A).await);
    let (_slow, mut third) = (scene.client("6.6.6.6:80", b"GET").await, scene.client("6.6.6.6:80", HELLO_A).await);
    talk(&mut one, &mut first).await;
    // Nothing comes of it as long as there is no room.
    assert!(timeout(Duration::from_millis(100), scene.a.accept()).await.is_err());
    assert_eq!(scene.proxy.connections(), 2);
    drop((one, first));
    let mut server = Scene::arrives(&scene.a, HELLO_A).await;
    talk(&mut third, &mut server).await;
}

#[tokio::test]
async fn rules_that_change_cut_what_they_no_longer_allow_and_keep_the_rest() {
    let mut scene = Scene::set(&["a.test", "b.test"], limits()).await;
    let (mut one, mut at_a) = (scene.client("6.6.6.6:80", HELLO_A).await, Scene::arrives(&scene.a, HELLO_A).await);
    let (mut other, mut at_b) = (scene.client("6.6.6.6:80", HELLO_B).await, Scene::arrives(&scene.b, HELLO_B).await);
    // Both were told of.
    scene.decision().await;
    scene.decision().await;
    scene.ways.send_replace(way(&scene.world, &["*.test", "5.5.5.5"], &[ALL]));
    talk(&mut one, &mut at_a).await;
    talk(&mut other, &mut at_b).await;
    scene.ways.send_replace(way(&scene.world, &["a.test"], &[ALL]));
    is_cut(&mut other).await;
    assert_eq!(timeout(PATIENCE, at_b.read(&mut [0])).await.unwrap().unwrap_or(0), 0);
    let refusal = Decision::Denied(Refusal::Rule(ALL.parse().unwrap()));
    assert_eq!(scene.decision().await, (Some("b.test".into()), Some(ip("2.2.2.2")), refusal));
    talk(&mut one, &mut at_a).await;
    assert_eq!(scene.answer("6.6.6.6:443", &hello("b.test")).await, [21, 3, 3, 0, 2, 2, 49], "a new one is refused");
}

#[tokio::test]
async fn a_name_that_is_allowed_later_does_not_keep_a_connection_to_another_address() {
    let scene = Scene::set(&[], limits()).await;
    scene.ways.send_replace(way(&scene.world, &[], &["bad.test"]));
    // Under open rules the client's address counts, and what it calls it does not.
    let (mut client, mut server) = (scene.client("2.2.2.2:80", HELLO_A).await, Scene::arrives(&scene.b, HELLO_A).await);
    talk(&mut client, &mut server).await;
    scene.ways.send_replace(way(&scene.world, &["a.test"], &[ALL]));
    is_cut(&mut client).await;
}

#[tokio::test]
async fn connections_through_a_former_way_out_are_cut() {
    let mut scene = Scene::set(&["a.test"], limits()).await;
    let (mut client, mut server) = (scene.client("6.6.6.6:80", HELLO_A).await, Scene::arrives(&scene.a, HELLO_A).await);
    talk(&mut client, &mut server).await;
    scene.decision().await;
    let mut other = Way::clone(&way(&scene.world, &["a.test"], &[ALL]));
    other.dialer = Arc::new(World::default());
    scene.ways.send_replace(Arc::new(other));
    is_cut(&mut client).await;
    assert_eq!(scene.decision().await, (Some("a.test".into()), Some(ip("1.1.1.1")), Decision::Denied(Refusal::Former)));
}

#[tokio::test]
async fn a_proxy_that_ends_leaves_no_connection() {
    let mut scene = Scene::set(&["a.test"], limits()).await;
    let (mut client, mut server) = (scene.client("6.6.6.6:80", HELLO_A).await, Scene::arrives(&scene.a, HELLO_A).await);
    talk(&mut client, &mut server).await;
    scene.tasks.shutdown().await;
    assert_eq!(timeout(PATIENCE, client.read(&mut [0])).await.unwrap().unwrap_or(0), 0);
    assert_eq!(timeout(PATIENCE, server.read(&mut [0])).await.unwrap().unwrap_or(0), 0);
    assert_eq!(scene.proxy.connections(), 0);
    assert!(TcpStream::connect(scene.address).await.is_err(), "nobody listens: closed, not open");
}
