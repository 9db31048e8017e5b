//! Template builds through the API: places, files, what is told of a build while it goes on and after.

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use tower::ServiceExt;

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
    let last = logs.expect(200).text("/logs/0/message").to_owned();
    assert!(last.starts_with("Build finished, took "), "{last}");
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
        (r#""name":"x","cpuCount":0"#, "validation error: CPU count must be at least 1"),
        (r#""name":"x","memoryMB":32"#, "validation error: Memory must be at least 128 MiB"),
        (r#""name":"x","cpuCount":3"#, "CPU count must be 1 or an even number"),
        (r#""name":"x","cpuCount":64"#, "CPU count must be at most 32"),
        (r#""name":"x","memoryMB":1023"#, "Memory must be divisible by 2"),
        (r#""name":"x","minFreeDiskMb":-1"#, "Free disk must not be negative"),
    ] {
        let refused = bench.call("POST", "/v3/templates", &format!("{{{fields}}}")).await.expect(400);
        assert_eq!(refused.text("/message"), message);
    }
    bench.call("POST", "/v3/templates", r#"{"name":"a b"}"#).await.expect(400);
    bench.call("POST", "/v3/templates", "{}").await.expect(400);
    let status = bench.call("GET", "/templates/non-existing/builds/also-non-existing/status", "").await.expect(400);
    assert_eq!(status.text("/message"), "Invalid build id");
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
    let names = bench.call("PATCH", "/v2/templates/shown", r#"{"public":true,"description":"what it is for"}"#).await.expect(200);
    assert_eq!(names.text("/names/0"), "firkin/shown");
    assert_eq!(bench.call("GET", "/templates/shown", "").await.expect(200).text("/description"), "what it is for");
    assert_eq!(bench.call("GET", "/templates/aliases/shown", "").await.expect(200).body["public"], true);
    bench.call("PATCH", "/templates/shown", r#"{"public":false}"#).await.expect(200);
    assert_eq!(bench.call("GET", "/templates/shown", "").await.expect(200).body["public"], false);
    bench.call("PATCH", "/v2/templates/none", r#"{"public":true}"#).await.expect(404);
    bench.stop().await;
}

/// The templates of this name in the list.
async fn listed(bench: &Bench, name: &str) -> Vec<serde_json::Value> {
    let list = bench.call("GET", "/templates", "").await.expect(200);
    let is_it = |template: &&serde_json::Value| template["aliases"][0] == name;
    list.body.as_array().unwrap().iter().filter(is_it).cloned().collect()
}

#[tokio::test]
async fn a_template_has_one_id_and_many_tags() {
    let bench = Bench::start().await;
    let place = async |name: &str, memory: u32| {
        let body = format!(r#"{{"name":"{name}","cpuCount":1,"memoryMB":{memory}}}"#);
        let answer = bench.call("POST", "/v3/templates", &body).await.expect(202);
        let place = (answer.text("/templateID").to_owned(), answer.text("/buildID").to_owned());
        assert_eq!(build(&bench, &place, r#"{"fromImage":"e2bdev/base"}"#).await.text("/status"), "ready");
        place
    };
    // First under a tag, then as the default.
    let (id, prod) = place("app:prod", 256).await;
    let refused = bench.call("POST", "/v2/sandboxes", &format!(r#"{{"templateID":"{id}"}}"#)).await.expect(404);
    let message = format!("tag 'default' does not exist for template '{id}'; it has `prod`");
    assert_eq!(refused.text("/message"), message);
    let (same, default) = place("app", 512).await;
    assert_eq!(same, id);
    let list = listed(&bench, "app").await;
    assert_eq!(list.len(), 1, "{list:?}");
    assert_eq!((&list[0]["templateID"], &list[0]["buildID"]), (&id.as_str().into(), &default.as_str().into()));
    assert_eq!(list[0]["names"], serde_json::json!(["firkin/app"]));
    assert_eq!((&list[0]["buildCount"], &list[0]["tags"]), (&2.into(), &serde_json::json!(["default", "prod"])));

    // Every form leads to the build that it names, in the same template.
    for (reference, memory) in [
        ("app".to_owned(), 512),
        (id.clone(), 512),
        ("firkin/app:default".to_owned(), 512),
        ("App:Prod".to_owned(), 256),
        (format!("{id}:prod"), 256),
        (format!("firkin/{id}:prod"), 256),
    ] {
        let created = bench.call("POST", "/v2/sandboxes", &format!(r#"{{"templateID":"{reference}"}}"#)).await.expect(201);
        assert_eq!((created.text("/templateID"), created.text("/alias")), (id.as_str(), "app"), "{reference}");
        let sandbox = format!("/sandboxes/{}", created.text("/sandboxID"));
        assert_eq!(bench.call("GET", &sandbox, "").await.expect(200).body["memoryMB"], memory, "{reference}");
        let shown = bench.call("GET", &format!("/templates/{}", reference.replace('/', "%2F")), "").await.expect(200);
        assert_eq!((shown.text("/templateID"), &shown.body["memoryMB"]), (id.as_str(), &memory.into()), "{reference}");
        let alias = bench.call("GET", &format!("/templates/aliases/{}", reference.replace('/', "%2F")), "").await.expect(200);
        assert_eq!(alias.text("/templateID"), id, "{reference}");
        bench.call("DELETE", &sandbox, "").await.expect(204);
    }
    let missing = bench.call("GET", "/templates/aliases/app:none", "").await.expect(404);
    assert_eq!(missing.text("/message"), "tag 'none' does not exist for template 'app'");

    // Tags by id, from a tag.
    let body = format!(r#"{{"target":"{id}:prod","tags":["stable"]}}"#);
    assert_eq!(bench.call("POST", "/templates/tags", &body).await.expect(201).text("/buildID"), prod);
    let tags = bench.call("GET", &format!("/templates/{id}/tags"), "").await.expect(200);
    let tags: Vec<_> = tags.body.as_array().unwrap().iter().map(|tag| (tag["tag"].clone(), tag["buildID"].clone())).collect();
    let expected = [("default", &default), ("prod", &prod), ("stable", &prod)];
    assert_eq!(tags, expected.map(|(tag, build)| (tag.into(), build.as_str().into())));
    bench.call("DELETE", "/templates/tags", &format!(r#"{{"name":"{id}","tags":["prod"]}}"#)).await.expect(204);
    bench.call("DELETE", "/templates/tags", r#"{"name":"app:stable","tags":["stable"]}"#).await.expect(400);
    let builds = bench.call("GET", &format!("/templates/{id}"), "").await.expect(200);
    assert_eq!((builds.text("/builds/0/buildID"), builds.text("/builds/1/buildID")), (default.as_str(), prod.as_str()));

    // All of it goes at once, unless somebody needs it.
    let body = r#"{"templateID":"app:stable"}"#;
    let sandbox = bench.call("POST", "/v2/sandboxes", body).await.expect(201).text("/sandboxID").to_owned();
    let held = bench.call("DELETE", &format!("/templates/{id}"), "").await.expect(409);
    assert!(held.text("/message").contains(&sandbox), "{held:?}");
    bench.call("DELETE", &format!("/sandboxes/{sandbox}"), "").await.expect(204);
    bench.call("DELETE", &format!("/templates/{id}"), "").await.expect(204);
    assert!(listed(&bench, "app").await.is_empty());
    for reference in [id.as_str(), "app", "app:stable"] {
        bench.call("GET", &format!("/templates/{reference}"), "").await.expect(404);
    }
    bench.stop().await;
}

#[tokio::test]
async fn a_template_of_which_nothing_was_built_is_listed_changed_and_deleted() {
    let bench = Bench::start().await;
    let (id, first) = request(&bench, "unbuilt:v1").await;
    let (same, second) = request(&bench, "unbuilt").await;
    assert_eq!(same, id);
    let list = listed(&bench, "unbuilt").await;
    assert_eq!(list.len(), 1, "{list:?}");
    assert_eq!((&list[0]["templateID"], &list[0]["buildStatus"]), (&id.as_str().into(), &"waiting".into()));
    bench.call("PATCH", "/v2/templates/unbuilt", r#"{"public":true,"description":"soon"}"#).await.expect(200);
    let shown = bench.call("GET", &format!("/templates/{id}"), "").await.expect(200);
    assert_eq!((&shown.body["public"], shown.text("/description")), (&true.into(), "soon"));
    assert_eq!((shown.text("/builds/0/buildID"), shown.text("/builds/1/buildID")), (second.as_str(), first.as_str()));
    assert_eq!(bench.call("GET", "/templates/aliases/unbuilt", "").await.expect(200).body["public"], true);
    let refused = bench.call("POST", "/v2/sandboxes", r#"{"templateID":"unbuilt"}"#).await.expect(404);
    assert_eq!(refused.text("/message"), "tag 'default' does not exist for template 'unbuilt'; no build of it has finished");
    // What was said of it holds for what is built.
    let place = (id.clone(), second);
    assert_eq!(build(&bench, &place, r#"{"fromImage":"e2bdev/base"}"#).await.text("/status"), "ready");
    let shown = bench.call("GET", "/templates/unbuilt", "").await.expect(200);
    assert_eq!((&shown.body["public"], shown.text("/description"), shown.text("/buildStatus")), (&true.into(), "soon", "ready"));
    bench.call("DELETE", "/templates/unbuilt", "").await.expect(204);
    let (other, _) = request(&bench, "other").await;
    bench.call("DELETE", &format!("/templates/{other}"), "").await.expect(204);
    bench.call("DELETE", "/templates/other", "").await.expect(404);
    bench.stop().await;
}

#[tokio::test]
async fn clients_that_push_images_are_told_what_to_do_instead() {
    let bench = Bench::start().await;
    let old = r#"{"alias":"old","dockerfile":"FROM debian","startCmd":"serve","cpuCount":2,"memoryMB":512}"#;
    for path in ["/templates", "/v2/templates", "/templates/base"] {
        let refused = bench.call("POST", path, old).await.expect(400);
        assert!(refused.text("/message").contains("`e2b template create NAME`"), "{path}: {refused:?}");
    }
    bench.call("POST", "/templates/none", old).await.expect(404);
    bench.call("POST", "/templates/base/builds/00000000-0000-4000-8000-000000000000", "").await.expect(400);
    assert!(listed(&bench, "old").await.is_empty());
    // Nothing is to be pushed here, and a name is not asked for: the template is known by its id.
    let place = bench.call("POST", "/templates", r#"{"dockerfile":"","cpuCount":1,"memoryMB":512}"#).await.expect(202);
    assert_eq!(place.body["aliases"], serde_json::json!([]));
    let place = (place.text("/templateID").to_owned(), place.text("/buildID").to_owned());
    assert_eq!(build(&bench, &place, r#"{"fromImage":"e2bdev/base"}"#).await.text("/status"), "ready");
    let created = bench.call("POST", "/v2/sandboxes", &format!(r#"{{"templateID":"{}"}}"#, place.0)).await.expect(201);
    assert_eq!((created.text("/templateID"), created.body.get("alias")), (place.0.as_str(), None));
    let body = format!(r#"{{"target":"{}","tags":["v1"]}}"#, place.0);
    assert_eq!(bench.call("POST", "/templates/tags", &body).await.expect(201).text("/buildID"), place.1);
    bench.call("POST", "/v2/sandboxes", &format!(r#"{{"templateID":"{}:v1"}}"#, place.0)).await.expect(201);
    for (fields, message) in [(r#""cpuCount":0"#, "validation error: "), (r#""memoryMB":32"#, "validation error: ")] {
        let refused = bench.call("POST", "/templates", &format!("{{{fields}}}")).await.expect(400);
        assert!(refused.text("/message").starts_with(message), "{refused:?}");
    }
    bench.stop().await;
}

#[tokio::test]
async fn guests_that_run_guests_are_built_where_the_server_allows_it() {
    let bench = Bench::start().await;
    let place = request(&bench, "nested").await;
    let path = format!("/v2/templates/{}/builds/{}", place.0, place.1);
    let body = r#"{"fromTemplate":"base","nestedVirtualization":true}"#;
    let refused = bench.call("POST", &path, body).await.expect(403);
    assert!(refused.text("/message").contains("--allow-nested-virtualization"), "{refused:?}");
    let config = firkin_server::ServerConfig { nested_virtualization: true, ..firkin_server::ServerConfig::default() };
    let asked = Request::post(path)
        .header("host", "127.0.0.1")
        .header("x-api-key", &bench.key)
        .header("content-type", "application/json")
        .body(axum::body::Body::from(body))
        .unwrap();
    let answer = firkin_server::router(bench.runtime.clone(), config).unwrap().oneshot(asked).await.unwrap();
    assert_eq!(answer.status(), 202);
    bench.stop().await;
}

#[tokio::test]
async fn a_template_that_clients_ask_for_by_name_is_missed_with_the_command_that_builds_it() {
    let bench = Bench::start().await;
    for name in ["desktop", "code-interpreter-v1", "mcp-gateway"] {
        let create = format!(r#"{{"templateID":"{name}"}}"#);
        let refused = bench.call("POST", "/v2/sandboxes", &create).await.expect(404);
        let message = format!("template '{name}' not found; build it with `firkin template build {name}`");
        assert_eq!(refused.text("/message"), message);
        let refused = bench.call("GET", &format!("/templates/aliases/{name}"), "").await.expect(404);
        assert_eq!(refused.text("/message"), message);
    }
    let refused = bench.call("POST", "/v2/sandboxes", r#"{"templateID":"mine"}"#).await.expect(404);
    assert_eq!(refused.text("/message"), "template 'mine' not found");
    let foreign = bench.call("GET", "/templates?teamID=00000000-0000-0000-0000-000000000000", "").await.expect(400);
    assert_eq!(foreign.text("/message"), "Team ID param mismatch with the API key");
    bench.call("GET", "/templates?teamID=firkin", "").await.expect(200);
    bench.stop().await;
}

#[tokio::test]
async fn an_argument_before_from_chooses_the_image() {
    let bench = Bench::start().await;
    let steps = r#""steps":[{"type":"USER","args":["user"]},{"type":"ENV","args":["WHAT","base"]}]"#;
    let place = request(&bench, "chosen").await;
    let start = format!("/v2/templates/{}/builds/{}", place.0, place.1);
    let refused = bench.call("POST", &start, &format!(r#"{{"fromImage":"e2bdev/$NONE",{steps}}}"#)).await.expect(400);
    assert!(refused.text("/message").contains("needs a value for `$NONE`"), "{refused:?}");
    // A guest of the fake engine runs no commands: what fails is the first step, on the image that was meant.
    let ended = build(&bench, &place, &format!(r#"{{"fromImage":"e2bdev/${{WHAT}}",{steps}}}"#)).await;
    assert_eq!(ended.text("/reason/step"), "1", "{ended:?}");
    let from = |entry: &serde_json::Value| entry["message"].as_str().unwrap().contains("[base] FROM e2bdev/base [");
    assert!(ended.body["logEntries"].as_array().unwrap().iter().any(from), "{ended:?}");
    bench.stop().await;
}

#[tokio::test]
async fn the_log_says_in_the_contracts_words_what_is_done_and_what_was_known() {
    let bench = Bench::start().await;
    let plan = r#"{"fromImage":"e2bdev/base","steps":[{"type":"ENV","args":["A","1"]}],"startCmd":"","readyCmd":""}"#;
    let mut told = Vec::new();
    for _ in 0..2 {
        let ended = build(&bench, &request(&bench, "worded").await, plan).await;
        assert_eq!(ended.text("/status"), "ready", "{ended:?}");
        let entries = ended.body["logEntries"].as_array().unwrap().iter();
        // Without the digest at the end.
        let text = |message: &str| message.rsplit_once(" [").map_or(message, |(text, _)| text).to_owned();
        let shown = entries.map(|entry| (entry["step"].clone(), text(entry["message"].as_str().unwrap())));
        told.push(shown.collect::<Vec<_>>());
    }
    let [first, second] = &told[..] else { panic!("{told:?}") };
    for (step, line) in [
        ("base", "[base] FROM e2bdev/base"),
        ("1", "[builder 1/1] ENV A 1"),
        ("finalize", "[finalize] Finalizing template build"),
    ] {
        assert!(first.contains(&(step.into(), line.to_owned())), "{line} in {first:?}");
        assert!(second.contains(&(step.into(), format!("CACHED {line}"))), "CACHED {line} in {second:?}");
    }
    assert!(first[0].1.starts_with("Building template "), "{first:?}");
    bench.stop().await;
}

/// Whatever is given a name, or looked up by one, reads it by the same limits.
#[tokio::test]
async fn every_door_reads_names_alike() {
    let bench = Bench::start().await;
    let snapshots = format!("/sandboxes/{}/snapshots", bench.create("").await);
    let name = async |name: &str| bench.call("POST", &snapshots, &format!(r#"{{"name":"{name}"}}"#)).await;
    // Capitals count as small letters, and a tag cannot be in the form of a build's id: as for a build's name, so for a snapshot's.
    assert_eq!(name("FIRKIN/My-State:V1").await.expect(201).text("/snapshotID"), "firkin/my-state:v1");
    name("my-state:3f2b1c4d-0000-4000-8000-000000000000").await.expect(400);
    for (path, found) in [
        ("/snapshots?name=firkin%2FMy-State%3AV1", 1),
        ("/snapshots?name=other%2Fmy-state", 0),
        ("/v2/sandboxes?template=firkin%2FBase", 1),
        ("/v2/sandboxes?template=base%3Av1", 0),
        ("/v2/sandboxes?template=other%2Fbase", 0),
    ] {
        assert_eq!(bench.call("GET", path, "").await.expect(200).body.as_array().unwrap().len(), found, "{path}");
    }
    let missing = bench.call("GET", "/templates/aliases/firkin%2FBase:V2", "").await.expect(404);
    assert_eq!(missing.text("/message"), "tag 'v2' does not exist for template 'base'");

    // What has the longest name there is can be looked up by it, and by no more than that.
    let longest = format!("firkin/{}:{}", "n".repeat(128), "t".repeat(128));
    assert_eq!(name(&longest).await.expect(201).text("/snapshotID"), longest);
    bench.call("GET", &format!("/templates/{}", longest.replace('/', "%2F")), "").await.expect(200);
    name(&format!("{longest}t")).await.expect(400);
    // A team's id may be longer than this one's, so a text that is a little longer is no name, and one that is much longer no text.
    for (longer, status) in [(1, 404), (64, 400)] {
        let path = format!("/templates/{}{}", longest.replace('/', "%2F"), "t".repeat(longer));
        bench.call("GET", &path, "").await.expect(status);
    }
    bench.stop().await;
}
