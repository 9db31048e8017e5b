//! Several servers as one address: any node serves any request.
//!
//! ```text
//!   secret.rs ─► certificate.rs ─► verify.rs ─┬─► peer port of the server (`Listener::Peers`): whom it lets in
//!   members.rs (a trait: who keeps the records)┘
//!        └─► whereabouts.rs ─► Cluster (`firkin_server::nodes::Nodes`) ─► connect.rs ─► peer port of another node
//! ```
//!
//! A program makes a [`Cluster`], gives it to its server as [`ServerConfig::nodes`](firkin_server::ServerConfig::nodes), and has that
//! listen with [`Listener::Peers`](firkin_server::Listener::Peers). Nothing of that has a task, a thread or a file of its own: certificates
//! are renewed by the handshake that needs one, and nodes are as [`Members`] says.
//!
//! A [`NodeFence`] has the node's warden stop machines that others could have when the lease is over (`fence.rs`).
//!
//! The trust is flat: whoever has the secret is every node.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use async_trait::async_trait;
use axum::{body::Body, extract::Request, response::Response};
use firkin_runtime::{nodes::NodeFigures, sandbox::SandboxId};
use firkin_server::nodes::{
    Asked, Listed, LocateError, MORE_HEADERS, NodeId, Nodes, Other, Peer, Placement, Said, SendError, Wanted, Whereabouts,
};
use firkin_wire::head;
use http::{Uri, uri::Scheme};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioTimer},
};
use rustls::pki_types::CertificateDer;
use tokio_rustls::TlsAcceptor;

mod answered;
mod certificate;
mod claims;
pub mod clock;
mod connect;
mod copies;
mod fence;
mod fetch;
mod identity;
mod keep;
mod members;
mod operator;
mod placement;
mod records;
mod sealed;
mod secret;
mod store;
mod verify;
mod whereabouts;

pub use certificate::MintError;
pub use connect::ConnectError;
pub use copies::Copies;
pub use fence::{NodeFence, SharedFence, WardenProgram, Witness};
pub use fetch::Peers;
pub use identity::node_id;
pub use keep::{Serves, keep};
pub use members::{Home, Member, Members, MembersAway};
pub use operator::{KnockError, explain, holds, knock};
pub use records::Records;
pub use sealed::{SealedSecrets, rotate};
pub use secret::{ClusterSecret, SECRET_BYTES, SecretError};
pub use store::{KEPT_AT_LEAST, Store, StoreFailure};
pub use verify::{PeerRefused, VerifierError};

use answered::Answered;
use certificate::{Authority, OwnCertificate};
use connect::Connector;
use placement::Lately;
use verify::Judge;

/// How long a connection to a node may lie idle. Shorter than what its server allows, so that no request meets a closing one.
const IDLE: Duration = Duration::from_secs(60);

/// Idle connections kept to one node: more exchanges at once than that open their own.
const IDLE_PER_NODE: usize = 64;

/// How long a look into the records may take, before they count as away.
const LOOK_DEADLINE: Duration = Duration::from_secs(5);

/// Longest head of an answer: twice what clients may send, as with guests.
const MAX_ANSWER_HEAD_BYTES: usize = 2 * head::MAX_BYTES;

/// Between two looks at whether a node that does not answer is still one.
const STILL_ONE: Duration = Duration::from_secs(5);

/// What makes a server a node of a cluster.
#[derive(Debug)]
pub struct ClusterConfig {
    /// The node: its id is kept in its state directory.
    pub node: NodeId,
    /// Its name, for people: visible ASCII, shown in the head of every answer.
    pub name: String,
    /// Its term: it rises with each start of its server.
    pub term: u64,
    /// The secret of the cluster.
    pub secret: ClusterSecret,
    /// The other nodes.
    pub members: Arc<dyn Members>,
}

