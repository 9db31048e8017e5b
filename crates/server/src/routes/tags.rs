//! Tags of templates: further names, `name:tag`, of what a template is now.

use std::sync::Arc;

use axum::{
    Json as Reply,
    extract::{Path, State},
};
use firkin_runtime::template::TemplateInfo;
use firkin_wire::rest::{
    self,
    tags::{TagAssignment, TagAssignments, TagExists, TagGroup, TagGroups, TagsCount},
};
use http::StatusCode;

use crate::{
    App,
    error::ApiError,
    extract::{Json, Reference},
    listing::Query,
};

/// Tags on a page of groups, at most; half of that by default.
const MAX_GROUPS: usize = 50;

/// `POST /templates/tags`.
pub(super) async fn assign(
    State(app): State<Arc<App>>,
    body: Json<rest::AssignTags>,
) -> Result<(StatusCode, Reply<rest::AssignedTags>), ApiError> {
    let tagged = app.runtime.assign_tags(&body.value.target, body.value.tags).await?;
    Ok((StatusCode::CREATED, Reply(rest::AssignedTags { tags: tagged.tags, build_id: tagged.build_id })))
}

/// `DELETE /templates/tags`, with a body.
pub(super) async fn remove(State(app): State<Arc<App>>, body: Json<rest::RemoveTags>) -> Result<StatusCode, ApiError> {
    app.runtime.remove_tags(&body.value.name, body.value.tags).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `GET /templates/{id}/tags`.
pub(super) async fn list(
    State(app): State<Arc<App>>,
    Reference(reference): Reference,
) -> Result<Reply<Vec<rest::TemplateTag>>, ApiError> {
    let template = find(&app, &reference).await?;
    let shown = tags(&template).map(|tag| rest::TemplateTag {
        tag: tag.to_owned(),
        build_id: template.build_id.clone(),
        created_at: template.updated_at,
    });
    Ok(Reply(shown.collect()))
}

/// `GET /templates/{id}/tags/count`.
pub(super) async fn count(State(app): State<Arc<App>>, Reference(reference): Reference) -> Result<Reply<TagsCount>, ApiError> {
    Ok(Reply(TagsCount { total: tags(&find(&app, &reference).await?).count() }))
}

/// `GET /templates/{id}/tags/exists?tag=`.
pub(super) async fn exists(
    State(app): State<Arc<App>>,
    Reference(reference): Reference,
    query: Query,
) -> Result<Reply<TagExists>, ApiError> {
    let tag = query.get("tag").filter(|tag| !tag.is_empty()).ok_or_else(|| ApiError::bad_request("`tag` is required"))?;
    let normalized_tag = tag.trim().to_lowercase();
    let template = find(&app, &reference).await?;
    let exists = tags(&template).any(|known| known == normalized_tag);
    Ok(Reply(TagExists { exists, normalized_tag }))
}

/// `GET /templates/{id}/tags/{tag}/assignments`. There is one: what the tag names now.
pub(super) async fn assignments(
    State(app): State<Arc<App>>,
    Path((reference, tag)): Path<(String, String)>,
) -> Result<Reply<TagAssignments>, ApiError> {
    let template = find(&app, &reference).await?;
    let data = tags(&template).filter(|known| *known == tag).map(|_| assignment(&template)).collect();
    Ok(Reply(TagAssignments { data, next_cursor: None }))
}

/// `GET /templates/{id}/tags/groups`. The cursor is the last tag that was shown.
pub(super) async fn groups(
    State(app): State<Arc<App>>,
    Reference(reference): Reference,
    query: Query,
) -> Result<Reply<TagGroups>, ApiError> {
    let limit = match query.get("tagsLimit").map(str::parse) {
        None => MAX_GROUPS / 2,
        Some(Ok(limit)) if (1..=MAX_GROUPS).contains(&limit) => limit,
        Some(_) => return Err(ApiError::bad_request(format!("`tagsLimit` must be a number from 1 to {MAX_GROUPS}"))),
    };
    let backward = match query.get("sort") {
        // All tags of a template name its one build, so by time they are equal, and the name decides.
        None | Some("latest_desc" | "latest_asc" | "name_asc") => false,
        Some("name_desc") => true,
        Some(other) => return Err(ApiError::bad_request(format!("`sort` cannot be `{other}`"))),
    };
    let template = find(&app, &reference).await?;
    let mut found: Vec<&str> = tags(&template).filter(|tag| query.get("search").is_none_or(|text| tag.contains(text))).collect();
    found.sort_unstable();
    if backward {
        found.reverse();
    }
    if let Some(last) = query.get("tagsCursor") {
        found.retain(|tag| if backward { *tag < last } else { *tag > last });
    }
    let more = found.len() > limit;
    found.truncate(limit);
    let next_cursor = found.last().filter(|_| more).map(|tag| (*tag).to_owned());
    let group = |tag: &str| TagGroup { tag: tag.to_owned(), assignments: vec![assignment(&template)], has_more: false };
    Ok(Reply(TagGroups { tags: found.into_iter().map(group).collect(), next_cursor }))
}

async fn find(app: &App, reference: &str) -> Result<TemplateInfo, ApiError> {
    app.runtime.template(reference).await?.ok_or_else(|| ApiError::template_not_found(reference))
}

fn tags(template: &TemplateInfo) -> impl Iterator<Item = &str> {
    template.aliases.iter().map(|name| name.split_once(':').map_or("default", |(_, tag)| tag))
}

/// The assignment of a tag. Its id is that of the build: a tag names one build, and no build twice.
fn assignment(template: &TemplateInfo) -> TagAssignment {
    TagAssignment {
        assignment_id: template.build_id.clone(),
        build_id: template.build_id.clone(),
        assigned_at: template.updated_at,
        build_created_at: template.created_at,
        build_finished_at: Some(template.updated_at),
    }
}
