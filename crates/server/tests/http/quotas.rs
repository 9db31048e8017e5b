//! What volumes may hold: writers are told where it ends, and nothing of what did not fit stays.

use std::convert::Infallible;

use bytes::Bytes;
use firkin_runtime::volumes::VolumeLimits;
use futures::stream;
use http::Request;
use http_body::Frame;
use http_body_util::{Full, StreamBody};
use serde_json::Value;

use crate::bench::{Answer, Bench, query};

/// What an entry counts as at least.
const LEAST: u64 = 16 << 10;

/// One volume of a server.
struct Volume<'a> {
    bench: &'a Bench,
    id: String,
    token: String,
}

impl<'a> Volume<'a> {
    async fn make(bench: &'a Bench, name: &str) -> Self {
        let made = bench.call("POST", "/volumes", &format!(r#"{{"name":"{name}"}}"#)).await.expect(201);
        Self { bench, id: made.text("/volumeID").to_owned(), token: made.text("/token").to_owned() }
    }

    async fn ask<B>(&self, method: &str, what: &str, path: &str, body: B) -> Answer
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: std::error::Error + Send + Sync,
    {
        let request = Request::builder()
            .method(method)
            .uri(format!("/volumecontent/{}/{what}?{}", self.id, query(&[("path", path), ("force", "true")])))
            .header("host", self.bench.address.to_string())
            .header("authorization", format!("Bearer {}", self.token))
            .body(body)
            .unwrap();
        self.bench.answer(request).await
    }

    /// Writes a file of so many KiB, whose length is announced.
    async fn put(&self, path: &str, kib: usize) -> Answer {
        self.ask("PUT", "file", path, Full::new(Bytes::from(vec![7; kib << 10]))).await
    }

    /// The same in pieces, of which nobody knows how many come.
    async fn stream(&self, path: &str, kib: usize) -> Answer {
        let piece = |_| Ok::<_, Infallible>(Frame::data(Bytes::from(vec![7; 16 << 10])));
        self.ask("PUT", "file", path, StreamBody::new(stream::iter((0..kib / 16).map(piece)))).await
    }

    async fn remove(&self, path: &str) -> Answer {
        self.ask("DELETE", "path", path, Full::default()).await
    }

    /// What lists tell that it holds, and may.
    async fn told(&self) -> (u64, u64) {
        let listed = self.bench.call("GET", "/volumes", "").await.expect(200);
        let own = |volume: &&Value| volume["volumeID"] == self.id.as_str();
        let own = listed.body.as_array().unwrap().iter().find(own).unwrap();
        (own["usedBytes"].as_u64().unwrap(), own["quotaBytes"].as_u64().unwrap())
    }
}

#[tokio::test]
async fn an_upload_that_crosses_a_volumes_quota_ends_there_and_leaves_nothing() {
    let bench = Bench::start_within(VolumeLimits { quota_mib: Some(1), ..VolumeLimits::default() }).await;
    let volume = Volume::make(&bench, "small").await;
    volume.put("/kept", 100).await.expect(201);
    let before = volume.told().await;
    assert_eq!(before, (LEAST + (100 << 10), 1 << 20), "the root and one file");
    // More than lies in sockets: clients hear of it although they had not sent all.
    for answer in [volume.put("/large", 32 << 10).await, volume.stream("/large", 32 << 10).await] {
        let refused = answer.expect(507);
        assert!(refused.text("/message").contains("it may hold 1 MiB"), "{refused:?}");
        assert!(refused.text("/message").contains("--volume-quota"), "{refused:?}");
        assert_eq!(refused.headers["should-retry"], "false");
        volume.ask("GET", "path", "/large", Full::default()).await.expect(404);
        assert_eq!(volume.told().await, before);
    }
    // What does not fit besides what is there does not take its place either.
    volume.stream("/kept", 1024).await.expect(507);
    assert_eq!(volume.ask("GET", "path", "/kept", Full::default()).await.expect(200).body["size"], 100 << 10);
    volume.put("/kept", 200).await.expect(201);
    assert_eq!(volume.told().await.0, LEAST + (200 << 10));
    volume.remove("/kept").await.expect(204);
    assert_eq!(volume.told().await.0, LEAST);
    volume.stream("/large", 1008).await.expect(201);
    assert_eq!(volume.told().await, (1 << 20, 1 << 20), "to the last byte");
    bench.stop().await;
}

#[tokio::test]
async fn writers_at_once_do_not_have_the_same_room_twice() {
    let bench = Bench::start_within(VolumeLimits { quota_mib: Some(1), ..VolumeLimits::default() }).await;
    let volume = Volume::make(&bench, "shared").await;
    let paths = ["/a", "/b", "/c", "/d"];
    let answers = futures::future::join_all(paths.map(|path| volume.stream(path, 400))).await;
    let kept = answers.iter().filter(|answer| answer.status == 201).count();
    assert!(answers.iter().all(|answer| [201, 507].contains(&answer.status)), "{answers:?}");
    assert!(kept <= 2, "{answers:?}");
    assert_eq!(volume.told().await.0, LEAST + kept as u64 * (400 << 10));
    bench.stop().await;
}

#[tokio::test]
async fn files_without_content_and_directories_are_not_free() {
    let bench = Bench::start_within(VolumeLimits { quota_mib: Some(1), ..VolumeLimits::default() }).await;
    let volume = Volume::make(&bench, "many").await;
    // The root, 31 of each kind, and a last file.
    for n in 0..31 {
        volume.put(&format!("/{n}"), 0).await.expect(201);
        volume.ask("POST", "dir", &format!("/d{n}"), Full::default()).await.expect(201);
    }
    volume.put("/last", 0).await.expect(201);
    assert_eq!(volume.told().await, (1 << 20, 1 << 20));
    volume.put("/more", 0).await.expect(507);
    volume.ask("POST", "dir", "/e", Full::default()).await.expect(507);
    volume.ask("POST", "dir", "/d0/a/b", Full::default()).await.expect(507);
    volume.ask("GET", "path", "/d0/a", Full::default()).await.expect(404);
    volume.remove("/d1").await.expect(204);
    volume.ask("POST", "dir", "/d0/a", Full::default()).await.expect(201);
    bench.stop().await;
}

#[tokio::test]
async fn no_more_volumes_than_there_may_be() {
    let bench = Bench::start_within(VolumeLimits { count: 2, ..VolumeLimits::default() }).await;
    let first = Volume::make(&bench, "one").await;
    Volume::make(&bench, "two").await;
    let refused = bench.call("POST", "/volumes", r#"{"name":"three"}"#).await.expect(507);
    assert!(refused.text("/message").contains("cannot keep more than 2 volumes"), "{refused:?}");
    assert!(refused.text("/message").contains("--max-volumes"), "{refused:?}");
    bench.call("DELETE", &format!("/volumes/{}", first.id), "").await.expect(204);
    Volume::make(&bench, "three").await;
    bench.stop().await;
}
