//! A disk that fills up while sandboxes run: who fills it is paused, and nobody else.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use firkin_engine::fake::{Fault, Point};
use firkin_runtime::{
    changes::{Condition, ConditionState, Told, What},
    disk::{DiskPressureProbe, DiskSpace},
    owner::{OnExit, ResumeError, SnapshotError},
    runtime::Runtime,
    sandbox::{RuntimeSandbox, SandboxState},
    store::BuildState,
};

use crate::{
    bench::{Host, base, life, names, until},
    building::{own_image, plan, request, start},
};

/// A disk that is as full as a test says.
#[derive(Debug)]
struct Disk(AtomicU64);

impl DiskPressureProbe for Disk {
    fn probe(&self, _: &Path) -> std::io::Result<DiskSpace> {
        Ok(DiskSpace { free: self.0.load(Ordering::SeqCst) << 20, total: 1 << 50 })
    }
}

/// Has `file` be as large as one that grows by 4 MiB a second. It may go at any time, and its directory with it.
fn grow(file: &Path, begun: std::time::Instant) {
    let bytes = (1 + usize::try_from(begun.elapsed().as_secs()).unwrap()) * (4 << 20);
    if fs_err::metadata(file).map_or(0, |there| there.len()) != bytes as u64 {
        drop(fs_err::write(file, vec![1; bytes]));
    }
}

/// Has the disk be so full that nothing may be written for a pause, and these write until they stand still.
async fn fill(host: &Host, server: &Runtime, disk: &Disk, writers: &[&RuntimeSandbox]) {
    disk.0.store(49, Ordering::SeqCst);
    let begun = Instant::now();
    let files: Vec<_> = writers.iter().map(|writer| host.guest(&writer.id).written().with_file_name("written")).collect();
    let all = || {
        let moving: Vec<bool> =
            writers.iter().map(|writer| server.sandbox(&writer.id).unwrap().state == SandboxState::Running).collect();
        files.iter().zip(&moving).filter(|(_, moving)| **moving).for_each(|(file, _)| grow(file, begun));
        !moving.contains(&true)
    };
    until("they write no more", all).await;
}

#[tokio::test]
async fn what_is_told_differs_from_what_was_shown() {
    let (host, disk) = (Host::new(), Arc::new(Disk(AtomicU64::new(1000))));
    let server = host.server_on(Arc::clone(&disk) as Arc<dyn DiskPressureProbe>).await;
    let mut changes = server.changes(None);
    let mut holds = async || loop {
        let told = tokio::time::timeout(Duration::from_secs(60), changes.next()).await.expect("it is told");
        let Told::Change(change) = told else { panic!("{told:?}") };
        if let What::Host { state: ConditionState { condition: Condition::ShortOfDisk, holds } } = change.what {
            return holds;
        }
    };
    assert!(!holds().await, "the first look tells everything");
    // Full just while it is shown, between two looks.
    disk.0.store(50, Ordering::SeqCst);
    let shown = server.overview().await.unwrap().conditions;
    disk.0.store(1000, Ordering::SeqCst);
    assert!(shown.contains(&ConditionState { condition: Condition::ShortOfDisk, holds: true }));
    assert!(holds().await, "others are told what was found");
    assert!(!holds().await, "and who was shown it is told that it is over");
    server.shutdown(OnExit::Kill).await;
}

