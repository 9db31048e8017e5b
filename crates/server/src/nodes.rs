//! The seam to other nodes, where several servers are one address: who they are, where a sandbox is, and how a request gets to another
//! node and is believed there.
//!
//! ```text
//!   client ─► edge of any node ─► is the sandbox here? ─yes─► routes, proxy
//!                                        │no: `Nodes::locate`
//!                                        ▼
//!              `Nodes::send` ─► peer port of its home ─► the same edge, which believes who asks, and passes on nothing
//! ```
//!
//! A request is passed on whole, into a sandbox's port too, because what lets it in (a key's scope, a private port, a quota) is as its
//! home has it at that instant. Whoever implements [`Nodes`] keeps peers' certificates and knows the members; a server without one has
//! no such thing, and pays for none of it.

use std::{error::Error, fmt, str::FromStr, sync::Arc};

use async_trait::async_trait;
use axum::{body::Body, extract::Request, response::Response};
use firkin_runtime::{capacity::ResourceBudget, nodes::NodeFigures, sandbox::SandboxId};
use http::{HeaderMap, HeaderName, HeaderValue};
use rustls::pki_types::CertificateDer;
use tokio_rustls::TlsAcceptor;

mod identity;
mod listed;
mod placement;

pub(crate) use identity::Identity;
pub use listed::{Listed, ListedNode, Report};
pub(crate) use placement::named;
pub use placement::{Holding, PassedOver, Place, Placement};

/// Who asks, as the edge has found out.
pub(crate) const IDENTITY: HeaderName = HeaderName::from_static("x-firkin-identity");

/// From where, as `address:port`.
pub(crate) const CLIENT: HeaderName = HeaderName::from_static("x-firkin-client");

/// That the client came by HTTPS.
pub(crate) const ENCRYPTED: HeaderName = HeaderName::from_static("x-firkin-encrypted");

/// On an answer of a peer: nothing was done, since the sandbox is not there. It names the node that has it.
pub(crate) const MISDIRECTED: HeaderName = HeaderName::from_static("x-firkin-misdirected");

/// On an answer of a peer: a sandbox gave it.
pub(crate) const VISITED: HeaderName = HeaderName::from_static("x-firkin-visited");

/// On an answer of a peer: it has no room for what was asked for, or cannot run it. Another may.
pub(crate) const REFUSED: HeaderName = HeaderName::from_static("x-firkin-refused");

/// On an answer of a peer: nothing was done, since who asked is none by what is known there.
const FORMER: HeaderName = HeaderName::from_static("x-firkin-former-peer");

/// On every answer of a node: the name of the one that gave it.
const NODE: HeaderName = HeaderName::from_static("x-firkin-node");

/// On an answer about a sandbox or out of one: the number of the life that it was in on its node when that answered, which rises with each resume. On a
/// request of a peer: that of which the peer has heard, so that nobody answers who has an older one.
pub(crate) const EPOCH: HeaderName = HeaderName::from_static("x-firkin-epoch");

/// On the answer to a create: where it was made, and why not elsewhere.
pub(crate) const PLACEMENT: HeaderName = HeaderName::from_static("x-firkin-placement");

/// On a list: the names of the nodes that did not say what they have.
pub(crate) const MISSING: HeaderName = HeaderName::from_static("x-firkin-missing-nodes");

/// On a create that is sent to a peer: what it needs of the host. Where that is not free now it is refused, and does not wait: others are asked first.
pub(crate) const AT_ONCE: HeaderName = HeaderName::from_static("x-firkin-at-once");

/// What is believed on the peer port, and taken out of whatever comes in elsewhere.
const BELIEVED: [HeaderName; 5] = [IDENTITY, CLIENT, ENCRYPTED, EPOCH, AT_ONCE];

/// Headers that a node adds to a request or an answer on its way to another one, and as many again for later versions.
pub const MORE_HEADERS: usize = 16;

/// Bytes of these.
pub const MORE_BYTES: usize = 4 << 10;

/// What a peer says by the head of its answer, and a guest cannot.
const SAID_BY_PEERS: [HeaderName; 4] = [MISDIRECTED, VISITED, REFUSED, FORMER];

/// Characters of a node's id.
const ID_LENGTH: usize = 20;

/// A node of a cluster: `[a-z0-9]{20}`, kept in its state directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(Arc<str>);

/// A text that is no node's id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the id of a node: it must be {ID_LENGTH} small letters and digits")]
pub struct InvalidNodeId(String);

impl FromStr for NodeId {
    type Err = InvalidNodeId;

