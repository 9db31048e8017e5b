//! One sandbox: what it is, what it does, what became of it, and what can be done with it.

use jiff::Timestamp;
use maud::{Markup, html};

use crate::{
    frame::{Place, Viewer, outcome, page, token},
    plot,
    sandboxes::State,
    when,
};

/// The pages of one sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tab {
    /// Facts, use and events.
    Overview,
    /// A shell in it.
    Terminal,
    /// Its files.
    Files,
    /// Cells of code.
    Code,
    /// What runs in it and what listens.
    Processes,
    /// What it may reach, and what it tried to.
    Network,
}

impl Tab {
    const ALL: [(Self, &'static str, &'static str); 6] = [
        (Self::Overview, "", "Overview"),
        (Self::Terminal, "/terminal", "Terminal"),
        (Self::Files, "/files", "Files"),
        (Self::Code, "/code", "Code"),
        (Self::Processes, "/processes", "Processes"),
        (Self::Network, "/network", "Network"),
    ];
}

/// What every page of one sandbox shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Its id.
    pub id: String,
    /// Whether it runs.
    pub state: State,
    /// Its template's name, or its id.
    pub template: String,
    /// Whether traffic to it resumes it.
    pub auto_resume: bool,
}

/// One sample of use.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// Percent of all its CPUs.
    pub cpu: f64,
    /// Bytes of memory in use and in all.
    pub memory: (u64, u64),
    /// Bytes of disk in use and in all.
    pub disk: (u64, u64),
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub at: Timestamp,
    /// `debug`, `info`, `warn` or `error`.
    pub level: &'static str,
    /// What.
    pub message: String,
    /// More of it.
    pub fields: Vec<(String, String)>,
}

/// A snapshot of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// By what it is asked for.
    pub id: String,
    /// Its names.
    pub names: Vec<String>,
    /// When it was taken.
    pub at: Timestamp,
}

/// Something that it came from, or that came from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kin {
    /// `template`, `snapshot` or `sandbox`.
    pub kind: &'static str,
    /// Its id.
    pub id: String,
    /// Its name, if it has one.
    pub name: Option<String>,
}

/// The first page's data.
#[derive(Debug, Clone, PartialEq)]
pub struct Overview {
    /// Its head.
    pub head: Head,
    /// Facts, each with its name.
    pub facts: Vec<(&'static str, String)>,
    /// Started or resumed.
    pub started: Timestamp,
    /// Deadline.
    pub ends: Timestamp,
    /// What happens then.
    pub then: &'static str,
    /// Labels.
    pub metadata: Vec<(String, String)>,
    /// Names of its environment, without the values.
    pub environment: Vec<String>,
    /// Oldest first, of the last half hour at most.
    pub samples: Vec<Sample>,
    /// Newest first.
    pub events: Vec<Event>,
    /// Newest first.
    pub snapshots: Vec<Snapshot>,
    /// From the root to its parent.
    pub above: Vec<Kin>,
    /// What came from it.
    pub below: Vec<Kin>,
    /// What came of the last action.
    pub outcome: Vec<String>,
    /// When this was.
    pub now: Timestamp,
}

/// The first page.
pub fn overview(viewer: &Viewer, place: Place<'_>, view: &Overview) -> String {
    let head = &view.head;
    let body = html! {
        (top(head, Tab::Overview))
        (outcome(&view.outcome))
        @if viewer.may_act { (actions(viewer, head, &view.snapshots)) }
        div data-live={ "/ui/sandboxes/" (head.id) "/overview" } { (moving(view)) }
        div.cards { (labels(view)) (family(view)) }
        h2 { "Snapshots" }
        (snapshots(&view.snapshots, view.now))
    };
    page(Place { title: &head.id, scripts: &["confirm", "live"], ..place }, &body)
}

/// The part of it that changes by itself.
pub fn moving(view: &Overview) -> Markup {
    html! {
        div.cards {
            section.card aria-label="Facts" {
                h2 { "Facts" }
                dl {
                    dt { "State" } dd { (view.head.state.mark()) }
                    dt { "Since" } dd { (when::ago(view.started, view.now)) }
                    @if view.head.state == State::Running {
                        dt { "Deadline" } dd { (when::left(view.ends, view.now)) ", then " (view.then) }
                    } @else { dt { "Paused" } dd { (when::ago(view.ends, view.now)) } }
                    @for (name, value) in &view.facts { dt { (name) } dd { (value) } }
                }
            }
            (charts(&view.samples))
        }
        h2 { "Events" }
        (events(&view.events))
    }
}

/// The title of every page of a sandbox, and the way to the others.
pub(crate) fn top(head: &Head, here: Tab) -> Markup {
    html! {
        div.head {
            h1.mono { (head.id) }
            p.facts { (head.state.mark()) span { "from " b { (head.template) } } }
        }
        nav.tabs aria-label="Parts of this sandbox" { ul {
            @for (tab, path, name) in Tab::ALL {
                li { a href={ "/ui/sandboxes/" (head.id) (path) } aria-current=[(tab == here).then_some("page")] { (name) } }
            }
        } }
    }
}

fn actions(viewer: &Viewer, head: &Head, snapshots: &[Snapshot]) -> Markup {
    let to = |action: &str| format!("/ui/sandboxes/{}/{action}", head.id);
    let simple = |action: &str, label: &str| {
        html! { form method="post" action=(to(action)) { (token(viewer)) button.quiet type="submit" { (label) } } }
    };
    html! {
        div.actions role="group" aria-label="Actions" {
            @if head.state == State::Running { (simple("pause", "Pause")) } @else { (simple("resume", "Resume")) }
            form method="post" action=(to("extend")) {
                (token(viewer))
                label.hidden for="minutes" { "Minutes from now" }
                input #minutes name="minutes" type="number" min="1" max="1440" value="60" required;
                button.quiet type="submit" { "Set deadline in minutes" }
            }
            (simple("fork", "Fork"))
            form method="post" action=(to("snapshot")) {
                (token(viewer))
                label.hidden for="name" { "Name of the snapshot" }
                input #name name="name" placeholder="name, if any" maxlength="128" autocomplete="off";
                button.quiet type="submit" { "Snapshot" }
            }
            @if !snapshots.is_empty() {
                form method="post" action=(to("rollback")) {
                    (token(viewer))
                    label.hidden for="snapshot" { "Snapshot to go back to" }
                    select #snapshot name="snapshot" { @for snapshot in snapshots {
                        option value=(snapshot.id) { (snapshot.names.first().unwrap_or(&snapshot.id)) " · " (when::instant(snapshot.at)) }
                    } }
                    button.quiet type="submit" data-confirm="Go back to this snapshot? What the sandbox did since is lost." { "Roll back" }
                }
            }
            form method="post" action=(to("kill")) {
                (token(viewer))
                button.danger type="submit" data-confirm="End this sandbox? Its files and memory are lost." { "Kill" }
            }
        }
    }
}

