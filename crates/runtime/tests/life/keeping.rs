//! What happens to a sandbox when what was cut out of it cannot be kept, and when what was kept is damaged.

use std::time::Duration;

use firkin_runtime::{error::SnapshotError, sandbox::SandboxState};

use crate::bench::{Host, base, names};

#[test]
fn a_pause_that_cannot_be_made_durable_lets_the_sandbox_go_on() {
    let host = Host::new();
    host.serve(async |server| {
        let id = server.create(base()).await.unwrap().id;
        host.remember(&id, "kept");
        let artifact = host.state_dir().join("artifacts").join(&host.artifacts()[0]);
        // Only publication looks at it: by then the machine stands still and has been cut.
        fs_err::rename(artifact.join("memory"), artifact.join("aside")).unwrap();
        let refused = server.pause(&id).await;
        assert!(matches!(refused, Err(SnapshotError::Publish { .. })), "{refused:?}");
        assert_eq!(server.sandbox(&id).unwrap().state, SandboxState::Running);
        assert!(server.stats(&id).await.unwrap().is_some(), "its guest runs");
        assert_eq!(names(&host.state_dir().join("artifacts")).len(), 1, "nothing of the attempt is left");

        fs_err::rename(artifact.join("aside"), artifact.join("memory")).unwrap();
        server.pause(&id).await.unwrap();
        server.resume(&id, Duration::from_secs(60)).await.unwrap();
        assert_eq!(host.memory(&id).word, "kept");
    });
}
