//! Tags of templates: each stands for one build of its template.

use axum::{Json as Reply, extract::Path};
use firkin_runtime::template::{TagInfo, TemplateInfo};
use firkin_wire::rest::{
    self,
    tags::{TagAssignment, TagAssignments, TagExists, TagGroup, TagGroups, TagsCount},
};
use http::StatusCode;

use crate::{
    auth::Caller,
    error::ApiError,
    extract::{Json, Reference},
    listing::Query,
};

/// Tags on a page of groups, at most; half of that by default.
const MAX_GROUPS: usize = 50;

/// `POST /templates/tags`.
pub(super) async fn assign(
    caller: Caller,
    body: Json<rest::AssignTags>,
) -> Result<(StatusCode, Reply<rest::AssignedTags>), ApiError> {
    let tagged = caller.runtime.assign_tags(&body.value.target, body.value.tags).await?;
    Ok((StatusCode::CREATED, Reply(rest::AssignedTags { tags: tagged.tags, build_id: tagged.build_id })))
}

/// `DELETE /templates/tags`, with a body.
pub(super) async fn remove(caller: Caller, body: Json<rest::RemoveTags>) -> Result<StatusCode, ApiError> {
    caller.runtime.remove_tags(&body.value.name, body.value.tags).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `GET /templates/{id}/tags`.
pub(super) async fn list(caller: Caller, Reference(reference): Reference) -> Result<Reply<Vec<rest::TemplateTag>>, ApiError> {
    let template = find(&caller, &reference).await?;
    let shown = |tag: TagInfo| rest::TemplateTag { tag: tag.tag, build_id: tag.build_id, created_at: tag.assigned_at };
    Ok(Reply(template.tags.into_iter().map(shown).collect()))
}

/// `GET /templates/{id}/tags/count`.
pub(super) async fn count(caller: Caller, Reference(reference): Reference) -> Result<Reply<TagsCount>, ApiError> {
    Ok(Reply(TagsCount { total: find(&caller, &reference).await?.tags.len() }))
}

/// `GET /templates/{id}/tags/exists?tag=`.
pub(super) async fn exists(caller: Caller, Reference(reference): Reference, query: Query) -> Result<Reply<TagExists>, ApiError> {
    let tag = query.get("tag").filter(|tag| !tag.is_empty()).ok_or_else(|| ApiError::bad_request("`tag` is required"))?;
    let normalized_tag = tag.trim().to_lowercase();
    let template = find(&caller, &reference).await?;
    let exists = template.tags.iter().any(|known| known.tag == normalized_tag);
    Ok(Reply(TagExists { exists, normalized_tag }))
}

/// `GET /templates/{id}/tags/{tag}/assignments`. There is one: what the tag names now.
pub(super) async fn assignments(
    caller: Caller,
    Path((reference, tag)): Path<(String, String)>,
) -> Result<Reply<TagAssignments>, ApiError> {
    let template = find(&caller, &reference).await?;
    let data = template.tags.iter().filter(|known| known.tag == tag).map(assignment).collect();
    Ok(Reply(TagAssignments { data, next_cursor: None }))
}

/// `GET /templates/{id}/tags/groups`. The cursor is the last tag that was shown.
pub(super) async fn groups(caller: Caller, Reference(reference): Reference, query: Query) -> Result<Reply<TagGroups>, ApiError> {
    let limit = match query.get("tagsLimit").map(str::parse) {
        None => MAX_GROUPS / 2,
        Some(Ok(limit)) if (1..=MAX_GROUPS).contains(&limit) => limit,
        Some(_) => return Err(ApiError::bad_request(format!("`tagsLimit` must be a number from 1 to {MAX_GROUPS}"))),
    };
    let sort = query.get("sort").unwrap_or("latest_desc");
    let template = find(&caller, &reference).await?;
    let mut found: Vec<&TagInfo> =
        template.tags.iter().filter(|tag| query.get("search").is_none_or(|text| tag.tag.contains(text))).collect();
    match sort {
        "latest_desc" => found.sort_by_key(|tag| (std::cmp::Reverse(tag.assigned_at), &tag.tag)),
        "latest_asc" => found.sort_by_key(|tag| (tag.assigned_at, &tag.tag)),
        "name_asc" => found.sort_by_key(|tag| &tag.tag),
        "name_desc" => found.sort_by_key(|tag| std::cmp::Reverse(&tag.tag)),
        other => return Err(ApiError::bad_request(format!("`sort` cannot be `{other}`"))),
    }
    if let Some(last) = query.get("tagsCursor") {
        let at = found.iter().position(|tag| tag.tag == last).ok_or_else(|| ApiError::bad_request("`tagsCursor` is unknown"))?;
        found.drain(..=at);
    }
    let more = found.len() > limit;
    found.truncate(limit);
    let next_cursor = found.last().filter(|_| more).map(|tag| tag.tag.clone());
    let group = |tag: &TagInfo| TagGroup { tag: tag.tag.clone(), assignments: vec![assignment(tag)], has_more: false };
    Ok(Reply(TagGroups { tags: found.into_iter().map(group).collect(), next_cursor }))
}

async fn find(caller: &Caller, reference: &str) -> Result<TemplateInfo, ApiError> {
    caller.runtime.template(reference).await?.ok_or_else(|| ApiError::template_not_found(reference))
}

/// The assignment of a tag. Its id is that of the build: what a tag stood for before is not kept.
fn assignment(tag: &TagInfo) -> TagAssignment {
    TagAssignment {
        assignment_id: tag.build_id.clone(),
        build_id: tag.build_id.clone(),
        assigned_at: tag.assigned_at,
        build_created_at: tag.built_at,
        build_finished_at: Some(tag.built_at),
    }
}
