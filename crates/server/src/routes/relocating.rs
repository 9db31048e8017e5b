//! Sandboxes that go from one node of a cluster to another. Ours, and for who administers the host; the second route is for nodes alone.

use std::{
    error::Error,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Json as Reply,
    body::Body,
    extract::{Request, State},
};
use firkin_causes::chain;
use firkin_runtime::{
    owner::{Departed, Departing, MoveError},
    sandbox::{NoSuchSandbox, SandboxId},
};
use http::{Extensions, Method, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    App,
    error::ApiError,
    extract::{Json, Sandbox},
    nodes::{FromPeer, NodeId, Nodes, SendError, Wanted, as_operator, named},
};

/// Nodes that are asked for one sandbox that may go anywhere.
const MOST_ASKED: usize = 3;

/// How long a node may take to bring what holds a sandbox, and to have it run.
const DEADLINE: Duration = Duration::from_secs(15 * 60);

/// Longest answer of a node that is read.
const MAX_ANSWER_BYTES: usize = 64 << 10;

/// Where a sandbox is to go.
#[derive(Debug, Deserialize)]
pub(super) struct Move {
    /// Name or id of a node; wherever it fits where none is named.
    node: Option<String>,
}

/// Where it went.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Moved {
    #[serde(rename = "sandboxID")]
    sandbox_id: SandboxId,
    /// Name of the node that has it now.
    node: String,
    /// Whether it ran, and runs there.
    ran: bool,
    /// From when its pause began until it was there, running again if it ran.
    blackout_ms: u64,
}

/// What a node is to take over.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Take {
    id: SandboxId,
    /// Its deadline, if it is to run.
    until: Option<Timestamp>,
}

/// Why a node did not take it.
enum Untaken {
    /// It said no, or was not reached.
    Refused(Box<dyn Error + Send + Sync>),
    /// It may have it.
    Unknown(Box<dyn Error + Send + Sync>),
}

/// No node takes a sandbox.
#[derive(Debug, thiserror::Error)]
#[error("no other node takes it: {}", if why.is_empty() { "there is none" } else { why })]
struct NobodyTakesIt {
    /// The others by name, each with why.
    why: String,
}

/// `POST /admin/sandboxes/{id}/move`.
pub(super) async fn move_away(
    State(app): State<Arc<App>>,
    Sandbox(id): Sandbox,
    body: Json<Move>,
) -> Result<Reply<Moved>, ApiError> {
    app.host().sandbox(&id)?;
    let nodes = app.config.nodes.clone().ok_or_else(|| ApiError::conflict("this server is in no cluster".to_owned()))?;
    let (targets, passed_over) = match body.value.node {
        Some(node) => (vec![target(&*nodes, &node)?], Vec::new()),
        None => targets(&app, &*nodes, &id)?,
    };
    let (departed, to) = depart(&app, &nodes, &id, (targets, passed_over)).await?;
    let name = to.map_or_else(String::new, |to| {
        let known = nodes.others().into_iter().find(|other| other.id == to);
        known.map_or_else(|| to.to_string(), |other| other.name)
    });
    let blackout_ms = u64::try_from(departed.took.as_millis()).unwrap_or(u64::MAX);
    Ok(Reply(Moved { sandbox_id: id, node: name, ran: departed.ran, blackout_ms }))
}

/// Has a sandbox of this node be taken over by one that it fits on, as far as is known; by which one.
pub(crate) async fn send_away(app: &App, nodes: &Arc<dyn Nodes>, id: &SandboxId) -> Result<NodeId, MoveError> {
    let nobody = || MoveError::Refused { id: id.clone(), source: "no other node has room".into() };
    let targets = targets(app, &**nodes, id)?;
    if targets.0.is_empty() {
        return Err(nobody());
    }
    let (_, to) = depart(app, nodes, id, targets).await?;
    to.ok_or_else(nobody)
}

