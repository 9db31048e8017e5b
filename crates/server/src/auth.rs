//! Who may use the control plane: whoever holds one of the server's API keys.
//!
//! The runtime keeps keys hashed and compares digests in constant time; nothing here sees a stored key. The data plane is not
//! guarded by API keys: envd demands its own token, and other ports are public by contract.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use firkin_wire::headers::{ACCESS_TOKEN, API_KEY};
use http::{HeaderMap, Method, header};

use crate::{App, error::ApiError, listing::Query};

/// Longest key worth hashing: `e2b_` and 40 digits, with room for other issuers' forms.
const MAX_KEY_BYTES: usize = 256;

/// Lets a request through when it carries a valid key.
pub(crate) async fn demand_key(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    match check(&app, request.headers()) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

/// Whether whoever sends these headers holds a valid key, or the token of any sandbox.
pub(crate) fn is_known(app: &App, headers: &HeaderMap) -> bool {
    let token = || headers.get(ACCESS_TOKEN)?.to_str().ok().filter(|token| token.len() <= MAX_KEY_BYTES);
    check(app, headers).is_ok() || token().is_some_and(|token| app.runtime.with_token(token).is_some())
}

/// Whether a request brings a secret to a route that asks for one of its own: the signature of an upload's link, a volume's token, a key
/// that is borne as a token. Whether it is the right one is for the route to see, which answers nothing before.
pub(crate) fn brings_own(request: &Request) -> bool {
    let mut path = request.uri().path().split('/').skip(1);
    match (path.next(), path.next(), path.next(), path.next(), path.next()) {
        (Some("volumecontent"), Some(_), Some(_), None, None) | (Some("teams"), None, None, None, None) => {
            request.headers().get(header::AUTHORIZATION).is_some_and(|value| value.as_bytes().starts_with(b"Bearer "))
        }
        (Some("templates"), Some(_), Some("files"), Some(_), None) => {
            request.method() == Method::PUT && Query::parse(request.uri().query()).get("signature").is_some()
        }
        _ => false,
    }
}

/// Whether these headers hold a valid key.
pub(crate) fn check(app: &App, headers: &HeaderMap) -> Result<(), ApiError> {
    let key = headers.get(API_KEY).ok_or_else(|| ApiError::unauthorized("header `X-API-Key` is missing"))?;
    let key = key.to_str().ok().filter(|key| key.len() <= MAX_KEY_BYTES);
    if key.is_some_and(|key| app.runtime.authenticate(key)) {
        Ok(())
    } else {
        Err(ApiError::unauthorized("the API key is not valid"))
    }
}
