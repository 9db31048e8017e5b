//! What a key opens, and what it does not: as far as it goes, its own team's, and until it ends.

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use firkin_runtime::admission::AdmissionConfig;

use crate::bench::{ADMIN, Answer, Bench, DEADLINE, ROOM};

/// The table of all routes, as the server has it.
const ACCESS: &str = include_str!("../../src/access.rs");

/// Method, path and what it asks for, of each row.
pub(crate) fn rows() -> Vec<(&'static str, &'static str, &'static str)> {
    let row = |line: &'static str| {
        let mut parts = line.trim().strip_prefix("(\"")?.strip_suffix("),")?.split("\", ");
        let (method, rest) = (parts.next()?, parts.next()?);
        Some((method, rest.strip_prefix('"')?, parts.next()?))
    };
    ACCESS.lines().filter_map(row).collect()
}

impl Bench {
    async fn with(&self, key: &str, method: &str, path: &str, body: &str) -> Answer {
        let mut request = self.request(method, path, body);
        request.headers_mut().insert("x-api-key", key.parse().unwrap());
        self.answer(request).await
    }

    pub(crate) async fn admin(&self, method: &str, path: &str, body: &str) -> Answer {
        let mut request = self.request(method, path, body);
        request.headers_mut().remove("x-api-key");
        request.headers_mut().insert("x-admin-token", ADMIN.parse().unwrap());
        self.answer(request).await
    }

    /// A key of a team, which is made if it is not there.
    pub(crate) async fn key_of(&self, team: &str, scope: &str) -> String {
        self.admin("POST", "/admin/teams", &json!({ "teamID": team }).to_string()).await;
        let asked = json!({"name": "test", "scope": scope}).to_string();
        let made = self.admin("POST", &format!("/admin/teams/{team}/keys"), &asked).await.expect(201);
        made.text("/key").to_owned()
    }
}

#[tokio::test]
async fn each_route_asks_for_what_its_row_says() {
    let bench = Bench::start().await;
    let (read, sandboxes, full) =
        (bench.key_of("b", "read").await, bench.key_of("b", "sandboxes").await, bench.key_of("b", "full").await);
    let rows = rows();
    assert!(rows.len() > 70, "{}", rows.len());
    for (method, path, needs) in rows {
        let path = path.replace("{id}", "inone").replace("{hash}", "x").replace("{build}", "x").replace("{alias}", "none");
        let path = path.replace("{tag}", "x");
        let mut opened = Vec::new();
        for key in [None, Some(&read), Some(&sandboxes), Some(&full), Some(&bench.key)] {
            let mut request = bench.request(method, &path, "{}");
            request.headers_mut().remove("x-api-key");
            if let Some(key) = key {
                request.headers_mut().insert("x-api-key", key.parse().unwrap());
            }
            // An answer that has no end need not be read.
            let status =
                if path == "/events" { bench.send(request).await.status().as_u16() } else { bench.answer(request).await.status };
            opened.push(!matches!(status, 401 | 403));
        }
        let expected = match needs {
            "Nothing" if path == "/files" => [false; 5],
            "Nothing" => [true; 5],
            // Which is another team's, whoever asks.
            "READ" if path == "/teams/inone/metrics" => [false; 5],
            "READ" => [false, true, true, true, true],
            "SANDBOXES" => [false, false, true, true, true],
            "FULL" => [false, false, false, true, true],
            "Watcher" => [false, true, true, true, true],
            "Operator" | "Host" => [false, false, false, false, true],
            // This server is no node of a cluster, and has no such page.
            "LOOKS" if path.starts_with("/ui/nodes") => [true; 5],
            // A key is no session, whatever it opens.
            "Admin" | "LOOKS" | "ACTS" | "BUILDS" => [false; 5],
            "Own" if path == "/teams" => [false, true, true, true, true],
            "Own" if method == "PUT" && path.starts_with("/templates") => [false, false, false, true, true],
            "Own" => [false; 5],
            other => panic!("{other}"),
        };
        assert_eq!(opened, expected, "{method} {path} {needs}");
        if needs == "Admin" {
            assert!(!matches!(bench.admin(method, &path, "{}").await.status, 401 | 403), "{method} {path}");
        }
    }
    bench.stop().await;
}

