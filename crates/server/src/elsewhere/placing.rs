//! Where a new sandbox is made: the nodes that may have it are asked one after the other, and each decides for itself.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::Request,
    response::{IntoResponse as _, Response},
};
use firkin_runtime::{capacity::ResourceBudget, store::KeyScope};
use futures::future::BoxFuture;
use http::{HeaderValue, Method, StatusCode, request::Parts};
use serde::Deserialize;

use super::forward::{PassError, pass};
use crate::{
    App,
    error::ApiError,
    extract::collect,
    nodes::{self, AtOnce, Identity, NoRoom, Nodes, Place, Placement, Said, SendError, Wanted},
};

/// Nodes that are asked for one sandbox.
const MOST_ASKED: usize = 3;

/// A create that any node may do.
pub(crate) struct Create {
    pub(crate) nodes: Arc<dyn Nodes>,
    pub(crate) identity: Identity,
    /// Whether the client came by HTTPS.
    pub(crate) encrypted: bool,
}

/// Of a create, what decides where it is done.
#[derive(Deserialize)]
struct Named {
    #[serde(rename = "templateID")]
    template: String,
    #[serde(default, rename = "volumeMounts")]
    volumes: Option<serde_json::Value>,
}

impl Named {
    /// Whether it names what each node has of its own: volumes.
    fn is_of_one_node(&self) -> bool {
        let has_any = |value: &serde_json::Value| value.as_array().is_none_or(|items| !items.is_empty()) && !value.is_null();
        self.volumes.as_ref().is_some_and(has_any)
    }
}

/// The answer of who made one, with why it was made there.
fn told(mut answer: Response, line: &str) -> Response {
    if answer.status().is_success()
        && let Ok(line) = HeaderValue::from_str(line)
    {
        answer.headers_mut().insert(nodes::PLACEMENT, line);
    }
    answer
}

/// Whether a request makes a sandbox.
pub(crate) fn is_create(request: &Request) -> bool {
    request.method() == Method::POST && matches!(request.uri().path(), "/sandboxes" | "/v2/sandboxes")
}

impl Create {
    /// Whether who asks may. What is refused to them is refused where they came in.
    pub(crate) fn may(identity: &Identity) -> bool {
        identity.caller.as_ref().is_some_and(|caller| caller.scope >= KeyScope::Sandboxes)
    }

    /// Has it done, by `here` on this node.
    pub(crate) async fn run(
        self,
        app: &App,
        request: Request,
        here: impl Fn(Request) -> BoxFuture<'static, Response>,
    ) -> Response {
        let (parts, body) = request.into_parts();
        let bytes = match collect(body, app.config.max_body_bytes).await {
            Ok(bytes) => bytes,
            Err(error) => return error.into_response(),
        };
        let again = || Request::from_parts(parts.clone(), Body::from(bytes.clone()));
        let wanted = self.wanted(app, &parts, &bytes).await;
        let is_understood = wanted.is_some();
        let (placement, budget) = match &wanted {
            Some((wanted, budget)) => (self.nodes.placement(wanted), *budget),
            // What cannot be understood, or is not there, is for the route to say.
            None => (Placement::default(), ResourceBudget::default()),
        };
        let (mut refused, mut refusing, mut full) = (None, Vec::new(), None);
        let places: Vec<&Place> = placement.asked.iter().take(MOST_ASKED).collect();
        // Where there is one, it may as well wait there at once.
        let at_once = (places.len() > 1).then_some(AtOnce(budget));
        for place in &places {
            match self.ask(app, place, (again(), at_once), &here).await {
                Ok(answer) if answer.extensions().get::<NoRoom>().is_none() => {
                    self.note(&answer, place, budget);
                    app.host().metrics().count_placement(if refusing.is_empty() { "first" } else { "next" });
                    return told(answer, &placement.line(place, &refusing));
                }
                Ok(answer) => {
                    // Where it can never be, it is of no use to wait.
                    if answer.status() == StatusCode::SERVICE_UNAVAILABLE {
                        self.nodes.answered(&place.node, Said::Full);
                        full.get_or_insert(*place);
                    }
                    refused = Some(answer);
                }
                Err(PassError::Send(error @ SendError::Unreached { .. })) => {
                    let node = &place.name;
                    tracing::warn!(node, error = %firkin_causes::chain(&error), "a node did not answer for a new sandbox");
                    refused.get_or_insert_with(|| ApiError::from(error).into_response());
                }
                // It may have been made.
                Err(PassError::Send(error)) => return ApiError::from(error).into_response(),
                Err(PassError::Request(error)) => return error.into_response(),
            }
            refusing.push(place.name.clone());
        }
        // All that could be asked are full: it waits where it was to be made first.
        if let Some(place) = full.filter(|_| at_once.is_some()) {
            match self.ask(app, place, (again(), None), &here).await {
                Ok(answer) if answer.extensions().get::<NoRoom>().is_none() => {
                    self.note(&answer, place, budget);
                    app.host().metrics().count_placement("waited");
                    return told(answer, &placement.line(place, &refusing));
                }
                Ok(answer) => refused = Some(answer),
                Err(PassError::Send(error)) => return ApiError::from(error).into_response(),
                Err(PassError::Request(error)) => return error.into_response(),
            }
        }
        let (outcome, answer) = match refused {
            Some(refused) => ("refused", refused),
            None if is_understood && !self.nodes.takes_new() => ("nobody", ApiError::no_node_takes_new().into_response()),
            None => ("here", here(again()).await),
        };
        app.host().metrics().count_placement(outcome);
        answer
    }

    /// Asks one node, which says at once that it is full where it is told what it is about.
    async fn ask(
        &self,
        app: &App,
        place: &Place,
        (mut request, at_once): (Request, Option<AtOnce>),
        here: &impl Fn(Request) -> BoxFuture<'static, Response>,
    ) -> Result<Response, PassError> {
        if place.node != *self.nodes.id() {
            if let Some(at_once) = at_once {
                request.headers_mut().insert(nodes::AT_ONCE, at_once.to_header());
            }
            return pass(app, &self.nodes, &place.node, (&self.identity, self.encrypted), request).await;
        }
        let room = at_once.map_or(Ok(()), |AtOnce(budget)| app.host().has_room(&budget));
        Ok(match room {
            Ok(()) => here(request).await,
            Err(short) => ApiError::full(&short).into_response(),
        })
    }

    fn note(&self, answer: &Response, place: &Place, budget: ResourceBudget) {
        if answer.status().is_success() {
            self.nodes.answered(&place.node, Said::Made(budget.memory_mib));
        } else if answer.status().is_server_error() {
            self.nodes.answered(&place.node, Said::Failed);
        }
    }

    /// What it needs. `None` where there is no such template, or nothing is built of it.
    async fn wanted(&self, app: &App, parts: &Parts, body: &[u8]) -> Option<(Wanted, ResourceBudget)> {
        let caller = self.identity.caller.as_ref()?;
        let named: Named = serde_json::from_slice(body).ok()?;
        if named.is_of_one_node() {
            return None;
        }
        let found = app.host().within(caller.team.clone()).template(&named.template).await.ok()??;
        let once = parts.headers.get("idempotency-key").and_then(|key| key.to_str().ok());
        let wanted = Wanted {
            build: found.build_id,
            memory_mib: found.budget.memory_mib,
            runs_on: found.runs_on,
            once: once.map(|key| format!("{} {key}", caller.team)),
        };
        Some((wanted, found.budget))
    }
}