#[tokio::test]
async fn a_full_disk_pauses_who_writes_most_and_says_why() {
    let (host, disk) = (Host::new(), Arc::new(Disk(AtomicU64::new(1000))));
    let server = host.server_on(Arc::clone(&disk) as Arc<dyn DiskPressureProbe>).await;
    let (writer, idle) = (server.create(base()).await.unwrap(), server.create(base()).await.unwrap());
    host.remember(&writer.id, "kept");
    let written = host.guest(&writer.id).written().with_file_name("written");
    // As long as it runs, it writes.
    let begun = std::time::Instant::now();
    grow(&written, begun);
    let state = |id| server.sandbox(id).unwrap().state;
    assert_eq!(state(&writer.id), SandboxState::Running, "a disk with room is everybody's");

    disk.0.store(99, Ordering::SeqCst);
    let is_paused = || {
        let paused = state(&writer.id) == SandboxState::Paused;
        if !paused {
            grow(&written, begun);
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

#[tokio::test]
async fn below_half_of_the_floor_writers_stand_still_and_nothing_is_written_for_them() {
    let (host, disk) = (Host::new(), Arc::new(Disk(AtomicU64::new(1000))));
    let server = host.server_on(Arc::clone(&disk) as Arc<dyn DiskPressureProbe>).await;
    let [one, two, idle] =
        [server.create(base()).await, server.create(base()).await, server.create(base()).await].map(Result::unwrap);
    let artifacts = host.artifacts();
    let epoch = server.create(base()).await.map(|other| host.memory(&other.id).epoch).unwrap();
    let state = |id| server.sandbox(id).unwrap().state;
    host.remember(&one.id, "kept");
    fill(&host, &server, &disk, &[&one, &two]).await;
    assert_eq!(state(&idle.id), SandboxState::Running);
    assert_eq!(host.artifacts(), artifacts, "no pause was written to the full disk");
    let told = |message: &str| server.events(&one.id).unwrap().iter().any(|event| event.message.contains(message));
    until("why is told", || told("stands still until there is room")).await;
    // Nobody is told that it runs, and it can be ended.
    let refused = server.connect(&one.id, life(&one)).await.unwrap_err();
    assert!(matches!(refused, ResumeError::Restore { .. }), "{refused:?}");
    let refused = server.pause(&one.id).await.unwrap_err();
    assert!(matches!(refused, SnapshotError::DiskPressure { .. }), "{refused:?}");
    assert_eq!(state(&one.id), SandboxState::Paused, "it stands still after that too");
    assert_eq!(server.stats(&one.id).await.unwrap(), None);
    server.kill(&two.id).await.unwrap();

    disk.0.store(1000, Ordering::SeqCst);
    until("it goes on", || state(&one.id) == SandboxState::Running).await;
    assert!(told("goes on"));
    assert_eq!((host.memory(&one.id).word.as_str(), host.memory(&one.id).epoch), ("kept", epoch), "in the same life");
    assert!(server.stats(&one.id).await.unwrap().is_some());
    server.pause(&one.id).await.unwrap();
    server.shutdown(OnExit::Kill).await;
}

#[tokio::test]
async fn a_build_that_writes_most_fails_and_says_why() {
    let (host, envd) = Host::with_silent_envd();
    let disk = Arc::new(Disk(AtomicU64::new(1000)));
    let server = host.server_on(Arc::clone(&disk) as Arc<dyn DiskPressureProbe>).await;
    let idle = server.create(base()).await.unwrap();
    let run = host.state_dir().join("run");
    let others = names(&run);
    let place = request(&server, "large", 1024).await;
    start(&server, &place, plan(own_image(), &["fill the disk"])).await;
    disk.0.store(150, Ordering::SeqCst);
    let begun = std::time::Instant::now();
    let info = loop {
        // Then the command is under way.
        if envd.was_called() {
            names(&run).iter().filter(|name| !others.contains(name)).for_each(|dir| grow(&run.join(dir).join("written"), begun));
            disk.0.store(99, Ordering::SeqCst);
        }
        let info = server.build(&place.template_id, &place.build_id).await.unwrap();
        if info.state != BuildState::Building {
            break info;
        }
        assert!(begun.elapsed().as_secs() < 100, "nothing ends it");
        tokio::task::yield_now().await;
    };
    assert_eq!(info.state, BuildState::Error);
    let reason = info.reason.unwrap().message;
    assert!(reason.contains("below its free-space floor, and this build wrote most"), "{reason}");
    assert_eq!(server.sandbox(&idle.id).unwrap().state, SandboxState::Running);
    until("nothing of it is left", || names(&run) == others).await;
    server.shutdown(OnExit::Kill).await;
}

#[tokio::test]
async fn a_server_that_ends_on_a_full_disk_leaves_to_the_next_what_it_cannot_pause() {
    let (host, disk) = (Host::new(), Arc::new(Disk(AtomicU64::new(1000))));
    let open = || host.server_on(Arc::clone(&disk) as Arc<dyn DiskPressureProbe>);
    let server = open().await;
    let id = server.create(base()).await.unwrap().id;
    host.remember(&id, "kept");
    disk.0.store(40, Ordering::SeqCst);
    server.shutdown(OnExit::Pause).await;
    drop(server);
    let server = open().await;
    assert_eq!(server.sandbox(&id).unwrap().state, SandboxState::Running);
    assert_eq!(host.memory(&id).word, "kept");
    disk.0.store(1000, Ordering::SeqCst);
    server.pause(&id).await.unwrap();
    server.shutdown(OnExit::Kill).await;
}

/// Waits until a sandbox that stands still, and was to end with its deadline, has passed that by far.
async fn outlast_deadline(server: &Runtime, sandbox: &RuntimeSandbox) {
    server.set_timeout(&sandbox.id, Duration::from_secs(8)).await.unwrap();
    let begun = Instant::now();
    until("its deadline has passed", || begun.elapsed() > Duration::from_secs(9)).await;
    assert_eq!(server.sandbox(&sandbox.id).unwrap().state, SandboxState::Paused);
}

#[tokio::test]
async fn the_deadline_of_a_sandbox_stands_still_with_it() {
    let (host, disk) = (Host::new(), Arc::new(Disk(AtomicU64::new(1000))));
    let server = host.server_on(Arc::clone(&disk) as Arc<dyn DiskPressureProbe>).await;
    let one = server.create(base()).await.unwrap();
    host.remember(&one.id, "kept");
    fill(&host, &server, &disk, &[&one]).await;
    outlast_deadline(&server, &one).await;
    let due = server.sandbox(&one.id).unwrap().end_at;

    disk.0.store(1000, Ordering::SeqCst);
    until("it goes on", || server.sandbox(&one.id).unwrap().state == SandboxState::Running).await;
    assert!(server.sandbox(&one.id).unwrap().end_at > due, "what it had left is left");
    server.connect(&one.id, life(&one)).await.unwrap();
    assert_eq!(host.memory(&one.id).word, "kept");
    server.shutdown(OnExit::Kill).await;
}

#[tokio::test]
async fn the_next_server_gives_a_sandbox_that_stood_still_the_time_that_it_had_left() {
    let (host, disk) = (Host::new(), Arc::new(Disk(AtomicU64::new(1000))));
    let open = || host.server_on(Arc::clone(&disk) as Arc<dyn DiskPressureProbe>);
    let server = open().await;
    let one = server.create(base()).await.unwrap();
    host.remember(&one.id, "kept");
    fill(&host, &server, &disk, &[&one]).await;
    outlast_deadline(&server, &one).await;
    server.shutdown(OnExit::Pause).await;
    drop(server);
    let server = open().await;
    server.connect(&one.id, life(&one)).await.unwrap();
    assert_eq!(host.memory(&one.id).word, "kept");
    server.shutdown(OnExit::Kill).await;
}

#[tokio::test]
async fn who_could_not_be_let_go_on_is_not_forgotten() {
    let (host, disk) = (Host::new(), Arc::new(Disk(AtomicU64::new(1000))));
    let server = host.server_on(Arc::clone(&disk) as Arc<dyn DiskPressureProbe>).await;
    let one = server.create(base()).await.unwrap();
    fill(&host, &server, &disk, &[&one]).await;
    host.engine.inject(Point::Resume, Fault::Refuse);
    disk.0.store(1000, Ordering::SeqCst);
    let goes_on = || server.sandbox(&one.id).unwrap().state == SandboxState::Running;
    until("it goes on", goes_on).await;
    assert_eq!(host.engine.faults(), 0, "that was not at once");
    assert!(server.stats(&one.id).await.unwrap().is_some(), "who is shown as running runs");
    server.shutdown(OnExit::Kill).await;
}

#[tokio::test]
async fn a_sandbox_that_stood_still_goes_on_before_a_snapshot_is_taken_of_it() {
    let (host, disk) = (Host::new(), Arc::new(Disk(AtomicU64::new(1000))));
    let server = host.server_on(Arc::clone(&disk) as Arc<dyn DiskPressureProbe>).await;
    let one = server.create(base()).await.unwrap();
    fill(&host, &server, &disk, &[&one]).await;
    let refused = server.snapshot(&one.id, None).await.unwrap_err();
    assert!(matches!(refused, SnapshotError::DiskPressure { .. }), "{refused:?}");
    assert_eq!(server.sandbox(&one.id).unwrap().state, SandboxState::Paused);
    disk.0.store(1000, Ordering::SeqCst);
    server.snapshot(&one.id, None).await.unwrap();
    assert_eq!(server.sandbox(&one.id).unwrap().state, SandboxState::Running, "nobody runs unseen");
    server.pause(&one.id).await.unwrap();
    server.shutdown(OnExit::Kill).await;
}
