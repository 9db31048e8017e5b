//! Secrets of a cluster: each node has the same ones, what is on record of them opens for nodes alone and as what it is, and sandboxes that need them
//! are no node's.

use std::{collections::BTreeMap, path::Path};

use firkin_postgres::NodeState;
use firkin_runtime::{
    config::RuntimeConfig,
    owner::OnExit,
    runtime::Runtime,
    secrets::{Secret, SharedError, SharedSecrets as _},
    team::Scope,
};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpListener;

use crate::{
    bench::{self, Answer},
    joint::{Choice, Joint, Node, until},
};

/// What envd answers of a command that has ended well, and that nothing follows: a frame with the end of a process (`exited`), and the last one.
const ENDED: &[u8] = &[0, 0, 0, 0, 6, 0x0a, 4, 0x1a, 2, 0x10, 1, 2, 0, 0, 0, 2, b'{', b'}'];

const RULES: &str = r#","network":{"rules":{"api.test":[{"transform":{"headers":{"x":"${e2b.secrets.key}"}}}]}}"#;

/// An envd for guests that have none: whatever command it is told to run has ended well. Nodes that have it.
async fn with_envd() -> Choice {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let envd = Some(listener.local_addr().unwrap().port());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = service_fn(|request: Request<Incoming>| async move {
                request.into_body().collect().await?;
                let answer = Response::builder().header("content-type", "application/connect+proto");
                Ok::<_, hyper::Error>(answer.body(Full::<&[u8]>::from(ENDED)).unwrap())
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
        }
    });
    Choice { envd, ..Choice::default() }
}

async fn ask(joint: &Joint, node: &Node, method: &str, path: &str, body: &str) -> Answer {
    node.call(&joint.key, (method, path, body)).await
}

