//! A sandbox's life as the SDKs drive it.

use jiff::Timestamp;

use crate::bench::{Answer, Bench};

fn lifetime_seconds(answer: &Answer) -> i128 {
    let at = |pointer| answer.text(pointer).parse::<Timestamp>().unwrap();
    let life = at("/endAt").duration_since(at("/startedAt"));
    (life.as_millis() + 500) / 1000
}

#[tokio::test]
async fn a_sandbox_is_created_seen_and_killed() {
    let bench = Bench::start().await;
    let body = r#"{"templateID":"base","timeout":60,"metadata":{"a":"b"},"envVars":{"X":"1"},"future":true}"#;
    let created = bench.call("POST", "/v2/sandboxes", body).await.expect(201);
    let id = created.text("/sandboxID");
    assert!(id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()), "{id}");
    assert_eq!((created.text("/envdVersion"), created.text("/alias")), ("0.6.13", "base"));
    assert!(!created.text("/clientID").is_empty() && !created.text("/envdAccessToken").is_empty());
    assert!(created.body["domain"].is_null() && created.body.get("domain").is_some());
    let detail = bench.call("GET", &format!("/sandboxes/{id}"), "").await.expect(200);
    assert_eq!(detail.body["envdAccessToken"], created.body["envdAccessToken"]);
    assert_eq!(
        (detail.text("/state"), detail.text("/metadata/a"), detail.text("/lifecycle/onTimeout")),
        ("running", "b", "kill")
    );
    assert_eq!((&detail.body["lifecycle"]["autoResume"], &detail.body["allowInternetAccess"]), (&false.into(), &true.into()));
    assert_eq!((&detail.body["cpuCount"], &detail.body["memoryMB"]), (&1.into(), &512.into()));
    assert!(detail.body["diskSizeMB"].is_u64());
    assert_eq!(lifetime_seconds(&detail), 60);
    let legacy = format!("/sandboxes/{id}-{}", created.text("/clientID"));
    bench.call("GET", &legacy, "").await.expect(200);
    bench.call("DELETE", &legacy, "").await.expect(204);
    bench.call("DELETE", &format!("/sandboxes/{id}"), "").await.expect(404);
    bench.call("GET", &format!("/sandboxes/{id}"), "").await.expect(404);
    bench.stop().await;
}