fn charts(samples: &[Sample]) -> Markup {
    let Some(last) = samples.last() else {
        return html! { section.card { h2 { "Use" } p.fine { "Nothing is known yet: a running sandbox is asked every few seconds." } } };
    };
    let mib = |bytes: u64| bytes >> 20;
    let part = |(used, all): (u64, u64)| if all == 0 { 0.0 } else { ratio(used, all) };
    let cpu: Vec<f64> = samples.iter().map(|sample| sample.cpu).collect();
    let memory: Vec<f64> = samples.iter().map(|sample| part(sample.memory)).collect();
    let disk: Vec<f64> = samples.iter().map(|sample| part(sample.disk)).collect();
    let now = format!("{:.0} %", last.cpu);
    let held = format!("{} of {} MiB", mib(last.memory.0), mib(last.memory.1));
    let stored = format!("{} of {} MiB", mib(last.disk.0), mib(last.disk.1));
    html! {
        @for (name, text, values, top) in [("CPU", &now, &cpu, 100.0), ("Memory", &held, &memory, 1.0), ("Disk", &stored, &disk, 1.0)] {
            section.card {
                h2 { (name) ": " (text) }
                (plot::line(plot::Line { label: &format!("{name} over the last half hour at most, now {text}"), values, top }))
            }
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a plot has some hundred steps")]
fn ratio(used: u64, all: u64) -> f64 {
    used as f64 / all as f64
}

fn labels(view: &Overview) -> Markup {
    html! {
        section.card {
            h2 { "Metadata" }
            @if view.metadata.is_empty() { p.fine { "None." } }
            dl { @for (key, value) in &view.metadata { dt { (key) } dd { (value) } } }
            h3 { "Environment" }
            @if view.environment.is_empty() { p.fine { "Nothing was added to it." } }
            @else { p { @for name in &view.environment { code.label { (name) } " " } } p.fine { "Values are not shown." } }
        }
    }
}

fn family(view: &Overview) -> Markup {
    html! {
        section.card {
            h2 { "Where it came from" }
            p { @for kin in &view.above { (shown(kin)) " → " } b { "this" } }
            @if !view.below.is_empty() {
                h3 { "What came from it" }
                ul { @for kin in &view.below { li { (shown(kin)) } } }
            }
        }
    }
}

fn shown(kin: &Kin) -> Markup {
    let name = kin.name.as_ref().unwrap_or(&kin.id);
    html! {
        (kin.kind) " "
        @if kin.kind == "sandbox" { a.id href={ "/ui/sandboxes/" (kin.id) } { (name) } } @else { span.id { (name) } }
    }
}

fn snapshots(snapshots: &[Snapshot], now: Timestamp) -> Markup {
    html! {
        @if snapshots.is_empty() { p.fine { "None was taken of it." } }
        @else { ul { @for snapshot in snapshots {
            li { code { (snapshot.id) } " " @for name in &snapshot.names { span.label { (name) } } " " (when::ago(snapshot.at, now)) }
        } } }
    }
}

/// Events, newest first.
pub(crate) fn events(events: &[Event]) -> Markup {
    html! {
        @if events.is_empty() { p.fine { "Nothing is remembered since this server began." } }
        ol.log { @for event in events {
            li {
                time datetime=(when::instant(event.at)) title=(when::instant(event.at)) { (when::clock(event.at)) }
                span.(event.level) { (event.level) }
                span { (event.message) @for (name, value) in &event.fields { " " span.fine { (name) "=" (value) } } }
            }
        } }
    }
}

/// A process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Whose it is.
    pub user: String,
    /// KiB of memory.
    pub memory_kib: u64,
    /// What it was started as.
    pub command: String,
}

/// A port that something listens on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// The port.
    pub port: u16,
    /// What leads there, if a browser can.
    pub link: Option<String>,
    /// Whether it is one of ours.
    pub note: &'static str,
}

/// What runs in a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inside {
    /// By number.
    pub processes: Vec<Process>,
    /// By number.
    pub ports: Vec<Port>,
}

