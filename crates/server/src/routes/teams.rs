//! The one team that a server has, for clients that choose among teams before they do anything else.

use std::sync::Arc;

use axum::{Json as Reply, extract::State};
use firkin_runtime::runtime::TEAM;
use firkin_wire::rest;
use http::{HeaderMap, header};

use crate::{App, auth, error::ApiError};

/// `GET /teams`. The CLI sends what it has as a bearer token; here that is an API key like any other, which is given back as the
/// team's: the server itself keeps digests only.
pub(super) async fn list(State(app): State<Arc<App>>, headers: HeaderMap) -> Result<Reply<Vec<rest::Team>>, ApiError> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let mut shown = HeaderMap::new();
    if let Some(key) = bearer.and_then(|key| key.parse().ok()).or_else(|| headers.get("x-api-key").cloned()) {
        shown.insert("x-api-key", key);
    }
    auth::check(&app, &shown)?;
    let key = shown.get("x-api-key").and_then(|key| key.to_str().ok()).unwrap_or_default();
    let team = rest::Team { team_id: TEAM.into(), name: TEAM.into(), api_key: key.into(), is_default: true };
    Ok(Reply(vec![team]))
}
