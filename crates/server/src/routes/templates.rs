//! Templates: looking at them, also at those of which no build has ended, changing them, and deleting them and snapshots.

use std::sync::Arc;

use axum::{
    Json as Reply,
    extract::State,
    response::{IntoResponse, Response},
};
use firkin_runtime::{
    reference::{self as name, STANDARD},
    runtime::Runtime,
    team::TeamId,
    template::TemplateUpdate,
};
use firkin_wire::{builds as wire, rest};
use http::StatusCode;

use super::{builds, sandboxes::next_token};
use crate::{
    App,
    auth::Caller,
    error::ApiError,
    extract::{Json, Reference},
    listing::{Query, page},
    shape,
};

/// Longest description of a template.
const MAX_DESCRIPTION_BYTES: usize = 1024;

/// `GET /templates`: all of the key's team.
pub(super) async fn list(caller: Caller, query: Query) -> Result<Reply<Vec<rest::Template>>, ApiError> {
    if query.get("teamID").is_some_and(|team| team != caller.team.as_str()) {
        return Err(ApiError::bad_request("Team ID param mismatch with the API key"));
    }
    Ok(Reply(all(&caller.runtime).await?))
}

/// Newest first.
async fn all(runtime: &Runtime) -> Result<Vec<rest::Template>, ApiError> {
    Ok(runtime.templates().await?.into_iter().map(shape::template).collect())
}

/// `GET /default-templates`: what a create without a choice of one's own starts from.
pub(super) async fn default(State(app): State<Arc<App>>, caller: Caller) -> Result<Reply<Vec<rest::Template>>, ApiError> {
    let is_own = caller.team.is_first();
    // They are the host's, and everybody's to start from.
    let mut found = all(&app.host().within(TeamId::first())).await?;
    found.retain(|template| template.aliases.iter().any(|name| STANDARD.contains(&name.as_str())));
    for template in &mut found {
        template.is_default = Some(true);
        if !is_own {
            // How much others use them is theirs to know.
            (template.spawn_count, template.last_spawned_at) = (0, None);
        }
    }
    Ok(Reply(found))
}

/// `GET /v2/templates`: the same by pages.
pub(super) async fn list_pages(caller: Caller, query: Query) -> Result<Response, ApiError> {
    let window = query.window()?;
    let position = |template: &rest::Template| (template.created_at, template.template_id.clone());
    let mut all = all(&caller.runtime).await?;
    all.sort_by_key(|template| std::cmp::Reverse(position(template)));
    let (shown, next) = page(all, &window, position);
    Ok((next_token(next.as_ref()), Reply(shown)).into_response())
}

/// `GET /templates/{id}`.
pub(super) async fn detail(caller: Caller, Reference(reference): Reference) -> Result<Reply<rest::TemplateWithBuilds>, ApiError> {
    let found = caller.runtime.template(&reference).await?.ok_or_else(|| ApiError::template_not_found(&reference))?;
    let builds = caller.runtime.template_builds(&found.id).await?.into_iter().map(builds::listed).collect();
    Ok(Reply(rest::TemplateWithBuilds { template: shape::template(found), builds }))
}

/// `GET /templates/aliases/{alias}`. A name is taken from the request of its first build on.
pub(super) async fn alias(caller: Caller, Reference(alias): Reference) -> Result<Reply<rest::TemplateAlias>, ApiError> {
    if let Some((template_id, public)) = caller.runtime.usable_template(&alias).await? {
        return Ok(Reply(rest::TemplateAlias { template_id, public }));
    }
    if let Ok(name::Sought { reference: name::Reference { name, tag: Some(tag) }, .. }) = alias.parse()
        && let Some((untagged, _)) = alias.rsplit_once(':')
        && caller.runtime.usable_template(untagged).await?.is_some()
    {
        return Err(ApiError::not_found(format!("tag '{tag}' does not exist for template '{name}'")));
    }
    Err(ApiError::template_not_found(&alias))
}

/// `PATCH /v2/templates/{id}`.
pub(super) async fn update_v2(
    caller: Caller,
    Reference(reference): Reference,
    body: Json<wire::UpdateTemplate>,
) -> Result<Reply<wire::UpdatedTemplate>, ApiError> {
    let wire::UpdateTemplate { public, description } = body.value;
    if description.as_ref().is_some_and(|text| text.len() > MAX_DESCRIPTION_BYTES) {
        return Err(ApiError::bad_request(format!("`description` must be at most {MAX_DESCRIPTION_BYTES} bytes")));
    }
    let updated = caller.runtime.update_template(&reference, TemplateUpdate { public, description }).await?;
    let updated = updated.ok_or_else(|| ApiError::template_not_found(&reference))?;
    Ok(Reply(wire::UpdatedTemplate { names: shape::template(updated).names }))
}

/// `PATCH /templates/{id}`: the same for older clients.
pub(super) async fn update_v1(
    caller: Caller,
    reference: Reference,
    body: Json<wire::UpdateTemplate>,
) -> Result<Reply<serde_json::Value>, ApiError> {
    update_v2(caller, reference, body).await.map(|_| Reply(serde_json::json!({})))
}

/// `DELETE /templates/{id}`, for templates and snapshots.
pub(super) async fn remove(caller: Caller, Reference(reference): Reference) -> Result<StatusCode, ApiError> {
    caller.runtime.delete_template(&reference).await?;
    Ok(StatusCode::NO_CONTENT)
}
