//! A sandbox of this node goes to another one: which are asked, and what they are told.

use std::{
    error::Error,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{body::Body, extract::Request};
use firkin_causes::chain;
use firkin_runtime::{
    capacity::ResourceBudget,
    owner::{Departed, Departing, MoveError},
    sandbox::{NoSuchSandbox, SandboxId},
};
use http::{Method, header};
use http_body_util::{BodyExt as _, Limited};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    App,
    nodes::{self, NodeId, Nodes, SendError, Wanted, as_operator, named},
};

/// Nodes that are asked for one sandbox that may go anywhere.
const MOST_ASKED: usize = 3;

/// How long a node may take to bring what holds a sandbox, and to have it run.
const DEADLINE: Duration = Duration::from_secs(15 * 60);

/// Longest answer of a node that is read.
const MAX_ANSWER_BYTES: usize = 64 << 10;

/// What a node is to take over.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Take {
    pub(crate) id: SandboxId,
    /// Its deadline, if it is to run.
    pub(crate) until: Option<Timestamp>,
    /// What it needs, if it is to run soon and goes only for that: refused where that is not free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) room: Option<ResourceBudget>,
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

/// Has a paused sandbox of this node be taken over by one that has room for it now; by which one.
pub(crate) async fn send_away(app: &App, nodes: &Arc<dyn Nodes>, id: &SandboxId) -> Result<NodeId, MoveError> {
    let nobody = || MoveError::Refused { id: id.clone(), source: "no other node has room".into() };
    let targets = targets(app, &**nodes, id)?;
    if targets.0.is_empty() {
        return Err(nobody());
    }
    let budget = app.host().sandbox(id)?.budget;
    let (_, to) = depart(app, nodes, id, (targets, Some(budget))).await?;
    if let Some(to) = &to {
        nodes.answered(to, nodes::Said::Made(budget.memory_mib));
    }
    to.ok_or_else(nobody)
}

/// Lets go of a sandbox to the first of these nodes that takes it.
pub(crate) async fn depart(
    app: &App,
    nodes: &Arc<dyn Nodes>,
    id: &SandboxId,
    ((targets, passed_over), room): (Targets, Option<ResourceBudget>),
) -> Result<(Departed, Option<NodeId>), MoveError> {
    let asked: Arc<Mutex<Option<NodeId>>> = Arc::default();
    let (told, asking) = (Arc::clone(&asked), Arc::clone(nodes));
    let departed = app.host().move_away(id, move |departing| {
        Box::pin(async move {
            let mut refused = Vec::new();
            for (node, name) in targets {
                *told.lock().unwrap_or_else(PoisonError::into_inner) = Some(node.clone());
                let answer = tokio::time::timeout(DEADLINE, ask(&*asking, &node, (&departing, room))).await;
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

/// Nodes that are asked, and others with why they are not.
pub(crate) type Targets = (Vec<(NodeId, String)>, Vec<(String, String)>);

/// Nodes that a sandbox of this one fits on, as far as is known.
pub(crate) fn targets(app: &App, nodes: &dyn Nodes, id: &SandboxId) -> Result<Targets, NoSuchSandbox> {
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

async fn ask(nodes: &dyn Nodes, node: &NodeId, (departing, room): (&Departing, Option<ResourceBudget>)) -> Result<(), Untaken> {
    let take = Take { id: departing.id.clone(), until: departing.until, room };
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
    if nodes::is_refused_for_room(response.headers()) {
        nodes.answered(node, nodes::Said::Full);
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
