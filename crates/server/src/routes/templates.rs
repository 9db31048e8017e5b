//! Templates: looking at them, and deleting them and snapshots. Building is another module's when it comes.

use std::sync::Arc;

use axum::{
    Json as Reply,
    extract::State,
    response::{IntoResponse, Response},
};
use firkin_runtime::template::TemplateInfo;
use firkin_wire::rest;
use http::StatusCode;

use super::sandboxes::next_token;
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
    Ok(Reply(app.runtime.templates().await?.into_iter().map(shape::template).collect()))
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
    let position = |template: &TemplateInfo| (template.created_at, template.id.clone());
    let (shown, next) = page(app.runtime.templates().await?, &window, position);
    Ok((next_token(next.as_ref()), Reply(shown.into_iter().map(shape::template).collect::<Vec<_>>())).into_response())
}

/// `GET /templates/{id}`.
pub(super) async fn detail(
    State(app): State<Arc<App>>,
    Reference(reference): Reference,
) -> Result<Reply<rest::TemplateWithBuilds>, ApiError> {
    Ok(Reply(shape::template_with_builds(find(&app, &reference).await?)))
}

/// `GET /templates/aliases/{alias}`.
pub(super) async fn alias(
    State(app): State<Arc<App>>,
    Reference(alias): Reference,
) -> Result<Reply<rest::TemplateAlias>, ApiError> {
    let template = find(&app, &alias).await?;
    Ok(Reply(rest::TemplateAlias { template_id: template.id, public: false }))
}

/// `DELETE /templates/{id}`, for templates and snapshots.
pub(super) async fn remove(State(app): State<Arc<App>>, Reference(reference): Reference) -> Result<StatusCode, ApiError> {
    app.runtime.delete_template(&reference).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn find(app: &App, reference: &str) -> Result<TemplateInfo, ApiError> {
    app.runtime.template(reference).await?.ok_or_else(|| ApiError::template_not_found(reference))
}
