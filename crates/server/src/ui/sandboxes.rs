//! The list of sandboxes: what is looked for, what is done with many at once, and a new one.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Extension,
    extract::State,
    response::{IntoResponse, Redirect, Response},
};
use firkin_dashboard::{
    frame::Section,
    sandboxes::{self, List, ROWS, Room, Row, Rows, Search},
};
use firkin_runtime::{
    changes::short_labels,
    runtime::Runtime,
    sandbox::{CreateSandbox, OnTimeout, RuntimeSandbox, SandboxId, SandboxState},
};
use futures::{StreamExt as _, stream};
use http::{HeaderMap, StatusCode};
use jiff::Timestamp;

use super::{HOME, Visitor, answer, form::Form, place};
use crate::{
    App,
    audit::{Done, Each},
    error::ApiError,
    latency::FirstAnswer,
    listing::Query,
    routes::seconds,
    target::sandbox_id,
};

/// Samples of a row's plot: two minutes.
const PLOTTED: usize = 24;

/// Rows that a script is given: what more there are, it finds by looking for them.
const MAX_ROWS: usize = 5000;

/// Sandboxes that are paused or ended at once: as many as one disk and two processors do side by side.
const AT_ONCE: usize = 8;

/// Sandboxes that one request may be about.
const MAX_CHOSEN: usize = 1000;

/// Longest text that is looked for.
const MAX_SEARCH_BYTES: usize = 256;

/// Labels of a sandbox that is created here.
const MAX_METADATA: usize = 32;

/// Templates that are proposed.
const MAX_TEMPLATES: usize = 200;

/// A state as pages have it.
pub(super) fn state(state: SandboxState) -> sandboxes::State {
    match state {
        SandboxState::Running => sandboxes::State::Running,
        SandboxState::Paused => sandboxes::State::Paused,
    }
}

/// What happens at a deadline, in words.
pub(super) fn then(on_timeout: OnTimeout) -> &'static str {
    match on_timeout {
        OnTimeout::Kill => "it ends",
        OnTimeout::Pause => "it is paused",
        OnTimeout::PauseFiles => "it is paused without its memory",
    }
}

fn search(query: &Query) -> Search {
    let state = match query.get("state") {
        Some("running") => Some(sandboxes::State::Running),
        Some("paused") => Some(sandboxes::State::Paused),
        _ => None,
    };
    let text = query.get("q").filter(|text| text.len() <= MAX_SEARCH_BYTES).unwrap_or_default().to_owned();
    Search { text, state }
}

/// Whether a sandbox is one that was looked for: each word is in its id, its template's name or a label, or is a label.
fn matches(search: &Search, sandbox: &RuntimeSandbox) -> bool {
    let of_it = |word: &str| {
        if let Some((key, value)) = word.split_once('=') {
            return sandbox.spec.metadata.get(key).is_some_and(|found| found == value);
        }
        let names = [sandbox.id.as_str(), sandbox.template_id.as_str(), sandbox.alias.as_deref().unwrap_or_default()];
        names.iter().any(|name| name.contains(word))
            || sandbox.spec.metadata.iter().any(|(key, value)| key.contains(word) || value.contains(word))
    };
    search.state.is_none_or(|wanted| wanted == state(sandbox.state)) && search.text.split_whitespace().all(of_it)
}

fn row(runtime: &Runtime, sandbox: RuntimeSandbox) -> Row {
    let samples = if sandbox.state == SandboxState::Running { runtime.recent_samples(&sandbox.id, PLOTTED) } else { Vec::new() };
    let tenths = |percent: f64| (percent * 10.0).round() / 10.0;
    let memory = samples.last().filter(|last| last.mem_total > 0).map(|last| tenths(share(last.mem_used, last.mem_total)));
    Row {
        cpu: samples.iter().map(|sample| tenths(f64::from(sample.cpu_used_pct))).collect(),
        memory,
        id: sandbox.id.to_string(),
        template: sandbox.alias.unwrap_or(sandbox.template_id),
        team: sandbox.owner.to_string(),
        state: state(sandbox.state),
        started: sandbox.started_at.as_second(),
        ends: sandbox.end_at.as_second(),
        then: then(sandbox.spec.on_timeout),
        cpus: sandbox.budget.cpus,
        memory_mib: sandbox.budget.memory_mib,
        metadata: short_labels(sandbox.spec.metadata).into_iter().collect(),
    }
}

#[expect(clippy::cast_precision_loss, reason = "a percentage to a tenth")]
fn share(used: u64, all: u64) -> f64 {
    used as f64 * 100.0 / all as f64
}

/// What was found, newest first, and how many run and are paused of all.
fn found(runtime: &Runtime, search: &Search) -> (Vec<RuntimeSandbox>, usize, usize) {
    let mut found = runtime.sandboxes();
    let running = found.iter().filter(|sandbox| sandbox.state == SandboxState::Running).count();
    let paused = found.len() - running;
    found.retain(|sandbox| matches(search, sandbox));
    found.sort_by(|a, b| (b.started_at, &b.id).cmp(&(a.started_at, &a.id)));
    (found, running, paused)
}

/// The host's room, for its own team.
fn room(app: &App, visitor: &Visitor) -> Option<Room> {
    let view = visitor.caller.team.is_first().then(|| app.host().capacity())?;
    let held = view.usage.active.held;
    Some(Room {
        cpus: (held.cpus.into(), view.capacity.cpus.into()),
        memory_mib: (held.memory_mib, view.capacity.memory_mib),
        waiting: view.waiting,
        refused: view.requests.timed_out + view.requests.rejected + view.requests.too_large,
    })
}

