//! Which life of a sandbox has answered, and that none answers which is over by what was heard before.

use std::sync::Arc;

use firkin_cluster::{Cluster, ClusterConfig, Members};
use firkin_server::nodes::{Nodes as _, as_operator};
use http_body_util::BodyExt as _;

use crate::{
    bench::{Bench, DEADLINE},
    failures::{SPOOFED, port},
    signed::link,
};

#[tokio::test]
async fn every_answer_says_which_life_of_the_sandbox_gave_it_through_any_node() {
    let bench = Bench::start(&["a", "b"]).await;
    let [a, b] = &bench.nodes[..] else { unreachable!() };
    let port = port().await;
    let made = a.call("POST", "/v2/sandboxes", r#"{"templateID":"base"}"#).await.expect(201);
    let id = made.text("/sandboxID").to_owned();
    let first = a.runtime.epoch(&id.parse().unwrap()).unwrap();
    assert_eq!(made.header("x-firkin-epoch"), first.to_string());
    bench.map.home(&id, &a.id, first);
    let signed = link(made.text("/envdAccessToken"), "read");
    let mut last = 0;
    for turn in 0..3 {
        let epoch = a.runtime.epoch(&id.parse().unwrap()).unwrap();
        assert!(epoch > last, "{epoch} after {last}");
        last = epoch;
        for node in [a, b] {
            let shown = node.call("GET", &format!("/sandboxes/{id}"), "").await.expect(200);
            let inside = node.answer(node.get_guest(&id, port, "/")).await.expect(200);
            for answer in [shown, inside] {
                assert_eq!(answer.header("x-firkin-epoch"), epoch.to_string(), "turn {turn}: what a guest says is not believed");
            }
        }
        // It names no sandbox, and whatever the guest says, the answer is of one.
        for node in [a, b] {
            let linked = node.answer(node.request("GET", &signed, "")).await;
            assert_eq!(linked.header("x-firkin-epoch"), epoch.to_string(), "{}", linked.body);
        }
        let paused = b.call("POST", &format!("/sandboxes/{id}/pause"), "").await.expect(204);
        assert_eq!(paused.header("x-firkin-epoch"), epoch.to_string());
        let resumed = b.call("POST", &format!("/v2/sandboxes/{id}/connect"), r#"{"timeout":60}"#).await.expect(201);
        assert_eq!(resumed.header("x-firkin-epoch"), a.runtime.epoch(&id.parse().unwrap()).unwrap().to_string());
    }
    let killed = b.call("DELETE", &format!("/sandboxes/{id}"), "").await.expect(204);
    assert!(killed.header("x-firkin-epoch").parse::<u64>().unwrap() >= last);
    let list = b.call("GET", "/v2/sandboxes", "").await.expect(200);
    assert!(!list.headers.contains_key("x-firkin-epoch"), "it is of no sandbox");
    bench.stop().await;
}

#[tokio::test]
async fn a_node_with_an_older_life_answers_nobody_who_has_heard_of_a_later_one() {
    let bench = Bench::start(&["a", "b", "c"]).await;
    let [a, b, c] = &bench.nodes[..] else { unreachable!() };
    let (port, id) = (port().await, a.create("").await);
    let own = a.runtime.epoch(&id.parse().unwrap()).unwrap();
    // The record says that A has it, in a life of which A does not know: only A can have claimed that, and was not told that it did.
    bench.map.home(&id, &a.id, own + 4);
    b.answer(b.get_guest(&id, port, "/")).await.expect(200);
    b.call("GET", &format!("/sandboxes/{id}"), "").await.expect(200);
    // B has heard of that one, and then C has it by the record, whatever A believes. It has not, and says so itself.
    bench.map.home(&id, &c.id, own + 5);
    let none = b.call("GET", &format!("/sandboxes/{id}"), "").await.expect(404);
    assert_eq!(none.header("x-firkin-node"), "c");
    // A client cannot have anybody refused.
    let mut request = a.get_guest(&id, port, "/");
    request.headers_mut().insert("x-firkin-epoch", SPOOFED.parse().unwrap());
    assert_eq!(a.answer(request).await.expect(200).header("x-firkin-epoch"), own.to_string());
    bench.stop().await;
}

#[tokio::test]
async fn a_peer_that_says_less_than_this_version_does_is_answered_all_the_same() {
    let bench = Bench::start(&["a", "b"]).await;
    let [a, b] = &bench.nodes[..] else { unreachable!() };
    let members = Arc::clone(&bench.map) as Arc<dyn Members>;
    let config = ClusterConfig { node: b.id.clone(), name: "b".to_owned(), term: 1, secret: bench.secret(), members };
    let peer = Cluster::join(config).unwrap();
    // One of the version before: it does not say of which life it has heard, and asks for a template without saying what it has.
    let ask = async |path: &str| {
        let mut request = http::Request::new(axum::body::Body::empty());
        *request.uri_mut() = path.parse().unwrap();
        as_operator(&mut request);
        let answer = tokio::time::timeout(DEADLINE, peer.send(&a.id, request)).await.expect("an answer in time").unwrap();
        let (head, body) = answer.into_parts();
        (head, body.collect().await.unwrap().to_bytes())
    };
    let (head, body) = ask("/health").await;
    assert_eq!((head.status.as_u16(), &head.headers["x-firkin-node"]), (200, &"a".parse().unwrap()), "{body:?}");
    let (head, archive) = ask("/admin/export?template=base").await;
    assert!(head.status == 200 && !archive.is_empty());
    bench.stop().await;
}

#[tokio::test]
async fn a_node_whose_lease_is_over_answers_for_nothing_that_another_may_have() {
    let bench = Bench::start(&["a", "b"]).await;
    let [a, b] = &bench.nodes[..] else { unreachable!() };
    let (port, runs, rests) = (port().await, a.create("").await, a.create("").await);
    a.call("POST", &format!("/sandboxes/{rests}/pause"), "").await.expect(204);
    let epoch = a.runtime.epoch(&rests.parse().unwrap()).unwrap();
    let look = async |id: &str| a.call("GET", &format!("/sandboxes/{id}"), "").await;
    bench.map.set_over(true);
    // By the record it is its own still.
    assert_eq!(look(&rests).await.expect(200).header("x-firkin-node"), "a");
    // Another has taken it, and this node has not looked yet.
    bench.map.home(&rests, &b.id, epoch + 1);
    assert_eq!(look(&rests).await.expect(404).header("x-firkin-node"), "b");
    // Nobody can be asked: what runs can be nobody's but its own.
    bench.map.set_away(true);
    assert_eq!(look(&rests).await.expect(503).text("/error_code"), "catalog_unavailable");
    assert_eq!(look(&runs).await.expect(200).header("x-firkin-node"), "a");
    a.answer(a.get_guest(&runs, port, "/")).await.expect(200);
    bench.map.set_over(false);
    assert_eq!(look(&rests).await.expect(200).header("x-firkin-node"), "a");
    bench.stop().await;
}
