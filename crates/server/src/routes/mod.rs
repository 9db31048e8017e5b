//! E2B's control plane: which path and method is which operation.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::OriginalUri,
    middleware::from_fn_with_state,
    routing::{delete, get, patch, post, put},
};
use firkin_runtime::sandbox::{InvalidTimeout, Memory};

use crate::{App, auth, error::ApiError, listing::Query, metrics, openapi};

mod admin;
mod builds;
mod copies;
mod create;
mod encryption;
pub(crate) mod events;
mod everywhere;
mod health;
mod host;
mod identity;
mod lifecycle;
mod lives;
mod logs;
mod moving;
mod network;
mod relocating;
mod sandboxes;
mod secrets;
mod snapshots;
mod tags;
mod teams;
mod templates;
mod volumes;
mod webhooks;
mod workload;

/// Every route. What is not one is refused in the contract's form too.
pub(crate) fn control_plane(app: &Arc<App>) -> Router {
    let routes = of_the_host()
        .route("/sandboxes", post(create::v1).get(sandboxes::list_v1))
        .route("/v2/sandboxes", post(create::v2).get(sandboxes::list_v2))
        .route("/sandboxes/metrics", get(sandboxes::metrics_of_many))
        .route("/sandboxes/{id}", get(sandboxes::detail).delete(sandboxes::kill))
        .route("/sandboxes/{id}/metrics", get(sandboxes::metrics))
        .route("/sandboxes/{id}/connect", post(lifecycle::connect_v1))
        .route("/v2/sandboxes/{id}/connect", post(lifecycle::connect_v2))
        .route("/sandboxes/{id}/resume", post(lifecycle::resume))
        .route("/sandboxes/{id}/pause", post(lifecycle::pause))
        .route("/sandboxes/{id}/fork", post(lifecycle::fork))
        // Ours: the contract has no way back.
        .route("/sandboxes/{id}/rollback", post(lifecycle::rollback))
        .route("/sandboxes/{id}/timeout", post(lifecycle::set_timeout))
        .route("/sandboxes/{id}/refreshes", post(lifecycle::refresh))
        .route("/sandboxes/{id}/network", put(network::update))
        // Ours.
        .route("/sandboxes/{id}/network/audit", get(network::audit))
        .route("/sandboxes/{id}/snapshots", post(snapshots::take))
        .route("/snapshots", get(snapshots::list))
        .route("/teams/{id}/metrics", get(teams::metrics))
        .route("/teams/{id}/metrics/max", get(teams::most))
        // Ours, too.
        .route("/lineage", get(snapshots::lineage))
        .route("/encryption/rotate", post(encryption::rotate))
        .route("/templates", get(templates::list).post(builds::request_legacy))
        .route("/v2/templates", get(templates::list_pages).post(builds::request_legacy))
        .route("/templates/aliases/{alias}", get(templates::alias))
        .route("/sandboxes/{id}/logs", get(logs::v1))
        .route("/v2/sandboxes/{id}/logs", get(logs::v2))
        .route("/templates/tags", post(tags::assign).delete(tags::remove))
        .route("/templates/{id}/tags", get(tags::list))
        .route("/templates/{id}", get(templates::detail).patch(templates::update_v1).post(builds::rebuild_legacy))
        .route("/templates/{id}", delete(templates::remove))
        .route("/default-templates", get(templates::default))
        .route("/templates/{id}/tags/count", get(tags::count))
        .route("/templates/{id}/tags/exists", get(tags::exists))
        .route("/templates/{id}/tags/groups", get(tags::groups))
        .route("/templates/{id}/tags/{tag}/assignments", get(tags::assignments))
        .route("/secrets", post(secrets::create).get(secrets::list))
        .route("/secrets/{id}", get(secrets::detail).post(secrets::update).delete(secrets::destroy))
        .route("/volumes", post(volumes::create).get(volumes::list))
        .route("/volumes/{id}", get(volumes::detail).delete(volumes::destroy))
        .route("/v2/templates/{id}", patch(templates::update_v2))
        .route("/v3/templates", post(builds::request))
        .route("/templates/{id}/files/{hash}", get(builds::upload_link))
        .route("/templates/{id}/builds/{build}", post(builds::rebuild_legacy))
        .route("/v2/templates/{id}/builds/{build}", post(builds::start))
        .route("/templates/{id}/builds/{build}/status", get(builds::status))
        .route("/templates/{id}/builds/{build}/logs", get(builds::logs))
        // Guarded by the token of each volume.
        .route("/volumecontent/{id}/path", get(volumes::stat).patch(volumes::change).delete(volumes::remove))
        .route("/volumecontent/{id}/dir", get(volumes::entries).post(volumes::make_dir))
        .route("/volumecontent/{id}/file", get(volumes::read).put(volumes::write))
        // Guarded by its signature.
        .route("/templates/{id}/files/{hash}", put(builds::upload))
        // What each asks for is in one table.
        .route_layer(from_fn_with_state(Arc::clone(app), auth::admit));
    routes
        .fallback(async |OriginalUri(uri): OriginalUri| ApiError::no_route(uri.path()))
        .method_not_allowed_fallback(async || ApiError::method_not_allowed())
        .with_state(Arc::clone(app))
}