/// Why a server cannot be a node.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// It cannot have a certificate.
    #[error("cannot have a certificate of this node")]
    Certificate(#[from] MintError),
    /// It cannot verify others'.
    #[error("cannot set up the peer port")]
    Peers(#[from] VerifierError),
}

/// A cluster, as one of its nodes sees it.
#[derive(Debug)]
pub struct Cluster {
    me: NodeId,
    name: String,
    members: Arc<dyn Members>,
    judge: Arc<Judge>,
    acceptor: Acceptor,
    client: Client<Connector, Body>,
    whereabouts: whereabouts::Whereabouts,
    answered: Answered,
}

/// An acceptor, which has nothing to show.
#[derive(Clone)]
struct Acceptor(TlsAcceptor);

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Acceptor")
    }
}

impl Cluster {
    /// This server as a node of its cluster. Opens and starts nothing.
    pub fn join(config: ClusterConfig) -> Result<Arc<Self>, JoinError> {
        let ClusterConfig { node, name, term, secret, members } = config;
        let authority = Arc::new(Authority::new(&secret)?);
        let judge = Judge::new(&authority, Arc::clone(&members))?;
        let own = Arc::new(OwnCertificate::new(authority, Peer { node: node.clone(), term }, SystemTime::now())?);
        let acceptor = Acceptor(TlsAcceptor::from(Arc::new(verify::server(&judge, &own)?)));
        let tls = Arc::new(verify::client(&judge, &own)?);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(IDLE_PER_NODE)
            .http1_max_headers(head::MAX_HEADERS + MORE_HEADERS)
            .http1_max_buf_size(MAX_ANSWER_HEAD_BYTES)
            .http1_preserve_header_case(true)
            .set_host(false)
            .build(Connector { members: Arc::clone(&members), tls });
        Ok(Arc::new(Self {
            me: node,
            name,
            members,
            judge,
            acceptor,
            client,
            whereabouts: Default::default(),
            answered: Answered::default(),
        }))
    }

    fn place(&self, home: &Home) -> Whereabouts {
        if home.node == self.me { Whereabouts::Here } else { Whereabouts::There(home.node.clone()) }
    }
}

/// A look into the records, which ends in time.
async fn look<T>(looking: impl Future<Output = Result<T, MembersAway>>) -> Result<T, MembersAway> {
    let looked = tokio::time::timeout(LOOK_DEADLINE, looking).await;
    looked.unwrap_or_else(|late| Err(MembersAway(late.into())))
}