/// `GET /ui/sandboxes`.
pub(super) async fn list(State(app): State<Arc<App>>, visitor: Visitor, query: Query) -> Result<Response, ApiError> {
    let runtime = &visitor.caller.runtime;
    let search = search(&query);
    let page = query.get("page").and_then(|page| page.parse().ok()).unwrap_or(0_usize);
    let (all, running, paused) = found(runtime, &search);
    let count = all.len();
    let rows = all.into_iter().skip(page.saturating_mul(ROWS)).take(ROWS).map(|sandbox| row(runtime, sandbox)).collect();
    let templates = runtime.templates().await.map_err(|error| ApiError::internal(&error))?;
    let mut names: Vec<String> = templates.into_iter().flat_map(|template| template.aliases).take(MAX_TEMPLATES).collect();
    names.sort();
    names.dedup();
    let view = List {
        rows,
        found: count,
        running,
        paused,
        search,
        page,
        room: room(&app, &visitor),
        templates: names,
        outcome: app.sessions.told(&visitor.ticket),
        now: Timestamp::now(),
    };
    let viewer = visitor.viewer();
    Ok(answer::page(sandboxes::list(&viewer, place(&viewer, Section::Sandboxes), &view)))
}

/// `GET /ui/sandboxes/rows`: all that was found, for the script.
pub(super) async fn rows(State(app): State<Arc<App>>, visitor: Visitor, query: Query, headers: HeaderMap) -> Response {
    let runtime = &visitor.caller.runtime;
    let (all, running, paused) = found(runtime, &search(&query));
    let found = all.len();
    let rows = all.into_iter().take(MAX_ROWS).map(|sandbox| row(runtime, sandbox)).collect();
    let room = room(&app, &visitor).map(|room| room.words());
    answer::part(&headers, answer::JSON, Rows { rows, found, running, paused, room }.json())
}

/// `POST /ui/sandboxes`.
pub(super) async fn create(form: Form) -> Result<Response, ApiError> {
    let minutes: i64 = form.need("minutes")?.parse().map_err(|_| ApiError::bad_request("`minutes` is a number"))?;
    let mut request = CreateSandbox::from_template(form.need("template")?.trim());
    request.timeout = seconds(minutes.saturating_mul(60))?;
    request.on_timeout = match form.need("then")? {
        "kill" => OnTimeout::Kill,
        "pause" => OnTimeout::Pause,
        _ => return Err(ApiError::bad_request("`then` is `kill` or `pause`")),
    };
    request.metadata = metadata(form.fields.get("metadata").unwrap_or_default())?;
    let created = form.visitor.caller.runtime.create(request).await?;
    let way = Redirect::to(&format!("{HOME}/{}", created.id));
    Ok((Extension(FirstAnswer(created.id)), way).into_response())
}

fn metadata(text: &str) -> Result<BTreeMap<String, String>, ApiError> {
    let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    let pair = |pair: &str| {
        let (key, value) = pair.split_once('=').ok_or_else(|| ApiError::bad_request(format!("`{pair}` is not `key=value`")))?;
        Ok((key.trim().to_owned(), value.trim().to_owned()))
    };
    let labels: BTreeMap<_, _> = pairs.map(pair).collect::<Result<_, ApiError>>()?;
    if labels.len() > MAX_METADATA {
        return Err(ApiError::bad_request(format!("more than {MAX_METADATA} labels are for an SDK to set")));
    }
    Ok(labels)
}

/// `POST /ui/sandboxes/bulk`: each for itself; what went wrong is told on the next page.
pub(super) async fn bulk(State(app): State<Arc<App>>, form: Form) -> Result<Response, ApiError> {
    let ids: Vec<SandboxId> = form.fields.all("id").map(sandbox_id).collect::<Result<_, _>>()?;
    if ids.len() > MAX_CHOSEN {
        return Err(ApiError::bad_request(format!("{MAX_CHOSEN} sandboxes may be chosen at once, and these are {}", ids.len())));
    }
    let kills = match form.need("action")? {
        "kill" => true,
        "pause" => false,
        _ => return Err(ApiError::bad_request("`action` is `kill` or `pause`")),
    };
    let (count, runtime) = (ids.len(), &form.visitor.caller.runtime);
    let one = async |id: SandboxId| {
        let done = if kills {
            runtime.kill(&id).await.map_err(ApiError::from)
        } else {
            runtime.pause(&id).await.map_err(ApiError::from)
        };
        let status = done.as_ref().err().map_or(StatusCode::NO_CONTENT, ApiError::status);
        let failed = done.err().map(|error| format!("{id}: {}", error.to_body().message));
        (Done { object: format!("{HOME}/{id}"), status }, failed)
    };
    let done: Vec<(Done, Option<String>)> = stream::iter(ids).map(one).buffer_unordered(AT_ONCE).collect().await;
    let (done, failed): (Vec<_>, Vec<_>) = done.into_iter().unzip();
    let failed: Vec<String> = failed.into_iter().flatten().collect();
    let what = if kills { "ended" } else { "paused" };
    let mut outcome = match count {
        0 => vec!["No sandbox was selected.".to_owned()],
        _ => vec![format!("{} of {count} sandboxes {what}.", count - failed.len())],
    };
    outcome.extend(failed);
    app.sessions.tell(&form.visitor.ticket, outcome);
    Ok((Extension(Each(done)), Redirect::to(HOME)).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_pairs() {
        let found = metadata(" a=b , c = d=e,, ").unwrap();
        assert_eq!(found, BTreeMap::from([("a", "b"), ("c", "d=e")].map(|(key, value)| (key.to_owned(), value.to_owned()))));
        assert!(metadata("a").is_err() && metadata(&(0..40).map(|n| format!("{n}=1,")).collect::<String>()).is_err());
    }
}
