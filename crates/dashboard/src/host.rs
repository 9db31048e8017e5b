//! The host: what it offers and holds, what keeps it from new work, how long things take, and what to do about it.

use jiff::Timestamp;
use maud::{Markup, html};

use crate::{
    frame::{Place, page},
    when,
};

/// Something that there is so much of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measure {
    /// What.
    pub name: &'static str,
    /// Held by sandboxes.
    pub held: u64,
    /// Held by what is kept warm.
    pub warm: u64,
    /// All of it.
    pub all: u64,
    /// Of what.
    pub unit: &'static str,
}

/// Something that is so or not, and what to do where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// What it means where it is so.
    pub meaning: &'static str,
    /// What to do then.
    pub remedy: &'static str,
    /// Whether it is.
    pub holds: bool,
}

/// How long something took.
#[derive(Debug, Clone, PartialEq)]
pub struct Phase {
    /// Its name in metrics.
    pub name: &'static str,
    /// From when to when.
    pub meaning: &'static str,
    /// How many came to their end.
    pub count: u64,
    /// Milliseconds.
    pub p50_ms: Option<f64>,
    /// Milliseconds.
    pub p95_ms: Option<f64>,
}

/// Requests that were refused or failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The kind, as in metrics and answers.
    pub kind: String,
    /// How many.
    pub count: u64,
    /// What to do about it.
    pub remedy: &'static str,
}

/// What a look at the host found when the server began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at.
    pub check: String,
    /// `ok`, `warning` or `failed`.
    pub status: &'static str,
    /// What was found.
    pub found: String,
    /// What helps.
    pub remedy: Option<String>,
}

/// The page's data.
#[derive(Debug, Clone, PartialEq)]
pub struct Host {
    /// How guests run.
    pub acceleration: String,
    /// What that means.
    pub meaning: &'static str,
    /// All engines.
    pub engines: Vec<&'static str>,
    /// What keeps machines from the host, and why some of it does not.
    pub safeguards: Vec<(String, Option<String>)>,
    /// What keeps the host from new work.
    pub conditions: Vec<Condition>,
    /// Capacity.
    pub capacity: Vec<Measure>,
    /// Requests that wait for it.
    pub waiting: usize,
    /// What became of those that do not wait any more.
    pub requests: Vec<(&'static str, u64)>,
    /// Disk and memory in sentences.
    pub resources: Vec<(&'static str, String)>,
    /// The warm pool's counts.
    pub pool: Vec<(&'static str, u64)>,
    /// Since the server began.
    pub phases: Vec<Phase>,
    /// Since the server began, most first.
    pub failures: Vec<Failure>,
    /// Damaged artifacts: which, since when, why.
    pub quarantine: Vec<(String, Timestamp, String)>,
    /// Of the look at the start.
    pub findings: Vec<Finding>,
    /// When this was.
    pub now: Timestamp,
}

/// The page.
pub fn host(place: Place<'_>, host: &Host) -> String {
    let body = html! {
        div.head { h1 { "Host" } p.facts { span { b { (host.acceleration) } } } }
        div data-live="/ui/host/now" { (moving(host)) }
        (findings(&host.findings))
        h2 { "What keeps machines from this host" }
        ul { @for (name, lacking) in &host.safeguards { li {
            (name) ": " @match lacking { None => span.state.ok { "holds" }, Some(reason) => { span.state.warning { "lacking" } " " (reason) } }
        } } }
    };
    page(Place { title: "Host", scripts: &["live"], ..place }, &body)
}

/// The part of it that changes by itself.
pub fn moving(host: &Host) -> Markup {
    let wrong: Vec<&Condition> = host.conditions.iter().filter(|condition| condition.holds).collect();
    html! {
        @for condition in &wrong {
            p.refused role="alert" { b { (condition.meaning) } " " (condition.remedy) }
        }
        @if wrong.is_empty() { p.outcome { "Nothing keeps this host from new work." } }
        div.cards {
            section.card { h2 { "Acceleration" } p { (host.meaning) } p.fine { "Engines: " (host.engines.join(", ")) } }
            section.card { h2 { "Capacity" } (capacity(&host.capacity)) }
            section.card {
                h2 { "Queue" }
                dl { dt { "Waiting now" } dd { (host.waiting) } @for (what, count) in &host.requests { dt { (what) } dd { (count) } } }
            }
            section.card { h2 { "Disk and memory" } dl { @for (what, text) in &host.resources { dt { (what) } dd { (text) } } } }
            section.card { h2 { "Warm pool" } dl { @for (what, count) in &host.pool { dt { (what) } dd { (count) } } } }
        }
        h2 { "How long things take" }
        (phases(&host.phases))
        h2 { "What was refused or failed" }
        (failures(&host.failures))
        @if !host.quarantine.is_empty() {
            h2 { "Damaged" }
            ul { @for (artifact, since, reason) in &host.quarantine { li { code { (artifact) } " " (when::ago(*since, host.now)) ": " (reason) } } }
            p.fine { code { "firkin verify" } " says what else is." }
        }
    }
}

fn capacity(measures: &[Measure]) -> Markup {
    html! {
        @for measure in measures {
            p.measure {
                span { (measure.name) ": " b { (measure.held) } " held, " (measure.warm) " warm, of " (measure.all) " " (measure.unit) }
                meter min="0" max=(measure.all.max(1)) high=(measure.all * 9 / 10) value=((measure.held + measure.warm).min(measure.all))
                    aria-label={ (measure.name) " in use" } {}
            }
        }
    }
}

fn phases(phases: &[Phase]) -> Markup {
    let ms = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |ms| format!("{ms:.1} ms"));
    html! {
        div.scroll tabindex="0" role="region" aria-label="How long things take" { table {
            thead { tr {
                th scope="col" { "Phase" } th scope="col" { "From … to" } th scope="col" { "Count" } th scope="col" { "p50" } th scope="col" { "p95" }
            } }
            tbody { @for phase in phases { tr {
                th scope="row" { code { (phase.name) } } td { (phase.meaning) } td.number { (phase.count) }
                td.number { (ms(phase.p50_ms)) } td.number { (ms(phase.p95_ms)) }
            } } }
        } }
    }
}

fn failures(failures: &[Failure]) -> Markup {
    html! {
        @if failures.is_empty() { p.fine { "Nothing since this server began." } }
        @else { div.scroll tabindex="0" role="region" aria-label="What was refused or failed" { table {
            thead { tr { th scope="col" { "Kind" } th scope="col" { "Count" } th scope="col" { "What to do" } } }
            tbody { @for failure in failures { tr {
                th scope="row" { code { (failure.kind) } } td.number { (failure.count) } td { (failure.remedy) }
            } } }
        } } }
    }
}

fn findings(findings: &[Finding]) -> Markup {
    html! {
        @if !findings.is_empty() {
            h2 { "What a look at this host found when the server began" }
            div.scroll tabindex="0" role="region" aria-label="Findings" { table {
                thead { tr { th scope="col" { "Check" } th scope="col" { "Status" } th scope="col" { "Found" } th scope="col" { "What to do" } } }
                tbody { @for finding in findings { tr {
                    th scope="row" { (finding.check) } td { span.state.(finding.status) { (finding.status) } } td { (finding.found) }
                    td { @if let Some(remedy) = &finding.remedy { (remedy) } }
                } } }
            } }
            p.fine { code { "firkin doctor" } " looks again, and " code { "firkin doctor --fix" } " installs what is missing." }
        }
    }
}
