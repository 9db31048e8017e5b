//! A server becomes a node of its cluster, and is one until it ends.
//!
//! Its runtime is opened on what is the node's in the catalogue; then it has a term and a lease, by which other nodes let it in, and only then
//! can it bring what is on record and not here.

use std::{path::Path, sync::Arc};

use anyhow::Context as _;
use firkin_cluster::{
    Cluster, ClusterConfig, ClusterSecret, Copies, NodeFence, Peers, Records, SealedSecrets, Serves, SharedFence, Store, clock,
    keep, node_id,
};
use firkin_postgres::{Membership, Node, NodeCatalogue};
use firkin_runtime::{
    artifact::Fetch, claims::Claims, fence::Fence, runtime::Runtime, secrets::SharedSecrets, store::catalog::Catalog,
};
use firkin_server::{
    Listener,
    nodes::{Nodes, SecondCopies},
};
use tokio::net::TcpListener;
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::AbortOnDropHandle,
};

use super::{catalog, node, warden};
use crate::{
    args::node::Durable,
    cluster::NodeSettings,
    copies::CopySettings,
    failure::{Advise as _, advised},
    logging::LogFormat,
};

/// Where what a warden reads is, in the state directory.
const WARDEN: &str = "warden";

/// What a node brings along before its runtime is opened.
pub(super) struct Joining {
    name: String,
    secret: ClusterSecret,
    catalogue: Arc<NodeCatalogue>,
    peers: Arc<Peers>,
    fencing: Fencing,
    listener: TcpListener,
    durable: Durable,
    store: Option<Arc<Store>>,
}

/// The fence of a node, which is told of its lease for as long as this is there.
struct Fencing {
    fence: Arc<NodeFence>,
    _ends: AbortOnDropHandle<()>,
}

/// A node, with the door for others. Its lease is renewed for as long as this is there.
pub(super) struct Joined {
    cluster: Arc<Cluster>,
    copies: Arc<Copies>,
    durable: Durable,
    listener: TcpListener,
    keeping: Keeping,
}

/// Ended with this: the lease is not renewed any more.
pub(super) struct Keeping {
    _ends: DropGuard,
    stop: CancellationToken,
    serves: Arc<Serves>,
    lost: CancellationToken,
    fencing: Fencing,
}

impl Joining {
    /// Reads the secret, looks at the clock and takes the port, so that what is wrong with them is told at once. With `copies`, the store of the cluster is
    /// there.
    pub(super) async fn of(
        settings: &NodeSettings,
        copies: Option<&CopySettings>,
        (state_dir, log): (&Path, LogFormat),
    ) -> anyhow::Result<Self> {
        if settings.is_nowhere() {
            return Err(anyhow::anyhow!("other nodes cannot reach this one at `{}`", settings.address))
                .hint("`--peer-address HOST:PORT` says where they do");
        }
        let secret = node::secret(&settings.access)?;
        let store = copies.map(CopySettings::open_shared).transpose()?;
        let id = node_id(state_dir).context("cannot keep the id of this node")?;
        let node =
            Node { id, name: settings.name.clone(), address: settings.address.clone(), secret_fingerprint: secret.fingerprint() };
        let address = catalog::address(&settings.access.catalog)?;
        let members = node::enter(address.clone(), &secret).await?;
        let (clock, _) = Box::pin(members.clock()).await.map_err(catalog::advising)?;
        drop(members);
        clock::bear(clock).hint("have NTP set it, here or on the database's host (`timedatectl`)")?;
        let listener = TcpListener::bind(settings.listen).await;
        let listener = listener
            .with_context(|| format!("cannot let other nodes in on `{}`", settings.listen))
            .hint("another server may use it: choose another address with `--peer-listen`")?;
        let catalogue = Arc::new(NodeCatalogue::of(address, node));
        let fencing = Fencing::begin(state_dir, Arc::clone(&catalogue), log)?;
        let (name, durable, peers) = (settings.name.clone(), settings.durable, Arc::default());
        Ok(Self { name, secret, catalogue, peers, fencing, listener, durable, store })
    }

    /// Where it is on record what is this node's.
    pub(super) fn catalog(&self) -> Arc<dyn Catalog> {
        Arc::clone(&self.catalogue) as _
    }

    /// Where artifacts come from that are not here.
    pub(super) fn fetch(&self) -> Arc<dyn Fetch> {
        Arc::clone(&self.peers) as _
    }

    /// By what sandboxes go to other nodes, and come from them.
    pub(super) fn claims(&self) -> Arc<dyn Claims> {
        Arc::clone(&self.peers) as _
    }

    /// The secrets that all nodes have.
    pub(super) fn secrets(&self) -> Arc<dyn SharedSecrets> {
        SealedSecrets::of(Arc::clone(&self.catalogue), &self.secret)
    }

    /// Who stops machines that others could have.
    pub(super) fn fence(&self) -> Arc<dyn Fence> {
        Arc::new(SharedFence(Arc::clone(&self.fencing.fence)))
    }

