//! Brings artifacts from other nodes: whoever has one sends it as an archive, over the peer port. What none that answers has comes from the store of
//! the cluster, if there is one.

use std::{
    error::Error,
    io,
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::{
    body::{Body, to_bytes},
    extract::Request,
};
use firkin_postgres::NodeState;
use firkin_runtime::{
    artifact::{AlreadyHere, Coming, Fetch, FetchError, Offered, Take},
    ids::ArtifactId,
};
use firkin_server::nodes::{Nodes as _, Other, as_operator};
use futures::{StreamExt as _, future::BoxFuture};
use http::{Response, StatusCode};
use tokio::time::timeout;

use crate::{
    Cluster, Records,
    store::{PLACE, Store, StoreFailure, is_bad_copy},
};

/// How long a node may take to look what it has: it reads what it has not proven since it was written.
const HEAD_WITHIN: Duration = Duration::from_secs(60);

/// How long nothing may come of what it sends.
const PIECE_WITHIN: Duration = Duration::from_secs(30);

/// The most that what an archive says of itself may have: what the runtime reads.
const MOST_OF_HEADER: usize = 16 << 20;

/// How many contents are said to be here, the largest: a request's head has an end. What is not said comes, and is passed over.
const MOST_LEFT_OUT: usize = 40;

/// Of how many contents it is said that they have begun: one breaks off at a time.
const MOST_BEGUN: usize = 8;

/// How often everybody is asked, where somebody could not be.
const TRIES: usize = 8;

/// Between two of them: by then a node that was knocked at has looked who that is.
const BETWEEN_TRIES: Duration = Duration::from_secs(1);

/// The other nodes, as a runtime asks them for what it has on record and not on its disk. It is made before the runtime, and knows nobody until
/// its node has joined.
#[derive(Debug, Default)]
pub struct Peers {
    joined: OnceLock<(Arc<Cluster>, Arc<Records>)>,
    store: OnceLock<Arc<Store>>,
}

impl Peers {
    /// From now on these are asked. Only the first call counts.
    pub fn join(&self, cluster: Arc<Cluster>, records: Arc<Records>) {
        // The node has joined once.
        drop(self.joined.set((cluster, records)));
    }

    /// From now on this is asked for what none of them has. Only the first call counts.
    pub fn use_store(&self, store: Arc<Store>) {
        // There is one.
        drop(self.store.set(store));
    }

    pub(crate) fn joined(&self) -> Option<&(Arc<Cluster>, Arc<Records>)> {
        self.joined.get()
    }

    async fn ask(&self, artifact: &ArtifactId, but: &[String]) -> Result<Offered, FetchError> {
        let away = |place: String, source| FetchError::Away { place, source };
        let Some((cluster, records)) = self.joined.get() else {
            return Err(away("this node has not joined its cluster yet".to_owned(), None));
        };
        let mut last = None;
        for _ in 0..TRIES {
            // Whoever made it may have joined since this node last heard of the others.
            if let Err(error) = records.hear().await {
                tracing::debug!(error = firkin_causes::chain(&error), "the nodes are asked that were known");
            }
            let why = match ask_each(cluster, records, (artifact, but)).await {
                Asked::Offers(offered) => return Ok(offered),
                Asked::Kept(node) => return Err(away(format!("node `{node}` has it encrypted under its own key"), None)),
                Asked::Nobody(why) => why,
            };
            let why = match self.ask_store(artifact, but).await {
                Ok(Some(offered)) => return Ok(offered),
                Ok(None) => why,
                Err(error) => Some(error.into()),
            };
            // Nor may the others have heard of this one yet, which has just joined: they let it in once they have.
            let is_sure = why.is_none();
            last = why;
            if is_sure {
                break;
            }
            tokio::time::sleep(BETWEEN_TRIES).await;
        }
        let absent: Vec<String> = records
            .records()
            .iter()
            .filter(|node| !node.is_alive())
            .map(|node| match node.state {
                NodeState::Forgotten => format!("`{}`, which an operator has said is off", node.name),
                _ => format!("`{}`, which has been away for {} s", node.name, node.lease_over.as_secs()),
            })
            .collect();
        let nobody = if self.store.get().is_some() {
            "neither a node that answers nor the store has it"
        } else {
            "no node that answers has it"
        };
        let place = match absent.is_empty() {
            true => nobody.to_owned(),
            false => format!("{nobody}; it may be on {}", absent.join(", or ")),
        };
        Err(away(place, last))
    }

    async fn ask_store(&self, artifact: &ArtifactId, but: &[String]) -> Result<Option<Offered>, StoreFailure> {
        match self.store.get() {
            Some(store) if !but.iter().any(|place| place == PLACE) => store.offer(artifact).await,
            Some(_) | None => Ok(None),
        }
    }

    async fn note(&self, artifact: &ArtifactId, place: &str, error: &FetchError) {
        let Some((_, records)) = self.joined.get() else { return };
        // A node that sends proves what it has, and does not send it again if that is damaged.
        if place != PLACE || !is_bad_copy(error) {
            return;
        }
        match records.membership().doubt(artifact).await {
            Ok(true) => {
                tracing::error!(%artifact, "the copy in the store is damaged, and is copied anew by who has the artifact")
            }
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(%artifact, error = firkin_causes::chain(&error), "it is not on record that a copy is damaged")
            }
        }
    }
}

