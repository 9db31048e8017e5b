//! One sandbox: its pages, and what is done with it.

use std::{sync::Arc, time::Duration};

use axum::{
    Extension,
    extract::State,
    response::{IntoResponse, Redirect, Response},
};
use firkin_dashboard::{
    frame::Section,
    sandbox::{self as pages, Attempt, Event, Head, Kin, Network, Overview, Sample, Snapshot},
};
use firkin_runtime::{
    history,
    lineage::{LineageKind, LineageNode},
    reference::with_team,
    runtime::SnapshotInfo,
    sandbox::{InternetAccess, RuntimeSandbox, SandboxId},
};
use firkin_wire::{control::Stats, rest::LogLevel};
use http::{HeaderMap, StatusCode, Uri};
use jiff::Timestamp;

use super::{
    HOME, Visitor, answer,
    form::Form,
    inside, place,
    sandboxes::{state, then},
};
use crate::{
    App,
    audit::{Done, Each},
    error::ApiError,
    extract::Sandbox,
    latency::FirstAnswer,
    routes::seconds,
    shape,
    target::host,
};

/// What all pages of a sandbox show of it.
pub(super) fn head(sandbox: &RuntimeSandbox) -> Head {
    Head {
        id: sandbox.id.to_string(),
        state: state(sandbox.state),
        template: sandbox.alias.clone().unwrap_or_else(|| sandbox.template_id.clone()),
        auto_resume: sandbox.spec.auto_resume,
    }
}

/// `GET /ui/sandboxes/{id}`.
pub(super) async fn overview(State(app): State<Arc<App>>, visitor: Visitor, Sandbox(id): Sandbox) -> Result<Response, ApiError> {
    let runtime = &visitor.caller.runtime;
    let mut view = known(&visitor, &id)?;
    view.outcome = app.sessions.told(&visitor.ticket);
    let snapshots = runtime.snapshots().await.map_err(|error| ApiError::internal(&error))?;
    view.snapshots = snapshots.into_iter().filter(|snapshot| snapshot.sandbox_id == id).map(snapshot_of).collect();
    let forest = runtime.lineage().await.map_err(|error| ApiError::internal(&error))?;
    (view.above, view.below) = family(&forest, id.as_str());
    let viewer = visitor.viewer();
    Ok(answer::page(pages::overview(&viewer, place(&viewer, Section::Sandboxes), &view)))
}

/// `GET /ui/sandboxes/{id}/overview`: the part of it that changes by itself.
pub(super) async fn moving(visitor: Visitor, Sandbox(id): Sandbox, headers: HeaderMap) -> Result<Response, ApiError> {
    Ok(answer::part(&headers, answer::HTML, pages::moving(&known(&visitor, &id)?).into_string()))
}

/// What is known without asking the database or the guest.
fn known(visitor: &Visitor, id: &SandboxId) -> Result<Overview, ApiError> {
    let runtime = &visitor.caller.runtime;
    let sandbox = runtime.sandbox(id)?;
    let mut events: Vec<Event> = runtime.events(id).unwrap_or_default().into_iter().map(event).collect();
    events.reverse();
    Ok(Overview {
        head: head(&sandbox),
        facts: facts(&sandbox),
        started: sandbox.started_at,
        ends: sandbox.end_at,
        then: then(sandbox.spec.on_timeout),
        samples: runtime.recent_samples(id, usize::MAX).iter().map(sample).collect(),
        events,
        snapshots: Vec::new(),
        above: Vec::new(),
        below: Vec::new(),
        outcome: Vec::new(),
        environment: sandbox.spec.env.into_keys().collect(),
        metadata: sandbox.spec.metadata.into_iter().collect(),
        now: Timestamp::now(),
    })
}

fn facts(sandbox: &RuntimeSandbox) -> Vec<(&'static str, String)> {
    let budget = sandbox.budget;
    let yes = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let mut facts = vec![
        ("Template", sandbox.template_id.clone()),
        ("Team", sandbox.owner.to_string()),
        ("Size", format!("{} CPUs, {} MiB of memory, {} MiB of disk", budget.cpus, budget.memory_mib, budget.disk_mib)),
        ("Traffic resumes it", yes(sandbox.spec.auto_resume)),
        ("Was kept warm", yes(sandbox.claimed)),
        ("envd asks for its token", yes(sandbox.spec.secure)),
        ("Other ports are private", yes(sandbox.spec.ingress.private)),
    ];
    let mount = |mount: &firkin_runtime::sandbox::VolumeMount| format!("{} at {}", mount.name, mount.path);
    facts.extend(sandbox.spec.volumes.iter().map(|volume| ("Volume", mount(volume))));
    facts
}

fn sample(stats: &Stats) -> Sample {
    Sample {
        cpu: stats.cpu_used_pct.into(),
        memory: (stats.mem_used, stats.mem_total),
        disk: (stats.disk_used, stats.disk_total),
    }
}

/// A level of a log in a word.
pub(super) fn level(level: LogLevel) -> &'static str {
    match level {
        LogLevel::Debug => "debug",
        LogLevel::Info => "info",
        LogLevel::Warn => "warn",
        LogLevel::Error => "error",
    }
}

