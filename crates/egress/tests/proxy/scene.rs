//! A proxy in a small world: names have made-up addresses, and whoever connects to one reaches a server on loopback, if there is one.

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
    Resolve, ResolveError, Rules, Told, Way,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::timeout,
};

pub(crate) const ALL: &str = "0.0.0.0/0";
/// Nothing here takes as long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
pub(crate) const HELLO_A: &[u8] = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";
pub(crate) const HELLO_B: &[u8] = b"GET / HTTP/1.1\r\nHost: b.test\r\n\r\n";

/// A name that leads to the next of its addresses each time that it is asked for.
pub(crate) const REBOUND: &str = "rebound.test";

/// The internet: names, and servers.
#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) names: HashMap<&'static str, Vec<Ipv4Addr>>,
    pub(crate) servers: HashMap<Ipv4Addr, SocketAddr>,
    pub(crate) asked: Mutex<Vec<String>>,
    pub(crate) dialed: Mutex<Vec<SocketAddrV4>>,
}

#[async_trait]
impl Resolve for World {
    async fn resolve(&self, name: &HostName) -> Result<Found, ResolveError> {
        let times = {
            let mut asked = self.asked.lock().unwrap();
            asked.push(name.to_string());
            asked.iter().filter(|asked| *asked == name.as_str()).count()
        };
        let mut addresses = self.names.get(name.as_str()).cloned().ok_or(ResolveError::NoName)?;
        if name.as_str() == REBOUND {
            addresses = vec![addresses[(times - 1) % addresses.len()]];
        }
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

/// Where the next client means to go. Of one who means to go to port 0 that cannot be told.
#[derive(Debug, Clone)]
pub(crate) struct Meant(Arc<Mutex<SocketAddrV4>>);

impl Origin for Meant {
    fn origin(&self, _: &TcpStream) -> io::Result<SocketAddrV4> {
        let meant = *self.0.lock().unwrap();
        if meant.port() == 0 { Err(io::ErrorKind::NotFound.into()) } else { Ok(meant) }
    }
}

/// A proxy in a world of two servers: `a.test` at 1.1.1.1 and `b.test` at 2.2.2.2.
pub(crate) struct Scene {
    pub(crate) world: Arc<World>,
    pub(crate) ways: watch::Sender<Arc<Way>>,
    pub(crate) a: TcpListener,
    pub(crate) b: TcpListener,
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) address: SocketAddr,
    pub(crate) meant: Meant,
    pub(crate) told: AuditReader,
    pub(crate) tasks: JoinSet<()>,
}

pub(crate) fn ip(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

pub(crate) fn way(world: &Arc<World>, allow: &[&str], deny: &[&str]) -> Arc<Way> {
    let closed = ["10.0.0.0/8", "127.0.0.0/8"].map(|net| net.parse().unwrap()).to_vec();
    let bounds = Bounds { own: vec!["203.0.113.7/32".parse().unwrap()], opened: Vec::new(), closed };
    let policy = Policy::new(Rules::parse(allow, deny).unwrap(), Arc::new(bounds));
    Arc::new(Way { policy, resolver: Arc::clone(world) as _, dialer: Arc::clone(world) as _, termination: None })
}

/// Longer than any test waits: what ends, ends for another reason.
pub(crate) fn limits() -> Limits {
    let never = 20 * PATIENCE;
    Limits { connections: 64, greeting: never, dial: never, idle: never }
}

impl Scene {
    pub(crate) async fn set(allow: &[&str], limits: Limits) -> Self {
        let (a, b) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let names = [
            ("a.test", vec![ip("1.1.1.1")]),
            ("b.test", vec![ip("2.2.2.2")]),
            ("ours.test", vec![ip("127.0.0.1"), ip("10.0.0.1"), ip("203.0.113.7")]),
            ("half-ours.test", vec![ip("127.0.0.1"), ip("1.1.1.1")]),
            (REBOUND, vec![ip("1.1.1.1"), ip("127.0.0.1"), ip("10.0.0.1")]),
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
    pub(crate) async fn client(&self, meant: &str, says: &[u8]) -> TcpStream {
        *self.meant.0.lock().unwrap() = meant.parse().unwrap();
        let mut client = TcpStream::connect(self.address).await.unwrap();
        client.write_all(says).await.unwrap();
        client
    }

    /// The other end of a client's connection, at `server`, which has heard `expected`.
    pub(crate) async fn arrives(server: &TcpListener, expected: &[u8]) -> TcpStream {
        let (mut connection, _) = timeout(PATIENCE, server.accept()).await.expect("somebody connects").unwrap();
        assert_eq!(read(&mut connection, expected.len()).await, expected);
        connection
    }

    pub(crate) fn dialed(&self) -> Vec<String> {
        self.world.dialed.lock().unwrap().iter().map(SocketAddrV4::to_string).collect()
    }

    /// Everything that a refused client is told.
    pub(crate) async fn answer(&self, meant: &str, says: &[u8]) -> Vec<u8> {
        let mut client = self.client(meant, says).await;
        let mut answer = Vec::new();
        timeout(PATIENCE, client.read_to_end(&mut answer)).await.expect("it is closed").unwrap();
        answer
    }

    /// The next decision: name, address, reason.
    pub(crate) async fn decision(&mut self) -> (Option<String>, Option<Ipv4Addr>, Decision) {
        match timeout(PATIENCE, self.told.next()).await.expect("it is told") {
            Some(Told::Attempt(attempt)) => {
                (attempt.name.as_ref().map(ToString::to_string), attempt.address, attempt.decision.clone())
            }
            other => panic!("a decision, not {other:?}"),
        }
    }
}

pub(crate) async fn read(stream: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    timeout(PATIENCE, stream.read_exact(&mut bytes)).await.expect("it comes").unwrap();
    bytes
}

/// Whether both can still talk.
pub(crate) async fn talk(client: &mut TcpStream, server: &mut TcpStream) {
    client.write_all(b"ping").await.unwrap();
    assert_eq!(read(server, 4).await, b"ping");
    server.write_all(b"pong").await.unwrap();
    assert_eq!(read(client, 4).await, b"pong");
}

/// Waits for an end that does not look like a whole answer.
pub(crate) async fn is_cut(stream: &mut TcpStream) {
    let read = timeout(PATIENCE, stream.read(&mut [0])).await.expect("it is cut");
    assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

/// What a client of TLS says first, to a host of this name.
pub(crate) fn hello(name: &str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name.to_owned().try_into().unwrap()).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

pub(crate) fn by(rule: &str) -> Decision {
    Decision::Allowed(Grant::Rule(rule.parse().unwrap()))
}
