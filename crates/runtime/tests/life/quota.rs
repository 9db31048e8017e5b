//! What one sandbox may hold of the disk, with its snapshots and its paused state.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use firkin_runtime::{
    config::SandboxLimits,
    owner::{OnExit, ResumeError, SnapshotError},
    runtime::Runtime,
    sandbox::{CreateSandbox, RuntimeSandbox, SandboxState},
    sandbox_quota::QuotaError,
    standard::BuildTemplate,
};

use crate::bench::{DEAF, Host, base, hold_the_clock, life, names, until};

fn disk_mib(mib: u64) -> SandboxLimits {
    SandboxLimits { disk_mib: Some(mib), ..SandboxLimits::default() }
}

/// Writes into what a sandbox's machine writes.
fn write(host: &Host, sandbox: &RuntimeSandbox, mib: usize) {
    fs_err::write(host.guest(&sandbox.id).written().with_file_name("written"), vec![1; mib << 20]).unwrap();
}

fn bytes_below(dir: &Path) -> u64 {
    let bytes = |path: &Path| match fs_err::symlink_metadata(path).unwrap() {
        meta if meta.is_dir() => bytes_below(path),
        meta => std::os::unix::fs::MetadataExt::blocks(&meta) * 512,
    };
    names(dir).iter().map(|name| bytes(&dir.join(name))).sum()
}

fn is_over(refused: &SnapshotError) -> bool {
    matches!(refused, SnapshotError::Quota { source: QuotaError::Disk { .. }, .. })
}

#[tokio::test]
async fn a_sandbox_that_makes_snapshots_in_a_loop_does_not_fill_the_disk() {
    let host = Host::new();
    let server = host.server_that_limits(disk_mib(2)).await;
    // What it was created on is not its own, however much that is.
    for artifact in host.artifacts() {
        fs_err::write(host.state_dir().join("artifacts").join(artifact).join("weight"), vec![1; 8 << 20]).unwrap();
    }
    let (greedy, other) = (server.create(base()).await.unwrap(), server.create(base()).await.unwrap());
    host.remember(&greedy.id, "kept");
    let before = bytes_below(&host.state_dir().join("artifacts"));
    let mut taken = Vec::new();
    let refused = loop {
        match server.snapshot(&greedy.id, None).await {
            Ok(snapshot) => taken.push(snapshot.snapshot_id),
            Err(refused) => break refused,
        }
        assert!(taken.len() < 1000, "nothing ends it");
    };
    assert!(is_over(&refused), "{refused:?}");
    let text = firkin_causes::chain(&refused);
    assert!(text.contains("its quota is 2 MiB"), "{text}");
    let held = bytes_below(&host.state_dir().join("artifacts")) - before;
    assert!((1 << 18..5 << 19).contains(&held), "{} snapshots, {held} bytes", taken.len());
    let artifacts = host.artifacts();
    assert!(is_over(&server.fork(&greedy.id, 1, life(&greedy)).await.map_err(snapshot_error).unwrap_err()));
    assert!(is_over(&server.snapshot(&greedy.id, None).await.unwrap_err()));
    assert_eq!(host.artifacts(), artifacts, "a refusal leaves nothing");
    // It goes on, and so do others.
    assert_eq!((state(&server, &greedy), host.memory(&greedy.id).word.as_str()), (SandboxState::Running, "kept"));
    server.snapshot(&other.id, None).await.unwrap();
    for snapshot in taken.drain(..8) {
        server.delete_template(&snapshot).await.unwrap();
    }
    until("they are removed", || host.artifacts().len() < artifacts.len()).await;
    server.snapshot(&greedy.id, None).await.unwrap();
    server.shutdown(OnExit::Kill).await;
}

fn snapshot_error(error: firkin_runtime::runtime::ForkError) -> SnapshotError {
    match error {
        firkin_runtime::runtime::ForkError::Snapshot(error) => error,
        other => panic!("{other:?}"),
    }
}

fn state(server: &Runtime, sandbox: &RuntimeSandbox) -> SandboxState {
    server.sandbox(&sandbox.id).unwrap().state
}

