//! Which life of a sandbox has answered, and that none answers which is over by what was heard before.

use crate::{
    bench::Bench,
    failures::{SPOOFED, port},
};

#[tokio::test]
async fn every_answer_says_which_life_of_the_sandbox_gave_it_through_any_node() {
    let bench = Bench::start(&["a", "b"]).await;
    let [a, b] = &bench.nodes[..] else { unreachable!() };
    let (port, id) = (port().await, a.create("").await);
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
    // B has heard that A has it, in a life of which A does not know: A lost it once, and has not noticed. It says who has it.
    bench.map.home(&id, &a.id, own + 4);
    let refused = b.answer(b.get_guest(&id, port, "/")).await.expect(503);
    assert_eq!((refused.text("/error_code"), refused.header("retry-after")), ("sandbox_moved", "1"));
    let refused = b.call("GET", &format!("/sandboxes/{id}"), "").await.expect(503);
    assert_eq!(refused.text("/error_code"), "sandbox_moved");
    // By then the record says that C has it; which has not, and says so itself.
    bench.map.home(&id, &c.id, own + 5);
    let none = b.call("GET", &format!("/sandboxes/{id}"), "").await.expect(404);
    assert_eq!(none.header("x-firkin-node"), "c");
    // A client cannot have anybody refused.
    let mut request = a.get_guest(&id, port, "/");
    request.headers_mut().insert("x-firkin-epoch", SPOOFED.parse().unwrap());
    assert_eq!(a.answer(request).await.expect(200).header("x-firkin-epoch"), own.to_string());
    bench.stop().await;
}
