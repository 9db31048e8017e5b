//! Nodes that have one catalogue, in a PostgreSQL of the test: as the program makes them, on local ports and with state directories of their own.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use firkin_cluster::{Cluster, ClusterConfig, ClusterSecret, Copies, Peers, Records, SealedSecrets, Serves, Store, keep, rotate};
use firkin_copies::{Access, Destination, Limits};
use firkin_engine::{Acceleration, Engine as _, Fingerprint, fake::FakeEngine};
use firkin_postgres::{Founding, LeaseTimes, Members, Membership, NodeCatalogue, NodeState, init};
use firkin_runtime::{
    config::{EncryptionConfig, RuntimeConfig},
    ids::ArtifactId,
    network::NetworkChoice,
    owner::OnExit,
    runtime::Runtime,
    sandbox::CreateSandbox,
    standard::BuildTemplate,
};
use firkin_server::{
    Listener, ServeError, ServerConfig,
    nodes::{NodeId, SecondCopies},
    serve,
};
use firkin_wire::ENVD_PORT;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::{
    bench::{self, Answer, DEADLINE},
    database,
};

/// How a node is set up.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Choice {
    /// Pauses are answered once there is a copy.
    pub(crate) waits_for_copies: bool,
    /// What sandboxes leave on the disk is encrypted.
    pub(crate) encrypts: bool,
    /// It has the store of the cluster, where nothing is kept that no row needs.
    pub(crate) stores: bool,
    /// It asks nobody for copies, and lets go of its own only when it is told to.
    pub(crate) is_idle: bool,
    /// Processors for sandboxes, where these are others than each node has.
    pub(crate) cpus: Option<u32>,
    /// What it runs them by.
    pub(crate) class: Class,
    /// The port of this host where whoever asks a guest's envd comes in, if anybody answers there.
    pub(crate) envd: Option<u16>,
}

/// What a node runs sandboxes by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Class {
    #[default]
    Same,
    /// The same engine on other processors.
    OtherCpu,
    /// Another engine.
    OtherEngine,
}

impl Choice {
    pub(crate) fn engine(self) -> FakeEngine {
        let engine = FakeEngine::with_agent(crate::agent::run);
        let own = engine.fingerprint().clone();
        engine.with_fingerprint(match self.class {
            Class::Same => own,
            Class::OtherCpu => Fingerprint { cpu: "other".to_owned(), ..own },
            Class::OtherEngine => Fingerprint { engine: "another".to_owned(), acceleration: Acceleration::Kvm, ..own },
        })
    }
}

/// A cluster.
pub(crate) struct Joint {
    /// Absent where this process only knows of it.
    own: Option<(database::Cluster, tempfile::TempDir)>,
    pub(crate) url: String,
    secret: ClusterSecret,
    dir: PathBuf,
    /// Good on all nodes.
    pub(crate) key: String,
}

/// One of its nodes, which serves.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) runtime: Runtime,
    pub(crate) membership: Arc<Membership>,
    pub(crate) copies: Arc<Copies>,
    pub(crate) records: Arc<Records>,
    pub(crate) address: SocketAddr,
    state_dir: PathBuf,
    catalogue: Arc<NodeCatalogue>,
    shutdown: CancellationToken,
    server: JoinHandle<Result<(), ServeError>>,
    kept: JoinHandle<()>,
}

/// Changes the last byte of a file.
pub(crate) fn damage(path: &Path) {
    let mut content = fs_err::read(path).unwrap();
    if let Some(last) = content.last_mut() {
        *last ^= 1;
    }
    fs_err::write(path, content).unwrap();
}

/// Waits until something is so.
pub(crate) async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let waits = async {
        let mut looks = tokio::time::interval(Duration::from_millis(20));
        while !is_so().await {
            looks.tick().await;
        }
    };
    tokio::time::timeout(DEADLINE, waits).await.unwrap_or_else(|_| panic!("it never comes that {what}"));
}

/// Makes sandboxes on a node until there is no room for more.
pub(crate) async fn fill(node: &Node) -> Vec<String> {
    let mut made = Vec::new();
    while node.runtime.capacity().usage.active.held.cpus < bench::CPUS {
        made.push(node.create().await);
    }
    made
}

/// Returns once each of these has heard that all serve, and what room they have.
pub(crate) async fn hear(nodes: &[&Node]) {
    for node in nodes {
        until("all nodes say what room they have", async || {
            node.records.hear().await.unwrap();
            firkin_cluster::Members::nodes(&*node.records).iter().filter(|member| member.free_memory_mib.is_some()).count()
                == nodes.len()
        })
        .await;
    }
}

