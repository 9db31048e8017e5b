//! Memory that stands on another's: whose it is stays as long as what stands on it, and says for whom.

use std::time::Duration;

use firkin_runtime::{
    build::Source,
    owner::SnapshotError,
    runtime::Runtime,
    sandbox::{CreateSandbox, SandboxState},
    templates::DeleteError,
};

use crate::{
    bench::{Host, base, names, until},
    building::built,
};

async fn in_use(server: &Runtime, reference: &str) -> Vec<String> {
    match server.delete_template(reference).await {
        Err(DeleteError::InUse { users, .. }) => users,
        other => panic!("`{reference}` is not in use: {other:?}"),
    }
}

#[test]
fn what_others_depend_on_is_not_deleted_and_they_are_named() {
    let host = Host::new();
    host.serve(async |server| {
        let first = server.create(base()).await.unwrap().id;
        let paused = server.create(base()).await.unwrap().id;
        server.pause(&paused).await.unwrap();
        let mut users = in_use(server, "base").await;
        users.sort();
        let mut expected = [format!("sandbox `{first}`"), format!("sandbox `{paused}`")];
        expected.sort();
        assert_eq!(users, expected);

        // A snapshot stands on the template's memory; a sandbox made from the snapshot holds the snapshot.
        let snapshot = server.snapshot(&first, Some("mine".into())).await.unwrap().snapshot_id;
        server.kill(&first).await.unwrap();
        server.kill(&paused).await.unwrap();
        assert_eq!(in_use(server, "base").await, ["snapshot `mine:default`"]);
        let child = server.create(CreateSandbox { template: snapshot.clone(), ..base() }).await.unwrap().id;
        let fork = server.fork(&child, 1, base().timeout).await.unwrap().remove(0).unwrap().id;
        let mut users = in_use(server, &snapshot).await;
        users.sort();
        let mut expected = [format!("sandbox `{child}`"), format!("sandbox `{fork}`")];
        expected.sort();
        assert_eq!(users, expected);

        // What was derived from it stands on the template, and goes on without it.
        let second = server.snapshot(&child, None).await.unwrap().snapshot_id;
        host.remember(&child, "kept");
        let third = server.snapshot(&child, None).await.unwrap().snapshot_id;
        server.kill(&child).await.unwrap();
        server.kill(&fork).await.unwrap();
        server.delete_template(&snapshot).await.unwrap();
        assert!(matches!(server.delete_template(&snapshot).await, Err(DeleteError::NotFound(_))), "there is no second time");
        let grandchild = server.create(CreateSandbox { template: third.clone(), ..base() }).await.unwrap().id;
        assert_eq!(host.memory(&grandchild).word, "kept");
        server.kill(&grandchild).await.unwrap();

        for snapshot in [&second, &third] {
            assert_eq!(in_use(server, "base").await.len(), if snapshot == &second { 2 } else { 1 });
            server.delete_template(snapshot).await.unwrap();
        }
        server.delete_template("base").await.unwrap();
        assert!(matches!(server.delete_template("base").await, Err(DeleteError::NotFound(_))));
    });
}

#[test]
fn a_template_that_is_the_same_as_another_is_held_by_nobody_while_that_stays() {
    let host = Host::new();
    host.serve(async |server| {
        built(server, "same", Source::Template("base".into()), 512).await;
        assert_eq!(host.artifacts().len(), 1, "both are one state");
        let id = server.create(CreateSandbox::from_template("same")).await.unwrap().id;
        let snapshot = server.snapshot(&id, Some("mine".into())).await.unwrap().snapshot_id;
        server.kill(&id).await.unwrap();
        server.delete_template("same").await.unwrap();
        assert_eq!(in_use(server, "base").await, ["snapshot `mine:default`"]);
        server.delete_template(&snapshot).await.unwrap();
        server.delete_template("base").await.unwrap();
    });
}

#[test]
fn a_pause_that_cannot_be_made_durable_lets_the_sandbox_go_on() {
    let host = Host::new();
    host.serve(async |server| {
        let id = server.create(base()).await.unwrap().id;
        host.remember(&id, "kept");
        let artifact = host.state_dir().join("artifacts").join(&host.artifacts()[0]);
        // Only publication looks at it: by then the machine stands still and has been cut.
        fs_err::rename(artifact.join("memory"), artifact.join("aside")).unwrap();
        let refused = server.pause(&id).await;
        assert!(matches!(refused, Err(SnapshotError::Publish { .. })), "{refused:?}");
        assert_eq!(server.sandbox(&id).unwrap().state, SandboxState::Running);
        assert!(server.stats(&id).await.unwrap().is_some(), "its guest runs");
        // What is hidden there counts, too: it would be the draft, which may be removed a moment after the answer.
        until("nothing of the attempt is left", || names(&host.state_dir().join("artifacts")) == host.artifacts()).await;
        assert_eq!(host.artifacts().len(), 1);

        fs_err::rename(artifact.join("aside"), artifact.join("memory")).unwrap();
        server.pause(&id).await.unwrap();
        server.resume(&id, Duration::from_secs(60)).await.unwrap();
        assert_eq!(host.memory(&id).word, "kept");
    });
}
