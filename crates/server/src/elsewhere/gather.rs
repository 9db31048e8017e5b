//! Asking all nodes for what each has: for lists, which say who did not answer instead of failing, and for what one of them has.

use std::{sync::Arc, time::Duration};

use axum::body::Body;
use futures::{StreamExt as _, future::join_all, stream::FuturesUnordered};
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use serde::de::DeserializeOwned;

use crate::nodes::{IDENTITY, Identity, MISSING, NodeId, Nodes, Other, SendError};

/// How long a list waits for a node. One that is there answers from memory.
const DEADLINE: Duration = Duration::from_secs(5);

/// Longest part of a list: a page of sandboxes, each with as much metadata as it may have, is far shorter.
const MAX_BYTES: usize = 32 << 20;

/// Longest answer of who is asked for one thing.
const MAX_FOUND_BYTES: usize = 4 << 10;

/// What nodes are asked.
#[derive(Debug, Clone, Copy)]
struct Question<'a> {
    identity: &'a Identity,
    path: &'a str,
    /// Longest answer.
    most_bytes: usize,
    /// Whether who asks has shown a key or token: what anybody at all can cause is not written into the log.
    is_known: bool,
}

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
    let question = Question { identity, path, most_bytes: MAX_BYTES, is_known: true };
    for answer in join_all(nodes.others().into_iter().map(|other| ask_in_time(nodes, other, question))).await {
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
    let question = Question { identity, path, most_bytes: MAX_FOUND_BYTES, is_known: false };
    let mut asked: FuturesUnordered<_> = others.map(|other| ask_in_time(nodes, other, question)).collect();
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
    question: Question<'_>,
) -> Result<(NodeId, HeaderMap, T), String> {
    if !alive {
        return Err(name);
    }
    let error = match tokio::time::timeout(DEADLINE, ask(nodes, &id, question)).await {
        Ok(Ok((head, part))) => return Ok((id, head, part)),
        Ok(Err(error)) => error,
        Err(_) => AskError::Late,
    };
    let (path, error) = (route(question.path), firkin_causes::chain(&error));
    match question.is_known {
        true => tracing::warn!(node = %id, path, error, "a node did not answer what all are asked"),
        false => tracing::debug!(node = %id, path, error, "a node did not answer what all are asked"),
    }
    Err(name)
}

/// A path without its query, which may open something.
fn route(path: &str) -> &str {
    path.split_once('?').map_or(path, |(path, _)| path)
}

/// Why there is no answer of a node.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("it did not answer in time")]
    Late,
    #[error("it cannot be asked that")]
    Request(#[from] http::Error),
    #[error(transparent)]
    Send(#[from] SendError),
    #[error("it answered with {0}")]
    Refused(StatusCode),
    #[error("its answer broke off, or is too long")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("its answer cannot be understood")]
    Answer(#[from] serde_json::Error),
}

/// Its answer, or why there is none.
async fn ask<T: DeserializeOwned>(
    nodes: &Arc<dyn Nodes>,
    node: &NodeId,
    Question { identity, path, most_bytes, .. }: Question<'_>,
) -> Result<(HeaderMap, T), AskError> {
    let request = Request::get(path).header("host", "localhost").header(IDENTITY, identity.to_header()).body(Body::empty())?;
    let (parts, body) = nodes.send(node, request).await?.into_parts();
    if parts.status != StatusCode::OK {
        return Err(AskError::Refused(parts.status));
    }
    let body = Limited::new(body, most_bytes).collect().await.map_err(AskError::Body)?.to_bytes();
    Ok((parts.headers, serde_json::from_slice(&body)?))
}
