//! Sandboxes that go from one node of a cluster to another, and finding one by what it signed. Ours, and for who administers the host; all but the
//! first of these routes are for nodes alone.

use std::sync::Arc;

use axum::{Json as Reply, extract::State};
use firkin_runtime::sandbox::SandboxId;
use http::{Extensions, StatusCode};
use serde::{Deserialize, Serialize};

use crate::{
    App,
    elsewhere::{
        departing::{Take, depart, targets},
        signer::Told,
    },
    error::ApiError,
    extract::{Json, Sandbox},
    listing::Query,
    nodes::{FromPeer, NodeId, Nodes},
    proxy::signed::Signed,
};

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

/// `POST /admin/sandboxes/{id}/move`.
pub(super) async fn move_away(
    State(app): State<Arc<App>>,
    Sandbox(id): Sandbox,
    body: Json<Move>,
) -> Result<Reply<Moved>, ApiError> {
    app.host().sandbox(&id)?;
    let nodes = app.config.nodes.clone().ok_or_else(|| ApiError::conflict("this server is in no cluster".to_owned()))?;
    let targets = match body.value.node {
        Some(node) => (vec![target(&*nodes, &node)?], Vec::new()),
        None => targets(&app, &*nodes, &id)?,
    };
    let (departed, to) = depart(&app, &nodes, &id, (targets, None)).await?;
    let name = to.map_or_else(String::new, |to| {
        let known = nodes.others().into_iter().find(|other| other.id == to);
        known.map_or_else(|| to.to_string(), |other| other.name)
    });
    let blackout_ms = u64::try_from(departed.took.as_millis()).unwrap_or(u64::MAX);
    Ok(Reply(Moved { sandbox_id: id, node: name, ran: departed.ran, blackout_ms }))
}

/// `POST /admin/take`, of another node.
pub(super) async fn take(State(app): State<Arc<App>>, extensions: Extensions, body: Json<Take>) -> Result<StatusCode, ApiError> {
    of_a_node(&extensions)?;
    if let Some(room) = &body.value.room {
        app.host().has_room(room).map_err(|short| ApiError::full(&short))?;
    }
    app.host().take_over(&body.value.id, body.value.until).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `GET /admin/signer`, of another node: which sandbox of this one signed a URL, by the query and the method of that.
pub(super) async fn signer(State(app): State<Arc<App>>, extensions: Extensions, query: Query) -> Result<Reply<Told>, ApiError> {
    let method = query.get("method").and_then(|method| method.parse().ok());
    let signed = method.and_then(|method| Signed::of(&method, &query));
    let signed = signed.ok_or_else(|| ApiError::bad_request("this is no signed URL"))?;
    of_a_node(&extensions)?;
    let sandbox = app.host().whose_token(|token| signed.by(token)).map(|id| id.to_string());
    Ok(Reply(Told { sandbox }))
}

fn of_a_node(extensions: &Extensions) -> Result<(), ApiError> {
    let is_of_a_node = extensions.get::<FromPeer>().is_some();
    is_of_a_node.then_some(()).ok_or_else(|| ApiError::forbidden("only nodes of the cluster ask for this".to_owned()))
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
