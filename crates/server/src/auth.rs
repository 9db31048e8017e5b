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
use http::HeaderMap;

use crate::{App, error::ApiError};

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
