//! Spans at a collector: one trace has what a user waits for, and nothing secret; a collector that is away holds nobody up.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, body::Bytes, extract::State, http::StatusCode, routing::post};
use firkin_traces::Sending;
use firkin_wire::ENVD_PORT;
use http::Method;
use http_body_util::BodyExt as _;
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value},
    trace::v1::{Span, span::SpanKind, status::StatusCode as Status},
};
use prost::Message as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::{layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::bench::{Bench, DEADLINE};

/// A client's trace, and its span.
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// What must not be told.
const SECRET: &str = "hunter2-hunter2";

type Requests = Arc<std::sync::Mutex<Vec<Bytes>>>;

/// A collector that takes everything.
#[derive(Debug)]
struct Collector {
    address: SocketAddr,
    requests: Requests,
    server: JoinHandle<std::io::Result<()>>,
}

impl Collector {
    async fn start() -> Self {
        let requests = Requests::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let take = async |State(requests): State<Requests>, body: Bytes| {
            requests.lock().unwrap().push(body);
            StatusCode::OK
        };
        let app = Router::new().route("/v1/traces", post(take)).with_state(Arc::clone(&requests));
        let server = tokio::spawn(async move { axum::serve(listener, app).await });
        Self { address, requests, server }
    }

    /// What it was sent, and all of it as text.
    fn end(self) -> (Vec<ExportTraceServiceRequest>, String) {
        self.server.abort();
        let requests = self.requests.lock().unwrap().clone();
        let text = requests.iter().map(|body| String::from_utf8_lossy(body).into_owned()).collect();
        (requests.into_iter().map(|body| ExportTraceServiceRequest::decode(body).unwrap()).collect(), text)
    }
}

/// Sends in a task of its own until the token is cancelled.
fn send(sending: Sending) -> (CancellationToken, JoinHandle<()>) {
    let ending = CancellationToken::new();
    let task = tokio::spawn(sending.run(ending.clone()));
    (ending, task)
}

async fn end((ending, task): (CancellationToken, JoinHandle<()>)) {
    ending.cancel();
    tokio::time::timeout(DEADLINE, task).await.expect("what sends ends").unwrap();
}

fn text<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a str> {
    match attributes.iter().find(|pair| pair.key == key)?.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text),
        _ => None,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A guest whose commands say that they run, and then one thing. Gives the heads of what it was asked.
fn guest(envd: TcpListener) -> JoinHandle<String> {
    tokio::spawn(async move {
        let (mut stream, _) = envd.accept().await.unwrap();
        let mut head = vec![0; 8192];
        let read = stream.read(&mut head).await.unwrap();
        let mut body = Vec::new();
        for message in [r#"{"event":{"start":{"pid":7}}}"#, r#"{"event":{"data":{"stdout":"eA=="}}}"#] {
            body.push(0);
            body.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
            body.extend(message.as_bytes());
        }
        let answer = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: application/connect+json\r\n";
        let answer = format!("{answer}content-length: {}\r\n\r\n", body.len()).into_bytes();
        stream.write_all(&[answer, body].concat()).await.unwrap();
        String::from_utf8_lossy(&head[..read]).to_lowercase()
    })
}

#[tokio::test]
async fn one_trace_has_what_a_user_waits_for_and_nothing_secret() {
    let collector = Collector::start().await;
    let (traces, sending) = firkin_traces::open(format!("http://{}", collector.address).parse().unwrap(), "1.2.3");
    let listening = tracing_subscriber::registry().with(traces.layer()).set_default();
    let sending = send(sending);
    let mut bench = Bench::start_traced(traces).await;
    let guest = guest(bench.listen_as_envd());

    let body = format!(r#"{{"templateID":"base","envVars":{{"TOKEN":"{SECRET}"}},"metadata":{{"who":"{SECRET}"}}}}"#);
    let mut create = bench.request("POST", "/v2/sandboxes", &body);
    create.headers_mut().insert("traceparent", format!("00-{TRACE}-{PARENT}-01").parse().unwrap());
    let created = bench.answer(create).await.expect(201);
    let id = created.text("/sandboxID").to_owned();
    let mut command = bench.guest(&id, ENVD_PORT, "/process.Process/Start");
    *command.method_mut() = Method::POST;
    bench.send(command).await.into_body().collect().await.unwrap();
    let asked = tokio::time::timeout(DEADLINE, guest).await.unwrap().unwrap();
    // In no trace: one of its own.
    bench.call("GET", &format!("/sandboxes/{id}"), "").await.expect(200);
    let (key, token) = (bench.key.clone(), created.body["envdAccessToken"].as_str().unwrap_or(SECRET).to_owned());
    bench.stop().await;
    end(sending).await;
    drop(listening);

    let (requests, told) = collector.end();
    for secret in [SECRET, &key, &token] {
        assert!(!told.contains(secret), "{told}");
    }
    let resource = &requests[0].resource_spans[0].resource.as_ref().unwrap().attributes;
    assert_eq!((text(resource, "service.name"), text(resource, "service.version")), (Some("firkin"), Some("1.2.3")));
    assert!(text(resource, "service.instance.id").is_some_and(|id| id.len() == 32));
    let all: Vec<Span> = requests
        .into_iter()
        .flat_map(|request| request.resource_spans)
        .flat_map(|of| of.scope_spans)
        .flat_map(|of| of.spans)
        .collect();
    let of_trace: Vec<&Span> = all.iter().filter(|span| hex(&span.trace_id) == TRACE).collect();
    let named =
        |name: &str| *of_trace.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("no `{name}` in {of_trace:#?}"));
    let request = named("POST /v2/sandboxes");
    assert_eq!((hex(&request.parent_span_id).as_str(), request.kind), (PARENT, SpanKind::Server as i32));
    assert_eq!(text(&request.attributes, "firkin.sandbox.id"), Some(id.as_str()));
    assert!(request.attributes.iter().any(|pair| pair.key == "http.response.status_code"));
    for (name, parent) in [
        ("find", request),
        ("checks", request),
        ("admission", request),
        ("staging", request),
        ("vm_restore", request),
        ("agent", request),
        ("record", request),
        ("first_stdout_byte", request),
        ("command_start", named("first_stdout_byte")),
    ] {
        let span = named(name);
        assert_eq!(hex(&span.parent_span_id), hex(&parent.span_id), "{name}");
        assert!(
            span.start_time_unix_nano >= request.start_time_unix_nano && span.end_time_unix_nano >= span.start_time_unix_nano
        );
    }
    assert!(named("first_stdout_byte").start_time_unix_nano >= request.end_time_unix_nano);
    // The guest is told whose part it is.
    let first_output = format!("traceparent: 00-{TRACE}-{}-01", hex(&named("first_stdout_byte").span_id));
    assert!(asked.contains(&first_output), "{asked}");
    let alone = all.iter().find(|span| span.name == "GET /sandboxes/{id}").unwrap();
    assert!(alone.parent_span_id.is_empty() && hex(&alone.trace_id) != TRACE);
    assert!(all.iter().all(|span| span.status.as_ref().is_none_or(|status| status.code != Status::Error as i32)));
}

#[tokio::test]
async fn a_collector_that_is_away_holds_nobody_up() {
    // One that is not there, and one that takes connections and never answers.
    let gone = "127.0.0.1:1".parse().unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    for (address, has_failed) in [(gone, true), (silent.local_addr().unwrap(), false)] {
        let (traces, sending) = firkin_traces::open(format!("http://{address}").parse().unwrap(), "1");
        let listening = tracing_subscriber::registry().with(traces.layer()).set_default();
        let sending = send(sending);
        let bench = Bench::start_traced(traces.clone()).await;
        let id = bench.create("").await;
        bench.call("DELETE", &format!("/sandboxes/{id}"), "").await.expect(204);
        let metrics = bench.call("GET", "/metrics", "").await.expect(200);
        let metrics = metrics.body.as_str().unwrap();
        assert!(metrics.contains("firkin_trace_spans_total{acceleration=\"none\",outcome=\"exported\"} 0"), "{metrics}");
        bench.stop().await;
        let stopping = std::time::Instant::now();
        end(sending).await;
        // Nobody waits for as long as a client of HTTP would, batch by batch.
        assert!(stopping.elapsed() < Duration::from_secs(30), "{:?}", stopping.elapsed());
        let counts = traces.counts().outcomes();
        // On a slow host the silent one may have been given up on before the end.
        assert!(counts[0].1 == 0 && (counts[1].1 > 0 || !has_failed), "{counts:?}");
        drop(listening);
    }
}
