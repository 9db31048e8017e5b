//! `firkin sandbox ...`: the control plane from the command line.

use std::collections::BTreeMap;

use anyhow::{Context as _, anyhow};
use firkin_wire::rest;
use futures::{StreamExt as _, stream};
use jiff::Timestamp;
use serde::Serialize;

use super::{
    copy, exec, forward, logs,
    moving::{self, Kind},
    watch,
};
use crate::{
    api::{self, Api, Keep, Refused},
    args::{
        CreateArgs, ForkArgs, KillArgs, ListArgs, MoveArgs, PauseArgs, ResumeArgs, RollbackArgs, SandboxCommand, SnapshotArgs,
        StateFilter, TimeoutArgs,
    },
    failure::{self, ExitStatus},
    output::{self, Table},
    serverfile,
    settings::{Format, Settings},
};

/// How many sandboxes one command works on at a time.
const AT_ONCE: usize = 8;

/// Runs a `firkin sandbox` command.
pub(crate) async fn run(settings: &Settings, command: SandboxCommand) -> anyhow::Result<ExitStatus> {
    let api = Api::new(serverfile::find(settings)?);
    match command {
        SandboxCommand::Create(args) => create(&api, settings, args).await,
        SandboxCommand::Ls(args) => list(&api, settings, args).await,
        SandboxCommand::Info(args) => info(&api, settings, &args.id).await,
        SandboxCommand::Exec(args) => exec::exec(&api, settings, args).await,
        SandboxCommand::Shell(args) => exec::shell(&api, settings, args).await,
        SandboxCommand::Pause(PauseArgs { sandboxes, files_only }) => {
            let pause = async |id: &str| api.pause(id, Keep::files_only(files_only)).await.map(|()| "paused");
            each(settings, &sandboxes.ids, "paused", pause).await
        }
        SandboxCommand::Resume(ResumeArgs { sandboxes, timeout, reboot }) => {
            let resume = async |id: &str| {
                let (_, was_paused) = api.connect(id, timeout, Keep::files_only(reboot)).await?;
                anyhow::Ok(if was_paused { "resumed" } else { "already running" })
            };
            each(settings, &sandboxes.ids, "resumed", resume).await
        }
        SandboxCommand::Fork(args) => fork(&api, settings, args).await,
        SandboxCommand::Snapshot(args) => snapshot(&api, settings, args).await,
        SandboxCommand::Rollback(RollbackArgs { id, snapshot }) => {
            let rollback = async |id: &str| api.rollback(id, &snapshot).await.map(|()| "rolled back");
            each(settings, &[id], "rolled back", rollback).await
        }
        SandboxCommand::Move(MoveArgs { id, node }) => {
            let moved = api.move_to(&id, node.as_deref()).await.with_context(|| format!("`{id}` was not moved"))?;
            output::result(settings.format, &moved, || {
                let text = |name: &str| {
                    moved.get(name).map_or_else(String::new, |value| match value.as_str() {
                        Some(text) => text.to_owned(),
                        None => value.to_string(),
                    })
                };
                let mut table = Table::new(&["id", "node", ">blackout ms"]);
                table.row([id.clone(), text("node"), text("blackoutMs")]);
                table
            })?;
            Ok(ExitStatus::Success)
        }
        SandboxCommand::Logs(args) => logs::run(&api, settings, &args).await,
        SandboxCommand::Cp(args) => copy::run(&api, settings, &args).await,
        SandboxCommand::PortForward(args) => forward::run(&api, settings, &args).await,
        SandboxCommand::Watch(args) => watch::run(&api, settings, &args).await,
        SandboxCommand::Export(args) => moving::export(settings, Kind::Sandbox, args).await,
        SandboxCommand::Import(args) => moving::import(settings, Kind::Sandbox, (args, None)).await,
        SandboxCommand::Tree => tree(&api, settings).await,
        SandboxCommand::NetworkLog(args) => network_log(&api, settings, &args.id).await,
        SandboxCommand::Timeout(TimeoutArgs { id, seconds }) => {
            let set = async |id: &str| api.set_timeout(id, seconds).await.map(|()| "timeout set");
            each(settings, &[id], "changed", set).await
        }
        SandboxCommand::Kill(args) => kill(&api, settings, args).await,
    }
}

