//! The runtime's nouns as E2B's bodies.

use std::collections::BTreeMap;

use firkin_runtime::{
    capacity::ResourceBudget,
    lineage::{LineageKind, LineageNode},
    outbound::Decided,
    reference::with_team,
    runtime::SnapshotInfo,
    sandbox::{
        CreateSandbox, Filled, InternetAccess, Memory, OnTimeout, RuntimeSandbox, SandboxState, SocksProxy, SocksProxyTls,
        VolumeMount,
    },
    store::BuildState,
    template::TemplateInfo,
};
use firkin_wire::{ENVD_VERSION, control::Stats, rest};
use ipnet::Ipv4Net;

/// Clients demand a client id and do nothing with it but append it to ids, where we cut it off again.
const CLIENT_ID: &str = "firkin";

/// A sandbox as create, connect, resume and fork answer it.
pub(crate) fn sandbox(sandbox: RuntimeSandbox, domain: Option<&str>) -> rest::Sandbox {
    rest::Sandbox {
        template_id: sandbox.template_id,
        sandbox_id: sandbox.id.to_string(),
        client_id: CLIENT_ID.to_owned(),
        envd_version: ENVD_VERSION.to_owned(),
        alias: sandbox.alias,
        envd_access_token: sandbox.envd_access_token,
        traffic_access_token: sandbox.traffic_access_token,
        domain: domain.map(str::to_owned),
    }
}

/// A sandbox as lists show it.
pub(crate) fn listed(sandbox: RuntimeSandbox) -> rest::ListedSandbox {
    rest::ListedSandbox {
        template_id: sandbox.template_id,
        sandbox_id: sandbox.id.to_string(),
        client_id: CLIENT_ID.to_owned(),
        started_at: sandbox.started_at,
        end_at: sandbox.end_at,
        cpu_count: sandbox.budget.cpus,
        memory_mb: memory_mb(sandbox.budget),
        disk_size_mb: sandbox.budget.disk_mib,
        state: state(sandbox.state),
        envd_version: ENVD_VERSION.to_owned(),
        alias: sandbox.alias,
        volume_mounts: sandbox.spec.volumes.into_iter().map(volume).collect(),
        metadata: sandbox.spec.metadata,
        // A guest that does not answer is never paused: what it has not written would be lost, and nothing could wake it.
        envd_unresponsive_at_pause: (sandbox.state == SandboxState::Paused).then_some(false),
    }
}

fn volume(mount: VolumeMount) -> rest::VolumeMount {
    rest::VolumeMount { name: mount.name, path: mount.path, read_only: mount.read_only.then_some(true) }
}

/// A sandbox with everything that is known of it.
pub(crate) fn detail(sandbox: RuntimeSandbox, domain: Option<&str>) -> rest::SandboxDetail {
    rest::SandboxDetail {
        envd_access_token: sandbox.envd_access_token.clone(),
        allow_internet_access: Some(sandbox.spec.internet != InternetAccess::Denied),
        domain: domain.map(str::to_owned),
        lifecycle: Some(rest::Lifecycle {
            auto_resume: sandbox.spec.auto_resume,
            on_timeout: match sandbox.spec.on_timeout {
                OnTimeout::Kill => rest::OnTimeout::Kill,
                OnTimeout::Pause | OnTimeout::PauseFiles => rest::OnTimeout::Pause,
            },
        }),
        network: network(&sandbox.spec),
        pause_mode: (sandbox.state == SandboxState::Paused).then_some(match sandbox.memory {
            Memory::Kept => rest::PauseMode::Full,
            Memory::Dropped => rest::PauseMode::Filesystem,
        }),
        listed: listed(sandbox),
    }
}

/// The rules that a sandbox has, if it has any.
fn network(spec: &CreateSandbox) -> Option<rest::NetworkConfig> {
    let texts = |nets: &[Ipv4Net]| nets.iter().map(destination).collect::<Vec<_>>();
    let some = |texts: &[String]| (!texts.is_empty()).then(|| texts.to_vec());
    let (allow_out, deny_out) = match &spec.internet {
        InternetAccess::Allowed => (None, None),
        InternetAccess::Denied => (None, Some(vec![Ipv4Net::default().to_string()])),
        InternetAccess::Filtered(filter) => (Some(texts(&filter.allow)), Some(texts(&filter.deny))),
        InternetAccess::Steered(steered) => (some(&steered.allow), some(&steered.deny)),
    };
    let egress_proxy = match &spec.internet {
        InternetAccess::Steered(steered) => steered.proxy.as_ref().map(egress_proxy),
        InternetAccess::Allowed | InternetAccess::Denied | InternetAccess::Filtered(_) => None,
    };
    let rules = rest::NetworkConfig {
        allow_public_traffic: spec.ingress.private.then_some(false),
        mask_request_host: spec.ingress.mask_host.clone(),
        https_ports: (!spec.ingress.https_ports.is_empty()).then(|| spec.ingress.https_ports.iter().copied().collect()),
        dns_servers: spec.dns_servers.as_ref().map(|servers| servers.iter().map(ToString::to_string).collect()),
        allow_out,
        deny_out,
        egress_proxy,
        rules: transforms(&spec.internet),
    };
    (rules != rest::NetworkConfig::default()).then_some(rules)
}