/// The page of what runs in it. Nothing of a paused one; what was in the way of asking, if something was.
pub fn processes(viewer: &Viewer, place: Place<'_>, head: &Head, inside: &Result<Option<Inside>, String>) -> String {
    let body = html! {
        (top(head, Tab::Processes))
        @match inside {
            Err(reason) => p.refused role="alert" { "The sandbox did not say what runs in it: " (reason) },
            Ok(None) => p.empty { "It is paused: resume it to see what runs in it." },
            Ok(Some(inside)) => {
                h2 { "Ports" }
                (ports(&inside.ports))
                h2 { "Processes" }
                (running(viewer, head, &inside.processes))
            }
        }
    };
    page(Place { title: &format!("{}: processes", head.id), scripts: &["confirm"], ..place }, &body)
}

fn ports(ports: &[Port]) -> Markup {
    html! {
        @if ports.is_empty() { p.fine { "Nothing listens." } }
        @else { ul { @for port in ports {
            li {
                b { (port.port) } " "
                @if let Some(link) = &port.link { a href=(link) rel="noreferrer" target="_blank" { (link) } " " }
                span.fine { (port.note) }
            }
        } } }
    }
}

fn running(viewer: &Viewer, head: &Head, processes: &[Process]) -> Markup {
    html! {
        div.scroll tabindex="0" role="region" aria-label="Processes" {
            table {
                thead { tr {
                    th scope="col" { "PID" } th scope="col" { "User" } th scope="col" { "Memory" } th scope="col" { "Command" }
                    @if viewer.may_act { th scope="col" { "Action" } }
                } }
                tbody { @for process in processes { tr {
                    td.number { (process.pid) } td { (process.user) } td.number { (process.memory_kib) " KiB" }
                    td.mono { (process.command) }
                    @if viewer.may_act { td {
                        @if process.pid > 1 {
                            form method="post" action={ "/ui/sandboxes/" (head.id) "/signal" } {
                                (token(viewer))
                                input type="hidden" name="pid" value=(process.pid);
                                button.quiet type="submit" aria-label={ "End process " (process.pid) } { "End" }
                            }
                        }
                    } }
                } } }
            }
        }
    }
}

/// What a sandbox tried to reach, and whether it was let.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// When.
    pub at: Timestamp,
    /// `dns` or `tcp`.
    pub kind: &'static str,
    /// What, by name and address.
    pub what: String,
    /// Whether it was let.
    pub allowed: bool,
    /// Why.
    pub why: String,
}

/// What a sandbox may reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// In a sentence.
    pub policy: &'static str,
    /// Rules, each with its kind.
    pub rules: Vec<(&'static str, String)>,
    /// Newest first.
    pub attempts: Vec<Attempt>,
}

/// The page of its network.
pub fn network(place: Place<'_>, head: &Head, network: &Network) -> String {
    let body = html! {
        (top(head, Tab::Network))
        section.card {
            h2 { "Policy" }
            p { (network.policy) }
            dl { @for (kind, rule) in &network.rules { dt { (kind) } dd.mono { (rule) } } }
        }
        h2 { "What it tried last" }
        @if network.attempts.is_empty() {
            p.fine { "Nothing is written down: only rules with names or a proxy are judged by somebody who can." }
        }
        ol.log { @for attempt in &network.attempts { li {
            time datetime=(when::instant(attempt.at)) title=(when::instant(attempt.at)) { (when::clock(attempt.at)) }
            span class=(if attempt.allowed { "state ok" } else { "state failed" }) { (if attempt.allowed { "allowed" } else { "denied" }) }
            span { (attempt.kind) " " b { (attempt.what) } " " span.fine { (attempt.why) } }
        } } }
    };
    page(Place { title: &format!("{}: network", head.id), scripts: &[], ..place }, &body)
}
