//! One node: the product's server as a process, with a fake engine whose machines outlive it.

use std::{net::Ipv4Addr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use clap::Args;
use firkin_cluster::SharedFence;
use firkin_engine::{BootFile, BootFiles, fake::FakeEngine};
use firkin_runtime::{
    artifact::Fetch,
    capacity::HostCapacity,
    claims::Claims,
    config::{GuestSystem, RuntimeConfig},
    memory_pressure::HostMemory,
    owner::OnExit,
    runtime::Runtime,
    standard::BuildTemplate,
    store::catalog::Catalog,
};
use firkin_server::{ServerConfig, admin_digest};
use fs_err as fs;
use tokio::{net::TcpListener, signal::unix::SignalKind};
use tokio_util::sync::CancellationToken;

use crate::{
    envd,
    guest::{Around, Book, agent},
    joining::{Joined, Joining},
    mutant::Mutant,
    record, say, voice,
};

/// Where every node serves, on its own host.
pub(crate) const PORT: u16 = 8080;

/// The token that administers each node.
pub(crate) const ADMIN: &str = "admin";

/// What it says once it serves.
pub(crate) const READY: &str = "serving";

/// Which node.
#[derive(Debug, Args)]
pub(crate) struct Node {
    #[arg(long)]
    pub(crate) number: usize,
    /// What of it outlives the server
    #[arg(long)]
    pub(crate) dir: PathBuf,
    #[arg(long)]
    pub(crate) catalog: String,
    #[arg(long)]
    pub(crate) authority: PathBuf,
    #[arg(long)]
    pub(crate) secret: PathBuf,
    /// To see that it is noticed
    #[arg(long)]
    pub(crate) mutant: Option<Mutant>,
    /// It is under load: it has room for so many sandboxes, which have no voices; each life is written down, and what is paused is copied
    #[arg(long)]
    pub(crate) room: Option<u64>,
}

impl Node {
    /// What others call it.
    pub(crate) fn name(number: usize) -> String {
        format!("node-{number}")
    }
}

/// The directory of a node, part by part.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    pub(crate) dir: PathBuf,
}

impl Places {
    fn part(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A disk of its own: machines are not on it, and do not end when it is full.
    pub(crate) fn disk(&self) -> PathBuf {
        self.part("disk")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.disk().join("state")
    }

    pub(crate) fn machines(&self) -> PathBuf {
        self.part("machines")
    }

    pub(crate) fn warden(&self) -> PathBuf {
        self.part("warden")
    }

    pub(crate) fn leases(&self) -> PathBuf {
        self.part("leases")
    }

    pub(crate) fn key(&self) -> PathBuf {
        self.part("key")
    }

    /// The lives that it has begun, where nobody listens.
    pub(crate) fn lives(&self) -> PathBuf {
        self.part("lives")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.part("log")
    }

    /// While it is there, what begins in memory that was paused is slow to say so, and nothing is claimed.
    pub(crate) fn slow(&self) -> PathBuf {
        self.part("slow")
    }

    /// Comes when it was found meanwhile that something can be claimed.
    pub(crate) fn looked(&self) -> PathBuf {
        self.part("looked")
    }
}

/// What is logged, to where errors go.
pub(crate) fn log() {
    let filter = tracing_subscriber::EnvFilter::new("info");
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::io::stderr).init();
}

/// Serves until it is asked to end; then its sandboxes end too.
pub(crate) fn serve(node: Node) -> anyhow::Result<()> {
    log();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let served = runtime.block_on(Box::pin(serving(node)));
    runtime.shutdown_timeout(Duration::from_secs(5));
    served
}