async fn create(joint: &Joint, node: &Node) -> Answer {
    ask(joint, node, "POST", "/v2/sandboxes", &format!(r#"{{"templateID":"base","timeout":600{RULES}}}"#)).await
}

/// The value of a secret, as a node puts it into requests.
async fn value(joint: &Joint, node: &Node, name: &str) -> Result<String, SharedError> {
    let found = joint.secrets(node).open(&Scope::Host, name).await?;
    Ok(found.map_or_else(|| "none".to_owned(), |Secret { value, .. }| value.to_string()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_of_one_node_is_everybodys_and_what_needs_it_is_no_nodes() {
    let choice = with_envd().await;
    let Some((joint, a)) = Joint::found(choice).await else { return };
    let b = joint.start("b", choice).await;
    assert!(create(&joint, &b).await.expect(400).text("/message").contains("`key`"));
    let made = ask(&joint, &a, "POST", "/secrets", r#"{"name":"Key","value":"sk-1","metadata":{"of":"a"}}"#).await.expect(201);
    assert_eq!(ask(&joint, &b, "GET", "/secrets/key", "").await.expect(200).body, made.body);
    ask(&joint, &b, "POST", "/secrets", r#"{"name":"KEY","value":"sk"}"#).await.expect(409);
    let path = format!("/secrets/{}", made.text("/secretID"));
    let updated = ask(&joint, &b, "POST", &path, r#"{"value":"sk-2"}"#).await.expect(200);
    assert_eq!((updated.body["currentVersion"].as_u64(), &updated.body["metadata"]), (Some(2), &made.body["metadata"]));
    assert_eq!(ask(&joint, &a, "GET", "/secrets", "").await.expect(200).body, Value::Array(vec![updated.body.clone()]));
    assert_eq!(
        (value(&joint, &a, "key").await.unwrap(), value(&joint, &b, "KEY").await.unwrap()),
        ("sk-2".into(), "sk-2".into())
    );

    // One that needs it is made anywhere, and goes on elsewhere once its node is lost.
    let id = create(&joint, &b).await.expect(201).text("/sandboxID").to_owned();
    assert!(!a.state_dir().join("secrets").exists() && !b.state_dir().join("egress-authority.pem").exists());
    let [home, other] = if joint.runs_on(&a, &id).await { [a, b] } else { [b, a] };
    ask(&joint, &home, "POST", &format!("/sandboxes/{id}/pause"), "").await.expect(204);
    until("a pause is copied", async || home.owes_nothing().await).await;
    // Who verifies a token asks any of them.
    let keys = [home.runtime.workload().public_keys().unwrap(), other.runtime.workload().public_keys().unwrap()];
    assert_eq!(keys[0], keys[1]);
    let lost = home.id.clone();
    home.stop(OnExit::Leave).await;
    joint.set_state(&lost, NodeState::Forgotten, &[&other]).await;
    let gone_on = ask(&joint, &other, "POST", &format!("/v2/sandboxes/{id}/connect"), r#"{"timeout":600}"#).await.expect(201);
    assert_eq!(gone_on.header("x-firkin-node"), joint.name_of(&other));

    ask(&joint, &other, "DELETE", "/secrets/key", "").await.expect(204);
    ask(&joint, &other, "GET", &path, "").await.expect(404);
    assert_eq!(value(&joint, &other, "key").await.unwrap(), "none");
    joint.end([other]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_on_record_of_a_secret_opens_as_what_it_is_or_not_at_all() {
    let choice = with_envd().await;
    let Some((mut joint, a)) = Joint::found(choice).await else { return };
    for name in ["key", "other"] {
        ask(&joint, &a, "POST", "/secrets", &format!(r#"{{"name":"{name}","value":"of {name}"}}"#)).await.expect(201);
    }
    ask(&joint, &a, "POST", "/secrets/key", r#"{"value":"of key 2"}"#).await.expect(200);
    joint.database().sql("joint", "CREATE TABLE was AS SELECT * FROM firkin.secrets").await;
    let clear = "SELECT count(*)::text FROM firkin.secrets WHERE position('of key' IN encode(sealed, 'escape')) > 0";
    assert_eq!(joint.database().answer_of("joint", clear).await.as_deref(), Some("0"));

    // Another's value, an earlier version, another name, a bit: each is told, and whoever begins is refused.
    for change in [
        "UPDATE firkin.secrets SET sealed = (SELECT sealed FROM was WHERE name = 'other') WHERE name = 'key'",
        "UPDATE firkin.secrets SET version = 1, body = replace(body, '\"version\":2', '\"version\":1') WHERE name = 'key'",
        "UPDATE firkin.secrets SET version = 1 WHERE name = 'key'",
        "UPDATE firkin.secrets SET name = 'third' WHERE name = 'key'; UPDATE firkin.secrets SET name = 'key' WHERE name = 'other'",
        "UPDATE firkin.secrets SET team = 'b', name = 'none' WHERE name = 'other'; UPDATE firkin.secrets SET sealed = set_byte(sealed, 20, get_byte(sealed, 20) # 1) WHERE name = 'key'",
        "UPDATE firkin.secrets SET sealed = '' WHERE name = 'key'",
    ] {
        joint.database().sql("joint", change).await;
        let opened = value(&joint, &a, "key").await;
        assert!(matches!(&opened, Err(SharedError::Unreadable(name)) if name == "key"), "{change}: {opened:?}");
        let refused = create(&joint, &a).await.expect(409);
        assert_eq!(refused.body["error_code"], "secret_unreadable", "{change}: {refused:?}");
        let back = "TRUNCATE firkin.secrets; INSERT INTO firkin.secrets SELECT * FROM was";
        joint.database().sql("joint", back).await;
        assert_eq!(value(&joint, &a, "key").await.unwrap(), "of key 2");
    }
    // What helps is said, and does.
    joint.database().sql("joint", "UPDATE firkin.secrets SET sealed = '' WHERE name = 'key'").await;
    assert_eq!(ask(&joint, &a, "GET", "/secrets", "").await.expect(200).body.as_array().map(Vec::len), Some(2));
    ask(&joint, &a, "POST", "/secrets/key", r#"{"value":"again"}"#).await.expect(200);
    assert_eq!(value(&joint, &a, "key").await.unwrap(), "again");
    // Also where what is told of it was changed. The others are there meanwhile.
    joint.database().sql("joint", "UPDATE firkin.secrets SET body = '?' WHERE name = 'key'").await;
    assert_eq!(ask(&joint, &a, "GET", "/secrets", "").await.expect(200).body[0]["name"], "other");
    let renewed = ask(&joint, &a, "POST", "/secrets/key", r#"{"value":"again"}"#).await.expect(200);
    assert_eq!(renewed.body["currentVersion"], 4, "{renewed:?}");
    assert_eq!(value(&joint, &a, "key").await.unwrap(), "again");
    for method in ["GET", "DELETE"] {
        ask(&joint, &a, method, "/secrets/%00", "").await.expect(404);
    }
    ask(&joint, &a, "POST", "/secrets/%00", r#"{"value":"v"}"#).await.expect(404);

    // Another secret of the cluster: all of it is sealed anew, but for what could not be opened.
    joint.database().sql("joint", "UPDATE firkin.secrets SET sealed = 'x' WHERE name = 'other'").await;
    let keys = a.runtime.workload().public_keys().unwrap();
    a.stop(OnExit::Kill).await;
    let swap = "UPDATE firkin.shared_keys k SET sealed = o.sealed FROM firkin.shared_keys o WHERE k.name <> o.name";
    joint.database().sql("joint", swap).await;
    let a = joint.start("a", choice).await;
    assert!(a.runtime.workload().public_keys().is_err(), "no key opens in the place of another");
    a.stop(OnExit::Kill).await;
    joint.database().sql("joint", swap).await;
    assert_eq!(joint.rotate().await, ["secret `other` of team `firkin`"]);
    let a = joint.start("a", choice).await;
    assert_eq!(value(&joint, &a, "key").await.unwrap(), "again");
    assert!(matches!(value(&joint, &a, "other").await, Err(SharedError::Unreadable(_))));
    assert_eq!(a.runtime.workload().public_keys().unwrap(), keys, "tokens are signed by the same key");
    joint.end([a]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_needs_a_secret_does_not_begin_without_the_database() {
    let choice = with_envd().await;
    let Some((mut joint, a)) = Joint::found(choice).await else { return };
    ask(&joint, &a, "POST", "/secrets", r#"{"name":"key","value":"sk"}"#).await.expect(201);
    joint.database().kill();
    for (method, path, body) in [
        ("POST", "/secrets", r#"{"name":"next","value":"v"}"#),
        ("GET", "/secrets", ""),
        ("GET", "/secrets/key", ""),
        ("POST", "/secrets/key", r#"{"value":"v"}"#),
        ("DELETE", "/secrets/key", ""),
    ] {
        let refused = a.without_database(&joint.key, (method, path, body)).await;
        assert_eq!((refused.status, &refused.body["error_code"]), (503, &"catalog_unavailable".into()), "{method}: {refused:?}");
    }
    let refused = a.without_database(&joint.key, ("POST", "/v2/sandboxes", &format!(r#"{{"templateID":"base"{RULES}}}"#))).await;
    assert_eq!((refused.status, &refused.body["error_code"]), (503, &"catalog_unavailable".into()), "{refused:?}");
    joint.database().start_again();
    until("the database is back", async || value(&joint, &a, "key").await.is_ok()).await;
    assert_eq!(value(&joint, &a, "key").await.unwrap(), "sk");
    joint.end([a]).await;
}

/// What a host leaves that was alone.
async fn alone(dir: &Path, secrets: &[(&str, &str)]) -> Vec<firkin_runtime::workload::PublicKey> {
    let config = RuntimeConfig { state_dir: dir.join("alone"), ..bench::config(dir) };
    let alone = Runtime::open(config, std::sync::Arc::new(Choice::default().engine())).await.unwrap();
    for (name, value) in secrets {
        alone.secrets().create(name, (*value).to_owned(), BTreeMap::new()).await.unwrap();
    }
    let keys = alone.workload().public_keys().unwrap();
    alone.shutdown(OnExit::Kill).await;
    keys
}

/// Has a node begin with that.
fn leave(dir: &Path, to: &Path) {
    fs_err::create_dir_all(to).unwrap();
    for file in ["secrets", "secrets.key", "workload.key"] {
        fs_err::copy(dir.join("alone").join(file), to.join(file)).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_host_had_alone_comes_with_it_and_what_cannot_stays() {
    let Some((joint, a)) = Joint::found(Choice::default()).await else { return };
    ask(&joint, &a, "POST", "/secrets", r#"{"name":"key","value":"of all"}"#).await.expect(201);
    let dir = tempfile::tempdir().unwrap();
    let keys = alone(dir.path(), &[("key", "of one"), ("other", "of one too")]).await;
    let state = joint.dir().join("b").join("state");
    leave(dir.path(), &state);
    let b = joint.start("b", Choice::default()).await;
    assert_eq!(
        (value(&joint, &a, "key").await.unwrap(), value(&joint, &a, "other").await.unwrap()),
        ("of all".into(), "of one too".into())
    );
    assert!(state.join("secrets").exists(), "what has another's name is not lost");
    assert_ne!(b.runtime.workload().public_keys().unwrap(), keys, "the others have a key already");

    // It is looked for at each start, and comes once there is room for it. What came is not brought again.
    ask(&joint, &a, "DELETE", "/secrets/key", "").await.expect(204);
    ask(&joint, &a, "DELETE", "/secrets/other", "").await.expect(204);
    b.stop(OnExit::Kill).await;
    let b = joint.start("b", Choice::default()).await;
    assert_eq!(
        (value(&joint, &b, "key").await.unwrap(), value(&joint, &b, "other").await.unwrap()),
        ("of one".into(), "none".into())
    );
    assert!(!state.join("secrets").exists());
    joint.end([a, b]).await;
}
