//! What a node has to know of the others, and asks of whoever keeps the cluster's records.

use std::{collections::HashSet, error::Error, fmt, sync::Arc};

use async_trait::async_trait;
use firkin_runtime::{nodes::NodeFigures, sandbox::SandboxId};
use firkin_server::nodes::{Listed, NodeId};

/// A node of the cluster, as it was last heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its id.
    pub id: NodeId,
    /// Its name, for people. Shown in the heads of answers.
    pub name: String,
    /// Where its peer port is, as `host:port`.
    pub address: String,
    /// Its present term.
    pub term: u64,
    /// Whether it holds its lease.
    pub alive: bool,
    /// Whether it takes no new sandboxes, by its operator's word.
    pub cordoned: bool,
    /// What it runs sandboxes by, by the words for which that is asked. Empty: not said, and any.
    pub engines: Vec<String>,
    /// Memory that it has for new sandboxes, MiB, as it said last. Not said: it is asked for none of others.
    pub free_memory_mib: Option<u64>,
    /// Ids of the builds that it holds, so that a sandbox of them needs nothing from elsewhere. Not said: it may hold any.
    pub holds: Option<Arc<HashSet<String>>>,
}

/// Where a sandbox is, by its record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    /// The node.
    pub node: NodeId,
    /// The node's term in which it took the sandbox.
    pub term: u64,
    /// The sandbox's epoch. It rises with every claim.
    pub epoch: u64,
}

/// Whoever keeps the records does not answer. What was heard before goes on to be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot ask the cluster's catalogue")]
pub struct MembersAway(#[source] pub Box<dyn Error + Send + Sync>);

/// The members of a cluster.
#[async_trait]
pub trait Members: fmt::Debug + Send + Sync {
    /// All nodes that are on record, this one too, as they were last heard; also while nobody can be asked, so that what goes on between
    /// nodes goes on without the database. At once, from memory: asked for at every handshake and for each request of a peer.
    fn nodes(&self) -> Arc<[Member]>;

    /// Somebody who has the cluster's secret is none of [`nodes`](Self::nodes), or is in a term that these do not have: a node that was
    /// started just now, which is let in once it is known. Asks for nothing and returns at once; how often it is worth a look is for
    /// whoever keeps them.
    fn look_again(&self);

    /// The same for people, with those that are off. At once, from memory.
    fn listed(&self) -> Listed;

    /// Whether this node holds its lease, as it counts itself, and has looked at what others may have taken before. At once, from memory.
    fn holds_lease(&self) -> bool;

    /// How many there are in each state, and what this node has done as one of them, for metrics.
    fn figures(&self) -> NodeFigures;

    /// Which node a sandbox's record names now. `None` where there is no such record. Cancel-safe.
    async fn whereabouts(&self, id: &SandboxId) -> Result<Option<Home>, MembersAway>;

    /// Which node has the newest build that was asked for of a template, going on or not begun yet. `None` where there is none: whoever is
    /// asked answers then. Cancel-safe.
    async fn builder(&self, template: &str) -> Result<Option<NodeId>, MembersAway>;
}
