//! Sandboxes with volumes, as far as no guest has to work with them.

use firkin_runtime::{
    agent::AgentError,
    launch::LaunchError,
    restore::SnapshotRestoreError,
    sandbox::{CreateError, CreateSandbox, VolumeMount},
};

use crate::bench::{Host, base};

#[test]
fn an_agent_from_before_there_were_volumes_is_refused_and_nothing_is_left() {
    let host = Host::new();
    host.serve(async |server| {
        let volume = server.volumes().create("v").await.unwrap();
        let request = CreateSandbox { volumes: vec![VolumeMount::new("v", "/mnt")], ..base() };
        let refused = server.create(request).await.unwrap_err();
        let is_named = matches!(
            refused,
            CreateError::Restore { source: SnapshotRestoreError::Launch(LaunchError::Agent(AgentError::NoVolumes)), .. }
        );
        assert!(is_named, "{refused:?}");
        assert!(server.sandboxes().is_empty());
        assert_eq!(host.engine.live(), 0);
        // Nor is the volume kept by what did not come about.
        server.destroy_volume(&volume.id).await.unwrap();
        // Who has no volumes is served as ever.
        server.create(base()).await.unwrap();
    });
}
