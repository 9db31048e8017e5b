//! The host in figures, as JSON, for those who run it. The words are those of the metrics.

use std::sync::Arc;

use axum::{Json as Reply, extract::State};
use firkin_runtime::{capacity::CapacityView, outlook::Outlook, warm::PoolStatus};

use crate::App;

/// `GET /host`.
pub(super) async fn outlook(State(app): State<Arc<App>>) -> Reply<Outlook> {
    Reply(app.host().outlook())
}

/// `GET /capacity`.
pub(super) async fn capacity(State(app): State<Arc<App>>) -> Reply<CapacityView> {
    Reply(app.host().capacity())
}

/// `GET /pool`.
pub(super) async fn pool(State(app): State<Arc<App>>) -> Reply<PoolStatus> {
    Reply(app.host().pool())
}