/// What came of asking everybody.
enum Asked {
    Offers(Offered),
    /// This node has it, encrypted under its own key.
    Kept(String),
    /// Nobody has it; or why that is not sure.
    Nobody(Option<Box<dyn Error + Send + Sync>>),
}

/// What comes of a body. A silence that is too long ends it.
fn pieces(body: Body) -> Coming {
    futures::stream::unfold(Some(body.into_data_stream()), |body| async {
        let mut body = body?;
        match timeout(PIECE_WITHIN, body.next()).await {
            Ok(Some(Ok(piece))) => Some((Ok(piece), Some(body))),
            Ok(Some(Err(error))) => Some((Err(io::Error::other(error)), None)),
            Ok(None) => None,
            Err(_) => Some((Err(io::Error::new(io::ErrorKind::TimedOut, "nothing comes any more")), None)),
        }
    })
    .boxed()
}

/// What a node is called as a place that artifacts come from: names are people's, and may be equal.
fn place_of(node: &Other) -> String {
    format!("node `{}` ({})", node.name, node.id)
}

async fn ask_each(cluster: &Arc<Cluster>, records: &Records, (artifact, but): (&ArtifactId, &[String])) -> Asked {
    let (mut unsure, mut kept) = (None, None);
    let mut others = cluster.others();
    others.retain(|other| other.alive && !but.contains(&place_of(other)));
    // Who has it on record is asked before whoever may have it. Where the record is away, everybody is.
    let holders = records.membership().holders(artifact).await.unwrap_or_default();
    others.sort_by_key(|other| !holders.iter().any(|holder| holder.as_str() == other.id.as_str()));
    for other in others {
        if !records.serves(&other.id) {
            unsure = Some(io::Error::other(format!("node `{}` is beginning", other.name)).into());
            continue;
        }
        match export(cluster, &other, format!("artifact={artifact}&part=header")).await {
            Ok(answer) if answer.status() == StatusCode::OK => {
                match timeout(PIECE_WITHIN, to_bytes(answer.into_body(), MOST_OF_HEADER)).await {
                    Ok(Ok(header)) => {
                        return Asked::Offers(Offered { place: place_of(&other), header, take: take(cluster, other, artifact) });
                    }
                    Ok(Err(error)) => unsure = Some(error.into()),
                    Err(late) => unsure = Some(late.into()),
                }
            }
            Ok(answer) if answer.status() == StatusCode::NOT_FOUND => {}
            // It has it, and does not give it away: it is encrypted there. Another may have it as it is.
            Ok(answer) if answer.status() == StatusCode::CONFLICT => kept = Some(other.name),
            Ok(answer) => unsure = Some(io::Error::other(format!("node `{}` answers {}", other.name, answer.status())).into()),
            Err(error) => unsure = Some(error),
        }
    }
    match (unsure, kept) {
        (None, Some(node)) => Asked::Kept(node),
        (unsure, _) => Asked::Nobody(unsure),
    }
}

/// Has an archive come that a node has offered.
fn take(cluster: &Arc<Cluster>, node: Other, artifact: &ArtifactId) -> Take {
    let (cluster, artifact) = (Arc::clone(cluster), artifact.clone());
    Box::new(move |AlreadyHere { whole, begun }| {
        Box::pin(async move {
            let here = whole.into_iter().take(MOST_LEFT_OUT).collect::<Vec<_>>().join(",");
            let begun = begun.into_iter().take(MOST_BEGUN).map(|(digest, bytes)| format!("{digest}:{bytes}"));
            let begun = begun.collect::<Vec<_>>().join(",");
            let away = |source| FetchError::Away { place: format!("node `{}` does not send it", node.name), source };
            match export(&cluster, &node, format!("artifact={artifact}&without={here}&begun={begun}")).await {
                Ok(answer) if answer.status() == StatusCode::OK => {
                    tracing::debug!(%artifact, node = node.name, "an artifact comes from another node");
                    Ok(pieces(answer.into_body()))
                }
                Ok(answer) => Err(away(Some(io::Error::other(format!("it answers {}", answer.status())).into()))),
                Err(error) => Err(away(Some(error))),
            }
        })
    })
}

/// Asks a node for an archive, or for what it would say of itself.
async fn export(cluster: &Cluster, node: &Other, query: String) -> Result<Response<Body>, Box<dyn Error + Send + Sync>> {
    let mut request = Request::new(Body::empty());
    *request.uri_mut() = format!("/admin/export?{query}").parse().expect("ids and digests are of letters and digits");
    as_operator(&mut request);
    match timeout(HEAD_WITHIN, cluster.send(&node.id, request)).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("node `{}` does not answer", node.name)).into()),
    }
}

impl Fetch for Peers {
    fn fetch<'a>(&'a self, artifact: &'a ArtifactId, but: &'a [String]) -> BoxFuture<'a, Result<Offered, FetchError>> {
        Box::pin(self.ask(artifact, but))
    }

    fn failed<'a>(&'a self, artifact: &'a ArtifactId, place: &'a str, error: &'a FetchError) -> BoxFuture<'a, ()> {
        Box::pin(self.note(artifact, place, error))
    }
}
