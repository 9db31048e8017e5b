//! What becomes of sandboxes when the engine is another one, or when a machine of it ends at the wrong time.

use std::time::Duration;

use firkin_runtime::{
    host_templates::BuildError,
    owner::{OnExit, ResumeError},
    restore::SnapshotRestoreError,
    sandbox::Memory,
    standard::BuildTemplate,
};

use crate::bench::{Host, base, until};

const MINUTE: Duration = Duration::from_secs(60);
/// A test's patience with what is to come at once.
const AT_ONCE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn an_update_of_the_engine_strands_no_memory() {
    let host = Host::new().with_engine_version("10.0.2 (Debian 1:10.0.2+ds-2+deb13u1)");
    let server = host.server().await;
    let id = server.create(base()).await.unwrap().id;
    host.remember(&id, "over the update");
    server.pause(&id).await.unwrap();
    let (artifacts, boots) = (host.artifacts(), host.engine.boots());
    server.shutdown(OnExit::Pause).await;
    drop(server);

    let host = host.with_engine_version("10.0.8 (Debian 1:10.0.8+ds-0+deb13u1)");
    let server = host.server().await;
    assert_eq!(host.engine.boots(), boots, "nor is a template built again");
    server.connect(&id, MINUTE).await.unwrap();
    assert_eq!(host.memory(&id).word, "over the update");
    server.pause(&id).await.unwrap();
    assert!(host.artifacts().len() >= artifacts.len());
    server.shutdown(OnExit::Pause).await;
    drop(server);

    // Another series is another machine; the files can be had all the same, and the refusal says how.
    let host = host.with_engine_version("10.1.0");
    let server = host.server().await;
    let error = server.connect(&id, MINUTE).await.unwrap_err();
    let ResumeError::Restore { source: source @ SnapshotRestoreError::Incompatible { what: "engine version", .. }, .. } = error
    else {
        panic!("{error:?}")
    };
    assert!(source.to_string().contains("firkin sandbox resume --reboot"), "{source}");
    server.connect_with(&id, MINUTE, Memory::Dropped).await.unwrap();
    assert_eq!(host.memory(&id).word, "", "booted from its files");
    server.pause(&id).await.unwrap();
    server.connect(&id, MINUTE).await.unwrap();
    server.shutdown(OnExit::Kill).await;
}

#[tokio::test]
async fn a_guest_that_dies_while_its_template_gets_ready_is_noticed_at_once() {
    let (host, envd) = Host::with_silent_envd();
    let server = host.server().await;
    let build = BuildTemplate {
        name: "mine".into(),
        ready: Some("true".into()),
        ready_deadline: Duration::from_secs(3600),
        ..BuildTemplate::base()
    };
    let building = Box::pin(server.ensure_template(build, &|_| {}));
    let dying = async {
        until("the ready command was sent", || envd.was_called()).await;
        assert!(host.engine.crash(&host.engine.live_dirs()[0]));
    };
    let (built, ()) =
        tokio::time::timeout(AT_ONCE, async { tokio::join!(building, dying) }).await.expect("it is noticed at once");
    let error = built.unwrap_err();
    let BuildError::Failed { reason, .. } = &error else { panic!("{error:?}") };
    assert!(reason.message.starts_with("the machine ended before it could be cut: "), "{error}");
    assert_eq!(host.engine.live(), 0);
    server.shutdown(OnExit::Kill).await;
}
