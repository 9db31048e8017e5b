//! What happens to a sandbox when what was kept of it is damaged.

use std::time::Duration;

use firkin_engine::{Engine as _, fake::Keeping};
use firkin_runtime::{
    artifact::IntegrityError,
    owner::ResumeError,
    restore::SnapshotRestoreError,
    sandbox::CreateError,
    state_dir::OpenError,
    verify::{in_use, verify},
};

use crate::bench::{Host, base};

#[test]
fn a_verification_names_the_damage_and_who_needs_it() {
    let host = Host::new();
    let (id, pause) = host.serve(async |server| {
        let id = server.create(base()).await.unwrap().id;
        let before = host.artifacts();
        server.pause(&id).await.unwrap();
        assert!(
            matches!(verify(&host.state_dir(), host.engine.disks(), None).await, Err(OpenError::Locked { .. })),
            "a server is at work"
        );
        assert!(matches!(in_use(&host.state_dir()), Err(OpenError::Locked { .. })), "and it is said without touching anything");
        (id, host.artifacts().into_iter().find(|artifact| !before.contains(artifact)).unwrap())
    });
    let check =
        || tokio::runtime::Runtime::new().unwrap().block_on(verify(&host.state_dir(), host.engine.disks(), None)).unwrap();
    assert!(check().is_intact());
    let state = host.state_dir().join("artifacts").join(&pause).join("state");
    fs_err::rename(&state, state.with_file_name("aside")).unwrap();
    let report = check();
    assert!(!report.is_intact());
    for artifact in &report.artifacts {
        let damaged = artifact.examined.id.as_str() == pause;
        assert_eq!((artifact.examined.problems.is_empty(), artifact.quarantined_since.is_some()), (!damaged, damaged));
        let mut needed_by = vec![if damaged { format!("sandbox {id}") } else { "template base:default".to_owned() }];
        if !damaged && crate::KEEPING == Keeping::Files {
            // Its memory stands on the template's.
            needed_by.push(format!("artifact {pause}"));
        }
        assert_eq!(artifact.needed_by, needed_by);
    }

    // The sandbox says what is wrong with it, and others are created.
    host.serve(async |server| {
        let refused = server.resume(&id, Duration::from_secs(60)).await.unwrap_err();
        assert!(
            matches!(&refused, ResumeError::Restore { source: SnapshotRestoreError::Integrity { source: IntegrityError::Quarantined { .. }, artifact }, .. } if artifact.as_str() == pause),
            "{refused:?}"
        );
        server.create(base()).await.unwrap();
    });
    fs_err::rename(state.with_file_name("aside"), &state).unwrap();
    assert!(check().is_intact(), "what is whole again comes out of quarantine");
    host.serve(async |server| drop(server.resume(&id, Duration::from_secs(60)).await.unwrap()));
}

#[test]
fn a_template_in_quarantine_is_refused_by_name_and_built_anew() {
    let host = Host::new();
    let template = host.serve(async |_| host.artifacts()[0].clone());
    let state = host.state_dir().join("artifacts").join(&template).join("state");
    let content = fs_err::read(&state).unwrap();
    host.serve(async |server| {
        fs_err::write(&state, content.to_ascii_uppercase()).unwrap();
        let refused = server.create(base()).await.unwrap_err();
        assert!(
            matches!(&refused, CreateError::Restore { source: SnapshotRestoreError::Integrity { artifact, .. }, .. } if artifact.as_str() == template),
            "{refused:?}"
        );
    });
    // The next server makes sure of its base template.
    host.serve(async |server| drop(server.create(base()).await.unwrap()));
    assert!(!host.artifacts().contains(&template), "nobody needs the damaged one any more");
}
