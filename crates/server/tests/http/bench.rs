//! A server on a local port, and a client that speaks to it.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use firkin_engine::{BootFile, BootFiles, fake::FakeEngine};
use firkin_runtime::{
    capacity::HostCapacity,
    config::{AdmissionConfig, EncryptionConfig, FlattenConfig, GuestSystem, RuntimeConfig, SandboxLimits},
    disk::StatvfsProbe,
    images::OwnImage,
    memory_pressure::HostMemory,
    network::NetworkChoice,
    owner::OnExit,
    runtime::Runtime,
    standard::BuildTemplate,
    volumes::VolumeLimits,
    warm::WarmConfig,
};
use firkin_server::{LogControl, LogFilterError, ServeError, ServerConfig, serve};
use firkin_traces::Traces;
use firkin_wire::ENVD_PORT;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

/// Every wait of these tests ends by then.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

/// Longest body that the server under test takes.
pub(crate) const MAX_BODY: usize = 64 << 10;

/// The token that administers the server under test.
pub(crate) const ADMIN: &str = "admin";

/// Room on the host under test: this many sandboxes of template `base`.
pub(crate) const ROOM: u32 = 6;

pub(crate) struct Bench {
    pub(crate) address: SocketAddr,
    pub(crate) runtime: Runtime,
    pub(crate) shutdown: CancellationToken,
    pub(crate) server: JoinHandle<Result<(), ServeError>>,
    pub(crate) key: String,
    envd: TcpSocket,
    dir: tempfile::TempDir,
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
}

impl Bench {
    /// A server with the template `base`.
    pub(crate) async fn start() -> Self {
        Self::start_for(ROOM).await
    }

    /// The same, with a queue of one's own for capacity.
    pub(crate) async fn start_with(admission: AdmissionConfig) -> Self {
        Self::open(admission, VolumeLimits::default()).await
    }

    /// A server whose volumes are few and small.
    pub(crate) async fn start_within(volumes: VolumeLimits) -> Self {
        Self::open(AdmissionConfig::default(), volumes).await
    }

    /// A server with room for as many sandboxes.
    pub(crate) async fn start_for(sandboxes: u32) -> Self {
        Self::open_with(AdmissionConfig::default(), VolumeLimits::default(), sandboxes).await
    }

    async fn open(admission: AdmissionConfig, volumes: VolumeLimits) -> Self {
        Self::open_with(admission, volumes, ROOM).await
    }

    /// A server whose spans go to a collector.
    pub(crate) async fn start_traced(traces: Traces) -> Self {
        Self::open_traced((AdmissionConfig::default(), VolumeLimits::default()), ROOM, Some(traces)).await
    }

    async fn open_with(admission: AdmissionConfig, volumes: VolumeLimits, cpus: u32) -> Self {
        Self::open_traced((admission, volumes), cpus, None).await
    }

    async fn open_traced((admission, volumes): (AdmissionConfig, VolumeLimits), cpus: u32, traces: Option<Traces>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = dir.path().join(name);
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
        // Held, and closed to callers until a test listens: no other test's requests come here, nor this one's there.
        let envd = TcpSocket::new_v4().unwrap();
        envd.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let ports = BTreeMap::from([(ENVD_PORT, envd.local_addr().unwrap().port())]);
        let config = RuntimeConfig {
            state_dir: dir.path().join("state"),
            catalog: None,
            fetch: None,
            claims: None,
            secrets: None,
            fence: None,
            copies: None,
            capacity: HostCapacity { cpus, memory_mib: 1 << 20, disk_mib: 1 << 30 },
            admission,
            warm: WarmConfig::default(),
            disk_floor_mib: Some(0),
            disk_budget_mib: None,
            sandboxes: SandboxLimits::default(),
            volumes,
            disk_probe: Arc::new(StatvfsProbe),
            memory_probe: Arc::new(HostMemory::PLENTY),
            authority_variables: BTreeMap::new(),
            webhook_networks: vec!["127.0.0.0/8".parse().unwrap()],
            issuer: "https://firkin.test".into(),
            encryption: EncryptionConfig::default(),
            flatten: FlattenConfig::default(),
            network: NetworkChoice::LoopbackPorts(ports),
            groups: None,
            images: Arc::new(OwnImage(guest.root())),
            guest: guest.into(),
        };
        let runtime = Runtime::open(config, Arc::new(FakeEngine::with_agent(crate::agent::run))).await.unwrap();
        let base = BuildTemplate { ready: None, ..BuildTemplate::base() };
        Box::pin(runtime.build_template(base, &|_| {})).await.unwrap();
        let key = runtime.issue_api_key().await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let config = ServerConfig {
            admin: Some(Sha256::digest(ADMIN).into()),
            log: Some(log_control()),
            traces,
            audit: Some(dir.path().join("audit")),
            max_body_bytes: MAX_BODY,
            upload_silence: Duration::from_secs(2),
            event_silence: Duration::from_secs(3),
            event_heartbeat: Duration::from_millis(200),
            shutdown_grace: Duration::from_millis(200),
            ..ServerConfig::default()
        };
        let server = tokio::spawn(serve(vec![listener.into()], runtime.clone(), config, shutdown.clone()));
        Self { address, runtime, shutdown, server, key, envd, dir }
    }

