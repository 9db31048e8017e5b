//! Deleting templates and snapshots: refused while others depend on them, by name; free as soon as nobody does.

use firkin_runtime::{build::Source, runtime::Runtime, sandbox::CreateSandbox, templates::DeleteError};

use crate::{
    bench::{Host, base},
    builds::{built, own_builds, own_image},
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
fn a_template_that_was_built_anew_is_free_of_what_stands_on_the_old_build() {
    let host = Host::new();
    host.serve(async |server| {
        let id = server.create(base()).await.unwrap().id;
        host.remember(&id, "kept");
        let snapshot = server.snapshot(&id, None).await.unwrap().snapshot_id;
        server.kill(&id).await.unwrap();
        let again = firkin_runtime::standard::BuildTemplate { ready: None, ..firkin_runtime::standard::BuildTemplate::base() };
        Box::pin(server.build_template(again, &|_| {})).await.unwrap();
        server.delete_template("base").await.unwrap();
        let child = server.create(CreateSandbox { template: snapshot, ..base() }).await.unwrap().id;
        assert_eq!(host.memory(&child).word, "kept", "its memory is kept for it");
    });
}

#[test]
fn a_template_goes_with_all_of_its_tags_and_a_tag_alone_if_it_is_named() {
    let host = Host::new();
    host.serve(async |server| {
        let place = built(server, "app", own_image(), 512).await;
        built(server, "app:v1", own_image(), 1024).await;
        server.assign_tags("app:v1", vec!["v2".into()]).await.unwrap();
        let gone = async |reference: &str| server.create(CreateSandbox::from_template(reference)).await.is_err();
        server.delete_template("app:v1").await.unwrap();
        assert!(gone("app:v1").await && !gone("app:v2").await);
        // A snapshot stands on the memory of the other tag's build.
        let id = server.create(CreateSandbox::from_template("app:v2")).await.unwrap().id;
        host.remember(&id, "kept");
        let snapshot = server.snapshot(&id, Some("app:v3".into())).await.unwrap().snapshot_id;
        for sandbox in server.sandboxes() {
            server.kill(&sandbox.id).await.unwrap();
        }
        server.delete_template("firkin/app:v3").await.unwrap();
        assert!(matches!(server.delete_template(&snapshot).await, Err(DeleteError::NotFound(_))), "it is the snapshot that went");
        assert!(matches!(server.delete_template("app:v1").await, Err(DeleteError::NotFound(_))));
        server.delete_template(&place.template_id).await.unwrap();
        assert!(gone("app").await && gone("app:v2").await && gone(&place.template_id).await);
        assert!(own_builds(server).await.is_empty(), "in one call");
        assert!(matches!(server.delete_template("app").await, Err(DeleteError::NotFound(_))));
    });
}
