//! Sandboxes whose files are in their memory: everything that keeps the memory works, and what would drop it is refused before anything is
//! lost.

use std::time::Duration;

use firkin_runtime::{
    build::Source,
    config::SandboxLimits,
    owner::{OnExit, SnapshotError},
    sandbox::{CreateError, CreateSandbox, Memory, OnTimeout, SandboxState},
};

use crate::{
    bench::{Host, base, until},
    building::{built, own_image},
};

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn memory_that_has_the_files_is_not_dropped() {
    let host = Host::new();
    host.serve(async |server| {
        let id = server.create(base()).await.unwrap().id;
        host.remember(&id, "a file");
        let refused = server.pause_with(&id, Memory::Dropped).await.unwrap_err();
        assert!(matches!(refused, SnapshotError::FilesInMemory { .. }), "{refused:?}");
        assert_eq!(server.sandbox(&id).unwrap().state, SandboxState::Running);
        let refused = server.snapshot_with(&id, None, Memory::Dropped).await.unwrap_err();
        assert!(matches!(refused, SnapshotError::FilesInMemory { .. }), "{refused:?}");
        assert_eq!(host.memory(&id).word, "a file");

        server.pause(&id).await.unwrap();
        assert!(server.resume_with(&id, MINUTE, Memory::Dropped).await.is_err());
        assert!(server.snapshot_with(&id, None, Memory::Dropped).await.is_err());
        server.connect(&id, MINUTE).await.unwrap();
        assert_eq!(host.memory(&id).word, "a file", "what was refused has taken nothing");
    });
}

#[tokio::test]
async fn what_a_machine_writes_to_files_without_a_name_counts_for_its_quota() {
    let host = Host::new();
    let server = host.server_that_limits(SandboxLimits { disk_mib: Some(24), ..SandboxLimits::default() }).await;
    let (writer, other) = (server.create(base()).await.unwrap().id, server.create(base()).await.unwrap().id);
    host.guest(&other).hold_unnamed(20 << 20);
    host.guest(&writer).hold_unnamed(40 << 20);
    until("it is paused", || server.sandbox(&writer).unwrap().state == SandboxState::Paused).await;
    let is_told = || server.events(&writer).unwrap().iter().any(|event| event.message.contains("more of the disk than it may"));
    until("why is told", is_told).await;
    assert_eq!(server.sandbox(&other).unwrap().state, SandboxState::Running);
    host.guest(&other).hold_unnamed(25 << 20);
    let refused = server.snapshot(&other, None).await.unwrap_err();
    assert!(matches!(refused, SnapshotError::Quota { .. }), "{refused:?}");
    server.shutdown(OnExit::Kill).await;
}

#[test]
fn a_create_that_would_drop_them_later_is_refused_at_once() {
    let host = Host::new();
    host.serve(async |server| {
        let refused = server.create(CreateSandbox { on_timeout: OnTimeout::PauseFiles, ..base() }).await.unwrap_err();
        assert!(matches!(refused, CreateError::FilesInMemory(_)), "{refused:?}");
        assert!(server.sandboxes().is_empty());
        assert_eq!(host.engine.live(), 0);
    });
}

#[test]
fn what_is_cut_has_the_files_of_the_root_image_that_the_engine_has() {
    let host = Host::new();
    host.serve(async |server| {
        let id = server.create(base()).await.unwrap().id;
        host.remember(&id, "a file");
        let snapshot = server.snapshot(&id, None).await.unwrap();
        let fork = server.fork(&id, 1, MINUTE).await.unwrap().remove(0).unwrap().id;
        let created = server.create(CreateSandbox::from_template(&snapshot.snapshot_id)).await.unwrap().id;
        for id in [&fork, &created] {
            assert_eq!(host.memory(id).word, "a file");
        }
    });
}

#[test]
fn a_build_of_another_size_begins_with_the_files_of_its_template() {
    let host = Host::new();
    host.serve(async |server| {
        built(server, "one", own_image(), 512).await;
        built(server, "same", Source::Template("one".into()), 512).await;
        let boots = host.engine.boots();
        built(server, "larger", Source::Template("one".into()), 1024).await;
        assert_eq!(host.engine.boots(), boots + 1, "of an image that has them");
        built(server, "another", Source::Template("one".into()), 1024).await;
        assert_eq!(host.engine.boots(), boots + 1, "which is made once");
        for name in ["same", "larger", "another"] {
            server.create(CreateSandbox::from_template(name)).await.unwrap();
        }
    });
}
