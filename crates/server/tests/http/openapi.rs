//! `GET /openapi.json`: what a server answers is what it says there that it answers, of each of its own routes.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::{
    bench::{Answer, Bench},
    moving,
};

/// These answer text, which has no form to be held against.
const TEXTS: [&str; 3] = ["get /admin/export", "get /events", "get /metrics"];

/// The description, and which of it was seen to be so.
struct Described {
    document: Value,
    seen: BTreeSet<String>,
}

impl Described {
    /// Holds an answer against what is said of its route.
    fn check(&mut self, method: &str, path: &str, answer: &Answer) {
        let operation = &self.document["paths"][path][method];
        let response = &operation["responses"][answer.status.to_string()];
        assert!(response.is_object(), "{method} {path} does not say {answer:?}");
        let schema = &response["content"]["application/json"]["schema"];
        if schema.is_null() {
            assert_eq!(answer.body, "", "{method} {path}");
        } else {
            self.fits(&answer.body, schema, &format!("{method} {path}"));
        }
        if answer.status < 300 {
            self.seen.insert(format!("{method} {path}"));
        }
    }

    /// Everything in `value` is described, and everything that must be there is. `at` says where that is.
    fn fits(&self, value: &Value, schema: &Value, at: &str) {
        if let Some(reference) = schema["$ref"].as_str() {
            return self.fits(value, self.document.pointer(&reference[1..]).unwrap_or(&Value::Null), at);
        }
        if let Some(forms) = schema["anyOf"].as_array() {
            let form = usize::from(value.get("error").is_some());
            return self.fits(value, &forms[form], at);
        }
        let kind = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(number) if number.is_f64() || schema["type"][0] == "number" => "number",
            Value::Number(_) => "integer",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        let kinds = &schema["type"];
        assert!(
            kinds == kind || kinds.as_array().is_some_and(|kinds| kinds.contains(&kind.into())),
            "{at}: {value}, not {schema}"
        );
        if let (Some(words), false) = (schema["enum"].as_array(), value.is_null()) {
            assert!(words.contains(value), "{at}: {value} is none of {words:?}");
        }
        if let Value::Array(values) = value {
            for (number, value) in values.iter().enumerate() {
                self.fits(value, &schema["items"], &format!("{at}/{number}"));
            }
        }
        let Value::Object(fields) = value else { return };
        for (name, value) in fields {
            let of = [&schema["properties"][name], &schema["additionalProperties"]].into_iter().find(|schema| schema.is_object());
            let is_open = schema.get("properties").is_none();
            match of {
                Some(of) => self.fits(value, of, &format!("{at}/{name}")),
                None => assert!(is_open, "{at}: `{name}` is not described"),
            }
        }
        for name in schema["required"].as_array().into_iter().flatten() {
            assert!(fields.contains_key(name.as_str().unwrap()), "{at}: {name} is missing in {value}");
        }
    }
}

