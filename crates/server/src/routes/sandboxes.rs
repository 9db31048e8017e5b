//! Looking at sandboxes, and ending them.

use std::sync::Arc;

use axum::{
    Json as Reply,
    extract::State,
    response::{IntoResponse, Response},
};
use firkin_runtime::{
    sandbox::{RuntimeSandbox, SandboxId, SandboxState},
    store::KeyScope,
};
use firkin_wire::{headers::NEXT_TOKEN, rest};
use http::{HeaderMap, HeaderValue, StatusCode};

use crate::{
    App,
    auth::Caller,
    error::ApiError,
    extract::Sandbox,
    listing::{Cursor, Filter, Query, page},
    shape,
    target::sandbox_id,
};

/// Sandboxes whose metrics may be asked for at once.
const MAX_METRICS: usize = 100;

/// `GET /sandboxes`: running ones only, all on one page.
pub(super) async fn list_v1(caller: Caller, query: Query) -> Result<Response, ApiError> {
    let filter = Filter { states: vec![SandboxState::Running], ..Filter::parse(&caller.team, &query)? };
    let mut found = caller.runtime.sandboxes();
    found.retain(|sandbox| filter.wants(sandbox.state) && filter.matches(sandbox));
    found.sort_by(|a, b| (b.started_at, &b.id).cmp(&(a.started_at, &a.id)));
    Ok(Reply(found.into_iter().map(shape::listed).collect::<Vec<_>>()).into_response())
}

/// `GET /v2/sandboxes`.
pub(super) async fn list_v2(caller: Caller, query: Query) -> Result<Response, ApiError> {
    let (filter, window) = (Filter::parse(&caller.team, &query)?, query.window()?);
    let mut found = caller.runtime.sandboxes();
    found.retain(|sandbox| filter.matches(sandbox));
    let running = found.iter().filter(|sandbox| sandbox.state == SandboxState::Running).count();
    found.retain(|sandbox| filter.wants(sandbox.state));
    let position = |sandbox: &RuntimeSandbox| (sandbox.started_at, sandbox.id.to_string());
    let (shown, next) = page(found, &window, position);
    let mut headers = next_token(next.as_ref());
    headers.insert("x-total-running", HeaderValue::from(running));
    Ok((headers, Reply(shown.into_iter().map(shape::listed).collect::<Vec<_>>())).into_response())
}

/// The header that leads to the next page.
pub(super) fn next_token(next: Option<&Cursor>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if let Some(token) = next.and_then(|cursor| HeaderValue::try_from(cursor.encode()).ok()) {
        headers.insert(NEXT_TOKEN, token);
    }
    headers
}

/// `GET /sandboxes/{id}`.
pub(super) async fn detail(
    State(app): State<Arc<App>>,
    caller: Caller,
    Sandbox(id): Sandbox,
) -> Result<Reply<rest::SandboxDetail>, ApiError> {
    let mut detail = shape::detail(caller.runtime.sandbox(&id)?, app.config.domain.as_deref());
    if caller.scope < KeyScope::Sandboxes {
        // It would open what the key does not.
        detail.envd_access_token = None;
    }
    Ok(Reply(detail))
}

/// `DELETE /sandboxes/{id}`.
pub(super) async fn kill(caller: Caller, Sandbox(id): Sandbox) -> Result<StatusCode, ApiError> {
    caller.runtime.kill(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `GET /sandboxes/{id}/metrics`: the samples in the window that was asked for, oldest first. A paused sandbox has those of before.
pub(super) async fn metrics(
    caller: Caller,
    Sandbox(id): Sandbox,
    query: Query,
) -> Result<Reply<Vec<rest::SandboxMetric>>, ApiError> {
    let bound = |name: &str| match query.get(name).map(str::parse::<i64>) {
        None => Ok(None),
        Some(Ok(seconds)) => Ok(Some(seconds)),
        Some(Err(_)) => Err(ApiError::bad_request(format!("`{name}` must be a number of seconds since 1970"))),
    };
    let (start, end) = (bound("start")?, bound("end")?);
    let mut samples: Vec<_> = caller.runtime.samples(&id).await?.iter().filter_map(shape::metric).collect();
    samples.retain(|sample| {
        start.is_none_or(|start| sample.timestamp_unix >= start) && end.is_none_or(|end| sample.timestamp_unix <= end)
    });
    Ok(Reply(samples))
}

/// `GET /sandboxes/metrics?sandbox_ids=`: the newest sample of each. Sandboxes without one are left out.
pub(super) async fn metrics_of_many(caller: Caller, query: Query) -> Result<Reply<rest::SandboxesMetrics>, ApiError> {
    let ids = query.list("sandbox_ids");
    if ids.is_empty() || ids.len() > MAX_METRICS {
        return Err(ApiError::bad_request(format!("`sandbox_ids` must name 1 to {MAX_METRICS} sandboxes")));
    }
    let ids: Vec<SandboxId> = ids.into_iter().map(sandbox_id).collect::<Result<_, _>>()?;
    let caller = &caller;
    let sample = async |id: SandboxId| {
        let newest = caller.runtime.samples(&id).await.ok()?.pop()?;
        Some((id.to_string(), shape::metric(&newest)?))
    };
    let samples = futures::future::join_all(ids.into_iter().map(sample)).await;
    Ok(Reply(rest::SandboxesMetrics { sandboxes: samples.into_iter().flatten().collect() }))
}
