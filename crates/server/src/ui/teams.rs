//! Teams and their keys. A session shows the admin token, and may administer for a while then: a key alone does not, on any page.

use std::sync::Arc;

use axum::{
    extract::State,
    response::{IntoResponse, Redirect, Response},
};
use firkin_dashboard::{
    frame::Section,
    teams::{self as pages, Key, Team, Teams},
};
use firkin_runtime::{
    capacity::TeamQuota,
    runtime::{KeyInfo, NewKey, TeamError, TeamInfo},
    store::KeyScope,
    team::TeamId,
};
use jiff::{SignedDuration, Timestamp};

use super::{Visitor, answer, form::Form, place, session::MadeKey};
use crate::{App, auth, error::ApiError};

/// Where all of it is.
const PAGE: &str = "/ui/teams";

/// Keys that are shown, the newest.
const MAX_KEYS: usize = 1000;

/// Refuses a session that has not shown the admin token, or too long ago.
fn demand_admin(app: &App, visitor: &Visitor) -> Result<(), ApiError> {
    if app.sessions.administers(&visitor.ticket) { Ok(()) } else { Err(ApiError::for_the_host()) }
}

/// `GET /ui/teams`.
pub(super) async fn page(State(app): State<Arc<App>>, visitor: Visitor) -> Result<Response, ApiError> {
    if app.sessions.administers(&visitor.ticket) { shown(&app, &visitor).await } else { Ok(locked(&visitor, false)) }
}

fn locked(visitor: &Visitor, refused: bool) -> Response {
    let viewer = visitor.viewer();
    answer::page(pages::locked(&viewer, place(&viewer, Section::Teams), refused))
}

/// `POST /ui/teams/unlock`.
pub(super) async fn unlock(State(app): State<Arc<App>>, form: Form) -> Result<Response, ApiError> {
    if !auth::is_admin_token(&app, form.need("admin")?.trim().as_bytes()) {
        let status = ApiError::unauthorized("this is not the admin token").status();
        return Ok((status, locked(&form.visitor, true)).into_response());
    }
    app.sessions.administer(&form.visitor.ticket);
    Ok(Redirect::to(PAGE).into_response())
}

async fn shown(app: &App, visitor: &Visitor) -> Result<Response, ApiError> {
    let now = Timestamp::now();
    let mut keys = app.host().keys(None).await?;
    keys.drain(..keys.len().saturating_sub(MAX_KEYS));
    let view = Teams {
        teams: app.host().teams().await?.into_iter().map(team).collect(),
        keys: keys.into_iter().map(|info| key(info, now)).collect(),
        made: app.sessions.take_keys(&visitor.ticket).into_iter().map(|MadeKey { id, key }| (id, key)).collect(),
        outcome: app.sessions.told(&visitor.ticket),
        now,
    };
    let viewer = visitor.viewer();
    Ok(answer::page(pages::teams(&viewer, place(&viewer, Section::Teams), &view)))
}

fn team(info: TeamInfo) -> Team {
    let TeamQuota { running, paused, cpus, memory_mib, disk_mib, snapshots, volumes, creates_per_minute } = info.quota;
    let quota = vec![
        ("running", "Running", running.map(u64::from)),
        ("paused", "Paused", paused.map(u64::from)),
        ("cpus", "CPUs", cpus.map(u64::from)),
        ("memory_mib", "Memory, MiB", memory_mib),
        ("disk_mib", "Disk, MiB", disk_mib),
        ("snapshots", "Snapshots", snapshots.map(u64::from)),
        ("volumes", "Volumes", volumes.map(u64::from)),
        ("creates_per_minute", "Creates a minute", creates_per_minute.map(u64::from)),
    ];
    Team { id: info.id.to_string(), name: info.name, quota }
}

fn key(info: KeyInfo, now: Timestamp) -> Key {
    let (state, is_good) = match (info.revoked_at, info.expires_at) {
        (Some(at), _) => (format!("revoked {}", firkin_dashboard::when::instant(at)), false),
        (None, Some(at)) if at <= now => (format!("ended {}", firkin_dashboard::when::instant(at)), false),
        (None, Some(at)) => (format!("good until {}", firkin_dashboard::when::instant(at)), true),
        (None, None) => ("good".to_owned(), true),
    };
    let scope = match info.scope {
        KeyScope::Read => "read",
        KeyScope::Sandboxes => "sandboxes",
        KeyScope::Full => "full",
    };
    Key { id: info.id.to_string(), team: info.team.to_string(), name: info.name, scope, state, is_good, used: info.last_used_at }
}

