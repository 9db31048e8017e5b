//! Sandboxes with volumes, as far as no guest has to work with them.

use firkin_runtime::{
    agent::AgentError,
    launch::LaunchError,
    restore::SnapshotRestoreError,
    runtime::DestroyVolumeError,
    sandbox::{CreateError, CreateSandbox, VolumeMount},
    volumes::VolumeError,
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

#[test]
fn of_two_who_delete_one_volume_one_has_and_the_other_finds_none() {
    let host = Host::new();
    host.serve(async |server| {
        for round in 0..20 {
            let volume = server.volumes().create("v").await.unwrap();
            let ended = futures::future::join_all((0..4).map(|_| server.destroy_volume(&volume.id))).await;
            let is_none = |ended: &&Result<(), _>| {
                matches!(ended, Err(DestroyVolumeError::Volume(VolumeError::NotFound(id))) if *id == volume.id)
            };
            let others = ended.iter().filter(is_none).count();
            assert_eq!((others, ended.iter().filter(|ended| ended.is_ok()).count()), (3, 1), "round {round}: {ended:?}");
            // Its name is free, and nothing of it is left.
            assert_eq!(fs_err::read_dir(host.state_dir().join("volumes")).unwrap().count(), 0);
        }
    });
}
