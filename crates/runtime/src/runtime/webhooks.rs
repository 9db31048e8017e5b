//! The runtime's face for webhooks, and for what happened to sandboxes in E2B's form.

use std::{collections::BTreeSet, sync::Arc};

use jiff::Timestamp;

use super::Runtime;
use crate::{
    ground::ids::{InvalidId, WebhookId},
    store::spec::SandboxId,
    store::{LifecycleKind, MAX_WEBHOOKS, ShownDelivery, StoreError, Webhook, WebhookChange},
    telemetry::lifecycle::LifecycleEvent,
};

pub use crate::telemetry::webhooks::TargetError;

/// The longest name of a webhook, bytes.
const MAX_NAME_BYTES: usize = 128;

/// The longest secret, bytes.
const MAX_SECRET_BYTES: usize = 1024;

/// What a webhook is to be; of a change, absent fields stay as they are.
#[derive(Clone, Default)]
pub struct WebhookRequest {
    /// For people.
    pub name: Option<String>,
    /// Where to.
    pub url: Option<String>,
    /// Which events.
    pub events: Option<BTreeSet<LifecycleKind>>,
    /// Whether anything is sent.
    pub enabled: Option<bool>,
    /// By which its receiver knows us.
    pub secret: Option<String>,
}

/// Without its secret, which is in no log.
impl std::fmt::Debug for WebhookRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WebhookRequest").field("name", &self.name).field("url", &self.url).finish_non_exhaustive()
    }
}

/// Why something was not done with a webhook.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    /// There is none.
    #[error("webhook `{0}` not found")]
    NotFound(String),
    /// Not an id.
    #[error(transparent)]
    Id(#[from] InvalidId),
    /// It needs one.
    #[error("a webhook's name has 1 to {MAX_NAME_BYTES} bytes")]
    Name,
    /// It needs some.
    #[error("a webhook needs at least one event")]
    Events,
    /// It needs one.
    #[error("a webhook's secret has 1 to {MAX_SECRET_BYTES} bytes")]
    Secret,
    /// Not where events are sent to.
    #[error("events cannot be sent to this URL: {0}")]
    Target(TargetError),
    /// The team has as many as it may.
    #[error("cannot keep more than {MAX_WEBHOOKS} webhooks")]
    Limit,
    /// The store failed.
    #[error("cannot record the webhook")]
    Store(#[source] StoreError),
}

impl Runtime {
    /// The webhooks of this scope, the oldest first.
    pub async fn webhooks(&self) -> Result<Vec<Webhook>, WebhookError> {
        self.shared.store.webhooks(self.scope.clone()).await.map_err(WebhookError::Store)
    }

    /// One webhook.
    pub async fn webhook(&self, id: &str) -> Result<Webhook, WebhookError> {
        let wanted: WebhookId = id.parse()?;
        let found = self.webhooks().await?.into_iter().find(|webhook| webhook.id == wanted);
        found.ok_or_else(|| WebhookError::NotFound(id.to_owned()))
    }

    /// Sends events of this scope's sandboxes from now on.
    pub async fn add_webhook(&self, request: WebhookRequest) -> Result<Webhook, WebhookError> {
        self.check(&request)?;
        let WebhookRequest { name, url, events, enabled, secret } = request;
        let webhook = Webhook {
            id: WebhookId::generate(),
            owner: self.scope.owner(),
            name: name.ok_or(WebhookError::Name)?,
            url: url.ok_or(WebhookError::Target(TargetError::Malformed))?,
            events: events.ok_or(WebhookError::Events)?,
            enabled: enabled.unwrap_or(true),
            created_at: Timestamp::now(),
            secret: secret.ok_or(WebhookError::Secret)?,
        };
        if !self.shared.store.add_webhook(webhook.clone()).await.map_err(WebhookError::Store)? {
            return Err(WebhookError::Limit);
        }
        self.renew_webhooks().await?;
        Ok(webhook)
    }

    /// Changes a webhook. What is on its way already goes where it points then.
    pub async fn change_webhook(&self, id: &str, request: WebhookRequest) -> Result<Webhook, WebhookError> {
        self.check(&request)?;
        let WebhookRequest { name, url, events, enabled, secret } = request;
        let change = WebhookChange { name, url, events, enabled, secret };
        let changed = self.shared.store.change_webhook(self.scope.clone(), id.parse()?, change).await;
        let changed = changed.map_err(WebhookError::Store)?.ok_or_else(|| WebhookError::NotFound(id.to_owned()))?;
        self.renew_webhooks().await?;
        Ok(changed)
    }

    /// Forgets a webhook and all that is on its way to it.
    pub async fn delete_webhook(&self, id: &str) -> Result<(), WebhookError> {
        if !self.shared.store.delete_webhook(self.scope.clone(), id.parse()?).await.map_err(WebhookError::Store)? {
            return Err(WebhookError::NotFound(id.to_owned()));
        }
        self.renew_webhooks().await
    }

    /// What is on its way to a webhook, and what was given up, the newest first.
    pub async fn deliveries(&self, id: &str) -> Result<Vec<ShownDelivery>, WebhookError> {
        let found = self.shared.store.deliveries(self.scope.clone(), id.parse()?).await.map_err(WebhookError::Store)?;
        found.ok_or_else(|| WebhookError::NotFound(id.to_owned()))
    }

    /// Sends again what was given up. How much that is.
    pub async fn redeliver(&self, id: &str) -> Result<usize, WebhookError> {
        let revived = self.shared.store.revive(self.scope.clone(), id.parse()?, Timestamp::now()).await;
        let revived = revived.map_err(WebhookError::Store)?.ok_or_else(|| WebhookError::NotFound(id.to_owned()))?;
        self.renew_webhooks().await?;
        Ok(revived)
    }

    /// What happened to sandboxes of this scope, or to one of them, since this server began, the oldest first; so much as is kept.
    pub fn lifecycle(&self, sandbox: Option<&SandboxId>) -> Vec<LifecycleEvent> {
        let changes = self.shared.changes.lives(&self.scope, sandbox);
        changes.iter().filter_map(|change| LifecycleEvent::of(change)).collect()
    }

    fn check(&self, request: &WebhookRequest) -> Result<(), WebhookError> {
        let fits = |text: &Option<String>, most: usize| text.as_ref().is_none_or(|text| (1..=most).contains(&text.len()));
        if !fits(&request.name, MAX_NAME_BYTES) {
            return Err(WebhookError::Name);
        }
        if !fits(&request.secret, MAX_SECRET_BYTES) {
            return Err(WebhookError::Secret);
        }
        if request.events.as_ref().is_some_and(BTreeSet::is_empty) {
            return Err(WebhookError::Events);
        }
        request.url.as_ref().map_or(Ok(()), |url| self.shared.webhooks.check(url).map_err(WebhookError::Target))
    }

    async fn renew_webhooks(&self) -> Result<(), WebhookError> {
        Arc::clone(&self.shared.webhooks).renew().await.map_err(WebhookError::Store)
    }
}
