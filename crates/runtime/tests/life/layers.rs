//! A disk that is cut again and again stays shallow, and what shares its layers does not notice.

use std::time::Duration;

use firkin_engine::Engine as _;
use firkin_runtime::{artifact::SnapshotArtifactManifest, ids::LayerId, runtime::Runtime, sandbox::SandboxId};

use crate::bench::{Host, base, names, until};

/// Longer than any of these tests.
const LIFE: Duration = Duration::from_secs(3600);

/// Beyond this depth a merge begins.
const MAX_DEPTH: usize = 8;

/// A chain that a merge has not caught up with is at most so deep when it is cut.
const MOST: usize = 2 * MAX_DEPTH + 1;

/// Every artifact there is. Each of its layers lies over the one below it.
fn manifests(host: &Host) -> Vec<SnapshotArtifactManifest> {
    let read = |id: String| {
        let path = host.state_dir().join("artifacts").join(id).join("manifest.json");
        // It may be collected just now.
        Some(serde_json::from_slice::<SnapshotArtifactManifest>(&fs_err::read(path).ok()?).unwrap())
    };
    let found: Vec<_> = host.artifacts().into_iter().filter_map(read).collect();
    for manifest in &found {
        for pair in manifest.disk.layers.windows(2) {
            // It may be collected just now.
            let Ok(below) = host.engine.disks().below(&host.layer(&pair[1])) else { continue };
            assert_eq!(below.unwrap(), host.layer(&pair[0]), "{manifest:?}");
        }
    }
    found
}

/// Layers of the newest state of a sandbox. While it runs, nothing needs to hold one.
fn depth(host: &Host, id: &SandboxId) -> usize {
    let states = manifests(host).into_iter().filter(|manifest| manifest.logical_id == id.as_str());
    states.max_by_key(|manifest| manifest.epoch).map(|manifest| manifest.disk.layers.len()).unwrap()
}

/// Pauses and resumes; the layers of what held the sandbox in between.
async fn again(host: &Host, server: &Runtime, id: &SandboxId) -> usize {
    server.pause(id).await.unwrap();
    let depth = depth(host, id);
    server.resume(id, LIFE).await.unwrap();
    depth
}

#[test]
fn fifty_pauses_leave_a_shallow_disk_and_its_siblings_unharmed() {
    let host = Host::new();
    host.serve(async |server| {
        let id = server.create(base()).await.unwrap().id;
        host.remember(&id, "kept");
        let (mut deepest, mut snapshot, mut sibling) = (0, None, None);
        for round in 0..50 {
            deepest = deepest.max(again(&host, server, &id).await);
            if round == 5 {
                snapshot = Some(server.snapshot(&id, None).await.unwrap());
                sibling = server.fork(&id, 1, LIFE).await.unwrap().pop().map(|child| child.unwrap().id);
            }
        }
        assert!(deepest > MAX_DEPTH && deepest <= MOST, "{deepest}");
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while again(&host, server, &id).await > MAX_DEPTH {
            assert!(std::time::Instant::now() < deadline, "it is not merged");
        }
        // The snapshot and the sibling share layers that were merged, and still have them.
        let (snapshot, sibling) = (snapshot.unwrap(), sibling.unwrap());
        let request = firkin_runtime::sandbox::CreateSandbox { template: snapshot.snapshot_id.clone(), ..base() };
        let follower = server.create(request).await.unwrap().id;
        again(&host, server, &sibling).await;
        for id in [&id, &sibling, &follower] {
            assert_eq!(host.memory(id).word, "kept");
            server.kill(id).await.unwrap();
        }
        server.delete_template(&snapshot.snapshot_id).await.unwrap();
        until("the template's layer alone", || names(&host.state_dir().join("layers")).len() == 1).await;
    });
}

#[test]
fn snapshots_of_a_running_sandbox_stay_shallow() {
    let host = Host::new();
    host.serve(async |server| {
        let id = server.create(base()).await.unwrap().id;
        for _ in 0..40 {
            let snapshot = server.snapshot(&id, None).await.unwrap();
            assert!(depth(&host, &id) <= MOST);
            server.delete_template(&snapshot.snapshot_id).await.unwrap();
        }
    });
}

#[test]
fn a_merged_disk_outlives_the_server() {
    let host = Host::new();
    let id = host.crash_after(async |server| {
        let id = server.create(base()).await.unwrap().id;
        host.remember(&id, "kept");
        // Until the record of the running sandbox names what was merged, whose layers the machine still has open.
        loop {
            let snapshot = server.snapshot(&id, None).await.unwrap();
            let newest = manifests(&host).into_iter().max_by_key(|manifest| manifest.created_at).unwrap();
            server.delete_template(&snapshot.snapshot_id).await.unwrap();
            if newest.epoch > 1 && newest.disk.layers.iter().any(is_merged) {
                return id;
            }
        }
    });
    host.serve(async |server| {
        assert!(again(&host, server, &id).await <= MOST);
        assert_eq!(host.memory(&id).word, "kept");
        server.kill(&id).await.unwrap();
    });
}

/// Its name is a digest in hexadecimal; a name that was drawn looks like one once in ten million.
fn is_merged(layer: &LayerId) -> bool {
    layer.as_str().bytes().all(|byte| byte.is_ascii_hexdigit())
}
