//! Templates: what sandboxes are made of, how it was built, and what is kept warm of it.

use jiff::Timestamp;
use maud::{Markup, html};

use crate::{
    frame::{Place, Viewer, outcome, page, token},
    sandbox::{Event, events},
    when,
};

/// One template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its id.
    pub id: String,
    /// Its names with their tags.
    pub names: Vec<String>,
    /// Its team.
    pub team: String,
    /// How far its newest build is: `ready`, `building`, `waiting` or `error`.
    pub state: &'static str,
    /// Its size in words.
    pub size: String,
    /// Whether other teams may start from it.
    pub public: bool,
    /// How many sandboxes were started from it.
    pub spawned: u64,
    /// When the last one was.
    pub last: Option<Timestamp>,
    /// Warm sessions ready and wanted, where it is pooled.
    pub pool: Option<(usize, usize)>,
}

/// The page's data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List {
    /// Newest first.
    pub rows: Vec<Row>,
    /// Creates that found something warm, and that found nothing, for who may know it.
    pub hits: Option<(u64, u64)>,
    /// Whether whoever looks may build.
    pub may_build: bool,
    /// What came of the last action.
    pub outcome: Vec<String>,
    /// When this was.
    pub now: Timestamp,
}

/// A build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Build {
    /// Its id.
    pub id: String,
    /// Its tags.
    pub tags: Vec<String>,
    /// How far it is.
    pub state: &'static str,
    /// Why it failed, with the step.
    pub reason: Option<String>,
    /// Asked for.
    pub at: Timestamp,
    /// Seconds that it took, if it has ended.
    pub took_s: Option<i64>,
}

/// One template with its builds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detail {
    /// Itself.
    pub row: Row,
    /// What is said of it.
    pub description: Option<String>,
    /// Newest first.
    pub builds: Vec<Build>,
    /// Whether whoever looks may delete it.
    pub may_build: bool,
    /// When this was.
    pub now: Timestamp,
}

/// The list.
pub fn list(viewer: &Viewer, place: Place<'_>, list: &List) -> String {
    let body = html! {
        div.head {
            h1 { "Templates" }
            @if let Some((hits, misses)) = list.hits {
                p.facts { span { b { (hits) } " creates found a warm session, " b { (misses) } " did not" } }
            }
        }
        (outcome(&list.outcome))
        @if list.may_build { (build_form(viewer)) }
        div.scroll tabindex="0" role="region" aria-label="Templates" { table.wide {
            thead { tr {
                th scope="col" { "Names" } th scope="col" { "State" } th scope="col" { "Size" } th scope="col" { "Team" }
                th scope="col" { "Sandboxes started" } th scope="col" { "Warm" }
            } }
            tbody { @for row in &list.rows { tr {
                td {
                    a href={ "/ui/templates/" (row.id) } { @if row.names.is_empty() { code { (row.id) } } @else { (row.names.join(", ")) } }
                    @if row.public { " " span.label { "public" } }
                }
                td { span.state.(row.state) { (row.state) } } td { (row.size) } td { (row.team) }
                td.number { (row.spawned) @if let Some(last) = row.last { ", last " (when::ago(last, list.now)) } }
                td.number { @match row.pool { Some((ready, wanted)) => { (ready) " of " (wanted) }, None => "–" } }
            } } }
        } }
        @if list.rows.is_empty() { p.empty { "None. " code { "firkin template build base" } " makes the first." } }
    };
    page(Place { title: "Templates", scripts: &["confirm"], ..place }, &body)
}

/// What stands in an empty form: something that can be built at once.
const EXAMPLE: &str = "FROM base\nRUN echo hello > /home/user/hello.txt\n";

