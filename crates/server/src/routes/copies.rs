//! Second copies of what holds paused sandboxes: a node asks another to keep one. Ours, and for nodes alone.

use std::sync::Arc;

use axum::extract::State;
use http::{Extensions, StatusCode};

use crate::{App, error::ApiError, listing::Query, nodes::FromPeer};

/// `POST /admin/copies?artifact=`, of another node. Answered once it is whole here and on record.
pub(super) async fn keep(State(app): State<Arc<App>>, extensions: Extensions, query: Query) -> Result<StatusCode, ApiError> {
    let artifact = query.get("artifact").and_then(|id| id.parse().ok());
    let artifact = artifact.ok_or_else(|| ApiError::bad_request("`artifact` is not the id of an artifact"))?;
    if extensions.get::<FromPeer>().is_none() {
        return Err(ApiError::forbidden("only nodes of the cluster ask for this".to_owned()));
    }
    app.host().keep_copy(&artifact).await?;
    Ok(StatusCode::NO_CONTENT)
}