#[tokio::test]
async fn the_two_generations_differ_in_their_defaults() {
    let bench = Bench::start().await;
    let table = [
        ("/sandboxes", "", 15, true),
        ("/sandboxes", r#","secure":false"#, 15, false),
        ("/v2/sandboxes", "", 300, true),
        ("/v2/sandboxes", r#","secure":false"#, 300, true),
    ];
    for (path, fields, seconds, token) in table {
        let created = bench.call("POST", path, &format!(r#"{{"templateID":"base"{fields}}}"#)).await.expect(201);
        assert_eq!(created.body.get("envdAccessToken").is_some(), token, "{path} {fields}");
        let detail = bench.call("GET", &format!("/sandboxes/{}", created.text("/sandboxID")), "").await.expect(200);
        assert_eq!(lifetime_seconds(&detail), seconds, "{path}");
    }
    bench.stop().await;
}

#[tokio::test]
async fn pause_connect_and_resume_keep_the_sandbox() {
    let bench = Bench::start().await;
    let id = bench.create(r#","metadata":{"a":"b"},"autoPause":true"#).await;
    let token = bench.call("GET", &format!("/sandboxes/{id}"), "").await.text("/envdAccessToken").to_owned();
    let (pause, connect) = (format!("/sandboxes/{id}/pause"), format!("/v2/sandboxes/{id}/connect"));
    assert_eq!(bench.call("POST", &connect, "{}").await.expect(200).text("/sandboxID"), id);
    bench.call("POST", &pause, "").await.expect(204);
    bench.call("POST", &pause, "{}").await.expect(409);
    let paused = bench.call("GET", &format!("/sandboxes/{id}"), "").await.expect(200);
    assert_eq!(
        (paused.text("/state"), paused.text("/pauseMode"), paused.text("/lifecycle/onTimeout")),
        ("paused", "full", "pause")
    );
    assert_eq!(paused.body["envdUnresponsiveAtPause"], false);
    let resumed = bench.call("POST", &connect, "{}").await.expect(201);
    assert_eq!((resumed.text("/sandboxID"), resumed.text("/envdAccessToken")), (id.as_str(), token.as_str()));
    bench.call("POST", &pause, r#"{"requireHealthyGuest":true}"#).await.expect(204);
    bench.call("POST", &format!("/sandboxes/{id}/resume"), "{}").await.expect(201);
    bench.call("POST", &pause, "{}").await.expect(204);
    bench.call("POST", &format!("/sandboxes/{id}/connect"), r#"{"timeout":60}"#).await.expect(201);
    let detail = bench.call("GET", &format!("/sandboxes/{id}"), "").await.expect(200);
    assert_eq!((detail.text("/state"), detail.text("/metadata/a")), ("running", "b"));
    bench.stop().await;
}

#[tokio::test]
async fn a_sandbox_goes_back_to_its_own_snapshot() {
    let bench = Bench::start().await;
    let (id, other) = (bench.create("").await, bench.create("").await);
    let snapshot = bench.call("POST", &format!("/sandboxes/{id}/snapshots"), "{}").await.expect(201);
    let body = format!(r#"{{"snapshotID":"{}"}}"#, snapshot.text("/snapshotID"));
    let before = bench.call("GET", &format!("/sandboxes/{id}"), "").await.expect(200);
    let back = bench.call("POST", &format!("/sandboxes/{id}/rollback"), &body).await.expect(200);
    assert_eq!((back.text("/sandboxID"), back.text("/envdAccessToken")), (id.as_str(), before.text("/envdAccessToken")));
    let after = bench.call("GET", &format!("/sandboxes/{id}"), "").await.expect(200);
    assert_eq!((after.text("/state"), after.text("/endAt")), ("running", before.text("/endAt")));
    bench.call("POST", &format!("/sandboxes/{other}/rollback"), &body).await.expect(400);
    bench.call("POST", &format!("/sandboxes/{id}/rollback"), r#"{"snapshotID":"none"}"#).await.expect(404);
    bench.call("POST", "/sandboxes/inone/rollback", &body).await.expect(404);
    bench.call("POST", &format!("/sandboxes/{id}/rollback"), "{}").await.expect(400);
    bench.stop().await;
}

#[tokio::test]
async fn memory_may_be_left_behind() {
    let bench = Bench::start().await;
    let id = bench.create(r#","autoPause":true,"autoPauseMemory":false"#).await;
    let mode = async || {
        let detail = bench.call("GET", &format!("/sandboxes/{id}"), "").await.expect(200);
        detail.body["pauseMode"].as_str().map(str::to_owned)
    };
    assert_eq!(mode().await, None);
    bench.call("POST", &format!("/sandboxes/{id}/pause"), r#"{"memory":false}"#).await.expect(204);
    assert_eq!(mode().await.as_deref(), Some("filesystem"));
    bench.call("POST", &format!("/v2/sandboxes/{id}/connect"), "{}").await.expect(201);
    bench.call("POST", &format!("/sandboxes/{id}/pause"), "{}").await.expect(204);
    assert_eq!(mode().await.as_deref(), Some("full"));
    bench.call("POST", &format!("/v2/sandboxes/{id}/connect"), r#"{"timeout":60,"memory":false}"#).await.expect(201);
    bench.call("POST", &format!("/v2/sandboxes/{id}/connect"), r#"{"memory":false}"#).await.expect(200);
    let snapshot = bench.call("POST", &format!("/sandboxes/{id}/snapshots"), r#"{"name":"n","memory":false}"#).await.expect(201);
    let body = format!(r#"{{"templateID":"{}"}}"#, snapshot.text("/snapshotID"));
    bench.call("POST", "/v2/sandboxes", &body).await.expect(201);
    bench.stop().await;
}

#[tokio::test]
async fn deadlines_move_as_each_route_promises() {
    let bench = Bench::start().await;
    let id = bench.create(r#","timeout":100"#).await;
    let left = async || {
        let detail = bench.call("GET", &format!("/sandboxes/{id}"), "").await.expect(200);
        let end: Timestamp = detail.text("/endAt").parse().unwrap();
        end.duration_since(Timestamp::now()).as_secs()
    };
    bench.call("POST", &format!("/sandboxes/{id}/timeout"), r#"{"timeout":50}"#).await.expect(204);
    assert!((30..=50).contains(&left().await), "set moves inwards");
    bench.call("POST", &format!("/sandboxes/{id}/refreshes"), r#"{"duration":10}"#).await.expect(204);
    assert!((30..=50).contains(&left().await), "a refresh does not");
    bench.call("POST", &format!("/sandboxes/{id}/refreshes"), r#"{"duration":200}"#).await.expect(204);
    assert!((180..=200).contains(&left().await), "a refresh moves outwards");
    bench.call("POST", &format!("/sandboxes/{id}/connect"), r#"{"timeout":20}"#).await.expect(200);
    assert!((180..=200).contains(&left().await), "a connect never shortens");
    bench.stop().await;
}

#[tokio::test]
async fn forks_and_snapshots_make_new_sandboxes() {
    let bench = Bench::start().await;
    let id = bench.create("").await;
    let forks = bench.call("POST", &format!("/sandboxes/{id}/fork"), r#"{"count":2,"timeout":30}"#).await.expect(201);
    let (a, b) = (forks.text("/0/sandbox/sandboxID"), forks.text("/1/sandbox/sandboxID"));
    assert!(a != b && a != id && b != id, "{forks:?}");
    let snapshot = bench.call("POST", &format!("/sandboxes/{id}/snapshots"), r#"{"name":"mine"}"#).await.expect(201);
    // An id has its tag, names have none.
    assert_eq!((snapshot.text("/snapshotID"), snapshot.text("/names/0")), ("firkin/mine:default", "firkin/mine"));
    let snapshot = snapshot.text("/snapshotID").to_owned();
    let unnamed = bench.call("POST", &format!("/sandboxes/{a}/snapshots"), "").await.expect(201);
    let unnamed = unnamed.text("/snapshotID").to_owned();
    for (path, expected) in [
        ("/snapshots".to_owned(), vec![&unnamed, &snapshot]),
        ("/snapshots?name=mine".to_owned(), vec![&snapshot]),
        ("/snapshots?name=other".to_owned(), vec![]),
        (format!("/snapshots?sandboxID={a}"), vec![&unnamed]),
        (format!("/snapshots?name={}", unnamed.strip_suffix(":default").unwrap()), vec![&unnamed]),
        ("/snapshots?name=mine%3Adefault".to_owned(), vec![&snapshot]),
        ("/snapshots?name=mine%3Av1".to_owned(), vec![]),
    ] {
        let listed = bench.call("GET", &path, "").await.expect(200);
        let ids: Vec<_> = listed.body.as_array().unwrap().iter().map(|s| s["snapshotID"].as_str().unwrap()).collect();
        assert_eq!(ids, expected, "{path}");
    }
    let page = bench.call("GET", "/snapshots?limit=1", "").await.expect(200);
    let next = page.headers["x-next-token"].to_str().unwrap();
    let page = bench.call("GET", &format!("/snapshots?limit=1&nextToken={next}"), "").await.expect(200);
    assert_eq!((page.text("/0/snapshotID"), page.headers.get("x-next-token")), (snapshot.as_str(), None));
    bench.call("DELETE", &format!("/sandboxes/{id}"), "").await.expect(204);
    let mut children = Vec::new();
    for reference in [&snapshot, &snapshot, &unnamed] {
        let child = bench.call("POST", "/v2/sandboxes", &format!(r#"{{"templateID":"{reference}"}}"#)).await.expect(201);
        children.push(child.text("/sandboxID").to_owned());
    }
    let encoded: String = form_urlencoded::byte_serialize(snapshot.as_bytes()).collect();
    for child in &children[..2] {
        let refused = bench.call("DELETE", &format!("/templates/{encoded}"), "").await.expect(409);
        assert!(refused.text("/message").contains(child), "{refused:?}");
        bench.call("DELETE", &format!("/sandboxes/{child}"), "").await.expect(204);
    }
    bench.call("DELETE", &format!("/templates/{encoded}"), "").await.expect(204);
    bench.call("DELETE", &format!("/templates/{encoded}"), "").await.expect(404);
    bench.stop().await;
}

#[tokio::test]
async fn templates_are_shown_and_protected() {
    let bench = Bench::start().await;
    let listed = bench.call("GET", "/templates", "").await.expect(200);
    let template = &listed.body[0];
    for key in [
        "templateID",
        "buildID",
        "cpuCount",
        "memoryMB",
        "diskSizeMB",
        "public",
        "aliases",
        "names",
        "createdAt",
        "updatedAt",
        "createdBy",
        "lastSpawnedAt",
        "spawnCount",
        "buildCount",
        "envdVersion",
        "buildStatus",
    ] {
        assert!(template.get(key).is_some(), "`{key}` is missing in {template}");
    }
    let id = listed.text("/0/templateID");
    assert_eq!(bench.call("GET", "/templates/aliases/base", "").await.expect(200).text("/templateID"), id);
    let detail = bench.call("GET", &format!("/templates/{id}"), "").await.expect(200);
    assert_eq!(detail.text("/builds/0/status"), "ready");
    assert_eq!(bench.call("GET", "/v2/templates?limit=5", "").await.expect(200).text("/0/templateID"), id);
    let sandbox = bench.create("").await;
    // Nobody waits for the count, and it comes.
    let counted = async { while bench.call("GET", "/templates", "").await.expect(200).body[0]["spawnCount"] != 1 {} };
    tokio::time::timeout(crate::bench::DEADLINE, counted).await.expect("it is counted");
    let refused = bench.call("DELETE", &format!("/templates/{id}"), "").await.expect(409);
    assert!(refused.text("/message").contains(&sandbox));
    bench.call("DELETE", &format!("/sandboxes/{sandbox}"), "").await.expect(204);
    bench.call("DELETE", &format!("/templates/{id}"), "").await.expect(204);
    bench.call("POST", "/v2/sandboxes", r#"{"templateID":"base"}"#).await.expect(404);
    bench.stop().await;
}

#[tokio::test]
async fn what_a_team_did_over_time_can_be_asked() {
    let bench = Bench::start().await;
    let most =
        async |metric: &str| bench.call("GET", &format!("/teams/firkin/metrics/max?metric={metric}"), "").await.expect(200);
    assert_eq!(most("sandbox_start_rate").await.body["value"], 0.0);
    for _ in 0..2 {
        bench.create("").await;
    }
    let concurrent = most("concurrent_sandboxes").await;
    assert_eq!((&concurrent.body["value"], concurrent.text("/metric")), (&2.0.into(), "concurrent_sandboxes"));
    assert!(concurrent.body["timestampUnix"].as_i64().unwrap() > 0 && !concurrent.text("/timestamp").is_empty());
    assert!(most("sandbox_start_rate").await.body["value"].as_f64().unwrap() > 0.0);
    let points = bench.call("GET", "/teams/firkin/metrics", "").await.expect(200);
    let sum = |key: &str| points.body.as_array().unwrap().iter().map(|point| point[key].as_f64().unwrap()).sum::<f64>();
    assert!(sum("concurrentSandboxes") >= 2.0 && (sum("sandboxStartRate") * 60.0 - 2.0).abs() < 1e-9, "{points:?}");
    let before = bench.call("GET", "/teams/firkin/metrics?start=0&end=1", "").await.expect(200);
    assert_eq!(before.body, serde_json::json!([]));
    bench.stop().await;
}

#[tokio::test]
async fn metrics_are_shown_while_a_sandbox_runs() {
    let bench = Bench::start().await;
    let id = bench.create("").await;
    let metrics = bench.call("GET", &format!("/sandboxes/{id}/metrics"), "").await.expect(200);
    for key in
        ["timestamp", "timestampUnix", "cpuCount", "cpuUsedPct", "memUsed", "memTotal", "memCache", "diskUsed", "diskTotal"]
    {
        assert!(metrics.body[0].get(key).is_some(), "`{key}` is missing in {metrics:?}");
    }
    let future = bench.call("GET", &format!("/sandboxes/{id}/metrics?start=99999999999"), "").await.expect(200);
    assert_eq!(future.body, serde_json::json!([]));
    let many = bench.call("GET", &format!("/sandboxes/metrics?sandbox_ids={id},inone"), "").await.expect(200);
    assert_eq!(many.body["sandboxes"].as_object().unwrap().keys().collect::<Vec<_>>(), [&id]);
    bench.call("POST", &format!("/sandboxes/{id}/pause"), "").await.expect(204);
    let paused = bench.call("GET", &format!("/sandboxes/{id}/metrics"), "").await.expect(200);
    assert_eq!(paused.body, metrics.body, "a paused sandbox has the samples of before");
    bench.stop().await;
}
