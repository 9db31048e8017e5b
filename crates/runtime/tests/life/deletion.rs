//! Deleting templates and snapshots: refused while others depend on them, by name; free as soon as nobody does.

use firkin_runtime::{sandbox::CreateSandbox, templates::DeleteError};

use crate::{
    bench::{Host, base},
    building::{built, own_builds, own_image},
};

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
