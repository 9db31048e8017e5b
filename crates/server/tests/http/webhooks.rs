//! Webhooks in E2B's form: what a receiver gets, what becomes of one that is not there, and where none may point.

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::convert::Infallible;
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle};

use crate::bench::{ADMIN, Answer, Bench, DEADLINE};

const SECRET: &str = "hush";

/// Somebody who gets events.
struct Receiver {
    url: String,
    got: mpsc::UnboundedReceiver<(http::HeaderMap, String)>,
    server: JoinHandle<()>,
}

impl Receiver {
    async fn start(status: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let (sender, got) = mpsc::unbounded_channel();
        let server = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let sender = sender.clone();
                let service = service_fn(move |request: Request<Incoming>| {
                    let sender = sender.clone();
                    async move {
                        let (parts, body) = request.into_parts();
                        let body = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
                        sender.send((parts.headers, body)).ok();
                        Ok::<_, Infallible>(Response::builder().status(status).body(Full::<bytes::Bytes>::default()).unwrap())
                    }
                });
                tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { url, got, server }
    }

    async fn next(&mut self) -> (http::HeaderMap, String) {
        tokio::time::timeout(DEADLINE, self.got.recv()).await.expect("an event in time").unwrap()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Bench {
    async fn hook(&self, url: &str, events: &[&str]) -> Answer {
        let events: Vec<_> = events.iter().map(|event| format!("sandbox.lifecycle.{event}")).collect();
        let body = json!({"name": "mine", "url": url, "events": events, "signatureSecret": SECRET});
        self.call("POST", "/events/webhooks", &body.to_string()).await
    }
}

#[tokio::test]
async fn a_receiver_gets_signed_events_that_it_wants() {
    let bench = Bench::start().await;
    let mut receiver = Receiver::start(204).await;
    let hook = bench.hook(&receiver.url, &["created", "updated", "killed"]).await.expect(201);
    assert!(!hook.body.to_string().contains(SECRET));
    assert_eq!((hook.text("/teamId"), &hook.body["enabled"]), ("firkin", &json!(true)));
    let id = bench.create(r#","metadata":{"k":"v"}"#).await;
    bench.call("POST", &format!("/sandboxes/{id}/pause"), "").await.expect(204);
    bench.call("POST", &format!("/v2/sandboxes/{id}/connect"), "{}").await.expect(201);
    bench.call("POST", &format!("/sandboxes/{id}/timeout"), r#"{"timeout":900}"#).await.expect(204);
    bench.call("DELETE", &format!("/sandboxes/{id}"), "").await.expect(204);
    let mut events = Vec::new();
    for _ in 0..3 {
        let (headers, body) = receiver.next().await;
        let signature = STANDARD_NO_PAD.encode(Sha256::digest(format!("{SECRET}{body}")));
        assert_eq!(headers["e2b-signature"], signature.as_str());
        assert_eq!(
            (&headers["e2b-signature-version"], headers["e2b-webhook-id"].to_str().unwrap()),
            (&"v1".parse().unwrap(), hook.text("/id"))
        );
        assert!(headers.contains_key("e2b-delivery-id"));
        events.push(serde_json::from_str::<Value>(&body).unwrap());
    }
    let kinds: Vec<_> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["sandbox.lifecycle.created", "sandbox.lifecycle.updated", "sandbox.lifecycle.killed"]);
    for event in &events {
        for (ours, theirs) in [("sandboxId", "sandbox_id"), ("sandboxTeamId", "sandbox_team_id"), ("eventData", "event_data")] {
            assert!(!event[ours].is_null() && event[ours] == event[theirs], "{event}");
        }
        assert_eq!(
            (&event["version"], &event["sandbox_id"], &event["event_data"]["sandbox_metadata"]),
            (&json!("v2"), &json!(id), &json!({"k": "v"}))
        );
        assert!(event["sandbox_build_id"].is_string() && event["sandbox_execution_id"].is_string(), "{event}");
    }
    assert!(events[1]["event_data"]["set_timeout"].is_string());
    assert!(events[2]["event_data"]["execution"]["vcpu_count"].is_u64());
    assert_ne!(events[0]["sandbox_execution_id"], events[2]["sandbox_execution_id"], "it was paused in between");

    // The same from the list, newest first.
    let listed = bench.call("GET", &format!("/events/sandboxes/{id}?limit=2"), "").await.expect(200);
    assert_eq!((listed.text("/0/type"), &listed.body[0]["id"]), ("sandbox.lifecycle.killed", &events[2]["id"]));
    let first = bench.call("GET", "/events/sandboxes?orderAsc=true&limit=1", "").await.expect(200);
    assert_eq!(first.text("/0/type"), "sandbox.lifecycle.created");
    let some = bench.call("GET", "/events/sandboxes?types=sandbox.lifecycle.paused", "").await.expect(200);
    assert_eq!(some.body.as_array().unwrap().len(), 1);
    for bad in ["limit=0", "limit=101", "offset=x", "orderAsc=1", "types=weather"] {
        bench.call("GET", &format!("/events/sandboxes?{bad}"), "").await.expect(400);
    }

    // Switched off, nothing comes any more; deleted, it is not there.
    let path = format!("/events/webhooks/{}", hook.text("/id"));
    let off = bench.call("PATCH", &path, r#"{"enabled":false}"#).await.expect(200);
    assert_eq!((&off.body["enabled"], off.text("/name")), (&json!(false), "mine"));
    bench.create("").await;
    assert_eq!(bench.call("GET", &format!("{path}/deliveries"), "").await.expect(200).body, json!([]));
    bench.call("DELETE", &path, "").await.expect(200);
    bench.call("GET", &path, "").await.expect(404);
    assert_eq!(bench.call("GET", "/events/webhooks", "").await.expect(200).body, json!([]));
    bench.stop().await;
}

#[tokio::test]
async fn what_does_not_arrive_waits_and_says_why() {
    let bench = Bench::start().await;
    let mut receiver = Receiver::start(503).await;
    let hook = bench.hook(&receiver.url, &["created"]).await.expect(201);
    let id = bench.create("").await;
    receiver.next().await;
    let path = format!("/events/webhooks/{}/deliveries", hook.text("/id"));
    let told = async {
        let mut looks = tokio::time::interval(std::time::Duration::from_millis(10));
        loop {
            looks.tick().await;
            let shown = bench.call("GET", &path, "").await.expect(200);
            if shown.body[0]["attempts"] == json!(1) {
                return shown;
            }
        }
    };
    let shown = tokio::time::timeout(DEADLINE, told).await.expect("the attempt is on record");
    assert_eq!((shown.text("/0/state"), shown.text("/0/error")), ("waiting", "the receiver answered with status 503"));
    assert!(shown.body[0]["nextAttemptAt"].is_string() && !shown.body.to_string().contains(&id), "{shown:?}");
    assert_eq!(bench.call("POST", &format!("{path}/retry"), "").await.expect(200).body, json!({ "retried": 0 }));
    bench.stop().await;
}

#[tokio::test]
async fn a_webhook_points_to_nothing_inside_and_is_its_teams_alone() {
    let bench = Bench::start().await;
    for url in [
        "https://10.0.0.1/",
        "https://169.254.169.254/latest/meta-data",
        "https://[::1]/",
        "http://a.example/",
        "file:///etc/passwd",
        "https://user:password@a.example/",
        "nowhere",
    ] {
        let refused = bench.hook(url, &["created"]).await;
        // A name is looked up when there is something to send.
        if url != "http://a.example/" {
            refused.expect(400);
        }
    }
    for body in [json!({}), json!({"name": "n", "url": "https://a.example/", "events": [], "signatureSecret": "s"})] {
        bench.call("POST", "/events/webhooks", &body.to_string()).await.expect(400);
    }
    let hook = bench.hook("https://a.example/", &["created"]).await.expect(201);
    let admin = |method: &str, path: &str, body: &str| {
        let mut request = bench.request(method, path, body);
        request.headers_mut().remove("x-api-key");
        request.headers_mut().insert("x-admin-token", ADMIN.parse().unwrap());
        request
    };
    bench.answer(admin("POST", "/admin/teams", r#"{"teamID":"blue"}"#)).await.expect(201);
    let key = bench.answer(admin("POST", "/admin/teams/blue/keys", "{}")).await.expect(201);
    let theirs = async |method: &str, path: &str, body: &str| {
        let mut request = bench.request(method, path, body);
        request.headers_mut().insert("x-api-key", key.text("/key").parse().unwrap());
        bench.answer(request).await
    };
    let path = format!("/events/webhooks/{}", hook.text("/id"));
    assert_eq!(theirs("GET", "/events/webhooks", "").await.expect(200).body, json!([]));
    for (method, path) in
        [("GET", path.clone()), ("PATCH", path.clone()), ("DELETE", path.clone()), ("GET", format!("{path}/deliveries"))]
    {
        theirs(method, &path, "{}").await.expect(404);
    }
    assert_eq!(theirs("GET", "/events/sandboxes", "").await.expect(200).body, json!([]));
    bench.call("GET", &path, "").await.expect(200);
    bench.stop().await;
}
