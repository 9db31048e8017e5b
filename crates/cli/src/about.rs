//! What the dashboard shows of how this server was started: settings as they were resolved, by name, and what the look at the host found.
//!
//! Each is named here one by one, so that nothing secret gets there because somebody added a field.

use firkin_server::{About, Finding};

use crate::{
    args::{JailChoice, OnExit},
    host::{Check, Status},
    settings::Settings,
};

/// What there is to show.
pub(crate) fn about(settings: &Settings, checks: &[Check]) -> About {
    About { settings: named(settings), findings: checks.iter().map(finding).collect() }
}

fn finding(check: &Check) -> Finding {
    let status = match check.status {
        Status::Ok => "ok",
        Status::Warn => "warning",
        Status::Fail => "failed",
    };
    Finding { check: check.name.to_owned(), status, found: check.found.clone(), remedy: check.remedy.clone() }
}

fn named(settings: &Settings) -> Vec<(String, String)> {
    let mut rows = Rows(Vec::new());
    rows.say("State directory", settings.state_dir.display());
    rows.say("Catalogue", catalogue(settings));
    rows.say("Cache directory", settings.cache_dir.display());
    rows.say("Listens on", settings.listen);
    rows.say("HTTPS on", or_none(settings.tls.as_ref().map(|tls| tls.listen)));
    rows.say(
        "HTTPS certificate",
        or_none(settings.tls.as_ref().map(|tls| if tls.files.is_some() { "brought" } else { "its own" })),
    );
    rows.say("Plain HTTP for other hosts", yes(settings.allow_plain_http));
    rows.say("Domain", or_none(settings.domain.as_ref()));
    rows.say("Allowed hosts", joined(settings.allowed_hosts.iter()));
    rows.say("Connections of one peer", or_default(settings.max_connections_per_peer));
    rows.say("Engines", joined(settings.engines.iter().map(|engine| engine.word())));
    rows.say("Emulation for other hosts", yes(settings.allow_emulation));
    rows.say("Jail", if settings.jail == JailChoice::Strict { "strict" } else { "best" });
    rows.say("Guest kernel", or_default(settings.guest_kernel.as_ref().map(|path| path.display())));
    rows.say("Guests that run guests", yes(settings.allow_nested_virtualization));
    rows.say("Guests trust the host's certificates", yes(settings.trust_host_certificates));
    rows.say(
        "At its end, sandboxes are",
        match settings.on_exit {
            OnExit::Kill => "ended",
            OnExit::Pause => "paused",
            OnExit::Leave => "left running",
        },
    );
    rows.say("Kept warm of each template", format!("{} to {}", settings.warm.depth.min, settings.warm.depth.max));
    rows.say("Encryption of what is kept", yes(settings.encryption.seal));
    rows.say("Encryption key", if settings.encryption.key_file.is_some() { "the operator's" } else { "the server's own" });
    rows.say("Issuer of identity tokens", or_default(settings.identity_issuer.as_ref()));
    rows.say("Spans are sent to", or_none(settings.collector.as_ref()));
    capacity(&mut rows, settings);
    rows.0
}

/// Without user and password.
fn catalogue(settings: &Settings) -> String {
    let cluster = settings.node.as_ref().map(|node| &node.access.catalog);
    let Some(catalog) = settings.catalog.as_ref().or(cluster) else { return "in the state directory".to_owned() };
    catalog.address().map_or_else(|_| "unknown".to_owned(), |address| address.to_string())
}

fn capacity(rows: &mut Rows, settings: &Settings) {
    let capacity = &settings.capacity;
    rows.say("Processors are promised", format!("{} times", capacity.overcommit.cpus));
    rows.say("Memory that is promised", format!("{} %", capacity.overcommit.memory_percent));
    rows.say("Disk is promised", format!("{} times", capacity.overcommit.disk));
    rows.say("Disk floor, MiB", or_default(capacity.disk_floor_mib));
    rows.say("Budget of the state directory, MiB", or_default(capacity.disk_budget_mib));
    rows.say("Admission", format!("{:?}", capacity.admission));
    rows.say("Limits of a sandbox", format!("{:?}", capacity.sandboxes));
    rows.say("Volumes", format!("{:?}", capacity.volumes));
    rows.say("Copies off the host", or_none(settings.copies.as_ref().map(|copies| &copies.store.destination)));
    rows.say("Network rates", format!("{:?}", settings.rates));
}

struct Rows(Vec<(String, String)>);

impl Rows {
    fn say(&mut self, name: &str, value: impl std::fmt::Display) {
        self.0.push((name.to_owned(), value.to_string()));
    }
}

fn yes(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}

fn or_none(value: Option<impl std::fmt::Display>) -> String {
    value.map_or_else(|| "none".to_owned(), |value| value.to_string())
}

fn or_default(value: Option<impl std::fmt::Display>) -> String {
    value.map_or_else(|| "the default".to_owned(), |value| value.to_string())
}

fn joined(values: impl Iterator<Item = impl std::fmt::Display>) -> String {
    let values: Vec<String> = values.map(|value| value.to_string()).collect();
    if values.is_empty() { "none".to_owned() } else { values.join(", ") }
}