#[tokio::test]
async fn answers_are_what_the_description_says() {
    let bench = Bench::start().await;
    let mut request = bench.request("GET", "/openapi.json", "");
    request.headers_mut().remove("x-api-key");
    let answer = bench.answer(request).await.expect(200);
    let mut described = Described { document: answer.body.clone(), seen: BTreeSet::new() };
    described.check("get", "/openapi.json", &answer);

    for (method, path, body, status) in [
        ("post", "/admin/teams", json!({"teamID": "b", "name": "B", "quota": {"running": 3}}), 201),
        ("post", "/admin/teams", json!({"teamID": "b"}), 409),
        ("post", "/admin/teams", json!({"teamID": "B B"}), 400),
        ("get", "/admin/teams", Value::Null, 200),
        ("get", "/admin/keys", Value::Null, 200),
        ("get", "/admin/log-level", Value::Null, 200),
        ("put", "/admin/log-level", json!({"filter": "info"}), 200),
    ] {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let answer = bench.admin(&method.to_uppercase(), path, &body).await.expect(status);
        described.check(method, path, &answer);
    }
    let put = bench.admin("PUT", "/admin/teams/b/quota", &json!({"cpus": 8}).to_string()).await.expect(200);
    described.check("put", "/admin/teams/{id}/quota", &put);
    let by_place = bench.admin("PUT", "/admin/teams/b/quota", "[1, 2]").await.expect(400);
    described.check("put", "/admin/teams/{id}/quota", &by_place);
    let teams = bench.admin("GET", "/admin/teams", "").await.body;
    let quota_of_b = teams.as_array().unwrap().iter().find(|team| team["teamID"] == "b").map(|team| &team["quota"]);
    assert_eq!(quota_of_b, Some(&json!({ "cpus": 8 })), "a list is no quota");
    let key = bench.admin("POST", "/admin/teams/b/keys", "").await.expect(201);
    described.check("post", "/admin/teams/{id}/keys", &key);
    let path = format!("/admin/keys/{}", key.text("/id"));
    let expires = json!({"expiresAt": "2099-01-01T00:00:00Z"}).to_string();
    described.check("patch", "/admin/keys/{id}", &bench.admin("PATCH", &path, &expires).await.expect(200));
    described.check("delete", "/admin/keys/{id}", &bench.admin("DELETE", &path, "").await.expect(204));

    for path in ["/.well-known/jwks.json", "/.well-known/openid-configuration", "/capacity", "/pool", "/host"] {
        described.check("get", path, &bench.call("GET", path, "").await.expect(200));
    }
    described.check("get", "/health", &bench.call("GET", "/health?details", "").await.expect(200));
    let nowhere = bench.call("POST", &format!("/admin/sandboxes/{}/move", moving::paused(&bench).await), "{}").await.expect(409);
    described.check("post", "/admin/sandboxes/{id}/move", &nowhere);
    described.check("post", "/encryption/rotate", &bench.call("POST", "/encryption/rotate", "").await.expect(409));
    of_a_sandbox(&bench, &mut described).await;
    of_a_webhook(&bench, &mut described).await;
    let archive = moving::exported(&bench, &format!("sandbox={}", moving::paused(&bench).await)).await;
    described.check("post", "/admin/import", &moving::import(&bench, "kind=template", archive.clone()).await.expect(400));
    described.check("post", "/admin/import", &moving::import(&bench, "", archive).await.expect(200));

    let paths = described.document["paths"].as_object().unwrap();
    let said: BTreeSet<String> = paths
        .iter()
        .flat_map(|(path, of)| of.as_object().unwrap().keys().map(move |method| format!("{method} {path}")))
        .collect();
    // Nothing is encrypted on this host, and it is in no cluster.
    let unseen: Vec<_> = said.difference(&described.seen).filter(|route| !TEXTS.contains(&route.as_str())).collect();
    assert_eq!(
        unseen,
        [
            "get /admin/signer",
            "post /admin/copies",
            "post /admin/sandboxes/{id}/move",
            "post /admin/take",
            "post /encryption/rotate"
        ]
    );
    bench.stop().await;
}

async fn of_a_sandbox(bench: &Bench, described: &mut Described) {
    let id = bench.create("").await;
    let snapshot = bench.call("POST", &format!("/sandboxes/{id}/snapshots"), r#"{"name":"was"}"#).await.expect(201);
    let lineage = bench.call("GET", "/lineage", "").await.expect(200);
    assert!(lineage.body.to_string().contains(&id));
    described.check("get", "/lineage", &lineage);
    let audit = bench.call("GET", &format!("/sandboxes/{id}/network/audit"), "").await.expect(200);
    described.check("get", "/sandboxes/{id}/network/audit", &audit);
    let back = json!({ "snapshotID": snapshot.text("/snapshotID") }).to_string();
    let path = "/sandboxes/{id}/rollback";
    described.check("post", path, &bench.call("POST", &format!("/sandboxes/{id}/rollback"), &back).await.expect(200));
    described.check("post", path, &bench.call("POST", &format!("/sandboxes/{id}/rollback"), "[]").await.expect(400));
    described.check("post", path, &bench.call("POST", "/sandboxes/inone/rollback", &back).await.expect(404));
}

async fn of_a_webhook(bench: &Bench, described: &mut Described) {
    let asked = json!({
        "name": "hook", "url": "http://127.0.0.1:1/", "enabled": true, "signatureSecret": "hush",
        "events": ["sandbox.lifecycle.created"],
    });
    let hook = bench.call("POST", "/events/webhooks", &asked.to_string()).await.expect(201);
    bench.create("").await;
    let path = format!("/events/webhooks/{}/deliveries", hook.text("/id"));
    described.check("get", "/events/webhooks/{id}/deliveries", &bench.call("GET", &path, "").await.expect(200));
    let retried = bench.call("POST", &format!("{path}/retry"), "").await.expect(200);
    described.check("post", "/events/webhooks/{id}/deliveries/retry", &retried);
}
