//! What moves between hosts: it goes on there as it was left here, and takes nothing from anybody.

use std::{io::Write as _, sync::Arc, time::Duration};

use bytes::Bytes;
use firkin_runtime::{
    artifact::archive::ArchiveKind,
    disk::{DiskPressure, DiskPressureProbe, DiskSpace},
    moving::{ExportError, ImportAs, ImportError, Imported, Leaving},
    owner::OnExit,
    restore::SnapshotRestoreError,
    runtime::Runtime,
    sandbox::{CreateSandbox, SandboxId, SandboxState},
};
use futures::{StreamExt as _, TryStreamExt as _, stream};

use crate::bench::{Host, base, names, until};

const LIFE: Duration = Duration::from_secs(3600);

/// What a guest has written to its disk.
const MARKER: &[u8] = b"written by a guest that moves";

async fn exported(server: &Runtime, what: Leaving) -> Vec<u8> {
    let chunks: Vec<Bytes> = server.export(what).await.unwrap().stream().try_collect().await.unwrap();
    chunks.concat()
}

async fn import(server: &Runtime, archive: &[u8], name: Option<&str>) -> Result<Imported, ImportError> {
    let chunks: Vec<_> = archive.chunks(1000).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
    server.import(stream::iter(chunks), ImportAs { kind: None, name: name.map(str::to_owned) }).await
}

/// A sandbox that remembers something, paused, and its archive.
fn left(there: &Host) -> (SandboxId, Vec<u8>) {
    there.serve(async |server| {
        let id = server.create(base()).await.unwrap().id;
        there.remember(&id, "counted to 41");
        let written = there.guest(&id).written();
        let mut file = fs_err::OpenOptions::new().create(true).append(true).open(written).unwrap();
        file.write_all(MARKER).unwrap();
        let refused = server.export(Leaving::Sandbox(id.clone())).await.unwrap_err();
        assert!(matches!(refused, ExportError::Running(of) if of == id));
        server.pause(&id).await.unwrap();
        let archive = exported(server, Leaving::Sandbox(id.clone())).await;
        assert_eq!(server.sandbox(&id).unwrap().state, SandboxState::Paused);
        (id, archive)
    })
}

/// Whether what the guest wrote is in a file of the state directory's.
fn has_marker(host: &Host) -> bool {
    let has = |path: &std::path::Path| {
        let content = fs_err::read(path).unwrap_or_default();
        content.windows(MARKER.len()).any(|window| window == MARKER)
    };
    let layers = names(&host.state_dir().join("layers")).into_iter().map(|name| host.state_dir().join("layers").join(name));
    let states = host.artifacts().into_iter().map(|id| host.state_dir().join("artifacts").join(id).join("state"));
    layers.chain(states).any(|path| has(&path))
}

#[test]
fn a_paused_sandbox_goes_on_elsewhere_as_it_was_left() {
    let (there, here) = (Host::new().with_image(1), Host::new());
    let (id, archive) = left(&there);
    here.serve(async |server| {
        let came = import(server, &archive, None).await.unwrap();
        assert_eq!((came.kind, &came.id, came.was_here), (ArchiveKind::Sandbox, &id.to_string(), false));
        assert_eq!(server.sandbox(&id).unwrap().state, SandboxState::Paused);
        assert!(import(server, &archive, None).await.unwrap().was_here, "once more changes nothing");
        if crate::KEEPING == firkin_engine::fake::Keeping::Files {
            assert!(has_marker(&here));
        }
        assert_eq!(names(&here.state_dir().join("roots")).len(), 1);
    });
    // A server that has just started has it, too.
    here.serve(async |server| {
        let resumed = server.resume(&id, LIFE).await.unwrap();
        assert_eq!(here.memory(&id).word, "counted to 41");
        let [.., first, second] = &here.memory(&id).identities[..] else { panic!("it was told who it is, there and here") };
        assert!(second.epoch > first.epoch && second.entropy != first.entropy);
        assert_eq!((&second.sandbox_id, &second.access_token), (&first.sandbox_id, &resumed.envd_access_token));
        here.remember(&id, "counted to 42");
        let refused = import(server, &archive, None).await.unwrap_err();
        assert!(matches!(&refused, ImportError::Taken(what) if what.contains(id.as_str())), "it runs: {refused:?}");
        server.pause(&id).await.unwrap();
        let refused = import(server, &archive, None).await.unwrap_err();
        assert!(matches!(refused, ImportError::Taken(_)), "it has gone on: {refused:?}");
        server.resume(&id, LIFE).await.unwrap();
        assert_eq!(here.memory(&id).word, "counted to 42");
        server.kill(&id).await.unwrap();
        until("what came with it is gone", || names(&here.state_dir().join("roots")).is_empty()).await;
    });
    there.serve(async |server| {
        server.resume(&id, LIFE).await.unwrap();
        assert_eq!(there.memory(&id).word, "counted to 41", "it stayed where it was");
    });
}