/// What is put into requests, as it was asked for: places and not values.
fn transforms(internet: &InternetAccess) -> Option<BTreeMap<String, Vec<rest::NetworkRule>>> {
    let InternetAccess::Steered(steered) = internet else { return None };
    let rule = |filled: &Filled| {
        let headers = (!filled.headers.is_empty()).then(|| filled.headers.iter().cloned().collect());
        let placeholders = (!filled.placeholders.is_empty()).then(|| filled.placeholders.clone());
        (filled.host.clone(), vec![rest::NetworkRule { transform: Some(rest::NetworkTransform { headers, placeholders }) }])
    };
    (!steered.filled.is_empty()).then(|| steered.filled.iter().map(rule).collect())
}

/// A network as lists of destinations have it.
pub(crate) fn destination(net: &Ipv4Net) -> String {
    if net.prefix_len() == 32 { net.addr().to_string() } else { net.to_string() }
}

/// Where it is, for whom and how it is spoken to, and not what proves that: as E2B shows it.
fn egress_proxy(proxy: &SocksProxy) -> rest::EgressProxy {
    let tls = |tls: &SocksProxyTls| rest::EgressProxyTls {
        enabled: true,
        server_name: tls.server_name.clone(),
        ca_cert: tls.authorities.clone(),
    };
    let username = proxy.credentials.as_ref().map(|(name, _)| name.clone());
    rest::EgressProxy { address: proxy.address.clone(), username, password: None, tls: proxy.tls.as_ref().map(tls) }
}

/// What was decided on an attempt of a sandbox.
pub(crate) fn network_decision(decided: Decided) -> rest::NetworkDecision {
    rest::NetworkDecision {
        timestamp: decided.at,
        kind: if decided.question { rest::NetworkAttempt::Dns } else { rest::NetworkAttempt::Tcp },
        name: decided.name,
        address: decided.address,
        port: decided.port,
        allowed: decided.outcome == "allowed",
        outcome: decided.outcome.to_owned(),
        reason: decided.reason,
    }
}

/// One sample of a sandbox's use. `None` when the guest's clock makes no sense.
pub(crate) fn metric(stats: &Stats) -> Option<rest::SandboxMetric> {
    Some(rest::SandboxMetric {
        timestamp: jiff::Timestamp::from_second(stats.ts).ok()?,
        timestamp_unix: stats.ts,
        cpu_count: stats.cpu_count,
        cpu_used_pct: percent(stats.cpu_used_pct),
        mem_used: stats.mem_used,
        mem_total: stats.mem_total,
        mem_cache: stats.mem_cache,
        disk_used: stats.disk_used,
        disk_total: stats.disk_total,
    })
}

/// A share as guests measure it, to two places: widened, it would show digits that nobody measured.
fn percent(share: f32) -> f64 {
    (f64::from(share) * 100.0).round() / 100.0
}

/// A node of the tree of who came from whom, with all below it.
pub(crate) fn lineage(node: LineageNode) -> rest::LineageNode {
    rest::LineageNode {
        kind: match node.kind {
            LineageKind::Template => rest::LineageKind::Template,
            LineageKind::Snapshot => rest::LineageKind::Snapshot,
            LineageKind::Sandbox => rest::LineageKind::Sandbox,
        },
        id: node.id,
        names: node.names,
        state: node.state.map(state),
        since: node.since,
        children: node.children.into_iter().map(lineage).collect(),
    }
}

fn state(state: SandboxState) -> rest::SandboxState {
    match state {
        SandboxState::Running => rest::SandboxState::Running,
        SandboxState::Paused => rest::SandboxState::Paused,
    }
}

/// A snapshot. Its id has a tag, its names have none.
pub(crate) fn snapshot(snapshot: SnapshotInfo) -> rest::SnapshotInfo {
    let mut names: Vec<String> = snapshot.names.iter().map(|full| with_team(&snapshot.owner, &full.name)).collect();
    names.dedup();
    rest::SnapshotInfo { snapshot_id: snapshot.snapshot_id, names }
}

/// A template. Names and tags are apart, as in the contract.
pub(crate) fn template(template: TemplateInfo) -> rest::Template {
    rest::Template {
        template_id: template.id,
        build_id: template.build_id,
        cpu_count: template.budget.cpus,
        memory_mb: memory_mb(template.budget),
        disk_size_mb: template.budget.disk_mib,
        public: template.public,
        names: template.name.iter().map(|name| with_team(&template.owner, name)).collect(),
        aliases: template.name.into_iter().collect(),
        tags: template.tags.into_iter().map(|tag| tag.tag).collect(),
        description: template.description,
        is_default: None,
        created_at: template.created_at,
        updated_at: template.updated_at,
        created_by: None,
        last_spawned_at: template.last_spawned_at,
        spawn_count: template.spawn_count,
        build_count: u64::try_from(template.builds).unwrap_or(u64::MAX),
        envd_version: ENVD_VERSION.to_owned(),
        build_status: build_status(template.state),
    }
}

/// How far a build has come.
pub(crate) fn build_status(state: BuildState) -> rest::BuildStatus {
    match state {
        BuildState::Waiting => rest::BuildStatus::Waiting,
        BuildState::Building => rest::BuildStatus::Building,
        BuildState::Ready => rest::BuildStatus::Ready,
        BuildState::Error => rest::BuildStatus::Error,
    }
}

/// The same in a word.
pub(crate) fn build_word(state: BuildState) -> &'static str {
    match state {
        BuildState::Waiting => "waiting",
        BuildState::Building => "building",
        BuildState::Ready => "ready",
        BuildState::Error => "error",
    }
}

fn memory_mb(budget: ResourceBudget) -> u32 {
    u32::try_from(budget.memory_mib).unwrap_or(u32::MAX)
}
