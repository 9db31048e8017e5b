//! A memory diff that has become large is made one with its base while its sandbox is paused, and nobody waits for it.

use std::time::Duration;

use firkin_runtime::{
    artifact::{MemoryMember, SnapshotArtifactManifest},
    owner::OnExit,
    runtime::Runtime,
    sandbox::{CreateSandbox, SandboxId},
    standard::BuildTemplate,
};
use tokio::time::advance;

use crate::bench::{Host, base, hold_the_clock, names, until};

/// Longer than any of these tests.
const LIFE: Duration = Duration::from_secs(3600);

/// When a paused sandbox of the default configuration is looked at.
const AFTER: Duration = Duration::from_secs(11);

/// More than a quarter of the smallest machine's memory.
const BULK: usize = 300_000;

/// A host with a server, and a running sandbox that has written much.
async fn scene() -> (Host, Runtime, SandboxId) {
    hold_the_clock();
    let host = Host::new();
    let server = host.server().await;
    let small = BuildTemplate { name: "small".into(), ready: None, memory_mib: 1, ..BuildTemplate::base() };
    Box::pin(server.build_template(small, &|_| {})).await.unwrap();
    let id = server.create(CreateSandbox { template: "small".into(), ..base() }).await.unwrap().id;
    host.remember(&id, &"x".repeat(BULK));
    (host, server, id)
}

/// States of a sandbox that there are.
fn states(host: &Host, id: &SandboxId) -> Vec<SnapshotArtifactManifest> {
    let read = |artifact: String| {
        let path = host.state_dir().join("artifacts").join(artifact).join("manifest.json");
        serde_json::from_slice::<SnapshotArtifactManifest>(&fs_err::read(path).ok()?).ok()
    };
    host.artifacts().into_iter().filter_map(read).filter(|manifest| manifest.logical_id == id.as_str()).collect()
}

fn is_flat(host: &Host, id: &SandboxId) -> bool {
    matches!(&states(host, id)[..], [only] if only.memory == MemoryMember::Full)
}

#[tokio::test(start_paused = true)]
async fn a_large_diff_becomes_a_memory_of_its_own() {
    let (host, server, id) = scene().await;
    server.pause(&id).await.unwrap();
    advance(AFTER).await;
    until("a whole memory instead of the diff", || is_flat(&host, &id)).await;
    server.resume(&id, LIFE).await.unwrap();
    assert_eq!(host.memory(&id).word.len(), BULK);

    // What comes next stands on it, and is small.
    host.remember(&id, "little");
    let child = server.fork(&id, 1, LIFE).await.unwrap().pop().unwrap().unwrap().id;
    let snapshot = server.snapshot(&id, None).await.unwrap();
    server.pause(&id).await.unwrap();
    advance(AFTER).await;
    assert!(states(&host, &id).iter().any(|manifest| matches!(manifest.memory, MemoryMember::Diff { .. })));
    server.resume(&id, LIFE).await.unwrap();
    for sandbox in [&id, &child] {
        assert_eq!(host.memory(sandbox).word, "little");
        server.kill(sandbox).await.unwrap();
    }
    server.delete_template(&snapshot.snapshot_id).await.unwrap();
    until("the templates alone", || host.artifacts().len() == 2 && names(&host.state_dir().join("layers")).len() == 2).await;
    server.shutdown(OnExit::Kill).await;
}

#[tokio::test(start_paused = true)]
async fn whoever_wakes_a_sandbox_does_not_wait_for_it() {
    let (host, server, id) = scene().await;
    for _ in 0..3 {
        server.pause(&id).await.unwrap();
        server.resume(&id, LIFE).await.unwrap();
        advance(AFTER).await;
        assert!(states(&host, &id).iter().all(|manifest| manifest.memory != MemoryMember::Full));
        assert_eq!(host.memory(&id).word.len(), BULK);
    }
    server.shutdown(OnExit::Kill).await;
}