async fn create(api: &Api, settings: &Settings, args: CreateArgs) -> anyhow::Result<ExitStatus> {
    let new = rest::NewSandbox {
        template_id: args.template,
        timeout: Some(args.timeout.into()),
        auto_pause: args.auto_pause.then_some(true),
        allow_internet_access: args.no_internet.then_some(false),
        env_vars: map(args.env),
        metadata: map(args.metadata),
        ..Default::default()
    };
    let sandbox = api.create(&new).await.context("cannot create a sandbox")?;
    output::result(settings.format, &sandbox, || {
        let mut table = Table::new(&["sandbox", "template", "ends in"]);
        table.row([sandbox.sandbox_id.clone(), shown_template(&sandbox), format!("{} s", args.timeout)]);
        table
    })?;
    Ok(ExitStatus::Success)
}

fn map(pairs: Vec<(String, String)>) -> Option<BTreeMap<String, String>> {
    (!pairs.is_empty()).then(|| pairs.into_iter().collect())
}

fn shown_template(sandbox: &rest::Sandbox) -> String {
    sandbox.alias.clone().unwrap_or_else(|| sandbox.template_id.clone())
}

async fn list(api: &Api, settings: &Settings, args: ListArgs) -> anyhow::Result<ExitStatus> {
    let mut filter = Vec::new();
    if let Some(state) = args.state {
        let state = match state {
            StateFilter::Running => "running",
            StateFilter::Paused => "paused",
        };
        filter.push(("state", state.to_owned()));
    }
    if let Some(template) = args.template {
        filter.push(("template", template));
    }
    if !args.metadata.is_empty() {
        filter.push(("metadata", metadata_filter(&args.metadata)));
    }
    let sandboxes = api.list(&filter).await.context("cannot list sandboxes")?;
    output::result(settings.format, &sandboxes, || listing(&sandboxes, Timestamp::now()))?;
    Ok(ExitStatus::Success)
}

/// The value of the `metadata` filter as the SDKs send it: keys and values are escaped twice before the query escapes them again.
fn metadata_filter(pairs: &[(String, String)]) -> String {
    let twice = |text: &str| api::escape(&api::escape(text));
    pairs.iter().map(|(key, value)| format!("{}={}", twice(key), twice(value))).collect::<Vec<_>>().join("&")
}

fn listing(sandboxes: &[rest::ListedSandbox], now: Timestamp) -> Table {
    let mut table = Table::new(&["sandbox", "template", "state", "started", "ends", ">cpus", ">memory", "metadata"]);
    for sandbox in sandboxes {
        let metadata: Vec<String> = sandbox.metadata.iter().map(|(key, value)| format!("{key}={value}")).collect();
        table.row([
            sandbox.sandbox_id.clone(),
            sandbox.alias.clone().unwrap_or_else(|| sandbox.template_id.clone()),
            state_name(sandbox.state).to_owned(),
            relative(sandbox.started_at, now),
            match sandbox.state {
                rest::SandboxState::Running => relative(sandbox.end_at, now),
                rest::SandboxState::Paused => "-".to_owned(),
            },
            sandbox.cpu_count.to_string(),
            format!("{} MiB", sandbox.memory_mb),
            metadata.join(" "),
        ]);
    }
    table
}

fn state_name(state: rest::SandboxState) -> &'static str {
    match state {
        rest::SandboxState::Running => "running",
        rest::SandboxState::Paused => "paused",
    }
}

/// A time as people read it: `2 min ago`, `in 45 s`.
pub(super) fn relative(time: Timestamp, now: Timestamp) -> String {
    let seconds = time.as_second() - now.as_second();
    let amount = match seconds.unsigned_abs() {
        s @ 0..120 => format!("{s} s"),
        s @ 120..7200 => format!("{} min", s / 60),
        s @ 7200..172_800 => format!("{} h", s / 3600),
        s => format!("{} days", s / 86_400),
    };
    if seconds > 0 { format!("in {amount}") } else { format!("{amount} ago") }
}