impl Joint {
    /// A cluster with a first node, which has the template `base`. None where there is no PostgreSQL; the test says so.
    pub(crate) async fn found(choice: Choice) -> Option<(Self, Node)> {
        let database = database::Cluster::start()?;
        let url = database.database("joint");
        let dir = tempfile::tempdir().unwrap();
        let secret = ClusterSecret::create(&dir.path().join("secret")).unwrap();
        // Leases last longer than a test does on any host: a node is lost once an operator says so.
        let hour = Duration::from_secs(3600);
        let times = LeaseTimes { renew_every: Duration::from_millis(100), stop_after: hour, lasts: 2 * hour, grace: hour };
        let founding = Founding { secret_fingerprint: secret.fingerprint(), times, founder: None };
        init(&url.parse().unwrap(), &founding).await.unwrap();
        let path = dir.path().to_owned();
        let mut joint = Self { own: Some((database, dir)), url, secret, dir: path, key: String::new() };
        let first = joint.start("a", choice).await;
        let base = BuildTemplate { ready: None, ..BuildTemplate::base() };
        Box::pin(first.runtime.build_template(base, &|_| {})).await.unwrap();
        joint.key = first.runtime.issue_api_key().await.unwrap();
        Some((joint, first))
    }

    /// One that another process has made, and keeps.
    pub(crate) fn known(url: String, dir: PathBuf) -> Self {
        let secret = ClusterSecret::read(&dir.join("secret")).unwrap();
        Self { own: None, url, secret, dir, key: String::new() }
    }