    /// The lines of the audit log, once there are as many.
    pub(crate) async fn audited(&self, count: usize) -> Vec<Value> {
        let log = self.dir.path().join("audit").join(firkin_server::audit::FILE);
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

    /// Opens the port of the guests' daemon, which is one for all sandboxes of this server and of no other.
    pub(crate) fn listen_as_envd(&mut self) -> TcpListener {
        std::mem::replace(&mut self.envd, TcpSocket::new_v4().unwrap()).listen(8).unwrap()
    }

    /// The same, for one request, which is answered with 204. Gives its head, in small letters.
    pub(crate) fn hear_as_envd(&mut self) -> JoinHandle<String> {
        let envd = self.listen_as_envd();
        tokio::spawn(async move {
            let (mut stream, _) = envd.accept().await.unwrap();
            let mut head = vec![0; 8192];
            let read = stream.read(&mut head).await.unwrap();
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
            String::from_utf8_lossy(&head[..read]).to_lowercase()
        })
    }

    /// Ends the server and every sandbox, as the program does.
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
        send_to(self.address, request).await
    }

    /// Sends any request and reads the answer.
    pub(crate) async fn answer<B>(&self, request: Request<B>) -> Answer
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: std::error::Error + Send + Sync,
    {
        let (parts, body) = self.send(request).await.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&bytes).unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
        Answer { status: parts.status.as_u16(), headers: parts.headers, body }
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

    /// Creates a sandbox and gives its id.
    pub(crate) async fn create(&self, fields: &str) -> String {
        let body = format!(r#"{{"templateID":"base"{fields}}}"#);
        self.call("POST", "/v2/sandboxes", &body).await.expect(201).text("/sandboxID").to_owned()
    }

    /// A request to a port of a sandbox.
    pub(crate) fn guest(&self, id: &str, port: u16, path: &str) -> Request<Full<Bytes>> {
        Request::builder()
            .uri(path)
            .header("host", self.address.to_string())
            .header("E2b-Sandbox-Id", id)
            .header("E2b-Sandbox-Port", port.to_string())
            .body(Full::default())
            .unwrap()
    }
}

/// A log that takes every filter but `wrong`.
fn log_control() -> LogControl {
    let filter = std::sync::Mutex::new("info".to_owned());
    LogControl::new(move |wanted| {
        let mut filter = filter.lock().unwrap();
        match wanted {
            Some("wrong") => return Err(LogFilterError::Invalid("it is wrong".into())),
            Some(wanted) => wanted.clone_into(&mut filter),
            None => {}
        }
        Ok(filter.clone())
    })
}

/// A query string.
pub(crate) fn query(pairs: &[(&str, &str)]) -> String {
    form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish()
}

/// Sends a request to any server.
pub(crate) async fn send_to<B>(address: SocketAddr, request: Request<B>) -> Response<Incoming>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: std::error::Error + Send + Sync,
{
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    tokio::time::timeout(DEADLINE, sender.send_request(request)).await.expect("an answer in time").unwrap()
}
