//! The store that all nodes have: what is paused is there soon after, outlives its node, and comes back as it was or not at all.

use std::{collections::HashSet, path::Path};

use firkin_postgres::NodeState;
use firkin_runtime::{ids::ArtifactId, owner::OnExit};

use crate::{
    bench::Answer,
    joint::{Choice, Class, Joint, Node, damage, until},
};

const STORES: Choice =
    Choice { waits_for_copies: false, encrypts: false, stores: true, is_idle: false, cpus: None, class: Class::Same, envd: None };

const WAITS: Choice = Choice { waits_for_copies: true, ..STORES };

async fn pause(joint: &Joint, node: &Node, id: &str) -> Answer {
    node.call(&joint.key, ("POST", &format!("/sandboxes/{id}/pause"), "")).await
}

async fn connect(joint: &Joint, node: &Node, id: &str) -> Answer {
    node.call(&joint.key, ("POST", &format!("/v2/sandboxes/{id}/connect"), r#"{"timeout":600}"#)).await
}

/// Pauses a sandbox, and gives what holds it once no copy is owed.
async fn paused_and_stored(joint: &Joint, node: &Node, id: &str) -> ArtifactId {
    pause(joint, node, id).await.expect(204);
    until("a pause is in the store", async || node.owes_nothing().await).await;
    joint.held(node, id).await
}

fn files(joint: &Joint, below: &str) -> HashSet<String> {
    let entries = fs_err::read_dir(joint.store_dir().join(below)).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Whether the archive of an artifact is in the store.
fn has(joint: &Joint, artifact: &ArtifactId) -> bool {
    joint.store_dir().join("artifacts").join(artifact.as_str()).join("archive.json").exists()
}

/// An operator says that a node is off, which has stopped.
async fn lose(joint: &Joint, node: Node, heard: &Node) {
    let id = node.id.clone();
    node.stop(OnExit::Leave).await;
    joint.set_state(&id, NodeState::Forgotten, &[heard]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_in_the_store_goes_on_elsewhere_when_its_node_is_lost() {
    let Some((joint, a)) = Joint::found(WAITS).await else { return };
    let b = joint.start("b", STORES).await;
    let ids = [a.create().await, a.create().await];
    pause(&joint, &a, &ids[0]).await.expect(204);
    let held = joint.held(&a, &ids[0]).await;
    assert!(has(&joint, &held) && a.owes_nothing().await, "when it is answered");
    let before = files(&joint, "blobs");
    let second = paused_and_stored(&joint, &a, &ids[1]).await;
    let own = files(&joint, "blobs").difference(&before).count();
    assert!(own < before.len(), "what they share is there once: {own} of {}", before.len());
    assert!(!b.has_files_of(&held) && !b.has_files_of(&second), "no node has to keep a copy beside");

    let metrics = a.call(&joint.key, ("GET", "/metrics", "")).await.expect(200);
    let is_told = |line: &str| {
        line.starts_with("firkin_second_copies_total{") && line.contains(r#"outcome="stored"} "#) && !line.ends_with(" 0")
    };
    assert!(metrics.body.as_str().unwrap().lines().any(is_told), "{metrics:?}");
    let layers = [a.layers_of(&held), a.layers_of(&second)];
    lose(&joint, a, &b).await;
    for (id, layers) in ids.iter().zip(&layers) {
        let gone_on = connect(&joint, &b, id).await.expect(201);
        assert_eq!(gone_on.header("x-firkin-node"), "b");
        assert!(joint.stands_on(&b, (id, layers)).await, "from the very state that was paused");
    }
    joint.end([b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn templates_are_in_the_store_and_come_from_there() {
    let Some((joint, a)) = Joint::found(STORES).await else { return };
    until("the template is in the store", async || a.membership.unstored().await.unwrap().is_empty()).await;
    let b = joint.start("b", STORES).await;
    lose(&joint, a, &b).await;
    let id = b.create().await;
    assert!(joint.runs_on(&b, &id).await);
    joint.end([b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_store_is_away_pauses_are_made_and_owed_or_kept_by_a_node() {
    let Some((joint, a)) = Joint::found(WAITS).await else { return };
    let (blobs, away) = (joint.store_dir().join("blobs"), joint.store_dir().join("away"));
    fs_err::rename(&blobs, &away).unwrap();
    fs_err::write(&blobs, "in its place").unwrap();
    let id = a.create().await;
    let refused = pause(&joint, &a, &id).await.expect(503);
    assert_eq!(refused.text("/error_code"), "sandbox_paused_on_one_node");
    assert!(refused.text("/message").contains("the store of the cluster has no copy"), "{refused:?}");
    assert!(a.has_files_of(&joint.held(&a, &id).await) && !a.owes_nothing().await, "it is paused all the same");
    let b = joint.start("b", STORES).await;
    a.records.hear().await.unwrap();
    pause(&joint, &a, &id).await.expect(204);
    assert!(b.has_files_of(&joint.held(&a, &id).await), "a node keeps it");

    let other = b.create().await;
    joint.set_state(&a.id, NodeState::Cordoned, &[&a, &b]).await;
    pause(&joint, &b, &other).await.expect(204);
    assert!(!b.owes_nothing().await);
    fs_err::remove_file(&blobs).unwrap();
    fs_err::rename(&away, &blobs).unwrap();
    until("what was owed is in the store", async || b.owes_nothing().await).await;
    assert!(has(&joint, &joint.held(&b, &other).await));
    joint.end([a, b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_bytes_of_the_store_are_never_taken_in_and_are_made_good_by_who_has_them() {
    let Some((joint, a)) = Joint::found(STORES).await else { return };
    let b = joint.start("b", STORES).await;
    let id = a.create().await;
    let held = paused_and_stored(&joint, &a, &id).await;
    let layers = a.layers_of(&held);
    for name in files(&joint, "blobs") {
        damage(&joint.store_dir().join("blobs").join(name));
    }
    let lost = a.id.clone();
    a.stop(OnExit::Leave).await;
    joint.set_state(&lost, NodeState::Forgotten, &[&b]).await;
    let refused = connect(&joint, &b, &id).await.expect(503);
    assert_eq!(refused.text("/error_code"), "artifact_elsewhere", "{refused:?}");
    assert!(!b.has_files_of(&held));

    // Its node comes back, hears of it, and copies it anew.
    let a = joint.start("a", STORES).await;
    until("it is made good", async || a.owes_nothing().await).await;
    lose(&joint, a, &b).await;
    connect(&joint, &b, &id).await.expect(201);
    assert!(joint.stands_on(&b, (&id, &layers)).await);
    joint.end([b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_row_needs_goes_from_the_store_and_nothing_else_does() {
    let Some((joint, a)) = Joint::found(STORES).await else { return };
    let b = joint.start("b", STORES).await;
    until("the template is in the store", async || a.membership.unstored().await.unwrap().is_empty()).await;
    let ids = [a.create().await, a.create().await];
    let stays = paused_and_stored(&joint, &a, &ids[0]).await;
    // What a guest of these tests remembers is its life: this one has another than the first.
    paused_and_stored(&joint, &a, &ids[1]).await;
    connect(&joint, &a, &ids[1]).await.expect(201);
    let goes = paused_and_stored(&joint, &a, &ids[1]).await;
    let stray = joint.store_dir().join("blobs").join("0".repeat(64));
    fs_err::write(&stray, "of nobody").unwrap();
    until("what is of nobody goes", async || {
        a.copies.clean_store().await.unwrap();
        !Path::exists(&stray)
    })
    .await;
    let before = files(&joint, "blobs");
    connect(&joint, &a, &ids[1]).await.expect(201);
    until("what nobody is held by goes", async || {
        a.copies.clean_store().await.unwrap();
        !has(&joint, &goes) && files(&joint, "blobs").len() < before.len()
    })
    .await;
    assert!(has(&joint, &stays));
    lose(&joint, a, &b).await;
    connect(&joint, &b, &ids[0]).await.expect(201);
    b.create().await;
    joint.end([b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_found_damaged_at_home_or_with_a_keeper_comes_anew_from_whoever_has_it_whole() {
    let Some((joint, a)) = Joint::found(STORES).await else { return };
    let id = a.create().await;
    let held = paused_and_stored(&joint, &a, &id).await;
    a.damage(&held);
    connect(&joint, &a, &id).await.expect(201);
    assert!(a.runtime.outlook().quarantine.is_empty(), "the store had it");

    // Without the store a node keeps the copy; one that it has lost by damage is made anew, and not refused for ever.
    let (blobs, away) = (joint.store_dir().join("blobs"), joint.store_dir().join("away"));
    fs_err::rename(&blobs, &away).unwrap();
    fs_err::write(&blobs, "in its place").unwrap();
    let b = joint.start("b", STORES).await;
    a.records.hear().await.unwrap();
    let held = paused_and_stored(&joint, &a, &id).await;
    let layers = a.layers_of(&held);
    b.damage(&held);
    b.runtime.export_artifact(&held).await.map(drop).unwrap_err();
    b.copies.let_go().await.unwrap();
    assert!(!a.owes_nothing().await, "what is damaged is no copy");
    until("the keeper has it whole again", async || a.owes_nothing().await).await;
    b.runtime.export_artifact(&held).await.map(drop).unwrap();
    a.damage(&held);
    connect(&joint, &a, &id).await.expect(201);
    assert!(joint.stands_on(&a, (&id, &layers)).await);
    joint.end([a, b]).await;
}
