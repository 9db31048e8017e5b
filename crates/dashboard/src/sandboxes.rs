//! The list of sandboxes: what runs, for how long still, and what it uses.
//!
//! The page has a hundred rows and leads to the others. A script replaces them by a window over all of them, which it keeps up to date: it
//! fills copies of one empty row (`blank`) by setting texts, so that it makes no markup of its own.

use jiff::Timestamp;
use maud::{Markup, html};
use serde::Serialize;

use crate::{
    frame::{Place, Viewer, outcome, page, token},
    plot, when,
};

/// Rows of a page without a script.
pub const ROWS: usize = 100;

/// Whether a sandbox runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It does.
    Running,
    /// It is held as a snapshot.
    Paused,
}

impl State {
    /// As it is written.
    pub fn word(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
        }
    }

    /// As a mark of its own colour, which is not all that tells it.
    pub(crate) fn mark(self) -> Markup {
        html! { span.state.(self.word()) { (self.word()) } }
    }
}

/// One sandbox.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Its id.
    pub id: String,
    /// What it came from, by name.
    pub template: String,
    /// Whose it is.
    pub team: String,
    /// Whether it runs.
    pub state: State,
    /// Unix time of its start.
    pub started: i64,
    /// Unix time of its deadline; when it was paused, if it is.
    pub ends: i64,
    /// What happens then.
    pub then: &'static str,
    /// Virtual CPUs.
    pub cpus: u32,
    /// MiB.
    pub memory_mib: u64,
    /// Percent of its CPUs in its last samples, oldest first.
    pub cpu: Vec<f64>,
    /// Percent of its memory in use, if it is known.
    pub memory: Option<f64>,
    /// Its labels.
    pub metadata: Vec<(String, String)>,
}

/// What is looked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Search {
    /// Words as they were typed.
    pub text: String,
    /// A state, or all.
    pub state: Option<State>,
}

/// The host's room, for who may know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    /// CPUs held and offered.
    pub cpus: (u64, u64),
    /// MiB of memory held and offered.
    pub memory_mib: (u64, u64),
    /// Requests that wait.
    pub waiting: usize,
    /// Requests that were turned away or waited in vain since the start.
    pub refused: u64,
}

/// The page's data.
#[derive(Debug, Clone, PartialEq)]
pub struct List {
    /// Rows of this page.
    pub rows: Vec<Row>,
    /// How many were found.
    pub found: usize,
    /// How many run and how many are paused, of all.
    pub running: usize,
    /// Paused ones.
    pub paused: usize,
    /// What was looked for.
    pub search: Search,
    /// From zero.
    pub page: usize,
    /// The host's room.
    pub room: Option<Room>,
    /// What a new one can be made of.
    pub templates: Vec<String>,
    /// What came of the last action.
    pub outcome: Vec<String>,
    /// When this was.
    pub now: Timestamp,
}

/// The page.
pub fn list(viewer: &Viewer, place: Place<'_>, list: &List) -> String {
    let body = html! {
        div.head {
            h1 { "Sandboxes" }
            p.facts {
                span { b #running { (list.running) } " running" } span { b #paused { (list.paused) } " paused" }
                span #room { @if let Some(room) = &list.room { (room.words()) } }
            }
        }
        (outcome(&list.outcome))
        @if viewer.may_act { (create(viewer, &list.templates)) }
        (search(&list.search))
        form #bulk method="post" action="/ui/sandboxes/bulk" {
            (token(viewer))
            @if viewer.may_act { (bulk_bar()) }
            div.scroll #window tabindex="0" role="region" aria-label="Sandboxes" data-rows={ "/ui/sandboxes/rows" (query(&list.search, None)) } {
                table.wide aria-rowcount=(list.found + 1) {
                    thead { tr aria-rowindex="1" {
                        @if viewer.may_act { th.pick scope="col" { span.hidden { "Selected" } } }
                        th scope="col" { "Sandbox" } th scope="col" { "State" } th scope="col" { "Template" } th scope="col" { "Age" }
                        th scope="col" { "Time left" } th scope="col" { "CPU" } th scope="col" { "Memory" } th scope="col" { "Metadata" }
                    } }
                    tbody { @for row in &list.rows { (shown(viewer, row, list.now)) } }
                }
            }
            template #blank { (blank(viewer)) }
        }
        p #none .empty hidden[list.found > 0] {
            @if list.running + list.paused == 0 {
                "No sandbox yet. Create one here, with an SDK, or with " code { "firkin sandbox create" } "."
            } @else { "No sandbox is like that." }
        }
        (pages(list))
    };
    page(Place { title: "Sandboxes", scripts: &["confirm", "list"], ..place }, &body)
}

impl Room {
    /// In words, and what is wrong of it.
    pub fn words(&self) -> String {
        let gib = |mib: u64| format!("{}.{}", mib / 1024, mib % 1024 * 10 / 1024);
        let mut words = vec![
            format!("{} of {} CPUs held", self.cpus.0, self.cpus.1),
            format!("{} of {} GiB of memory held", gib(self.memory_mib.0), gib(self.memory_mib.1)),
        ];
        if self.waiting > 0 {
            words.push(format!("{} creates wait for room", self.waiting));
        }
        if self.refused > 0 {
            words.push(format!("{} creates found no room since the start", self.refused));
        }
        words.join(" · ")
    }
}

