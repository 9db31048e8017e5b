//! The control plane of a sandbox through a node that does not have it, and who is believed.

use crate::bench::{ADMIN, Bench, DEADLINE};

#[tokio::test]
async fn any_node_serves_a_request_for_any_sandbox_as_whom_the_edge_let_in() {
    let bench = Bench::start(&["a", "b"]).await;
    let [a, b] = &bench.nodes[..] else { unreachable!() };
    let id = a.create(r#","metadata":{"k":"v"}"#).await;
    assert!(!b.runtime.has(&id.parse().unwrap()));
    // Its key is one that A has never heard of.
    let detail = b.call("GET", &format!("/sandboxes/{id}"), "").await.expect(200);
    assert_eq!((detail.text("/sandboxID"), detail.header("x-firkin-node")), (id.as_str(), "a"));
    assert_eq!(detail.text("/metadata/k"), "v");
    assert!(!detail.headers.contains_key("x-firkin-visited") && detail.headers.contains_key("x-request-id"));
    let own = a.call("GET", &format!("/sandboxes/{id}"), "").await.expect(200);
    assert_eq!(own.header("x-firkin-node"), "a");
    // A body goes along, and the work of A is written down by A, with the client's address, and by nobody else.
    b.call("POST", &format!("/sandboxes/{id}/timeout"), r#"{"timeout":1000}"#).await.expect(204);
    b.call("POST", &format!("/sandboxes/{id}/pause"), "").await.expect(204);
    b.call("POST", &format!("/v2/sandboxes/{id}/connect"), r#"{"timeout":60}"#).await.expect(201);
    let lines = bench.audited("a", 4).await;
    let actions: Vec<_> = lines.iter().map(|line| line["action"].as_str().unwrap()).collect();
    assert_eq!(
        actions,
        ["POST /v2/sandboxes", "POST /sandboxes/{id}/timeout", "POST /sandboxes/{id}/pause", "POST /v2/sandboxes/{id}/connect"]
    );
    assert!(lines.iter().all(|line| line["from"] == "127.0.0.1" && line["team"] == "firkin"), "{lines:?}");
    // An error is the home's own, with what it says.
    let refused = b.call("POST", &format!("/sandboxes/{id}/resume"), "{").await.expect(400);
    assert_eq!(refused.header("x-firkin-node"), "a");
    b.call("DELETE", &format!("/sandboxes/{id}"), "").await.expect(204);
    a.call("GET", &format!("/sandboxes/{id}"), "").await.expect(404);
    assert!(fs_err::read_to_string(bench.audit("b")).unwrap_or_default().is_empty());
    bench.stop().await;
}

#[tokio::test]
async fn a_key_goes_as_far_through_another_node_as_at_home() {
    let bench = Bench::start(&["a", "b"]).await;
    let [a, b] = &bench.nodes[..] else { unreachable!() };
    let id = a.create("").await;
    let issue = async |fields: &str, team: &str| {
        let mut request = b.request("POST", &format!("/admin/teams/{team}/keys"), fields);
        request.headers_mut().insert("x-admin-token", ADMIN.parse().unwrap());
        b.answer(request).await.expect(201).text("/key").to_owned()
    };
    let ask = async |key: &str, method: &str, path: String| {
        let mut request = b.request(method, &path, "");
        request.headers_mut().insert("x-api-key", key.parse().unwrap());
        b.answer(request).await
    };
    let reader = issue(r#"{"name":"r","scope":"read"}"#, "firkin").await;
    let shown = ask(&reader, "GET", format!("/sandboxes/{id}")).await.expect(200);
    assert!(shown.body.get("envdAccessToken").is_none(), "what opens it is not for who looks only");
    ask(&reader, "POST", format!("/sandboxes/{id}/pause")).await.expect(403);
    let mut team = b.request("POST", "/admin/teams", r#"{"teamID":"blue"}"#);
    team.headers_mut().insert("x-admin-token", ADMIN.parse().unwrap());
    b.answer(team).await.expect(201);
    let blue = issue(r#"{"name":"b"}"#, "blue").await;
    ask(&blue, "GET", format!("/sandboxes/{id}")).await.expect(404);
    ask(&blue, "DELETE", format!("/sandboxes/{id}")).await.expect(404);
    ask("nonsense", "GET", format!("/sandboxes/{id}")).await.expect(401);
    assert!(a.runtime.has(&id.parse().unwrap()));
    bench.stop().await;
}

#[tokio::test]
async fn who_says_what_only_peers_may_say_gains_nothing_by_it() {
    let bench = Bench::start(&["a", "b"]).await;
    let [a, b] = &bench.nodes[..] else { unreachable!() };
    let id = a.create("").await;
    let forged = r#"{"team":"firkin","scope":"full","admin":true}"#;
    for node in [a, b] {
        for (method, path) in [
            ("GET", format!("/sandboxes/{id}")),
            ("DELETE", format!("/sandboxes/{id}")),
            ("GET", "/v2/sandboxes".to_owned()),
            ("GET", "/admin/keys".to_owned()),
            ("GET", "/events".to_owned()),
        ] {
            let mut request = node.request(method, &path, "");
            request.headers_mut().remove("x-api-key");
            for (name, value) in [("x-firkin-identity", forged), ("x-firkin-client", "192.0.2.1:1"), ("x-firkin-encrypted", "1")]
            {
                request.headers_mut().insert(name, value.parse().unwrap());
            }
            node.answer(request).await.expect(401);
        }
        // Beside a good key it changes nothing either, and does not get into what is written down.
        let mut request = node.request("POST", "/admin/teams", r#"{"teamID":"red"}"#);
        request.headers_mut().insert("x-firkin-identity", forged.parse().unwrap());
        node.answer(request).await.expect(401);
        let mut request = node.request("POST", &format!("/sandboxes/{id}/timeout"), r#"{"timeout":1000}"#);
        request.headers_mut().insert("x-firkin-client", "192.0.2.1:1".parse().unwrap());
        node.answer(request).await.expect(204);
    }
    let lines = bench.audited("a", 3).await;
    assert!(lines.iter().all(|line| line["from"] == "127.0.0.1"), "{lines:?}");
    assert!(a.runtime.has(&id.parse().unwrap()));
    bench.stop().await;
}

#[tokio::test]
async fn whatever_is_on_no_record_is_answered_where_it_was_asked() {
    let bench = Bench::start(&["a", "b"]).await;
    let [_, b] = &bench.nodes[..] else { unreachable!() };
    let id = firkin_runtime::sandbox::SandboxId::generate().to_string();
    let absent = b.call("GET", &format!("/sandboxes/{id}"), "").await.expect(404);
    assert_eq!(absent.header("x-firkin-node"), "b");
    // By the record it is here, and is not: the route says so, and nothing goes round.
    bench.map.home(&id, &b.id, 1);
    b.call("GET", &format!("/sandboxes/{id}"), "").await.expect(404);
    // Who has no key is told nothing, and nobody is asked for it.
    let asked = bench.map.asked();
    let mut request = b.request("GET", &format!("/sandboxes/{id}"), "");
    request.headers_mut().remove("x-api-key");
    b.answer(request).await.expect(401);
    assert_eq!(bench.map.asked(), asked);
    b.call("GET", "/health", "").await.expect(200);
    bench.stop().await;
}

#[tokio::test]
async fn a_build_and_what_is_uploaded_for_it_are_on_one_node_whichever_is_asked() {
    let bench = Bench::start(&["a", "b"]).await;
    let [a, b] = &bench.nodes[..] else { unreachable!() };
    let place = a.call("POST", "/v3/templates", r#"{"name":"mine","cpuCount":1,"memoryMB":512}"#).await.expect(202);
    let (template, build) = (place.text("/templateID"), place.text("/buildID"));
    bench.map.builder(template, &a.id);
    let path = format!("/templates/{template}/builds/{build}/status");
    let status = || b.call("GET", &path, "");
    let waiting = status().await.expect(200);
    assert_eq!((waiting.text("/status"), waiting.header("x-firkin-node")), ("waiting", "a"));
    let hash = "0".repeat(64);
    let link = b.call("GET", &format!("/templates/{template}/files/{hash}"), "").await.expect(201);
    let url: http::Uri = link.text("/url").parse().unwrap();
    assert_eq!(url.authority().unwrap().as_str(), b.address.to_string(), "it leads to where it was asked for");
    // Who brings it has the link alone, and what it brings is longer than what is kept.
    let upload = |query: &str| {
        let request = http::Request::put(format!("{}?{query}", url.path())).header("host", b.address.to_string());
        request.body(http_body_util::Full::from(vec![7; 1 << 20])).unwrap()
    };
    b.answer(upload(url.query().unwrap())).await.expect(200);
    b.answer(upload("expires=9999999999&signature=AAAA")).await.expect(401);
    b.answer(upload("")).await.expect(401);
    assert!(a.runtime.has_files(&hash).unwrap() && !b.runtime.has_files(&hash).unwrap());
    b.call("POST", &format!("/v2/templates/{template}/builds/{build}"), r#"{"fromTemplate":"base"}"#).await.expect(202);
    let ended = async {
        loop {
            let status = status().await.expect(200);
            match status.text("/status") {
                "building" => tokio::task::yield_now().await,
                _ => return status,
            }
        }
    };
    let ended = tokio::time::timeout(DEADLINE, ended).await.expect("the build ends");
    assert_eq!(ended.text("/status"), "ready", "{ended:?}");
    bench.stop().await;
}
