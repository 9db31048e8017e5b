//! Whose a signed URL is that names no sandbox: that of a sandbox here, or of another node.
//!
//! What is signed by nobody here is asked of all other nodes, each of which compares its own tokens. The request goes to the one that knows, by the
//! sandbox's name. Where nobody knows and one does not answer, a link of a node that restarts is not called wrong.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use axum::extract::{ConnectInfo, Request};
use firkin_runtime::sandbox::SandboxId;
use firkin_wire::ENVD_PORT;
use serde::{Deserialize, Serialize};

use super::gather::{Found, find};
use crate::{
    App,
    error::ApiError,
    nodes::{FromPeer, Identity, NodeId, Nodes},
    proxy::signed::Signed,
    target::Target,
};

/// Whose token signed a URL.
#[derive(Debug)]
pub(crate) enum Signer {
    /// Nobody's: it is no signed URL, or signed by none that is known.
    Nobody,
    /// That of a sandbox here.
    Here(Target),
    /// That of a sandbox on another node.
    There(Arc<dyn Nodes>, NodeId, Target),
}

/// What a node answers to another one that asks who signed a URL.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Told {
    /// A sandbox that it has.
    #[serde(rename = "sandboxID", default, skip_serializing_if = "Option::is_none")]
    pub(crate) sandbox: Option<String>,
}

/// A signed URL whose signer is looked for.
#[derive(Debug)]
pub(crate) struct Sought {
    signed: Signed,
    peer: Option<IpAddr>,
    /// The other nodes, and what they are to be asked. Absent where there are none, or it is one of them that asks.
    elsewhere: Option<(Arc<dyn Nodes>, String)>,
}

/// What has to be found out for a request: nothing where it is no signed URL. A peer may be wrong so many times.
pub(crate) fn sought(app: &App, request: &Request) -> Result<Option<Sought>, ApiError> {
    let (method, uri) = (request.method(), request.uri());
    let Some(signed) = Signed::read(method, uri) else { return Ok(None) };
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| peer.ip());
    if !app.misses.may_ask(peer, Instant::now()) {
        return Err(ApiError::wrong_too_often());
    }
    let nodes = app.config.nodes.clone().filter(|_| request.extensions().get::<FromPeer>().is_none());
    // Of equal names, the last one counts.
    let question = || format!("/admin/signer?{}&method={method}", uri.query().unwrap_or_default());
    Ok(Some(Sought { signed, peer, elsewhere: nodes.map(|nodes| (nodes, question())) }))
}

impl Sought {
    /// Looks for the sandbox, here first.
    pub(crate) async fn signer(self, app: &App) -> Result<Signer, ApiError> {
        let target = |id| Target { id, port: ENVD_PORT };
        if let Some(id) = app.host().whose_token(|token| self.signed.by(token)) {
            return Ok(Signer::Here(target(id)));
        }
        let mut missing = Vec::new();
        if let Some((nodes, question)) = self.elsewhere {
            let (Some(_own), Ok(_place)) = (app.misses.search(self.peer), app.searches.try_acquire()) else {
                return Err(ApiError::many_searches());
            };
            let identity = Identity { caller: None, admin: true };
            let is_it = |told: Told| told.sandbox?.parse::<SandboxId>().ok();
            match find(&nodes, &identity, &question, is_it).await {
                Found::On(node, id) => return Ok(Signer::There(nodes, node, target(id))),
                Found::Nowhere(others) => missing = others,
            }
        }
        // It may have come here while others were asked.
        if let Some(id) = app.host().whose_token(|token| self.signed.by(token)) {
            return Ok(Signer::Here(target(id)));
        }
        if !missing.is_empty() {
            // It may be right.
            return Err(ApiError::signer_unknown(&missing));
        }
        app.misses.missed(self.peer, Instant::now());
        Ok(Signer::Nobody)
    }
}
