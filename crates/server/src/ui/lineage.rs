//! What came from what, in the order in which a tree is read.

use std::collections::HashMap;

use axum::response::Response;
use firkin_dashboard::{
    frame::Section,
    lineage::{self as pages, Node},
};
use firkin_runtime::lineage::{LineageKind, LineageNode};
use jiff::Timestamp;

use super::{Visitor, answer, place, sandboxes::state};
use crate::error::ApiError;

/// Nodes that are shown.
const MAX_NODES: usize = 2000;

/// `GET /ui/lineage`.
pub(super) async fn lineage(visitor: Visitor) -> Result<Response, ApiError> {
    let forest = visitor.caller.runtime.lineage().await.map_err(|error| ApiError::internal(&error))?;
    let mut nodes = flat(&forest);
    let more = nodes.len().saturating_sub(MAX_NODES);
    nodes.truncate(MAX_NODES);
    let viewer = visitor.viewer();
    Ok(answer::page(pages::lineage(place(&viewer, Section::Lineage), &nodes, more, Timestamp::now())))
}

/// A forest as a list, whatever its depth: nothing here goes down by itself.
fn flat(forest: &[LineageNode]) -> Vec<Node> {
    let mut left: Vec<(&LineageNode, usize)> = forest.iter().rev().map(|node| (node, 0)).collect();
    let mut nodes: Vec<Node> = Vec::new();
    // Where in the list the last node of each depth is: those are the ones above the next.
    let mut above: HashMap<usize, usize> = HashMap::new();
    while let Some((node, depth)) = left.pop() {
        for up in 0..depth {
            if let Some(at) = above.get(&up) {
                nodes[*at].below += 1;
            }
        }
        above.insert(depth, nodes.len());
        nodes.push(shown(node, depth));
        left.extend(node.children.iter().rev().map(|child| (child, depth + 1)));
    }
    nodes
}

fn shown(node: &LineageNode, depth: usize) -> Node {
    let kind = match node.kind {
        LineageKind::Template => "template",
        LineageKind::Snapshot => "snapshot",
        LineageKind::Sandbox => "sandbox",
    };
    let state = node.state.map(|found| state(found).word());
    Node { depth, kind, id: node.id.clone(), names: node.names.clone(), state, since: node.since, below: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: &str, children: Vec<LineageNode>) -> LineageNode {
        let kind = LineageKind::Template;
        LineageNode { kind, id: id.into(), names: Vec::new(), state: None, since: Timestamp::UNIX_EPOCH, children }
    }

    #[test]
    fn a_tree_is_read_from_above_and_each_knows_how_much_is_below() {
        let forest = [node("a", vec![node("b", vec![node("c", Vec::new())]), node("d", Vec::new())]), node("e", Vec::new())];
        let read: Vec<_> = flat(&forest).into_iter().map(|node| (node.id, node.depth, node.below)).collect();
        let expected = [("a", 0, 3), ("b", 1, 1), ("c", 2, 0), ("d", 1, 0), ("e", 0, 0)];
        assert_eq!(read, expected.map(|(id, depth, below)| (id.to_owned(), depth, below)));
    }
}
