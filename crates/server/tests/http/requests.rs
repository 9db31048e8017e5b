//! What a request is called, whose trace it is part of, and what is logged of it.

use firkin_wire::ENVD_PORT;

use crate::bench::{ADMIN, Bench, DEADLINE};

#[tokio::test]
async fn an_answer_names_its_request_as_the_audit_log_does() {
    let bench = Bench::start().await;
    let first = bench.call("POST", "/v2/sandboxes", r#"{"templateID":"base"}"#).await.expect(201);
    let second = bench.call("GET", "/sandboxes", "").await.expect(200);
    let id = |answer: &crate::bench::Answer| answer.headers["x-request-id"].to_str().unwrap().to_owned();
    assert_ne!(id(&first), id(&second));
    assert_eq!(bench.audited(1).await[0]["request"], id(&first).as_str());
    // One that a client brings is not believed.
    let mut request = bench.request("GET", "/sandboxes", "");
    request.headers_mut().insert("x-request-id", "mine".parse().unwrap());
    assert_ne!(id(&bench.answer(request).await), "mine");
    bench.stop().await;
}

#[tokio::test]
async fn a_trace_goes_on_into_the_guest() {
    const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let mut bench = Bench::start().await;
    let guest = bench.hear_as_envd();
    let id = bench.create("").await;
    let mut request = bench.guest(&id, ENVD_PORT, "/health");
    request.headers_mut().insert("traceparent", TRACE.parse().unwrap());
    request.headers_mut().insert("tracestate", "a=b".parse().unwrap());
    bench.answer(request).await.expect(204);
    let head = tokio::time::timeout(DEADLINE, guest).await.unwrap().unwrap();
    assert!(head.contains(&format!("traceparent: {TRACE}")) && head.contains("tracestate: a=b"), "{head}");
    bench.stop().await;
}

#[tokio::test]
async fn what_is_logged_is_changed_by_who_administers_and_by_nobody_else() {
    let bench = Bench::start().await;
    let admin = async |method: &str, body: &str| {
        let mut request = bench.request(method, "/admin/log-level", body);
        request.headers_mut().remove("x-api-key");
        request.headers_mut().insert("x-admin-token", ADMIN.parse().unwrap());
        bench.answer(request).await
    };
    assert_eq!(admin("GET", "").await.expect(200).text("/filter"), "info");
    assert_eq!(admin("PUT", r#"{"filter":"debug"}"#).await.expect(200).text("/filter"), "debug");
    for bad in [r#"{"filter":""}"#, r#"{"filter":"wrong"}"#, "{}"] {
        admin("PUT", bad).await.expect(400);
    }
    assert_eq!(admin("GET", "").await.expect(200).text("/filter"), "debug");
    bench.call("PUT", "/admin/log-level", r#"{"filter":"trace"}"#).await.expect(401);
    bench.stop().await;
}

#[tokio::test]
async fn a_server_that_is_alone_believes_nothing_that_a_peer_would_say_and_says_no_such_thing() {
    let mut bench = Bench::start().await;
    let guest = bench.hear_as_envd();
    let id = bench.create("").await;
    let told = r#"{"team":"firkin","scope":"full","admin":true}"#;
    for (method, path) in [("GET", "/v2/sandboxes"), ("GET", "/admin/keys"), ("DELETE", &*format!("/sandboxes/{id}"))] {
        let mut request = bench.request(method, path, "");
        request.headers_mut().remove("x-api-key");
        request.headers_mut().insert("x-firkin-identity", told.parse().unwrap());
        bench.answer(request).await.expect(401);
    }
    let answer = bench.call("GET", &format!("/sandboxes/{id}"), "").await.expect(200);
    assert!(answer.headers.keys().all(|name| !name.as_str().starts_with("x-firkin-")), "{:?}", answer.headers);
    let metrics = bench.call("GET", "/metrics", "").await.expect(200);
    let text = metrics.body.as_str().unwrap();
    let of_nodes = ["firkin_nodes", "firkin_lease_left", "firkin_claims", "firkin_placement", "firkin_fenced"];
    assert!(text.contains("firkin_sandboxes") && of_nodes.iter().all(|series| !text.contains(series)), "{text}");
    // To a guest it is a header like any other.
    let mut request = bench.guest(&id, firkin_wire::ENVD_PORT, "/health");
    request.headers_mut().insert("x-firkin-identity", told.parse().unwrap());
    bench.answer(request).await.expect(204);
    let head = tokio::time::timeout(DEADLINE, guest).await.unwrap().unwrap();
    assert!(head.contains("x-firkin-identity"), "{head}");
    bench.stop().await;
}
