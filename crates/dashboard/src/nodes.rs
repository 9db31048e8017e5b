//! The nodes of a cluster: who is there, what each has, and what to type to have one take nothing new.

use std::time::Duration;

use maud::{Markup, html};

use crate::{
    frame::{Place, page},
    when,
};

/// Nodes are heard every few seconds: who has heard nothing for so long does not reach who is asked.
const HEARD_LONG_AGO: Duration = Duration::from_secs(60);

/// What nobody has said.
const UNSAID: &str = "–";

/// What a node may serve by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lease {
    /// So much is left of it.
    Left(Duration),
    /// It has been over for so long.
    Over(Duration),
    /// An operator has said that the node is off.
    TakenAway,
}

/// What a node said of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Its program's version.
    pub version: String,
    /// All that it runs sandboxes by.
    pub engines: Vec<String>,
    /// Sandboxes that run there.
    pub running: usize,
    /// Sandboxes that are paused there.
    pub paused: usize,
    /// Of these, those that no other node has a copy of.
    pub copies_owed: usize,
    /// Memory that sandboxes hold, and all that it offers them, MiB.
    pub memory_mib: Option<(u64, u64)>,
    /// Templates and snapshots that it holds.
    pub holds: Option<usize>,
}

/// A row of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Whether it is the one that is asked.
    pub is_this: bool,
    /// `ready`, `cordoned`, `draining`, `away` or `forgotten`.
    pub state: &'static str,
    /// How long it has been in it.
    pub since: Duration,
    /// Why. Empty where nobody said.
    pub reason: String,
    /// What it may serve by.
    pub lease: Lease,
    /// What it said last, if that is understood.
    pub report: Option<Report>,
    /// What an operator may type to have it take nothing new, or take it again.
    pub command: Option<String>,
}

/// The page's data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nodes {
    /// All of them.
    pub nodes: Vec<Node>,
    /// How long ago that was heard.
    pub heard: Duration,
}

/// The page.
pub fn nodes(place: Place<'_>, nodes: &Nodes) -> String {
    let body = html! {
        div.head { h1 { "Nodes" } p.facts { span { "This server is one of them; any serves any request" } } }
        div data-live="/ui/nodes/now" { (moving(nodes)) }
        p.fine {
            code { "firkin cluster status" } " says what is wrong in words, " code { "firkin node info NODE" } " all that is known of one, and "
            code { "firkin node drain NODE" } " moves what it has to others. These commands and those of the table ask PostgreSQL: they take "
            code { "--cluster URL --cluster-secret-file FILE" } ", or " code { "FIRKIN_CLUSTER" } " and " code { "FIRKIN_CLUSTER_SECRET_FILE" } "."
        }
    };
    page(Place { title: "Nodes", scripts: &["live"], ..place }, &body)
}

/// The part of it that changes by itself.
pub fn moving(nodes: &Nodes) -> Markup {
    html! {
        @if nodes.heard > HEARD_LONG_AGO {
            p.refused role="alert" {
                b { "Nothing was heard of the nodes for " (span(nodes.heard)) "." }
                " This one does not reach PostgreSQL. What runs goes on; the table is as it was then."
            }
        }
        div.scroll tabindex="0" role="region" aria-label="Nodes" { table {
            thead { tr {
                @for heading in [
                    "Node", "State", "Since", "Lease", "Running", "Paused", "Copies owed", "Memory, MiB", "Templates", "Runs by", "Version", "Why", "To change it",
                ] { th scope="col" { (heading) } }
            } }
            tbody { @for node in &nodes.nodes { (row(node)) } }
        } }
        p.fine {
            "Heard " (span(nodes.heard)) " ago. What a node has is as it said itself, every few seconds; where it is away, as it said last. "
            "Copies owed are paused sandboxes that are on no other node."
        }
    }
}

fn row(node: &Node) -> Markup {
    let report = node.report.as_ref();
    let said = |fact: fn(&Report) -> String| report.map_or_else(|| UNSAID.to_owned(), fact);
    html! { tr {
        th.whole scope="row" { (node.name) @if node.is_this { " " span.label { "this one" } } }
        td { span.state.(node.state) { (node.state) } }
        td.number { (span(node.since)) }
        td.number { @match node.lease {
            Lease::Left(left) => { (span(left)) " left" }
            Lease::Over(since) => { "over for " (span(since)) }
            Lease::TakenAway => { "taken away" }
        } }
        td.number { (said(|report| report.running.to_string())) }
        td.number { (said(|report| report.paused.to_string())) }
        td.number { (said(|report| report.copies_owed.to_string())) }
        td.number { (said(|report| report.memory_mib.map_or_else(|| UNSAID.to_owned(), |(held, all)| format!("{held} of {all}")))) }
        td.number { (said(|report| report.holds.map_or_else(|| UNSAID.to_owned(), |holds| holds.to_string()))) }
        td { (said(|report| report.engines.join(", "))) }
        td { (said(|report| report.version.clone())) }
        td { (node.reason) }
        td.whole { @if let Some(command) = &node.command { code { (command) } } }
    } }
}

