//! A machine answers its own calls and no other's, whoever's socket the server has come to.

use std::time::Duration;

use firkin_runtime::{agent::AgentError, owner::SnapshotError, runtime::Runtime, sandbox::SandboxId};

use crate::bench::{Age, Host, base};

const MINUTE: Duration = Duration::from_secs(60);

/// What becomes of a pause, which has to ask the guest.
async fn is_taken_for_a_stranger(server: &Runtime, id: &SandboxId) -> bool {
    let paused = server.pause(id).await;
    matches!(paused, Err(SnapshotError::Guest { source: AgentError::Stranger { .. }, .. }))
}

/// Swaps the control sockets of two running sandboxes.
fn swap(host: &Host, ids: &[SandboxId; 2]) {
    let [one, other] = ids.each_ref().map(|id| host.state_dir().join("run").join(id.as_str()));
    host.engine.cross(&one, &other);
}

/// A pair of sandboxes that outlives its server, so that the next one has to open their sockets anew.
fn pair(host: &Host) -> [SandboxId; 2] {
    host.crash_after(async |server| [server.create(base()).await.unwrap().id, server.create(base()).await.unwrap().id])
}

#[test]
fn two_machines_whose_sockets_were_swapped_are_refused_and_do_nothing() {
    let host = Host::new();
    let ids = pair(&host);
    let before = ids.each_ref().map(|id| host.memory(id).identities);
    swap(&host, &ids);
    host.serve(async |server| {
        for id in &ids {
            assert!(is_taken_for_a_stranger(server, id).await, "{id}");
            assert!(server.stats(id).await.unwrap().is_none(), "{id} is shown with another's figures");
        }
        for (id, before) in ids.iter().zip(&before) {
            let memory = host.memory(id);
            assert_eq!(&memory.identities, before, "{id} became nobody else");
            assert!(
                !memory.overheard.is_empty() && memory.overheard.iter().all(|call| call == "Hello"),
                "{:?}",
                memory.overheard
            );
        }
        // It is for the sockets that they were refused.
        swap(&host, &ids);
        for id in &ids {
            server.pause(id).await.unwrap();
            server.resume(id, MINUTE).await.unwrap();
            server.stats(id).await.unwrap().unwrap();
        }
    });
}

#[test]
fn agents_that_know_of_no_nonces_serve_as_before() {
    let host = Host::with_agents(Age::Early);
    let ids = pair(&host);
    host.serve(async |server| {
        for id in &ids {
            server.pause(id).await.unwrap();
            server.resume(id, MINUTE).await.unwrap();
            for child in server.fork(id, 2, MINUTE).await.unwrap() {
                server.pause(&child.unwrap().id).await.unwrap();
            }
            server.stats(id).await.unwrap().unwrap();
        }
    });
}

/// Each restore of one state is a machine of its own, and knows the one that it was.
#[test]
fn what_is_restored_of_one_state_is_many_machines() {
    let host = Host::new();
    host.serve(async |server| {
        let source = server.create(base()).await.unwrap().id;
        let mut ids = vec![source.clone()];
        ids.extend(server.fork(&source, 3, MINUTE).await.unwrap().into_iter().map(|child| child.unwrap().id));
        for id in &ids {
            server.pause(id).await.unwrap();
            server.resume(id, MINUTE).await.unwrap();
        }
        let mut bonds: Vec<String> = ids.iter().map(|id| serde_json::to_string(&host.memory(id).bond).unwrap()).collect();
        bonds.sort();
        bonds.dedup();
        assert_eq!(bonds.len(), ids.len());
        assert!(bonds.iter().all(|bond| bond.len() > 40), "each has a nonce: {bonds:?}");
        assert!(ids.iter().all(|id| host.memory(id).overheard.is_empty()));
    });
}
