//! A paused sandbox whose node is full goes to one that has room, when somebody wants it to run.
//!
//! Its home is asked first, which has its files. Only where that would have it wait, another node takes it over, paused as it is, and then runs it.
//! Where no other node is known to have room, it waits at home as on one host.

use std::sync::Arc;

use axum::{body::Body, extract::Request, response::Response};
use firkin_causes::chain;
use firkin_runtime::{
    sandbox::{SandboxId, SandboxState},
    store::KeyScope,
};
use http::Method;

use super::{
    departing,
    forward::{Passed, forward},
    of_control,
};
use crate::{
    App,
    error::ApiError,
    extract::collect,
    nodes::{Identity, NodeId, Nodes},
};

/// Whether a sandbox of this node is paused, would wait for room here if it were to run, and is for whoever asks to run.
pub(super) fn is_wanted(app: &App, identity: Option<&Identity>, id: &SandboxId) -> bool {
    let paused = app.host().sandbox(id).ok().filter(|sandbox| sandbox.state == SandboxState::Paused);
    let (Some(sandbox), Some(caller)) = (paused, identity.and_then(|identity| identity.caller.as_ref())) else { return false };
    let may = caller.scope >= KeyScope::Sandboxes && caller.team == sandbox.owner;
    may && app.host().has_room(&sandbox.budget).is_err()
}

/// The sandbox that a request asks to run.
pub(super) fn resumed(request: &Request) -> Option<SandboxId> {
    let path = request.uri().path();
    let asks = request.method() == Method::POST && (path.ends_with("/resume") || path.ends_with("/connect"));
    if asks { of_control(path).filter(SandboxId::is_generated) } else { None }
}

/// Passes a request on to the node that has the sandbox. One that asks it to run may bring it here: its node is full, and this one is not. Then it is
/// done `here`.
pub(crate) async fn there(
    app: &App,
    (nodes, passed): (&Arc<dyn Nodes>, Passed),
    request: Request,
    here: Option<impl AsyncFnOnce(Request) -> Response>,
) -> Result<Response, ApiError> {
    let (Some(here), Some(id)) = (here, resumed(&request)) else { return forward(app, nodes, passed, request).await };
    let (parts, body) = request.into_parts();
    let bytes = collect(body, app.config.max_body_bytes).await?;
    let again = || Request::from_parts(parts.clone(), Body::from(bytes.clone()));
    match forward(app, nodes, passed, again()).await {
        Err(error) if error.is_of_moved() && app.host().has(&id) => Ok(here(again()).await),
        forwarded => forwarded,
    }
}

/// Has another node take it over. Which one has it now, unless it stays.
pub(super) async fn send_away(app: &App, nodes: &Arc<dyn Nodes>, id: &SandboxId) -> Option<NodeId> {
    match departing::send_away(app, nodes, id).await {
        Ok(node) => {
            tracing::info!(sandbox = %id, %node, "this node is full: another one has a paused sandbox that is to run");
            Some(node)
        }
        Err(error) => {
            tracing::info!(sandbox = %id, error = chain(&error), "this node is full, and no other takes a paused sandbox that is to run");
            None
        }
    }
}
