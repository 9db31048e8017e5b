//! `/files`: contents up and down, in bounded memory, and their composition.
//!
//! The only route that a signed URL opens, so it checks its own authorisation: a token in the header, or a signature over path,
//! operation, user and token.

mod compose;
mod download;
mod encoding;
#[cfg(any(test, feature = "fuzzing"))]
pub(super) mod fuzzing;
mod multipart;
mod signature;
mod upload;

use axum::{
    body::Body,
    extract::{Query, Request, State, rejection::QueryRejection},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use firkin_causes::chain;
use serde::Deserialize;

use self::signature::Operation;
use super::{
    auth,
    error::ApiError,
    paths::PathError,
    state::{EnvdState, Settings},
    users::{User, UserDb, UserError},
};

pub(super) use self::compose::compose;

/// Query parameters of a request to `/files`. Unknown parameters are ignored.
#[derive(Debug, Default, Deserialize)]
pub(super) struct FilesQuery {
    path: Option<String>,
    username: Option<String>,
    signature: Option<String>,
    signature_expiration: Option<i64>,
}

impl From<UserError> for ApiError {
    fn from(error: UserError) -> Self {
        match error {
            UserError::Unknown(_) => Self::new(StatusCode::UNAUTHORIZED, error.to_string()),
            UserError::Read(_) => Self::internal(chain(&error)),
        }
    }
}

impl From<PathError> for ApiError {
    fn from(error: PathError) -> Self {
        Self::bad_request(error.to_string())
    }
}

impl From<QueryRejection> for ApiError {
    fn from(rejection: QueryRejection) -> Self {
        Self::bad_request(rejection.body_text())
    }
}

/// `GET /files`.
pub(super) async fn get(
    State(state): State<EnvdState>,
    query: Result<Query<FilesQuery>, QueryRejection>,
    headers: HeaderMap,
) -> Response {
    let answer = async {
        let Query(query) = query?;
        let settings = state.settings();
        signature::authorise(&headers, &query, Operation::Read, &settings)?;
        let user = user_of(&headers, query.username.as_deref(), &settings)?;
        let path = super::paths::resolve(query.path.as_deref().unwrap_or_default(), &user, settings.default_workdir.as_deref())?;
        download::serve(path, &headers).await
    };
    answer.await.unwrap_or_else(ApiError::into_response)
}

/// `POST /files`.
pub(super) async fn post(
    State(state): State<EnvdState>,
    query: Result<Query<FilesQuery>, QueryRejection>,
    request: Request<Body>,
) -> Response {
    let answer = async {
        let Query(query) = query?;
        let settings = state.settings();
        signature::authorise(request.headers(), &query, Operation::Write, &settings)?;
        let user = user_of(request.headers(), query.username.as_deref(), &settings)?;
        let target = upload::Target { user, default_workdir: settings.default_workdir.clone(), path: query.path };
        upload::receive(target, request).await
    };
    answer.await.unwrap_or_else(ApiError::into_response)
}

/// The user that the request names, by parameter before basic authentication, else the sandbox's default.
fn user_of(headers: &HeaderMap, name: Option<&str>, settings: &Settings) -> Result<User, UserError> {
    let db = UserDb::load()?;
    match name.filter(|name| !name.is_empty()) {
        Some(name) => db.user(name),
        None => auth::user_of(headers, settings, &db),
    }
}

/// Runs what touches the disk where blocking is allowed.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, ApiError> + Send + 'static) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| ApiError::internal(error.to_string()))?
}

/// The answer to a full disk.
fn no_space(expected_bytes: Option<u64>) -> ApiError {
    let text = "not enough disk space available";
    let message = expected_bytes.map_or_else(|| text.to_owned(), |bytes| format!("attempted to write {bytes} bytes: {text}"));
    ApiError::new(StatusCode::INSUFFICIENT_STORAGE, message)
}
