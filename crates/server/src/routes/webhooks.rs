//! E2B's webhooks. What is on its way, and what was given up, is shown by routes of our own.

use std::collections::BTreeSet;

use axum::{Json as Reply, extract::Path};
use firkin_runtime::{
    store::{LifecycleKind, ShownDelivery, Webhook},
    webhooks::{WebhookError, WebhookRequest},
};
use http::StatusCode;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{auth::Caller, error::ApiError, extract::Json};

/// A webhook. E2B's documents write the team's id in both ways.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Shown {
    id: String,
    #[serde(rename = "teamID")]
    team: String,
    team_id: String,
    name: String,
    created_at: Timestamp,
    enabled: bool,
    url: String,
    events: BTreeSet<LifecycleKind>,
}

impl From<Webhook> for Shown {
    fn from(webhook: Webhook) -> Self {
        let Webhook { id, owner, name, url, events, enabled, created_at, .. } = webhook;
        Self { id: id.into(), team: owner.to_string(), team_id: owner.into(), name, created_at, enabled, url, events }
    }
}

/// The body of a request for a webhook, or for a change of one.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Wanted {
    name: Option<String>,
    url: Option<String>,
    events: Option<BTreeSet<LifecycleKind>>,
    enabled: Option<bool>,
    signature_secret: Option<String>,
}

/// Without its secret, which is in no log.
impl std::fmt::Debug for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wanted").field("name", &self.name).finish_non_exhaustive()
    }
}

impl From<Wanted> for WebhookRequest {
    fn from(wanted: Wanted) -> Self {
        let Wanted { name, url, events, enabled, signature_secret } = wanted;
        Self { name, url, events, enabled, secret: signature_secret }
    }
}

/// `POST /events/webhooks`.
pub(super) async fn add(caller: Caller, body: Json<Wanted>) -> Result<(StatusCode, Reply<Shown>), ApiError> {
    let added = caller.runtime.add_webhook(body.value.into()).await?;
    Ok((StatusCode::CREATED, Reply(added.into())))
}

/// `GET /events/webhooks`.
pub(super) async fn list(caller: Caller) -> Result<Reply<Vec<Shown>>, ApiError> {
    Ok(Reply(caller.runtime.webhooks().await?.into_iter().map(Shown::from).collect()))
}

/// `GET /events/webhooks/{id}`.
pub(super) async fn detail(caller: Caller, Path(id): Path<String>) -> Result<Reply<Shown>, ApiError> {
    Ok(Reply(caller.runtime.webhook(&id).await?.into()))
}

/// `PATCH /events/webhooks/{id}`.
pub(super) async fn change(caller: Caller, Path(id): Path<String>, body: Json<Wanted>) -> Result<Reply<Shown>, ApiError> {
    Ok(Reply(caller.runtime.change_webhook(&id, body.value.into()).await?.into()))
}

/// `DELETE /events/webhooks/{id}`. By contract 200.
pub(super) async fn remove(caller: Caller, Path(id): Path<String>) -> Result<Reply<Value>, ApiError> {
    caller.runtime.delete_webhook(&id).await?;
    Ok(Reply(json!({})))
}

/// A delivery that has not arrived.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ShownAttempt {
    event_id: String,
    #[serde(rename = "type")]
    kind: LifecycleKind,
    timestamp: Timestamp,
    /// `waiting` or `dead`.
    state: &'static str,
    attempts: u32,
    next_attempt_at: Option<Timestamp>,
    error: Option<String>,
}

/// `GET /events/webhooks/{id}/deliveries`.
pub(super) async fn deliveries(caller: Caller, Path(id): Path<String>) -> Result<Reply<Vec<ShownAttempt>>, ApiError> {
    let shown = |ShownDelivery { delivery, due }| ShownAttempt {
        event_id: delivery.event_id,
        kind: delivery.kind,
        timestamp: delivery.at,
        state: if due.is_some() { "waiting" } else { "dead" },
        attempts: delivery.attempts,
        next_attempt_at: due,
        error: delivery.error,
    };
    Ok(Reply(caller.runtime.deliveries(&id).await?.into_iter().map(shown).collect()))
}

/// `POST /events/webhooks/{id}/deliveries/retry`: sends again what was given up.
pub(super) async fn redeliver(caller: Caller, Path(id): Path<String>) -> Result<Reply<Value>, ApiError> {
    Ok(Reply(json!({ "retried": caller.runtime.redeliver(&id).await? })))
}

impl From<WebhookError> for ApiError {
    fn from(error: WebhookError) -> Self {
        match &error {
            WebhookError::NotFound(_) | WebhookError::Id(_) => Self::not_found(error.to_string()),
            WebhookError::Name | WebhookError::Events | WebhookError::Secret | WebhookError::Target(_) => {
                Self::bad_request(error.to_string())
            }
            WebhookError::Limit => Self::forbidden(error.to_string()),
            WebhookError::Store(_) => Self::internal(&error),
        }
    }
}
