//! Whether the server serves, and, for who holds a key, what keeps its machines from its host.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use http::HeaderMap;
use serde_json::json;

use crate::{App, auth, error::ApiError, listing::Query};

/// `GET /health`, with `?details` as JSON. The plain form is open, since load balancers have no key.
pub(super) async fn health(State(app): State<Arc<App>>, query: Query, headers: HeaderMap) -> Result<Response, ApiError> {
    if !query.has("details") {
        return Ok("Health check successful".into_response());
    }
    // It is of the host, and tells of all of its teams.
    auth::check_for_host(&app, &headers)?;
    let safeguards = app.host().safeguards();
    let held: Vec<&str> = safeguards.iter().filter(|one| one.lacking.is_none()).map(|one| one.name.as_str()).collect();
    let lacking: Vec<_> =
        safeguards.iter().filter_map(|one| Some(json!({"part": one.name, "reason": one.lacking.as_ref()?}))).collect();
    let encryption = app.host().encryption().await.map_err(|error| ApiError::internal(&error))?;
    Ok(Json(json!({
        "acceleration": app.host().acceleration().to_string(),
        "engines": app.host().accelerations().iter().map(|one| one.word()).collect::<Vec<_>>(),
        "jail": {"held": held, "lacking": lacking},
        "catalog": app.host().catalog().await,
        "encryption": {"enabled": encryption.enabled, "key": encryption.key, "sealed": encryption.sealed},
    }))
    .into_response())
}
