//! Going back where the engine fails, and to what has no memory.

use firkin_engine::fake::{Fault, Point};
use firkin_runtime::{
    owner::RollbackError,
    sandbox::{Memory, SandboxState},
};

use crate::{
    bench::{Host, base},
    rollback::{MINUTE, scene},
};

#[test]
fn a_checkpoint_without_memory_is_booted() {
    let host = Host::new();
    host.serve(async |server| {
        let id = server.create(base()).await.unwrap().id;
        let checkpoint = server.snapshot_with(&id, None, Memory::Dropped).await.unwrap().snapshot_id;
        host.remember(&id, "later");
        let boots = host.engine.boots();
        server.rollback(&id, &checkpoint).await.unwrap();
        assert_eq!((host.engine.boots(), host.memory(&id).word.as_str()), (boots + 1, ""));
    });
}

#[test]
fn a_rollback_that_fails_leaves_the_sandbox_what_it_was() {
    // Fails: saving what it is; restoring the checkpoint; restoring the checkpoint and then what it was.
    for (faults, state) in [
        (vec![(Point::Snapshot, 1)], SandboxState::Running),
        (vec![(Point::Restore, 1)], SandboxState::Running),
        (vec![(Point::Restore, 2)], SandboxState::Paused),
    ] {
        let host = Host::new();
        host.serve(async |server| {
            let (id, checkpoint) = scene(&host, server).await;
            let before = server.sandbox(&id).unwrap();
            for &(point, times) in &faults {
                for _ in 0..times {
                    host.engine.inject(point, Fault::Refuse);
                }
            }
            let error = server.rollback(&id, &checkpoint).await.unwrap_err();
            assert!(matches!(error, RollbackError::Save(_) | RollbackError::Restore { .. }), "{faults:?}: {error:?}");
            let after = server.sandbox(&id).unwrap();
            assert_eq!(after.state, state, "{faults:?}");
            if state == SandboxState::Running {
                assert_eq!(after.end_at, before.end_at, "{faults:?}");
            } else {
                server.connect(&id, MINUTE).await.unwrap();
            }
            assert_eq!(host.memory(&id).word, "later", "{faults:?}");
        });
    }
}
