//! Who is let in, and what malformed or unsupported requests are told.

use std::{num::NonZeroUsize, time::Duration};

use bytes::Bytes;
use firkin_runtime::config::AdmissionConfig;
use futures::StreamExt;
use http::{HeaderValue, Request};
use http_body::Frame;
use http_body_util::{Full, StreamBody};

use crate::bench::{Bench, DEADLINE, MAX_BODY, ROOM};

#[tokio::test]
async fn only_a_valid_key_opens_the_control_plane() {
    let bench = Bench::start().await;
    let unknown = format!("e2b_{}", "0".repeat(40));
    let table = [(None, 401), (Some(""), 401), (Some("e2b_"), 401), (Some(unknown.as_str()), 401), (Some("\u{fc}"), 401)];
    for (key, status) in table {
        for path in ["/v2/sandboxes", "/sandboxes/i1", "/templates", "/snapshots"] {
            let mut request = Request::builder().uri(path);
            if let Some(key) = key {
                request = request.header("X-API-KEY", key.as_bytes());
            }
            let answer = bench.answer(request.body(Full::<Bytes>::default()).unwrap()).await.expect(status);
            assert_eq!(answer.body["code"], status, "{key:?} {path}");
            assert!(!answer.text("/message").is_empty());
        }
    }
    bench.call("GET", "/v2/sandboxes", "").await.expect(200);
    bench.answer(Request::get("/health").body(Full::<Bytes>::default()).unwrap()).await.expect(200);
    bench.answer(Request::get("/health?details").body(Full::<Bytes>::default()).unwrap()).await.expect(401);
    let details = bench.call("GET", "/health?details", "").await.expect(200);
    assert_eq!(details.body["jail"]["lacking"], serde_json::json!([]), "{}", details.body);
    assert_eq!(details.body["encryption"], serde_json::json!({"enabled": false, "key": null, "sealed": 0}), "{}", details.body);
    let refused = bench.call("POST", "/encryption/rotate", "").await.expect(409);
    assert!(refused.body["message"].as_str().unwrap().contains("--encrypt-at-rest"), "{}", refused.body);
    bench.stop().await;
}

