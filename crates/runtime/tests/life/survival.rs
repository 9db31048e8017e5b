//! A store that cannot be written loses nothing, and who is left or killed is followed by one that takes over.

use std::time::Duration;

use firkin_runtime::{
    owner::{DeadlineError, KillError, OnExit, ResumeError, SnapshotError},
    runtime::Runtime,
    sandbox::{CreateError, SandboxId, SandboxState},
};

use crate::bench::{Host, base, names};

/// Longer than any of these tests.
const LIFE: Duration = Duration::from_secs(3600);

/// Makes every change of sandboxes and templates fail as a full disk does, or no longer.
struct Disk(rusqlite::Connection);

impl Disk {
    fn of(host: &Host) -> Self {
        Self(rusqlite::Connection::open(host.state_dir().join("firkin.db")).unwrap())
    }

    fn each_table(&self, statement: impl Fn(&str, &str) -> String) {
        for table in ["sandboxes", "templates"] {
            for change in ["INSERT", "UPDATE", "DELETE"] {
                self.0.execute_batch(&statement(table, change)).unwrap();
            }
        }
    }

    fn fill(&self) {
        self.each_table(|table, change| {
            let refuse = "BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END";
            format!("CREATE TRIGGER full_{table}_{change} BEFORE {change} ON {table} {refuse};")
        });
    }

    fn empty(&self) {
        self.each_table(|table, change| format!("DROP TRIGGER full_{table}_{change};"));
    }
}

fn state(server: &Runtime, id: &SandboxId) -> Option<SandboxState> {
    server.sandbox(id).ok().map(|sandbox| sandbox.state)
}

#[tokio::test]
async fn a_full_disk_loses_no_sandbox() {
    let host = Host::new();
    let server = host.server().await;
    let (running, paused) = (server.create(base()).await.unwrap().id, server.create(base()).await.unwrap().id);
    for id in [&running, &paused] {
        host.remember(id, "kept");
    }
    server.pause(&paused).await.unwrap();
    let held = server.capacity().usage.total();
    let disk = Disk::of(&host);
    disk.fill();

    assert!(matches!(server.create(base()).await, Err(CreateError::Store(_))));
    assert!(matches!(server.pause(&running).await, Err(SnapshotError::Store(_))));
    assert!(matches!(server.snapshot(&running, None).await, Err(SnapshotError::Store(_))));
    assert!(server.fork(&running, 2, LIFE).await.unwrap().iter().all(|child| matches!(child, Err(CreateError::Store(_)))));
    assert!(matches!(server.set_timeout(&running, LIFE * 2).await, Err(DeadlineError::Store(_))));
    assert!(matches!(server.resume(&paused, LIFE).await, Err(ResumeError::Store(_))));
    assert!(matches!(server.kill(&paused).await, Err(KillError::Store(_))));
    assert_eq!((state(&server, &running), state(&server, &paused)), (Some(SandboxState::Running), Some(SandboxState::Paused)));
    assert!(server.stats(&running).await.unwrap().is_some(), "it was held for cuts that came to nothing, and goes on");
    assert_eq!((host.engine.live(), server.capacity().usage.total()), (1, held));
    assert_eq!(host.memory(&running).word, "kept");

    disk.empty();
    server.pause(&running).await.unwrap();
    for id in [&running, &paused] {
        server.resume(id, LIFE).await.unwrap();
        assert_eq!(host.memory(id).word, "kept");
        server.kill(id).await.unwrap();
    }
    server.shutdown(OnExit::Kill).await;
    assert_eq!(host.engine.live(), 0);
}

#[test]
fn a_server_that_is_killed_with_a_full_disk_loses_no_sandbox() {
    let host = Host::new();
    let disk = std::cell::OnceCell::new();
    let id = host.crash_after(async |server| {
        let id = server.create(base()).await.unwrap().id;
        host.remember(&id, "kept");
        disk.set(Disk::of(&host)).ok().unwrap();
        disk.get().unwrap().fill();
        // Each attempt gives the machine another disk, and none of that can be recorded.
        for _ in 0..3 {
            assert!(matches!(server.pause(&id).await, Err(SnapshotError::Store(_))));
        }
        id
    });
    disk.get().unwrap().empty();
    host.serve(async |server| {
        assert_eq!(state(server, &id), Some(SandboxState::Running));
        server.pause(&id).await.unwrap();
        server.resume(&id, LIFE).await.unwrap();
        assert_eq!(host.memory(&id).word, "kept");
    });
}

#[tokio::test]
async fn a_database_is_one_file_after_an_orderly_end() {
    let host = Host::new();
    let server = host.server().await;
    let id = server.create(base()).await.unwrap().id;
    server.shutdown(OnExit::Pause).await;
    drop(server);
    let left = names(&host.state_dir());
    assert!(left.contains(&"firkin.db".to_owned()) && !left.iter().any(|name| name.starts_with("firkin.db-")), "{left:?}");
    let server = host.server().await;
    assert_eq!(state(&server, &id), Some(SandboxState::Paused));
    server.shutdown(OnExit::Kill).await;
}

#[tokio::test]
async fn a_server_that_leaves_its_sandboxes_is_followed_by_one_that_takes_them_over() {
    let host = Host::new();
    let server = host.server().await;
    let id = server.create(base()).await.unwrap().id;
    host.remember(&id, "kept");
    server.shutdown(OnExit::Leave).await;
    assert_eq!((host.engine.live(), server.capacity().usage.total().cpus), (1, 0));
    drop(server);
    let server = host.server().await;
    assert_eq!(state(&server, &id), Some(SandboxState::Running));
    server.pause(&id).await.unwrap();
    server.resume(&id, LIFE).await.unwrap();
    assert_eq!(host.memory(&id).word, "kept");
    server.shutdown(OnExit::Kill).await;
    assert_eq!(host.engine.live(), 0);
}