fn event(event: history::Event) -> Event {
    let fields = event.fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    Event { at: event.at, level: level(event.level), message: event.message, fields }
}

fn snapshot_of(snapshot: SnapshotInfo) -> Snapshot {
    let names = snapshot.names.iter().map(|name| with_team(&snapshot.owner, name)).collect();
    Snapshot { id: snapshot.snapshot_id, names, at: snapshot.created_at }
}

fn kin(node: &LineageNode) -> Kin {
    let kind = match node.kind {
        LineageKind::Template => "template",
        LineageKind::Snapshot => "snapshot",
        LineageKind::Sandbox => "sandbox",
    };
    Kin { kind, id: node.id.clone(), name: node.names.first().cloned() }
}

/// What stands above a sandbox, from the root on, and what directly below it.
fn family(forest: &[LineageNode], id: &str) -> (Vec<Kin>, Vec<Kin>) {
    // Each step is a node and how deep it is, so that no depth of a tree is a depth of the stack.
    let mut left: Vec<(&LineageNode, usize)> = forest.iter().map(|node| (node, 0)).collect();
    let mut above: Vec<&LineageNode> = Vec::new();
    while let Some((node, depth)) = left.pop() {
        above.truncate(depth);
        if node.kind == LineageKind::Sandbox && node.id == id {
            return (above.into_iter().map(kin).collect(), node.children.iter().map(kin).collect());
        }
        above.push(node);
        left.extend(node.children.iter().map(|child| (child, depth + 1)));
    }
    (Vec::new(), Vec::new())
}

/// `GET /ui/sandboxes/{id}/processes`.
pub(super) async fn processes(
    State(app): State<Arc<App>>,
    visitor: Visitor,
    Sandbox(id): Sandbox,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let sandbox = visitor.caller.runtime.sandbox(&id)?;
    let place_of_ports = inside::Links { host: host(&uri, &headers), domain: app.config.domain.as_deref() };
    let inside = inside::look(&visitor.caller.runtime, &sandbox, &place_of_ports).await;
    let viewer = visitor.viewer();
    Ok(answer::page(pages::processes(&viewer, place(&viewer, Section::Sandboxes), &head(&sandbox), &inside)))
}

/// `GET /ui/sandboxes/{id}/network`.
pub(super) async fn network(visitor: Visitor, Sandbox(id): Sandbox) -> Result<Response, ApiError> {
    let sandbox = visitor.caller.runtime.sandbox(&id)?;
    let mut decisions = visitor.caller.runtime.outbound_decisions(&id).await?;
    decisions.reverse();
    let attempts = decisions.into_iter().map(shape::network_decision).map(|decision| Attempt {
        at: decision.timestamp,
        kind: match decision.kind {
            firkin_wire::rest::NetworkAttempt::Dns => "name",
            firkin_wire::rest::NetworkAttempt::Tcp => "connection",
        },
        what: attempted(&decision),
        allowed: decision.allowed,
        why: decision.reason,
    });
    let (policy, rules) = policy(&sandbox);
    let network = Network { policy, rules, attempts: attempts.collect() };
    let viewer = visitor.viewer();
    Ok(answer::page(pages::network(place(&viewer, Section::Sandboxes), &head(&sandbox), &network)))
}

fn attempted(decision: &firkin_wire::rest::NetworkDecision) -> String {
    let name = decision.name.clone().into_iter();
    let address = decision.address.map(|address| address.to_string());
    let port = decision.port.map(|port| format!("port {port}"));
    name.chain(address).chain(port).collect::<Vec<_>>().join(" ")
}

fn policy(sandbox: &RuntimeSandbox) -> (&'static str, Vec<(&'static str, String)>) {
    match &sandbox.spec.internet {
        InternetAccess::Allowed => ("It reaches the internet, and never this host or another sandbox.", Vec::new()),
        InternetAccess::Denied => ("It reaches nothing.", Vec::new()),
        InternetAccess::Filtered(filter) => {
            let allow = filter.allow.iter().map(|net| ("Allowed", shape::destination(net)));
            let deny = filter.deny.iter().map(|net| ("Denied", shape::destination(net)));
            ("It reaches what these rules let it.", allow.chain(deny).collect())
        }
        InternetAccess::Steered(steered) => {
            let allow = steered.allow.iter().map(|rule| ("Allowed", rule.clone()));
            let deny = steered.deny.iter().map(|rule| ("Denied", rule.clone()));
            let proxy = steered.proxy.iter().map(|proxy| ("Through the proxy", proxy.address.clone()));
            let filled = steered.filled.iter().map(|filled| ("Headers are put in for", filled.host.clone()));
            ("It reaches what these rules let it, by name.", allow.chain(deny).chain(proxy).chain(filled).collect())
        }
    }
}

/// Back to the page of the sandbox, which says what was done.
fn done(app: &App, form: &Form, id: &SandboxId, what: String) -> Response {
    app.sessions.tell(&form.visitor.ticket, vec![what]);
    Redirect::to(&format!("{HOME}/{id}")).into_response()
}

