//! `GET /metrics`: the format, who may read it, and that the numbers are those of what happened.

use std::collections::BTreeMap;

use bytes::Bytes;
use firkin_server::{Listener, ServerConfig, TlsIdentity, serve};
use firkin_wire::ENVD_PORT;
use http::Request;
use http_body_util::{BodyExt, Full};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tokio_util::sync::CancellationToken;

use crate::bench::{ADMIN, Bench, DEADLINE, ROOM, send_to};

/// Reads the metrics, line by line, as strictly as a scraper does: every sample belongs to a family that was announced.
async fn scrape(bench: &Bench) -> BTreeMap<String, f64> {
    let request = Request::get("/metrics").header("host", bench.address.to_string()).body(Full::<Bytes>::default()).unwrap();
    let response = bench.send(request).await;
    assert_eq!(response.status().as_u16(), 200);
    assert!(response.headers()["content-type"].to_str().unwrap().starts_with("application/openmetrics-text; version=1.0.0"));
    let text = String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap();
    let body = text.strip_suffix("# EOF\n").expect("the text is whole");
    let (mut families, mut samples) = (Vec::new(), BTreeMap::new());
    for line in body.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            if let Some((name, kind)) = comment.strip_prefix("TYPE ").and_then(|rest| rest.split_once(' ')) {
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                families.push(name.to_owned());
            }
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap();
        assert!(families.iter().any(|family| series.starts_with(family.as_str())), "{line}");
        assert!(series.contains("acceleration=\""), "{line}");
        samples.insert(series.replace("acceleration=\"none\"", "").replace("{,", "{").replace("{}", ""), value.parse().unwrap());
    }
    samples
}

#[track_caller]
fn value(samples: &BTreeMap<String, f64>, series: &str) -> u64 {
    let value = *samples.get(series).unwrap_or_else(|| panic!("no `{series}` in {samples:#?}"));
    assert!(value.fract() == 0.0 && value >= 0.0, "{series} {value}");
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "just checked to be a small whole number")]
    let whole = value as u64;
    whole
}

fn times(samples: &BTreeMap<String, f64>, phase: &str) -> u64 {
    let count = value(samples, &format!("firkin_phase_seconds_count{{phase=\"{phase}\"}}"));
    let top = value(samples, &format!("firkin_phase_seconds_bucket{{le=\"+Inf\",phase=\"{phase}\"}}"));
    assert_eq!(count, top, "the buckets of {phase} add up");
    count
}