    fn from_str(text: &str) -> Result<Self, InvalidNodeId> {
        let is_id = text.len() == ID_LENGTH && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        if is_id { Ok(Self(text.into())) } else { Err(InvalidNodeId(text.chars().take(2 * ID_LENGTH).collect())) }
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl NodeId {
    /// The text of the id.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One life of a node's server, as a certificate names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The node.
    pub node: NodeId,
    /// Its term, which rises with each start.
    pub term: u64,
}

/// A node that is not this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Other {
    /// Its id.
    pub id: NodeId,
    /// Its name, for people.
    pub name: String,
    /// Whether it is there, as far as is known. One that is not is asked for nothing.
    pub alive: bool,
    /// Whether it takes nothing new, by its operator's word.
    pub cordoned: bool,
}

/// Where a sandbox is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whereabouts {
    /// On this node, by the record.
    Here,
    /// On another one.
    There(NodeId),
    /// There is none of this id.
    Nowhere,
}

/// How sure an answer has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// What was heard a while ago will do: whoever is asked next says if it is wrong.
    Lately,
    /// As the record is now.
    Now,
}

/// What a new sandbox needs of its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The build that it starts from, by its id.
    pub build: String,
    /// Its memory, MiB.
    pub memory_mib: u64,
    /// What that has to be run by, by the word for which it is asked, if that is on record.
    pub runs_on: Option<String>,
    /// The key under which it is asked for once, with the team whose key that is. Requests with the same one have to come to the same
    /// node, which remembers it.
    pub once: Option<String>,
}

/// What a node said that was asked for a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// It has made one, with so much memory, MiB.
    Made(u64),
    /// It has no room.
    Full,
    /// It should have made one, and could not.
    Failed,
}

/// It is not known where something is, because those who know do not answer.
#[derive(Debug, thiserror::Error)]
#[error("cannot look up on which node {what} is")]
pub struct LocateError {
    /// The sandbox or template.
    pub what: String,
    /// Why.
    #[source]
    pub source: Box<dyn Error + Send + Sync>,
}

