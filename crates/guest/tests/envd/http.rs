//! The plain routes, the token and the two codecs.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::harness::Envd;

#[tokio::test]
async fn the_token_guards_all_but_health_and_files() {
    let envd = Envd::start_with(&["--token", "secret"]);
    assert_eq!(envd.get("/health", &[]).await.status, 204);
    for path in ["/metrics", "/envs", "/process.Process/List", "/nowhere"] {
        let refused = envd.get(path, &[]).await;
        assert_eq!(refused.status, 401, "{path}");
        assert_eq!(refused.json()["code"], 401);
        let expected = "unauthorized access, please provide a valid access token or method signing if supported";
        assert_eq!(refused.json()["message"], expected);
        assert_eq!(envd.get(path, &[("x-access-token", "other")]).await.status, 401);
    }
    let envs = envd.get("/envs", &[("x-access-token", "secret")]).await;
    assert_eq!(envs.json()["FROM_SANDBOX"], "yes");
    assert_eq!(envs.json()["E2B_SANDBOX"], "true");
    let figures = envd.get("/metrics", &[("x-access-token", "secret")]).await.json();
    for field in ["ts", "cpu_count", "cpu_used_pct", "mem_total", "mem_used", "mem_cache", "disk_used", "disk_total"] {
        assert!(figures[field].is_number(), "{field} in {figures}");
    }
    let missing = envd.get("/files?path=/etc/hostname", &[]).await;
    assert_eq!((missing.status.as_u16(), missing.json()["message"].as_str()), (401, Some("missing signature query parameter")));
}

#[tokio::test]
async fn a_long_head_is_taken_whatever_the_number_of_its_headers() {
    let envd = Envd::start();
    let names: Vec<String> = (0..1000).map(|number| format!("x-header-{number}")).collect();
    let value = "v".repeat(50);
    let headers: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), value.as_str())).collect();
    assert_eq!(envd.get("/health", &headers).await.status, 204);
    let longer = "v".repeat(200);
    let headers: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), longer.as_str())).collect();
    assert_eq!(envd.get("/health", &headers).await.status, 431);
}

#[tokio::test]
async fn errors_of_plain_routes_are_json() {
    let envd = Envd::start();
    assert_eq!(envd.get("/nowhere", &[]).await.json()["code"], 404);
    assert_eq!(envd.send("DELETE", "/health", &[], "").await.json()["code"], 405);
    assert_eq!(envd.get("/files?path=~other/x", &[]).await.json()["code"], 400);
    assert_eq!(envd.get("/files?path=/&username=no-such-user", &[]).await.json()["code"], 401);
    assert_eq!(envd.get("/files?signature_expiration=soon", &[]).await.json()["code"], 400);
}

#[tokio::test]
async fn json_and_binary_share_a_route_and_browsers_are_let_in() {
    let envd = Envd::start();
    let json = [("content-type", "application/json"), ("connect-protocol-version", "1"), ("origin", "https://example.com")];
    let answer = envd.send("POST", "/process.Process/List", &json, "{\"unknownField\": 1}").await;
    assert_eq!((answer.status.as_u16(), answer.text()), (200, "{}"));
    assert_eq!(answer.headers["access-control-allow-origin"], "*");
    let proto = [("content-type", "application/proto"), ("connect-protocol-version", "1")];
    let answer = envd.send("POST", "/process.Process/List", &proto, "").await;
    assert_eq!((answer.status.as_u16(), answer.body.len()), (200, 0));

    let error = envd.send("POST", "/process.Process/SendSignal", &json, "{\"process\":{\"pid\":4194000},\"signal\":9}").await;
    assert_eq!(error.status, 404);
    assert_eq!(error.json()["code"], "not_found");
    assert_eq!(error.json()["message"], "process with pid 4194000 not found");

    let preflight = [
        ("origin", "https://example.com"),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "authorization,x-access-token"),
    ];
    let answer = envd.send("OPTIONS", "/process.Process/List", &preflight, "").await;
    assert_eq!(answer.headers["access-control-allow-headers"], "authorization,x-access-token");
}

#[tokio::test]
async fn an_oversized_message_is_refused_and_the_server_lives() {
    let envd = Envd::start();
    let json = [("content-type", "application/json"), ("connect-protocol-version", "1")];
    let huge = format!("{{\"unknown\":\"{}\"}}", "x".repeat(40 << 20));
    // The server may answer and close before it has read everything; then there is no answer to read.
    if let Ok(answer) = envd.try_send("POST", "/process.Process/List", &json, huge.into()).await {
        assert!(answer.status.is_client_error(), "{}", answer.status);
    }
    assert_eq!(envd.get("/health", &[]).await.status, 204);
}

#[tokio::test]
async fn a_refusal_by_the_head_alone_says_that_it_closes_unless_the_body_comes() {
    const HEAD: &[u8] =
        b"POST /process.Process/List HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n";
    const CLOSES: &str = "\r\nconnection: close\r\n";
    let envd = Envd::start_with(&["--token", "secret"]);
    let connect = async || TcpStream::connect(envd.url.trim_start_matches("http://")).await.unwrap();
    let mut stream = connect().await;
    stream.write_all(HEAD).await.unwrap();
    let refused = head_and_body(&mut stream).await;
    assert!(refused.starts_with("http/1.1 401 ") && refused.contains(CLOSES), "{refused}");

    let mut stream = connect().await;
    stream.write_all(HEAD).await.unwrap();
    stream.write_all(b"{}").await.unwrap();
    let refused = head_and_body(&mut stream).await;
    assert!(refused.starts_with("http/1.1 401 "), "{refused}");
    // On a busy machine the two halves may lie too far apart.
    if !refused.contains(CLOSES) {
        stream.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let next = head_and_body(&mut stream).await;
        assert!(next.starts_with("http/1.1 204 "), "{next}");
    }
}

/// One answer with the length it announces, in lower case.
async fn head_and_body(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&answer).to_ascii_lowercase();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                return text;
            }
        }
        assert!(stream.read_buf(&mut answer).await.unwrap() > 0, "closed after {text:?}");
    }
}

/// Were the C library's functions linked and not ours (src/told.rs), the kernel would have what the runtime keeps there: addresses. Were only one
/// of the two, nothing would be answered.
#[tokio::test]
async fn the_kernel_is_told_numbers_and_no_addresses_of_the_agent() {
    let envd = Envd::start();
    assert_eq!(envd.get("/health", &[]).await.status, 204);
    let mut told = Vec::new();
    for entry in fs_err::read_dir(format!("/proc/{}/fdinfo", envd.pid())).unwrap() {
        // A descriptor may be closed meanwhile.
        let text = fs_err::read_to_string(entry.unwrap().path()).unwrap_or_default();
        let data = text.lines().filter(|line| line.starts_with("tfd:")).filter_map(|line| line.split("data:").nth(1));
        told.extend(data.map(|data| u64::from_str_radix(data.split_whitespace().next().unwrap(), 16).unwrap()));
    }
    assert!(!told.is_empty() && told.iter().all(|data| (1..1 << 16).contains(data)), "{told:x?}");
}