#[tokio::test]
async fn metrics_count_what_happened() {
    let bench = Bench::start().await;
    let before = scrape(&bench).await;
    for phase in ["warm_snapshot_restore", "warm_pool_checkout", "snapshot_save", "kill_delete", "start.to_first_stdout"] {
        assert_eq!(times(&before, phase), 0, "{phase} is there from the start");
    }
    assert_eq!(times(&before, "cold_template_build"), 1);
    let (one, two) = (bench.create("").await, bench.create("").await);
    bench.create("").await;
    bench.call("POST", &format!("/sandboxes/{one}/pause"), "").await.expect(204);
    bench.call("DELETE", &format!("/sandboxes/{two}"), "").await.expect(204);
    bench.call("POST", "/v2/sandboxes", r#"{"templateID":"unknown"}"#).await.expect(404);
    bench.answer(bench.guest("inone", 80, "/")).await.expect(502);
    let after = scrape(&bench).await;
    for (phase, count) in [
        ("warm_snapshot_restore", 3),
        ("ready_probe", 3),
        ("freshness_sync", 3),
        ("snapshot_save", 1),
        ("snapshot_freeze", 1),
        ("kill_delete", 1),
        ("cold_template_build", 1),
        ("command_start", 0),
    ] {
        assert_eq!(times(&after, phase), count, "{phase}");
    }
    for (series, expected) in [
        ("firkin_sandboxes{state=\"running\"}", 1),
        ("firkin_sandboxes{state=\"paused\"}", 1),
        ("firkin_sessions{kind=\"active\"}", 1),
        ("firkin_capacity_held{class=\"active\",resource=\"cpus\"}", 1),
        ("firkin_capacity_held{class=\"warm\",resource=\"cpus\"}", 0),
        ("firkin_queue_length", 0),
        ("firkin_pool_sessions{state=\"ready\"}", 0),
        ("firkin_pool_events_total{outcome=\"hit\"}", 0),
        ("firkin_admission_requests_total{outcome=\"immediate\"}", 3 + 1),
        ("firkin_admissions_total{outcome=\"at_once\"}", 3 + 1),
        ("firkin_unknown_fields_total", 0),
        ("firkin_host_conditions{condition=\"short_of_disk\"}", 0),
        ("firkin_quarantined_artifacts", 0),
        ("firkin_webhook_deliveries_total{outcome=\"given_up\"}", 0),
        ("firkin_volumes", 0),
        ("firkin_errors_total{kind=\"sandbox_create_failed\"}", 0),
        ("firkin_errors_total{kind=\"not_found\"}", 1),
        ("firkin_errors_total{kind=\"sandbox_unreachable\"}", 1),
    ] {
        assert_eq!(value(&after, series), expected, "{series}");
    }
    assert!(value(&after, "firkin_capacity{resource=\"cpus\"}") >= u64::from(ROOM));
    assert!(value(&after, "firkin_resident_bytes") > 1 << 20);
    for series in
        ["firkin_host_disk_bytes{state=\"free\"}", "firkin_host_memory_bytes{state=\"total\"}", "firkin_start_time_seconds"]
    {
        assert!(value(&after, series) > 0, "{series}");
    }
    assert!(!after.keys().any(|series| series.contains(&one)), "no label names a sandbox");
    bench.stop().await;
}

#[tokio::test]
async fn metrics_are_for_this_host_and_for_who_has_a_key() {
    let bench = Bench::start().await;
    let by = |host: &str, headers: &[(&str, &str)]| {
        let mut request = Request::get("/metrics").header("host", host);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        bench.answer(request.body(Full::<Bytes>::default()).unwrap())
    };
    for host in ["localhost", "localhost:3000", "127.0.0.1:3000", "[::1]:3000"] {
        by(host, &[]).await.expect(200);
    }
    // A page whose name was made to point here, or a proxy that says nothing of itself, asks for a host of its own.
    for host in ["evil.example", "evil.example:3000", "localhost.evil.example"] {
        by(host, &[]).await.expect(421);
    }
    by("192.0.2.1", &[]).await.expect(401);
    for second_hand in ["x-forwarded-for", "forwarded", "origin", "via", "x-real-ip", "referer"] {
        by("localhost", &[(second_hand, "example.org")]).await.expect(401);
    }
    let mut request = bench.request("GET", "/metrics", "");
    request.headers_mut().insert("x-forwarded-for", "192.0.2.1".parse().unwrap());
    bench.answer(request).await.expect(200);
    // Prometheus shows what it has as a bearer's token, also where it asks by a name of its own.
    for (host, token, status) in [
        ("192.0.2.1", bench.key.as_str(), 200),
        ("firkin.example", bench.key.as_str(), 200),
        ("192.0.2.1", ADMIN, 200),
        ("192.0.2.1", "e2b_0000", 401),
        ("firkin.example", "e2b_0000", 401),
    ] {
        by(host, &[("authorization", &format!("Bearer {token}"))]).await.expect(status);
    }
    bench.stop().await;
}

#[tokio::test]
async fn a_server_that_is_meant_for_others_demands_the_key_for_metrics() {
    let bench = Bench::start().await;
    let dir = tempfile::tempdir().unwrap();
    for (domain, tls, status) in [
        (Some("sandboxes.example"), false, 401),
        (Some("localhost.example:3000"), false, 401),
        (Some("firkin.localhost:3000"), true, 401),
        (Some("firkin.localhost:3000"), false, 200),
    ] {
        let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = plain.local_addr().unwrap();
        let mut listeners = vec![Listener::from(plain)];
        if tls {
            let (identity, _) = TlsIdentity::internal(dir.path(), "firkin.localhost").unwrap();
            listeners.push(Listener::Tls(TcpListener::bind("127.0.0.1:0").await.unwrap(), identity));
        }
        let stop = CancellationToken::new();
        let config = ServerConfig { domain: domain.map(str::to_owned), ..ServerConfig::default() };
        let server = tokio::spawn(serve(listeners, bench.runtime.clone(), config, stop.clone()));
        let bare = Request::get("/metrics").header("host", "localhost").body(Full::<Bytes>::default()).unwrap();
        for (request, expected) in [(bare, status), (bench.request("GET", "/metrics", ""), 200)] {
            let answer = send_to(address, request).await;
            assert_eq!(answer.status(), expected, "{domain:?} {tls}");
        }
        stop.cancel();
        server.await.unwrap().unwrap();
    }
    bench.stop().await;
}

#[tokio::test]
async fn the_first_output_is_timed_from_the_create_on() {
    let mut bench = Bench::start().await;
    let envd = bench.listen_as_envd();
    let guest = tokio::spawn(async move {
        for _ in 0..2 {
            let (mut stream, _) = envd.accept().await.unwrap();
            let mut head = [0; 4096];
            assert!(stream.read(&mut head).await.unwrap() > 0);
            let mut body = Vec::new();
            for message in [r#"{"event":{"start":{"pid":7}}}"#, r#"{"event":{"data":{"stdout":"eA=="}}}"#] {
                body.push(0);
                body.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
                body.extend(message.as_bytes());
            }
            let head = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: application/connect+json\r\n";
            let answer = format!("{head}content-length: {}\r\n\r\n", body.len()).into_bytes();
            stream.write_all(&[answer, body].concat()).await.unwrap();
        }
    });
    let id = bench.create("").await;
    for _ in 0..2 {
        let mut request = bench.guest(&id, ENVD_PORT, "/process.Process/Start");
        *request.method_mut() = http::Method::POST;
        let body = bench.send(request).await.into_body().collect().await.unwrap().to_bytes();
        assert!(body.ends_with(br#""eA=="}}}"#), "the stream arrives as it was sent");
    }
    tokio::time::timeout(DEADLINE, guest).await.expect("the guest was asked").unwrap();
    let samples = scrape(&bench).await;
    assert_eq!((times(&samples, "command_start"), times(&samples, "first_stdout_byte")), (2, 2));
    assert_eq!(times(&samples, "start.to_first_stdout"), 1, "only the first command counts");
    bench.stop().await;
}

#[tokio::test]
async fn fields_that_nobody_knows_are_ignored_and_counted_at_any_depth() {
    let bench = Bench::start().await;
    let created = bench.call("POST", "/v2/sandboxes", r#"{"templateID":"base","newer":1}"#).await.expect(201);
    let counted = async || value(&scrape(&bench).await, "firkin_unknown_fields_total");
    assert_eq!(counted().await, 1);
    let network = format!("/sandboxes/{}/network", created.text("/sandboxID"));
    let start = "/v2/templates/none/builds/none";
    for (method, path, body, status, fields) in [
        ("PUT", network.as_str(), r#"{"denyOut":[],"allow_internet_access":true,"newer":1}"#, 204, 1),
        ("POST", "/sandboxes", r#"{"templateID":"none","autoResume":{"enabled":true,"newer":1}}"#, 404, 1),
        ("POST", "/v2/sandboxes", r#"{"templateID":"none","newer":1,"network":{"newer":{"deep":1},"newest":[]}}"#, 404, 3),
        ("POST", "/v2/sandboxes", r#"{"templateID":"none","volumeMounts":[{"name":"a","path":"/b","newer":1}]}"#, 404, 1),
        ("POST", "/v3/templates", r#"{"name":"x","newer":1}"#, 202, 1),
        ("POST", start, r#"{"steps":[{"type":"RUN","args":[],"newer":1},{"type":"RUN","newer":1}]}"#, 400, 2),
        ("POST", start, r#"{"fromImageRegistry":{"type":"registry","username":"u","password":"p","newer":1}}"#, 400, 1),
        // These are known, even where they change nothing.
        (
            "POST",
            start,
            r#"{"fromImageRegistry":{"type":"aws","awsRegion":"r","awsAccessKeyId":"i","awsSecretAccessKey":"k"}}"#,
            400,
            0,
        ),
        (
            "POST",
            "/v2/sandboxes",
            r#"{"templateID":"none","mcp":{"any":{"x":1}},"metadata":{"a":"b"},"envVars":{"A":"b"}}"#,
            404,
            0,
        ),
        ("POST", "/sandboxes", r#"{"templateID":"none","network":{"denyOut":[],"allowPublicTraffic":true}}"#, 404, 0),
    ] {
        let before = counted().await;
        bench.call(method, path, body).await.expect(status);
        assert_eq!(counted().await - before, fields, "{body}");
    }
    bench.stop().await;
}