    /// The node, now that its runtime is open.
    pub(super) async fn join(self, runtime: &Runtime) -> anyhow::Result<Joined> {
        let Self { name, secret, catalogue, peers, fencing, listener, durable, store } = self;
        fencing.fence.is_of(runtime.clone());
        let membership = catalogue.membership().context("the catalogue of the cluster was not opened")?;
        let records = Records::of(Arc::clone(&membership)).await.map_err(catalog::advising)?;
        records.are_of(Arc::clone(&fencing.fence));
        let config = ClusterConfig {
            node: membership.node().as_str().parse().context("the id of this node is none")?,
            name,
            term: u64::try_from(membership.term()).context("the term of this node is none")?,
            secret,
            members: Arc::clone(&records) as _,
        };
        let cluster = Cluster::join(config)?;
        peers.join(Arc::clone(&cluster), Arc::clone(&records));
        let of = (Arc::clone(&cluster), Arc::clone(&records), runtime.clone());
        let copies = match store {
            Some(store) => {
                peers.use_store(Arc::clone(&store));
                Copies::in_store(store, of.0, of.1, of.2)
            }
            None => Copies::of(of.0, of.1, of.2),
        };
        let keeping = Keeping::begin((membership, records), runtime.clone(), fencing);
        Ok(Joined { cluster, copies, durable, listener, keeping })
    }
}

impl Joined {
    /// What the server asks about other nodes.
    pub(super) fn nodes(&self) -> Arc<dyn Nodes> {
        Arc::clone(&self.cluster) as _
    }

    /// Who has a pause be on another node too before it is answered, if that is waited for.
    pub(super) fn second_copies(&self) -> Option<Arc<dyn SecondCopies>> {
        match self.durable {
            Durable::Node => None,
            Durable::Cluster => Some(Arc::clone(&self.copies) as _),
        }
    }

    /// It serves from now on, until `shutdown`, which comes when it is not one any more. Gives the door that others come in by.
    pub(super) fn serve(self, shutdown: CancellationToken) -> (Keeping, Listener) {
        let Self { cluster: _, copies, durable: _, listener, keeping } = self;
        keeping.serves.begin();
        let (lost, taken, stopped) = (keeping.lost.clone(), keeping.lost.clone(), keeping.stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = stopped.cancelled() => {}
                () = taken.cancelled() => {}
                () = copies.run() => {}
            }
        });
        tokio::spawn(async move {
            lost.cancelled().await;
            shutdown.cancel();
        });
        (keeping, Listener::Peers(listener))
    }
}

impl Keeping {
    fn begin((membership, records): (Arc<Membership>, Arc<Records>), runtime: Runtime, fencing: Fencing) -> Self {
        let fence = Arc::clone(&fencing.fence);
        let (stop, lost, serves) = (CancellationToken::new(), CancellationToken::new(), Arc::<Serves>::default());
        let (stopped, told, serving) = (stop.clone(), lost.clone(), Arc::clone(&serves));
        tokio::spawn(async move {
            let kept = keep(membership, records, (runtime, serving), env!("CARGO_PKG_VERSION"));
            tokio::select! {
                () = stopped.cancelled() => {}
                lost = kept => {
                    let why = firkin_causes::chain(&lost);
                    tracing::error!(why, "this node is not this server's any more: it serves nobody from here on, and leaves what runs");
                    if let Err(error) = fence.lose() {
                        tracing::error!(error = firkin_causes::chain(&error), "what others could have goes on until the lease is over");
                    }
                    told.cancel();
                }
            }
        });
        Self { _ends: stop.clone().drop_guard(), stop, serves, lost, fencing }
    }

    /// Whether the node is not this server's any more.
    pub(super) fn is_lost(&self) -> bool {
        self.lost.is_cancelled()
    }

    /// The runtime has ended: so does the warden, unless something was left that others could have.
    pub(super) fn end(self) {
        if let Err(error) = self.fencing.fence.end() {
            tracing::warn!(error = firkin_causes::chain(&error), "the warden is not told that this server has ended");
        }
    }
}

impl Fencing {
    fn begin(state_dir: &Path, catalogue: Arc<NodeCatalogue>, log: LogFormat) -> anyhow::Result<Self> {
        let program = Box::new(move |page: &Path| warden::program(page, log));
        let fence = NodeFence::open(&state_dir.join(WARDEN), catalogue, Some(program), None);
        let fence = fence.context("there is nobody to stop machines when the lease of this node is over")?;
        let _ends = AbortOnDropHandle::new(tokio::spawn(Arc::clone(&fence).keep()));
        Ok(Self { fence, _ends })
    }
}

/// What helps a server that was told that its node is not its own any more.
pub(super) fn lost() -> anyhow::Error {
    let error = anyhow::anyhow!("this node was taken by another server, or an operator has said that it is off");
    let hint = "`firkin node ls` says which; start this server again to come back as what it is then";
    advised(error, Some(hint.to_owned()), None)
}
