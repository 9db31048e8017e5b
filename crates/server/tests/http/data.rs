//! The data plane behind the whole server: ports of sandboxes, and what a sandbox's end does to them.

use std::{net::SocketAddr, time::Duration};

use axum::extract::ConnectInfo;
use bytes::Bytes;
use futures::StreamExt;
use http::Request;
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tower::ServiceExt;

use crate::bench::{Bench, DEADLINE};

/// A guest's server: answers with a head and a first piece, then keeps the stream open.
async fn streaming_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = [0; 4096];
                if stream.read(&mut head).await.is_ok_and(|read| read > 0) {
                    let answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n";
                    stream.write_all(answer).await.unwrap();
                }
                // Held open until the other side closes.
                while stream.read(&mut head).await.is_ok_and(|read| read > 0) {}
            });
        }
    });
    port
}

#[tokio::test]
async fn ports_are_reached_by_headers_and_by_host_name_without_a_key() {
    let bench = Bench::start().await;
    let (id, port) = (bench.create("").await, streaming_port().await);
    let by_host =
        Request::builder().uri("/").header("host", format!("{port}-{id}.e2b.test")).body(Full::<Bytes>::default()).unwrap();
    for (request, way) in [(bench.guest(&id, port, "/"), "headers"), (by_host, "host")] {
        let mut response = bench.send(request).await;
        assert_eq!(response.status().as_u16(), 200);
        // No cache may give a guest's answer to whoever asks for the same path without the headers.
        let vary: Vec<_> = response.headers().get_all("vary").iter().map(|name| name.to_str().unwrap().to_owned()).collect();
        assert_eq!(vary.contains(&"e2b-sandbox-id".to_owned()), way == "headers", "{vary:?}");
        let piece = tokio::time::timeout(DEADLINE, response.frame()).await.expect("a piece at once").unwrap().unwrap();
        assert_eq!(piece.into_data().unwrap(), "first");
    }
    bench.stop().await;
}

/// 1000 headers, 60 KiB of them.
fn many_headers() -> String {
    (0..1000).map(|number| format!("x-header-{number}: {}\r\n", "v".repeat(45))).collect()
}

async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        assert!(stream.read_buf(&mut head).await.unwrap() > 0, "{}", String::from_utf8_lossy(&head));
    }
    String::from_utf8(head).unwrap()
}

#[tokio::test]
async fn heads_are_bounded_by_their_bytes_both_ways() {
    let bench = Bench::start().await;
    let id = bench.create("").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let seen = read_head(&mut stream).await.to_ascii_lowercase().matches("x-header-").count();
            let answer = format!("HTTP/1.1 200 OK\r\nx-seen: {seen}\r\n{}content-length: 0\r\n\r\n", many_headers());
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let ask = async |headers: &str| {
        let mut stream = TcpStream::connect(bench.address).await.unwrap();
        let request = format!("GET / HTTP/1.1\r\nhost: {port}-{id}.e2b.test\r\nconnection: close\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        read_head(&mut stream).await.to_ascii_lowercase()
    };
    let answer = ask(&many_headers()).await;
    assert!(answer.starts_with("http/1.1 200 ") && answer.contains("x-seen: 1000\r\n"), "{}", &answer[..80]);
    assert_eq!(answer.matches("x-header-").count(), 1000);
    let answer = ask(&format!("{}{}", many_headers(), "y: z\r\n".repeat(15_000))).await;
    assert!(answer.starts_with("http/1.1 431 "), "{answer}");
    bench.stop().await;
}

#[tokio::test]
async fn no_host_name_of_a_sandbox_leads_to_the_control_plane() {
    let bench = Bench::start().await;
    let id = bench.create("").await;
    // Bound and not listened on: it stays nobody's.
    let held = tokio::net::TcpSocket::new_v4().unwrap();
    held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let closed = held.local_addr().unwrap().port();
    for path in ["/v2/sandboxes", "/metrics", "/health", "/templates", "/teams"] {
        let mut request = bench.request("GET", path, "");
        // As a page of a stranger's domain that was made to point here would ask, with a key that it somehow has.
        request.headers_mut().insert("host", format!("{closed}-{id}.evil.example:3000").parse().unwrap());
        let answer = bench.answer(request).await.expect(502);
        assert_eq!(answer.text("/message"), "The sandbox is running but port is not open", "{path}");
    }
    bench.stop().await;
}

#[tokio::test]
async fn a_kill_cuts_streams_and_leaves_not_found() {
    let bench = Bench::start().await;
    let (id, port) = (bench.create("").await, streaming_port().await);
    let mut response = bench.send(bench.guest(&id, port, "/")).await;
    assert_eq!(response.frame().await.unwrap().unwrap().into_data().unwrap(), "first");
    bench.call("DELETE", &format!("/sandboxes/{id}"), "").await.expect(204);
    let end = tokio::time::timeout(DEADLINE, response.frame()).await.expect("the stream is cut");
    assert!(end.expect("not a clean end").is_err());
    let after = bench.answer(bench.guest(&id, port, "/health")).await.expect(502);
    let expected = serde_json::json!({ "sandboxId": id, "message": "The sandbox was not found", "code": 502 });
    assert_eq!(after.body, expected);
    bench.stop().await;
}

/// How a client's connection ends when its sandbox is killed under a stream: by an error, or in order with what came until then.
async fn end_of_cut(bench: &Bench, path: &str, agent: &str) -> Result<Vec<u8>, std::io::ErrorKind> {
    let (id, port) = (bench.create("").await, streaming_port().await);
    let mut stream = TcpStream::connect(bench.address).await.unwrap();
    let head = format!(
        "GET {path} HTTP/1.1\r\nhost: localhost\r\nuser-agent: {agent}\r\ne2b-sandbox-id: {id}\r\ne2b-sandbox-port: {port}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut got = Vec::new();
    while !got.ends_with(b"first\r\n") {
        let read = tokio::time::timeout(DEADLINE, stream.read_buf(&mut got)).await.expect("the first piece").unwrap();
        assert!(read > 0, "{}", String::from_utf8_lossy(&got));
    }
    bench.call("DELETE", &format!("/sandboxes/{id}"), "").await.expect(204);
    let end = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut got)).await.expect("the stream is cut");
    end.map(|_| got).map_err(|error| error.kind())
}

