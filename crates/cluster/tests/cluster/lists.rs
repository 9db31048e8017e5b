//! Lists of what all nodes have.

use std::{collections::BTreeSet, time::Duration};

use firkin_runtime::sandbox::CreateSandbox;

use crate::{
    bench::{Answer, Bench},
    joint::{Choice, Joint},
};

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_from_what_is_one_tree_whatever_node_has_it() {
    let Some((joint, a)) = Joint::found(Choice::default()).await else { return };
    let b = joint.start("b", Choice::default()).await;
    let source = a.create().await;
    let fork = a.runtime.fork(&source.parse().unwrap(), 1, Duration::from_secs(600)).await.unwrap().remove(0).unwrap().id;
    let snapshot = a.runtime.snapshot(&source.parse().unwrap(), Some("mine".into())).await.unwrap();
    let child = CreateSandbox { template: snapshot.snapshot_id, ..CreateSandbox::from_template("base") };
    let child = b.runtime.create(child).await.unwrap().id;
    let below = |node: &serde_json::Value| -> BTreeSet<String> {
        node["children"].as_array().unwrap().iter().map(|child| child["id"].as_str().unwrap().to_owned()).collect()
    };
    for node in [&a, &b] {
        let tree = node.call(&joint.key, ("GET", "/lineage", "")).await.expect(200);
        assert_eq!(tree.header("x-firkin-missing-nodes"), "");
        assert_eq!(tree.body.as_array().unwrap().len(), 1, "{tree:?}");
        // base, the sandbox on A, its fork and its snapshot, and what was created from that on B.
        let of_source = &tree.body[0]["children"][0];
        assert_eq!(of_source["id"], source, "{tree:?}");
        let taken = of_source["children"].as_array().unwrap().iter().find(|child| child["kind"] == "snapshot").unwrap();
        assert!(below(of_source).contains(fork.as_str()) && below(of_source).len() == 2, "{tree:?}");
        assert_eq!(below(taken), BTreeSet::from([child.to_string()]), "{tree:?}");
    }
    b.stop(firkin_runtime::owner::OnExit::Kill).await;
    let told = a.call(&joint.key, ("GET", "/lineage", "")).await.expect(200);
    assert_eq!(told.header("x-firkin-missing-nodes"), "b");
    assert!(told.body.to_string().contains(&source) && !told.body.to_string().contains(child.as_str()), "{told:?}");
    joint.end([a]).await;
}
