//! Secrets and volumes through the API.

use bytes::Bytes;
use http::Request;
use http_body_util::Full;

use crate::bench::{Answer, Bench, query};

#[tokio::test]
async fn secrets_are_kept_by_name_and_never_told() {
    let bench = Bench::start().await;
    bench.call("POST", "/sandboxes", "").await.expect(400);
    let body = r#"{"name":"OpenAI Key","value":"sk-hidden","metadata":{"env":"test"}}"#;
    let made = bench.call("POST", "/secrets", body).await.expect(201);
    assert!(made.text("/secretID").starts_with("sec_"));
    assert_eq!((made.text("/name"), &made.body["currentVersion"]), ("openai key", &1.into()));
    bench.call("POST", "/secrets", body).await.expect(409);
    bench.call("POST", "/secrets", r#"{"name":"sec_x","value":"v"}"#).await.expect(400);
    bench.call("POST", "/secrets", r#"{"name":"x"}"#).await.expect(400);

    let path = format!("/secrets/{}", made.text("/secretID"));
    let updated = bench.call("POST", &path, r#"{"value":"sk-other"}"#).await.expect(200);
    assert_eq!((updated.text("/metadata/env"), &updated.body["currentVersion"]), ("test", &2.into()));
    assert_eq!(bench.call("GET", "/secrets/OpenAI%20Key", "").await.expect(200).body, updated.body);

    bench.call("POST", "/secrets", r#"{"name":"b","value":"v"}"#).await.expect(201);
    let page = bench.call("GET", "/secrets?limit=1", "").await.expect(200);
    assert_eq!(page.text("/0/name"), "b");
    let next = format!("/secrets?limit=1&nextToken={}", page.headers["x-next-token"].to_str().unwrap());
    let page = bench.call("GET", &next, "").await.expect(200);
    assert_eq!(page.text("/0/name"), "openai key");
    assert!(!page.headers.contains_key("x-next-token"));

    bench.call("DELETE", &path, "").await.expect(204);
    bench.call("DELETE", &path, "").await.expect(404);
    let mut strange = bench.request("GET", "/secrets", "");
    strange.headers_mut().remove("x-api-key");
    bench.answer(strange).await.expect(401);
    bench.stop().await;
}

/// A volume's content, with its token.
struct Content<'a> {
    bench: &'a Bench,
    id: String,
    token: String,
}

impl Content<'_> {
    async fn ask(&self, method: &str, what: &str, pairs: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
        let request = Request::builder()
            .method(method)
            .uri(format!("/volumecontent/{}/{what}?{}", self.id, query(pairs)))
            .header("host", self.bench.address.to_string())
            .header("authorization", format!("Bearer {}", self.token))
            .body(Full::new(body.into()))
            .unwrap();
        self.bench.answer(request).await
    }

    async fn path(&self, method: &str, path: &str, body: &str) -> Answer {
        self.ask(method, "path", &[("path", path)], body.to_owned()).await
    }
}

async fn volume<'a>(bench: &'a Bench, name: &str) -> Content<'a> {
    let made = bench.call("POST", "/volumes", &format!(r#"{{"name":"{name}"}}"#)).await.expect(201);
    assert_eq!(made.text("/name"), name);
    Content { bench, id: made.text("/volumeID").to_owned(), token: made.text("/token").to_owned() }
}

#[tokio::test]
async fn volumes_come_and_go_and_open_for_their_own_token() {
    let bench = Bench::start().await;
    let (one, two) = (volume(&bench, "one").await, volume(&bench, "Two_2-b").await);
    let taken = bench.call("POST", "/volumes", r#"{"name":"one"}"#).await.expect(400);
    assert_eq!(taken.text("/message"), "Volume with name 'one' already exists");
    for bad in ["", "a/b", "a b", ".."] {
        bench.call("POST", "/volumes", &format!(r#"{{"name":"{bad}"}}"#)).await.expect(400);
    }
    let listed = bench.call("GET", "/volumes", "").await.expect(200);
    assert_eq!((listed.text("/0/name"), listed.text("/1/name")), ("one", "Two_2-b"));
    let counted = |volumes: &str| {
        let metrics = bench.runtime.render_metrics(false);
        metrics.lines().any(|line| line == format!("firkin_volumes{{acceleration=\"none\"}} {volumes}"))
    };
    assert!(counted("2"));
    assert!(listed.body[0].get("token").is_none());
    let path = format!("/volumes/{}", one.id);
    assert_eq!(bench.call("GET", &path, "").await.expect(200).text("/token"), one.token);

    one.path("GET", "/", "").await.expect(200);
    let crossed = Content { token: two.token.clone(), id: one.id.clone(), ..one };
    crossed.path("GET", "/", "").await.expect(401);
    Content { id: "none".to_owned(), ..two }.path("GET", "/", "").await.expect(401);

    bench.call("DELETE", &path, "").await.expect(204);
    assert!(counted("1"));
    bench.call("DELETE", &path, "").await.expect(404);
    bench.call("GET", &path, "").await.expect(404);
    bench.call("GET", "/volumes/..", "").await.expect(404);
    bench.stop().await;
}

#[tokio::test]
async fn a_volume_that_a_sandbox_has_is_shown_with_it_and_kept() {
    let bench = Bench::start().await;
    let one = volume(&bench, "one").await;
    let create = async |mounts: &str| {
        let body = format!(r#"{{"templateID":"base","volumeMounts":[{mounts}]}}"#);
        bench.call("POST", "/v2/sandboxes", &body).await
    };
    for (mounts, said) in [
        (r#"{"name":"none","path":"/mnt"}"#, "volume 'none' not found"),
        (r#"{"name":"one","path":"mnt"}"#, "must be absolute"),
        (r#"{"name":"one","path":"/a"},{"name":"one","path":"/a/b"}"#, "above or below"),
    ] {
        let refused = create(mounts).await.expect(400);
        assert!(refused.text("/message").contains(said), "{}", refused.text("/message"));
    }
    assert_eq!(bench.call("GET", "/v2/sandboxes", "").await.expect(200).body, serde_json::json!([]));

    let made = create(r#"{"name":"one","path":"/mnt"},{"name":"one","path":"/opt/one","readOnly":true}"#).await.expect(201);
    let sandbox = format!("/sandboxes/{}", made.text("/sandboxID"));
    let expected = serde_json::json!([{"name": "one", "path": "/mnt"}, {"name": "one", "path": "/opt/one", "readOnly": true}]);
    assert_eq!(bench.call("GET", &sandbox, "").await.expect(200).body["volumeMounts"], expected);
    let path = format!("/volumes/{}", one.id);
    bench.call("DELETE", &path, "").await.expect(409);
    bench.call("POST", &format!("{sandbox}/pause"), "").await.expect(204);
    bench.call("DELETE", &path, "").await.expect(409);
    bench.call("DELETE", &sandbox, "").await.expect(204);
    bench.call("DELETE", &path, "").await.expect(204);
    create(r#"{"name":"one","path":"/mnt"}"#).await.expect(400);
    bench.stop().await;
}

#[tokio::test]
async fn a_volumes_files_are_written_read_listed_and_removed() {
    let bench = Bench::start().await;
    let content = volume(&bench, "data").await;
    // Larger than any body of the control plane may be: it is not collected.
    let large = vec![7; crate::bench::MAX_BODY * 3];
    let put = async |path: &str, force: &str, body: Vec<u8>| {
        content.ask("PUT", "file", &[("path", path), ("force", force), ("mode", "416")], body).await
    };
    let written = put("/a.bin", "false", large.clone()).await.expect(201);
    assert_eq!((written.text("/name"), written.text("/type"), written.text("/path")), ("a.bin", "file", "/a.bin"));
    assert_eq!((&written.body["size"], &written.body["mode"]), (&large.len().into(), &0o640.into()));
    put("/a.bin", "false", large.clone()).await.expect(409);
    put("/a.bin", "true", b"small".to_vec()).await.expect(201);
    put("/no/a.bin", "true", b"small".to_vec()).await.expect(404);
    let read = content.ask("GET", "file", &[("path", "a.bin")], "").await.expect(200);
    assert_eq!((read.body.as_str(), &read.headers["content-length"]), (Some("small"), &"5".parse().unwrap()));
    content.ask("GET", "file", &[("path", "/none")], "").await.expect(404);

    let make = async |path: &str, force: &str| content.ask("POST", "dir", &[("path", path), ("force", force)], "").await;
    make("/x/y/z", "false").await.expect(404);
    assert_eq!(make("/x/y/z", "true").await.expect(201).text("/type"), "directory");
    make("/x/y/z", "true").await.expect(201);
    make("/x/y/z", "false").await.expect(409);
    make("/a.bin", "true").await.expect(409);
    let names = async |path: &str, depth: &str| {
        let listed = content.ask("GET", "dir", &[("path", path), ("depth", depth)], "").await.expect(200);
        let paths: Vec<_> = listed.body.as_array().unwrap().iter().map(|entry| entry["path"].as_str().unwrap()).collect();
        paths.join(" ")
    };
    assert_eq!(names("/", "1").await, "/a.bin /x");
    assert_eq!(names("/x", "2").await, "/x/y /x/y/z");
    content.ask("GET", "dir", &[("path", "/a.bin")], "").await.expect(404);

    let changed = content.path("PATCH", "/x", r#"{"mode":448}"#).await.expect(200);
    assert_eq!(changed.body["mode"], 0o700);
    content.path("PATCH", "/x", r#"{"mode":2541}"#).await.expect(400);
    content.path("PATCH", "/none", r#"{"mode":448}"#).await.expect(404);
    content.path("DELETE", "/x", "").await.expect(204);
    content.path("DELETE", "/x", "").await.expect(404);
    content.path("DELETE", "/", "").await.expect(404);
    assert_eq!(names("/", "1").await, "/a.bin");
    bench.stop().await;
}

#[tokio::test]
async fn everybody_is_told_by_what_identity_tokens_are_believed() {
    let bench = Bench::start().await;
    let get = async |path: &str| {
        let mut request = bench.request("GET", path, "");
        request.headers_mut().remove("x-api-key");
        bench.answer(request).await.expect(200)
    };
    let found = get("/.well-known/openid-configuration").await;
    assert_eq!(found.text("/issuer"), "https://firkin.test");
    assert_eq!(found.text("/jwks_uri"), "https://firkin.test/.well-known/jwks.json");
    let keys = get("/.well-known/jwks.json").await;
    assert_eq!((keys.text("/keys/0/kty"), keys.text("/keys/0/alg")), ("EC", "ES256"));
    assert_eq!(keys.body.pointer("/keys/0/d"), None, "the private part stays here");
    bench.stop().await;
}
