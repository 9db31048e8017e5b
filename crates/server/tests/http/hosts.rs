//! Under which names the server answers, and to whom under others.

use std::net::SocketAddr;

use bytes::Bytes;
use firkin_server::{AllowedHosts, OtherHosts, ServerConfig};
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    bench::{Bench, DEADLINE, send_to},
    doors::server,
};

/// A GET with these headers.
fn get(path: &str, headers: &[(&str, &str)]) -> Request<Full<Bytes>> {
    let mut request = Request::get(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Full::default()).unwrap()
}

/// The answer's status to a head that no client library would write.
async fn raw(address: SocketAddr, head: &str) -> u16 {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(DEADLINE, stream.read_to_string(&mut answer)).await.expect("an answer in time").unwrap();
    answer[9..12].parse().unwrap_or_else(|_| panic!("{answer}"))
}

#[tokio::test]
async fn a_page_whose_name_was_made_to_point_here_is_answered_nothing() {
    let bench = Bench::start().await;
    for host in ["evil.example", "evil.example:3000", "EVIL.example.", "localhost.evil.example", "127.0.0.1.evil.example"] {
        for path in ["/", "/health", "/health?details", "/metrics", "/files", "/v2/sandboxes", "/none"] {
            let answer = bench.answer(get(path, &[("host", host)])).await.expect(421);
            assert_eq!(answer.text("/error_code"), "host_not_allowed", "{host} {path}");
            assert!(
                answer.text("/message").contains("--allowed-host ") && answer.headers["should-retry"] == "false",
                "{answer:?}"
            );
        }
        // What a page may say itself, and a wrong key.
        for (name, value) in
            [("x-forwarded-host", "localhost"), ("x-api-key", "e2b_0"), ("x-access-token", "0"), ("authorization", "Bearer 0")]
        {
            bench.answer(get("/health", &[("host", host), (name, value)])).await.expect(421);
        }
        for path in ["/volumecontent/v/path?path=a", "/templates/t/files/h?signature=s", "/health?signature=s"] {
            bench.answer(get(path, &[("host", host)])).await.expect(421);
        }
        let mut by_headers = bench.guest("iguessed", 8080, "/");
        by_headers.headers_mut().insert("host", host.parse().unwrap());
        bench.answer(by_headers).await.expect(421);
    }
    for (head, status) in [
        ("GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n", 400),
        ("GET /health HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n", 400),
        ("GET /health HTTP/1.1\r\nHost: user@localhost\r\n", 400),
        ("GET /health HTTP/1.1\r\nHost:\r\n", 400),
        ("GET http://localhost/health HTTP/1.1\r\nHost: evil.example\r\n", 421),
        ("GET http://evil.example/health HTTP/1.1\r\nHost: localhost\r\n", 421),
        ("GET /health HTTP/1.1\r\nHost: localhost\r\n", 200),
        // No browser leaves it out; the probes of some load balancers do.
        ("GET /health HTTP/1.0\r\n", 200),
    ] {
        assert_eq!(raw(bench.address, head).await, status, "{head}");
    }
    let stream = TcpStream::connect(bench.address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    for (authority, headers, status) in [
        ("localhost", &[][..], 200),
        ("evil.example", &[], 421),
        ("evil.example", &[("host", "localhost")], 421),
        ("localhost", &[("host", "evil.example")], 421),
    ] {
        let request = get(&format!("http://{authority}/health"), headers);
        let response = tokio::time::timeout(DEADLINE, sender.send_request(request)).await.unwrap().unwrap();
        assert_eq!(response.status(), status, "{authority} {headers:?}");
        response.into_body().collect().await.unwrap();
    }
    bench.stop().await;
}

#[tokio::test]
async fn who_shows_what_no_page_has_is_answered_under_any_name() {
    let bench = Bench::start().await;
    let id = bench.create("").await;
    let foreign = ("host", "firkin.proxy.example");
    bench.answer(get("/v2/sandboxes", &[foreign, ("x-api-key", &bench.key)])).await.expect(200);
    // The name is the sandbox's own, and leads to it alone.
    bench.answer(get("/health", &[("host", &format!("1-{id}.tunnel.example"))])).await.expect(502);
    // A signed URL is its own proof; this one is nobody's, and leads to no route without a key.
    let signed = format!("/files?path=a&signature=v1_{}", "A".repeat(43));
    bench.answer(get(&signed, &[foreign])).await.expect(401);
    let mut preflight =
        get("/v2/sandboxes", &[foreign, ("origin", "https://app.example"), ("access-control-request-method", "GET")]);
    *preflight.method_mut() = http::Method::OPTIONS;
    bench.answer(preflight).await.expect(200);
    for host in ["192.0.2.1:80", "[2001:db8::1]", "0.0.0.0:3000", "api.firkin.localhost"] {
        bench.answer(get("/health", &[("host", host)])).await.expect(200);
    }
    bench.stop().await;
}

#[tokio::test]
async fn what_the_sdks_do_works_through_a_proxy_that_passes_on_its_name() {
    let bench = Bench::start().await;
    let foreign = ("host", "firkin.proxy.example");
    let send = async |method: &str, url: &str, headers: &[(&str, &str)]| {
        let mut request = get(url, &[&[foreign][..], headers].concat());
        *request.method_mut() = method.parse().unwrap();
        bench.answer(request).await
    };
    // Files of a build: the link names the proxy, and is used without a key.
    let place = format!("/templates/t/files/{}", "a".repeat(64));
    let link = send("GET", &place, &[("x-api-key", &bench.key)]).await.expect(201);
    let link = link.text("/url").strip_prefix("http://firkin.proxy.example").unwrap().to_owned();
    send("PUT", &link, &[]).await.expect(200);
    send("PUT", &format!("{place}?expires=9999999999&signature=0"), &[]).await.expect(401);
    send("GET", &link, &[]).await.expect(421);
    // Volumes have tokens of their own.
    let volume = bench.call("POST", "/volumes", r#"{"name":"v"}"#).await.expect(201);
    let content = format!("/volumecontent/{}/path?path=/", volume.text("/volumeID"));
    let bearing = format!("Bearer {}", volume.text("/token"));
    send("GET", &content, &[("authorization", &bearing)]).await.expect(200);
    send("GET", &content, &[("authorization", "Bearer 0")]).await.expect(401);
    send("GET", &content, &[("authorization", "Basic 0")]).await.expect(421);
    // So has the CLI, for its first question.
    send("GET", "/teams", &[("authorization", &format!("Bearer {}", bench.key))]).await.expect(200);
    send("GET", "/teams", &[("authorization", "Bearer 0")]).await.expect(401);
    send("GET", "/teams", &[]).await.expect(421);
    // Sandboxes by routing headers, with whatever token they have, or none; and one that has gone is gone.
    for fields in ["", r#","secure":false"#, r#","network":{"allowPublicTraffic":false}"#] {
        let body = format!(r#"{{"templateID":"base"{fields}}}"#);
        let created = bench.call("POST", "/v2/sandboxes", &body).await.expect(201);
        let token = |field: &str| created.body[field].as_str().unwrap_or("");
        let (id, own, traffic) = (created.text("/sandboxID"), token("envdAccessToken"), token("trafficAccessToken"));
        let routed = [("e2b-sandbox-id", id), ("e2b-sandbox-port", "1")];
        let shown = [("x-access-token", own), ("e2b-traffic-access-token", traffic)];
        send("GET", "/", &[&routed[..], &shown].concat()).await.expect(502);
        send("GET", "/", &routed).await.expect(if traffic.is_empty() { 502 } else { 403 });
        bench.call("DELETE", &format!("/sandboxes/{id}"), "").await.expect(204);
        let gone = send("GET", "/", &routed).await.expect(502);
        assert!(gone.text("/message").contains("not found"), "{gone:?}");
    }
    bench.stop().await;
}

#[tokio::test]
async fn a_server_with_a_list_answers_to_its_names_alone() {
    let bench = Bench::start().await;
    let id = bench.create("").await;
    let names = ["build.example", "*.tunnel.example"].map(|name| name.parse().unwrap()).to_vec();
    for (others, foreign, foreign_guest) in
        [(OtherHosts::Nobody, 421, 421), (OtherHosts::Known, 421, 502), (OtherHosts::Anybody, 200, 502)]
    {
        let allowed_hosts = AllowedHosts { names: names.clone(), others };
        let config = ServerConfig { domain: Some("boxes.test:8443".to_owned()), allowed_hosts, ..ServerConfig::default() };
        let (address, stop, serving) = server(&bench, config).await;
        let status = async |host: &str, path: &str, key: &str| {
            send_to(address, get(path, &[("host", host), ("x-api-key", key)])).await.status().as_u16()
        };
        for host in [
            "build.example",
            "Build.Example.:443",
            "a.tunnel.example",
            "boxes.test",
            "api.boxes.test:8443",
            "localhost",
            "192.0.2.1",
        ] {
            assert_eq!(status(host, "/health", "").await, 200, "{others:?} {host}");
        }
        for host in ["a.build.example", "tunnel.example", "eviltunnel.example", "boxes.test.evil.example"] {
            assert_eq!(status(host, "/health", "").await, foreign, "{others:?} {host}");
            let with_key = if others == OtherHosts::Nobody { 421 } else { 200 };
            assert_eq!(status(host, "/v2/sandboxes", &bench.key).await, with_key, "{others:?} {host}");
        }
        for (domain, expected) in [("boxes.test", 502), ("tunnel.example", 502), ("evil.example", foreign_guest)] {
            assert_eq!(status(&format!("1-{id}.{domain}"), "/", "").await, expected, "{others:?} {domain}");
        }
        stop.cancel();
        serving.await.unwrap().unwrap();
    }
    bench.stop().await;
}
