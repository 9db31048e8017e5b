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