#[async_trait]
impl Nodes for Cluster {
    fn id(&self) -> &NodeId {
        &self.me
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn greeter(&self) -> TlsAcceptor {
        self.acceptor.0.clone()
    }

    fn peer(&self, chain: &[CertificateDer<'_>]) -> Option<Peer> {
        certificate::named(chain.first()?)
    }

    fn is_alive(&self, peer: &Peer) -> bool {
        self.judge.admits(peer).is_ok()
    }

    async fn locate(&self, id: &SandboxId, asked: Asked) -> Result<Whereabouts, LocateError> {
        let known = match asked {
            Asked::Lately => self.whereabouts.lately(id, Instant::now()),
            Asked::Now => None,
        };
        if let Some(home) = known {
            return Ok(self.place(&home));
        }
        let since = Instant::now();
        match look(self.members.whereabouts(id)).await {
            Ok(Some(home)) => Ok(self.place(&self.whereabouts.note(id, home, (since, Instant::now())))),
            Ok(None) => {
                self.whereabouts.forget(id);
                Ok(Whereabouts::Nowhere)
            }
            // It may have moved since, which is then said by the node that is asked.
            Err(away) => match self.whereabouts.last(id).filter(|_| asked == Asked::Lately) {
                Some(home) => Ok(self.place(&home)),
                None => Err(LocateError { what: format!("sandbox `{id}`"), source: Box::new(away) }),
            },
        }
    }

    fn epoch(&self, id: &SandboxId) -> Option<u64> {
        self.whereabouts.last(id).map(|home| home.epoch)
    }

    fn heard(&self, id: &SandboxId, node: &NodeId, epoch: u64) {
        let nodes = self.members.nodes();
        let Some(member) = nodes.iter().find(|member| member.id == *node) else { return };
        let home = Home { node: node.clone(), term: member.term, epoch };
        self.whereabouts.hear(id, home, Instant::now());
    }

    async fn builder(&self, template: &str) -> Result<Whereabouts, LocateError> {
        let away = |away| LocateError { what: format!("the build of template `{template}`"), source: Box::new(away) };
        Ok(match look(self.members.builder(template)).await.map_err(away)? {
            Some(node) if node == self.me => Whereabouts::Here,
            Some(node) => Whereabouts::There(node),
            None => Whereabouts::Nowhere,
        })
    }

    fn others(&self) -> Vec<Other> {
        let nodes = self.members.nodes();
        let others = nodes.iter().filter(|member| member.id != self.me);
        let other = |Member { id, name, alive, cordoned, .. }: &Member| Other {
            id: id.clone(),
            name: name.clone(),
            alive: *alive,
            cordoned: *cordoned,
        };
        others.map(other).collect()
    }

    fn listed(&self) -> Listed {
        self.members.listed()
    }

    fn placement(&self, wanted: &Wanted) -> Placement {
        let mut chance = [0; 8];
        getrandom::fill(&mut chance).expect("the kernel's random generator works");
        let now = Instant::now();
        let taken = |node: &NodeId| self.answered.taken(node, now);
        let failing = |node: &NodeId| self.answered.failing(node, now);
        placement::decide(
            &self.members.nodes(),
            Some(&self.me),
            wanted,
            (u64::from_le_bytes(chance), Lately { taken: &taken, failing: &failing }),
        )
    }

    fn answered(&self, node: &NodeId, said: Said) {
        self.answered.note(node, said, Instant::now());
    }

    fn takes_new(&self) -> bool {
        !self.members.nodes().iter().any(|member| member.id == self.me && member.cordoned)
    }

    fn holds_lease(&self) -> bool {
        self.members.holds_lease()
    }

    fn figures(&self) -> NodeFigures {
        self.members.figures()
    }

    async fn send(&self, node: &NodeId, mut request: Request) -> Result<Response<Body>, SendError> {
        let nodes = self.members.nodes();
        let member = nodes.iter().find(|member| member.id == *node);
        let shown = member.map_or_else(|| node.to_string(), |member| member.name.clone());
        let unreached = |source| SendError::Unreached { node: shown.clone(), source };
        let peer = member.map(|member| Peer { node: node.clone(), term: member.term });
        let peer = peer.ok_or_else(|| unreached(PeerRefused::Unknown(node.clone()).into()))?;
        // One whose lease is over is not called, as it would not be let in.
        self.judge.admits(&peer).map_err(|refused| unreached(refused.into()))?;
        let mut address = std::mem::take(request.uri_mut()).into_parts();
        address.scheme = Some(Scheme::HTTPS);
        address.authority = Some(certificate::name_of(&peer).parse().expect("a node's name is a host name"));
        *request.uri_mut() = Uri::from_parts(address).map_err(|error| unreached(error.into()))?;
        let answer = self.client.request(request);
        tokio::pin!(answer);
        let answered = loop {
            match tokio::time::timeout(STILL_ONE, &mut answer).await {
                Ok(answered) => break answered,
                // One that stands still is waited for until others may have what is its own.
                Err(_) => {
                    if let Err(refused) = self.judge.admits(&peer) {
                        return Err(SendError::Broken { node: shown, source: refused.into() });
                    }
                }
            }
        };
        match answered {
            Ok(response) => Ok(response.map(Body::new)),
            Err(error) if error.is_connect() || verify::is_let_in_nowhere(&error) => Err(unreached(error.into())),
            Err(error) => Err(SendError::Broken { node: shown.clone(), source: error.into() }),
        }
    }
}