    /// What nodes have, by their names, and the secret.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    fn node(&self, name: &str, peers: SocketAddr) -> (NodeId, firkin_postgres::Node) {
        let id = name.repeat(20)[..20].to_owned();
        let node = firkin_postgres::Node {
            id: id.parse().unwrap(),
            name: name.to_owned(),
            address: peers.to_string(),
            secret_fingerprint: self.secret.fingerprint(),
        };
        (id.parse().unwrap(), node)
    }

    fn config(&self, name: &str, choice: Choice, (catalogue, others): (&Arc<NodeCatalogue>, &Arc<Peers>)) -> RuntimeConfig {
        let mut config = RuntimeConfig {
            catalog: Some(Arc::clone(catalogue) as _),
            fetch: Some(Arc::clone(others) as _),
            claims: Some(Arc::clone(others) as _),
            secrets: Some(SealedSecrets::of(Arc::clone(catalogue), &self.secret) as _),
            encryption: EncryptionConfig { seal: choice.encrypts, key_file: None },
            ..bench::config(&self.dir.join(name))
        };
        if let Some(port) = choice.envd {
            config.network = NetworkChoice::LoopbackPorts([(ENVD_PORT, port)].into());
        }
        config.capacity.cpus = choice.cpus.unwrap_or(config.capacity.cpus);
        config
    }

    /// A node of this name, on what it has left if it was there before.
    pub(crate) async fn start(&self, name: &str, choice: Choice) -> Node {
        let [listener, peers] =
            [TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap()];
        let address = listener.local_addr().unwrap();
        let (id, node) = self.node(name, peers.local_addr().unwrap());
        let catalogue = Arc::new(NodeCatalogue::of(self.url.parse().unwrap(), node));
        let others = Arc::<Peers>::default();
        let config = self.config(name, choice, (&catalogue, &others));
        let state_dir = config.state_dir.clone();
        let runtime = Runtime::open(config, Arc::new(choice.engine())).await.unwrap();
        let membership = catalogue.membership().unwrap();
        let records = Records::of(Arc::clone(&membership)).await.unwrap();
        let cluster = Cluster::join(ClusterConfig {
            node: id.clone(),
            name: name.to_owned(),
            term: membership.term().try_into().unwrap(),
            secret: self.secret.clone(),
            members: Arc::clone(&records) as _,
        });
        let cluster = cluster.unwrap();
        others.join(Arc::clone(&cluster), Arc::clone(&records));
        let store = choice.stores.then(|| self.store());
        let part = (Arc::clone(&cluster), Arc::clone(&records), runtime.clone());
        let copies = match &store {
            Some(store) => {
                others.use_store(Arc::clone(store));
                Copies::in_store(Arc::clone(store), part.0, part.1, part.2)
            }
            None => Copies::of(part.0, part.1, part.2),
        };
        let serves = Arc::<Serves>::default();
        let config = ServerConfig {
            nodes: Some(cluster),
            second_copies: choice.waits_for_copies.then(|| Arc::clone(&copies) as Arc<dyn SecondCopies>),
            shutdown_grace: Duration::from_millis(200),
            ..ServerConfig::default()
        };
        let shutdown = CancellationToken::new();
        let kept = {
            let (membership, records, serves) = (Arc::clone(&membership), Arc::clone(&records), Arc::clone(&serves));
            let (copies, runtime, stops) = (Arc::clone(&copies), runtime.clone(), shutdown.clone());
            tokio::spawn(async move {
                let kept = keep(membership, records, (runtime, serves), "test");
                tokio::select! {
                    () = stops.cancelled() => {}
                    lost = kept => panic!("the node is lost: {lost:?}"),
                    () = copies.run(), if !choice.is_idle => {}
                }
            })
        };
        let listeners = vec![listener.into(), Listener::Peers(peers)];
        let server = tokio::spawn(serve(listeners, runtime.clone(), config, shutdown.clone()));
        serves.begin();
        let node = Node { id, runtime, membership, copies, records, address, state_dir, catalogue, shutdown, server, kept };
        until("a node is heard to serve", async || {
            let nodes = node.membership.members().nodes().await.unwrap();
            nodes.iter().any(|other| other.name == name && other.info.contains("\"serves\":true"))
        })
        .await;
        node
    }

    /// Where the store of the cluster is.
    pub(crate) fn store_dir(&self) -> PathBuf {
        self.dir.join("store")
    }

    fn store(&self) -> Arc<Store> {
        let limits = Limits { repeats: 0, longest_wait: Duration::from_millis(1), ..Limits::default() };
        let copies = firkin_copies::Copies::open(&Destination::Directory(self.store_dir()), &Access::default(), &limits).unwrap();
        Store::of(copies, Duration::ZERO, Duration::ZERO)
    }

    /// An operator's word about a node, which `heard` have heard when this returns.
    pub(crate) async fn set_state(&self, of: &NodeId, state: NodeState, heard: &[&Node]) {
        let members = heard[0].membership.members();
        assert!(members.set_state(&of.as_str().parse().unwrap(), state, "").await.unwrap());
        for node in heard {
            node.records.hear().await.unwrap();
        }
    }

    /// The file with its secret.
    pub(crate) fn secret_file(&self) -> PathBuf {
        self.dir.join("secret")
    }

    /// The database, to do something to it behind everybody's back.
    pub(crate) fn database(&mut self) -> &mut database::Cluster {
        &mut self.own.as_mut().expect("it is this test's own").0
    }

    /// The secrets of the cluster, as a node has them.
    pub(crate) fn secrets(&self, node: &Node) -> Arc<SealedSecrets> {
        SealedSecrets::of(Arc::clone(&node.catalogue), &self.secret)
    }

    /// Has the cluster be of another secret: none of its nodes runs. What could not be sealed anew.
    pub(crate) async fn rotate(&mut self) -> Vec<String> {
        let members = Members::at(self.url.parse().unwrap(), &self.secret.fingerprint()).await.unwrap();
        let ends = "UPDATE firkin.nodes SET lease_until = clock_timestamp() - interval '1 s'";
        self.database().sql("joint", ends).await;
        let next = ClusterSecret::create(&self.dir.join("next")).unwrap();
        let closed = rotate(&members, (&self.secret, &next)).await.unwrap().expect("no node has a lease");
        self.secret = next;
        closed
    }

    /// What is on record of a sandbox.
    pub(crate) async fn record(&self, through: &Node, id: &str) -> Value {
        let all = through.membership.members().sandboxes_of_all(None).await.unwrap();
        let bodies = all.into_iter().map(|any| serde_json::from_str::<Value>(&any.body).unwrap());
        bodies.into_iter().find(|body| body["id"] == id).expect("it is on record")
    }

    /// What holds a paused sandbox.
    pub(crate) async fn held(&self, through: &Node, id: &str) -> ArtifactId {
        self.record(through, id).await["phase"]["artifact"].as_str().expect("it is paused").parse().unwrap()
    }

    /// What people call a node.
    pub(crate) fn name_of(&self, node: &Node) -> String {
        node.id.as_str()[..1].to_owned()
    }

    /// Whether a sandbox runs on a node, and is that one's by the record.
    pub(crate) async fn runs_on(&self, node: &Node, id: &str) -> bool {
        let all = node.membership.members().sandboxes_of_all(None).await.unwrap();
        let found = all.into_iter().find(|any| any.body.contains(id)).expect("it is on record");
        found.node.as_str() == node.id.as_str() && node.runtime.has(&id.parse().unwrap())
    }

    /// Whether a sandbox that runs went on from this artifact, which `node` has: its disk stands on the very layers.
    pub(crate) async fn goes_on_from(&self, node: &Node, (id, artifact): (&str, &ArtifactId)) -> bool {
        let layers = node.layers_of(artifact);
        self.stands_on(node, (id, &layers)).await
    }

    /// Whether the disk of a sandbox that runs stands on these layers: those of what it went on from, which may be collected by then.
    pub(crate) async fn stands_on(&self, through: &Node, (id, layers): (&str, &Value)) -> bool {
        self.record(through, id).await["phase"]["layers"] == *layers
    }

    /// Has a collection come about on a node, and returns once it has: something that nobody needs is gone.
    pub(crate) async fn collect(&self, on: &Node) {
        let id = on.create().await;
        on.runtime.pause(&id.parse().unwrap()).await.unwrap();
        let rubbish = self.held(on, &id).await;
        on.runtime.kill(&id.parse().unwrap()).await.unwrap();
        until("what nobody needs is collected", async || !on.has_files_of(&rubbish)).await;
    }

    /// Ends what is left of it.
    pub(crate) async fn end(self, nodes: impl IntoIterator<Item = Node>) {
        for node in nodes {
            node.stop(OnExit::Kill).await;
        }
        drop(self.own);
    }
}