fn create(viewer: &Viewer, templates: &[String]) -> Markup {
    html! {
        details.panel {
            summary { "New sandbox" }
            form.row method="post" action="/ui/sandboxes" {
                (token(viewer))
                label { "Template "
                    input name="template" list="templates" value="base" required maxlength="256" autocomplete="off"; }
                datalist #templates { @for name in templates { option value=(name) {} } }
                label { "Minutes "
                    input name="minutes" type="number" min="1" max="1440" value="60" required; }
                label { "Then "
                    select name="then" { option value="pause" { "pause it" } option value="kill" { "end it" } } }
                label { "Metadata "
                    input name="metadata" placeholder="key=value, key=value" maxlength="1024" autocomplete="off"; }
                button type="submit" { "Create" }
            }
        }
    }
}

fn search(search: &Search) -> Markup {
    let is = |state| search.state == state;
    html! {
        form.row role="search" method="get" action="/ui/sandboxes" {
            label { "Find "
                input name="q" type="search" value=(search.text) placeholder="id, template or key=value" maxlength="256"; }
            label { "State "
                select name="state" {
                    option value="" selected[is(None)] { "any" }
                    option value="running" selected[is(Some(State::Running))] { "running" }
                    option value="paused" selected[is(Some(State::Paused))] { "paused" }
                } }
            button.quiet type="submit" { "Search" }
        }
    }
}

fn bulk_bar() -> Markup {
    html! {
        div.row.bulk {
            span #picked aria-live="polite" { "Selected sandboxes:" }
            button.quiet #all type="button" hidden { "Select all found" }
            button.quiet type="submit" name="action" value="pause" { "Pause" }
            button.danger type="submit" name="action" value="kill" data-confirm="End the selected sandboxes? Their files and memory are lost." { "Kill" }
        }
    }
}

fn shown(viewer: &Viewer, row: &Row, now: Timestamp) -> Markup {
    let started = Timestamp::from_second(row.started).unwrap_or(now);
    let ends = Timestamp::from_second(row.ends).unwrap_or(now);
    html! {
        tr {
            @if viewer.may_act {
                td.pick { input type="checkbox" name="id" value=(row.id) aria-label={ "Select " (row.id) }; }
            }
            td { a.id href={ "/ui/sandboxes/" (row.id) } { (row.id) } }
            td { (row.state.mark()) }
            td.name { (row.template) }
            td.number { (when::span(now.as_second() - started.as_second())) }
            td.number title={ "then: " (row.then) } {
                @if row.state == State::Running { (when::span(ends.as_second() - now.as_second())) } @else { "–" }
            }
            td.use { (plot::line(plot::Line { label: &cpu_label(row), values: &row.cpu, top: 100.0 })) }
            td.number { @if let Some(percent) = row.memory { (format!("{percent:.0} %")) } @else { "–" } }
            td.labels { @for (key, value) in &row.metadata { span.label { (key) "=" (value) } } }
        }
    }
}

fn cpu_label(row: &Row) -> String {
    row.cpu.last().map_or_else(|| "CPU: not known".to_owned(), |last| format!("CPU {last:.0} %"))
}

/// An empty row, which the script copies.
fn blank(viewer: &Viewer) -> Markup {
    html! {
        tr {
            @if viewer.may_act { td.pick { input type="checkbox" name="id"; } }
            td { a.id href="/ui/sandboxes" { "…" } }
            td { span.state {} }
            td.name {}
            td.number {}
            td.number {}
            td.use { svg class="plot" viewBox="0 0 240 48" preserveAspectRatio="none" role="img" aria-label="CPU" {
                polyline points="" fill="none" vector-effect="non-scaling-stroke" {}
            } }
            td.number {}
            td.labels {}
        }
    }
}

fn pages(list: &List) -> Markup {
    let last = list.found.saturating_sub(1) / ROWS;
    html! {
        @if last > 0 {
            nav.row #pages aria-label="Pages of the list" {
                @if list.page > 0 { a.button href={ "/ui/sandboxes" (query(&list.search, Some(list.page - 1))) } { "Newer" } }
                span { "Page " (list.page + 1) " of " (last + 1) }
                @if list.page < last { a.button href={ "/ui/sandboxes" (query(&list.search, Some(list.page + 1))) } { "Older" } }
            }
        }
    }
}

fn query(search: &Search, page: Option<usize>) -> String {
    let mut pairs = vec![format!("q={}", encoded(&search.text))];
    if let Some(state) = search.state {
        pairs.push(format!("state={}", state.word()));
    }
    if let Some(page) = page {
        pairs.push(format!("page={page}"));
    }
    format!("?{}", pairs.join("&"))
}

/// A text as a part of a query.
pub(crate) fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'/' => char::from(byte).to_string(),
            byte => format!("%{byte:02X}"),
        })
        .collect()
}

/// What the script reads: all rows that were found, and the counts of all.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rows {
    /// Newest first.
    pub rows: Vec<Row>,
    /// How many were found, which may be more than there are rows.
    pub found: usize,
    /// Of all.
    pub running: usize,
    /// Of all.
    pub paused: usize,
    /// The host's room in words, for who may know it.
    pub room: Option<String>,
}

impl Rows {
    /// As JSON.
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("texts and numbers serialise")
    }
}