#[tokio::test]
async fn another_teams_things_are_answered_as_if_they_were_not_there() {
    let bench = Bench::start().await;
    let other = bench.key_of("b", "full").await;
    let id = bench.create(r#","metadata":{"m":"1"}"#).await;
    let volume = bench.call("POST", "/volumes", r#"{"name":"data"}"#).await.expect(201).text("/volumeID").to_owned();
    let secret = bench.call("POST", "/secrets", r#"{"name":"key","value":"v"}"#).await.expect(201).text("/secretID").to_owned();
    let snapshot = bench.call("POST", &format!("/sandboxes/{id}/snapshots"), r#"{"name":"mine:v1"}"#).await.expect(201);
    assert_eq!(snapshot.text("/snapshotID"), "firkin/mine:v1");
    let of_create = |template: &str| json!({ "templateID": template }).to_string();
    let table = [
        ("GET", format!("/sandboxes/{id}"), String::new(), id.as_str(), "inone"),
        ("DELETE", format!("/sandboxes/{id}"), String::new(), &id, "inone"),
        ("GET", format!("/sandboxes/{id}/metrics"), String::new(), &id, "inone"),
        ("GET", format!("/v2/sandboxes/{id}/logs"), String::new(), &id, "inone"),
        ("POST", format!("/v2/sandboxes/{id}/connect"), String::new(), &id, "inone"),
        ("POST", format!("/sandboxes/{id}/pause"), String::new(), &id, "inone"),
        ("POST", format!("/sandboxes/{id}/fork"), String::new(), &id, "inone"),
        ("POST", format!("/sandboxes/{id}/rollback"), r#"{"snapshotID":"firkin/mine:v1"}"#.into(), &id, "inone"),
        ("POST", format!("/sandboxes/{id}/snapshots"), String::new(), &id, "inone"),
        ("POST", format!("/sandboxes/{id}/timeout"), r#"{"timeout":9}"#.into(), &id, "inone"),
        ("PUT", format!("/sandboxes/{id}/network"), String::new(), &id, "inone"),
        ("GET", format!("/volumes/{volume}"), String::new(), &volume, "none"),
        ("DELETE", format!("/volumes/{volume}"), String::new(), &volume, "none"),
        ("GET", format!("/secrets/{secret}"), String::new(), &secret, "none"),
        ("DELETE", "/secrets/key".into(), String::new(), "key", "none"),
        ("GET", "/templates/mine:v1".into(), String::new(), "mine:v1", "none:v1"),
        ("GET", "/templates/aliases/firkin%2Fmine:v1".into(), String::new(), "firkin/mine:v1", "firkin/none:v1"),
        ("DELETE", "/templates/firkin%2Fmine:v1".into(), String::new(), "firkin/mine:v1", "firkin/none:v1"),
        ("POST", "/v2/sandboxes".into(), of_create("firkin/mine:v1"), "firkin/mine:v1", "firkin/none:v1"),
    ];
    for (method, path, body, called, none) in table {
        let swap = |text: &str| text.replace(&called.replace('/', "%2F"), &none.replace('/', "%2F")).replace(called, none);
        let told = bench.with(&other, method, &path, &body).await.expect(404);
        let nothing = bench.with(&other, method, &swap(&path), &swap(&body)).await.expect(404);
        assert_eq!(swap(&told.body.to_string()), nothing.body.to_string(), "{method} {path}");
    }
    for path in ["/v2/sandboxes", "/sandboxes", "/snapshots", "/templates", "/volumes", "/secrets", "/lineage"] {
        assert_eq!(bench.with(&other, "GET", path, "").await.expect(200).body, json!([]), "{path}");
    }
    let listed = bench.with(&other, "GET", "/v2/sandboxes", "").await;
    assert_eq!(listed.headers["x-total-running"], "0");
    let many = bench.with(&other, "GET", &format!("/sandboxes/metrics?sandbox_ids={id}"), "").await.expect(200);
    assert_eq!(many.body, json!({"sandboxes": {}}));
    bench.with(&other, "GET", "/teams/firkin/metrics", "").await.expect(403);
    bench.with(&other, "GET", "/teams/nobody/metrics", "").await.expect(403);
    assert_eq!(bench.with(&other, "GET", "/teams/b/metrics", "").await.expect(200).body, json!([]));
    assert_eq!(bench.with(&other, "GET", "/teams", "").await.expect(200).text("/0/teamID"), "b");
    // What is the host's can be started from, and an idempotency key is each team's own.
    let create = async |key: &str| {
        let mut request = bench.request("POST", "/v2/sandboxes", r#"{"templateID":"base"}"#);
        request.headers_mut().insert("x-api-key", key.parse().unwrap());
        request.headers_mut().insert("idempotency-key", "once".parse().unwrap());
        bench.answer(request).await.expect(201).text("/sandboxID").to_owned()
    };
    let (own, others) = (create(&bench.key).await, create(&other).await);
    assert!(own != others && create(&other).await == others);
    let defaults = bench.with(&other, "GET", "/default-templates", "").await.expect(200);
    assert_eq!((defaults.text("/0/names/0"), &defaults.body[0]["spawnCount"]), ("firkin/base", &json!(0)));
    bench.stop().await;
}

#[tokio::test]
async fn every_other_way_to_ask_for_them_ends_alike() {
    let bench = Bench::start().await;
    let other = bench.key_of("b", "full").await;
    let id = bench.create("").await;
    let secret = bench.call("POST", "/secrets", r#"{"name":"key","value":"v"}"#).await.expect(201).text("/secretID").to_owned();
    let built = bench.call("POST", "/v3/templates", r#"{"name":"app"}"#).await.expect(202);
    let (template, build) = (built.text("/templateID"), built.text("/buildID"));
    let nobody = "11111111-1111-4111-8111-111111111111";
    let tagged = |name: &str| json!({ "target": name, "tags": ["x"] }).to_string();
    let mut table = vec![
        ("POST", format!("/sandboxes/{id}/resume"), "{}".to_owned(), id.as_str(), "inone"),
        ("POST", format!("/sandboxes/{id}/connect"), r#"{"timeout":9}"#.into(), &id, "inone"),
        ("POST", format!("/sandboxes/{id}/refreshes"), "{}".into(), &id, "inone"),
        ("GET", format!("/sandboxes/{id}/network/audit"), String::new(), &id, "inone"),
        ("GET", format!("/sandboxes/{id}/logs"), String::new(), &id, "inone"),
        ("POST", format!("/secrets/{secret}"), r#"{"value":"w"}"#.into(), &secret, "none"),
        ("POST", "/secrets/key".into(), r#"{"value":"w"}"#.into(), "key", "none"),
        ("GET", format!("/templates/{template}/builds/{build}/status"), String::new(), build, nobody),
        ("GET", format!("/templates/{template}/builds/{build}/logs"), String::new(), build, nobody),
        ("POST", format!("/v2/templates/{template}/builds/{build}"), r#"{"fromTemplate":"base"}"#.into(), build, nobody),
        ("POST", "/templates/tags".into(), tagged("firkin/app:default"), "firkin/app:default", "firkin/none:default"),
        ("POST", "/v3/templates".into(), r#"{"name":"firkin/app"}"#.into(), "firkin/app", "firkin/none"),
    ];
    // By its id, and by the name under which its owner's team has it.
    for (called, none) in [(template, "none"), ("firkin%2Fapp", "firkin%2Fnone")] {
        for path in
            ["", "/tags", "/tags/count", "/tags/exists?tag=default", "/tags/groups", "/tags/default/assignments", "/files/ab"]
        {
            table.push(("GET", format!("/templates/{called}{path}"), String::new(), called, none));
        }
        table.push(("PATCH", format!("/v2/templates/{called}"), r#"{"public":true}"#.into(), called, none));
        table.push(("DELETE", format!("/templates/{called}"), String::new(), called, none));
    }
    for (method, path, body, called, none) in table {
        let swap = |text: &str| text.replace(called, none).replace(&called.replace("%2F", "/"), &none.replace("%2F", "/"));
        let told = bench.with(&other, method, &path, &body).await;
        let nothing = bench.with(&other, method, &swap(&path), &swap(&body)).await;
        assert_eq!((told.status, swap(&told.body.to_string())), (nothing.status, nothing.body.to_string()), "{method} {path}");
        assert!(told.status >= 400, "{method} {path}: {told:?}");
    }
    bench.stop().await;
}

#[tokio::test]
async fn whoever_changes_something_is_written_down_and_no_secret_is() {
    let bench = Bench::start().await;
    let read = bench.key_of("b", "read").await;
    let id = bench.create("").await;
    bench.call("POST", "/secrets", r#"{"name":"key","value":"sk-very-secret"}"#).await.expect(201);
    bench.call("GET", "/secrets", "").await.expect(200);
    // Whoever has nothing to show writes nothing, where no key is asked for either.
    for (method, path) in [("DELETE", "/volumecontent/none/path?path=x"), ("PUT", "/templates/a/files/b"), ("POST", "/files")] {
        assert!(bench.with("e2b_00", method, path, "").await.status >= 400, "{path}");
    }
    bench.call("DELETE", &format!("/sandboxes/{id}"), "").await.expect(204);
    bench.call("DELETE", &format!("/sandboxes/{id}?why=sk-in-a-query"), "").await.expect(404);
    bench.with(&read, "DELETE", "/sandboxes/inone", "").await.expect(403);
    bench.with("e2b_00", "DELETE", "/sandboxes/inone", "").await.expect(401);
    let lines = bench.audited(7).await;
    let shown: Vec<_> = lines
        .iter()
        .map(|line| {
            let text = |name: &str| line[name].as_str().unwrap_or("-").to_owned();
            assert_eq!((text("from").as_str(), line["at"].is_string()), ("127.0.0.1", true), "{line}");
            format!("{} {} {} {}", text("team"), text("action"), line["status"], text("error"))
        })
        .collect();
    assert_eq!(
        shown,
        [
            "- POST /admin/teams 201 -",
            "- POST /admin/teams/{id}/keys 201 -",
            "firkin POST /v2/sandboxes 201 -",
            "firkin POST /secrets 201 -",
            "firkin DELETE /sandboxes/{id} 204 -",
            "firkin DELETE /sandboxes/{id} 404 not_found",
            "b DELETE /sandboxes/{id} 403 forbidden",
        ]
    );
    assert_eq!(
        (lines[2]["made"].as_str(), lines[4]["object"].as_str()),
        (Some(id.as_str()), Some(format!("/sandboxes/{id}").as_str()))
    );
    assert!(lines[6]["key"].as_str().is_some_and(|key| key.starts_with("key_")));
    let all = format!("{lines:?}");
    assert!(!all.contains("sk-") && !all.contains(&read) && !all.contains(&bench.key));
    bench.stop().await;
}

#[tokio::test]
async fn who_hangs_up_is_written_down_and_no_stranger_who_does() {
    let bench = Bench::start_with(AdmissionConfig { queue_deadline: DEADLINE, ..AdmissionConfig::default() }).await;
    for _ in 0..ROOM {
        bench.create("").await;
    }
    // Strangers do not come so far that anybody would wait for them.
    for (key, waits) in [("e2b_00", false), (bench.key.as_str(), true)] {
        let mut stream = TcpStream::connect(bench.address).await.unwrap();
        let (body, mut said) = (r#"{"templateID":"base"}"#, [0; 12]);
        let head =
            format!("POST /v2/sandboxes HTTP/1.1\r\nhost: localhost\r\nx-api-key: {key}\r\ncontent-type: application/json\r\n");
        stream.write_all(format!("{head}content-length: {}\r\n\r\n{body}", body.len()).as_bytes()).await.unwrap();
        if waits {
            while bench.runtime.capacity().waiting == 0 {
                tokio::task::yield_now().await;
            }
        } else {
            stream.read_exact(&mut said).await.unwrap();
            assert_eq!(&said, b"HTTP/1.1 401");
        }
    }
    let lines = bench.audited(ROOM as usize + 1).await;
    let last = &lines[ROOM as usize];
    assert_eq!((last["action"].as_str(), last["error"].as_str()), (Some("POST /v2/sandboxes"), Some("gone")), "{last}");
    assert!(last["status"].is_null() && last["from"].is_string() && last["team"] == "firkin", "{last}");
    bench.stop().await;
}

#[tokio::test]
async fn a_team_that_has_enough_is_told_so_and_when_to_come_again() {
    let bench = Bench::start().await;
    let key = bench.key_of("b", "full").await;
    bench.admin("PUT", "/admin/teams/b/quota", r#"{"running":1,"creates_per_minute":2}"#).await.expect(200);
    bench.admin("PUT", "/admin/teams/b/quota", r#"{"runing":1}"#).await.expect(400);
    let id =
        bench.with(&key, "POST", "/v2/sandboxes", r#"{"templateID":"base"}"#).await.expect(201).text("/sandboxID").to_owned();
    let refused = bench.with(&key, "POST", "/v2/sandboxes", r#"{"templateID":"base"}"#).await.expect(429);
    assert_eq!((refused.text("/error_code"), refused.headers["retry-after"].to_str().unwrap()), ("team_quota_exceeded", "5"));
    assert_eq!(refused.text("/message"), "the team's quota is 1 running sandboxes: 1 in use, 1 asked for");
    bench.with(&key, "DELETE", &format!("/sandboxes/{id}"), "").await.expect(204);
    let id =
        bench.with(&key, "POST", "/v2/sandboxes", r#"{"templateID":"base"}"#).await.expect(201).text("/sandboxID").to_owned();
    bench.with(&key, "DELETE", &format!("/sandboxes/{id}"), "").await.expect(204);
    let refused = bench.with(&key, "POST", "/v2/sandboxes", r#"{"templateID":"base"}"#).await.expect(429);
    let after: u32 = refused.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=60).contains(&after), "{after}");
    bench.call("POST", "/v2/sandboxes", r#"{"templateID":"base"}"#).await.expect(201);
    bench.stop().await;
}

#[tokio::test]
async fn a_key_that_only_reads_is_told_nothing_that_opens_a_sandbox() {
    let bench = Bench::start().await;
    let read = bench.key_of("firkin", "read").await;
    let id = bench.create("").await;
    let path = format!("/sandboxes/{id}");
    assert!(bench.call("GET", &path, "").await.expect(200).body["envdAccessToken"].is_string());
    let shown = bench.with(&read, "GET", &path, "").await.expect(200);
    assert!(shown.body["envdAccessToken"].is_null() && shown.text("/sandboxID") == id);
    bench.stop().await;
}

#[tokio::test]
async fn a_key_that_ends_opens_nothing_on_a_connection_that_is_open() {
    let bench = Bench::start().await;
    bench.admin("POST", "/admin/teams", r#"{"teamID":"b","name":"B & Co","quota":{"running":3}}"#).await.expect(201);
    bench.admin("POST", "/admin/teams", r#"{"teamID":"b"}"#).await.expect(409);
    bench.admin("POST", "/admin/teams", r#"{"teamID":"B/"}"#).await.expect(400);
    bench.admin("POST", "/admin/teams/none/keys", "{}").await.expect(404);
    let made = bench.admin("POST", "/admin/teams/b/keys", r#"{"name":"one"}"#).await.expect(201);
    let key = made.text("/key").to_owned();
    assert!(key.len() == 44 && key.starts_with("e2b_"), "as the SDKs want it");
    let stream = TcpStream::connect(bench.address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut ask = async || {
        let request = Request::get("/v2/sandboxes").header("host", "localhost").header("x-api-key", &key);
        let answer = sender.send_request(request.body(Full::<Bytes>::default()).unwrap()).await.unwrap();
        let status = answer.status().as_u16();
        answer.into_body().collect().await.unwrap();
        status
    };
    assert_eq!(ask().await, 200);
    let path = format!("/admin/keys/{}", made.text("/id"));
    bench.admin("PATCH", &path, r#"{"expiresAt":"2001-01-01T00:00:00Z"}"#).await.expect(200);
    assert_eq!(ask().await, 401);
    bench.admin("PATCH", &path, r#"{"expiresAt":null}"#).await.expect(200);
    assert_eq!(ask().await, 200);
    bench.admin("DELETE", &path, "").await.expect(204);
    assert_eq!(ask().await, 401);
    bench.admin("DELETE", "/admin/keys/none", "").await.expect(404);
    let keys = bench.admin("GET", "/admin/keys?team=b", "").await.expect(200);
    assert!(keys.body[0]["revokedAt"].is_string() && keys.body[0].get("key").is_none() && !keys.body.to_string().contains(&key));
    let teams = bench.admin("GET", "/admin/teams", "").await.expect(200);
    assert_eq!(
        (teams.text("/0/name"), &teams.body[0]["quota"], teams.text("/1/teamID")),
        ("B & Co", &json!({"running": 3}), "firkin")
    );
    bench.stop().await;
}

#[tokio::test]
async fn a_build_counts_for_the_quota_of_its_team_and_is_told_when_to_come_again() {
    let bench = Bench::start().await;
    let key = bench.key_of("b", "full").await;
    let place = async |name: &str| {
        let body = json!({"name": name, "cpuCount": 1, "memoryMB": 512}).to_string();
        let placed = bench.with(&key, "POST", "/v3/templates", &body).await.expect(202);
        format!("/v2/templates/{}/builds/{}", placed.text("/templateID"), placed.text("/buildID"))
    };
    let first = place("first").await;
    let plan = r#"{"fromTemplate":"base","steps":[]}"#;
    for (quota, told) in [
        (r#"{"running":0}"#, "the team's quota is 0 running sandboxes: 0 in use, 1 asked for"),
        (r#"{"memory_mib":511}"#, "the team's quota is 511 MiB of memory: 0 in use, 512 asked for"),
        (r#"{"cpus":0}"#, "the team's quota is 0 cpus: 0 in use, 1 asked for"),
    ] {
        bench.admin("PUT", "/admin/teams/b/quota", quota).await.expect(200);
        let refused = bench.with(&key, "POST", &first, plan).await.expect(429);
        assert_eq!((refused.text("/message"), refused.text("/error_code")), (told, "team_quota_exceeded"));
        assert!(refused.headers.contains_key("retry-after"));
    }
    // A disk is known once its source is: the build fails, and says so.
    bench.admin("PUT", "/admin/teams/b/quota", r#"{"disk_mib":1,"creates_per_minute":1}"#).await.expect(200);
    bench.with(&key, "POST", &first, plan).await.expect(202);
    let status = first.replace("/v2", "") + "/status";
    let ended = loop {
        let status = bench.with(&key, "GET", &status, "").await.expect(200);
        if status.text("/status") != "building" {
            break status;
        }
        tokio::task::yield_now().await;
    };
    assert!(ended.text("/reason/message").contains("MiB of disk"), "{:?}", ended.text("/reason/message"));
    let refused = bench.with(&key, "POST", &place("second").await, plan).await.expect(429);
    assert!(refused.text("/message").contains("creates per minute"), "{}", refused.text("/message"));

    // Who administers teams sees what came of it, and nobody else which teams there are.
    let scraped = async |headers: &[(&'static str, &str)]| {
        let mut request = bench.request("GET", "/metrics", "");
        request.headers_mut().remove("x-api-key");
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        let response = bench.send(request).await;
        assert_eq!(response.status().as_u16(), 200);
        String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
    };
    let all = scraped(&[("x-admin-token", ADMIN)]).await;
    for line in [
        "firkin_team_sandboxes{acceleration=\"none\",team=\"b\",state=\"running\"} 0",
        "firkin_team_held{acceleration=\"none\",team=\"b\",resource=\"memory_mib\"} 0",
        "firkin_team_creates_total{acceleration=\"none\",team=\"b\"} 1",
        "firkin_team_refusals_total{acceleration=\"none\",team=\"b\"} 5",
    ] {
        assert!(all.lines().any(|found| found == line), "{line} in {all}");
    }
    assert!(all.ends_with("# EOF\n") && all.matches("# EOF").count() == 1);
    for headers in [&[][..], &[("x-api-key", bench.key.as_str())], &[("x-admin-token", "firkin_admin_none")]] {
        assert!(!scraped(headers).await.contains("firkin_team_"));
    }
    bench.stop().await;
}
