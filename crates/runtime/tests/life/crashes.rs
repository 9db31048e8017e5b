//! The server is killed at each step of a pause. The next one finds the sandbox as it was, running, on a whole disk.

use std::time::Duration;

use firkin_engine::fake::{Fault, Point};
use firkin_runtime::{runtime::Runtime, sandbox::SandboxId};
use rusqlite::Connection;

use crate::bench::{Host, base, until};

/// Where the server dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Crash {
    /// Before the machine is stopped.
    Stop,
    /// The machine stands still, nothing is written.
    Snapshot,
    /// The next overlay exists, the machine does not write to it.
    Switch,
    /// The machine writes to the next overlay, the one before is not a layer yet.
    Seal,
    /// The artifact is published, nobody has recorded it.
    Record,
}

const ALL: [Crash; 5] = [Crash::Stop, Crash::Snapshot, Crash::Switch, Crash::Seal, Crash::Record];

/// Makes the database refuse to record a pause, so that the server goes on to let the machine run again.
fn refuse_to_record(host: &Host, refuse: bool) {
    let database = Connection::open(host.state_dir().join("firkin.db")).unwrap();
    let change = if refuse {
        "CREATE TRIGGER refuse BEFORE UPDATE ON sandboxes WHEN NEW.body LIKE '%\"phase\":\"paused\"%'
         BEGIN SELECT RAISE(ABORT, 'a test asked for it'); END"
    } else {
        "DROP TRIGGER refuse"
    };
    database.execute_batch(change).unwrap();
}

/// Pauses, and returns when the server is where it is to die.
async fn pause_up_to(crash: Crash, host: &Host, server: Runtime, id: &SandboxId) {
    let whole = host.artifacts().len();
    let point = match crash {
        Crash::Stop => Point::Pause,
        Crash::Snapshot => Point::Snapshot,
        Crash::Switch => Point::SwitchDisk,
        Crash::Seal | Crash::Record => Point::Resume,
    };
    if point == Point::Resume {
        refuse_to_record(host, true);
    }
    host.engine.inject(point, Fault::Hang);
    let pausing = id.clone();
    tokio::spawn(async move { server.pause(&pausing).await });
    until("the step", || host.engine.faults() == 0).await;
    if point == Point::Resume {
        refuse_to_record(host, false);
        assert_eq!(host.artifacts().len(), whole + 1, "it is published");
    }
}

/// Every overlay of the machine's disk lies where the one above it says.
fn disk_is_whole(host: &Host, id: &SandboxId) -> usize {
    let mut path = host.guest(id).root_disk();
    for depth in 0.. {
        let Some(below) = host.below(&path) else { return depth };
        path = below;
    }
    unreachable!("a chain ends")
}

fn unseal(host: &Host, id: &SandboxId) {
    let run = host.state_dir().join("run").join(id.as_str());
    let top = host.guest(id).root_disk();
    let sealed = host.below(&top).unwrap();
    fs_err::rename(&sealed, run.join(sealed.file_name().unwrap())).unwrap();
}

#[test]
fn a_pause_cut_off_at_any_step_leaves_the_sandbox_running_and_whole() {
    for crash in ALL {
        let host = Host::new();
        let id = host.crash_after(async |server| {
            let id = server.create(base()).await.unwrap().id;
            host.remember(&id, "kept");
            pause_up_to(crash, &host, server, &id).await;
            id
        });
        if crash == Crash::Seal {
            unseal(&host, &id);
        }
        host.serve(async |server| {
            assert!(server.stats(&id).await.unwrap().is_some(), "{crash:?}: its guest runs");
            assert_eq!(host.memory(&id).word, "kept", "{crash:?}");
            disk_is_whole(&host, &id);
            let collected = || host.artifacts().len() == 1;
            until("what nobody recorded to be collected", collected).await;
            disk_is_whole(&host, &id);
            // It pauses and comes back like any other, with one life more.
            host.remember(&id, "later");
            server.pause(&id).await.unwrap();
            server.connect(&id, Duration::from_secs(60)).await.unwrap();
            assert_eq!(host.memory(&id).word, "later", "{crash:?}");
            assert_eq!(host.memory(&id).epoch, 3, "{crash:?}");
            disk_is_whole(&host, &id);
        });
    }
}

#[test]
fn a_wake_cut_off_before_it_is_recorded_leaves_the_sandbox_paused() {
    let host = Host::new();
    let id = host.crash_after(async |server| {
        let id = server.create(base()).await.unwrap().id;
        host.remember(&id, "kept");
        server.pause(&id).await.unwrap();
        host.engine.inject(Point::Resume, Fault::Hang);
        let waking = id.clone();
        tokio::spawn(async move { server.connect(&waking, Duration::from_secs(60)).await });
        until("the step", || host.engine.faults() == 0).await;
        id
    });
    assert_eq!(host.engine.live(), 1, "its machine outlived the server");
    host.serve(async |server| {
        assert_eq!(host.engine.live(), 0, "nobody owned it");
        assert!(server.connect(&id, Duration::from_secs(60)).await.unwrap().resumed);
        assert_eq!(host.memory(&id).word, "kept");
    });
}
