//! Looking at sandboxes, and ending them.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json as Reply,
    extract::State,
    response::{IntoResponse, Response},
};
use firkin_runtime::{
    sandbox::{SandboxId, SandboxState},
    store::KeyScope,
};
use firkin_wire::{headers::NEXT_TOKEN, rest};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::everywhere::Elsewhere;
use crate::{
    App,
    auth::Caller,
    elsewhere::gather::Gathered,
    error::ApiError,
    extract::Sandbox,
    listing::{Cursor, Filter, Query, page},
    shape,
    target::sandbox_id,
};

/// How many run, on whatever page.
const TOTAL_RUNNING: HeaderName = HeaderName::from_static("x-total-running");

/// Sandboxes whose metrics may be asked for at once.
const MAX_METRICS: usize = 100;

/// `GET /sandboxes`: running ones only, all on one page.
pub(super) async fn list_v1(caller: Caller, elsewhere: Elsewhere, query: Query) -> Result<Response, ApiError> {
    let filter = Filter { states: vec![SandboxState::Running], ..Filter::parse(&caller.team, &query)? };
    let others = elsewhere.ask::<Vec<rest::ListedSandbox>>().await;
    let mut found = caller.runtime.sandboxes();
    found.retain(|sandbox| filter.wants(sandbox.state) && filter.matches(sandbox));
    let mut headers = HeaderMap::new();
    others.tell(&mut headers);
    let others = others.parts.into_iter().flat_map(|(_, part)| part);
    let mut found: Vec<_> = found.into_iter().map(shape::listed).chain(others).collect();
    found.sort_by(|a, b| (b.started_at, &b.sandbox_id).cmp(&(a.started_at, &a.sandbox_id)));
    Ok((headers, Reply(found)).into_response())
}

/// `GET /v2/sandboxes`. A page of several nodes is made of the same page of each: where it begins is a position, and no number.
pub(super) async fn list_v2(caller: Caller, elsewhere: Elsewhere, query: Query) -> Result<Response, ApiError> {
    let (filter, window) = (Filter::parse(&caller.team, &query)?, query.window()?);
    let others = elsewhere.ask::<Vec<rest::ListedSandbox>>().await;
    let mut found = caller.runtime.sandboxes();
    found.retain(|sandbox| filter.matches(sandbox));
    let mut running = found.iter().filter(|sandbox| sandbox.state == SandboxState::Running).count();
    found.retain(|sandbox| filter.wants(sandbox.state));
    let mut headers = HeaderMap::new();
    others.tell(&mut headers);
    let mut found: Vec<_> = found.into_iter().map(shape::listed).collect();
    let mut more = false;
    for (head, part) in others.parts {
        more |= head.contains_key(NEXT_TOKEN);
        let total = head.get(TOTAL_RUNNING).and_then(|total| total.to_str().ok()?.parse::<usize>().ok());
        running = running.saturating_add(total.unwrap_or_default());
        found.extend(part);
    }
    let position = |sandbox: &rest::ListedSandbox| (sandbox.started_at, sandbox.sandbox_id.clone());
    let (shown, next) = page(found, &window, position);
    // A node with more has filled its page, so there is a last one.
    let last = shown.last().map(position).filter(|_| more);
    let next = next.or_else(|| last.map(|(at, id)| Cursor { at, id, order: window.order }));
    headers.extend(next_token(next.as_ref()));
    headers.insert(TOTAL_RUNNING, HeaderValue::from(running));
    Ok((headers, Reply(shown)).into_response())
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
pub(super) async fn metrics_of_many(
    caller: Caller,
    elsewhere: Elsewhere,
    query: Query,
) -> Result<(HeaderMap, Reply<rest::SandboxesMetrics>), ApiError> {
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
    let own = async {
        let samples = futures::future::join_all(ids.iter().filter(|id| caller.runtime.has(id)).cloned().map(sample)).await;
        samples.into_iter().flatten().collect()
    };
    let mut headers = HeaderMap::new();
    if ids.iter().all(|id| caller.runtime.has(id)) {
        return Ok((headers, Reply(rest::SandboxesMetrics { sandboxes: own.await })));
    }
    let (mut sandboxes, others): (BTreeMap<_, _>, Gathered<rest::SandboxesMetrics>) = tokio::join!(own, elsewhere.ask());
    others.tell(&mut headers);
    for (_, part) in others.parts {
        sandboxes.extend(part.sandboxes);
    }
    Ok((headers, Reply(rest::SandboxesMetrics { sandboxes })))
}