fn build_form(viewer: &Viewer) -> Markup {
    html! {
        details.panel {
            summary { "Build a template" }
            form method="post" action="/ui/templates" {
                (token(viewer))
                div.row {
                    label { "Name " input name="name" required maxlength="128" placeholder="name or name:tag" autocomplete="off"; }
                    label { "CPUs " input name="cpus" type="number" min="1" max="64" value="2" required; }
                    label { "Memory, MiB " input name="memory" type="number" min="128" step="2" value="512" required; }
                }
                label for="dockerfile" { "Dockerfile" }
                p #dockerfile-help .fine { code { "FROM" } " names a template of yours, or an image of a registry. " code { "RUN" } ", " code { "ENV" } ", "
                    code { "ARG" } ", " code { "WORKDIR" } " and " code { "USER" } " are carried out; files for " code { "COPY" }
                    " are a client's to bring: use an SDK or " code { "firkin template build" } "." }
                textarea #dockerfile name="dockerfile" rows="10" required spellcheck="false" aria-describedby="dockerfile-help" { "\n" (EXAMPLE) }
                div.row {
                    label { "Start command " input name="start" placeholder="left running, if any" maxlength="4096" autocomplete="off"; }
                    label { "Ready command " input name="ready" placeholder="exits 0 when that is ready" maxlength="4096" autocomplete="off"; }
                    button type="submit" { "Build" }
                }
            }
        }
    }
}

/// One template.
pub fn detail(viewer: &Viewer, place: Place<'_>, detail: &Detail) -> String {
    let row = &detail.row;
    let title = row.names.first().unwrap_or(&row.id);
    let body = html! {
        div.head { h1 { (title) } p.facts { span.state.(row.state) { (row.state) } span { (row.size) } } }
        section.card {
            h2 { "Facts" }
            dl {
                dt { "Id" } dd { code { (row.id) } }
                dt { "Names" } dd { (row.names.join(", ")) }
                dt { "Team" } dd { (row.team) }
                dt { "Public" } dd { (if row.public { "yes" } else { "no" }) }
                dt { "Sandboxes started" } dd { (row.spawned) }
                dt { "Kept warm" } dd { @match row.pool { Some((ready, wanted)) => { (ready) " of " (wanted) }, None => "none" } }
                @if let Some(description) = &detail.description { dt { "Description" } dd { (description) } }
            }
        }
        h2 { "Builds" }
        ol.log { @for build in &detail.builds { li {
            a.id href={ "/ui/templates/" (row.id) "/builds/" (build.id) } { (build.id) }
            span.state.(build.state) { (build.state) }
            span {
                @for tag in &build.tags { span.label { (tag) } } " " (when::ago(build.at, detail.now))
                @if let Some(seconds) = build.took_s { ", took " (when::span(seconds)) }
                @if let Some(reason) = &build.reason { p.bad { (reason) } }
            }
        } } }
        @if detail.may_build {
            form method="post" action={ "/ui/templates/" (row.id) "/delete" } {
                (token(viewer))
                button.danger type="submit" data-confirm="Delete this template with all of its builds and tags?" { "Delete" }
            }
        }
    };
    page(Place { title, scripts: &["confirm"], ..place }, &body)
}

/// A build's page.
pub fn build(place: Place<'_>, template: &str, build: &Build, log: &[Event]) -> String {
    let body = html! {
        div.head { h1.mono { (build.id) } p.facts { span { "of " a href={ "/ui/templates/" (template) } { (template) } } } }
        div data-live={ "/ui/templates/" (template) "/builds/" (build.id) "/log" } { (build_log(build, log)) }
    };
    page(Place { title: &format!("Build {}", build.id), scripts: &["live"], ..place }, &body)
}

/// The part of it that changes by itself.
pub fn build_log(build: &Build, log: &[Event]) -> Markup {
    html! {
        p { span.state.(build.state) { (build.state) } @if let Some(seconds) = build.took_s { " after " (when::span(seconds)) } }
        @if let Some(reason) = &build.reason { p.refused { (reason) } }
        h2 { "Log" }
        (events(log))
    }
}
