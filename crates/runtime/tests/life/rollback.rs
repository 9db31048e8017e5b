//! Back to a checkpoint in place: same id, token and deadline, older state; or exactly what it was.

use std::time::Duration;

use firkin_runtime::{
    owner::RollbackError,
    runtime::Runtime,
    sandbox::{SandboxId, SandboxState},
};

use crate::bench::{Host, base};

pub(crate) const MINUTE: Duration = Duration::from_secs(60);

/// A sandbox that remembers "later", with a checkpoint of when it remembered "then".
pub(crate) async fn scene(host: &Host, server: &Runtime) -> (SandboxId, String) {
    let id = server.create(base()).await.unwrap().id;
    host.remember(&id, "then");
    let checkpoint = server.snapshot(&id, Some(format!("then-{id}"))).await.unwrap().snapshot_id;
    host.remember(&id, "later");
    (id, checkpoint)
}

#[test]
fn a_running_sandbox_goes_back_and_keeps_who_it_is() {
    let host = Host::new();
    host.serve(async |server| {
        let (id, checkpoint) = scene(&host, server).await;
        let before = server.sandbox(&id).unwrap();
        // As often as one likes, by id or by name.
        for reference in [checkpoint.as_str(), &format!("then-{id}"), checkpoint.as_str()] {
            let back = server.rollback(&id, reference).await.unwrap();
            assert_eq!(back, server.sandbox(&id).unwrap());
            assert_eq!((back.state, back.end_at), (SandboxState::Running, before.end_at));
            assert_eq!((&back.id, &back.envd_access_token), (&before.id, &before.envd_access_token));
            assert_eq!(host.memory(&id).word, "then");
            host.remember(&id, "elsewhere");
        }
        // It is a sandbox like any other, with a history of its own from here.
        server.pause(&id).await.unwrap();
        server.connect(&id, MINUTE).await.unwrap();
        assert_eq!(host.memory(&id).word, "elsewhere");
        let epochs: Vec<u64> = host.memory(&id).identities.iter().map(|given| given.epoch).collect();
        assert!(epochs.is_sorted(), "no life repeats an earlier one's number: {epochs:?}");
    });
}

#[test]
fn a_paused_sandbox_goes_back_and_stays_paused() {
    let host = Host::new();
    let id = host.crash_after(async |server| {
        let (id, checkpoint) = scene(&host, &server).await;
        server.pause(&id).await.unwrap();
        let back = server.rollback(&id, &checkpoint).await.unwrap();
        assert_eq!(back.state, SandboxState::Paused);
        id
    });
    host.serve(async |server| {
        server.connect(&id, MINUTE).await.unwrap();
        assert_eq!(host.memory(&id).word, "then");
    });
}

#[test]
fn what_cannot_be_gone_back_to_is_refused_before_anything_happens() {
    let host = Host::new();
    host.serve(async |server| {
        let (id, checkpoint) = scene(&host, server).await;
        let (other, _) = scene(&host, server).await;
        let restores = host.engine.restores();
        let error = server.rollback(&other, &checkpoint).await.unwrap_err();
        assert!(matches!(error, RollbackError::NotItsOwn { .. }), "{error:?}");
        let error = server.rollback(&id, "base").await.unwrap_err();
        assert!(matches!(error, RollbackError::NotItsOwn { .. }), "{error:?}");
        let error = server.rollback(&id, "nothing").await.unwrap_err();
        assert!(matches!(error, RollbackError::SnapshotNotFound(_)), "{error:?}");
        server.delete_template(&checkpoint).await.unwrap();
        let error = server.rollback(&id, &checkpoint).await.unwrap_err();
        assert!(matches!(error, RollbackError::SnapshotNotFound(_)), "{error:?}");
        assert_eq!((host.engine.restores(), host.memory(&id).word.as_str()), (restores, "later"));
        assert_eq!(server.sandbox(&id).unwrap().state, SandboxState::Running);
    });
}
