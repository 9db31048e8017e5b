//! The host's page, for its own team: figures of the runtime, with what each means and what to do about it.

use std::sync::Arc;

use axum::{
    extract::State,
    response::{IntoResponse as _, Response},
};
use firkin_dashboard::{
    frame::Section,
    host::{self as pages, Condition, Failure, Finding, Host, Measure, Phase},
    settings,
};
use firkin_runtime::{
    changes,
    outlook::{Measured, Outlook},
};
use http::HeaderMap;
use jiff::Timestamp;

use super::{Visitor, answer, place};
use crate::{App, error::ApiError};

/// Refuses who is of another team: it is of all of them.
pub(super) fn demand_host(visitor: &Visitor) -> Result<(), ApiError> {
    if visitor.caller.team.is_first() { Ok(()) } else { Err(ApiError::for_the_host()) }
}

/// `GET /ui/host`.
pub(super) async fn host(State(app): State<Arc<App>>, visitor: Visitor) -> Result<Response, ApiError> {
    demand_host(&visitor)?;
    let viewer = visitor.viewer();
    Ok(answer::page(pages::host(place(&viewer, Section::Host), &view(&app))))
}

/// `GET /ui/host/now`: the part of it that changes by itself.
pub(super) async fn now(State(app): State<Arc<App>>, visitor: Visitor, headers: HeaderMap) -> Result<Response, ApiError> {
    demand_host(&visitor)?;
    Ok(answer::part(&headers, answer::HTML, pages::moving(&view(&app)).into_string()).into_response())
}

/// `GET /ui/settings`.
pub(super) async fn settings(State(app): State<Arc<App>>, visitor: Visitor) -> Result<Response, ApiError> {
    demand_host(&visitor)?;
    let viewer = visitor.viewer();
    Ok(answer::page(settings::settings(place(&viewer, Section::Settings), &app.config.about.settings)))
}

fn view(app: &App) -> Host {
    let outlook = app.host().outlook();
    let mut failures: Vec<Failure> = outlook.errors.iter().map(|(kind, count)| failure(kind, *count)).collect();
    failures.sort_by(|a, b| (b.count, &a.kind).cmp(&(a.count, &b.kind)));
    let found = |finding: &crate::Finding| Finding {
        check: finding.check.clone(),
        status: finding.status,
        found: finding.found.clone(),
        remedy: finding.remedy.clone(),
    };
    Host {
        conditions: outlook.conditions.iter().map(|state| condition(state.condition, state.holds)).collect(),
        capacity: capacity(app),
        waiting: app.host().capacity().waiting,
        requests: requests(app),
        resources: resources(&outlook),
        pool: pool(app),
        phases: outlook
            .phases
            .iter()
            .map(|phase| Phase {
                name: phase.phase,
                meaning: meaning(phase.phase),
                count: phase.count,
                p50_ms: phase.p50_ms,
                p95_ms: phase.p95_ms,
            })
            .collect(),
        failures,
        quarantine: outlook.quarantine.iter().map(|mark| (mark.artifact.to_string(), mark.since, mark.reason.clone())).collect(),
        findings: app.config.about.findings.iter().map(found).collect(),
        safeguards: outlook.safeguards.iter().map(|one| (one.name.clone(), one.lacking.clone())).collect(),
        acceleration: outlook.acceleration,
        meaning: outlook.meaning,
        engines: outlook.engines,
        now: Timestamp::now(),
    }
}

fn capacity(app: &App) -> Vec<Measure> {
    let view = app.host().capacity();
    let (active, warm, all) = (view.usage.active.held, view.usage.warm.held, view.capacity);
    vec![
        Measure { name: "CPUs", held: active.cpus.into(), warm: warm.cpus.into(), all: all.cpus.into(), unit: "" },
        Measure { name: "Memory", held: active.memory_mib, warm: warm.memory_mib, all: all.memory_mib, unit: "MiB" },
        Measure { name: "Disk, promised", held: active.disk_mib, warm: warm.disk_mib, all: all.disk_mib, unit: "MiB" },
    ]
}

fn requests(app: &App) -> Vec<(&'static str, u64)> {
    let requests = app.host().capacity().requests;
    vec![
        ("Let in at once", requests.immediate),
        ("Let in after waiting", requests.queued),
        ("Waited in vain", requests.timed_out),
        ("Found the queue full", requests.rejected),
        ("Larger than this host", requests.too_large),
    ]
}

fn pool(app: &App) -> Vec<(&'static str, u64)> {
    let pool = app.host().pool();
    vec![
        ("Creates that found a warm session", pool.hits),
        ("… a prepared engine", pool.prepared_hits),
        ("… neither", pool.misses),
        ("Made", pool.refills),
        ("Could not be made", pool.failed_refills),
        ("Ended for active work", pool.evictions),
        ("Died while they waited", pool.lost),
    ]
}

