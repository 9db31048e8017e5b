//! What came from what: templates, sandboxes, forks and snapshots as a tree, and what would have to go before each could.

use jiff::Timestamp;
use maud::html;

use crate::{
    frame::{Place, page},
    when,
};

/// Steps to the right that are drawn: deeper ones stand below each other.
const MAX_STEPS: usize = 14;

/// A node, in the order in which a tree is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// How far below its root.
    pub depth: usize,
    /// `template`, `snapshot` or `sandbox`.
    pub kind: &'static str,
    /// Its id.
    pub id: String,
    /// Its names.
    pub names: Vec<String>,
    /// `running` or `paused`, if it is a sandbox.
    pub state: Option<&'static str>,
    /// Made, or last started.
    pub since: Timestamp,
    /// How much came from it, directly or not.
    pub below: usize,
}

/// The page.
pub fn lineage(place: Place<'_>, nodes: &[Node], more: usize, now: Timestamp) -> String {
    let body = html! {
        h1 { "Lineage" }
        p.fine { "What came from something that is gone hangs where that had hung. A template or a snapshot can be deleted when no sandbox that
            was created from it is left, and no snapshot stands on its memory." }
        ol.lineage { @for node in nodes {
            li.{ "d" (node.depth.min(MAX_STEPS)) } {
                span.kind.(node.kind) { (node.kind) } " "
                @match node.kind {
                    "sandbox" => a.id href={ "/ui/sandboxes/" (node.id) } { (node.id) },
                    "template" => a href={ "/ui/templates/" (node.id) } { (node.names.first().unwrap_or(&node.id)) },
                    _ => span { (node.names.first().unwrap_or(&node.id)) },
                }
                @if let Some(state) = node.state { " " span.state.(state) { (state) } }
                " " span.fine { (when::ago(node.since, now)) @if node.below > 0 { ", " (node.below) " below" } }
            }
        } }
        @if more > 0 { p.fine { (more) " more are not shown: " code { "GET /lineage" } " has all." } }
        @if nodes.is_empty() { p.empty { "Nothing yet." } }
    };
    page(Place { title: "Lineage", scripts: &[], ..place }, &body)
}
