//! Nodes on local ports, each with a state directory of its own, and a client that speaks to any of them.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use firkin_cluster::{Cluster, ClusterConfig, ClusterSecret, Home, Member, Members, MembersAway};
use firkin_engine::{BootFile, BootFiles, fake::FakeEngine};
use firkin_runtime::{
    capacity::HostCapacity,
    config::{AdmissionConfig, EncryptionConfig, FlattenConfig, GuestSystem, RuntimeConfig, SandboxLimits},
    disk::StatvfsProbe,
    images::OwnImage,
    memory_pressure::HostMemory,
    network::NetworkChoice,
    nodes::NodeFigures,
    owner::OnExit,
    runtime::Runtime,
    sandbox::SandboxId,
    standard::BuildTemplate,
    volumes::VolumeLimits,
    warm::WarmConfig,
};
use firkin_server::{
    Listener, ServeError, ServerConfig,
    nodes::{Listed, NodeId, Nodes as _},
    serve,
};
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Every wait of these tests ends by then.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

/// Room on each node: this many sandboxes of template `base`.
pub(crate) const CPUS: u32 = 8;

/// The token that administers each node.
pub(crate) const ADMIN: &str = "admin";

/// Who is in the cluster, and where sandboxes are.
#[derive(Debug, Default)]
pub(crate) struct Map {
    nodes: Mutex<Vec<Member>>,
    homes: Mutex<HashMap<SandboxId, Home>>,
    builders: Mutex<HashMap<String, NodeId>>,
    away: AtomicBool,
    /// Whether the leases of all nodes are over.
    over: AtomicBool,
    asked: AtomicUsize,
}

impl Map {
    /// Changes what is known of a node.
    pub(crate) fn change(&self, name: &str, change: impl FnOnce(&mut Member)) {
        let mut nodes = self.nodes.lock().unwrap();
        change(nodes.iter_mut().find(|member| member.name == name).unwrap());
    }

    /// Records where a sandbox is.
    pub(crate) fn home(&self, id: &str, node: &NodeId, epoch: u64) {
        self.homes.lock().unwrap().insert(id.parse().unwrap(), Home { node: node.clone(), term: 1, epoch });
    }

    /// Records where a template is built.
    pub(crate) fn builder(&self, template: &str, node: &NodeId) {
        self.builders.lock().unwrap().insert(template.to_owned(), node.clone());
    }

    /// Whether anybody is there who answers.
    pub(crate) fn set_away(&self, away: bool) {
        self.away.store(away, Ordering::SeqCst);
    }

    /// Whether the leases of all nodes are over, as they know themselves.
    pub(crate) fn set_over(&self, over: bool) {
        self.over.store(over, Ordering::SeqCst);
    }

    /// How often a record was asked for.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl Members for Map {
    fn nodes(&self) -> Arc<[Member]> {
        self.nodes.lock().unwrap().clone().into()
    }

    fn look_again(&self) {}

    fn listed(&self) -> Listed {
        Listed::default()
    }

    fn holds_lease(&self) -> bool {
        !self.over.load(Ordering::SeqCst)
    }

    fn figures(&self) -> NodeFigures {
        let nodes = self.nodes();
        let alive = nodes.iter().filter(|member| member.alive).count();
        let nodes = vec![("ready", alive as u64), ("away", (nodes.len() - alive) as u64)];
        NodeFigures { nodes, lease_left: Duration::from_secs(77), claims: vec![("claimed", 3)], fenced: 2, warden: None }
    }

    async fn whereabouts(&self, id: &SandboxId) -> Result<Option<Home>, MembersAway> {
        if self.away.load(Ordering::SeqCst) {
            return Err(MembersAway(Box::new(io::Error::from(io::ErrorKind::ConnectionRefused))));
        }
        self.asked.fetch_add(1, Ordering::SeqCst);
        Ok(self.homes.lock().unwrap().get(id).cloned())
    }

    async fn builder(&self, template: &str) -> Result<Option<NodeId>, MembersAway> {
        Ok(self.builders.lock().unwrap().get(template).cloned())
    }
}

/// A cluster.
pub(crate) struct Bench {
    pub(crate) map: Arc<Map>,
    pub(crate) nodes: Vec<Node>,
    dir: tempfile::TempDir,
}

/// One of its nodes.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) address: SocketAddr,
    pub(crate) peers: SocketAddr,
    pub(crate) runtime: Runtime,
    /// A key that this node knows, and no other.
    pub(crate) key: String,
    shutdown: CancellationToken,
    server: JoinHandle<Result<(), ServeError>>,
    map: Arc<Map>,
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

impl Answer {
    /// Text at a JSON pointer.
    pub(crate) fn text(&self, pointer: &str) -> &str {
        self.body.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("no text at `{pointer}` in {self:?}"))
    }

    /// The answer, if it has this status.
    #[track_caller]
    pub(crate) fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self:?}");
        self
    }

    /// A header, or nothing.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// What a runtime is opened with that has its state in `dir`.