fn resources(outlook: &Outlook) -> Vec<(&'static str, String)> {
    let gib = |mib: u64| format!("{}.{} GiB", mib / 1024, mib % 1024 * 10 / 1024);
    let disk = match &outlook.disk {
        Measured::Known(disk) => {
            let (free, all, floor) = (gib(disk.free_mib), gib(disk.total_mib), gib(disk.floor_mib));
            format!("{free} of {all} free; nothing is started below {floor}")
        }
        Measured::Unknown { error } => error.clone(),
    };
    let memory = match &outlook.memory {
        Measured::Known(memory) => {
            let (free, all, floor) = (gib(memory.available_mib), gib(memory.total_mib), gib(memory.floor_mib));
            let stalled = memory.stalled_percent.map(|percent| format!("; {percent} % of the time all work waits for it"));
            format!("{free} of {all} available; nothing is started below {floor}{}", stalled.unwrap_or_default())
        }
        Measured::Unknown { error } => error.clone(),
    };
    let mut found = vec![("Disk", disk), ("Memory", memory)];
    if let Some(state) = &outlook.state_directory {
        let mib = |bytes: u64| gib(bytes >> 20);
        let (held, budget, reclaimable) = (mib(state.held_bytes), mib(state.budget_bytes), mib(state.reclaimable_bytes));
        found.push(("State directory", format!("{held} of a budget of {budget}; {reclaimable} of it could be made again")));
    }
    found
}

fn condition(condition: changes::Condition, holds: bool) -> Condition {
    let (meaning, remedy) = match condition {
        changes::Condition::ShortOfDisk => (
            "Creates are refused: the disk is below its floor.",
            "Delete templates and snapshots, end paused sandboxes, or give the disk more room; `--disk-floor` says where the floor is.",
        ),
        changes::Condition::ShortOfMemory => (
            "Creates are refused: the host is short of memory.",
            "End or pause sandboxes, or stop what else uses this host's memory.",
        ),
        changes::Condition::ShortOfDiskForPool => (
            "Creates are slower: too little of the disk is free to keep sessions warm.",
            "Free some of the disk: the pool wants twice the floor.",
        ),
    };
    Condition { meaning, remedy, holds }
}

/// From when to when a phase is measured.
fn meaning(phase: &str) -> &'static str {
    match phase {
        "warm_snapshot_restore" => "create accepted … guest ready",
        "warm_pool_checkout" => "warm session asked for … claimed, and the guest is who it should be",
        "ready_probe" => "machine runs … first answer of its agent",
        "snapshot_save" => "machine about to stop … what was cut is durable",
        "snapshot_freeze" => "machine about to stop … it could go on",
        "cold_template_build" => "build asked for … template recorded",
        "command_start" => "command asked for … it runs",
        "first_stdout_byte" => "command asked for … its first output",
        "freshness_sync" => "machine runs … entropy, clock, names and tokens are in force",
        "kill_delete" => "kill asked for … nothing is left",
        "start.to_first_stdout" => "create arrived … first output of the first command",
        _ => "",
    }
}

fn failure(kind: &str, count: u64) -> Failure {
    let remedy = match kind {
        "sandbox_capacity_unavailable" => {
            "The host was full, or short of memory or disk: end or pause sandboxes, or give it more of either."
        }
        "sandbox_placement_timeout" => "Creates waited in vain for room: end or pause sandboxes, or have more hosts.",
        "sandbox_no_compatible_node" => "The sandbox is larger than all that this host promises: build its template smaller.",
        "team_quota_exceeded" => "A team has as much as it may: raise its quota on Keys and teams, or have it end something.",
        "sandbox_snapshot_guest_agent_unresponsive" => {
            "A guest did not answer at its pause or snapshot: look at what runs in it."
        }
        "unauthorized" => "Requests without a key that is good: somebody's key has ended, or somebody tries.",
        "forbidden" => "A key that does not go so far, or a form of another page.",
        "not_found" => "What was asked for is not there, or another team's: mostly sandboxes that ended at their deadline.",
        "bad_request" => "Requests that could not be understood: their answers say what of them.",
        "host_not_allowed" => "Asked under a name that is not this server's: `--allowed-host NAME` allows one.",
        "internal_server_error" => "Something broke: the server's log has it with its causes.",
        "sandbox_unreachable" => "Nothing listened on a port of a sandbox, or the sandbox was gone.",
        _ => "The answer says why; so does the server's log.",
    };
    Failure { kind: kind.to_owned(), count, remedy }
}