/// `POST /ui/sandboxes/{id}/pause`.
pub(super) async fn pause(State(app): State<Arc<App>>, Sandbox(id): Sandbox, form: Form) -> Result<Response, ApiError> {
    form.visitor.caller.runtime.pause(&id).await?;
    Ok(done(&app, &form, &id, "Paused.".to_owned()))
}

/// The life that a sandbox was created with, for those who come of it or come back.
fn life(form: &Form, id: &SandboxId) -> Result<Duration, ApiError> {
    Ok(form.visitor.caller.runtime.sandbox(id)?.spec.timeout)
}

/// `POST /ui/sandboxes/{id}/resume`.
pub(super) async fn resume(State(app): State<Arc<App>>, Sandbox(id): Sandbox, form: Form) -> Result<Response, ApiError> {
    let life = life(&form, &id)?;
    form.visitor.caller.runtime.resume(&id, life).await?;
    Ok(done(&app, &form, &id, "Resumed.".to_owned()))
}

/// `POST /ui/sandboxes/{id}/extend`.
pub(super) async fn extend(State(app): State<Arc<App>>, Sandbox(id): Sandbox, form: Form) -> Result<Response, ApiError> {
    let minutes: i64 = form.need("minutes")?.parse().map_err(|_| ApiError::bad_request("`minutes` is a number"))?;
    let timeout = seconds(minutes.saturating_mul(60))?;
    form.visitor.caller.runtime.set_timeout(&id, timeout).await?;
    Ok(done(&app, &form, &id, format!("Its deadline is in {minutes} minutes.")))
}

/// `POST /ui/sandboxes/{id}/fork`.
pub(super) async fn fork(State(app): State<Arc<App>>, Sandbox(id): Sandbox, form: Form) -> Result<Response, ApiError> {
    let life = life(&form, &id)?;
    let child = form.visitor.caller.runtime.fork(&id, 1, life).await?.pop();
    let child = child.ok_or_else(|| ApiError::not_found("the fork made no sandbox".to_owned()))??;
    let response = done(&app, &form, &child.id, format!("This is a fork of {id}."));
    Ok((Extension(FirstAnswer(child.id)), response).into_response())
}

/// `POST /ui/sandboxes/{id}/snapshot`.
pub(super) async fn snapshot(State(app): State<Arc<App>>, Sandbox(id): Sandbox, form: Form) -> Result<Response, ApiError> {
    let name = form.fields.get("name").map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned);
    let taken = form.visitor.caller.runtime.snapshot(&id, name).await?;
    Ok(done(&app, &form, &id, format!("Snapshot {} was taken.", taken.snapshot_id)))
}

/// `POST /ui/sandboxes/{id}/rollback`.
pub(super) async fn rollback(State(app): State<Arc<App>>, Sandbox(id): Sandbox, form: Form) -> Result<Response, ApiError> {
    let snapshot = form.need("snapshot")?;
    form.visitor.caller.runtime.rollback(&id, snapshot).await?;
    Ok(done(&app, &form, &id, format!("It is what it was in snapshot {snapshot}.")))
}

/// `POST /ui/sandboxes/{id}/kill`.
pub(super) async fn kill(State(app): State<Arc<App>>, Sandbox(id): Sandbox, form: Form) -> Result<Response, ApiError> {
    form.visitor.caller.runtime.kill(&id).await?;
    app.sessions.tell(&form.visitor.ticket, vec![format!("{id} has ended.")]);
    Ok(Redirect::to(HOME).into_response())
}

/// `POST /ui/sandboxes/{id}/signal`: asks a process in it to end.
pub(super) async fn signal(Sandbox(id): Sandbox, form: Form) -> Result<Response, ApiError> {
    let pid: u32 = form.need("pid")?.parse().map_err(|_| ApiError::bad_request("`pid` is a number"))?;
    inside::terminate(&form.visitor.caller.runtime, &id, pid).await?;
    let done = Done { object: format!("{HOME}/{id}/processes/{pid}"), status: StatusCode::NO_CONTENT };
    Ok((Extension(Each(vec![done])), Redirect::to(&format!("{HOME}/{id}/processes"))).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(kind: LineageKind, id: &str, children: Vec<LineageNode>) -> LineageNode {
        LineageNode { kind, id: id.into(), names: Vec::new(), state: None, since: Timestamp::UNIX_EPOCH, children }
    }

    #[test]
    fn a_family_is_what_stands_above_and_what_directly_below() {
        let child = node(LineageKind::Sandbox, "i2", vec![node(LineageKind::Snapshot, "s", Vec::new())]);
        let other = node(LineageKind::Sandbox, "i3", Vec::new());
        let forest = [node(LineageKind::Template, "i2", vec![node(LineageKind::Sandbox, "i1", vec![child]), other])];
        let ids = |kin: Vec<Kin>| kin.into_iter().map(|kin| kin.id).collect::<Vec<_>>();
        let (above, below) = family(&forest, "i2");
        assert_eq!((ids(above), ids(below)), (vec!["i2".to_owned(), "i1".to_owned()], vec!["s".to_owned()]));
        assert_eq!(family(&forest, "none"), (Vec::new(), Vec::new()));
    }
}