#[tokio::test]
async fn a_cut_is_a_reset_for_every_client_that_knows_one() {
    let bench = Bench::start().await;
    for (path, agent) in [
        ("/", "curl/8.5.0"),
        ("/files?path=/x", "e2b-js-sdk/2.30.0"),
        ("/process.Process/Start", "e2b-python-sdk/2.35.0"),
        ("/process.Process/Start", "e2b-python-sdk/3.0.0 source/x"),
        ("/files?path=/x", "e2b-python-sdk/2.53.1"),
    ] {
        assert_eq!(end_of_cut(&bench, path, agent).await, Err(std::io::ErrorKind::ConnectionReset), "{path} {agent}");
    }
    bench.stop().await;
}

#[tokio::test]
async fn a_cut_is_an_early_end_for_releases_that_know_no_reset() {
    let bench = Bench::start().await;
    for (path, agent) in [
        ("/process.Process/Start", "e2b-python-sdk/2.30.0"),
        ("/process.Process/Start", "e2b-python-sdk/2.34.1 source/x"),
        ("/files?path=/x", "e2b-python-sdk/2.30.0"),
        ("/files?path=/x", "e2b-python-sdk/2.45.1"),
    ] {
        let got = end_of_cut(&bench, path, agent).await.expect(agent);
        // It is not whole: the chunk that would end it is missing.
        assert!(got.ends_with(b"5\r\nfirst\r\n"), "{path} {agent}: {}", String::from_utf8_lossy(&got));
    }
    bench.stop().await;
}

/// What a client signs, as the contract has it.
fn signature(token: &str, path: &str, operation: &str, expiration: &str) -> String {
    use base64::Engine as _;
    use sha2::Digest as _;
    let digest = sha2::Sha256::digest(format!("{path}:{operation}:user:{token}{expiration}"));
    format!("v1_{}", base64::engine::general_purpose::STANDARD_NO_PAD.encode(digest))
}

