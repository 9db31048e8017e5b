//! Tags of templates: further names, `name:tag`, of what a template is now.

use std::sync::Arc;

use axum::{Json as Reply, extract::State};
use firkin_wire::rest;
use http::StatusCode;

use crate::{
    App,
    error::ApiError,
    extract::{Json, Reference},
};

/// `POST /templates/tags`.
pub(super) async fn assign(
    State(app): State<Arc<App>>,
    body: Json<rest::AssignTags>,
) -> Result<(StatusCode, Reply<rest::AssignedTags>), ApiError> {
    app.count_unknown(&body.value.unknown);
    let tagged = app.runtime.assign_tags(&body.value.target, body.value.tags).await?;
    Ok((StatusCode::CREATED, Reply(rest::AssignedTags { tags: tagged.tags, build_id: tagged.build_id })))
}

/// `DELETE /templates/tags`, with a body.
pub(super) async fn remove(State(app): State<Arc<App>>, body: Json<rest::RemoveTags>) -> Result<StatusCode, ApiError> {
    app.count_unknown(&body.value.unknown);
    app.runtime.remove_tags(&body.value.name, body.value.tags).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `GET /templates/{id}/tags`.
pub(super) async fn list(
    State(app): State<Arc<App>>,
    Reference(reference): Reference,
) -> Result<Reply<Vec<rest::TemplateTag>>, ApiError> {
    let template = app.runtime.template(&reference).await?.ok_or_else(|| ApiError::template_not_found(&reference))?;
    let tags = template.aliases.iter().map(|name| name.split_once(':').map_or("default", |(_, tag)| tag));
    let shown = tags.map(|tag| rest::TemplateTag {
        tag: tag.to_owned(),
        build_id: template.build_id.clone(),
        created_at: template.updated_at,
    });
    Ok(Reply(shown.collect()))
}