fn span(span: Duration) -> String {
    when::span(i64::try_from(span.as_secs()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Section, Viewer};

    fn node() -> Node {
        Node {
            name: "node-a".to_owned(),
            is_this: true,
            state: "ready",
            since: Duration::from_secs(7200),
            reason: String::new(),
            lease: Lease::Left(Duration::from_secs(118)),
            report: Some(Report {
                version: "0.1.0".to_owned(),
                engines: vec!["kvm".to_owned(), "gvisor".to_owned()],
                running: 3,
                paused: 2,
                copies_owed: 1,
                memory_mib: Some((2048, 8192)),
                holds: Some(7),
            }),
            command: Some("firkin node cordon node-a".to_owned()),
        }
    }

    fn shown(nodes: Vec<Node>, heard: u64) -> String {
        moving(&Nodes { nodes, heard: Duration::from_secs(heard) }).into_string()
    }

    /// The cells of the only row.
    fn cells(node: Node) -> String {
        let page = shown(vec![node], 3);
        page.split("<tbody>").nth(1).unwrap().split("</tbody>").next().unwrap().to_owned()
    }

    #[test]
    fn a_node_is_a_row_with_what_it_said() {
        assert_eq!(
            cells(node()),
            "<tr><th class=\"whole\" scope=\"row\">node-a <span class=\"label\">this one</span></th><td><span class=\"state ready\">ready</span></td>\
             <td class=\"number\">2 h 0 min</td><td class=\"number\">1 min 58 s left</td><td class=\"number\">3</td><td class=\"number\">2</td>\
             <td class=\"number\">1</td><td class=\"number\">2048 of 8192</td><td class=\"number\">7</td><td>kvm, gvisor</td><td>0.1.0</td><td></td>\
             <td class=\"whole\"><code>firkin node cordon node-a</code></td></tr>"
        );
    }

    #[test]
    fn one_that_is_away_or_off_or_says_nothing_is_shown_as_that() {
        let away = Node { is_this: false, state: "away", lease: Lease::Over(Duration::from_secs(43)), report: None, ..node() };
        let row = cells(away.clone());
        assert!(row.contains("<span class=\"state away\">away</span>") && row.contains("over for 43 s"), "{row}");
        assert!(!row.contains("this one") && row.matches("<td class=\"number\">–</td>").count() == 5, "{row}");
        let off = cells(Node { state: "forgotten", lease: Lease::TakenAway, command: None, ..away });
        assert!(off.contains("taken away") && !off.contains("<code>"), "{off}");
        let silent = Report { memory_mib: None, holds: None, ..Report::default() };
        assert_eq!(cells(Node { report: Some(silent), ..node() }).matches('–').count(), 2);
    }

    #[test]
    fn what_others_wrote_is_text() {
        let hostile = "<script>\"&";
        let report = Report { version: hostile.to_owned(), engines: vec![hostile.to_owned()], ..Report::default() };
        let (name, reason, command) = (hostile.to_owned(), hostile.to_owned(), Some(hostile.to_owned()));
        let row = cells(Node { name, reason, command, report: Some(report), ..node() });
        assert!(!row.contains("<script>") && row.matches("&lt;script&gt;&quot;&amp;").count() == 5, "{row}");
    }

    #[test]
    fn nodes_of_which_nothing_is_heard_are_no_news() {
        assert!(!shown(vec![node()], 60).contains("role=\"alert\""));
        let stale = shown(vec![node()], 61);
        assert!(stale.contains("role=\"alert\"") && stale.contains("for 1 min 1 s"), "{stale}");
    }

    #[test]
    fn the_page_is_linked_to_where_there_is_one() {
        let page = |is_of_host, is_of_cluster| {
            let viewer =
                Viewer { team: "a".to_owned(), scope: "", is_of_host, is_of_cluster, may_act: true, token: String::new() };
            let place = Place { viewer: &viewer, section: Section::Nodes, title: "", scripts: &[] };
            nodes(place, &Nodes { nodes: vec![node()], heard: Duration::ZERO })
        };
        let link = "<a href=\"/ui/nodes\" aria-current=\"page\">Nodes</a>";
        assert!(page(true, true).contains(link));
        assert!(!page(false, true).contains(link) && !page(true, false).contains(link));
    }
}
