//! Templates: the list, each with its builds and their logs, and a build of what somebody typed.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    extract::{Path, State},
    response::{IntoResponse, Redirect, Response},
};
use firkin_dashboard::{
    frame::Section,
    sandbox::Event,
    templates::{self as pages, Build, Detail, List, Row},
};
use firkin_runtime::{
    build::{BuildInfo, BuildRequest},
    reference::with_team,
    store::{BuildLogEntry, KeyScope},
    template::TemplateInfo,
    warm::{PoolStatus, ShelfStatus},
};
use http::HeaderMap;
use jiff::Timestamp;

use super::{Visitor, answer, form::Form, place, recipe, sandbox::level};
use crate::{App, error::ApiError};

/// Templates that are shown.
const MAX_SHOWN: usize = 500;

/// Entries of a log that are shown, the newest.
const MAX_ENTRIES: usize = 1000;

impl From<recipe::RecipeError> for ApiError {
    fn from(error: recipe::RecipeError) -> Self {
        Self::bad_request(error.to_string())
    }
}

fn may_build(visitor: &Visitor) -> bool {
    visitor.caller.scope >= KeyScope::Full
}

/// Shelves of the pool, by template. What other teams have warm is nobody else's affair.
fn shelves(app: &App) -> BTreeMap<String, ShelfStatus> {
    app.host().pool().templates
}

fn row(shelves: &BTreeMap<String, ShelfStatus>, template: TemplateInfo) -> Row {
    let names = template
        .aliases
        .iter()
        .map(|name| if template.owner.is_first() { name.clone() } else { format!("{}/{name}", template.owner) });
    let budget = template.budget;
    Row {
        names: names.collect(),
        team: template.owner.to_string(),
        state: crate::shape::build_word(template.state),
        size: format!("{} CPUs, {} MiB of memory, {} MiB of disk", budget.cpus, budget.memory_mib, budget.disk_mib),
        public: template.public,
        spawned: template.spawn_count,
        last: template.last_spawned_at,
        pool: shelves.get(&template.id).map(|shelf| (shelf.ready, shelf.wanted)),
        id: template.id,
    }
}

/// `GET /ui/templates`.
pub(super) async fn list(State(app): State<Arc<App>>, visitor: Visitor) -> Result<Response, ApiError> {
    let templates = visitor.caller.runtime.templates().await.map_err(|error| ApiError::internal(&error))?;
    let shelves = shelves(&app);
    let hits = visitor.caller.team.is_first().then(|| {
        let PoolStatus { hits, misses, prepared_hits, .. } = app.host().pool();
        (hits, misses + prepared_hits)
    });
    let list = List {
        rows: templates.into_iter().take(MAX_SHOWN).map(|template| row(&shelves, template)).collect(),
        hits,
        may_build: may_build(&visitor),
        outcome: app.sessions.told(&visitor.ticket),
        now: Timestamp::now(),
    };
    let viewer = visitor.viewer();
    Ok(answer::page(pages::list(&viewer, place(&viewer, Section::Templates), &list)))
}

async fn found(visitor: &Visitor, id: &str) -> Result<TemplateInfo, ApiError> {
    let found = visitor.caller.runtime.template(id).await.map_err(|error| ApiError::internal(&error))?;
    found.ok_or_else(|| ApiError::template_not_found(id))
}

fn build(info: BuildInfo) -> Build {
    Build {
        tags: info.tags,
        state: crate::shape::build_word(info.state),
        reason: info.reason.map(|reason| format!("step {}: {}", reason.step, reason.message)),
        at: info.created_at,
        took_s: info.finished_at.map(|ended| ended.as_second() - info.created_at.as_second()),
        id: info.id,
    }
}

/// `GET /ui/templates/{id}`.
pub(super) async fn detail(State(app): State<Arc<App>>, visitor: Visitor, Path(id): Path<String>) -> Result<Response, ApiError> {
    let template = found(&visitor, &id).await?;
    let builds = visitor.caller.runtime.template_builds(&id).await.map_err(|error| ApiError::internal(&error))?;
    let detail = Detail {
        description: template.description.clone(),
        row: row(&shelves(&app), template),
        builds: builds.into_iter().take(MAX_SHOWN).map(build).collect(),
        may_build: may_build(&visitor),
        now: Timestamp::now(),
    };
    let viewer = visitor.viewer();
    Ok(answer::page(pages::detail(&viewer, place(&viewer, Section::Templates), &detail)))
}

async fn with_log(visitor: &Visitor, template: &str, id: &str) -> Result<(Build, Vec<Event>), ApiError> {
    let info = visitor.caller.runtime.build(template, id).await?;
    let mut log = visitor.caller.runtime.build_log(template, id).await?;
    log.reverse();
    log.truncate(MAX_ENTRIES);
    let entry = |entry: BuildLogEntry| {
        let fields = vec![("step".to_owned(), entry.step)];
        Event { at: entry.at, level: level(entry.level), message: entry.message, fields }
    };
    Ok((build(info), log.into_iter().map(entry).collect()))
}

/// `GET /ui/templates/{id}/builds/{build}`.
pub(super) async fn one_build(visitor: Visitor, Path((id, build)): Path<(String, String)>) -> Result<Response, ApiError> {
    let (shown, log) = with_log(&visitor, &id, &build).await?;
    let viewer = visitor.viewer();
    Ok(answer::page(pages::build(place(&viewer, Section::Templates), &id, &shown, &log)))
}

/// `GET /ui/templates/{id}/builds/{build}/log`: the part of it that changes by itself.
pub(super) async fn build_log(
    visitor: Visitor,
    Path((id, build)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let (shown, log) = with_log(&visitor, &id, &build).await?;
    Ok(answer::part(&headers, answer::HTML, pages::build_log(&shown, &log).into_string()))
}

/// `POST /ui/templates`: begins a build of a Dockerfile, and leads to its log.
pub(super) async fn create(form: Form) -> Result<Response, ApiError> {
    let number = |name: &str| form.need(name)?.parse::<i64>().map_err(|_| ApiError::bad_request(format!("`{name}` is a number")));
    let (cpus, memory) = (number("cpus")?, number("memory")?);
    let recipe = recipe::read(form.need("dockerfile")?)?;
    let runtime = &form.visitor.caller.runtime;
    let is_template = runtime.usable_template(&recipe.from).await.map_err(|error| ApiError::internal(&error))?.is_some();
    let field = |name: &str| form.fields.get(name).map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned);
    let plan = recipe.plan(is_template, field("start"), field("ready"));
    let request = BuildRequest { name: field("name"), cpus: Some(cpus), memory_mib: Some(memory), ..BuildRequest::default() };
    let place = runtime.request_build(&request).await?;
    runtime.start_build(&place.template_id, &place.build_id, plan).await?;
    Ok(Redirect::to(&format!("/ui/templates/{}/builds/{}", place.template_id, place.build_id)).into_response())
}

/// `POST /ui/templates/{id}/delete`.
pub(super) async fn delete(State(app): State<Arc<App>>, Path(id): Path<String>, form: Form) -> Result<Response, ApiError> {
    let template = found(&form.visitor, &id).await?;
    form.visitor.caller.runtime.delete_template(&template.id).await?;
    let name = template.name.as_ref().map_or_else(|| template.id.clone(), |name| with_team(&template.owner, name));
    app.sessions.tell(&form.visitor.ticket, vec![format!("{name} is deleted.")]);
    Ok(Redirect::to("/ui/templates").into_response())
}
