//! Named states of sandboxes. They are deleted like templates, because they are used like templates.

use axum::{
    Json as Reply,
    response::{IntoResponse, Response},
};
use firkin_runtime::{
    lineage::Descent,
    reference::{Reference, Sought},
    runtime::SnapshotInfo,
};
use firkin_wire::rest;
use http::{HeaderMap, StatusCode};

use super::{everywhere::Elsewhere, memory, sandboxes::next_token};
use crate::{
    auth::Caller,
    error::ApiError,
    extract::{Json, Sandbox},
    listing::{Query, page},
    shape,
    target::sandbox_id,
};

/// `POST /sandboxes/{id}/snapshots`.
pub(super) async fn take(
    caller: Caller,
    Sandbox(id): Sandbox,
    body: Json<rest::NewSnapshot>,
) -> Result<(StatusCode, Reply<rest::SnapshotInfo>), ApiError> {
    let snapshot = caller.runtime.snapshot_with(&id, body.value.name, memory(body.value.memory)).await?;
    Ok((StatusCode::CREATED, Reply(shape::snapshot(snapshot))))
}

/// `GET /snapshots`.
pub(super) async fn list(caller: Caller, query: Query) -> Result<Response, ApiError> {
    let window = query.window()?;
    let sandbox = query.get("sandboxID").map(sandbox_id).transpose()?;
    let mut found = caller.runtime.snapshots().await?;
    found.retain(|snapshot| sandbox.as_ref().is_none_or(|id| snapshot.sandbox_id == *id));
    if let Some(name) = query.get("name") {
        found = called(found, name).into_iter().collect();
    }
    let position = |snapshot: &SnapshotInfo| (snapshot.created_at, snapshot.snapshot_id.clone());
    let (shown, next) = page(found, &window, position);
    Ok((next_token(next.as_ref()), Reply(shown.into_iter().map(shape::snapshot).collect::<Vec<_>>())).into_response())
}

/// `GET /lineage`, a route of our own. Another node is told where the sandboxes of this one came from, and grows the trees.
pub(super) async fn lineage(caller: Caller, elsewhere: Elsewhere) -> Result<Response, ApiError> {
    if elsewhere.is_peer() {
        return Ok(Reply(caller.runtime.descents().await?).into_response());
    }
    let others = elsewhere.ask::<Vec<Descent>>().await;
    let mut headers = HeaderMap::new();
    others.tell(&mut headers);
    let others = others.parts.into_iter().flat_map(|(_, part)| part).collect();
    let forest = caller.runtime.lineage_with(others).await?;
    Ok((headers, Reply(forest.into_iter().map(shape::lineage).collect::<Vec<_>>())).into_response())
}

/// The one snapshot that is meant by `name`, which may leave out the team. With a tag it is that one; without, the newest of any tag. One
/// that has no name is called by its id, with or without the tag.
fn called(snapshots: Vec<SnapshotInfo>, name: &str) -> Option<SnapshotInfo> {
    let Sought { team, reference: wanted } = name.parse().ok()?;
    let means = |full: &Reference| full.name == wanted.name && (wanted.tag.is_none() || full.tag == wanted.tag);
    let has_id = |snapshot: &SnapshotInfo| snapshot.snapshot_id.parse::<Sought>().is_ok_and(|id| means(&id.reference));
    let of_team = |snapshot: &SnapshotInfo| team.as_ref().is_none_or(|team| *team == snapshot.owner);
    let is_called = |snapshot: &SnapshotInfo| of_team(snapshot) && (has_id(snapshot) || snapshot.names.iter().any(means));
    snapshots.into_iter().filter(is_called).max_by_key(|snapshot| (snapshot.created_at, snapshot.snapshot_id.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_found_by_every_form_of_its_name() {
        let snapshot = |id: &str, names: &[&str], second| SnapshotInfo {
            snapshot_id: id.into(),
            names: names.iter().map(|name| name.parse().unwrap()).collect(),
            owner: firkin_runtime::team::TeamId::first(),
            sandbox_id: "iabc".parse().unwrap(),
            created_at: jiff::Timestamp::from_second(second).unwrap(),
        };
        let all = vec![
            snapshot("firkin/name:default", &["name:default"], 1),
            snapshot("firkin/name:v2", &["name:v2"], 3),
            snapshot("firkin/name:v1", &["name:v1"], 2),
            snapshot("x7f3:default", &[], 4),
        ];
        for (name, is) in [
            ("name", Some("firkin/name:v2")),
            ("firkin/name", Some("firkin/name:v2")),
            ("FIRKIN/Name:V1", Some("firkin/name:v1")),
            ("name:v1", Some("firkin/name:v1")),
            ("firkin/name:v1", Some("firkin/name:v1")),
            ("name:default", Some("firkin/name:default")),
            ("x7f3", Some("x7f3:default")),
            ("x7f3:default", Some("x7f3:default")),
            ("name:v3", None),
            ("other/name", None),
            ("nam", None),
            ("", None),
        ] {
            assert_eq!(called(all.clone(), name).map(|found| found.snapshot_id).as_deref(), is, "{name}");
        }
    }
}
