//! Named states of sandboxes. They are deleted like templates, because they are used like templates.

use std::sync::Arc;

use axum::{
    Json as Reply,
    extract::State,
    response::{IntoResponse, Response},
};
use firkin_runtime::runtime::SnapshotInfo;
use firkin_wire::rest;
use http::StatusCode;

use super::{memory, sandboxes::next_token};
use crate::{
    App,
    error::ApiError,
    extract::{Json, Sandbox},
    listing::{Query, page},
    proxy::target::sandbox_id,
    shape,
};

/// `POST /sandboxes/{id}/snapshots`.
pub(super) async fn take(
    State(app): State<Arc<App>>,
    Sandbox(id): Sandbox,
    body: Json<rest::NewSnapshot>,
) -> Result<(StatusCode, Reply<rest::SnapshotInfo>), ApiError> {
    let snapshot = app.runtime.snapshot_with(&id, body.value.name, memory(body.value.memory)).await?;
    Ok((StatusCode::CREATED, Reply(shape::snapshot(snapshot))))
}

/// `GET /snapshots`.
pub(super) async fn list(State(app): State<Arc<App>>, query: Query) -> Result<Response, ApiError> {
    let window = query.window()?;
    let sandbox = query.get("sandboxID").map(sandbox_id).transpose()?;
    let name = query.get("name");
    let mut found = app.runtime.snapshots().await?;
    found.retain(|snapshot| {
        sandbox.as_ref().is_none_or(|id| snapshot.sandbox_id == *id) && name.is_none_or(|name| bears(snapshot, name))
    });
    let position = |snapshot: &SnapshotInfo| (snapshot.created_at, snapshot.snapshot_id.clone());
    let (shown, next) = page(found, &window, position);
    Ok((next_token(next.as_ref()), Reply(shown.into_iter().map(shape::snapshot).collect::<Vec<_>>())).into_response())
}

/// `GET /lineage`, a route of our own.
pub(super) async fn lineage(State(app): State<Arc<App>>) -> Result<Reply<Vec<rest::LineageNode>>, ApiError> {
    Ok(Reply(app.runtime.lineage().await?.into_iter().map(shape::lineage).collect()))
}

/// Whether a snapshot is called `name`, which may leave out the team, the tag, or both.
fn bears(snapshot: &SnapshotInfo, name: &str) -> bool {
    snapshot.snapshot_id == name
        || snapshot.names.iter().any(|full| {
            let short = full.rsplit_once('/').map_or(full.as_str(), |(_, short)| short);
            let untagged = |text: &'_ str| text.rsplit_once(':').map_or(text.to_owned(), |(name, _)| name.to_owned());
            full == name || short == name || untagged(full) == name || untagged(short) == name
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_answers_to_every_form_of_its_name() {
        let snapshot = SnapshotInfo {
            snapshot_id: "sabc".into(),
            names: vec!["team/name:v1".into()],
            sandbox_id: "iabc".parse().unwrap(),
            created_at: jiff::Timestamp::UNIX_EPOCH,
        };
        for (name, is) in [
            ("sabc", true),
            ("team/name:v1", true),
            ("name:v1", true),
            ("team/name", true),
            ("name", true),
            ("name:v2", false),
            ("other/name", false),
            ("nam", false),
        ] {
            assert_eq!(bears(&snapshot, name), is, "{name}");
        }
    }
}