#[tokio::test]
async fn a_sandbox_has_no_more_snapshots_than_it_may_however_many_are_asked_for_at_once() {
    let host = Host::new();
    let server = host.server_that_limits(SandboxLimits { snapshots: 3, ..SandboxLimits::default() }).await;
    let (one, other) = (server.create(base()).await.unwrap(), server.create(base()).await.unwrap());
    let asked = futures::future::join_all((0..8).map(|_| server.snapshot(&one.id, None))).await;
    let (taken, refused): (Vec<_>, Vec<_>) = asked.into_iter().partition(Result::is_ok);
    assert_eq!(taken.len(), 3);
    for refused in refused {
        let refused = refused.unwrap_err();
        assert!(matches!(refused, SnapshotError::Quota { source: QuotaError::Snapshots { max: 3 }, .. }), "{refused:?}");
    }
    server.pause(&one.id).await.unwrap();
    server.snapshot(&one.id, None).await.unwrap_err();
    server.snapshot(&other.id, None).await.unwrap();
    server.delete_template(&taken[0].as_ref().unwrap().snapshot_id).await.unwrap();
    server.snapshot(&one.id, None).await.unwrap();
    server.shutdown(OnExit::Kill).await;
}

#[tokio::test(start_paused = true)]
async fn who_answers_nothing_keeps_neither_others_nor_itself_from_being_held() {
    hold_the_clock();
    let host = Host::new();
    let server = host.server_that_limits(disk_mib(24)).await;
    let mut deaf = Vec::new();
    for _ in 0..6 {
        deaf.push(server.create(base()).await.unwrap());
    }
    let other = server.create(base()).await.unwrap();
    for sandbox in &deaf {
        host.remember(&sandbox.id, DEAF);
        write(&host, sandbox, 40);
    }
    write(&host, &other, 40);
    let second = async || {
        tokio::time::advance(Duration::from_secs(1)).await;
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
    };
    let told = |sandbox: &RuntimeSandbox| {
        let events = server.events(&sandbox.id).unwrap().into_iter();
        events.filter(|event| event.message.contains("more of the disk than it may: it was paused")).count()
    };
    // One look, and the clock stands still again.
    for _ in 0..3 {
        second().await;
    }
    until("who answers is paused", || told(&other) == 1).await;
    assert!(deaf.iter().all(|sandbox| told(sandbox) == 0), "they are waited for, but not by others");
    // The deadline of what is asked of a guest passes.
    for _ in 0..90 {
        second().await;
    }
    until("so are the others", || deaf.iter().all(|sandbox| told(sandbox) == 1)).await;
    server.shutdown(OnExit::Kill).await;
}

#[tokio::test]
async fn of_a_sandbox_of_an_earlier_server_counts_what_it_writes_from_now_on() {
    let host = Host::new();
    let server = host.server().await;
    let sandbox = server.create(base()).await.unwrap();
    server.shutdown(OnExit::Pause).await;
    drop(server);
    let store = rusqlite::Connection::open(host.state_dir().join("firkin.db")).unwrap();
    let forgot = store.execute("UPDATE sandboxes SET body = json_remove(body, '$.inherited')", []).unwrap();
    assert_eq!(forgot, 1);
    store.close().unwrap();
    let layers = host.state_dir().join("layers");
    let before = names(&layers);

    let server = host.server_that_limits(disk_mib(24)).await;
    server.resume(&sandbox.id, life(&sandbox)).await.unwrap();
    server.snapshot(&sandbox.id, None).await.unwrap();
    let sealed: Vec<_> = names(&layers).into_iter().filter(|name| !before.contains(name)).collect();
    let [sealed] = &sealed[..] else { panic!("{sealed:?}") };
    let sealed = layers.join(sealed);
    let heavy = if sealed.is_dir() { sealed.join("weight") } else { sealed };
    let mut heavy = fs_err::OpenOptions::new().create(true).append(true).open(heavy).unwrap();
    std::io::Write::write_all(&mut heavy, &vec![1; 40 << 20]).unwrap();
    let refused = server.snapshot(&sandbox.id, None).await.unwrap_err();
    assert!(is_over(&refused), "{refused:?}");
    server.shutdown(OnExit::Kill).await;
}

