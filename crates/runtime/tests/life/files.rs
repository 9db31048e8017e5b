//! Pausing with the file system only: memory is dropped, the disk is kept, and a resume boots from it.

use std::time::Duration;

use firkin_engine::fake::{Fault, Point};
use firkin_runtime::{
    artifact::IntegrityError,
    launch::BootError,
    owner::ResumeError,
    restore::SnapshotRestoreError,
    sandbox::{CreateSandbox, Memory, OnTimeout, SandboxId, SandboxState},
};

use crate::bench::{Host, base, hold_the_clock, names, until};

const MINUTE: Duration = Duration::from_secs(60);

/// Layers under the guest's root disk, lowest first.
fn layers(host: &Host, id: &SandboxId) -> Vec<String> {
    let mut path = host.guest(id).root_disk();
    let mut found = Vec::new();
    while let Some(below) = host.below(&path) {
        found.insert(0, below.file_stem().unwrap().to_string_lossy().into_owned());
        path = below;
    }
    found
}

#[test]
fn a_pause_without_memory_keeps_the_disk_and_boots_from_it() {
    let host = Host::new();
    host.serve(async |server| {
        let created = server.create(base()).await.unwrap();
        let id = created.id.clone();
        host.remember(&id, "in memory");
        let mut disk = layers(&host, &id);
        disk.push(host.guest(&id).root_disk().file_stem().unwrap().to_string_lossy().into_owned());
        server.pause_with(&id, Memory::Dropped).await.unwrap();
        let paused = server.sandbox(&id).unwrap();
        assert_eq!((paused.state, paused.memory), (SandboxState::Paused, Memory::Dropped));
        assert_eq!(host.engine.live(), 0);

        let boots = host.engine.boots();
        let resumed = server.connect(&id, MINUTE).await.unwrap();
        assert!(resumed.resumed);
        assert_eq!(host.engine.boots(), boots + 1);
        assert_eq!(resumed.sandbox.envd_access_token, created.envd_access_token, "it is the same sandbox");
        assert_eq!(resumed.sandbox.memory, Memory::Kept, "it has memory again");
        let memory = host.memory(&id);
        assert_eq!(memory.word, "", "memory is gone");
        assert_eq!(memory.identities.len(), 2, "who it is was told to what booted, and to what was restored of that");
        assert!(memory.identities.iter().all(|given| given.sandbox_id == id.as_str() && given.machine_id.is_none()));
        assert!(layers(&host, &id).starts_with(&disk), "the disk goes on from what was sealed");

        // From here on it is a sandbox like any other: its memory pauses, forks and comes back.
        host.remember(&id, "again");
        let fork = server.fork(&id, 1, MINUTE).await.unwrap().remove(0).unwrap().id;
        server.pause(&id).await.unwrap();
        let boots = host.engine.boots();
        server.connect(&id, MINUTE).await.unwrap();
        assert_eq!((host.memory(&id).word.as_str(), host.memory(&fork).word.as_str()), ("again", "again"));
        assert_eq!(host.engine.boots(), boots, "memory is restored, never booted");
    });
}

#[test]
fn a_resume_may_drop_the_memory_that_was_kept() {
    let host = Host::new();
    host.serve(async |server| {
        let id = server.create(base()).await.unwrap().id;
        host.remember(&id, "in memory");
        let connected = server.connect_with(&id, MINUTE, Memory::Dropped).await.unwrap();
        assert!(!connected.resumed, "what runs is left alone");
        assert_eq!(host.memory(&id).word, "in memory");
        server.pause(&id).await.unwrap();
        assert_eq!(server.sandbox(&id).unwrap().memory, Memory::Kept);
        server.resume_with(&id, MINUTE, Memory::Dropped).await.unwrap();
        assert_eq!(host.memory(&id).word, "");
    });
}

#[test]
fn a_snapshot_without_memory_boots_what_is_created_from_it() {
    let host = Host::new();
    host.serve(async |server| {
        let id = server.create(base()).await.unwrap().id;
        host.remember(&id, "in memory");
        let running = server.snapshot_with(&id, None, Memory::Dropped).await.unwrap().snapshot_id;
        assert_eq!(host.memory(&id).word, "in memory", "the source goes on");
        server.pause(&id).await.unwrap();
        let paused = server.snapshot_with(&id, None, Memory::Dropped).await.unwrap().snapshot_id;
        for template in [running, paused] {
            let boots = host.engine.boots();
            let child = server.create(CreateSandbox { template, ..base() }).await.unwrap();
            assert_eq!(host.engine.boots(), boots + 1);
            let memory = host.memory(&child.id);
            assert_eq!(memory.word, "");
            assert!(memory.identities.last().unwrap().machine_id.is_some(), "another machine than its source");
            server.kill(&child.id).await.unwrap();
        }
        server.connect(&id, MINUTE).await.unwrap();
        assert_eq!(host.memory(&id).word, "in memory", "a snapshot takes nothing from a paused sandbox");
    });
}

#[test]
fn a_boot_that_fails_leaves_the_sandbox_paused_and_nothing_else() {
    let host = Host::new();
    host.serve(async |server| {
        let id = server.create(base()).await.unwrap().id;
        server.pause_with(&id, Memory::Dropped).await.unwrap();
        let artifacts = host.artifacts().len();
        for _ in 0..3 {
            host.engine.inject(Point::Boot, Fault::Refuse);
        }
        let error = server.connect(&id, MINUTE).await.unwrap_err();
        assert!(
            matches!(error, ResumeError::Restore { source: SnapshotRestoreError::Boot(BootError::Up { attempts: 3, .. }), .. }),
            "{error:?}"
        );
        assert_eq!(server.capacity().usage.active.held.cpus, 0);
        assert_eq!(server.sandbox(&id).unwrap().state, SandboxState::Paused);
        assert_eq!(host.artifacts().len(), artifacts);
        assert!(server.connect(&id, MINUTE).await.unwrap().resumed);
    });
}

#[test]
fn a_damaged_disk_is_not_booted() {
    let host = Host::new();
    host.serve(async |server| {
        let id = server.create(base()).await.unwrap().id;
        server.pause_with(&id, Memory::Dropped).await.unwrap();
        let layers = host.state_dir().join("layers");
        let layer = layers.join(&names(&layers)[0]);
        let layer = if layer.is_dir() { layer.join("bytes") } else { layer };
        let mut bytes = fs_err::read(&layer).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        let damaged = layer.with_extension("damaged");
        fs_err::write(&damaged, bytes).unwrap();
        fs_err::rename(&damaged, &layer).unwrap();
        let boots = host.engine.boots();
        let error = server.connect(&id, MINUTE).await.unwrap_err();
        assert!(
            matches!(
                &error,
                ResumeError::Restore {
                    source: SnapshotRestoreError::Integrity { source: IntegrityError::Digest { .. }, .. },
                    ..
                }
            ),
            "{error:?}"
        );
        assert_eq!(host.engine.boots(), boots);
    });
}

#[tokio::test(start_paused = true)]
async fn a_deadline_may_keep_the_files_only() {
    hold_the_clock();
    let host = Host::new();
    let server = host.server().await;
    let spec = CreateSandbox { timeout: MINUTE, on_timeout: OnTimeout::PauseFiles, ..base() };
    let id = server.create(spec).await.unwrap().id;
    tokio::time::advance(MINUTE * 2).await;
    until("the pause", || host.engine.live() == 0).await;
    let paused = server.sandbox(&id).unwrap();
    assert_eq!((paused.state, paused.memory), (SandboxState::Paused, Memory::Dropped));
    server.shutdown(firkin_runtime::owner::OnExit::Kill).await;
}
