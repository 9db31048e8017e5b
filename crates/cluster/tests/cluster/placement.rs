//! On which node a new sandbox is made, wherever it is asked for.

use std::{collections::HashSet, sync::Arc};

use firkin_runtime::sandbox::CreateSandbox;

use crate::bench::{Answer, Bench, CPUS, Node};

async fn create(node: &Node, key: Option<&str>) -> Answer {
    let mut request = node.request("POST", "/v2/sandboxes", r#"{"templateID":"base"}"#);
    if let Some(key) = key {
        request.headers_mut().insert("idempotency-key", key.parse().unwrap());
    }
    node.answer(request).await
}

/// The build of `base` on a node. Each has one of its own here.
async fn base(node: &Node) -> String {
    node.runtime.template("base").await.unwrap().unwrap().build_id
}

#[tokio::test]
async fn a_create_goes_to_who_has_room_and_holds_the_template_and_on_to_the_next_where_that_refuses() {
    let bench = Bench::start(&["a", "b", "c"]).await;
    let [a, b, c] = &bench.nodes[..] else { unreachable!() };
    // Nothing is known of others: it is made where it is asked for.
    assert_eq!(create(a, None).await.expect(201).header("x-firkin-node"), "a");
    // The edge asks for its own build of the name, which B holds by what is said.
    let build = base(a).await;
    let say = |name: &str, free: u64, holds: &[&String]| {
        let holds: HashSet<String> = holds.iter().map(|build| (*build).clone()).collect();
        bench.map.change(name, |member| (member.free_memory_mib, member.holds) = (Some(free), Some(Arc::new(holds))));
    };
    say("a", 100_000, &[]);
    say("b", 10_000, &[&build]);
    say("c", 90_000, &[]);
    let made = create(a, None).await.expect(201);
    assert_eq!(made.header("x-firkin-node"), "b");
    assert!(!made.headers.contains_key("x-firkin-refused"));
    assert_eq!(made.header("x-firkin-placement"), "b: holds the template");
    assert!(b.runtime.has(&made.text("/sandboxID").parse().unwrap()));
    // It is full, whatever was said of it: the next one is asked.
    for _ in 1..CPUS {
        b.runtime.create(CreateSandbox::from_template("base")).await.unwrap();
    }
    say("a", 100, &[]);
    let made = create(a, None).await.expect(201);
    assert_eq!(made.header("x-firkin-node"), "c");
    let why = "c: gets the template from another node; passed over: b (had no room, or did not answer), a (100 MiB of memory free, 512 wanted)";
    assert_eq!(made.header("x-firkin-placement"), why);
    assert_eq!(c.runtime.sandboxes().len(), 1);
    assert_eq!(b.runtime.capacity().requests.timed_out, 0, "nobody waits where another has room");
    // Nor is one in the way that is not who it is said to be.
    say("c", 90_000, &[&build]);
    bench.map.change("c", |c| c.term = 9);
    say("a", 100_000, &[]);
    let made = create(a, None).await.expect(201);
    assert_eq!(made.header("x-firkin-node"), "a");
    let why = made.header("x-firkin-placement");
    assert!(why.starts_with("a: gets the template from another node; passed over: "), "{why}");
    assert!(why.contains("b (had no room, or did not answer)") && why.contains("c (had no room, or did not answer)"), "{why}");
    // Nor is one asked that has not the engine, whatever it holds and however empty it is.
    bench.map.change("b", |b| (b.engines, b.cordoned) = (Vec::new(), true));
    bench.map.change("c", |c| (c.term, c.engines) = (1, vec!["kvm".to_owned()]));
    let made = create(a, None).await.expect(201);
    assert_eq!(
        made.header("x-firkin-placement"),
        "a: gets the template from another node; passed over: b (cordoned), c (runs by kvm, not none)"
    );
    let metrics = a.call("GET", "/metrics", "").await.expect(200);
    let lines: Vec<&str> = metrics.body.as_str().unwrap().lines().collect();
    for (name, label, value) in [
        ("placement_total", ",outcome=\"first\"", "3"),
        ("placement_total", ",outcome=\"next\"", "2"),
        ("placement_total", ",outcome=\"here\"", "0"),
        ("placement_total", ",outcome=\"refused\"", "0"),
        ("nodes", ",state=\"ready\"", "3"),
        ("nodes", ",state=\"away\"", "0"),
        ("lease_left_seconds", "", "77.0"),
        ("claims_total", ",outcome=\"claimed\"", "3"),
        ("fenced_total", "", "2"),
    ] {
        let line = format!("firkin_{name}{{acceleration=\"none\"{label}}} {value}");
        assert!(lines.contains(&line.as_str()), "{line} is not among {lines:#?}");
    }
    bench.stop().await;
}

#[tokio::test]
async fn a_create_that_is_asked_for_twice_happens_once_whichever_nodes_are_asked() {
    let bench = Bench::start(&["a", "b", "c"]).await;
    for name in ["a", "b", "c"] {
        bench.map.change(name, |member| member.free_memory_mib = Some(10_000));
    }
    let mut on = HashSet::new();
    for key in 0..6 {
        let key = format!("key-{key}");
        let first = create(&bench.nodes[0], Some(&key)).await.expect(201);
        for node in &bench.nodes {
            let again = create(node, Some(&key)).await.expect(201);
            assert_eq!(again.text("/sandboxID"), first.text("/sandboxID"));
        }
        on.insert(first.header("x-firkin-node").to_owned());
    }
    assert!(on.len() > 1, "{on:?}");
    bench.stop().await;
}

#[tokio::test]
async fn what_is_wrong_with_a_create_is_said_where_it_was_asked_for() {
    let bench = Bench::start(&["a", "b"]).await;
    bench.map.change("b", |b| b.free_memory_mib = Some(1 << 20));
    let [a, _] = &bench.nodes[..] else { unreachable!() };
    for (body, status) in [("{", 400), (r#"{"templateID":"none"}"#, 404), (r#"{"templateID":"base","timeout":-1}"#, 400)] {
        let refused = a.answer(a.request("POST", "/v2/sandboxes", body)).await.expect(status);
        assert!(refused.text("/message").len() > 5);
    }
    let mut request = a.request("POST", "/v2/sandboxes", r#"{"templateID":"base"}"#);
    request.headers_mut().remove("x-api-key");
    assert_eq!(a.answer(request).await.expect(401).header("x-firkin-node"), "a");
    bench.stop().await;
}

#[tokio::test]
async fn a_create_with_what_only_one_node_has_stays_where_it_came_in() {
    let bench = Bench::start(&["a", "b"]).await;
    let [a, _] = &bench.nodes[..] else { unreachable!() };
    let build = base(a).await;
    let holds = Arc::new(HashSet::from([build]));
    bench.map.change("b", |b| (b.free_memory_mib, b.holds) = (Some(100_000), Some(holds)));
    let field = r#""volumeMounts":[{"name":"data","path":"/data"}]"#;
    let answer = a.call("POST", "/v2/sandboxes", &format!(r#"{{"templateID":"base",{field}}}"#)).await;
    assert_eq!(answer.header("x-firkin-node"), "a", "{answer:?}");
    let answer = a.call("POST", "/v2/sandboxes", r#"{"templateID":"base","volumeMounts":[],"network":{}}"#).await;
    assert_eq!(answer.expect(201).header("x-firkin-node"), "b");
    bench.stop().await;
}
