//! The members of a cluster as its PostgreSQL has them.

use std::{
    sync::{
        Arc, OnceLock, PoisonError, RwLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};

use async_trait::async_trait;
use firkin_postgres::{AWAY, Members as Catalogued, Membership, NodeRecord, NodeState};
use firkin_runtime::{nodes::NodeFigures, sandbox::SandboxId, store::StoreError};
use firkin_server::nodes::{InvalidNodeId, Listed, ListedNode, NodeId, Report};
use tokio::sync::Notify;

use crate::{
    fence::NodeFence,
    keep::Said,
    members::{Home, Member, Members, MembersAway},
};

/// What is known of the nodes, as they were last heard, and where their sandboxes are.
#[derive(Debug)]
pub struct Records {
    membership: Arc<Membership>,
    heard: RwLock<Heard>,
    /// Somebody came who was not heard of.
    unheard: Notify,
    /// Paused sandboxes of this node that no other has a copy of, when that was last looked at.
    copies_owed: AtomicUsize,
    counts: Counts,
    fence: OnceLock<Arc<NodeFence>>,
}

/// What this node has done as one of its cluster.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) claimed: AtomicU64,
    pub(crate) held: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) fenced: AtomicU64,
}

#[derive(Debug, Default)]
struct Heard {
    members: Arc<[Member]>,
    nodes: Arc<[NodeRecord]>,
    at: Option<Instant>,
}

impl Records {
    /// Those that a node sees, which has heard of them once when this returns.
    pub async fn of(membership: Arc<Membership>) -> Result<Arc<Self>, StoreError> {
        let records = Self {
            membership,
            heard: RwLock::default(),
            unheard: Notify::default(),
            copies_owed: AtomicUsize::new(0),
            counts: Counts::default(),
            fence: OnceLock::new(),
        };
        records.hear().await?;
        Ok(Arc::new(records))
    }

    /// Asks who is there.
    pub async fn hear(&self) -> Result<(), StoreError> {
        let nodes: Arc<[NodeRecord]> = self.catalogued().nodes().await?.into();
        let members = nodes.iter().filter_map(member).collect();
        *self.heard.write().unwrap_or_else(PoisonError::into_inner) = Heard { members, nodes, at: Some(Instant::now()) };
        Ok(())
    }

    /// Whether a node says that it serves. One that begins has a lease before that, and answers nobody.
    pub(crate) fn serves(&self, node: &NodeId) -> bool {
        let records = self.records();
        let found = records.iter().find(|record| record.id.as_str() == node.as_str());
        found.and_then(|record| serde_json::from_str::<Said>(&record.info).ok()).is_some_and(|said| said.serves)
    }

    /// All nodes, as they were last heard.
    pub fn records(&self) -> Arc<[NodeRecord]> {
        Arc::clone(&self.heard.read().unwrap_or_else(PoisonError::into_inner).nodes)
    }

    /// What stops machines of this node when its lease is over.
    pub fn are_of(&self, fence: Arc<NodeFence>) {
        // A node has one.
        drop(self.fence.set(fence));
    }

    /// Takes down how many copies are owed, for others to hear.
    pub(crate) fn owe_copies(&self, owed: usize) {
        self.copies_owed.store(owed, Ordering::Relaxed);
    }

    /// How many these were last.
    pub(crate) fn copies_owed(&self) -> usize {
        self.copies_owed.load(Ordering::Relaxed)
    }

    /// Waits until somebody comes who was not heard of. One that came before is not waited for. Cancel-safe.
    pub(crate) async fn unheard(&self) {
        self.unheard.notified().await;
    }

    /// The node's part in the cluster.
    pub(crate) fn membership(&self) -> &Membership {
        &self.membership
    }

    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }

    fn catalogued(&self) -> &Catalogued {
        self.membership.members()
    }
}