#[tokio::test]
async fn a_signed_url_finds_its_sandbox_without_naming_it() {
    let bench = Bench::start().await;
    let mut tokens = Vec::new();
    for _ in 0..3 {
        let id = bench.create("").await;
        let detail = bench.call("GET", &format!("/sandboxes/{id}"), "").await.expect(200);
        tokens.push((id, detail.text("/envdAccessToken").to_owned()));
    }
    let ask = async |method: &str, signature: &str, expiration: &str| {
        let mut pairs = vec![("path", "/a b"), ("username", "user"), ("signature", signature)];
        if !expiration.is_empty() {
            pairs.push(("signature_expiration", expiration));
        }
        let uri = format!("/files?{}", crate::bench::query(&pairs));
        let request = Request::builder().method(method).uri(uri).header("host", "127.0.0.1").body(Full::<Bytes>::default());
        bench.answer(request.unwrap()).await
    };
    for (id, token) in &tokens {
        // Guests of this bench have no envd: that its port is closed says that the request went there.
        for (method, operation) in [("GET", "read"), ("POST", "write")] {
            let answer = ask(method, &signature(token, "/a b", operation, ""), "").await.expect(502);
            assert_eq!((answer.text("/sandboxId"), &answer.body["port"]), (id.as_str(), &49983.into()));
        }
        let answer = ask("GET", &signature(token, "/a b", "read", ":17"), "17").await.expect(502);
        assert_eq!(answer.text("/sandboxId"), id);
        for (signature, expiration) in [
            (signature(token, "/a b", "write", ""), ""),
            (signature(token, "/other", "read", ""), ""),
            (signature(token, "/a b", "read", ":17"), "18"),
            ("v1_".to_owned(), ""),
        ] {
            let answer = ask("GET", &signature, expiration).await.expect(401);
            assert_eq!((&answer.body["code"], answer.text("/message")), (&401.into(), "invalid signature"));
        }
    }
    // What a link on the control plane's origin leads to is of no origin there, whatever it says.
    let answer = ask("GET", &signature(&tokens[0].1, "/a b", "read", ""), "").await.expect(502);
    for (name, value) in
        [("content-security-policy", "sandbox"), ("x-content-type-options", "nosniff"), ("content-disposition", "attachment")]
    {
        assert_eq!(answer.headers[name], value, "{name}");
    }
    assert_eq!(ask("GET", "", "").await.expect(401).text("/message"), "missing signature query parameter");
    bench.stop().await;
}

#[tokio::test]
async fn who_bears_wrong_signatures_again_and_again_waits_unless_it_speaks_for_many() {
    let bench = Bench::start().await;
    let router = firkin_server::router(bench.runtime.clone(), firkin_server::ServerConfig::default()).unwrap();
    let wrong = signature("nobody's", "/a b", "read", "");
    let ask = async |peer: SocketAddr| {
        let uri = format!("/files?{}", crate::bench::query(&[("path", "/a b"), ("username", "user"), ("signature", &wrong)]));
        let mut request = Request::get(uri).header("host", "127.0.0.1").body(axum::body::Body::empty()).unwrap();
        request.extensions_mut().insert(ConnectInfo(peer));
        router.clone().oneshot(request).await.unwrap()
    };
    let (stranger, proxy) = ("192.0.2.1:9".parse().unwrap(), "127.0.0.1:9".parse().unwrap());
    let mut refused = 0;
    let waits = loop {
        let answer = ask(stranger).await;
        if answer.status() != 401 {
            break answer;
        }
        refused += 1;
        assert!(refused < 2000, "wrong signatures are looked up without end");
    };
    assert_eq!((waits.status().as_u16(), &waits.headers()["retry-after"]), (429, &"1".parse().unwrap()));
    for _ in 0..refused * 2 {
        assert_eq!(ask(proxy).await.status(), 401, "one client of a reverse proxy does not shut out the others");
    }
    bench.stop().await;
}

#[tokio::test]
async fn a_closed_port_and_a_paused_sandbox_are_told_apart() {
    let bench = Bench::start().await;
    let id = bench.create("").await;
    // Bound and not listened on: it stays nobody's.
    let held = tokio::net::TcpSocket::new_v4().unwrap();
    held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let closed = held.local_addr().unwrap().port();
    let answer = bench.answer(bench.guest(&id, closed, "/")).await.expect(502);
    let expected = serde_json::json!({ "sandboxId": id, "message": "The sandbox is running but port is not open", "port": closed, "code": 502 });
    assert_eq!(answer.body, expected);
    bench.call("POST", &format!("/sandboxes/{id}/pause"), "").await.expect(204);
    let answer = bench.answer(bench.guest(&id, closed, "/")).await.expect(502);
    assert_eq!(answer.text("/message"), "The sandbox was not found");
    bench.stop().await;
}

