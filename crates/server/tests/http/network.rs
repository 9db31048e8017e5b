//! Network options through the API: what is kept and shown, who is let in, and what people see.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::bench::Bench;

/// A guest's server that answers with the head of the request it got.
async fn echo_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = vec![0; 4096];
            let read = stream.read(&mut head).await.unwrap();
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {read}\r\nconnection: close\r\n\r\n");
            stream.write_all(&[answer.as_bytes(), &head[..read]].concat()).await.unwrap();
        }
    });
    port
}

#[tokio::test]
async fn a_private_sandbox_lets_in_only_who_shows_its_token() {
    let bench = Bench::start().await;
    let port = echo_port().await;
    let body = r#"{"templateID":"base","network":{"allowPublicTraffic":false}}"#;
    let created = bench.call("POST", "/v2/sandboxes", body).await.expect(201);
    let (id, token) = (created.text("/sandboxID"), created.text("/trafficAccessToken"));
    let ask = async |token: Option<&str>, port: u16| {
        let mut request = bench.guest(id, port, "/");
        if let Some(token) = token {
            request.headers_mut().insert("e2b-traffic-access-token", token.parse().unwrap());
        }
        bench.answer(request).await
    };
    for (shown, what) in [(None, "missing"), (Some("wrong"), "not valid")] {
        let answer = ask(shown, port).await.expect(403);
        assert_eq!((answer.text("/sandboxId"), &answer.body["code"]), (id, &403.into()));
        assert!(answer.text("/message").contains(what), "{answer:?}");
    }
    let answer = ask(Some(token), port).await.expect(200);
    assert!(!answer.body.to_string().contains(token), "the guest must not see the token: {answer:?}");
    // envd has a token of its own; nothing listens there in this bench.
    ask(None, 49983).await.expect(502);

    let (pause, connect) = (format!("/sandboxes/{id}/pause"), format!("/v2/sandboxes/{id}/connect"));
    bench.call("POST", &pause, "").await.expect(204);
    assert_eq!(bench.call("POST", &connect, "{}").await.expect(201).text("/trafficAccessToken"), token);
    let forks = bench.call("POST", &format!("/sandboxes/{id}/fork"), "{}").await.expect(201);
    assert_ne!(forks.text("/0/sandbox/trafficAccessToken"), token);
    let public = bench.call("POST", "/v2/sandboxes", r#"{"templateID":"base"}"#).await.expect(201);
    assert!(public.body.get("trafficAccessToken").is_none());
    let insecure = r#"{"templateID":"base","secure":false,"network":{"allowPublicTraffic":false}}"#;
    bench.call("POST", "/sandboxes", insecure).await.expect(400);
    bench.stop().await;
}

#[tokio::test]
async fn servers_in_a_guest_see_the_masked_host() {
    let bench = Bench::start().await;
    let (port, id) = (echo_port().await, bench.create(r#","network":{"maskRequestHost":"x.example:${PORT}"}"#).await);
    let answer = bench.answer(bench.guest(&id, port, "/")).await.expect(200);
    let head = answer.body.as_str().unwrap().to_lowercase();
    assert!(head.contains(&format!("host: x.example:{port}\r\n")), "{head}");
    let detail = bench.call("GET", &format!("/sandboxes/{id}"), "").await.expect(200);
    assert_eq!(detail.text("/network/maskRequestHost"), "x.example:${PORT}");
    bench.stop().await;
}

#[tokio::test]
async fn outbound_rules_are_kept_replaced_and_shown() {
    let bench = Bench::start().await;
    let id = bench.create(r#","network":{"allowOut":["1.1.1.1"],"denyOut":["0.0.0.0/0"]}"#).await;
    let (path, network) = (format!("/sandboxes/{id}"), format!("/sandboxes/{id}/network"));
    let shown = async || bench.call("GET", &path, "").await.expect(200).body["network"].clone();
    assert_eq!(shown().await, serde_json::json!({ "allowOut": ["1.1.1.1"], "denyOut": ["0.0.0.0/0"] }));
    bench.call("PUT", &network, r#"{"denyOut":["8.8.0.0/16"]}"#).await.expect(204);
    assert_eq!(shown().await, serde_json::json!({ "allowOut": [], "denyOut": ["8.8.0.0/16"] }));
    bench.call("PUT", &network, r#"{"allow_internet_access":false}"#).await.expect(204);
    assert_eq!(bench.call("GET", &path, "").await.body["allowInternetAccess"], false);
    bench.call("PUT", &network, r#"{"dnsServers":["1.1.1.1"]}"#).await.expect(204);
    assert_eq!(shown().await, serde_json::json!({ "dnsServers": ["1.1.1.1"] }));
    bench.call("PUT", &network, r#"{"httpsPorts":[3000]}"#).await.expect(400);
    bench.call("PUT", &network, "{}").await.expect(204);
    assert!(shown().await.is_null());

    bench.call("PUT", &network, r#"{"allowOut":["x.com"]}"#).await.expect(400);
    bench.call("PUT", &network, r#"{"maskRequestHost":"x"}"#).await.expect(400);
    bench.call("PUT", "/sandboxes/inone/network", "{}").await.expect(404);
    bench.call("PUT", &network, r#"{"denyOut":["8.8.8.8"]}"#).await.expect(204);
    bench.call("POST", &format!("/sandboxes/{id}/pause"), "").await.expect(204);
    bench.call("PUT", &network, "{}").await.expect(409);
    bench.call("POST", &format!("/v2/sandboxes/{id}/connect"), "{}").await.expect(201);
    assert_eq!(shown().await["denyOut"], serde_json::json!(["8.8.8.8"]));
    bench.stop().await;
}

#[tokio::test]
async fn a_browser_gets_a_page_and_a_program_gets_json() {
    let bench = Bench::start().await;
    let running = bench.create("").await;
    // Bound and not listened on: it stays nobody's.
    let held = tokio::net::TcpSocket::new_v4().unwrap();
    held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let closed = held.local_addr().unwrap().port();
    let ask = async |id: &str, header: &'static str, value: &str| {
        let mut request = bench.guest(id, closed, "/");
        request.headers_mut().insert(header, value.parse().unwrap());
        bench.answer(request).await.expect(502)
    };
    let chrome = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 Chrome/58.0.3029.110 Safari/537.3";
    for (header, value) in [("accept", "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"), ("user-agent", chrome)] {
        for (id, words) in [("inone", "Sandbox Not Found"), (&running, "no service running on port")] {
            let page = ask(id, header, value).await;
            assert_eq!(page.headers["content-type"], "text/html; charset=utf-8");
            let text = page.body.as_str().unwrap();
            assert!(text.starts_with("<html") && text.ends_with("</html>"), "{page:?}");
            assert!(text.contains(words) && text.contains(id), "{page:?}");
        }
    }
    assert!(ask(&running, "user-agent", chrome).await.body.as_str().unwrap().contains(&closed.to_string()));
    for (id, message) in [("inone", "The sandbox was not found"), (&running, "The sandbox is running but port is not open")] {
        let answer = ask(id, "accept", "*/*").await;
        assert_eq!(
            (answer.text("/message"), &answer.headers["content-type"]),
            (message, &"application/json; charset=utf-8".parse().unwrap())
        );
    }
    bench.stop().await;
}

#[tokio::test]
async fn rules_with_names_and_proxies_are_kept_and_passwords_are_not_shown() {
    let bench = Bench::start().await;
    let proxy = r#"{"address":"proxy.example:1080","username":"someone","password":"hunter2","tls":{"enabled":true}}"#;
    let rules =
        format!(r#"{{"allowOut":["*.x.com","1.1.1.1"],"denyOut":["0.0.0.0/0"],"dnsServers":["9.9.9.9"],"egressProxy":{proxy}}}"#);
    let id = bench.create(&format!(r#","network":{rules}"#)).await;
    let (path, network) = (format!("/sandboxes/{id}"), format!("/sandboxes/{id}/network"));
    let shown = async || bench.call("GET", &path, "").await.expect(200).body["network"].clone();
    let expected = serde_json::json!({
        "allowOut": ["*.x.com", "1.1.1.1"],
        "denyOut": ["0.0.0.0/0"],
        "dnsServers": ["9.9.9.9"],
        "egressProxy": { "address": "proxy.example:1080", "username": "someone", "tls": { "enabled": true } },
    });
    assert_eq!(shown().await, expected);
    // They live as long as the sandbox does, and its forks have them too.
    bench.call("POST", &format!("/sandboxes/{id}/pause"), "").await.expect(204);
    bench.call("POST", &format!("/v2/sandboxes/{id}/connect"), "{}").await.expect(201);
    assert_eq!(shown().await, expected);
    let forks = bench.call("POST", &format!("/sandboxes/{id}/fork"), "{}").await.expect(201);
    let fork = bench.call("GET", &format!("/sandboxes/{}", forks.text("/0/sandbox/sandboxID")), "").await.expect(200);
    assert_eq!(fork.body["network"], expected);

    let audit = bench.call("GET", &format!("{network}/audit"), "").await.expect(200);
    assert_eq!(audit.body, serde_json::json!([]));
    bench.call("GET", "/sandboxes/inone/network/audit", "").await.expect(404);
    bench.call("PUT", &network, "{}").await.expect(204);
    assert!(shown().await.is_null());
    bench.stop().await;
}

#[tokio::test]
async fn what_cannot_be_kept_of_names_is_refused_before_anything_starts() {
    let bench = Bench::start().await;
    let id = bench.create(r#","network":{"denyOut":["8.8.8.8"]}"#).await;
    let deny = r#""denyOut":["0.0.0.0/0"]"#;
    for (rules, named) in [
        (format!(r#"{{"allowOut":["a..b"],{deny}}}"#), "a..b"),
        (format!(r#"{{"allowOut":["x.com"],{deny},"dnsServers":["10.0.0.1"]}}"#), "10.0.0.1"),
        (format!(r#"{{"allowOut":["x.com"],{deny},"dnsServers":["169.254.169.254"]}}"#), "169.254.0.0/16"),
        (r#"{"egressProxy":{"address":"hunter2@p:1"}}"#.into(), "proxy"),
        (r#"{"rules":{"*":[{"transform":{"headers":{"x":"hunter2"}}}]}}"#.into(), "name of hosts"),
        (r#"{"rules":{"a.com":[{"transform":{"headers":{"Host":"hunter2"}}}]}}"#.into(), "Host"),
        (r#"{"rules":{"a.com":[{"transform":{"headers":{"x":"hunter2 ${e2b.secrets.gone}"}}}]}}"#.into(), "gone"),
        (r#"{"rules":{"a.com":[{"transform":{"headers":{"x":"hunter2 ${e2b.identity.tokens.aws}"}}}]}}"#.into(), "aws"),
        (r#"{"egressProxy":{"address":"p:1","username":"hunter2"}}"#.into(), "password"),
        (r#"{"egressProxy":{"address":"p:1","tls":{"enabled":true,"caCert":"hunter2"}}}"#.into(), "authority"),
    ] {
        let create = format!(r#"{{"templateID":"base","network":{rules}}}"#);
        let answers = [
            bench.call("POST", "/v2/sandboxes", &create).await,
            bench.call("PUT", &format!("/sandboxes/{id}/network"), &rules).await,
        ];
        for answer in answers {
            let answer = answer.expect(400);
            assert!(answer.text("/message").contains(named), "{answer:?}");
            assert!(!answer.text("/message").contains("hunter2"), "{answer:?}");
        }
    }
    let detail = bench.call("GET", &format!("/sandboxes/{id}"), "").await.expect(200);
    assert_eq!(detail.body["network"]["denyOut"], serde_json::json!(["8.8.8.8"]));
    bench.stop().await;
}