async fn info(api: &Api, settings: &Settings, id: &str) -> anyhow::Result<ExitStatus> {
    let sandbox = api.sandbox(id).await?;
    output::result(settings.format, &sandbox, || details(&sandbox, Timestamp::now()))?;
    Ok(ExitStatus::Success)
}

fn details(sandbox: &rest::SandboxDetail, now: Timestamp) -> Table {
    let listed = &sandbox.listed;
    let mut table = Table::new(&["property", "value"]);
    let mut row = |name: &str, value: String| table.row([name.to_owned(), value]);
    row("sandbox", listed.sandbox_id.clone());
    row("template", listed.alias.clone().unwrap_or_else(|| listed.template_id.clone()));
    row("state", state_name(listed.state).to_owned());
    row("started", format!("{} ({})", listed.started_at, relative(listed.started_at, now)));
    row("ends", format!("{} ({})", listed.end_at, relative(listed.end_at, now)));
    if let Some(lifecycle) = sandbox.lifecycle {
        let then = match lifecycle.on_timeout {
            rest::OnTimeout::Kill => "kill",
            rest::OnTimeout::Pause => "pause",
        };
        row("then", then.to_owned());
    }
    row("cpus", listed.cpu_count.to_string());
    row("memory", format!("{} MiB", listed.memory_mb));
    row("disk", format!("{} MiB", listed.disk_size_mb));
    row("envd", listed.envd_version.clone());
    for (key, value) in &listed.metadata {
        row("metadata", format!("{key}={value}"));
    }
    table
}

async fn fork(api: &Api, settings: &Settings, args: ForkArgs) -> anyhow::Result<ExitStatus> {
    let children = api.fork(&args.id, args.count, args.timeout).await.with_context(|| format!("cannot fork `{}`", args.id))?;
    output::result(settings.format, &children, || {
        let mut table = Table::new(&["sandbox", "result"]);
        for child in &children {
            match (&child.sandbox, &child.error) {
                (Some(sandbox), _) => table.row([sandbox.sandbox_id.clone(), "forked".to_owned()]),
                (None, Some(error)) => table.row(["-".to_owned(), error.message.clone()]),
                (None, None) => table.row(["-".to_owned(), "no answer".to_owned()]),
            }
        }
        table
    })?;
    Ok(if children.iter().all(|child| child.sandbox.is_some()) { ExitStatus::Success } else { ExitStatus::Failure })
}

async fn snapshot(api: &Api, settings: &Settings, args: SnapshotArgs) -> anyhow::Result<ExitStatus> {
    let snapshot = api
        .snapshot(&args.id, args.name, Keep::files_only(args.files_only))
        .await
        .with_context(|| format!("cannot snapshot `{}`", args.id))?;
    output::result(settings.format, &snapshot, || {
        let mut table = Table::new(&["snapshot", "names"]);
        table.row([snapshot.snapshot_id.clone(), snapshot.names.join(" ")]);
        table
    })?;
    Ok(ExitStatus::Success)
}

async fn tree(api: &Api, settings: &Settings) -> anyhow::Result<ExitStatus> {
    let roots = api.lineage().await.context("cannot tell who came from whom")?;
    output::result(settings.format, &roots, || {
        let mut table = Table::new(&["tree", "kind", "state", "names", "since"]);
        branches(&roots, 0, &mut table, Timestamp::now());
        table
    })?;
    Ok(ExitStatus::Success)
}

async fn network_log(api: &Api, settings: &Settings, id: &str) -> anyhow::Result<ExitStatus> {
    let decisions = api.network_log(id).await.with_context(|| format!("the network log of `{id}` was not read"))?;
    output::result(settings.format, &decisions, || {
        let mut table = Table::new(&["time", "kind", "name", "address", "outcome", "reason"]);
        for decision in &decisions {
            table.row(decision_row(decision));
        }
        table
    })?;
    Ok(ExitStatus::Success)
}

