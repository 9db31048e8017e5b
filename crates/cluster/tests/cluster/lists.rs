//! Lists of what all nodes have.

use std::collections::BTreeSet;

use crate::bench::{Answer, Bench};

fn ids(answer: &Answer) -> Vec<String> {
    answer.body.as_array().unwrap().iter().map(|sandbox| sandbox["sandboxID"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_list_has_what_all_nodes_have_page_by_page_in_one_order() {
    let bench = Bench::start(&["a", "b", "c"]).await;
    let mut made = Vec::new();
    // Node by node in turns, so that each page has some of each.
    for number in 0..9 {
        made.push(bench.nodes[number % 3].create(&format!(r#","metadata":{{"n":"{}"}}"#, number % 2)).await);
    }
    for (order, expected) in [("asc", made.clone()), ("desc", made.iter().rev().cloned().collect())] {
        for node in &bench.nodes {
            let (mut shown, mut token) = (Vec::new(), String::new());
            loop {
                let page = node.call("GET", &format!("/v2/sandboxes?limit=2&order={order}{token}"), "").await.expect(200);
                assert_eq!((page.header("x-total-running"), page.header("x-firkin-missing-nodes")), ("9", ""));
                assert!(ids(&page).len() <= 2);
                shown.extend(ids(&page));
                match page.header("x-next-token") {
                    "" => break,
                    next => token = format!("&nextToken={next}"),
                }
            }
            assert_eq!(shown, expected, "{order}");
        }
    }
    let some = bench.nodes[1].call("GET", "/v2/sandboxes?metadata=n%3D1", "").await.expect(200);
    assert_eq!(ids(&some).len(), 4);
    let old = bench.nodes[2].call("GET", "/sandboxes", "").await.expect(200);
    assert_eq!(ids(&old), made.iter().rev().cloned().collect::<Vec<_>>());
    let (id, other) = (&made[0], &made[1]);
    let metrics = bench.nodes[2].call("GET", &format!("/sandboxes/metrics?sandbox_ids={id},{other}"), "").await.expect(200);
    let of: BTreeSet<_> = metrics.body["sandboxes"].as_object().unwrap().keys().collect();
    assert_eq!(of, BTreeSet::from([id, other]));
    bench.stop().await;
}

#[tokio::test]
async fn a_list_names_who_did_not_answer_instead_of_failing() {
    let mut bench = Bench::start(&["a", "b", "c"]).await;
    let (first, second) = (bench.nodes[0].create("").await, bench.nodes[1].create("").await);
    bench.nodes[2].create("").await;
    let c = bench.nodes.pop().unwrap();
    c.stop().await;
    let list = bench.nodes[1].call("GET", "/v2/sandboxes", "").await.expect(200);
    assert_eq!(ids(&list), [second.clone(), first.clone()]);
    assert_eq!(list.header("x-firkin-missing-nodes"), "c", "nobody is there");
    bench.map.change("a", |a| a.alive = false);
    let list = bench.nodes[1].call("GET", "/v2/sandboxes", "").await.expect(200);
    assert_eq!((ids(&list), list.header("x-firkin-missing-nodes")), (vec![second], "a,c"), "nor is who does not hold its lease");
    bench.stop().await;
}
