//! Asking all nodes for what each has: for lists, which say who did not answer instead of failing, and for what one of them has.

use std::{sync::Arc, time::Duration};

use axum::body::Body;
use futures::{StreamExt as _, future::join_all, stream::FuturesUnordered};
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use serde::de::DeserializeOwned;

use crate::nodes::{IDENTITY, Identity, MISSING, NodeId, Nodes, Other};

/// How long a list waits for a node. One that is there answers from memory.
const DEADLINE: Duration = Duration::from_secs(5);

/// Longest part of a list: a page of sandboxes, each with as much metadata as it may have, is far shorter.
const MAX_BYTES: usize = 32 << 20;

/// What other nodes have.
#[derive(Debug)]
pub(crate) struct Gathered<T> {
    /// Of each that answered, with the head of its answer.
    pub(crate) parts: Vec<(HeaderMap, T)>,
    /// Names of those that did not.
    missing: Vec<String>,
}

impl<T> Gathered<T> {
    /// Of a server that has no others.
    pub(crate) fn none() -> Self {
        Self { parts: Vec::new(), missing: Vec::new() }
    }

    /// Says in the head of a list who is missing in it.
    pub(crate) fn tell(&self, headers: &mut HeaderMap) {
        if self.missing.is_empty() {
            return;
        }
        if let Ok(names) = HeaderValue::try_from(self.missing.join(",")) {
            headers.insert(MISSING, names);
        }
    }
}

/// Has all other nodes answer this path.
pub(crate) async fn gather<T: DeserializeOwned>(nodes: &Arc<dyn Nodes>, identity: &Identity, path: &str) -> Gathered<T> {
    let mut gathered = Gathered::none();
    for answer in join_all(nodes.others().into_iter().map(|other| ask_in_time(nodes, other, identity, path))).await {
        match answer {
            Ok((_, head, part)) => gathered.parts.push((head, part)),
            Err(name) => gathered.missing.push(name),
        }
    }
    gathered
}

/// Where something is that one node has at most.
#[derive(Debug)]
pub(crate) enum Found<T> {
    /// On this one.
    On(NodeId, T),
    /// On none of those that answered; the names of the others.
    Nowhere(Vec<String>),
}

/// Has other nodes answer this path until one of the answers is what is looked for.
pub(crate) async fn find<T: DeserializeOwned, U>(
    nodes: &Arc<dyn Nodes>,
    identity: &Identity,
    path: &str,
    is_it: impl Fn(T) -> Option<U>,
) -> Found<U> {
    let others = nodes.others().into_iter();
    let mut asked: FuturesUnordered<_> = others.map(|other| ask_in_time(nodes, other, identity, path)).collect();
    let mut missing = Vec::new();
    while let Some(answer) = asked.next().await {
        match answer {
            Ok((node, _, part)) => {
                if let Some(found) = is_it(part) {
                    return Found::On(node, found);
                }
            }
            Err(name) => missing.push(name),
        }
    }
    missing.sort_unstable();
    Found::Nowhere(missing)
}

/// What a node answers, or the name of one that does not.
async fn ask_in_time<T: DeserializeOwned>(
    nodes: &Arc<dyn Nodes>,
    Other { id, name, alive, .. }: Other,
    identity: &Identity,
    path: &str,
) -> Result<(NodeId, HeaderMap, T), String> {
    if !alive {
        return Err(name);
    }
    match tokio::time::timeout(DEADLINE, ask(nodes, &id, identity, path)).await {
        Ok(Some((head, part))) => Ok((id, head, part)),
        Ok(None) => Err(name),
        Err(_) => {
            tracing::warn!(node = %id, path = route(path), "a node did not answer for a list in time");
            Err(name)
        }
    }
}

/// A path without its query, which may open something.
fn route(path: &str) -> &str {
    path.split_once('?').map_or(path, |(path, _)| path)
}

async fn ask<T: DeserializeOwned>(
    nodes: &Arc<dyn Nodes>,
    node: &NodeId,
    identity: &Identity,
    path: &str,
) -> Option<(HeaderMap, T)> {
    let request = Request::get(path).header("host", "localhost").header(IDENTITY, identity.to_header()).body(Body::empty());
    let request = request.ok()?;
    let response = match nodes.send(node, request).await {
        Ok(response) => response,
        Err(error) => {
            tracing::warn!(%node, path = route(path), error = %firkin_causes::chain(&error), "a node did not answer for a list");
            return None;
        }
    };
    let (parts, body) = response.into_parts();
    if parts.status != StatusCode::OK {
        tracing::warn!(%node, path = route(path), status = parts.status.as_u16(), "a node refused a part of a list");
        return None;
    }
    let body = Limited::new(body, MAX_BYTES).collect().await.ok()?.to_bytes();
    match serde_json::from_slice(&body) {
        Ok(part) => Some((parts.headers, part)),
        Err(error) => {
            tracing::warn!(%node, path = route(path), %error, "a node's part of a list cannot be understood");
            None
        }
    }
}
