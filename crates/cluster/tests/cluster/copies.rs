//! Second copies of pauses: they are made, outlive the node that paused, are collected once nobody needs them, and nothing older is ever started.

use firkin_postgres::NodeState;
use firkin_runtime::{ids::ArtifactId, owner::OnExit};

use crate::joint::{Choice, Class, Joint, Node, until};

const WAITS: Choice =
    Choice { waits_for_copies: true, encrypts: false, stores: false, is_idle: false, cpus: None, class: Class::Same, envd: None };

async fn pause(joint: &Joint, node: &Node, id: &str) -> crate::bench::Answer {
    node.call(&joint.key, ("POST", &format!("/sandboxes/{id}/pause"), "")).await
}

async fn connect(joint: &Joint, node: &Node, id: &str) -> crate::bench::Answer {
    node.call(&joint.key, ("POST", &format!("/v2/sandboxes/{id}/connect"), r#"{"timeout":600}"#)).await
}

/// Pauses a sandbox, and gives what holds it once no copy is owed.
async fn paused_and_copied(joint: &Joint, node: &Node, id: &str) -> ArtifactId {
    pause(joint, node, id).await.expect(204);
    until("a pause is copied", async || node.owes_nothing().await).await;
    joint.held(node, id).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_paused_outlives_its_node_and_goes_on_elsewhere_as_it_was_last() {
    let Some((joint, a)) = Joint::found(Choice::default()).await else { return };
    let (b, c) = (joint.start("b", Choice::default()).await, joint.start("c", Choice::default()).await);
    let ids = [a.create().await, a.create().await];
    let held = paused_and_copied(&joint, &a, &ids[0]).await;
    paused_and_copied(&joint, &a, &ids[1]).await;
    let (keeper, other) = if b.has_files_of(&held) { (b, c) } else { (c, b) };
    assert!(keeper.membership.copies().await.unwrap().contains(&held));
    assert!(!other.has_files_of(&held), "two copies are two");
    // Nothing there stands on it but a row of another's.
    joint.collect(&keeper).await;
    assert!(keeper.has_files_of(&held), "what a row names is never collected");

    let lost = a.id.clone();
    a.stop(OnExit::Leave).await;
    joint.set_state(&lost, NodeState::Forgotten, &[&keeper, &other]).await;
    // Whoever is asked has it, also who has to have it brought.
    let transfer = keeper.runtime.export_artifact(&held).await.unwrap();
    let gone_on = connect(&joint, &other, &ids[0]).await.expect(201);
    assert_eq!(gone_on.header("x-firkin-node"), joint.name_of(&other));
    assert!(joint.runs_on(&other, &ids[0]).await);
    assert!(joint.goes_on_from(&keeper, (&ids[0], &held)).await, "from the very state that was paused");
    drop(transfer);
    // Nobody else may have it from then on, nor what it was.
    connect(&joint, &keeper, &ids[0]).await.expect(200);
    connect(&joint, &keeper, &ids[1]).await.expect(201);
    joint.end([keeper, other]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_goes_once_nobody_is_held_by_it_or_sent_it() {
    let Some((joint, a)) = Joint::found(Choice::default()).await else { return };
    let b = joint.start("b", Choice::default()).await;
    let (id, other) = (a.create().await, a.create().await);
    let stays = paused_and_copied(&joint, &a, &other).await;
    let held = paused_and_copied(&joint, &a, &id).await;
    b.copies.let_go().await.unwrap();
    assert_eq!(b.membership.copies().await.unwrap().len(), 2, "both are needed");
    let transfer = b.runtime.export_artifact(&held).await.unwrap();
    connect(&joint, &a, &id).await.expect(201);
    b.copies.let_go().await.unwrap();
    assert_eq!(b.membership.copies().await.unwrap(), std::slice::from_ref(&stays));
    joint.collect(&b).await;
    assert!(b.has_files_of(&held), "somebody is being sent it");
    drop(transfer);
    b.runtime.collect();
    until("a copy that nobody needs is collected", async || !b.has_files_of(&held)).await;
    assert!(b.has_files_of(&stays));

    // What is not on the disk any more is no copy, and is made again.
    b.lose(&stays);
    b.copies.let_go().await.unwrap();
    until("the copy is back", async || b.has_files_of(&stays) && a.owes_nothing().await).await;
    joint.end([a, b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_last_pause_has_no_copy_an_older_one_is_never_started() {
    let Some((joint, a)) = Joint::found(Choice::default()).await else { return };
    let b = joint.start("b", Choice::default()).await;
    let id = a.create().await;
    let older = paused_and_copied(&joint, &a, &id).await;
    joint.set_state(&b.id, NodeState::Cordoned, &[&a, &b]).await;
    connect(&joint, &a, &id).await.expect(201);
    pause(&joint, &a, &id).await.expect(204);
    let newest = joint.held(&a, &id).await;
    assert_eq!(a.membership.owed(None).await.unwrap().len(), 1);
    assert!(newest != older && !b.has_files_of(&newest));

    let lost = a.id.clone();
    a.stop(OnExit::Leave).await;
    joint.set_state(&lost, NodeState::Forgotten, &[&b]).await;
    let refused = connect(&joint, &b, &id).await.expect(503);
    assert_eq!(refused.text("/error_code"), "artifact_elsewhere");
    assert!(refused.text("/message").contains("`a`"), "{refused:?}");
    assert_eq!(joint.held(&b, &id).await, newest, "and nothing has changed");

    // Its node comes back, and with it the last state, which is copied now that somebody takes it.
    let a = joint.start("a", Choice::default()).await;
    joint.set_state(&b.id, NodeState::Ready, &[&a, &b]).await;
    until("what was owed is copied", async || a.owes_nothing().await).await;
    assert!(b.has_files_of(&newest));
    // Nobody needs it once it was resumed, and it is not collected while it is sent.
    let transfer = a.runtime.export_artifact(&newest).await.unwrap();
    connect(&joint, &b, &id).await.expect(201);
    assert!(joint.goes_on_from(&a, (&id, &newest)).await);
    drop(transfer);
    joint.end([a, b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_that_is_to_be_on_two_nodes_is_answered_once_it_is_or_says_that_it_is_not() {
    let Some((joint, a)) = Joint::found(WAITS).await else { return };
    let id = a.create().await;
    for _ in 0..2 {
        let refused = pause(&joint, &a, &id).await.expect(503);
        assert_eq!((refused.text("/error_code"), refused.header("retry-after")), ("sandbox_paused_on_one_node", "5"));
        let message = refused.text("/message");
        assert!(message.contains("is paused, and only on node `a`: no other node"), "{message}");
        let held = joint.held(&a, &id).await;
        assert!(a.has_files_of(&held), "it is paused all the same");
    }
    let b = joint.start("b", Choice::default()).await;
    a.records.hear().await.unwrap();
    // Who asks again is answered once there is a copy, whoever had it made; from then on it is as any that is paused.
    pause(&joint, &a, &id).await.expect(204);
    assert!(b.has_files_of(&joint.held(&a, &id).await));
    pause(&joint, &a, &id).await.expect(409);
    let second = a.create().await;
    pause(&joint, &a, &second).await.expect(204);
    let held = joint.held(&a, &second).await;
    assert!(b.has_files_of(&held) && b.membership.copies().await.unwrap().contains(&held), "when it is answered");
    joint.end([a, b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_copied_stays_owed_and_is_shown_as_bound_to_its_host() {
    let Some((joint, a)) = Joint::found(Choice { encrypts: true, ..WAITS }).await else { return };
    let b = joint.start("b", Choice::default()).await;
    a.records.hear().await.unwrap();
    let id = a.create().await;
    let refused = pause(&joint, &a, &id).await.expect(503);
    assert_eq!((refused.header("retry-after"), refused.header("should-retry")), ("", "false"), "it would be so again");
    assert!(refused.text("/message").contains("is encrypted under the key of its own host"), "{refused:?}");
    let is_bound = |line: &str| line.starts_with("firkin_second_copies_owed{") && line.ends_with("state=\"bound\"} 1");
    until("it is shown as bound", async || a.runtime.render_metrics(false).lines().any(is_bound)).await;
    let said = async || {
        let nodes = b.membership.members().nodes().await.unwrap();
        nodes.into_iter().find(|node| node.name == "a").is_some_and(|node| node.info.contains("\"copies_owed\":1"))
    };
    until("others hear that it is owed", said).await;
    let held = joint.held(&a, &id).await;
    assert!(!b.has_files_of(&held));
    joint.end([a, b]).await;
}
