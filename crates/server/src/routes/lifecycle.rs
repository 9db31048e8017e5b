//! Routes that change a living sandbox: connect, resume, pause, fork, deadlines.

use std::sync::Arc;

use axum::{Json as Reply, extract::State};
use firkin_runtime::{
    owner::SnapshotError,
    sandbox::{InvalidTimeout, OnTimeout, SandboxId},
};
use firkin_wire::rest;
use http::StatusCode;

use super::{SHORT_TIMEOUT, V2_TIMEOUT, memory, seconds};
use crate::{
    App,
    auth::Caller,
    error::ApiError,
    extract::{Json, Sandbox},
    nodes::Copied,
    shape,
};

/// The most that one refresh can give, in seconds.
const MAX_REFRESH: i64 = 3600;

type Connected = Result<(StatusCode, Reply<rest::Sandbox>), ApiError>;

/// `POST /sandboxes/{id}/connect`.
pub(super) async fn connect_v1(
    State(app): State<Arc<App>>,
    caller: Caller,
    Sandbox(id): Sandbox,
    body: Json<rest::ConnectSandbox>,
) -> Connected {
    let timeout = body.value.timeout.ok_or_else(|| ApiError::bad_request("`timeout` is required"))?;
    connect(&app, &caller, &id, &body.value, timeout).await
}

/// `POST /v2/sandboxes/{id}/connect`.
pub(super) async fn connect_v2(
    State(app): State<Arc<App>>,
    caller: Caller,
    Sandbox(id): Sandbox,
    body: Json<rest::ConnectSandbox>,
) -> Connected {
    connect(&app, &caller, &id, &body.value, body.value.timeout.unwrap_or(V2_TIMEOUT)).await
}

async fn connect(app: &App, caller: &Caller, id: &SandboxId, body: &rest::ConnectSandbox, timeout: i64) -> Connected {
    let connected = caller.runtime.connect_with(id, seconds(timeout)?, memory(body.memory)).await?;
    let status = if connected.resumed { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Reply(shape::sandbox(connected.sandbox, app.config.domain.as_deref()))))
}

/// `POST /sandboxes/{id}/resume`.
pub(super) async fn resume(
    State(app): State<Arc<App>>,
    caller: Caller,
    Sandbox(id): Sandbox,
    body: Json<rest::ResumedSandbox>,
) -> Connected {
    let body = body.value;
    let timeout = seconds(body.timeout.unwrap_or(SHORT_TIMEOUT))?;
    // Most name none, and then whether the sandbox is there is for the resume to say, after what is wrong with the request itself.
    if let Some(auto_pause) = body.auto_pause
        && auto_pause != (caller.runtime.sandbox(&id)?.spec.on_timeout != OnTimeout::Kill)
    {
        return Err(ApiError::unsupported("autoPause"));
    }
    let sandbox = caller.runtime.resume_with(&id, timeout, memory(body.memory)).await?;
    Ok((StatusCode::CREATED, Reply(shape::sandbox(sandbox, app.config.domain.as_deref()))))
}

/// `POST /sandboxes/{id}/pause`. A guest that does not answer is never paused, whether or not `requireHealthyGuest` asks so.
pub(super) async fn pause(
    State(app): State<Arc<App>>,
    caller: Caller,
    Sandbox(id): Sandbox,
    body: Json<rest::PauseSandbox>,
) -> Result<StatusCode, ApiError> {
    paused(&app, &id, caller.runtime.pause_with(&id, memory(body.value.memory)).await).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What came of a pause. Where copies are waited for, whoever was told that there is none and asks again is answered as if that were the
/// first time: E2B's clients do so by themselves.
async fn paused(app: &App, id: &SandboxId, paused: Result<(), SnapshotError>) -> Result<(), ApiError> {
    let Some(copies) = &app.config.second_copies else { return Ok(paused?) };
    match paused {
        Ok(()) => copies.copied(id).await.map(drop).map_err(Into::into),
        Err(error @ SnapshotError::AlreadyPaused(_)) => match copies.copied(id).await? {
            Copied::Now => Ok(()),
            Copied::Before => Err(error.into()),
        },
        Err(error) => Err(error.into()),
    }
}

/// `POST /sandboxes/{id}/fork`.
pub(super) async fn fork(
    State(app): State<Arc<App>>,
    caller: Caller,
    Sandbox(id): Sandbox,
    body: Json<rest::ForkSandbox>,
) -> Result<(StatusCode, Reply<Vec<rest::ForkResult>>), ApiError> {
    let body = body.value;
    let count = body.count.unwrap_or(1);
    let count = u32::try_from(count).map_err(|_| ApiError::bad_request(format!("`count` cannot be {count}")))?;
    let timeout = seconds(body.timeout.unwrap_or(SHORT_TIMEOUT))?;
    let children = caller.runtime.fork(&id, count, timeout).await?;
    let results = children.into_iter().map(|child| match child {
        Ok(sandbox) => rest::ForkResult { sandbox: Some(shape::sandbox(sandbox, app.config.domain.as_deref())), error: None },
        Err(error) => rest::ForkResult { sandbox: None, error: Some(ApiError::from(error).to_body()) },
    });
    Ok((StatusCode::CREATED, Reply(results.collect())))
}

/// `POST /sandboxes/{id}/rollback`, a route of our own.
pub(super) async fn rollback(
    State(app): State<Arc<App>>,
    caller: Caller,
    Sandbox(id): Sandbox,
    body: Json<rest::RollbackSandbox>,
) -> Result<Reply<rest::Sandbox>, ApiError> {
    let sandbox = caller.runtime.rollback(&id, &body.value.snapshot_id).await?;
    Ok(Reply(shape::sandbox(sandbox, app.config.domain.as_deref())))
}

/// `POST /sandboxes/{id}/timeout`.
pub(super) async fn set_timeout(
    caller: Caller,
    Sandbox(id): Sandbox,
    body: Json<rest::SetTimeout>,
) -> Result<StatusCode, ApiError> {
    caller.runtime.set_timeout(&id, seconds(body.value.timeout)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /sandboxes/{id}/refreshes`.
pub(super) async fn refresh(caller: Caller, Sandbox(id): Sandbox, body: Json<rest::Refresh>) -> Result<StatusCode, ApiError> {
    let duration = body.value.duration.unwrap_or(SHORT_TIMEOUT);
    if duration > MAX_REFRESH {
        return Err(InvalidTimeout::TooLong { max_hours: 1 }.into());
    }
    caller.runtime.extend_timeout(&id, seconds(duration)?).await?;
    Ok(StatusCode::NO_CONTENT)
}
