//! Secrets: their values come in and never go out.

use axum::{
    Json as Reply,
    extract::Path,
    response::{IntoResponse, Response},
};
use firkin_runtime::secrets::{SecretError, SecretInfo};
use firkin_wire::rest::storage::{NewSecret, Secret, SecretUpdate};
use http::StatusCode;

use super::sandboxes::next_token;
use crate::{
    auth::Caller,
    error::ApiError,
    extract::Json,
    listing::{Query, page},
};

/// `POST /secrets`.
pub(super) async fn create(caller: Caller, body: Json<NewSecret>) -> Result<(StatusCode, Reply<Secret>), ApiError> {
    let body = body.value;
    let made = caller.runtime.secrets().create(&body.name, body.value, body.metadata.unwrap_or_default()).await?;
    Ok((StatusCode::CREATED, Reply(shown(made))))
}

/// `GET /secrets`, newest first.
pub(super) async fn list(caller: Caller, query: Query) -> Result<Response, ApiError> {
    let window = query.window()?;
    let position = |secret: &SecretInfo| (secret.created_at, secret.id.clone());
    let (found, next) = page(caller.runtime.secrets().list().await?, &window, position);
    Ok((next_token(next.as_ref()), Reply(found.into_iter().map(shown).collect::<Vec<_>>())).into_response())
}

/// `GET /secrets/{id or name}`.
pub(super) async fn detail(caller: Caller, Path(reference): Path<String>) -> Result<Reply<Secret>, ApiError> {
    Ok(Reply(shown(caller.runtime.secrets().get(&reference).await?)))
}

/// `POST /secrets/{id or name}`: a new value.
pub(super) async fn update(
    caller: Caller,
    Path(reference): Path<String>,
    body: Json<SecretUpdate>,
) -> Result<Reply<Secret>, ApiError> {
    let body = body.value;
    Ok(Reply(shown(caller.runtime.secrets().update(&reference, body.value, body.metadata).await?)))
}

/// `DELETE /secrets/{id or name}`.
pub(super) async fn destroy(caller: Caller, Path(reference): Path<String>) -> Result<StatusCode, ApiError> {
    caller.runtime.secrets().destroy(&reference).await?;
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
            SecretError::Name | SecretError::Value(_) | SecretError::Metadata | SecretError::MetadataBytes(_) => {
                Self::bad_request(error.to_string())
            }
            SecretError::Exists(_) => Self::conflict(error.to_string()),
            SecretError::NotFound(_) => Self::not_found(error.to_string()),
            SecretError::Limit => Self::secret_limit(error.to_string()),
            SecretError::Unreadable(_) => Self::secret_unreadable(error.to_string()),
            SecretError::File { .. } | SecretError::Sealed { .. } | SecretError::Shared(_) => Self::internal(&error),
        }
    }
}