#[tokio::test]
async fn who_writes_more_than_its_quota_is_paused_and_told_and_nothing_is_lost() {
    let host = Host::new();
    let server = host.server_that_limits(disk_mib(24)).await;
    let (writer, other) = (server.create(base()).await.unwrap(), server.create(base()).await.unwrap());
    host.remember(&writer.id, "kept");
    let snapshot = server.snapshot(&writer.id, None).await.unwrap();
    write(&host, &other, 20);
    write(&host, &writer, 40);
    until("it is paused", || state(&server, &writer) == SandboxState::Paused).await;
    let told =
        || server.events(&writer.id).unwrap().into_iter().find(|event| event.message.contains("more of the disk than it may"));
    until("why is told", || told().is_some()).await;
    assert!(told().unwrap().fields["quota"].contains("its quota is 24 MiB"));
    assert_eq!(state(&server, &other), SandboxState::Running);
    server.shutdown(OnExit::Pause).await;
    drop(server);

    let server = host.server_that_limits(disk_mib(0)).await;
    let refused = server.resume(&writer.id, life(&writer)).await.unwrap_err();
    assert!(matches!(refused, ResumeError::Quota { source: QuotaError::Disk { quota_mib: 0, .. }, .. }), "{refused:?}");
    // What its user cannot remove does not keep it paused.
    server.delete_template(&snapshot.snapshot_id).await.unwrap();
    server.resume(&writer.id, life(&writer)).await.unwrap();
    assert_eq!(host.memory(&writer.id).word, "kept");
    server.shutdown(OnExit::Kill).await;
}

#[tokio::test]
async fn what_a_sandbox_has_in_memory_does_not_keep_it_paused() {
    let host = Host::new();
    let server = host.server_that_limits(disk_mib(0)).await;
    let one = server.create(base()).await.unwrap();
    host.remember(&one.id, &"x".repeat(300_000));
    server.pause(&one.id).await.unwrap();
    server.resume(&one.id, life(&one)).await.unwrap();
    assert_eq!(host.memory(&one.id).word.len(), 300_000);
    server.shutdown(OnExit::Kill).await;
}

#[tokio::test]
async fn a_sandbox_that_is_paused_over_its_quota_has_no_forks_and_no_snapshots() {
    let host = Host::new();
    let server = host.server().await;
    let one = server.create(base()).await.unwrap();
    server.snapshot(&one.id, None).await.unwrap();
    server.pause(&one.id).await.unwrap();
    server.shutdown(OnExit::Pause).await;
    drop(server);

    let server = host.server_that_limits(disk_mib(0)).await;
    let artifacts = host.artifacts();
    assert!(is_over(&server.fork(&one.id, 1, life(&one)).await.map_err(snapshot_error).unwrap_err()));
    assert!(is_over(&server.snapshot(&one.id, None).await.unwrap_err()));
    assert_eq!(host.artifacts(), artifacts, "a refusal leaves nothing");
    server.shutdown(OnExit::Kill).await;
}

/// Makes what a sandbox's disk takes larger, by what a merge of its layers finds to be written over.
fn overwrite(host: &Host, sandbox: &RuntimeSandbox, mib: usize) {
    let disk = host.guest(&sandbox.id).root_disk();
    let file = if disk.is_dir() { disk.join("overwritten") } else { disk };
    let mut file = fs_err::OpenOptions::new().create(true).append(true).open(file).unwrap();
    std::io::Write::write_all(&mut file, &vec![1; mib << 20]).unwrap();
}

#[tokio::test]
async fn what_a_sandbox_wrote_over_does_not_keep_it_paused() {
    let host = Host::new();
    let server = host.server_that_limits(disk_mib(12)).await;
    let small = BuildTemplate { name: "small".into(), ready: None, memory_mib: 1, ..BuildTemplate::base() };
    Box::pin(server.build_template(small, &|_| {})).await.unwrap();
    let one = server.create(CreateSandbox { template: "small".into(), ..base() }).await.unwrap();
    host.remember(&one.id, "kept");
    overwrite(&host, &one, 8);
    server.pause(&one.id).await.unwrap();
    server.resume(&one.id, life(&one)).await.unwrap();
    overwrite(&host, &one, 8);
    server.pause(&one.id).await.unwrap();
    let refused = server.resume(&one.id, life(&one)).await.unwrap_err();
    assert!(matches!(refused, ResumeError::Quota { source: QuotaError::Disk { .. }, .. }), "{refused:?}");
    let begun = Instant::now();
    while let Err(refused) = server.resume(&one.id, life(&one)).await {
        assert!(matches!(refused, ResumeError::Quota { .. }) && begun.elapsed() < Duration::from_secs(60), "{refused:?}");
    }
    assert_eq!(host.memory(&one.id).word, "kept");
    // And again: what was merged is what it has from now on.
    server.pause(&one.id).await.unwrap();
    server.resume(&one.id, life(&one)).await.unwrap();
    server.shutdown(OnExit::Kill).await;
}