fn decision_row(decision: &rest::NetworkDecision) -> [String; 6] {
    let address = match (decision.address, decision.port) {
        (Some(address), Some(port)) => format!("{address}:{port}"),
        (None, Some(port)) => format!(":{port}"),
        (address, None) => address.map_or_else(|| "-".to_owned(), |address| address.to_string()),
    };
    let kind = match decision.kind {
        rest::NetworkAttempt::Dns => "dns",
        rest::NetworkAttempt::Tcp => "tcp",
    };
    let name = decision.name.clone().unwrap_or_else(|| "-".to_owned());
    let time = decision.timestamp.strftime("%H:%M:%S").to_string();
    [time, kind.to_owned(), name, address, decision.outcome.clone(), decision.reason.clone()]
}

fn branches(nodes: &[rest::LineageNode], depth: usize, table: &mut Table, now: Timestamp) {
    for node in nodes {
        let kind = match node.kind {
            rest::LineageKind::Template => "template",
            rest::LineageKind::Snapshot => "snapshot",
            rest::LineageKind::Sandbox => "sandbox",
        };
        table.row([
            format!("{}{}", "  ".repeat(depth), node.id),
            kind.to_owned(),
            node.state.map_or("-", state_name).to_owned(),
            node.names.join(" "),
            relative(node.since, now),
        ]);
        branches(&node.children, depth + 1, table, now);
    }
}

async fn kill(api: &Api, settings: &Settings, args: KillArgs) -> anyhow::Result<ExitStatus> {
    let ids = if args.all {
        let ids: Vec<String> = api.list(&[]).await?.into_iter().map(|sandbox| sandbox.sandbox_id).collect();
        if !ids.is_empty() && !output::agreed(settings.consent, &format!("end {} sandboxes for good?", ids.len()))? {
            return Err(anyhow!("nothing was ended"));
        }
        ids
    } else {
        args.ids
    };
    let all = args.all;
    let kill = async |id: &str| match api.kill(id).await {
        Ok(()) => Ok("killed"),
        // It may have ended by itself since it was listed.
        Err(error) if all && is_not_found(&error) => Ok("already gone"),
        Err(error) => Err(error),
    };
    each(settings, &ids, "killed", kill).await
}

pub(super) fn is_not_found(error: &anyhow::Error) -> bool {
    failure::cause::<Refused>(error).is_some_and(|refused| refused.status == http::StatusCode::NOT_FOUND)
}

/// The outcome for one of several sandboxes.
#[derive(Debug, Serialize)]
struct Outcome {
    id: String,
    result: String,
    #[serde(skip)]
    failed: bool,
}

/// Does the same to several, some at a time, and says of each what became of it. One alone fails with its own error.
pub(super) async fn each(
    settings: &Settings,
    ids: &[String],
    done: &str,
    action: impl AsyncFn(&str) -> anyhow::Result<&'static str>,
) -> anyhow::Result<ExitStatus> {
    if let [id] = ids {
        let result = action(id).await.with_context(|| format!("`{id}` was not {done}"))?;
        let outcome = Outcome { id: id.clone(), result: result.to_owned(), failed: false };
        return report(settings.format, &[outcome]);
    }
    let outcomes: Vec<Outcome> = stream::iter(ids)
        .map(async |id| match action(id).await {
            Ok(result) => Outcome { id: id.clone(), result: result.to_owned(), failed: false },
            Err(error) => Outcome { id: id.clone(), result: format!("error: {error:#}"), failed: true },
        })
        .buffered(AT_ONCE)
        .collect()
        .await;
    report(settings.format, &outcomes)
}

