//! Template builds through the API: places, files, what is told of a build while it goes on and after.

use bytes::Bytes;
use http::Request;
use http_body_util::Full;

use crate::bench::{Answer, Bench, DEADLINE};

/// A place for a build of `name`: template and build.
async fn request(bench: &Bench, name: &str) -> (String, String) {
    let body = format!(r#"{{"name":"{name}","cpuCount":1,"memoryMB":512}}"#);
    let answer = bench.call("POST", "/v3/templates", &body).await.expect(202);
    (answer.text("/templateID").to_owned(), answer.text("/buildID").to_owned())
}

/// Starts a build and waits for its end.
async fn build(bench: &Bench, (template, build): &(String, String), plan: &str) -> Answer {
    bench.call("POST", &format!("/v2/templates/{template}/builds/{build}"), plan).await.expect(202);
    let ended = async {
        loop {
            let status = bench.call("GET", &format!("/templates/{template}/builds/{build}/status"), "").await.expect(200);
            match status.text("/status") {
                "building" => tokio::task::yield_now().await,
                _ => return status,
            }
        }
    };
    tokio::time::timeout(DEADLINE, ended).await.expect("the build ends")
}

#[tokio::test]
async fn a_build_becomes_a_template_and_is_remembered() {
    let bench = Bench::start().await;
    let place = request(&bench, "mine:v1").await;
    let (template, id) = &place;
    let waiting = bench.call("GET", &format!("/templates/{template}/builds/{id}/status"), "").await.expect(200);
    assert_eq!(waiting.text("/status"), "waiting");
    bench.call("GET", "/templates/aliases/mine", "").await.expect(200);
    let ended = build(&bench, &place, r#"{"fromImage":"e2bdev/base"}"#).await;
    assert_eq!(ended.text("/status"), "ready", "{ended:?}");
    assert_eq!(ended.text("/logEntries/0/step"), "base");

    let created = bench.call("POST", "/v2/sandboxes", r#"{"templateID":"mine:v1"}"#).await.expect(201);
    assert_eq!(created.text("/templateID"), template);
    let detail = bench.call("GET", &format!("/templates/{template}"), "").await.expect(200);
    assert_eq!(detail.text("/builds/0/buildID"), id);
    let again = bench.call("POST", &format!("/v2/templates/{template}/builds/{id}"), r#"{"fromImage":"e2bdev/base"}"#).await;
    assert_eq!(again.status, 409, "a build is started once");
    bench.call("GET", &format!("/templates/{template}/builds/00000000-0000-4000-8000-000000000000/status"), "").await.expect(404);
    let logs = bench.call("GET", &format!("/templates/{template}/builds/{id}/logs?direction=backward&limit=1"), "").await;
    assert_eq!(logs.expect(200).text("/logs/0/message"), "the template is ready");
    bench.stop().await;
}

#[tokio::test]
async fn a_build_that_fails_names_its_step() {
    let bench = Bench::start().await;
    let place = request(&bench, "broken").await;
    let ended = build(&bench, &place, r#"{"fromTemplate":"none-such"}"#).await;
    assert_eq!((ended.text("/status"), ended.text("/reason/step")), ("error", "base"));
    assert_eq!(ended.text("/reason/message"), "template 'none-such' not found");
    // A guest of the fake engine runs no commands.
    let place = request(&bench, "broken").await;
    let steps = r#"{"fromTemplate":"base","steps":[{"type":"ENV","args":["A","1"]},{"type":"RUN","args":["true"]}]}"#;
    let ended = build(&bench, &place, steps).await;
    assert_eq!((ended.text("/status"), ended.text("/reason/step")), ("error", "2"), "{ended:?}");
    assert!(ended.text("/reason/message").starts_with("failed to run command 'true'"), "{ended:?}");
    let place = request(&bench, "broken").await;
    let ended = build(&bench, &place, r#"{"fromTemplate":"base","steps":[{"type":"EXPOSE","args":["80"]}]}"#).await;
    assert_eq!((ended.text("/status"), ended.text("/reason/step")), ("error", "1"));
    let ended = build(&bench, &request(&bench, "broken").await, r#"{"fromImage":"ubuntu:22.04"}"#).await;
    assert!(ended.text("/reason/message").contains("ubuntu:22.04"), "{ended:?}");
    bench.stop().await;
}

#[tokio::test]
async fn free_disk_that_is_asked_for_is_there_or_the_build_fails_with_the_figures() {
    let bench = Bench::start().await;
    // The guest says that it has used 1 MiB of its 1024.
    for (asked, status, step, message) in [
        (1023, "ready", "", ""),
        (
            1024,
            "error",
            "finalize",
            "the root file system of the template has 1023 MiB free, and at least 1024 MiB were asked for",
        ),
        (1025, "error", "base", "the disk of the template has 1024 MiB, and 1025 MiB of it were asked to be free"),
    ] {
        let body = format!(r#"{{"name":"roomy","cpuCount":1,"memoryMB":512,"minFreeDiskMb":{asked}}}"#);
        let answer = bench.call("POST", "/v3/templates", &body).await.expect(202);
        let place = (answer.text("/templateID").to_owned(), answer.text("/buildID").to_owned());
        let ended = build(&bench, &place, r#"{"fromImage":"e2bdev/base"}"#).await;
        assert_eq!(ended.text("/status"), status, "{ended:?}");
        if status == "error" {
            assert_eq!((ended.text("/reason/step"), ended.text("/reason/message")), (step, message));
        }
    }
    bench.stop().await;
}

#[tokio::test]
async fn requests_are_refused_in_the_contracts_words() {
    let bench = Bench::start().await;
    for (fields, message) in [
        (r#""name":"x","cpuCount":0"#, "CPU count must be at least 1"),
        (r#""name":"x","cpuCount":3"#, "CPU count must be 1 or an even number"),
        (r#""name":"x","cpuCount":64"#, "CPU count must be at most 32"),
        (r#""name":"x","memoryMB":1023"#, "Memory must be divisible by 2"),
        (r#""name":"x","minFreeDiskMb":-1"#, "Free disk must not be negative"),
    ] {
        let refused = bench.call("POST", "/v3/templates", &format!("{{{fields}}}")).await.expect(400);
        assert_eq!(refused.text("/message"), message);
    }
    bench.call("POST", "/v3/templates", r#"{"name":"a b"}"#).await.expect(400);
    let (template, build) = request(&bench, "x").await;
    let start = format!("/v2/templates/{template}/builds/{build}");
    bench.call("POST", &start, "{}").await.expect(400);
    bench.call("POST", &start, r#"{"fromImage":"a","fromTemplate":"b"}"#).await.expect(400);
    for (registry, message) in [
        (r#"{"type":"registry","username":"u"}"#, "missing field `password`"),
        (r#"{"type":"aws"}"#, "missing field `awsRegion`"),
        (r#"{"type":"gcp"}"#, "missing field `serviceAccountJson`"),
        (r#"{"username":"u"}"#, "missing field `type`"),
        (r#"{"type":"other"}"#, "unknown variant `other`"),
    ] {
        let body = format!(r#"{{"fromImage":"a","fromImageRegistry":{registry}}}"#);
        let refused = bench.call("POST", &start, &body).await.expect(400);
        assert!(refused.text("/message").contains(message), "{refused:?}");
    }
    bench.call("DELETE", &format!("/templates/{template}"), "").await.expect(204);
    bench.call("DELETE", &format!("/templates/{template}"), "").await.expect(404);
    bench.stop().await;
}

#[tokio::test]
async fn files_come_by_a_link_that_opens_nothing_else() {
    let bench = Bench::start().await;
    let (template, _) = request(&bench, "files").await;
    let (hash, other) = ("a".repeat(64), "b".repeat(64));
    let path = format!("/templates/{template}/files/{hash}");
    let link = bench.call("GET", &path, "").await.expect(201);
    assert_eq!(link.body["present"], false);
    let url = link.text("/url").strip_prefix(&format!("http://{}", bench.address)).unwrap().to_owned();
    let put = |path: &str| {
        let host = bench.address.to_string();
        Request::put(path).header("host", host).body(Full::<Bytes>::from("archive")).unwrap()
    };
    bench.answer(put(&path)).await.expect(401);
    bench.answer(put(&url.replace(&hash, &other))).await.expect(401);
    bench.answer(put(&url)).await.expect(200);
    assert_eq!(bench.call("GET", &path, "").await.expect(201).body["present"], true);
    bench.call("GET", &format!("/templates/{template}/files/nonsense"), "").await.expect(400);
    bench.stop().await;
}

#[tokio::test]
async fn a_template_is_published_and_shows_it() {
    let bench = Bench::start().await;
    let place = request(&bench, "shown").await;
    build(&bench, &place, r#"{"fromTemplate":"base"}"#).await;
    let names = bench.call("PATCH", "/v2/templates/shown", r#"{"public":true}"#).await.expect(200);
    assert_eq!(names.text("/names/0"), "firkin/shown:default");
    assert_eq!(bench.call("GET", "/templates/aliases/shown", "").await.expect(200).body["public"], true);
    bench.call("PATCH", "/templates/shown", r#"{"public":false}"#).await.expect(200);
    assert_eq!(bench.call("GET", "/templates/shown", "").await.expect(200).body["public"], false);
    bench.call("PATCH", "/v2/templates/none", r#"{"public":true}"#).await.expect(404);
    bench.stop().await;
}