pub(crate) fn config(dir: &std::path::Path) -> RuntimeConfig {
    fs_err::create_dir_all(dir).unwrap();
    let file = |name: &str| {
        let path = dir.join(name);
        fs_err::write(&path, vec![0; 4096]).unwrap();
        path
    };
    let guest = GuestSystem {
        boot: BootFiles::new(
            BootFile { path: file("kernel"), digest: "k".into() },
            BootFile { path: file("initrd"), digest: "i".into() },
        ),
        rootfs: file("rootfs"),
        rootfs_digest: "r".into(),
        rootfs_bytes: 1 << 30,
    };
    RuntimeConfig {
        state_dir: dir.join("state"),
        catalog: None,
        fetch: None,
        claims: None,
        secrets: None,
        fence: None,
        copies: None,
        capacity: HostCapacity { cpus: CPUS, memory_mib: 1 << 20, disk_mib: 1 << 30 },
        admission: AdmissionConfig { queue_deadline: Duration::from_millis(200), ..AdmissionConfig::default() },
        warm: WarmConfig::default(),
        disk_floor_mib: Some(0),
        disk_budget_mib: None,
        sandboxes: SandboxLimits::default(),
        volumes: VolumeLimits::default(),
        disk_probe: Arc::new(StatvfsProbe),
        memory_probe: Arc::new(HostMemory::PLENTY),
        authority_variables: BTreeMap::new(),
        webhook_networks: Vec::new(),
        issuer: "https://firkin.test".into(),
        encryption: EncryptionConfig::default(),
        flatten: FlattenConfig::default(),
        network: NetworkChoice::LoopbackPorts(BTreeMap::new()),
        groups: None,
        images: Arc::new(OwnImage(guest.root())),
        guest: guest.into(),
    }
}

/// The runtime of a node, with the template `base`.
async fn runtime(dir: &std::path::Path) -> Runtime {
    let runtime = Runtime::open(config(dir), Arc::new(FakeEngine::with_agent(crate::agent::run))).await.unwrap();
    let base = BuildTemplate { ready: None, ..BuildTemplate::base() };
    Box::pin(runtime.build_template(base, &|_| {})).await.unwrap();
    runtime
}

/// A node that serves, as it is on record.
fn member(id: &NodeId, name: &str, address: SocketAddr) -> Member {
    Member {
        id: id.clone(),
        name: name.to_owned(),
        address: address.to_string(),
        term: 1,
        alive: true,
        cordoned: false,
        engines: Vec::new(),
        free_memory_mib: None,
        holds: None,
    }
}

impl Bench {
    /// Nodes of these names, all of one secret.
    pub(crate) async fn start(names: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let secret = ClusterSecret::create(&dir.path().join("secret")).unwrap();
        let mut bench = Self { map: Arc::default(), nodes: Vec::new(), dir };
        for name in names {
            bench.add(name, secret.clone()).await;
        }
        bench
    }

    /// One more node, with a secret of its choice.
    pub(crate) async fn add(&mut self, name: &str, secret: ClusterSecret) {
        let runtime = runtime(&self.dir.path().join(name)).await;
        let key = runtime.issue_api_key().await.unwrap();
        let id: NodeId = name.repeat(20)[..20].parse().unwrap();
        let (listener, peers) =
            (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let (address, peer_port) = (listener.local_addr().unwrap(), peers.local_addr().unwrap());
        self.map.nodes.lock().unwrap().push(member(&id, name, peer_port));
        let members = Arc::clone(&self.map) as Arc<dyn Members>;
        let cluster = ClusterConfig { node: id.clone(), name: name.to_owned(), term: 1, secret, members };
        let config = ServerConfig {
            nodes: Some(Cluster::join(cluster).unwrap()),
            admin: Some(Sha256::digest(ADMIN).into()),
            audit: Some(self.dir.path().join(name).join("audit")),
            shutdown_grace: Duration::from_millis(200),
            ..ServerConfig::default()
        };
        let shutdown = CancellationToken::new();
        let listeners = vec![listener.into(), Listener::Peers(peers)];
        let server = tokio::spawn(serve(listeners, runtime.clone(), config, shutdown.clone()));
        let map = Arc::clone(&self.map);
        self.nodes.push(Node { id, address, peers: peer_port, runtime, key, shutdown, server, map });
    }

    /// One more on record, of another version: whatever it is asked, it answers this. It is there until what is returned is dropped.
    pub(crate) async fn add_of_another_version(&self, name: &str, status: u16, body: &'static str) -> DropGuard {
        let id: NodeId = name.repeat(20)[..20].parse().unwrap();
        let peers = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = peers.local_addr().unwrap();
        let members = Arc::clone(&self.map) as Arc<dyn Members>;
        let config = ClusterConfig { node: id.clone(), name: name.to_owned(), term: 1, secret: self.secret(), members };
        let greeter = Cluster::join(config).unwrap().greeter();
        self.map.nodes.lock().unwrap().push(member(&id, name, address));
        let end = CancellationToken::new();
        let serving = async move {
            while let Ok((stream, _)) = peers.accept().await {
                // Who has another node's answer hangs up.
                let Ok(stream) = greeter.accept(stream).await else { continue };
                let answer = move |_: Request<Incoming>| async move {
                    Ok::<_, Infallible>(Response::builder().status(status).body(body.to_owned()).unwrap())
                };
                let http = hyper::server::conn::http1::Builder::new();
                tokio::spawn(http.serve_connection(TokioIo::new(stream), service_fn(answer)));
            }
        };
        tokio::spawn(end.clone().run_until_cancelled_owned(serving));
        end.drop_guard()
    }

    /// The secret of all nodes.
    pub(crate) fn secret(&self) -> ClusterSecret {
        ClusterSecret::read(&self.dir.path().join("secret")).unwrap()
    }

    /// A new secret, as of another cluster.
    pub(crate) fn other_secret(&self) -> ClusterSecret {
        ClusterSecret::create(&self.dir.path().join("other-secret")).unwrap()
    }

    /// Where a node keeps its audit log.
    pub(crate) fn audit(&self, node: &str) -> PathBuf {
        self.dir.path().join(node).join("audit").join(firkin_server::audit::FILE)
    }

    /// The lines of a node's audit log, once there are as many.
    pub(crate) async fn audited(&self, node: &str, count: usize) -> Vec<Value> {
        let log = self.audit(node);
        let lines = async {
            let mut looks = tokio::time::interval(Duration::from_millis(5));
            loop {
                looks.tick().await;
                let text = fs_err::read_to_string(&log).unwrap_or_default();
                let lines: Vec<_> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
                if lines.len() >= count {
                    return lines;
                }
            }
        };
        tokio::time::timeout(DEADLINE, lines).await.expect("the lines are written")
    }

    /// Ends all nodes and every sandbox, as the program does.
    pub(crate) async fn stop(self) {
        for node in self.nodes {
            node.stop().await;
        }
    }
}

impl Node {
    /// Ends it and its sandboxes.
    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(DEADLINE, self.server).await.expect("the server stops").unwrap().unwrap();
        tokio::time::timeout(DEADLINE, self.runtime.shutdown(OnExit::Kill)).await.expect("the runtime stops");
    }

