//! Secrets: their values come in and never go out.

use std::sync::Arc;

use axum::{
    Json as Reply,
    extract::{Path, State},
    response::{IntoResponse, Response},
};
use firkin_runtime::secrets::{SecretError, SecretInfo};
use firkin_wire::rest::storage::{NewSecret, Secret, SecretUpdate};
use http::StatusCode;

use super::sandboxes::next_token;
use crate::{
    App,
    error::ApiError,
    extract::Json,
    listing::{Query, page},
};

/// `POST /secrets`.
pub(super) async fn create(State(app): State<Arc<App>>, body: Json<NewSecret>) -> Result<(StatusCode, Reply<Secret>), ApiError> {
    let body = body.value;
    let made = app.runtime.secrets().create(&body.name, body.value, body.metadata.unwrap_or_default()).await?;
    Ok((StatusCode::CREATED, Reply(shown(made))))
}

/// `GET /secrets`, newest first.
pub(super) async fn list(State(app): State<Arc<App>>, query: Query) -> Result<Response, ApiError> {
    let window = query.window()?;
    let position = |secret: &SecretInfo| (secret.created_at, secret.id.clone());
    let (found, next) = page(app.runtime.secrets().list().await?, &window, position);
    Ok((next_token(next.as_ref()), Reply(found.into_iter().map(shown).collect::<Vec<_>>())).into_response())
}

/// `GET /secrets/{id or name}`.
pub(super) async fn detail(State(app): State<Arc<App>>, Path(reference): Path<String>) -> Result<Reply<Secret>, ApiError> {
    Ok(Reply(shown(app.runtime.secrets().get(&reference).await?)))
}

/// `POST /secrets/{id or name}`: a new value.
pub(super) async fn update(
    State(app): State<Arc<App>>,
    Path(reference): Path<String>,
    body: Json<SecretUpdate>,
) -> Result<Reply<Secret>, ApiError> {
    let body = body.value;
    Ok(Reply(shown(app.runtime.secrets().update(&reference, body.value, body.metadata).await?)))
}

/// `DELETE /secrets/{id or name}`.
pub(super) async fn destroy(State(app): State<Arc<App>>, Path(reference): Path<String>) -> Result<StatusCode, ApiError> {
    app.runtime.secrets().destroy(&reference).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn shown(secret: SecretInfo) -> Secret {
    Secret {
        secret_id: secret.id,
        name: secret.name,
        current_version: secret.version,
        metadata: secret.metadata,
        created_at: secret.created_at,
        updated_at: secret.updated_at,
    }
}

impl From<SecretError> for ApiError {
    fn from(error: SecretError) -> Self {
        match &error {
            SecretError::Name | SecretError::Value(_) | SecretError::Metadata => Self::bad_request(error.to_string()),
            SecretError::Exists(_) => Self::conflict(error.to_string()),
            SecretError::NotFound(_) => Self::not_found(error.to_string()),
            SecretError::Limit => Self::secret_limit(error.to_string()),
            SecretError::File { .. } | SecretError::Sealed { .. } => Self::internal(&error),
        }
    }
}
