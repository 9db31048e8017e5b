//! Templates: looking at them, also at those that have only builds so far, and deleting them and snapshots.

use std::sync::Arc;

use axum::{
    Json as Reply,
    extract::State,
    response::{IntoResponse, Response},
};
use firkin_runtime::{build::BuildState, runtime::TEAM};
use firkin_wire::rest;
use http::StatusCode;

use super::{builds, sandboxes::next_token};
use crate::{
    App,
    error::ApiError,
    extract::Reference,
    listing::{Query, page},
    shape,
};

/// Templates that SDKs name when their users do not.
const DEFAULT: [&str; 3] = ["base", "code-interpreter-v1", "mcp-gateway"];

/// `GET /templates`: all of them. There is one team, so its id is not looked at.
pub(super) async fn list(State(app): State<Arc<App>>) -> Result<Reply<Vec<rest::Template>>, ApiError> {
    Ok(Reply(all(&app).await?))
}

/// Whole templates, then those that have only builds so far, each newest first.
async fn all(app: &App) -> Result<Vec<rest::Template>, ApiError> {
    let builds = app.runtime.builds().await?;
    let mut shown: Vec<rest::Template> = app.runtime.templates().await?.into_iter().map(shape::template).collect();
    for template in &mut shown {
        let count = builds.iter().filter(|build| build.template_id == template.template_id).count();
        template.build_count = template.build_count.max(u64::try_from(count).unwrap_or(u64::MAX));
    }
    for build in &builds {
        if build.state != BuildState::Ready && !shown.iter().any(|template| template.template_id == build.template_id) {
            let count = builds.iter().filter(|other| other.template_id == build.template_id).count();
            shown.push(builds::pending(build.clone(), count));
        }
    }
    Ok(shown)
}

/// `GET /default-templates`: what a create without a choice of one's own starts from.
pub(super) async fn default(State(app): State<Arc<App>>) -> Result<Reply<Vec<rest::Template>>, ApiError> {
    let mut found = app.runtime.templates().await?;
    found.retain(|template| template.aliases.iter().any(|name| DEFAULT.contains(&name.as_str())));
    Ok(Reply(found.into_iter().map(shape::template).collect()))
}

/// `GET /v2/templates`: the same by pages.
pub(super) async fn list_pages(State(app): State<Arc<App>>, query: Query) -> Result<Response, ApiError> {
    let window = query.window()?;
    let position = |template: &rest::Template| (template.created_at, template.template_id.clone());
    let mut all = all(&app).await?;
    all.sort_by_key(|template| std::cmp::Reverse(position(template)));
    let (shown, next) = page(all, &window, position);
    Ok((next_token(next.as_ref()), Reply(shown)).into_response())
}

/// `GET /templates/{id}`.
pub(super) async fn detail(
    State(app): State<Arc<App>>,
    Reference(reference): Reference,
) -> Result<Reply<rest::TemplateWithBuilds>, ApiError> {
    let mut builds = app.runtime.builds().await?;
    let Some(found) = app.runtime.template(&reference).await? else {
        builds.retain(|build| build.template_id == reference || build.name == reference);
        let newest = builds.first().cloned().ok_or_else(|| ApiError::template_not_found(&reference))?;
        builds.retain(|build| build.template_id == newest.template_id);
        let template = builds::pending(newest, builds.len());
        return Ok(Reply(rest::TemplateWithBuilds { template, builds: builds.into_iter().map(builds::listed).collect() }));
    };
    builds.retain(|build| build.template_id == found.id);
    let shown = shape::template_with_builds(found);
    if builds.is_empty() {
        return Ok(Reply(shown));
    }
    Ok(Reply(rest::TemplateWithBuilds { builds: builds.into_iter().map(builds::listed).collect(), ..shown }))
}

/// `GET /templates/aliases/{alias}`.
pub(super) async fn alias(
    State(app): State<Arc<App>>,
    Reference(alias): Reference,
) -> Result<Reply<rest::TemplateAlias>, ApiError> {
    if let Some(template) = app.runtime.template(&alias).await? {
        return Ok(Reply(rest::TemplateAlias { template_id: template.id, public: template.public }));
    }
    // A name is taken from the request of its first build on.
    let bare = alias.strip_prefix(TEAM).and_then(|rest| rest.strip_prefix('/')).unwrap_or(&alias);
    let build = app.runtime.builds().await?.into_iter().find(|build| build.name == bare);
    let build = build.ok_or_else(|| ApiError::template_not_found(&alias))?;
    Ok(Reply(rest::TemplateAlias { template_id: build.template_id, public: false }))
}

/// `DELETE /templates/{id}`, for templates and snapshots.
pub(super) async fn remove(State(app): State<Arc<App>>, Reference(reference): Reference) -> Result<StatusCode, ApiError> {
    app.runtime.delete_template(&reference).await?;
    Ok(StatusCode::NO_CONTENT)
}