    /// Sends any request and does not read the answer's body.
    pub(crate) async fn send<B>(&self, request: Request<B>) -> Response<Incoming>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: std::error::Error + Send + Sync,
    {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        tokio::time::timeout(DEADLINE, sender.send_request(request)).await.expect("an answer in time").unwrap()
    }

    /// Sends any request and reads the answer.
    pub(crate) async fn answer<B>(&self, request: Request<B>) -> Answer
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: std::error::Error + Send + Sync,
    {
        let (parts, body) = self.send(request).await.into_parts();
        let bytes = tokio::time::timeout(DEADLINE, body.collect()).await.expect("a body in time").unwrap().to_bytes();
        let body = serde_json::from_slice(&bytes).unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
        Answer { status: parts.status.as_u16(), headers: parts.headers, body }
    }

    /// The same, where the answer has many headers.
    pub(crate) async fn answer_of_many(&self, request: Request<Full<Bytes>>) -> Answer {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let mut builder = hyper::client::conn::http1::Builder::new();
        let shaken = builder.max_headers(4096).max_buf_size(1 << 20).handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = shaken.unwrap();
        tokio::spawn(connection);
        let sent = tokio::time::timeout(DEADLINE, sender.send_request(request)).await.expect("an answer in time");
        let (parts, body) = sent.unwrap().into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Answer { status: parts.status.as_u16(), headers: parts.headers, body: serde_json::from_slice(&bytes).unwrap() }
    }

    /// A request to the control plane, with the key.
    pub(crate) fn request(&self, method: &str, path: &str, body: &str) -> Request<Full<Bytes>> {
        Request::builder()
            .method(method)
            .uri(path)
            .header("host", self.address.to_string())
            .header("x-api-key", &self.key)
            .header("content-type", "application/json")
            .body(Full::from(body.to_owned()))
            .unwrap()
    }

    /// Sends a request to the control plane and reads the answer.
    pub(crate) async fn call(&self, method: &str, path: &str, body: &str) -> Answer {
        self.answer(self.request(method, path, body)).await
    }

    /// Creates a sandbox here, puts it on record, and gives its id.
    pub(crate) async fn create(&self, fields: &str) -> String {
        let body = format!(r#"{{"templateID":"base"{fields}}}"#);
        let id = self.call("POST", "/v2/sandboxes", &body).await.expect(201).text("/sandboxID").to_owned();
        self.map.home(&id, &self.id, 1);
        id
    }

    /// A request to a port of a sandbox, wherever that is.
    pub(crate) fn guest(&self, id: &str, port: u16, path: &str) -> http::request::Builder {
        Request::builder()
            .uri(path)
            .header("host", self.address.to_string())
            .header("E2b-Sandbox-Id", id)
            .header("E2b-Sandbox-Port", port.to_string())
    }

    /// The same, without a body.
    pub(crate) fn get_guest(&self, id: &str, port: u16, path: &str) -> Request<Full<Bytes>> {
        self.guest(id, port, path).body(Full::default()).unwrap()
    }
}
