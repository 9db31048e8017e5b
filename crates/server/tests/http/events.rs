//! `GET /events`: who is told what, who missed something, and who does not listen; and the host in figures.

use std::{num::NonZeroUsize, time::Duration};

use bytes::Bytes;
use firkin_runtime::config::AdmissionConfig;
use futures::StreamExt as _;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpSocket,
};

use crate::bench::{ADMIN, Bench, DEADLINE};

/// Streams of one team at once.
const STREAMS_OF_TEAM: usize = 64;

/// A stream of events that is being read.
struct Stream {
    body: Incoming,
    text: String,
}

/// One event as it was sent.
#[derive(Debug, Clone)]
struct Event {
    id: String,
    name: String,
    data: Value,
}

impl Stream {
    async fn open(bench: &Bench, path: &str, headers: &[(&'static str, &str)]) -> Self {
        let mut request = bench.request("GET", path, "");
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        Self::of(bench, request).await
    }

    async fn of(bench: &Bench, request: Request<Full<Bytes>>) -> Self {
        let response = bench.send(request).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { body: response.into_body(), text: String::new() }
    }

    /// The next event; comments are passed over.
    async fn next(&mut self) -> Event {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().to_owned();
                let (id, name, data) = (field("id: "), field("event: "), field("data: "));
                self.text = rest.to_owned();
                if !name.is_empty() {
                    return Event { id, name, data: serde_json::from_str(&data).unwrap() };
                }
                continue;
            }
            let frame = tokio::time::timeout(DEADLINE, self.body.frame()).await.expect("an event in time");
            let piece = frame.expect("the stream goes on").unwrap().into_data().unwrap();
            self.text += std::str::from_utf8(&piece).unwrap();
        }
    }

    /// Reads until it ends.
    async fn ended(&mut self) {
        let end = async { while let Some(Ok(_)) = self.body.frame().await {} };
        tokio::time::timeout(DEADLINE, end).await.expect("the stream ends");
    }

    /// The next event of a topic, with what it says happened.
    async fn happened(&mut self, topic: &str) -> (String, Event) {
        loop {
            let event = self.next().await;
            if event.name == topic {
                return (event.data["event"].as_str().unwrap_or_default().to_owned(), event);
            }
        }
    }
}

