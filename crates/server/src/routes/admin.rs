//! Teams and their keys, for who administers the host. Ours: the contract's dashboard has its own ways.

use std::sync::Arc;

use axum::{
    Json as Reply,
    extract::{Path, State},
};
use firkin_runtime::{
    capacity::TeamQuota,
    ids::KeyId,
    runtime::{KeyInfo, NewKey, TeamError, TeamInfo},
    store::KeyScope,
    team::TeamId,
};
use http::StatusCode;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{App, LogControl, error::ApiError, extract::Json, listing::Query, logging::MAX_FILTER_BYTES};

/// A team.
#[derive(Debug, Serialize)]
pub(super) struct Team {
    #[serde(rename = "teamID")]
    team_id: TeamId,
    name: String,
    #[serde(rename = "createdAt")]
    created_at: Timestamp,
    quota: TeamQuota,
}

/// The body of `POST /admin/teams`.
#[derive(Debug, Deserialize)]
pub(super) struct NewTeam {
    #[serde(rename = "teamID")]
    team_id: String,
    name: Option<String>,
    #[serde(default)]
    quota: TeamQuota,
}

/// A key, without the key.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Key {
    id: KeyId,
    #[serde(rename = "teamID")]
    team: TeamId,
    name: String,
    scope: KeyScope,
    created_at: Option<Timestamp>,
    expires_at: Option<Timestamp>,
    revoked_at: Option<Timestamp>,
    last_used_at: Option<Timestamp>,
    /// Told once, when it is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
}

/// The body of `POST /admin/teams/{id}/keys`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RequestedKey {
    #[serde(default)]
    name: String,
    scope: Option<KeyScope>,
    expires_at: Option<Timestamp>,
}

/// The body of `PATCH /admin/keys/{id}`: when the key ends, or null for never.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Expiry {
    expires_at: Option<Timestamp>,
}

impl From<TeamInfo> for Team {
    fn from(TeamInfo { id, name, created_at, quota }: TeamInfo) -> Self {
        Self { team_id: id, name, created_at, quota }
    }
}

impl From<KeyInfo> for Key {
    fn from(info: KeyInfo) -> Self {
        let KeyInfo { id, team, name, scope, created_at, expires_at, revoked_at, last_used_at } = info;
        Self { id, team, name, scope, created_at, expires_at, revoked_at, last_used_at, key: None }
    }
}

fn team_id(text: &str) -> Result<TeamId, ApiError> {
    text.parse().map_err(|error| TeamError::Malformed(error).into())
}

/// `GET /admin/teams`.
pub(super) async fn teams(State(app): State<Arc<App>>) -> Result<Reply<Vec<Team>>, ApiError> {
    Ok(Reply(app.host().teams().await?.into_iter().map(Team::from).collect()))
}

/// `POST /admin/teams`.
pub(super) async fn add_team(State(app): State<Arc<App>>, body: Json<NewTeam>) -> Result<(StatusCode, Reply<Team>), ApiError> {
    let NewTeam { team_id: id, name, quota } = body.value;
    let team = app.host().add_team(team_id(&id)?, name, quota).await?;
    Ok((StatusCode::CREATED, Reply(team.into())))
}

/// `PUT /admin/teams/{id}/quota`: replaces all of it; what is left out is without a limit.
pub(super) async fn set_quota(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    body: Json<TeamQuota>,
) -> Result<Reply<Team>, ApiError> {
    Ok(Reply(app.host().set_team_quota(&team_id(&id)?, body.value).await?.into()))
}

/// `GET /admin/keys`, of one team with `?team=`.
pub(super) async fn keys(State(app): State<Arc<App>>, query: Query) -> Result<Reply<Vec<Key>>, ApiError> {
    let team = query.get("team").map(team_id).transpose()?;
    Ok(Reply(app.host().keys(team.as_ref()).await?.into_iter().map(Key::from).collect()))
}

/// `POST /admin/teams/{id}/keys`.
pub(super) async fn add_key(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    body: Json<RequestedKey>,
) -> Result<(StatusCode, Reply<Key>), ApiError> {
    let RequestedKey { name, scope, expires_at } = body.value;
    let new = NewKey { name, scope: scope.unwrap_or(KeyScope::Full), expires_at };
    let (info, key) = app.host().add_key(&team_id(&id)?, new).await?;
    Ok((StatusCode::CREATED, Reply(Key { key: Some(key), ..info.into() })))
}

/// `PATCH /admin/keys/{id}`.
pub(super) async fn expire_key(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    body: Json<Expiry>,
) -> Result<Reply<Key>, ApiError> {
    Ok(Reply(app.host().expire_key(&id, body.value.expires_at).await?.into()))
}

/// `DELETE /admin/keys/{id}`: it opens nothing any more, and stays on record.
pub(super) async fn revoke_key(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<StatusCode, ApiError> {
    app.host().revoke_key(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What is logged, and the body of `PUT /admin/log-level`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct LogLevel {
    filter: String,
}

fn control(app: &App) -> Result<&LogControl, ApiError> {
    app.config.log.as_ref().ok_or_else(|| ApiError::not_found("what this server logs cannot be changed while it runs".to_owned()))
}

/// `GET /admin/log-level`.
pub(super) async fn log_level(State(app): State<Arc<App>>) -> Result<Reply<LogLevel>, ApiError> {
    let filter = control(&app)?.filter(None)?;
    Ok(Reply(LogLevel { filter }))
}

/// `PUT /admin/log-level`, until the server ends: `info`, or `warn,firkin_runtime=debug`.
pub(super) async fn set_log_level(State(app): State<Arc<App>>, body: Json<LogLevel>) -> Result<Reply<LogLevel>, ApiError> {
    let LogLevel { filter } = body.value;
    if filter.is_empty() || filter.len() > MAX_FILTER_BYTES {
        return Err(ApiError::bad_request(format!("`filter` must have 1 to {MAX_FILTER_BYTES} bytes")));
    }
    let filter = control(&app)?.filter(Some(&filter))?;
    Ok(Reply(LogLevel { filter }))
}