/// Why a request got no answer of another node.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// Nothing of it was sent.
    #[error("cannot reach node `{node}`")]
    Unreached {
        /// Which one, as people know it.
        node: String,
        /// Why.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// It was sent, and what became of it is not known.
    #[error("node `{node}` broke off before it answered")]
    Broken {
        /// Which one, as people know it.
        node: String,
        /// Why.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}

/// The other nodes of this server's cluster, and this server as one of them.
#[async_trait]
pub trait Nodes: fmt::Debug + Send + Sync {
    /// This node.
    fn id(&self) -> &NodeId;

    /// The name of this node, for people.
    fn name(&self) -> &str;

    /// Shakes hands on the peer port. Lets in peers only, each by its certificate.
    fn greeter(&self) -> TlsAcceptor;

    /// Who was let in by this chain. `None` for one that names nobody, which `greeter` lets in never.
    fn peer(&self, chain: &[CertificateDer<'_>]) -> Option<Peer>;

    /// Whether this peer is still one: asked of each of its requests, since a connection may outlive a term.
    fn is_alive(&self, peer: &Peer) -> bool;

    /// Where a sandbox is that this server does not have. Cancel-safe.
    async fn locate(&self, id: &SandboxId, asked: Asked) -> Result<Whereabouts, LocateError>;

    /// The number of the newest life of a sandbox that was heard of, if any was lately.
    fn epoch(&self, id: &SandboxId) -> Option<u64>;

    /// A node has answered for a sandbox, which is in this life there. What was heard of a later one stays.
    fn heard(&self, id: &SandboxId, node: &NodeId, epoch: u64);

    /// Where the newest build of a template is, that was asked for: what its client uploads for it, and the build itself, are on one node.
    /// Cancel-safe.
    async fn builder(&self, template: &str) -> Result<Whereabouts, LocateError>;

    /// All nodes but this one.
    fn others(&self) -> Vec<Other>;

    /// All nodes that are on record, this one and those that are off too, for people. At once, from memory.
    fn listed(&self) -> Listed;

    /// Nodes that may be asked for a new sandbox, this one too, in the order in which to ask them, and why the others may not. Each decides for
    /// itself; nobody is to be asked but these. None: it is made here.
    fn placement(&self, wanted: &Wanted) -> Placement;

    /// Takes down what a node said that was asked for a sandbox: what is known of its room is some seconds old.
    fn answered(&self, node: &NodeId, said: Said);

    /// Whether this node takes new sandboxes, by its operator's word.
    fn takes_new(&self) -> bool;

    /// Whether it is sure that nobody else has what is this node's. While it is not, others may have what is paused here.
    fn holds_lease(&self) -> bool;

    /// What is known of the nodes and was done as one of them, for metrics.
    fn figures(&self) -> NodeFigures;

    /// Sends a request, whose address is a path alone, to the peer port of a node. Bodies stream both ways; an answer that breaks off
    /// ends in an error, and never as if it were whole. A switch of protocols is left to the caller, as hyper has it. Dropped, the
    /// exchange is given up.
    async fn send(&self, node: &NodeId, request: Request) -> Result<Response<Body>, SendError>;
}

/// A sandbox is paused, and what holds it is on its own node alone. It is owed to another one from then on.
#[derive(Debug, thiserror::Error)]
#[error("sandbox `{id}` is paused, and only on node `{node}`")]
pub struct NotCopied {
    /// Which.
    pub id: SandboxId,
    /// Its node, as people know it.
    pub node: String,
    /// Whether it is of use to ask again soon.
    pub may_come: bool,
    /// Why no other node has it.
    #[source]
    pub source: Box<dyn Error + Send + Sync>,
}

/// Since when a paused sandbox is on another node too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copied {
    /// Since it was asked for now, or nobody was told so before: whoever asked last was told that it is not.
    Now,
    /// Whoever asked before was told so.
    Before,
}

/// Who has what holds paused sandboxes of this node be on another one too.
#[async_trait]
pub trait SecondCopies: fmt::Debug + Send + Sync {
    /// Returns once another node has what holds a paused sandbox, within a bound; at once where it cannot have it. Dropped, it is gone on with.
    async fn copied(&self, id: &SandboxId) -> Result<Copied, NotCopied>;
}

/// Has a request that is sent to a peer be that of whoever administers the cluster: a node asks for itself.
pub fn as_operator(request: &mut Request) {
    let identity = Identity { caller: None, admin: true };
    request.headers_mut().insert(IDENTITY, identity.to_header());
}

/// Marks a request that came over the peer port.
#[derive(Debug, Clone)]
pub(crate) struct FromPeer(pub(crate) Peer);

/// What a create needs of a host, that is not to wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AtOnce(pub(crate) ResourceBudget);

impl AtOnce {
    pub(crate) fn to_header(self) -> HeaderValue {
        let ResourceBudget { cpus, memory_mib, disk_mib } = self.0;
        HeaderValue::try_from(format!("{cpus} {memory_mib} {disk_mib}")).expect("numbers are printable")
    }

    /// What is said otherwise by another version is not said.
    pub(crate) fn of(value: &HeaderValue) -> Option<Self> {
        let mut numbers = value.to_str().ok()?.split(' ');
        let (cpus, memory_mib, disk_mib) = (numbers.next()?, numbers.next()?, numbers.next()?);
        let budget =
            ResourceBudget { cpus: cpus.parse().ok()?, memory_mib: memory_mib.parse().ok()?, disk_mib: disk_mib.parse().ok()? };
        numbers.next().is_none().then_some(Self(budget))
    }
}

/// Marks an answer of another node.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OfAnother;

/// Marks the answer of a node that has no room for a sandbox, or cannot run it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NoRoom;

/// Marks an answer of this node about a sandbox with the number of the life that it was in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OfEpoch(pub(crate) u64);

/// The life of a sandbox in a head, if it is one.
pub(crate) fn epoch_in(headers: &HeaderMap) -> Option<u64> {
    headers.get(EPOCH)?.to_str().ok()?.parse().ok()
}

/// Marks the answer that nothing was done, for another node has the sandbox.
#[derive(Debug, Clone)]
pub(crate) struct Misdirected(pub(crate) NodeId);

/// Says of an answer that nothing was done for a peer that is none.
pub(crate) fn refuse_former(mut response: Response) -> Response {
    response.headers_mut().insert(FORMER, HeaderValue::from_static("1"));
    response
}

/// Whether a peer says so.
pub(crate) fn is_refused_as_former(headers: &HeaderMap) -> bool {
    headers.contains_key(FORMER)
}

/// Whether a peer says that it has no room.
pub(crate) fn is_refused_for_room(headers: &HeaderMap) -> bool {
    headers.contains_key(REFUSED)
}

/// Takes out of a request from outside what only peers may say.
pub(crate) fn disbelieve(headers: &mut HeaderMap) {
    for name in &BELIEVED {
        headers.remove(name);
    }
}

/// Says of an answer which node gave it, and to a peer what else it has to know.
pub(crate) fn sign(nodes: &dyn Nodes, to_peer: bool, visited: bool, response: &mut Response) {
    let (of_another, misdirected, no_room) = {
        let extensions = response.extensions();
        (extensions.get::<OfAnother>().is_some(), extensions.get::<Misdirected>().cloned(), extensions.get::<NoRoom>().is_some())
    };
    let epoch = response.extensions().get::<OfEpoch>().copied();
    let headers = response.headers_mut();
    if !of_another {
        // A guest says nothing by it.
        headers.remove(EPOCH);
        headers.extend(epoch.map(|OfEpoch(epoch)| (EPOCH, HeaderValue::from(epoch))));
    }
    for name in &SAID_BY_PEERS {
        headers.remove(name);
    }
    if !of_another && let Ok(name) = HeaderValue::from_str(nodes.name()) {
        headers.insert(NODE, name);
    }
    if !to_peer {
        return;
    }
    if let Some(node) = misdirected.and_then(|Misdirected(node)| HeaderValue::from_str(node.as_str()).ok()) {
        headers.insert(MISDIRECTED, node);
    }
    if no_room {
        headers.insert(REFUSED, HeaderValue::from_static("1"));
    }
    if visited {
        headers.insert(VISITED, HeaderValue::from_static("1"));
    }
}
