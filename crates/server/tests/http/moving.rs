//! What is exported by one server is imported by another, over HTTP.

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use serde_json::{Value, json};

use crate::bench::{Answer, Bench};

/// What a route of archives gives.
pub(crate) async fn exported(bench: &Bench, query: &str) -> Bytes {
    let response = bench.send(bench.request("GET", &format!("/admin/export?{query}"), "")).await;
    assert_eq!((response.status().as_u16(), &response.headers()["content-type"]), (200, &"application/zstd".parse().unwrap()));
    response.into_body().collect().await.unwrap().to_bytes()
}

/// Has one taken in.
pub(crate) async fn import(bench: &Bench, query: &str, archive: Bytes) -> Answer {
    let request: Request<Full<Bytes>> = bench.request("POST", &format!("/admin/import?{query}"), "").map(|_| Full::new(archive));
    bench.answer(request).await
}

/// A paused sandbox.
pub(crate) async fn paused(bench: &Bench) -> String {
    let id = bench.create("").await;
    bench.call("POST", &format!("/sandboxes/{id}/pause"), "").await.expect(204);
    id
}

#[tokio::test]
async fn a_paused_sandbox_is_taken_in_by_another_server() {
    let (there, here) = (Bench::start().await, Bench::start().await);
    let running = there.create("").await;
    let refused = there.call("GET", &format!("/admin/export?sandbox={running}"), "").await.expect(409);
    assert!(refused.text("/message").contains("pause it first"));
    let id = paused(&there).await;
    let archive = exported(&there, &format!("sandbox={id}")).await;

    let half = archive.slice(..archive.len() / 2);
    let refused = import(&here, "", half).await.expect(400);
    assert_eq!((refused.text("/error_code"), &refused.headers["should-retry"]), ("archive_damaged", &"false".parse().unwrap()));
    assert!(refused.text("/message").contains("damaged or cut off"), "{refused:?}");
    import(&here, "kind=template", archive.clone()).await.expect(400);
    import(&here, "kind=image", archive.clone()).await.expect(400);
    import(&here, "name=called", archive.clone()).await.expect(400);
    here.call("GET", &format!("/sandboxes/{id}"), "").await.expect(404);

    let came = import(&here, "kind=sandbox", archive.clone()).await.expect(200);
    assert_eq!((came.text("/kind"), came.text("/id"), &came.body["was_here"]), ("sandbox", &*id, &json!(false)));
    assert_eq!(import(&here, "", archive.clone()).await.expect(200).body["was_here"], true);
    here.call("POST", &format!("/v2/sandboxes/{id}/connect"), "{}").await.expect(201);
    let taken = import(&here, "", archive).await.expect(409);
    assert_eq!(taken.text("/error_code"), "archive_taken");
    there.call("POST", &format!("/v2/sandboxes/{id}/connect"), "{}").await.expect(201);
    for bench in [there, here] {
        bench.stop().await;
    }
}

#[tokio::test]
async fn what_moves_is_for_who_administers_the_host() {
    let bench = Bench::start().await;
    bench.admin("POST", "/admin/teams", r#"{"teamID":"b"}"#).await.expect(201);
    let key = bench.admin("POST", "/admin/teams/b/keys", "{}").await.expect(201);
    for (method, path) in [("GET", "/admin/export?template=base"), ("POST", "/admin/import")] {
        let mut request = bench.request(method, path, "");
        request.headers_mut().insert("x-api-key", key.text("/key").parse().unwrap());
        bench.answer(request).await.expect(403);
    }
    bench.call("GET", "/admin/export", "").await.expect(400);
    bench.call("GET", "/admin/export?template=base&sandbox=i1", "").await.expect(400);
    bench.call("GET", "/admin/export?template=none", "").await.expect(404);
    let nothing: Value = import(&bench, "", Bytes::new()).await.expect(400).body;
    assert_eq!(nothing["error_code"], "archive_damaged");
    bench.stop().await;
}
