//! The page of a cluster's nodes, on a server that is one of them, for the host's own team. Nobody is asked for it: it is what this node has
//! heard.

use std::sync::Arc;

use axum::{
    extract::State,
    response::{IntoResponse as _, Response},
};
use firkin_dashboard::{
    frame::Section,
    nodes::{self as pages, Lease, Node, Nodes, Report},
};
use http::HeaderMap;

use super::{Visitor, answer, host::demand_host, place};
use crate::{
    App,
    error::ApiError,
    nodes::{Listed, ListedNode},
};

/// `GET /ui/nodes`.
pub(super) async fn nodes(State(app): State<Arc<App>>, visitor: Visitor) -> Result<Response, ApiError> {
    demand_host(&visitor)?;
    let viewer = visitor.viewer();
    Ok(answer::page(pages::nodes(place(&viewer, Section::Nodes), &heard(&app)?)))
}

/// `GET /ui/nodes/now`: the part of it that changes by itself.
pub(super) async fn now(State(app): State<Arc<App>>, visitor: Visitor, headers: HeaderMap) -> Result<Response, ApiError> {
    demand_host(&visitor)?;
    Ok(answer::part(&headers, answer::HTML, pages::moving(&heard(&app)?).into_string()).into_response())
}

fn heard(app: &App) -> Result<Nodes, ApiError> {
    let nodes = app.config.nodes.as_ref().ok_or_else(|| ApiError::no_route("/ui/nodes"))?;
    Ok(view(nodes.id().as_str(), &nodes.listed()))
}

fn view(me: &str, listed: &Listed) -> Nodes {
    let node = |node: &ListedNode| Node {
        name: node.name.clone(),
        is_this: node.id == me,
        state: node.state,
        since: node.since,
        reason: if begins(node) && node.reason.is_empty() { "it begins".to_owned() } else { node.reason.clone() },
        lease: match node.lease_left {
            _ if node.forgotten => Lease::TakenAway,
            left if left.is_zero() => Lease::Over(node.lease_over),
            left => Lease::Left(left),
        },
        report: node.report.clone().map(|report| Report {
            version: report.version,
            engines: report.engines,
            running: report.running,
            paused: report.paused,
            copies_owed: report.copies_owed,
            memory_mib: report.memory_mib,
            holds: report.holds,
        }),
        command: command(node, &listed.nodes),
    };
    Nodes { nodes: listed.nodes.iter().map(node).collect(), heard: listed.ago }
}

/// Whether it is there and does not answer yet.
fn begins(node: &ListedNode) -> bool {
    !node.lease_left.is_zero() && node.report.as_ref().is_some_and(|report| !report.serves)
}

/// What changes whether it takes what is new. It is typed into a shell, so that a name is in it only if it is one word there, and this node's alone.
fn command(node: &ListedNode, all: &[ListedNode]) -> Option<String> {
    let is_word = |text: &str| {
        text.starts_with(|first: char| first.is_ascii_alphanumeric())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
    };
    let is_its_alone = all.iter().filter(|other| other.name == node.name).count() == 1;
    let called = [Some(&node.name).filter(|_| is_its_alone), Some(&node.id)].into_iter().flatten().find(|text| is_word(text))?;
    let does = if node.cordoned { "uncordon" } else { "cordon" };
    (!node.forgotten).then(|| format!("firkin node {does} {called}"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::nodes;

    fn listed(id: &str, name: &str) -> ListedNode {
        ListedNode {
            id: id.to_owned(),
            name: name.to_owned(),
            state: "ready",
            since: Duration::from_secs(9),
            reason: String::new(),
            cordoned: false,
            forgotten: false,
            lease_left: Duration::from_secs(100),
            lease_over: Duration::ZERO,
            report: Some(nodes::Report {
                version: "0.1.0".to_owned(),
                serves: true,
                engines: vec!["kvm".to_owned()],
                running: 1,
                paused: 2,
                copies_owed: 3,
                memory_mib: Some((4, 5)),
                holds: Some(6),
            }),
        }
    }

    fn viewed(nodes: Vec<ListedNode>) -> Vec<Node> {
        view("id1", &Listed { nodes, ago: Duration::ZERO }).nodes
    }

    #[test]
    fn a_node_is_shown_as_it_was_heard() {
        let (mut begins, mut away, mut off) = (listed("id2", "b"), listed("id3", "c"), listed("id4", "d"));
        begins.report.as_mut().unwrap().serves = false;
        (away.state, away.lease_left, away.lease_over, away.cordoned) = ("away", Duration::ZERO, Duration::from_secs(7), true);
        away.report.as_mut().unwrap().serves = false;
        (off.state, off.lease_left, off.cordoned, off.forgotten) = ("forgotten", Duration::ZERO, true, true);
        let all = viewed(vec![listed("id1", "a"), begins, away, off]);
        let facts: Vec<_> =
            all.iter().map(|node| (node.is_this, node.lease, node.reason.as_str(), node.command.as_deref())).collect();
        let left = Lease::Left(Duration::from_secs(100));
        let expected = [
            (true, left, "", Some("firkin node cordon a")),
            (false, left, "it begins", Some("firkin node cordon b")),
            (false, Lease::Over(Duration::from_secs(7)), "", Some("firkin node uncordon c")),
            (false, Lease::TakenAway, "", None),
        ];
        assert_eq!(facts, expected);
        let report = all[0].report.as_ref().unwrap();
        assert_eq!((report.running, report.paused, report.copies_owed), (1, 2, 3));
        assert_eq!((report.memory_mib, report.holds), (Some((4, 5)), Some(6)));
    }

    #[test]
    fn what_is_to_be_typed_is_one_word_and_one_node() {
        let names = ["twice", "twice", "a; reboot", "--all", "$(x)", "", "node-a.test"];
        let all: Vec<_> = names.iter().enumerate().map(|(number, name)| listed(&format!("id{number}"), name)).collect();
        let typed: Vec<_> = viewed(all).into_iter().map(|node| node.command.unwrap()).collect();
        let expected = ["id0", "id1", "id2", "id3", "id4", "id5", "node-a.test"].map(|node| format!("firkin node cordon {node}"));
        assert_eq!(typed, expected);
        // Nor is an id that this version does not give.
        assert_eq!(viewed(vec![listed("`x`", "y z")])[0].command, None);
    }
}