#[tokio::test]
async fn traffic_wakes_a_sandbox_that_asked_for_it() {
    let bench = Bench::start().await;
    let (id, port) = (bench.create(r#","autoPause":true,"autoResume":{"enabled":true}"#).await, streaming_port().await);
    bench.call("POST", &format!("/sandboxes/{id}/pause"), "").await.expect(204);
    assert_eq!(bench.send(bench.guest(&id, port, "/")).await.status().as_u16(), 200);
    let detail = bench.call("GET", &format!("/sandboxes/{id}"), "").await.expect(200);
    assert_eq!((detail.text("/state"), &detail.body["lifecycle"]["autoResume"]), ("running", &true.into()));
    bench.stop().await;
}

#[tokio::test]
async fn envd_routes_of_the_host_stay_hidden() {
    let bench = Bench::start().await;
    let id = bench.create("").await;
    for path in ["/init", "/freeze", "/unfreeze", "/collapse", "/fsfreeze", "/fsthaw", "/upgrade", "//init", "/%69nit"] {
        let answer = bench.answer(bench.guest(&id, 49983, path)).await.expect(404);
        assert_eq!(answer.body["code"], 404, "{path}");
    }
    bench.stop().await;
}

#[tokio::test]
async fn a_stop_ends_idle_connections_and_cuts_endless_ones() {
    let bench = Bench::start().await;
    let (id, port) = (bench.create("").await, streaming_port().await);
    let mut idle = TcpStream::connect(bench.address).await.unwrap();
    let mut endless = bench.send(bench.guest(&id, port, "/")).await;
    assert_eq!(endless.frame().await.unwrap().unwrap().into_data().unwrap(), "first");
    let began = tokio::time::Instant::now();
    bench.stop().await;
    assert!(began.elapsed() < Duration::from_secs(60), "the grace of 200 ms bounds a stop");
    assert_eq!(tokio::time::timeout(DEADLINE, idle.read(&mut [0; 1])).await.unwrap().unwrap_or(0), 0);
    assert!(endless.frame().await.is_none_or(|frame| frame.is_err()));
}

#[tokio::test]
async fn a_connection_that_asks_nothing_is_closed() {
    let bench = Bench::start().await;
    let config =
        firkin_server::ServerConfig { head_deadline: Duration::from_millis(500), ..firkin_server::ServerConfig::default() };
    let (address, stop, serving) = crate::doors::server(&bench, config).await;
    for head in ["", "P", "GET /health HTTP/1.1\r\nhost: localhost\r\n"] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let closed = tokio::time::timeout(DEADLINE, stream.read(&mut [0; 1])).await;
        assert_eq!(closed.expect("the server does not wait for ever").unwrap_or(0), 0, "{head:?}");
    }
    stop.cancel();
    serving.await.unwrap().unwrap();
    bench.stop().await;
}

/// A body whose end comes a little after its beginning.
fn late_body() -> impl http_body::Body<Data = Bytes, Error = std::convert::Infallible> + Send + Unpin + 'static {
    let frames = futures::stream::iter(["begin", "end"]).then(|piece| async move {
        tokio::task::yield_now().await;
        Ok(Frame::data(Bytes::from(piece)))
    });
    StreamBody::new(frames.boxed())
}

#[tokio::test]
async fn an_early_refusal_leaves_the_connection_usable() {
    let bench = Bench::start().await;
    let stream = TcpStream::connect(bench.address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    for n in 0..20 {
        // Absent sandbox, missing key, unknown route: none of them reads the body.
        let (id, path) = [(Some("inone"), "/"), (None, "/v2/sandboxes"), (None, "/none")][n % 3];
        let mut request = Request::builder().method("POST").uri(path).header("host", "localhost");
        if let Some(id) = id {
            request = request.header("E2b-Sandbox-Id", id).header("E2b-Sandbox-Port", "80");
        }
        sender.ready().await.expect("the connection is still open");
        let response = sender.send_request(request.body(late_body()).unwrap()).await.unwrap();
        assert_eq!(response.status().as_u16(), [502, 401, 404][n % 3]);
        response.into_body().collect().await.unwrap();
    }
    bench.stop().await;
}

#[tokio::test]
async fn an_early_refusal_of_an_unfinished_body_announces_the_close() {
    let bench = Bench::start().await;
    let mut stream = TcpStream::connect(bench.address).await.unwrap();
    let head = "POST / HTTP/1.1\r\nhost: localhost\r\ne2b-sandbox-id: inone\r\ne2b-sandbox-port: 80\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(DEADLINE, stream.read_to_string(&mut answer)).await.expect("the connection closes").unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 502") && answer.contains("connection: close") && answer.contains("was not found"),
        "{answer}"
    );
    bench.stop().await;
}