#[tokio::test]
async fn a_stream_tells_what_becomes_of_sandboxes_and_goes_on_where_it_was() {
    let bench = Bench::start().await;
    let mut stream = Stream::open(&bench, "/events?topics=sandbox,template,build", &[]).await;
    let snapshot = stream.next().await;
    assert_eq!((snapshot.name.as_str(), &snapshot.data["asOf"]), ("snapshot", &json!(snapshot.id)));
    assert_eq!((&snapshot.data["sandboxes"], &snapshot.data["templates"][0]["names"]), (&json!([]), &json!(["base"])));
    let id = bench.create(r#","metadata":{"a":"b"}"#).await;
    let path = |rest: &str| format!("/sandboxes/{id}{rest}");
    bench.call("POST", &path("/timeout"), r#"{"timeout":900}"#).await.expect(204);
    bench.call("POST", &path("/pause"), "").await.expect(204);
    bench.call("POST", &format!("/v2/sandboxes/{id}/connect"), "{}").await.expect(201);
    bench.call("POST", &path("/snapshots"), r#"{"name":"s"}"#).await.expect(201);
    bench.call("DELETE", &path(""), "").await.expect(204);
    let mut told = Vec::new();
    for _ in 0..7 {
        told.push(stream.next().await);
    }
    let events: Vec<_> = told.iter().map(|event| (event.name.as_str(), event.data["event"].as_str().unwrap())).collect();
    let expected = [
        ("sandbox", "created"),
        ("sandbox", "timeout_changed"),
        ("sandbox", "pausing"),
        ("sandbox", "paused"),
        ("sandbox", "resumed"),
        ("sandbox", "cut"),
        ("template", "snapshot"),
    ];
    assert_eq!(events, expected);
    let sandbox = &told[0].data["sandbox"];
    assert_eq!(
        (&sandbox["sandboxID"], &sandbox["metadata"], &sandbox["state"]),
        (&json!(id), &json!({"a":"b"}), &json!("running"))
    );
    assert_eq!((&told[3].data["sandbox"]["state"], &told[6].data["sandboxID"]), (&json!("paused"), &json!(id)));
    assert!(!told.iter().any(|event| event.data.to_string().to_lowercase().contains("token")), "nothing opens anything");
    let killed = stream.next().await;
    assert_eq!((&killed.data["event"], &killed.data["reason"]), (&json!("killed"), &json!("killed")));

    // As a browser does that lost its connection after the fourth.
    let mut again = Stream::open(&bench, "/events?topics=sandbox", &[("last-event-id", &told[3].id)]).await;
    assert_eq!(again.next().await.data, told[4].data);
    bench.call("GET", "/events?topics=weather", "").await.expect(400);
    bench.stop().await;
}

#[tokio::test]
async fn who_comes_from_an_earlier_server_is_told_that_something_was_missed() {
    let bench = Bench::start().await;
    let id = bench.create("").await;
    for last in ["00000000000000aa-3", "nothing of ours"] {
        let mut stream = Stream::open(&bench, "/events", &[("last-event-id", last)]).await;
        let missed = stream.next().await;
        assert_eq!((missed.name.as_str(), &missed.data), ("missed", &json!({ "reason": "another_server" })));
        let snapshot = stream.next().await;
        assert_eq!((snapshot.name.as_str(), &snapshot.data["sandboxes"][0]["sandboxID"]), ("snapshot", &json!(id)));
    }
    bench.stop().await;
}

#[tokio::test]
async fn a_team_is_told_its_own_and_what_concerns_all() {
    let bench = Bench::start().await;
    let admin = |method: &str, path: &str, body: &str| {
        let mut request = bench.request(method, path, body);
        request.headers_mut().remove("x-api-key");
        request.headers_mut().insert("x-admin-token", ADMIN.parse().unwrap());
        request
    };
    bench.answer(admin("POST", "/admin/teams", r#"{"teamID":"blue"}"#)).await.expect(201);
    let key = bench.answer(admin("POST", "/admin/teams/blue/keys", r#"{"scope":"full"}"#)).await.expect(201);
    let blue = [("x-api-key", key.text("/key"))];
    let mut theirs = Stream::open(&bench, "/events", &blue).await;
    let mut ours = Stream::open(&bench, "/events?topics=sandbox", &[]).await;
    let mut all = Stream::of(&bench, admin("GET", "/events?topics=sandbox", "")).await;
    let snapshot = theirs.next().await;
    assert!(snapshot.data.get("capacity").is_none() && snapshot.data.get("pool").is_none(), "{snapshot:?}");
    assert!(ours.next().await.data["capacity"]["usage"].is_object());
    all.next().await;
    let id = bench.create("").await;
    assert_eq!(ours.next().await.data["sandbox"]["sandboxID"], json!(id));
    assert_eq!(all.next().await.data["sandbox"]["sandboxID"], json!(id));
    // Of the first team's sandbox it is told nothing, nor of the capacity that it takes.
    bench.call("DELETE", &format!("/sandboxes/{id}"), "").await.expect(204);
    let mut create = bench.request("POST", "/sandboxes", r#"{"templateID":"base"}"#);
    create.headers_mut().insert("x-api-key", blue[0].1.parse().unwrap());
    let own = bench.answer(create).await.expect(201).text("/sandboxID").to_owned();
    loop {
        let event = theirs.next().await;
        match event.name.as_str() {
            "host" => assert!(event.data.get("teamID").is_none(), "{event:?}"),
            _ => assert_eq!(event.data["teamID"], json!("blue"), "{event:?}"),
        }
        if event.data["sandbox"]["sandboxID"] == json!(own) {
            break;
        }
    }
    let snapshot = Stream::open(&bench, "/events", &blue).await.next().await;
    let seen: Vec<_> = snapshot.data["sandboxes"].as_array().unwrap().iter().map(|one| &one["sandboxID"]).collect();
    assert_eq!(seen, [&json!(own)]);

    for path in ["/host", "/capacity", "/pool"] {
        let mut request = bench.request("GET", path, "");
        request.headers_mut().insert("x-api-key", blue[0].1.parse().unwrap());
        bench.answer(request).await.expect(403);
        bench.answer(admin("GET", path, "")).await.expect(200);
        let mut request = bench.request("GET", path, "");
        request.headers_mut().remove("x-api-key");
        bench.answer(request).await.expect(401);
    }
    let mut request = bench.request("GET", "/events", "");
    request.headers_mut().remove("x-api-key");
    bench.answer(request).await.expect(401);
    bench.stop().await;
}

#[tokio::test]
async fn a_refusal_is_told_and_the_host_is_shown_in_figures() {
    let admission = AdmissionConfig {
        queue_deadline: Duration::from_millis(1),
        queue_length: NonZeroUsize::new(1).unwrap(),
        ..AdmissionConfig::default()
    };
    let bench = Bench::start_with(admission).await;
    let mut stream = Stream::open(&bench, "/events?topics=admission,capacity", &[]).await;
    stream.next().await;
    for _ in 0..crate::bench::ROOM {
        bench.create("").await;
    }
    bench.call("POST", "/v2/sandboxes", r#"{"templateID":"base"}"#).await.expect(503);
    let (event, refused) = stream.happened("admission").await;
    assert_eq!(
        (event.as_str(), &refused.data["reason"], &refused.data["subject"]),
        ("refused", &json!("deadline"), &json!("base"))
    );
    let seen = async {
        loop {
            let (_, event) = stream.happened("capacity").await;
            if event.data["capacity"]["usage"]["active"]["sessions"] == json!(crate::bench::ROOM) {
                return;
            }
        }
    };
    tokio::time::timeout(DEADLINE, seen).await.expect("the capacity that is held is told");

    let host = bench.call("GET", "/host", "").await.expect(200).body;
    assert_eq!((&host["acceleration"], &host["running"]), (&json!("none"), &json!(crate::bench::ROOM)));
    assert_eq!(host["errors"]["sandbox_placement_timeout"], json!(1));
    assert!(host["disk"]["free_mib"].is_u64() && host["memory"]["floor_mib"].is_u64() && host["conditions"].is_array(), "{host}");
    let phases = host["phases"].as_array().unwrap();
    let restore = phases.iter().find(|phase| phase["phase"] == "warm_snapshot_restore").unwrap();
    assert!(
        restore["count"] == json!(crate::bench::ROOM) && restore["p50_ms"].as_f64() <= restore["p95_ms"].as_f64(),
        "{restore}"
    );
    let capacity = bench.call("GET", "/capacity", "").await.expect(200).body;
    assert_eq!(
        (&capacity["usage"]["active"]["held"]["cpus"], &capacity["requests"]["timed_out"]),
        (&json!(crate::bench::ROOM), &json!(1))
    );
    assert_eq!(bench.call("GET", "/pool", "").await.expect(200).body["hits"], json!(0));
    bench.stop().await;
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut() {
    const CHANGES: usize = 2000;
    let bench = Bench::start().await;
    // As long as labels are told.
    let label = "x".repeat(4000);
    let id = bench.create(&format!(r#","metadata":{{"label":"{label}"}}"#)).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4 << 10).unwrap();
    let mut deaf = socket.connect(bench.address).await.unwrap();
    let request = format!("GET /events HTTP/1.1\r\nhost: {}\r\nx-api-key: {}\r\n\r\n", bench.address, bench.key);
    deaf.write_all(request.as_bytes()).await.unwrap();
    // More than the buffers of two sockets take.
    let changes = futures::stream::iter(0..CHANGES)
        .map(async |_| drop(bench.call("POST", &format!("/sandboxes/{id}/timeout"), r#"{"timeout":900}"#).await.expect(204)));
    changes.buffer_unordered(16).collect::<()>().await;
    // It had one of the places that a team has.
    let mut others = Vec::new();
    for _ in 1..STREAMS_OF_TEAM {
        others.push(Stream::open(&bench, "/events", &[]).await);
    }
    let place = async {
        let mut looks = tokio::time::interval(Duration::from_millis(20));
        loop {
            looks.tick().await;
            let response = bench.send(bench.request("GET", "/events", "")).await;
            match response.status().as_u16() {
                200 => return,
                status => assert_eq!(status, 429),
            }
        }
    };
    tokio::time::timeout(DEADLINE, place).await.expect("the place is free again");
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(DEADLINE, deaf.read_to_end(&mut rest)).await.expect("the connection is cut");
    assert!(ended.is_err() || rest.len() < CHANGES * label.len(), "{}", rest.len());
    bench.call("GET", "/health", "").await.expect(200);
    bench.stop().await;
}

#[tokio::test]
async fn a_stream_ends_with_its_key() {
    let bench = Bench::start().await;
    bench.admin("POST", "/admin/teams", r#"{"teamID":"blue"}"#).await.expect(201);
    let key = bench.admin("POST", "/admin/teams/blue/keys", r#"{"scope":"read"}"#).await.expect(201);
    let mut idle = Stream::open(&bench, "/events", &[("x-api-key", key.text("/key"))]).await;
    bench.admin("DELETE", &format!("/admin/keys/{}", key.text("/id")), "").await.expect(204);
    idle.ended().await;
    bench.stop().await;
}
