//! What a team did over time, which is told by whichever node is asked.

use std::time::SystemTime;

use crate::bench::{Answer, Bench, Node};

async fn metrics(node: &Node, what: &str) -> Answer {
    node.call("GET", &format!("/teams/firkin/metrics{what}"), "").await.expect(200)
}

/// Minutes since 1970.
fn minute() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs() / 60
}

/// Sandboxes of a template that a node has room for, node by node, until all of them began in one minute: which it was, and how many they are.
async fn begin_in_one_minute(bench: &Bench) -> (u64, u32) {
    let mut begun = 0;
    loop {
        let at = minute();
        for node in &bench.nodes {
            node.create("").await;
            begun += 1;
        }
        if minute() == at {
            return (at, begun);
        }
    }
}

/// How many began by these points, of which each is of a minute.
fn begun(points: &Answer) -> f64 {
    let points = points.body.as_array().unwrap().iter();
    points.map(|point| point["sandboxStartRate"].as_f64().unwrap() * 60.0).sum()
}

#[tokio::test]
async fn what_a_team_did_on_all_nodes_is_added_minute_by_minute() {
    let bench = Bench::start(&["a", "b", "c"]).await;
    let (at, begun_in_all) = begin_in_one_minute(&bench).await;
    let within = format!("start={}&end={}", at * 60, at * 60 + 59);
    for node in &bench.nodes {
        let points = metrics(node, &format!("?{within}")).await;
        assert_eq!(points.body.as_array().unwrap().len(), 1, "{points:?}");
        assert_eq!(points.body[0]["concurrentSandboxes"], begun_in_all, "{points:?}");
        assert_eq!(points.body[0]["timestampUnix"], at * 60);
        assert!((begun(&metrics(node, "").await) - f64::from(begun_in_all)).abs() < 1e-6);
        let most = metrics(node, &format!("/max?metric=concurrent_sandboxes&{within}")).await;
        assert_eq!((&most.body["value"], &most.body["timestampUnix"]), (&f64::from(begun_in_all).into(), &(at * 60).into()));
        let rate = metrics(node, &format!("/max?metric=sandbox_start_rate&{within}")).await;
        assert!(rate.body["value"].as_f64().unwrap() * 60.0 > 2.5, "{rate:?}");
        assert_eq!((points.header("x-firkin-missing-nodes"), most.header("x-firkin-missing-nodes")), ("", ""));
        node.call("GET", "/teams/another/metrics", "").await.expect(403);
        node.call("GET", "/teams/firkin/metrics/max?metric=other", "").await.expect(400);
    }
    bench.stop().await;
}

#[tokio::test]
async fn nodes_that_do_not_say_what_a_team_did_are_named_and_the_rest_is_added() {
    let mut bench = Bench::start(&["a", "b", "c"]).await;
    bench.nodes.pop().unwrap().stop().await;
    // The version before answers this with points, which may be of any number of minutes.
    let points =
        r#"[{"timestamp":"2026-01-01T00:00:00Z","timestampUnix":1767225600,"concurrentSandboxes":7,"sandboxStartRate":1.0}]"#;
    let other = bench.add_of_another_version("d", 200, points).await;
    let (_, begun_here) = begin_in_one_minute(&bench).await;
    for what in ["", "/max?metric=concurrent_sandboxes"] {
        let told = metrics(&bench.nodes[0], what).await;
        assert_eq!(told.header("x-firkin-missing-nodes"), "c,d", "{told:?}");
    }
    assert!((begun(&metrics(&bench.nodes[0], "").await) - f64::from(begun_here)).abs() < 1e-6);
    drop(other);
    bench.stop().await;
}
