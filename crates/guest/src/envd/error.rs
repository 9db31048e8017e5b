//! Errors of the plain HTTP routes: always `{"code": status, "message": text}`.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Serialize;

/// One error, as the client sees it.
#[derive(Debug)]
pub(super) struct ApiError {
    /// HTTP status, repeated in the body.
    pub(super) status: StatusCode,
    /// The message for the client.
    pub(super) message: String,
}

impl ApiError {
    /// An error of this status.
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// The request itself is wrong.
    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// Something failed that should not have.
    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct Body {
            code: u16,
            message: String,
        }
        (self.status, Json(Body { code: self.status.as_u16(), message: self.message })).into_response()
    }
}