/// Routes beside a team's things: who may use the server, how it is and what happens there, and what is open to all.
fn of_the_host() -> Router<Arc<App>> {
    Router::new()
        // Ours: who may use the server.
        .route("/admin/teams", get(admin::teams).post(admin::add_team))
        .route("/admin/teams/{id}/quota", put(admin::set_quota))
        .route("/admin/teams/{id}/keys", post(admin::add_key))
        .route("/admin/keys", get(admin::keys))
        .route("/admin/log-level", get(admin::log_level).put(admin::set_log_level))
        .route("/admin/keys/{id}", patch(admin::expire_key).delete(admin::revoke_key))
        // Ours: what moves between hosts.
        .route("/admin/export", get(moving::export))
        .route("/admin/import", post(moving::import))
        .route("/admin/sandboxes/{id}/move", post(relocating::move_away))
        .route("/admin/take", post(relocating::take))
        .route("/admin/signer", get(relocating::signer))
        .route("/admin/copies", post(copies::keep))
        .route("/health", get(health::health))
        .route("/teams", get(teams::list))
        .route("/metrics", get(metrics::read))
        .route("/openapi.json", get(openapi::read))
        // What changes, and the host in figures: ours, but for sandboxes and webhooks.
        .route("/events", get(events::follow))
        .route("/events/sandboxes", get(lives::of_all))
        .route("/events/sandboxes/{id}", get(lives::of_one))
        .route("/events/webhooks", post(webhooks::add).get(webhooks::list))
        .route("/events/webhooks/{id}", get(webhooks::detail).patch(webhooks::change).delete(webhooks::remove))
        .route("/events/webhooks/{id}/deliveries", get(webhooks::deliveries))
        .route("/events/webhooks/{id}/deliveries/retry", post(webhooks::redeliver))
        .route("/host", get(host::outlook))
        .route("/capacity", get(host::capacity))
        .route("/pool", get(host::pool))
        .route("/files", get(files).post(files))
        .route("/.well-known/jwks.json", get(workload::keys))
        .route("/.well-known/openid-configuration", get(workload::discovery))
}

/// A file of no sandbox: envd would say the same, but whose envd nobody knows. Signed URLs of sandboxes never come here.
async fn files(query: Query) -> ApiError {
    match query.get("signature") {
        Some(_) => ApiError::unauthorized("invalid signature"),
        None => ApiError::unauthorized("missing signature query parameter"),
    }
}

/// Life of a v1 sandbox, after a resume and in a fork, where the caller names none, in seconds.
const SHORT_TIMEOUT: i64 = 15;

/// The same after a v2 create or connect.
const V2_TIMEOUT: i64 = 300;

/// Seconds as they are on the wire. The runtime refuses what is too long, and zero where that is senseless.
pub(crate) fn seconds(timeout: i64) -> Result<Duration, InvalidTimeout> {
    u64::try_from(timeout).map(Duration::from_secs).map_err(|_| InvalidTimeout::Zero)
}

/// The option `memory` of pause, resume and snapshot, which defaults to true.
fn memory(option: Option<bool>) -> Memory {
    if option == Some(false) { Memory::Dropped } else { Memory::Kept }
}