async fn serving(node: Node) -> anyhow::Result<()> {
    let places = Places { dir: node.dir.clone() };
    fs::create_dir_all(places.state())?;
    let joining = Joining::of(&node, &places).await?;
    let fence = joining.fence();
    let telling = tokio::spawn(Arc::clone(&fence).keep());
    let book = node.room.map(|_| Book { node: node.number, path: places.lives() });
    let around = Around { slow: places.slow(), book };
    let engine = FakeEngine::kept_in(&places.machines(), move |connection| agent(around.clone(), connection))?;
    // Under load machines are no processes: thousands of them would measure the host.
    let engine =
        if node.room.is_some() { engine } else { engine.embodied(voice::program(std::env::current_exe()?, node.number)) };
    let runtime = open(&places, &joining, engine, node.room).await?;
    fence.is_of(runtime.clone());
    let begun = Box::pin(begin(&node, &places, joining, &runtime)).await;
    let (listener, joined) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            // What ran before must not end because this server cannot begin.
            runtime.shutdown(OnExit::Leave).await;
            return Err(error);
        }
    };
    let shutdown = CancellationToken::new();
    let config = ServerConfig {
        shutdown_grace: Duration::from_millis(500),
        admin: Some(admin_digest(ADMIN)),
        nodes: Some(joined.nodes()),
        ..ServerConfig::default()
    };
    let copies = node.room.map(|_| joined.copies());
    let (peers, lost) = joined.serve();
    let copying =
        tokio::spawn(async move { futures::future::OptionFuture::from(copies.as_ref().map(|copies| copies.run())).await });
    let doors = vec![listener.into(), peers];
    let server = tokio::spawn(firkin_server::serve(doors, runtime.clone(), config, shutdown.clone()));
    say(READY);
    let mut terminated = tokio::signal::unix::signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminated.recv() => {}
        lost = lost => {
            // Nobody is told that what is left is not there.
            shutdown.cancel();
            server.await.context("the server panicked")??;
            runtime.shutdown(OnExit::Leave).await;
            return lost;
        }
    }
    shutdown.cancel();
    server.await.context("the server panicked")??;
    runtime.shutdown(OnExit::Kill).await;
    copying.abort();
    telling.abort();
    // It was in the middle of a look, or not.
    drop(telling.await);
    Ok(fence.end()?)
}

/// Joins the cluster, and has what every node has before it serves.
async fn begin(node: &Node, places: &Places, joining: Joining, runtime: &Runtime) -> anyhow::Result<(TcpListener, Joined)> {
    let joined = joining.join(runtime).await?;
    let base = BuildTemplate { ready: None, memory_mib: 1, ..BuildTemplate::base() };
    Box::pin(runtime.ensure_template(base, &|_| {})).await.context("there is no template")?;
    // The first node's is good on all.
    if node.number == 0 && !places.key().exists() {
        let new = places.key().with_extension("new");
        fs::write(&new, runtime.issue_api_key().await?)?;
        fs::rename(new, places.key())?;
    }
    Ok((TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).await.context("cannot listen")?, joined))
}

async fn open(places: &Places, joining: &Joining, engine: FakeEngine, room: Option<u64>) -> anyhow::Result<Runtime> {
    let file = |name: &str| places.dir.join("guest").join(name);
    let guest = GuestSystem {
        boot: BootFiles::new(
            BootFile { path: file("kernel"), digest: "k".into() },
            BootFile { path: file("initrd"), digest: "i".into() },
        ),
        rootfs: file("rootfs"),
        rootfs_digest: "r".into(),
        rootfs_bytes: 1 << 20,
    };
    // A sandbox has one MiB.
    let capacity = HostCapacity { cpus: 1 << 16, memory_mib: room.unwrap_or(1 << 20), disk_mib: 1 << 30 };
    let mut config = RuntimeConfig::new(places.state(), capacity, envd::serve().await?, guest);
    config.disk_floor_mib = Some(0);
    config.memory_probe = Arc::new(HostMemory::PLENTY);
    config.catalog = Some(joining.catalog() as Arc<dyn Catalog>);
    config.fetch = Some(joining.fetch() as Arc<dyn Fetch>);
    config.claims = Some(joining.claims() as Arc<dyn Claims>);
    config.fence = Some(Arc::new(SharedFence(joining.fence())));
    Runtime::open(config, Arc::new(engine)).await.context("cannot open the runtime")
}

/// What a node has of files before its first server.
pub(crate) fn prepare(places: &Places) -> anyhow::Result<()> {
    for dir in [places.machines(), places.warden(), places.part("guest")] {
        fs::create_dir_all(dir)?;
    }
    for name in ["kernel", "initrd", "rootfs"] {
        fs::write(places.part("guest").join(name), vec![0; 4096])?;
    }
    fs::write(places.leases(), "")?;
    Ok(())
}

/// What was promised of it.
pub(crate) fn leases(places: &Places) -> anyhow::Result<Vec<record::Leased>> {
    let text = fs::read_to_string(places.leases())?;
    // The last line of a server that was killed may be cut off: nobody was promised that.
    let lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    lines.map(|line| serde_json::from_str(line).context("a promise cannot be read")).collect()
}
