//! What an operator finds out of a cluster from a host that is no node of it: where a sandbox would go now, and whether the peer ports answer.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use axum::{body::Body, extract::Request};
use firkin_postgres::NodeRecord;
use firkin_runtime::{nodes::NodeFigures, sandbox::SandboxId};
use firkin_server::nodes::{Listed, NodeId, Nodes as _, Placement, SendError, Wanted};
use http::StatusCode;
use tokio::time::timeout;

use crate::{
    Cluster, ClusterConfig, ClusterSecret, JoinError,
    members::{Home, Member, Members, MembersAway},
    placement::{self, Lately},
    records,
};

/// How long a node may take to answer an operator.
const KNOCK_WITHIN: Duration = Duration::from_secs(15);

/// Where a sandbox would be made if it were asked for now, by what the nodes last said, and why not elsewhere. Among several nodes of a kind that
/// could have it, chance draws, so that another look may name others.
pub fn explain(nodes: &[NodeRecord], wanted: &Wanted) -> Placement {
    let mut chance = [0; 8];
    getrandom::fill(&mut chance).expect("the kernel's random generator works");
    let members: Vec<Member> = nodes.iter().filter_map(records::member).collect();
    placement::decide(&members, None, wanted, (u64::from_le_bytes(chance), Lately::NOTHING))
}

/// Whether a node is known to hold a build; none where it does not say what it holds.
pub fn holds(node: &NodeRecord, build: &str) -> Option<bool> {
    records::member(node)?.holds.map(|held| held.contains(build))
}

/// Why a node's peer port does not do.
#[derive(Debug, thiserror::Error)]
pub enum KnockError {
    /// It is none that this version understands.
    #[error("its id or its term is none that this version knows")]
    Unknown,
    /// No certificate can be made.
    #[error(transparent)]
    Certificate(#[from] JoinError),
    /// It cannot be reached, or does not let in who has the cluster's secret.
    #[error(transparent)]
    Send(#[from] SendError),
    /// It took too long.
    #[error("it did not answer within {} s", KNOCK_WITHIN.as_secs())]
    Late,
    /// It answers, and not as a server does.
    #[error("it answers with status {0}")]
    Status(StatusCode),
}

/// Asks a node at its peer port whether it is well, with a certificate of the secret that names that node itself: whoever has the secret is every
/// node. Gives how long the handshake and the answer took.
pub async fn knock(nodes: &[NodeRecord], node: &NodeRecord, secret: &ClusterSecret) -> Result<Duration, KnockError> {
    let members: Arc<[Member]> = nodes.iter().filter_map(records::member).collect();
    let id: NodeId = node.id.as_str().parse().map_err(|_| KnockError::Unknown)?;
    let term = members.iter().find(|member| member.id == id).ok_or(KnockError::Unknown)?.term;
    let members = Arc::new(Known(members));
    let config = ClusterConfig { node: id.clone(), name: "operator".to_owned(), term, secret: secret.clone(), members };
    let cluster = Cluster::join(config)?;
    let mut request = Request::new(Body::empty());
    *request.uri_mut() = "/health".parse().expect("it is a path");
    let begun = Instant::now();
    let answer = timeout(KNOCK_WITHIN, cluster.send(&id, request)).await.map_err(|_| KnockError::Late)??;
    if answer.status().is_success() { Ok(begun.elapsed()) } else { Err(KnockError::Status(answer.status())) }
}

/// Nodes as they were read once.
#[derive(Debug)]
struct Known(Arc<[Member]>);

#[async_trait]
impl Members for Known {
    fn nodes(&self) -> Arc<[Member]> {
        Arc::clone(&self.0)
    }

    fn look_again(&self) {}

    fn listed(&self) -> Listed {
        Listed::default()
    }

    fn holds_lease(&self) -> bool {
        true
    }

    fn figures(&self) -> NodeFigures {
        NodeFigures::default()
    }

    async fn whereabouts(&self, _: &SandboxId) -> Result<Option<Home>, MembersAway> {
        Ok(None)
    }

    async fn builder(&self, _: &str) -> Result<Option<NodeId>, MembersAway> {
        Ok(None)
    }
}