#[test]
fn what_is_damaged_or_cut_off_is_refused_by_name_and_leaves_nothing() {
    let (there, here) = (Host::new().with_image(1), Host::new());
    let (id, archive) = left(&there);
    here.serve(async |server| {
        let before = here.artifacts();
        for at in (0..archive.len()).step_by(archive.len() / 3) {
            assert!(matches!(import(server, &archive[..at], None).await.unwrap_err(), ImportError::Unpack(_)), "cut at {at}");
        }
        let mut damaged = archive.clone();
        damaged[archive.len() / 2] ^= 1;
        let refused = import(server, &damaged, None).await.unwrap_err();
        assert!(matches!(&refused, ImportError::Unpack(_)), "{refused:?}");
        let broken = stream::iter([Ok(Bytes::copy_from_slice(&archive[..100])), Err(std::io::Error::other("on purpose"))]);
        server.import(broken.boxed(), ImportAs::default()).await.unwrap_err();
        assert_eq!(here.artifacts(), before);
        assert!(server.sandbox(&id).is_err());
        import(server, &archive, None).await.unwrap();
    });
}

#[test]
fn what_another_engine_has_made_is_refused_before_it_is_written() {
    let (there, here) = (Host::new().with_image(1), Host::new().with_engine_version("99.1"));
    let (id, archive) = left(&there);
    here.serve(async |server| {
        let refused = import(server, &archive, None).await.unwrap_err();
        let ImportError::Incompatible(source) = &refused else { panic!("{refused:?}") };
        assert!(matches!(&**source, SnapshotRestoreError::Incompatible { what: "engine version", .. }), "{source:?}");
        assert!(server.sandbox(&id).is_err());
        assert_eq!(names(&here.state_dir().join("incoming")), Vec::<String>::new());
    });
}

#[test]
fn a_template_comes_under_its_name_or_another_and_takes_nobodys() {
    let (there, here) = (Host::new().with_image(1), Host::new());
    let archive = there.serve(async |server| {
        let id = server.create(base()).await.unwrap().id;
        there.remember(&id, "of a snapshot");
        let snapshot = server.snapshot(&id, Some("kept".to_owned())).await.unwrap();
        let template = exported(server, Leaving::Template("base".to_owned())).await;
        let refused = server.export(Leaving::Template(snapshot.snapshot_id.clone())).await.unwrap_err();
        assert!(matches!(refused, ExportError::NoTemplate(_)), "a snapshot is none: {refused:?}");
        (template, exported(server, Leaving::Snapshot(snapshot.snapshot_id)).await)
    });
    here.serve(async |server| {
        let (template, snapshot) = &archive;
        let refused = import(server, template, None).await.unwrap_err();
        assert!(matches!(&refused, ImportError::Taken(what) if what.contains("base")), "{refused:?}");
        let came = import(server, template, Some("other")).await.unwrap();
        assert_eq!((came.kind, came.names), (ArchiveKind::Template, vec!["firkin/other".to_owned()]));
        assert!(import(server, template, Some("other")).await.unwrap().was_here);
        let created = server.create(CreateSandbox { template: "other".to_owned(), ..base() }).await.unwrap();
        assert_eq!(created.template_id.to_string(), came.id);

        let wanted = ImportAs { kind: Some(ArchiveKind::Template), name: None };
        let whole = stream::iter([Ok(Bytes::copy_from_slice(snapshot))]);
        assert!(matches!(server.import(whole, wanted).await.unwrap_err(), ImportError::Kind { .. }));
        let came = import(server, snapshot, None).await.unwrap();
        assert_eq!(came.kind, ArchiveKind::Snapshot);
        let id = server.create(CreateSandbox { template: "kept".to_owned(), ..base() }).await.unwrap().id;
        assert_eq!(here.memory(&id).word, "of a snapshot");
        assert!(import(server, snapshot, None).await.unwrap().was_here);
    });
}

/// A disk with so many bytes free.
#[derive(Debug)]
struct Free(u64);

impl DiskPressureProbe for Free {
    fn probe(&self, _: &std::path::Path) -> std::io::Result<DiskSpace> {
        Ok(DiskSpace { free: self.0, total: 1 << 40 })
    }
}

#[test]
fn what_has_no_room_is_refused_before_it_is_written() {
    let (there, here) = (Host::new().with_image(1), Host::new());
    let archive = there.serve(async |server| exported(server, Leaving::Template("base".to_owned())).await);
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio.block_on(async {
        // The floor, and next to nothing.
        let server = here.server_on(Arc::new(Free((100 << 20) + 10))).await;
        let refused = import(&server, &archive, Some("other")).await.unwrap_err();
        assert!(matches!(refused, ImportError::Disk(DiskPressure::BelowFloor { .. })), "{refused:?}");
        assert_eq!(names(&here.state_dir().join("incoming")), Vec::<String>::new());
        server.shutdown(OnExit::Kill).await;
    });
}