fn report(format: Format, outcomes: &[Outcome]) -> anyhow::Result<ExitStatus> {
    output::result(format, &outcomes, || {
        let mut table = Table::new(&["id", "result"]);
        for outcome in outcomes {
            table.row([outcome.id.clone(), outcome.result.clone()]);
        }
        table
    })?;
    Ok(if outcomes.iter().any(|outcome| outcome.failed) { ExitStatus::Failure } else { ExitStatus::Success })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_metadata_filter_is_escaped_as_the_sdks_do() {
        let pairs = [("a b".to_owned(), "c&d".to_owned()), ("k".to_owned(), "v".to_owned())];
        // The query escapes once more: `a%252520b%3Dc%252526d%26k%3Dv` is what was recorded of the Python SDK.
        assert_eq!(api::escape(&metadata_filter(&pairs)), "a%252520b%3Dc%252526d%26k%3Dv");
    }

    #[test]
    fn a_listing_reads_well() {
        let now: Timestamp = "2026-01-01T12:00:00Z".parse().unwrap();
        let sandbox = rest::ListedSandbox {
            template_id: "t1".to_owned(),
            sandbox_id: "i0123".to_owned(),
            client_id: "c".to_owned(),
            started_at: "2026-01-01T11:57:00Z".parse().unwrap(),
            end_at: "2026-01-01T12:00:45Z".parse().unwrap(),
            cpu_count: 2,
            memory_mb: 512,
            disk_size_mb: 1024,
            state: rest::SandboxState::Running,
            envd_version: "0.6.13".to_owned(),
            alias: Some("base".to_owned()),
            metadata: [("who".to_owned(), "me".to_owned())].into(),
            envd_unresponsive_at_pause: None,
            volume_mounts: Vec::new(),
        };
        let paused = rest::ListedSandbox {
            sandbox_id: "i4".to_owned(),
            alias: None,
            state: rest::SandboxState::Paused,
            metadata: BTreeMap::new(),
            ..sandbox.clone()
        };
        assert_eq!(
            listing(&[sandbox, paused], now).render(),
            "SANDBOX  TEMPLATE  STATE    STARTED    ENDS     CPUS   MEMORY  METADATA\n\
             i0123    base      running  3 min ago  in 45 s     2  512 MiB  who=me\n\
             i4       t1        paused   3 min ago  -           2  512 MiB\n"
        );
    }

    #[test]
    fn a_tree_is_indented() {
        let now: Timestamp = "2026-01-01T12:00:00Z".parse().unwrap();
        let node = |kind, id: &str, names: &[&str], state, children| rest::LineageNode {
            kind,
            id: id.to_owned(),
            names: names.iter().map(|&name| name.to_owned()).collect(),
            state,
            since: "2026-01-01T11:57:00Z".parse().unwrap(),
            children,
        };
        let snapshot = node(rest::LineageKind::Snapshot, "s1", &[], None, vec![]);
        let sandbox = node(rest::LineageKind::Sandbox, "i1", &[], Some(rest::SandboxState::Paused), vec![snapshot]);
        let template = node(rest::LineageKind::Template, "t1", &["firkin/base:default"], None, vec![sandbox]);
        let mut table = Table::new(&["tree", "kind", "state", "names", "since"]);
        branches(&[template], 0, &mut table, now);
        assert_eq!(
            table.render(),
            "TREE    KIND      STATE   NAMES                SINCE\n\
             t1      template  -       firkin/base:default  3 min ago\n  \
             i1    sandbox   paused                       3 min ago\n    \
             s1  snapshot  -                            3 min ago\n"
        );
    }

    #[test]
    fn decisions_are_rows() {
        let decision = |name: Option<&str>, address: Option<&str>, port, outcome: &str| rest::NetworkDecision {
            timestamp: Timestamp::UNIX_EPOCH,
            kind: if port == Some(443) { rest::NetworkAttempt::Tcp } else { rest::NetworkAttempt::Dns },
            name: name.map(str::to_owned),
            address: address.map(|address| address.parse().unwrap()),
            port,
            allowed: outcome == "allowed",
            outcome: outcome.to_owned(),
            reason: "why".to_owned(),
        };
        assert_eq!(
            [
                decision(Some("a.example"), Some("1.1.1.1"), Some(443), "allowed"),
                decision(Some("b.example"), None, Some(443), "bounds"),
                decision(None, None, None, "name"),
            ]
            .map(|decision| decision_row(&decision).join(" ")),
            [
                "00:00:00 tcp a.example 1.1.1.1:443 allowed why",
                "00:00:00 tcp b.example :443 bounds why",
                "00:00:00 dns - - name why"
            ]
        );
    }

    #[test]
    fn times_are_relative() {
        let now = Timestamp::UNIX_EPOCH;
        for (seconds, expected) in
            [(0, "0 s ago"), (-119, "119 s ago"), (119, "in 119 s"), (-7199, "119 min ago"), (200_000, "in 2 days")]
        {
            assert_eq!(relative(Timestamp::from_second(seconds).unwrap(), now), expected);
        }
    }
}