/// Lets go of a sandbox to the first of these nodes that takes it.
async fn depart(
    app: &App,
    nodes: &Arc<dyn Nodes>,
    id: &SandboxId,
    (targets, passed_over): Targets,
) -> Result<(Departed, Option<NodeId>), MoveError> {
    let asked: Arc<Mutex<Option<NodeId>>> = Arc::default();
    let (told, asking) = (Arc::clone(&asked), Arc::clone(nodes));
    let departed = app.host().move_away(id, move |departing| {
        Box::pin(async move {
            let mut refused = Vec::new();
            for (node, name) in targets {
                *told.lock().unwrap_or_else(PoisonError::into_inner) = Some(node.clone());
                let answer = tokio::time::timeout(DEADLINE, ask(&*asking, &node, &departing)).await;
                match answer.unwrap_or_else(|late| Err(Untaken::Unknown(late.into()))) {
                    Ok(()) => return Ok(()),
                    Err(Untaken::Refused(why)) => refused.push((name, chain(&*why))),
                    Err(Untaken::Unknown(why)) => return Err(why),
                }
            }
            refused.extend(passed_over);
            Err(NobodyTakesIt { why: named(refused.into_iter()) }.into())
        })
    });
    let departed = departed.await?;
    let to = asked.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Ok((departed, to))
}

/// `POST /admin/take`, of another node.
pub(super) async fn take(State(app): State<Arc<App>>, extensions: Extensions, body: Json<Take>) -> Result<StatusCode, ApiError> {
    if extensions.get::<FromPeer>().is_none() {
        return Err(ApiError::forbidden("only nodes of the cluster ask for this".to_owned()));
    }
    app.host().take_over(&body.value.id, body.value.until).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The node that an operator means.
fn target(nodes: &dyn Nodes, named: &str) -> Result<(NodeId, String), ApiError> {
    if named == nodes.name() || named == nodes.id().as_str() {
        return Err(ApiError::conflict(format!("the sandbox is on node `{named}` already")));
    }
    let others = nodes.others();
    let meant: Vec<_> = others.iter().filter(|other| other.name == named || other.id.as_str() == named).collect();
    match meant[..] {
        [] => Err(ApiError::not_found(format!("there is no node `{named}`"))),
        [node] if !node.alive => Err(ApiError::conflict(format!("node `{named}` is away"))),
        [node] if node.cordoned => Err(ApiError::conflict(format!("node `{named}` takes nothing new: it is cordoned"))),
        [node] => Ok((node.id.clone(), node.name.clone())),
        _ => Err(ApiError::bad_request(format!("several nodes are called `{named}`: name one by its id"))),
    }
}

/// Nodes that are asked, and others with why they are not.
type Targets = (Vec<(NodeId, String)>, Vec<(String, String)>);

/// Nodes that a sandbox of this one fits on, as far as is known.
fn targets(app: &App, nodes: &dyn Nodes, id: &SandboxId) -> Result<Targets, NoSuchSandbox> {
    let sandbox = app.host().sandbox(id)?;
    // Where there is one engine it is by that one; of several, those who are asked find out.
    let runs_on = match app.host().accelerations()[..] {
        [only] => Some(only.word().to_owned()),
        _ => None,
    };
    let (build, memory_mib) = (sandbox.build_id.unwrap_or_default(), sandbox.budget.memory_mib);
    let placement = nodes.placement(&Wanted { build, memory_mib, runs_on, once: None });
    let passed_over = placement.passed_over().filter(|(name, _)| name != nodes.name()).collect();
    let places = placement.asked.into_iter().filter(|place| place.node != *nodes.id());
    Ok((places.take(MOST_ASKED).map(|place| (place.node, place.name)).collect(), passed_over))
}

async fn ask(nodes: &dyn Nodes, node: &NodeId, departing: &Departing) -> Result<(), Untaken> {
    let take = Take { id: departing.id.clone(), until: departing.until };
    let body = serde_json::to_vec(&take).map_err(|error| Untaken::Refused(error.into()))?;
    let mut request = Request::new(Body::from(body));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = http::Uri::from_static("/admin/take");
    request.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    request.headers_mut().insert(header::HOST, http::HeaderValue::from_static("localhost"));
    as_operator(&mut request);
    let response = match nodes.send(node, request).await {
        Ok(response) => response,
        Err(error @ SendError::Unreached { .. }) => return Err(Untaken::Refused(error.into())),
        Err(error) => return Err(Untaken::Unknown(error.into())),
    };
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    let read = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await.map(|body| body.to_bytes());
    let said = read.ok().and_then(|bytes| serde_json::from_slice::<Said>(&bytes).ok());
    Err(Untaken::Refused(said.map_or_else(|| format!("the node answers {status}"), |said| said.message).into()))
}

/// Of an error, what people read.
#[derive(Deserialize)]
struct Said {
    message: String,
}
