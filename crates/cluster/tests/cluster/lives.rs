//! What happened to sandboxes, which is told by whichever node is asked, wherever it happened.

use crate::{
    bench::{Answer, Bench, Node},
    joint::{self, Choice, Joint},
};

/// What an answer tells, in its order: to which sandbox and what.
fn told(answer: &Answer) -> Vec<(String, String)> {
    let text = |event: &serde_json::Value, field: &str| event[field].as_str().unwrap().to_owned();
    let events = answer.body.as_array().unwrap().iter();
    events.map(|event| (text(event, "sandboxId"), text(event, "type").replace("sandbox.lifecycle.", ""))).collect()
}

async fn ask(node: &Node, what: &str) -> Answer {
    node.call("GET", &format!("/events/sandboxes{what}"), "").await.expect(200)
}

#[tokio::test]
async fn what_happened_on_all_nodes_is_told_by_each_page_by_page_in_one_order() {
    let bench = Bench::start(&["a", "b", "c"]).await;
    let mut happened = Vec::new();
    // Node by node in turns, so that each page has some of each.
    for number in 0..6 {
        let node = &bench.nodes[number % 3];
        let id = node.create("").await;
        happened.push((id.clone(), "created".to_owned()));
        if number % 2 == 0 {
            node.call("DELETE", &format!("/sandboxes/{id}"), "").await.expect(204);
            happened.push((id, "killed".to_owned()));
        }
    }
    let gone = happened[0].0.clone();
    for node in &bench.nodes {
        for (order, expected) in [("true", happened.clone()), ("false", happened.iter().rev().cloned().collect())] {
            let mut all = Vec::new();
            loop {
                let page = ask(node, &format!("?orderAsc={order}&limit=2&offset={}", all.len())).await;
                assert_eq!(page.header("x-firkin-missing-nodes"), "");
                if told(&page).is_empty() {
                    break;
                }
                assert!(told(&page).len() <= 2);
                all.extend(told(&page));
            }
            assert_eq!(all, expected, "{order}");
        }
        let killed = ask(node, "?types=sandbox.lifecycle.killed&limit=2&offset=1&orderAsc=true").await;
        let expected: Vec<_> = happened.iter().filter(|(_, what)| what == "killed").skip(1).cloned().collect();
        assert_eq!(told(&killed), expected);
        let of_one = ask(node, &format!("/{gone}")).await;
        assert_eq!(told(&of_one), [("killed", &gone), ("created", &gone)].map(|(what, id)| (id.clone(), what.to_owned())));
        assert!(!of_one.headers.contains_key("x-firkin-epoch"), "it is of no life of it");
        node.call("GET", "/events/sandboxes?limit=101", "").await.expect(400);
    }
    bench.stop().await;
}

#[tokio::test]
async fn a_page_far_behind_has_of_another_node_what_it_has_of_its_own() {
    let bench = Bench::start(&["a", "b"]).await;
    let [a, b] = &bench.nodes[..] else { unreachable!() };
    let id = a.create("").await;
    for seconds in 1000..1120 {
        a.call("POST", &format!("/sandboxes/{id}/timeout"), &format!(r#"{{"timeout":{seconds}}}"#)).await.expect(204);
    }
    for page in ["?offset=95&limit=100&orderAsc=true", "?offset=115&limit=6"] {
        let (own, other) = (ask(a, page).await, ask(b, page).await);
        assert_eq!(own.body, other.body);
        assert_eq!(other.header("x-firkin-missing-nodes"), "");
        assert!(told(&other).len() > 5, "{other:?}");
    }
    bench.stop().await;
}

#[tokio::test]
async fn a_node_that_is_away_or_of_another_version_is_named_and_the_rest_is_told() {
    let mut bench = Bench::start(&["a", "b", "c"]).await;
    let (first, second) = (bench.nodes[0].create("").await, bench.nodes[1].create("").await);
    bench.nodes.pop().unwrap().stop().await;
    let refuses = bench.add_of_another_version("d", 404, r#"{"code":404,"message":"no such route"}"#).await;
    let says_other = bench.add_of_another_version("e", 200, r#"[{"id":"an event of which much is not said"}]"#).await;
    for path in [String::new(), format!("/{first}")] {
        let all = ask(&bench.nodes[1], &path).await;
        assert_eq!(all.header("x-firkin-missing-nodes"), "c,d,e");
        let ids: Vec<_> = told(&all).into_iter().map(|(id, _)| id).collect();
        let expected = if path.is_empty() { vec![second.clone(), first.clone()] } else { vec![first.clone()] };
        assert_eq!(ids, expected, "{path}");
    }
    drop((refuses, says_other));
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happened_to_a_sandbox_on_two_nodes_is_one_story() {
    let Some((joint, a)) = Joint::found(Choice::default()).await else { return };
    let b = joint.start("b", Choice::default()).await;
    let id = a.create().await;
    let sandbox = id.parse().unwrap();
    a.runtime.pause(&sandbox).await.unwrap();
    joint::hear(&[&a, &b]).await;
    joint::fill(&a).await;
    let resumed = b.call(&joint.key, ("POST", &format!("/sandboxes/{id}/resume"), r#"{"timeout":600}"#)).await.expect(201);
    assert_eq!(resumed.header("x-firkin-node"), "b", "there is no room on A");
    b.runtime.kill(&sandbox).await.unwrap();
    for node in [&a, &b] {
        let story = node.call(&joint.key, ("GET", &format!("/events/sandboxes/{id}?orderAsc=true"), "")).await.expect(200);
        let happened: Vec<_> = told(&story).into_iter().map(|(_, what)| what).collect();
        assert_eq!(happened, ["created", "paused", "resumed", "killed"], "{story:?}");
        assert_eq!(story.header("x-firkin-missing-nodes"), "");
    }
    joint.end([a, b]).await;
}