#[tokio::test]
async fn bad_input_is_told_so_in_the_contracts_form() {
    let bench = Bench::start().await;
    let id = bench.create("").await;
    let long = "a".repeat(65);
    let deep = "[".repeat(1000);
    let table: Vec<(&str, String, &str, u16)> = vec![
        ("GET", "/nothing".into(), "", 404),
        ("PUT", "/sandboxes".into(), "", 405),
        ("GET", format!("/sandboxes/{id}/pause"), "", 405),
        ("POST", "/v2/sandboxes".into(), "", 400),
        ("POST", "/v2/sandboxes".into(), "{", 400),
        ("POST", "/v2/sandboxes".into(), "[]", 400),
        ("POST", "/v2/sandboxes".into(), &deep, 400),
        ("POST", "/v2/sandboxes".into(), r#"{"templateID":5}"#, 400),
        ("POST", "/v2/sandboxes".into(), r#"{"templateID":"base","timeout":"1"}"#, 400),
        ("POST", "/v2/sandboxes".into(), r#"{"templateID":"base","timeout":0}"#, 400),
        ("POST", "/v2/sandboxes".into(), r#"{"templateID":"base","timeout":9999999}"#, 400),
        ("POST", "/v2/sandboxes".into(), r#"{"templateID":"base","metadata":{"a":1}}"#, 400),
        ("POST", "/v2/sandboxes".into(), r#"{"templateID":"base","iam":{"tokens":{"a":{"audience":"b"}}}}"#, 400),
        ("POST", "/v2/sandboxes".into(), r#"{"templateID":"unknown"}"#, 404),
        ("POST", "/sandboxes".into(), r#"{"templateID":"unknown"}"#, 404),
        ("GET", "/sandboxes/UPPER".into(), "", 400),
        ("GET", "/sandboxes/a_b".into(), "", 400),
        ("GET", "/sandboxes/%ff".into(), "", 400),
        ("GET", "/sandboxes/..%2f..%2fetc".into(), "", 400),
        ("GET", format!("/sandboxes/{long}"), "", 400),
        ("GET", "/sandboxes/inone".into(), "", 404),
        ("DELETE", "/sandboxes/inone".into(), "", 404),
        ("POST", "/sandboxes/inone/pause".into(), "", 404),
        ("POST", "/sandboxes/inone/resume".into(), "{}", 404),
        ("POST", "/v2/sandboxes/inone/connect".into(), "{}", 404),
        ("POST", "/sandboxes/inone/connect".into(), r#"{"timeout":5}"#, 404),
        ("POST", format!("/sandboxes/{id}/connect"), "{}", 400),
        ("POST", format!("/v2/sandboxes/{id}/connect"), r#"{"timeout":-5}"#, 400),
        ("POST", format!("/sandboxes/{id}/resume"), "{}", 409),
        ("POST", "/sandboxes/inone/timeout".into(), r#"{"timeout":5}"#, 404),
        ("POST", format!("/sandboxes/{id}/timeout"), "{}", 400),
        ("POST", format!("/sandboxes/{id}/timeout"), r#"{"timeout":-1}"#, 400),
        ("POST", format!("/sandboxes/{id}/refreshes"), r#"{"duration":3601}"#, 400),
        ("POST", "/sandboxes/inone/fork".into(), "{}", 404),
        ("POST", format!("/sandboxes/{id}/fork"), r#"{"count":0}"#, 400),
        ("POST", format!("/sandboxes/{id}/fork"), r#"{"count":101}"#, 400),
        ("POST", format!("/sandboxes/{id}/fork"), r#"{"count":-1}"#, 400),
        ("POST", "/sandboxes/inone/snapshots".into(), "{}", 404),
        ("POST", format!("/sandboxes/{id}/snapshots"), r#"{"name":"Not A Name"}"#, 400),
        ("GET", "/sandboxes/inone/metrics".into(), "", 404),
        ("GET", format!("/sandboxes/{id}/metrics?start=x"), "", 400),
        ("GET", "/sandboxes/metrics".into(), "", 400),
        ("GET", "/sandboxes/metrics?sandbox_ids=UPPER".into(), "", 400),
        ("GET", "/v2/sandboxes?limit=0".into(), "", 400),
        ("GET", "/v2/sandboxes?state=gone".into(), "", 400),
        ("GET", "/v2/sandboxes?nextToken=x".into(), "", 400),
        ("GET", "/sandboxes?metadata=a%3Db%3Dc".into(), "", 400),
        ("GET", "/snapshots?sandboxID=UPPER".into(), "", 400),
        ("GET", "/templates/none".into(), "", 404),
        ("GET", "/templates/aliases/team%2Fnone".into(), "", 404),
        ("DELETE", "/templates/none%3Av1".into(), "", 404),
        ("DELETE", "/templates/a%20b".into(), "", 400),
    ];
    for (method, path, body, status) in table {
        refused(&bench, method, &path, body, status).await;
    }
    bench.call("GET", &format!("/sandboxes/{id}"), "").await.expect(200);
    bench.stop().await;
}

/// Asks, and is refused in the contract's form.
async fn refused(bench: &Bench, method: &str, path: &str, body: &str, status: u16) {
    let answer = bench.call(method, path, body).await;
    assert_eq!(answer.status, status, "{method} {path} {body}: {answer:?}");
    assert_eq!(answer.body["code"], status, "{method} {path}");
    assert!(!answer.text("/message").is_empty(), "{method} {path}");
    assert_eq!(answer.headers["content-type"], "application/json; charset=utf-8", "{method} {path}");
    assert_eq!(answer.headers["x-content-type-options"], "nosniff", "{method} {path}");
}

#[tokio::test]
async fn a_life_that_nobody_may_have_is_refused_before_it_is_looked_whose_it_would_be() {
    let bench = Bench::start().await;
    for (path, body) in [
        ("/v2/sandboxes/inone/connect", r#"{"timeout":259200}"#),
        ("/sandboxes/inone/connect", r#"{"timeout":259200}"#),
        ("/sandboxes/inone/resume", r#"{"timeout":259200}"#),
        ("/sandboxes/inone/timeout", r#"{"timeout":259200}"#),
        ("/sandboxes/inone/fork", r#"{"timeout":259200}"#),
    ] {
        refused(&bench, "POST", path, body, 400).await;
    }
    bench.stop().await;
}

#[tokio::test]
async fn questions_about_a_team_are_for_that_team_and_for_times_that_can_be() {
    let bench = Bench::start().await;
    for (path, status) in [
        ("/teams/another/metrics", 403),
        ("/teams/another/metrics/max?metric=concurrent_sandboxes", 403),
        ("/teams/firkin/metrics?end=10413792000", 400),
        ("/teams/firkin/metrics?start=2&end=1", 400),
        ("/teams/firkin/metrics?start=x", 400),
        ("/teams/firkin/metrics/max?metric=other", 400),
    ] {
        refused(&bench, "GET", path, "", status).await;
    }
    bench.stop().await;
}

#[tokio::test]
async fn bodies_may_be_chunked_but_not_endless() {
    let bench = Bench::start().await;
    let chunked = |pieces: Vec<Bytes>| {
        let frames = futures::stream::iter(pieces).map(|piece| Ok::<_, std::convert::Infallible>(Frame::data(piece)));
        let (parts, _) = bench.request("POST", "/v2/sandboxes", "").into_parts();
        Request::from_parts(parts, StreamBody::new(frames))
    };
    let pieces = vec![Bytes::from_static(br#"{"templateID":"#), Bytes::from_static(br#""base"}"#)];
    bench.answer(chunked(pieces)).await.expect(201);
    let endless = vec![Bytes::from(vec![b' '; 16 << 10]); 64];
    let answer = bench.answer(chunked(endless)).await.expect(413);
    assert_eq!(answer.body["code"], 413);
    let announced = bench.call("POST", "/v2/sandboxes", &" ".repeat(MAX_BODY + 1)).await.expect(413);
    assert_eq!(announced.body["code"], 413);
    bench.stop().await;
}

#[tokio::test]
async fn a_full_host_says_when_to_come_back() {
    // Whichever comes last comes while the other waits.
    let queue_deadline = Duration::from_secs(3);
    let admission = AdmissionConfig { queue_length: NonZeroUsize::MIN, queue_deadline, ..AdmissionConfig::default() };
    let bench = Bench::start_with(admission).await;
    for _ in 0..ROOM {
        bench.create("").await;
    }
    // One waits in vain, the other finds the only place taken; which is which, the server decides.
    let create = || bench.call("POST", "/v2/sandboxes", r#"{"templateID":"base"}"#);
    let (one, other) = tokio::join!(create(), create());
    let mut answers = [one.expect(503), other.expect(503)];
    answers.sort_by_key(|answer| answer.text("/error_code").to_owned());
    let table = [("sandbox_capacity_unavailable", "5"), ("sandbox_placement_timeout", "1")];
    for (answer, (code, after)) in answers.iter().zip(table) {
        assert_eq!(answer.text("/error_code"), code);
        assert!(answer.text("/message").contains("1 cpus requested, 0 available"), "{answer:?}");
        assert_eq!((&answer.headers["retry-after"], &answer.headers["should-retry"]), (&header(after), &header("true")));
    }
    bench.stop().await;
}

#[tokio::test]
async fn whoever_waits_gets_the_room_of_a_sandbox_that_ends() {
    let admission = AdmissionConfig { queue_deadline: DEADLINE, ..AdmissionConfig::default() };
    let bench = Bench::start_with(admission).await;
    let mut ids = Vec::new();
    for _ in 0..ROOM {
        ids.push(bench.create("").await);
    }
    let path = format!("/sandboxes/{}", ids[0]);
    let kill = async {
        // Not before the other request waits.
        while bench.runtime.capacity().waiting == 0 {
            tokio::task::yield_now().await;
        }
        bench.call("DELETE", &path, "").await
    };
    let (created, killed) = tokio::join!(bench.create(""), kill);
    killed.expect(204);
    assert!(!ids.contains(&created));
    bench.stop().await;
}

#[tokio::test]
async fn whoever_goes_away_leaves_the_queue() {
    let bench = Bench::start_with(AdmissionConfig { queue_deadline: DEADLINE, ..AdmissionConfig::default() }).await;
    for _ in 0..ROOM {
        bench.create("").await;
    }
    let waiting = async |wanted: usize| {
        while bench.runtime.capacity().waiting != wanted {
            tokio::task::yield_now().await;
        }
    };
    {
        let create = bench.call("POST", "/v2/sandboxes", r#"{"templateID":"base"}"#);
        tokio::select! {
            answer = create => panic!("there is no room: {answer:?}"),
            () = waiting(1) => {}
        }
    }
    // The connection is gone with the request.
    tokio::time::timeout(DEADLINE, waiting(0)).await.expect("nobody waits for nobody");
    bench.stop().await;
}

fn header(text: &str) -> HeaderValue {
    text.parse().unwrap()
}

#[tokio::test]
async fn a_repeated_create_happens_once() {
    let bench = Bench::start().await;
    let create = |key: &str, body: &str| {
        let mut request = bench.request("POST", "/v2/sandboxes", body);
        request.headers_mut().insert("idempotency-key", key.parse().unwrap());
        bench.answer(request)
    };
    let body = r#"{"templateID":"base"}"#;
    let first = create("k-1", body).await.expect(201);
    assert_eq!(create("k-1", body).await.expect(201).body, first.body);
    assert_eq!(bench.runtime.sandboxes().len(), 1);
    let other = create("k-1", r#"{"templateID":"base","timeout":9}"#).await.expect(422);
    assert_eq!(other.body["error_code"], "idempotency_request_mismatch");
    create("UPPER", body).await.expect(400);
    create("k-2", r#"{"templateID":"none"}"#).await.expect(404);
    create("k-2", body).await.expect(201);
    bench.stop().await;
}

#[tokio::test]
async fn browsers_may_call_from_anywhere() {
    let bench = Bench::start().await;
    let preflight = Request::builder()
        .method("OPTIONS")
        .uri("/v2/sandboxes")
        .header("origin", "https://example.org")
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "x-api-key, e2b-sandbox-id")
        .body(Full::<Bytes>::default())
        .unwrap();
    let answer = bench.answer(preflight).await.expect(200);
    assert_eq!(answer.headers["access-control-allow-origin"], "*");
    assert_eq!(answer.headers["access-control-allow-headers"], "x-api-key, e2b-sandbox-id");
    bench.stop().await;
}
