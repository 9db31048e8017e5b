//! A disk that fills up while sandboxes run: who fills it is paused, and nobody else.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use firkin_runtime::{
    disk::{DiskPressureProbe, DiskSpace},
    owner::{OnExit, ResumeError},
    sandbox::SandboxState,
};

use crate::bench::{Host, base, life, until};

/// A disk that is as full as a test says.
#[derive(Debug)]
struct Disk(AtomicU64);

impl DiskPressureProbe for Disk {
    fn probe(&self, _: &Path) -> std::io::Result<DiskSpace> {
        Ok(DiskSpace { free: self.0.load(Ordering::SeqCst) << 20, total: 1 << 50 })
    }
}

#[tokio::test]
async fn a_full_disk_pauses_who_writes_most_and_says_why() {
    let (host, disk) = (Host::new(), Arc::new(Disk(AtomicU64::new(1000))));
    let server = host.server_on(Arc::clone(&disk) as Arc<dyn DiskPressureProbe>).await;
    let (writer, idle) = (server.create(base()).await.unwrap(), server.create(base()).await.unwrap());
    host.remember(&writer.id, "kept");
    let overlay = host.guest(&writer.id).written();
    // As long as it runs, it writes: 4 MiB a second.
    let begun = std::time::Instant::now();
    let write = || {
        let bytes = (1 + usize::try_from(begun.elapsed().as_secs()).unwrap()) * (4 << 20);
        let path = overlay.with_file_name("written");
        if fs_err::metadata(&path).map_or(0, |there| there.len()) != bytes as u64 {
            fs_err::write(path, vec![1; bytes]).unwrap();
        }
    };
    write();
    let state = |id| server.sandbox(id).unwrap().state;
    assert_eq!(state(&writer.id), SandboxState::Running, "a disk with room is everybody's");

    disk.0.store(99, Ordering::SeqCst);
    let is_paused = || {
        let paused = state(&writer.id) == SandboxState::Paused;
        if !paused {
            write();
        }
        paused
    };
    until("who writes most is paused", is_paused).await;
    assert_eq!(state(&idle.id), SandboxState::Running);
    let told = || server.events(&writer.id).unwrap().into_iter().find(|event| event.message.contains("below its floor"));
    until("why is told", || told().is_some()).await;
    assert!(told().unwrap().fields["written_mib"].parse::<u64>().unwrap() >= 4);
    let kept = host.artifacts().into_iter().map(|id| host.state_dir().join("artifacts").join(id).join("manifest.json"));
    assert!(kept.into_iter().any(|manifest| fs_err::read_to_string(manifest).unwrap().contains("disk_full")), "it is on record");
    let refused = server.resume(&writer.id, life(&writer)).await.unwrap_err();
    assert!(matches!(refused, ResumeError::Restore { .. }), "there is no room for it yet: {refused:?}");

    disk.0.store(1000, Ordering::SeqCst);
    server.resume(&writer.id, life(&writer)).await.unwrap();
    assert_eq!(host.memory(&writer.id).word, "kept");
    server.shutdown(OnExit::Kill).await;
}