fn team_id(form: &Form) -> Result<TeamId, ApiError> {
    form.need("team")?.parse().map_err(|error| TeamError::Malformed(error).into())
}

fn done(app: &App, form: &Form, what: String) -> Response {
    app.sessions.tell(&form.visitor.ticket, vec![what]);
    Redirect::to(PAGE).into_response()
}

/// `POST /ui/teams`.
pub(super) async fn add(State(app): State<Arc<App>>, form: Form) -> Result<Response, ApiError> {
    demand_admin(&app, &form.visitor)?;
    let name = form.fields.get("name").map(str::to_owned);
    let team = app.host().add_team(team_id(&form)?, name, TeamQuota::default()).await?;
    Ok(done(&app, &form, format!("Team {} is there.", team.id)))
}

/// `POST /ui/teams/quota`: all of it; what is empty is without a limit.
pub(super) async fn quota(State(app): State<Arc<App>>, form: Form) -> Result<Response, ApiError> {
    demand_admin(&app, &form.visitor)?;
    let large = |name: &str| {
        let parse = |text: &str| text.parse::<u64>().map_err(|_| ApiError::bad_request(format!("`{name}` is a number")));
        form.fields.get(name).map(parse).transpose()
    };
    let small = |name: &str| {
        let too_large = |_| ApiError::bad_request(format!("`{name}` is too large"));
        large(name)?.map(|count| u32::try_from(count).map_err(too_large)).transpose()
    };
    let quota = TeamQuota {
        running: small("running")?,
        paused: small("paused")?,
        cpus: small("cpus")?,
        memory_mib: large("memory_mib")?,
        disk_mib: large("disk_mib")?,
        snapshots: small("snapshots")?,
        volumes: small("volumes")?,
        creates_per_minute: small("creates_per_minute")?,
    };
    let team = app.host().set_team_quota(&team_id(&form)?, quota).await?;
    Ok(done(&app, &form, format!("The quota of {} is set.", team.id)))
}

/// `POST /ui/teams/keys`: the page that follows tells the key, once.
pub(super) async fn add_key(State(app): State<Arc<App>>, form: Form) -> Result<Response, ApiError> {
    demand_admin(&app, &form.visitor)?;
    let scope = match form.need("scope")? {
        "full" => KeyScope::Full,
        "sandboxes" => KeyScope::Sandboxes,
        "read" => KeyScope::Read,
        _ => return Err(ApiError::bad_request("`scope` is `full`, `sandboxes` or `read`")),
    };
    let days = form.fields.get("days").map(|days| days.parse::<u16>().map_err(|_| ApiError::bad_request("`days` is a number")));
    let after = |days: u16| Timestamp::now().checked_add(SignedDuration::from_hours(i64::from(days) * 24));
    let expires_at = days.transpose()?.map(after).transpose().map_err(|_| ApiError::bad_request("`days` is too many"))?;
    let new = NewKey { name: form.fields.get("name").unwrap_or_default().to_owned(), scope, expires_at };
    if app.sessions.keeps_enough(&form.visitor.ticket) {
        return Err(ApiError::conflict("keys were made that no page has shown yet: look at them first".to_owned()));
    }
    let (info, key) = app.host().add_key(&team_id(&form)?, new).await?;
    // By way of the next page: one that is loaded again makes no other.
    app.sessions.keep_key(&form.visitor.ticket, MadeKey { id: info.id.to_string(), key });
    Ok(Redirect::to(PAGE).into_response())
}

/// `POST /ui/teams/revoke`.
pub(super) async fn revoke(State(app): State<Arc<App>>, form: Form) -> Result<Response, ApiError> {
    demand_admin(&app, &form.visitor)?;
    let key = app.host().revoke_key(form.need("key")?).await?;
    Ok(done(&app, &form, format!("Key {} opens nothing any more.", key.id)))
}
