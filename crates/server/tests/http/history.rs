//! What a sandbox's past is to those who ask: logs, metrics, and tags of templates.

use crate::bench::Bench;

#[tokio::test]
async fn logs_tell_the_life_of_a_sandbox_even_after_its_end() {
    let bench = Bench::start().await;
    let id = bench.create("").await;
    let (v1, v2) = (format!("/sandboxes/{id}/logs"), format!("/v2/sandboxes/{id}/logs"));
    bench.call("POST", &format!("/sandboxes/{id}/pause"), "").await.expect(204);
    bench.call("POST", &format!("/v2/sandboxes/{id}/connect"), "{}").await.expect(201);
    bench.call("DELETE", &format!("/sandboxes/{id}"), "").await.expect(204);

    let logs = bench.call("GET", &v1, "").await.expect(200);
    let messages = ["sandbox created", "sandbox paused", "sandbox resumed", "sandbox ended"];
    for (at, message) in messages.iter().enumerate() {
        // As the CLI reads it.
        let line: serde_json::Value = serde_json::from_str(logs.text(&format!("/logs/{at}/line"))).unwrap();
        assert_eq!((&line["message"], &line["level"], &line["logger"]), (&(*message).into(), &"info".into(), &"sandbox".into()));
        assert_eq!(logs.text(&format!("/logEntries/{at}/message")), *message);
    }
    let shown = async |query: &str| {
        let answer = bench.call("GET", &format!("{v2}{query}"), "").await.expect(200);
        let lines = answer.body["logs"].as_array().unwrap().clone();
        lines.iter().map(|line| line["message"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(shown("").await, messages);
    assert_eq!(shown("?direction=backward&limit=1").await, ["sandbox ended"]);
    assert_eq!(shown("?search=paused").await, ["sandbox paused"]);
    assert_eq!(shown("?level=warn").await, [""; 0]);
    assert_eq!(shown("?cursor=99999999999999").await, [""; 0]);
    for bad in ["?limit=0", "?direction=up", "?level=loud", "?cursor=x"] {
        bench.call("GET", &format!("{v2}{bad}"), "").await.expect(400);
    }
    bench.call("GET", "/sandboxes/inone/logs", "").await.expect(404);
    bench.stop().await;
}

#[tokio::test]
async fn tags_name_a_template_until_they_are_removed() {
    let bench = Bench::start().await;
    let assign = async |target: &str, tags: &str| {
        bench.call("POST", "/templates/tags", &format!(r#"{{"target":"{target}","tags":[{tags}]}}"#)).await
    };
    let assigned = assign("base", r#""v1","stable""#).await.expect(201);
    assert_eq!(assigned.body["tags"], serde_json::json!(["v1", "stable"]));
    bench.call("POST", "/v2/sandboxes", r#"{"templateID":"base:v1"}"#).await.expect(201);
    let listed = bench.call("GET", "/templates/base/tags", "").await.expect(200);
    let mut tags: Vec<_> = listed.body.as_array().unwrap().iter().map(|tag| tag["tag"].as_str().unwrap()).collect();
    tags.sort_unstable();
    assert_eq!(tags, ["default", "stable", "v1"]);
    assert_eq!(listed.text("/0/buildID"), assigned.text("/buildID"));

    let ask = async |path: &str| bench.call("GET", &format!("/templates/base/tags/{path}"), "").await;
    assert_eq!(ask("count").await.expect(200).body, serde_json::json!({ "total": 3 }));
    let exists = ask("exists?tag=V1").await.expect(200);
    assert_eq!((exists.text("/normalizedTag"), &exists.body["exists"]), ("v1", &true.into()));
    assert_eq!(ask("exists?tag=v2").await.expect(200).body["exists"], false);
    ask("exists").await.expect(400);
    let groups = ask("groups?tagsLimit=2&sort=name_asc").await.expect(200);
    assert_eq!((groups.text("/tags/0/tag"), groups.text("/tags/1/tag")), ("default", "stable"));
    let rest = ask(&format!("groups?tagsLimit=2&sort=name_asc&tagsCursor={}", groups.text("/nextCursor"))).await.expect(200);
    assert_eq!((rest.text("/tags/0/tag"), rest.text("/tags/0/assignments/0/buildId")), ("v1", assigned.text("/buildID")));
    assert!(rest.body["nextCursor"].is_null());
    assert_eq!(ask("v1/assignments").await.expect(200).text("/data/0/buildId"), assigned.text("/buildID"));
    assert_eq!(bench.call("GET", "/default-templates", "").await.expect(200).text("/0/names/0"), "firkin/base");

    let remove =
        async |tags: &str| bench.call("DELETE", "/templates/tags", &format!(r#"{{"name":"base","tags":[{tags}]}}"#)).await;
    remove(r#""v1""#).await.expect(204);
    bench.call("POST", "/v2/sandboxes", r#"{"templateID":"base:v1"}"#).await.expect(404);
    assert_eq!(remove(r#""stable","v1""#).await.expect(404).text("/message"), "tag 'v1' does not exist for template 'base'");
    bench.call("GET", "/templates/base:stable", "").await.expect(200);
    remove(r#""default""#).await.expect(400);
    for (target, tags) in [("base", ""), ("base", r#"":v1""#), ("base", r#""base:""#), (":v1", r#""v2""#)] {
        assign(target, tags).await.expect(400);
    }
    assign("none", r#""v1""#).await.expect(404);
    bench.stop().await;
}

#[tokio::test]
async fn the_one_team_is_shown_to_who_has_a_key() {
    let bench = Bench::start().await;
    let teams = bench.call("GET", "/teams", "").await.expect(200);
    let key = teams.text("/0/apiKey").to_owned();
    let ask = async |authorization: &str| {
        let mut request = bench.request("GET", "/teams", "");
        request.headers_mut().remove("x-api-key");
        request.headers_mut().insert("authorization", authorization.parse().unwrap());
        bench.answer(request).await
    };
    let by_bearer = ask(&format!("Bearer {key}")).await.expect(200);
    assert_eq!(by_bearer.body, teams.body);
    assert_eq!((teams.text("/0/name"), &teams.body[0]["isDefault"]), ("firkin", &true.into()));
    ask("Bearer wrong").await.expect(401);
    ask("Basic x").await.expect(401);
    bench.stop().await;
}
