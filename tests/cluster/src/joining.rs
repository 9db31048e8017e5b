//! A node of the bench becomes one of its cluster, as the program's does (`crates/cli/src/command/joining.rs`): by what it has on record, with a lease,
//! and with a port for the others.

use std::{io::Write as _, net::Ipv4Addr, path::Path, process::Command, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use firkin_causes::chain;
use firkin_cluster::{
    Cluster, ClusterConfig, ClusterSecret, Copies, NodeFence, Peers, Records, Serves, WardenProgram, keep, node_id,
};
use firkin_postgres::{Address, Membership, Node as Row, NodeCatalogue};
use firkin_runtime::{runtime::Runtime, store::StoreError};
use firkin_server::{Listener, nodes::Nodes};
use tokio::{net::TcpListener, task::JoinHandle};

use crate::{
    mutant::{Judged, Mutant, Mutated},
    node::{Node, Places},
    record::{Leased, at, now},
    schedule::Party,
    world::address,
};

/// Where others come in, on each host.
const PEERS: u16 = 7443;

/// What a node brings along before its runtime is opened.
#[derive(Debug)]
pub(crate) struct Joining {
    name: String,
    secret: ClusterSecret,
    catalogue: Arc<NodeCatalogue>,
    /// The same, as the runtime has it.
    mutated: Arc<Mutated>,
    peers: Arc<Peers>,
    claims: Arc<Judged>,
    fence: Arc<NodeFence>,
    listener: TcpListener,
}

/// A node.
pub(crate) struct Joined {
    cluster: Arc<Cluster>,
    copies: Arc<Copies>,
    serves: Arc<Serves>,
    listener: TcpListener,
    kept: JoinHandle<StoreError>,
}

impl Joining {
    pub(crate) async fn of(node: &Node, places: &Places) -> anyhow::Result<Self> {
        let secret = ClusterSecret::read(&node.secret)?;
        let id = node_id(&places.state()).context("cannot keep the id of a node")?;
        let name = Node::name(node.number);
        let row = Row {
            id,
            name: name.clone(),
            address: format!("{}:{PEERS}", address(Party::Node(node.number))),
            secret_fingerprint: secret.fingerprint(),
        };
        let at = Address::with_authority(&node.catalog, Some(&node.authority))?;
        let catalogue = Arc::new(NodeCatalogue::of(at, row));
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PEERS)).await.context("others cannot come in")?;
        let mutated = Arc::new(Mutated::of(Arc::clone(&catalogue), node.mutant));
        let peers = Arc::<Peers>::default();
        let claims = Arc::new(Judged::of(Arc::clone(&peers), Arc::clone(&mutated), (places.slow(), places.looked())));
        let log = places.leases();
        let witness = move |until: Duration| note_promise(&log, until);
        let program = |page: &Path| {
            let mut command = Command::new(std::env::current_exe()?);
            command.arg("warden").arg("--page").arg(page);
            Ok(command)
        };
        let program = (node.mutant != Some(Mutant::NoWarden)).then_some(Box::new(program) as Box<WardenProgram>);
        let fence = NodeFence::open(&places.warden(), Arc::clone(&catalogue), program, Some(Box::new(witness)))?;
        Ok(Self { name, secret, catalogue, mutated, peers, claims, fence, listener })
    }

    pub(crate) fn catalog(&self) -> Arc<Mutated> {
        Arc::clone(&self.mutated)
    }

    pub(crate) fn fetch(&self) -> Arc<Peers> {
        Arc::clone(&self.peers)
    }

    pub(crate) fn claims(&self) -> Arc<Judged> {
        Arc::clone(&self.claims)
    }

    pub(crate) fn fence(&self) -> Arc<NodeFence> {
        Arc::clone(&self.fence)
    }

    /// Who has the lease, now that the runtime is open.
    fn membership(&self) -> anyhow::Result<Arc<Membership>> {
        self.catalogue.membership().context("the catalogue was not opened")
    }

    /// The node, now that its runtime is open.
    pub(crate) async fn join(self, runtime: &Runtime) -> anyhow::Result<Joined> {
        let membership = self.membership()?;
        let Self { name, secret, peers, listener, .. } = self;
        let records = Records::of(Arc::clone(&membership)).await?;
        let config = ClusterConfig {
            node: membership.node().as_str().parse()?,
            name,
            term: u64::try_from(membership.term())?,
            secret,
            members: Arc::clone(&records) as _,
        };
        let cluster = Cluster::join(config)?;
        peers.join(Arc::clone(&cluster), Arc::clone(&records));
        let copies = Copies::of(Arc::clone(&cluster), Arc::clone(&records), runtime.clone());
        let serves = Arc::<Serves>::default();
        let (runtime, serving) = (runtime.clone(), Arc::clone(&serves));
        let kept = tokio::spawn(async move { Box::pin(keep(membership, records, (runtime, serving), "test")).await });
        Ok(Joined { cluster, copies, serves, listener, kept })
    }
}

impl Joined {
    pub(crate) fn nodes(&self) -> Arc<dyn Nodes> {
        Arc::clone(&self.cluster) as _
    }

    /// Who has what is paused be copied.
    pub(crate) fn copies(&self) -> Arc<Copies> {
        Arc::clone(&self.copies)
    }

    /// It serves from now on. Gives the door for others, and what ends when the node is not this server's any more: nobody takes it from one.
    pub(crate) fn serve(self) -> (Listener, impl Future<Output = anyhow::Result<()>>) {
        self.serves.begin();
        let lost = async move {
            let why = self.kept.await.context("the lease is not kept any more")?;
            bail!("this node is another's: {}", chain(&why))
        };
        (Listener::Peers(self.listener), lost)
    }
}

/// Writes down until when a lease is promised to a warden, before it is.
fn note_promise(log: &Path, until: Duration) -> std::io::Result<()> {
    let promise = serde_json::to_string(&Leased { at: now(), until: at(until) })?;
    let mut log = fs_err::OpenOptions::new().create(true).append(true).open(log)?;
    log.write_all(format!("{promise}\n").as_bytes())
}