impl Node {
    /// What it has on its disk.
    pub(crate) fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// Ends its server, with or without what it has.
    pub(crate) async fn stop(self, on_exit: OnExit) {
        self.shutdown.cancel();
        tokio::time::timeout(DEADLINE, self.server).await.expect("the server stops").unwrap().unwrap();
        tokio::time::timeout(DEADLINE, self.kept).await.expect("it is not kept any more").unwrap();
        tokio::time::timeout(DEADLINE, self.runtime.shutdown(on_exit)).await.expect("the runtime stops");
    }

    /// A sandbox of `base` on this node.
    pub(crate) async fn create(&self) -> String {
        self.runtime.create(CreateSandbox::from_template("base")).await.unwrap().id.to_string()
    }

    /// What the disk of an artifact stands on, which this node has.
    pub(crate) fn layers_of(&self, artifact: &ArtifactId) -> Value {
        let manifest = self.state_dir.join("artifacts").join(artifact.as_str()).join("manifest.json");
        let manifest: Value = serde_json::from_slice(&fs_err::read(manifest).unwrap()).unwrap();
        let layers = &manifest["disk"]["layers"];
        assert!(layers.as_array().is_some_and(|layers| !layers.is_empty()), "{manifest}");
        layers.clone()
    }

    /// Whether there are files of an artifact here.
    pub(crate) fn has_files_of(&self, artifact: &ArtifactId) -> bool {
        Path::new(&self.state_dir).join("artifacts").join(artifact.as_str()).exists()
    }

    /// Takes all files of an artifact away, as a disk that was replaced has them no more.
    pub(crate) fn lose(&self, artifact: &ArtifactId) {
        fs_err::remove_dir_all(Path::new(&self.state_dir).join("artifacts").join(artifact.as_str())).unwrap();
    }

    /// Changes the last byte of each file of an artifact that is its own, as a disk does that is worn.
    pub(crate) fn damage(&self, artifact: &ArtifactId) {
        let dir = Path::new(&self.state_dir).join("artifacts").join(artifact.as_str());
        let paths: Vec<PathBuf> = fs_err::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        for path in paths.iter().filter(|path| path.extension().is_none_or(|extension| extension != "json")) {
            damage(path);
        }
    }

    /// Whether no copy is owed.
    pub(crate) async fn owes_nothing(&self) -> bool {
        self.membership.owed(None).await.unwrap().is_empty()
    }

    /// Sends a request to the control plane and reads the answer.
    pub(crate) async fn call(&self, key: &str, (method, path, body): (&str, &str, &str)) -> Answer {
        self.runtime.hear_of_keys().await.unwrap();
        self.without_database(key, (method, path, body)).await
    }

    /// The same with a key that this node has heard of.
    pub(crate) async fn without_database(&self, key: &str, (method, path, body): (&str, &str, &str)) -> Answer {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", self.address.to_string())
            .header("x-api-key", key)
            .header("content-type", "application/json")
            .body(Full::<Bytes>::from(body.to_owned()))
            .unwrap();
        self.answer(request).await
    }

    /// Sends any request and reads the answer: JSON, else a text.
    pub(crate) async fn answer(&self, request: Request<Full<Bytes>>) -> Answer {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let sent = tokio::time::timeout(DEADLINE, sender.send_request(request)).await.expect("an answer in time");
        let (parts, body) = sent.unwrap().into_parts();
        let bytes = tokio::time::timeout(DEADLINE, body.collect()).await.expect("a body in time").unwrap().to_bytes();
        let body = serde_json::from_slice(&bytes).unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
        Answer { status: parts.status.as_u16(), headers: parts.headers, body }
    }
}
