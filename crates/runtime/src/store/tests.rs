//! What an operation finds that another one left, and what it does when it comes too late.

use jiff::Timestamp;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{
    BuildReason, BuildRecord, BuildState, Defaults, Guard, LayerRecord, SandboxRecord, Spawns, Store, TemplateRecord,
    database::{self, params, refused},
    templates::Lookup,
};
use crate::{
    ground::{
        ids::{BuildId, TemplateId},
        reference::{Reference, Sought, Tag},
        team::{Scope, TeamId},
    },
    store::spec::CreateSandbox,
};

/// A store of one test, with its directory.
async fn store() -> (Store, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (Store::open(&dir.path().join("firkin.db")).await.unwrap(), dir)
}

/// Holds of queries that SQLite answers them by indices.
pub(super) async fn goes_through_no_table(queries: impl IntoIterator<Item = String>) {
    let (store, _dir) = store().await;
    for query in queries {
        let explained = query.clone();
        let steps = store.run(move |tx| {
            let parameters = (1..10).take_while(|number| explained.contains(&format!("?{number}"))).count();
            let any = vec![database::Value::Text("x".to_owned()); parameters];
            let explain = format!("EXPLAIN QUERY PLAN {explained}");
            tx.query(&explain, &any, |row| row.get::<String>(3)).map_err(refused("explain"))
        });
        let steps = steps.await.unwrap();
        assert!(steps.iter().any(|step| step.starts_with("SEARCH")), "{query}: {steps:?}");
        assert!(!steps.iter().any(|step| step.starts_with("SCAN")), "{query}: {steps:?}");
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn build(id: &str, name: &str) -> BuildRecord {
    BuildRecord {
        id: id.parse().unwrap(),
        owner: TeamId::first(),
        template_id: format!("template-of-{id}").parse().unwrap(),
        name: Some(name.parse().unwrap()),
        tags: vec![Tag::default()],
        cpus: 1,
        memory_mib: 512,
        min_free_disk_mib: None,
        disk_mib: None,
        state: BuildState::Waiting,
        reason: None,
        created_at: at(0),
        updated_at: at(0),
        finished_at: None,
    }
}

fn id(text: &str) -> BuildId {
    text.parse().unwrap()
}

fn app() -> Reference {
    "app".parse().unwrap()
}

/// What a build becomes: a version of its template, with its name.
fn version(build: &BuildRecord) -> TemplateRecord {
    super::contract::version(build).unwrap()
}

fn sandbox(id: &str, template: &TemplateId) -> SandboxRecord {
    super::contract::sandbox(id, template.as_str()).unwrap()
}

/// A build that has ended well, at this time.
async fn built(store: &Store, id: &str, name: &str, second: i64) -> BuildRecord {
    store.request_build(build(id, name)).await.unwrap();
    let begun = store.begin_build(id.parse().unwrap(), at(second)).await.unwrap().unwrap();
    let ended = BuildRecord { state: BuildState::Ready, finished_at: Some(at(second)), ..begun };
    assert!(store.end_build(ended.clone(), Vec::new(), Some(version(&ended))).await.unwrap());
    ended
}

/// A refusal must not take longer for what another team has: whatever is wrong with its rows is noticed by nobody else, since nobody else reads
/// them.
#[tokio::test]
async fn nothing_of_another_teams_template_is_read() {
    let (store, _dir) = store().await;
    built(&store, "b1", "app", 1).await;
    let unreadable = ["UPDATE templates SET body = '{\"public\": false}'", "UPDATE versions SET body = '{}'"];
    store
        .run(move |tx| unreadable.iter().try_for_each(|sql| tx.execute(sql, params![]).map(drop).map_err(refused("spoil"))))
        .await
        .unwrap();
    let other = Scope::Team("b".parse().unwrap());
    for called in ["app", "firkin/app", "firkin/app:default", "app:default", "template-of-b1", "firkin/template-of-b1", "nothing"]
    {
        let sought = || called.parse::<Sought>().unwrap();
        assert_eq!(store.family(other.clone(), sought()).await.unwrap(), None, "{called}");
        assert_eq!(store.usable_family(other.clone(), sought()).await.unwrap(), None, "{called}");
        for found in [store.template(other.clone(), sought()).await, store.usable_template(other.clone(), sought()).await] {
            assert!(matches!(found.unwrap(), Lookup::Absent), "{called}");
        }
    }
    store.family(Scope::Team(TeamId::first()), app()).await.unwrap_err();
}

#[tokio::test]
async fn a_build_begins_once_and_not_after_its_deletion() {
    let (store, _dir) = store().await;
    for id in ["b1", "b2"] {
        store.request_build(build(id, "app")).await.unwrap();
    }
    let begun = store.begin_build(id("b1"), at(1)).await.unwrap().unwrap();
    assert_eq!((begun.state, begun.updated_at), (BuildState::Building, at(1)));
    assert_eq!(store.build(&Scope::Host, id("b1")).await.unwrap(), Some(begun.clone()));
    assert_eq!(store.begin_build(id("b1"), at(2)).await.unwrap(), None);
    store.delete_template(begun.template_id).await.unwrap();
    assert_eq!(store.begin_build(id("b2"), at(2)).await.unwrap(), None);
    assert_eq!(store.build(&Scope::Host, id("b2")).await.unwrap(), None, "it does not come back");
}

#[tokio::test]
async fn a_build_that_ends_after_its_deletion_makes_nothing() {
    let (store, _dir) = store().await;
    store.request_build(build("b1", "app")).await.unwrap();
    let begun = store.begin_build(id("b1"), at(1)).await.unwrap().unwrap();
    store.delete_template(begun.template_id.clone()).await.unwrap();
    assert!(!store.end_build(begun.clone(), Vec::new(), Some(version(&begun))).await.unwrap(), "nobody is told that it is ready");
    assert_eq!((store.builds(Scope::Host).await.unwrap(), store.whole_templates(Scope::Host).await.unwrap().len()), (vec![], 0));
}

#[tokio::test]
async fn a_template_goes_with_all_of_it_or_stays_for_a_sandbox() {
    let (store, _dir) = store().await;
    let template = built(&store, "b1", "app", 1).await.template_id;
    store.request_build(build("b2", "app")).await.unwrap();
    built(&store, "b3", "other", 2).await;
    store.insert_sandbox(sandbox("i1", &template)).await.unwrap();
    let used = store.delete_template(template.clone()).await.unwrap();
    assert_eq!(used.iter().map(|(_, id)| id.as_str()).collect::<Vec<_>>(), ["i1"]);
    assert_eq!((store.builds(Scope::Host).await.unwrap().len(), store.templates(Scope::Host).await.unwrap().len()), (3, 2));
    store.remove_sandbox(used.into_iter().next().unwrap().1, Guard { epoch: 1 }).await.unwrap();
    assert!(store.delete_template(template).await.unwrap().is_empty());
    let left = |builds: Vec<BuildRecord>| builds.into_iter().map(|build| build.id.to_string()).collect::<Vec<_>>();
    assert_eq!(
        (left(store.builds(Scope::Host).await.unwrap()), store.templates(Scope::Host).await.unwrap().len()),
        (vec!["b3".to_owned()], 1)
    );
}

#[tokio::test]
async fn builds_of_an_earlier_server_fail_and_no_others() {
    let (store, _dir) = store().await;
    for id in ["b1", "b2"] {
        store.request_build(build(id, "app")).await.unwrap();
    }
    store.begin_build(id("b1"), at(1)).await.unwrap();
    let reason = BuildReason { message: "gone".to_owned(), step: "base".to_owned() };
    store.fail_builds_under_way(reason.clone(), at(2)).await.unwrap();
    let [failed, waits] = store.builds(Scope::Host).await.unwrap().try_into().unwrap();
    assert_eq!((failed.state, failed.reason, failed.finished_at), (BuildState::Error, Some(reason), Some(at(2))));
    assert_eq!(waits.state, BuildState::Waiting);
}

#[tokio::test]
async fn the_oldest_builds_are_forgotten_but_none_that_a_template_stands_on() {
    let (store, _dir) = store().await;
    built(&store, "b1", "stays", 1).await;
    // Lost its tag to the next, and this to the last.
    for (id, second) in [("b2", 2), ("b3", 3), ("b4", 4)] {
        built(&store, id, "app", second).await;
    }
    store.request_build(build("b0", "waits")).await.unwrap();
    store.forget_ended_builds(2).await.unwrap();
    let left: Vec<_> = store.builds(Scope::Host).await.unwrap().into_iter().map(|build| build.id.to_string()).collect();
    assert_eq!(left, ["b0", "b1", "b3", "b4"]);
}

fn layer(key: &str, artifact: &str, used: i64) -> LayerRecord {
    LayerRecord { key: key.to_owned(), artifact: artifact.parse().unwrap(), context: Defaults::default(), used_at: at(used) }
}

#[tokio::test]
async fn a_state_that_was_let_go_is_not_kept_by_a_use_of_it() {
    let (store, _dir) = store().await;
    let (seen, other) = (layer("k", "a", 1), layer("k", "b", 2));
    store.use_layer(seen.clone(), at(3)).await.unwrap();
    assert_eq!(store.layer("k".to_owned()).await.unwrap(), None);
    store.put_layer(other.clone()).await.unwrap();
    // What another build has made since is neither told as this one nor removed for it.
    store.use_layer(seen.clone(), at(3)).await.unwrap();
    assert!(!store.delete_layer_as(seen).await.unwrap());
    assert_eq!(store.layer("k".to_owned()).await.unwrap(), Some(other.clone()));
    store.use_layer(other.clone(), at(4)).await.unwrap();
    assert_eq!(store.layer("k".to_owned()).await.unwrap(), Some(layer("k", "b", 4)));
    assert!(!store.delete_layer_as(other).await.unwrap(), "it has been used since");
}

#[tokio::test]
async fn states_that_were_not_used_for_the_longest_time_go_first() {
    let (store, _dir) = store().await;
    for (key, artifact, used) in [("k1", "a", 3), ("k2", "b", 1), ("k3", "a", 2), ("k4", "c", 4)] {
        store.put_layer(layer(key, artifact, used)).await.unwrap();
    }
    let there = async || store.in_use().await.unwrap().states.into_iter().map(|state| state.key).collect::<Vec<_>>();
    assert!(!store.trim_layers(4).await.unwrap());
    assert!(store.trim_layers(3).await.unwrap());
    assert_eq!(there().await, ["k1", "k3", "k4"]);
    assert!(store.has_layer_of("a".parse().unwrap()).await.unwrap());
    store.delete_layers_of("a".parse().unwrap()).await.unwrap();
    assert_eq!(there().await, ["k4"]);
    assert!(!store.has_layer_of("a".parse().unwrap()).await.unwrap());
}

#[tokio::test]
async fn an_update_changes_what_is_given_and_counts_stay() {
    let (store, _dir) = store().await;
    let id = built(&store, "b1", "app", 1).await.template_id;
    store.count_spawns([(id.clone(), Spawns { count: 1, last_at: at(5) })].into()).await.unwrap();
    for (public, description) in [(Some(true), Some("for tests".to_owned())), (None, None)] {
        assert_eq!(store.update_template((Scope::Host, app().into()), public, description).await.unwrap().as_ref(), Some(&id));
        let found = store.family(Scope::Host, app()).await.unwrap().unwrap();
        assert_eq!((found.public, found.description.as_deref(), found.spawn_count), (true, Some("for tests"), 1));
    }
    store.update_template((Scope::Host, id.as_str().parse().unwrap()), None, Some(String::new())).await.unwrap();
    assert_eq!(store.family(Scope::Host, app()).await.unwrap().unwrap().description, None);
    assert_eq!(store.update_template((Scope::Host, "other".parse().unwrap()), Some(true), None).await.unwrap(), None);
}

#[tokio::test]
async fn of_several_names_all_are_removed_or_none() {
    let (store, _dir) = store().await;
    let version = built(&store, "b1", "app", 1).await;
    store.add_names(version.id, vec!["app:v1".parse().unwrap()]).await.unwrap();
    let names = async || {
        store
            .templates(Scope::Host)
            .await
            .unwrap()
            .into_iter()
            .flat_map(|version| version.names)
            .map(String::from)
            .collect::<Vec<_>>()
    };
    let remove = |names: &[&str]| store.remove_names(TeamId::first(), names.iter().map(|name| name.parse().unwrap()).collect());
    assert_eq!(remove(&["app:v1", "app:v2"]).await.unwrap(), Some("app:v2".parse().unwrap()));
    assert_eq!(names().await, ["app:default", "app:v1"]);
    assert_eq!(remove(&["app:v1", "app:default"]).await.unwrap(), None);
    assert!(names().await.is_empty() && store.templates(Scope::Host).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_warm_up_is_noted_of_a_version_that_is_there() {
    let (store, _dir) = store().await;
    let build = built(&store, "b1", "app", 1).await;
    for id in ["b1", "b2"] {
        store.set_warm_up(id.parse().unwrap(), Some("true".to_owned())).await.unwrap();
    }
    let expected = TemplateRecord { warm_up: Some("true".to_owned()), ..version(&build) };
    assert_eq!(store.templates(Scope::Host).await.unwrap(), [expected]);
}

/// Ids and names are types in memory only: what was written when they were texts is read, and written again as it was.
#[test]
fn records_of_earlier_servers_are_read_as_they_were_written() {
    fn unchanged<T: Serialize + DeserializeOwned>(written: &Value) {
        let read: T = serde_json::from_value(written.clone()).unwrap();
        assert_eq!(&serde_json::to_value(read).unwrap(), written);
    }
    let budget = json!({"cpus": 1, "memory_mib": 512, "disk_mib": 8});
    let defaults = json!({});
    let running = json!({
        "phase": "running", "memory_base": "k3v0w2xqd7m1a9c8e5zt", "layers": ["p0o9i8u7y6t5r4e3w2q1", "0123456789abcdef0123"],
        "overlay": "l1k2j3h4g5f6d7s8a9q0", "slot": 7, "instance": "iabc-1",
    });
    let paused = json!({"phase": "paused", "artifact": "k3v0w2xqd7m1a9c8e5zt", "epoch": 3, "memory": "kept"});
    for phase in [running, paused] {
        unchanged::<SandboxRecord>(&json!({
            "id": "iabc", "spec": CreateSandbox::from_template("firkin/base:v1".to_owned()), "template_id": "q1w2e3r4t5y6u7i8o9p0",
            "alias": "base", "budget": budget, "started_at": at(0), "end_at": at(60), "access_token": null, "traffic_token": null,
            "epoch": 3, "forked_from": null, "defaults": defaults, "phase": phase,
        }));
    }
    let build = "3f2b1c4d-0000-4000-8000-000000000000";
    unchanged::<TemplateRecord>(&json!({
        "id": "q1w2e3r4t5y6u7i8o9p0", "build_id": build, "artifact": "k3v0w2xqd7m1a9c8e5zt", "budget": budget, "created_at": at(0),
        "updated_at": at(1), "spawn_count": 2, "last_spawned_at": null, "description": null, "snapshot_of": "iabc",
        "made_from": "a1s2d3f4g5h6j7k8l9z0", "recipe": null, "warm_up": null,
        "setup": {"public": false, "defaults": defaults, "start": null, "ready": null},
        // A snapshot could once be given a tag like this.
        "names": ["mine:default", format!("mine:{build}")],
    }));
    for name in ["", "my-app"] {
        unchanged::<BuildRecord>(&json!({
            "id": build, "template_id": "q1w2e3r4t5y6u7i8o9p0", "name": name, "tags": ["default", "v1.0"], "cpus": 1,
            "memory_mib": 512, "disk_mib": null, "state": "waiting", "reason": null, "created_at": at(0), "updated_at": at(0),
            "finished_at": null,
        }));
    }
    unchanged::<LayerRecord>(&json!({"key": "k", "artifact": "k3v0w2xqd7m1a9c8e5zt", "context": defaults, "used_at": at(0)}));
}
