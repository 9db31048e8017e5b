//! The key that paused sandboxes are encrypted with.

use std::sync::Arc;

use axum::{Json, extract::State};
use firkin_runtime::artifact::{RotateError, Rotation};

use crate::{App, error::ApiError};

/// `POST /encryption/rotate`: ours. Another key of the installation seals from now on.
pub(super) async fn rotate(State(app): State<Arc<App>>) -> Result<Json<Rotation>, ApiError> {
    app.host().rotate_key().await.map(Json).map_err(|error| match error {
        RotateError::NoKey => ApiError::conflict(error.to_string()),
        RotateError::Keys(_) | RotateError::Read(_) | RotateError::Rewrap(_) | RotateError::Unfinished => {
            ApiError::internal(&error)
        }
    })
}