/// A node as peers know it. What has an id or a number that none of this version gives is none.
pub(crate) fn member(record: &NodeRecord) -> Option<Member> {
    if record.state == NodeState::Forgotten {
        return None;
    }
    // What it says of itself may be another version's: what is not understood was not said.
    let said: Said = serde_json::from_str(&record.info).unwrap_or_default();
    Some(Member {
        id: record.id.as_str().parse().ok()?,
        name: record.name.clone(),
        address: record.address.clone(),
        term: u64::try_from(record.term).ok()?,
        alive: record.is_alive(),
        cordoned: record.state != NodeState::Ready,
        engines: said.engines,
        // Nothing is placed on one that begins, and does not answer yet.
        free_memory_mib: said.free_memory_mib.filter(|_| said.serves),
        holds: said.holds.map(Arc::new),
    })
}

/// A node as people are shown it.
fn listed(record: &NodeRecord) -> ListedNode {
    let (state, over) = (record.word(), record.lease_over);
    // It says nothing yet, or what another version says.
    let said = serde_json::from_str::<Said>(&record.info).ok().filter(|said| !said.version.is_empty());
    ListedNode {
        id: record.id.to_string(),
        name: record.name.clone(),
        state,
        // Whoever is away has been in whatever state an operator gave it for longer.
        since: if state == AWAY { over } else { record.since },
        reason: record.reason.clone(),
        cordoned: record.state != NodeState::Ready,
        forgotten: record.state == NodeState::Forgotten,
        lease_left: record.lease_left,
        lease_over: over,
        report: said.map(|said| Report {
            version: said.version,
            serves: said.serves,
            engines: said.engines,
            running: said.running,
            paused: said.paused,
            copies_owed: said.copies_owed,
            memory_mib: said.held.zip(said.capacity).map(|(held, all)| (held.memory_mib, all.memory_mib)),
            holds: said.holds.map(|holds| holds.len()),
        }),
    }
}

#[async_trait]
impl Members for Records {
    fn nodes(&self) -> Arc<[Member]> {
        Arc::clone(&self.heard.read().unwrap_or_else(PoisonError::into_inner).members)
    }

    fn look_again(&self) {
        self.unheard.notify_one();
    }

    fn listed(&self) -> Listed {
        let heard = self.heard.read().unwrap_or_else(PoisonError::into_inner);
        let ago = heard.at.map(|at| at.elapsed()).unwrap_or_default();
        Listed { nodes: heard.nodes.iter().map(listed).collect(), ago }
    }

    fn holds_lease(&self) -> bool {
        self.membership.lease().holds()
    }

    fn figures(&self) -> NodeFigures {
        let (records, counts) = (self.records(), &self.counts);
        let words = NodeState::ALL.into_iter().map(NodeState::word).chain([AWAY]);
        let number = |word| records.iter().filter(|record| record.word() == word).count();
        let counted = |count: &AtomicU64| count.load(Ordering::Relaxed);
        NodeFigures {
            nodes: words.map(|word| (word, u64::try_from(number(word)).unwrap_or(u64::MAX))).collect(),
            lease_left: self.membership.lease().until_end(),
            claims: vec![
                ("claimed", counted(&counts.claimed)),
                ("held", counted(&counts.held)),
                ("failed", counted(&counts.failed)),
            ],
            fenced: counted(&counts.fenced),
            warden: self.fence.get().map(|fence| fence.figures()),
        }
    }

    async fn whereabouts(&self, id: &SandboxId) -> Result<Option<Home>, MembersAway> {
        let found = self.catalogued().whereabouts(id).await.map_err(|error| MembersAway(error.into()))?;
        found.map(|found| home(&found)).transpose()
    }

    async fn builder(&self, template: &str) -> Result<Option<NodeId>, MembersAway> {
        let found = self.catalogued().builder(template).await.map_err(|error| MembersAway(error.into()))?;
        found.map(|node| node.as_str().parse()).transpose().map_err(|error: InvalidNodeId| MembersAway(error.into()))
    }
}

fn home(found: &firkin_postgres::Whereabouts) -> Result<Home, MembersAway> {
    let node: NodeId = found.node.as_str().parse().map_err(|error: InvalidNodeId| MembersAway(error.into()))?;
    let term = u64::try_from(found.term).map_err(|error| MembersAway(error.into()))?;
    Ok(Home { node, term, epoch: found.epoch })
}
