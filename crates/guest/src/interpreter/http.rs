//! The interpreter's routes. Errors are plain text, as the contract has it.
//!
//! A cell is code that runs as root, so `/execute` demands the sandbox's token wherever the sandbox has one: a host name is no
//! secret. E2B's clients send it there and, in their newest versions, to no other route, so `/contexts` must do without it; a web
//! page of elsewhere (a browser names it in `Origin`) must not, and reads answers only with it. A sandbox without one is everybody's.
//! `/warm-up` is ours, for the template's ready command: it goes the way of a cell and leaves no trace, so that the first cell of
//! a user finds code and memory that have been used. Under emulation only what has run since the restore is translated.

use std::{collections::BTreeMap, convert::Infallible, net::SocketAddr, sync::Arc};

use axum::{
    Json, Router,
    body::Body,
    extract::{ConnectInfo, DefaultBodyLimit, Path, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use firkin_causes::chain;
use futures::StreamExt;
use serde::{Deserialize, de::DeserializeOwned};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::{
    contexts::{Context, ContextError, Contexts},
    execution::execute,
    kernel::{Cell, StartError},
    language::{Language, UnknownLanguage},
};
use crate::envd::{ACCESS_TOKEN, Settings, Token, token_of};

/// The largest request: code with its data in it.
const MAX_BODY_BYTES: usize = 32 << 20;

/// Lines on their way to the client.
const LINES_IN_FLIGHT: usize = 4;

/// The interpreter's routes.
pub(super) fn routes(contexts: Contexts) -> Router {
    let owner = contexts.clone();
    let may_read = move |_: &HeaderValue, request: &Parts| is_shown_to_pages(request, &owner.settings());
    Router::new()
        .route("/health", get(health))
        .route("/execute", post(run))
        .route("/warm-up", post(warm_up))
        .route("/contexts", get(list).post(create))
        .route("/contexts/{id}/restart", post(restart))
        .route("/contexts/{id}", axum::routing::delete(remove))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(middleware::from_fn_with_state(contexts.clone(), admit))
        .layer(CorsLayer::permissive().allow_origin(AllowOrigin::predicate(may_read)))
        .with_state(contexts)
}

/// Whether a page's request bears the token, or, before it is sent, is going to: any other gets no answer to read where there is one.
fn is_shown_to_pages(request: &Parts, settings: &Settings) -> bool {
    if settings.access_token.is_none() {
        return true;
    }
    let announced = request.headers.get_all(header::ACCESS_CONTROL_REQUEST_HEADERS).iter();
    let mut announced = announced.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    request.headers.contains_key(ACCESS_TOKEN) || announced.any(|name| name.trim().eq_ignore_ascii_case(ACCESS_TOKEN))
}

/// Refuses who may not.
async fn admit(
    State(contexts): State<Contexts>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    if is_admitted(request.uri().path(), request.headers(), peer, &contexts.settings()) {
        return next.run(request).await;
    }
    Refusal::Token.into_response()
}

fn is_admitted(path: &str, headers: &HeaderMap, peer: SocketAddr, settings: &Settings) -> bool {
    let local = peer.ip().to_canonical().is_loopback();
    match token_of(headers, settings) {
        _ if settings.access_token.is_none() => true,
        Token::Matches => true,
        Token::Differs => false,
        Token::Missing => match path {
            "/health" => true,
            "/execute" => false,
            // The template's ready command, which runs inside.
            "/warm-up" => local,
            _ => local || !headers.contains_key(header::ORIGIN),
        },
    }
}

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("cannot read the request")]
    Malformed(#[source] serde_json::Error),
    #[error("Only one of context_id or language can be provided")]
    ContextAndLanguage,
    #[error("Context {0} not found")]
    NoContext(String),
    #[error("cannot set the variable `{0}`: no program can be given it")]
    Variable(String),
    #[error("cannot serve the code interpreter: the request does not carry this sandbox's access token")]
    Token,
    #[error(transparent)]
    Language(#[from] UnknownLanguage),
    #[error(transparent)]
    Context(#[from] ContextError),
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::Malformed(_) | Self::Variable(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::ContextAndLanguage => StatusCode::BAD_REQUEST,
            Self::NoContext(_) => StatusCode::NOT_FOUND,
            Self::Token => StatusCode::UNAUTHORIZED,
            Self::Context(ContextError::TooMany) => StatusCode::CONFLICT,
            Self::Context(ContextError::Start(StartError::Workdir(_))) | Self::Language(_) | Self::Context(_) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        };
        (status, chain(&self)).into_response()
    }
}

#[derive(Debug, Deserialize)]
struct Execute {
    code: String,
    #[serde(default)]
    context_id: Option<String>,
    #[serde(default)]
    language: Option<String>,
    #[serde(default)]
    env_vars: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Default, Deserialize)]
struct Create {
    #[serde(default)]
    language: Option<String>,
    #[serde(default)]
    cwd: Option<String>,
}

async fn health(State(contexts): State<Contexts>) -> Response {
    if contexts.is_ready() {
        return Json("OK").into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, "the Python kernel is starting").into_response()
}

async fn run(State(contexts): State<Contexts>, body: Bytes) -> Result<Response, Refusal> {
    let request: Execute = parse(&body)?;
    let settings = contexts.settings();
    let context = match (request.context_id, request.language) {
        (Some(_), Some(_)) => return Err(Refusal::ContextAndLanguage),
        (Some(id), None) => contexts.find(&id).ok_or(Refusal::NoContext(id))?,
        (None, language) => contexts.default_of(Language::named(language.as_deref(), &settings.env)?),
    };
    let env = request.env_vars.unwrap_or_default();
    if let Some((name, _)) = env.iter().find(|(name, value)| !can_be_set(name, value)) {
        return Err(Refusal::Variable(name.clone()));
    }
    let known = settings.env.iter().filter(|(name, value)| can_be_set(name, value));
    let globals = Some(known.map(|(name, value)| (name.clone(), value.clone())).collect());
    Ok(stream(contexts, context, Cell { code: request.code, env, globals, warm: false }))
}

async fn warm_up(State(contexts): State<Contexts>) -> Response {
    let context = contexts.default_of(Language::Python);
    stream(contexts, context, Cell::warm())
}

/// Whether `execve` and `setenv` take it.
fn can_be_set(name: &str, value: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0')
}

/// Runs a cell; the answer is what it tells.
fn stream(contexts: Contexts, context: Arc<Context>, cell: Cell) -> Response {
    let (lines, receiver) = mpsc::channel(LINES_IN_FLIGHT);
    // Not joined: it frees the context when the cell is over, long after a client that has gone.
    tokio::spawn(execute(contexts, context, cell, lines));
    let body = Body::from_stream(ReceiverStream::new(receiver).map(Ok::<_, Infallible>));
    ([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}

async fn list(State(contexts): State<Contexts>) -> Response {
    Json(contexts.shown()).into_response()
}

async fn create(State(contexts): State<Contexts>, body: Bytes) -> Result<Response, Refusal> {
    let request: Create = if body.is_empty() { Create::default() } else { parse(&body)? };
    let language = Language::named(request.language.as_deref(), &contexts.settings().env)?;
    Ok(Json(contexts.create(language, request.cwd).await?).into_response())
}

async fn restart(State(contexts): State<Contexts>, Path(id): Path<String>) -> Result<Response, Refusal> {
    let context = contexts.find(&id).ok_or(Refusal::NoContext(id))?;
    contexts.restart(&context).await?;
    Ok(Json(()).into_response())
}

async fn remove(State(contexts): State<Contexts>, Path(id): Path<String>) -> Result<Response, Refusal> {
    if contexts.remove(&id) { Ok(Json(()).into_response()) } else { Err(Refusal::NoContext(id)) }
}

/// Whatever the content type says: clients differ.
fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(Refusal::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_the_token_a_stranger_lists_and_a_page_does_not() {
        let settings = Settings { access_token: Some("secret".to_owned()), ..Settings::default() };
        let (own, stranger) = ("127.0.0.1:9".parse().unwrap(), "10.0.0.1:9".parse().unwrap());
        let bare = HeaderMap::new();
        let page = HeaderMap::from_iter([(header::ORIGIN, "https://evil.example".parse().unwrap())]);
        for (path, headers, peer, expected) in [
            ("/health", &page, stranger, true),
            ("/execute", &bare, stranger, false),
            ("/execute", &bare, own, false),
            ("/warm-up", &bare, own, true),
            ("/warm-up", &bare, stranger, false),
            ("/contexts", &bare, stranger, true),
            ("/contexts", &page, stranger, false),
            ("/contexts/x/restart", &page, own, true),
        ] {
            assert_eq!(is_admitted(path, headers, peer, &settings), expected, "{path} {headers:?} {peer}");
            assert!(is_admitted(path, headers, peer, &Settings::default()), "a sandbox without a token");
        }
        let right = HeaderMap::from_iter([(ACCESS_TOKEN.parse().unwrap(), "secret".parse().unwrap())]);
        let wrong = HeaderMap::from_iter([(ACCESS_TOKEN.parse().unwrap(), "other".parse().unwrap())]);
        assert!(is_admitted("/execute", &right, stranger, &settings));
        assert!(!is_admitted("/contexts", &wrong, own, &settings));
    }
}
