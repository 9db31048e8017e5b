//! Pausing at the deadline and waking by traffic, against each other and against everything else. The clock stands still and is
//! moved by hand.

use std::time::Duration;

use firkin_engine::fake::{Fault, Point};
use firkin_runtime::{
    owner::{KillError, OnExit, ResumeError, SnapshotError},
    runtime::{DialError, Runtime},
    sandbox::{CreateSandbox, Memory, NoSuchSandbox, OnTimeout, SandboxId, SandboxState},
};
use jiff::Timestamp;
use tokio::{
    net::{TcpListener, TcpSocket},
    time::advance,
};

use crate::bench::{Host, base, hold_the_clock, life, until};

/// How long a delayed step of the engine takes.
const SLOW: Duration = Duration::from_secs(20);

/// Longer than any of these tests.
const LONG: Duration = Duration::from_secs(3000);

fn auto_pause(timeout_s: u64) -> CreateSandbox {
    let timeout = Duration::from_secs(timeout_s);
    CreateSandbox { timeout, on_timeout: OnTimeout::Pause, auto_resume: true, ..base() }
}

async fn port() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// A host, a server on it, and one sandbox.
struct Scene {
    host: Host,
    server: Runtime,
    id: SandboxId,
}

impl Scene {
    async fn with(spec: CreateSandbox) -> Self {
        hold_the_clock();
        let host = Host::new();
        let server = host.server().await;
        let id = server.create(spec).await.unwrap().id;
        host.remember(&id, "kept");
        Self { host, server, id }
    }

    fn state(&self) -> Option<SandboxState> {
        self.server.sandbox(&self.id).ok().map(|sandbox| sandbox.state)
    }

    /// Whether the sandbox is held by an artifact, not merely on its way there.
    fn at_rest(&self) -> bool {
        self.state() == Some(SandboxState::Paused) && self.host.engine.live() == 0
    }

    async fn end(self) {
        self.server.shutdown(OnExit::Kill).await;
        assert_eq!(self.host.engine.live(), 0);
        assert_eq!(self.server.capacity().usage.active.held.cpus, 0, "what was reserved came back");
    }
}

#[tokio::test(start_paused = true)]
async fn a_deadline_pauses_and_traffic_resumes_with_the_first_timeout() {
    let scene = Scene::with(auto_pause(600)).await;
    advance(Duration::from_secs(601)).await;
    until("the pause", || scene.at_rest()).await;
    // A connect in between gives one life another length; the first length stays what traffic gives.
    let connected = scene.server.connect(&scene.id, Duration::from_secs(10)).await.unwrap();
    assert_eq!((connected.resumed, life(&connected.sandbox).as_secs()), (true, 10));
    scene.server.pause(&scene.id).await.unwrap();
    let (_listener, port) = port().await;
    scene.server.dial(&scene.id, port).await.unwrap();
    assert_eq!(life(&scene.server.sandbox(&scene.id).unwrap()).as_secs(), 600);
    assert_eq!(scene.host.memory(&scene.id).word, "kept");
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_short_first_timeout_is_raised_to_the_floor_when_traffic_wakes() {
    let scene = Scene::with(auto_pause(15)).await;
    scene.server.pause(&scene.id).await.unwrap();
    let (_listener, port) = port().await;
    scene.server.dial(&scene.id, port).await.unwrap();
    assert_eq!(life(&scene.server.sandbox(&scene.id).unwrap()).as_secs(), 300);
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_traffic_woke_is_given_time_to_open_its_port() {
    let scene = Scene::with(auto_pause(600)).await;
    // Taken, so that nobody else opens it, but not open.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = socket.local_addr().unwrap().port();
    let is_closed = |dialled| matches!(dialled, Err(DialError::PortClosed { .. }));
    assert!(is_closed(scene.server.dial(&scene.id, port).await.map(drop)), "a sandbox that runs refuses at once");

    let wake = async || {
        scene.server.pause(&scene.id).await.unwrap();
        let (server, id) = (scene.server.clone(), scene.id.clone());
        let dialled = tokio::spawn(async move { server.dial(&id, port).await.map(drop) });
        until("the wake", || scene.state() == Some(SandboxState::Running)).await;
        advance(Duration::from_secs(5)).await;
        assert!(!dialled.is_finished(), "its program may not have come to listen before the pause");
        Woken(dialled)
    };
    assert!(is_closed(wake().await.outcome().await));
    let woken = wake().await;
    let _listener = socket.listen(1).unwrap();
    woken.outcome().await.unwrap();
    scene.end().await;
}

/// Traffic on its way into a sandbox that it woke.
struct Woken(tokio::task::JoinHandle<Result<(), DialError>>);

impl Woken {
    async fn outcome(self) -> Result<(), DialError> {
        while !self.0.is_finished() {
            advance(Duration::from_millis(100)).await;
        }
        self.0.await.unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn traffic_that_comes_during_a_pause_waits_and_then_resumes() {
    let scene = Scene::with(auto_pause(100)).await;
    let (_listener, port) = port().await;
    let before = scene.server.dial(&scene.id, port).await.unwrap();
    scene.host.engine.inject(Point::Snapshot, Fault::Delay(SLOW));
    advance(Duration::from_secs(101)).await;
    until("the pause to begin", || before.leaving.is_cancelled()).await;
    assert_eq!(scene.state(), Some(SandboxState::Paused), "what is being paused is listed as paused");
    assert!(!before.ended.is_cancelled(), "connections from before live until it has succeeded");
    let restores = scene.host.engine.restores();
    let traffic = tokio::spawn({
        let (server, id) = (scene.server.clone(), scene.id.clone());
        async move { server.dial(&id, port).await.map(|dialled| dialled.generation) }
    });
    advance(SLOW).await;
    let generation = traffic.await.unwrap().unwrap();
    assert!(generation > before.generation && before.ended.is_cancelled());
    assert_eq!(scene.host.engine.restores(), restores + 1);
    assert_eq!(scene.host.memory(&scene.id).word, "kept");
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn traffic_without_auto_resume_waits_for_the_pause_too_and_is_refused() {
    let scene = Scene::with(CreateSandbox { auto_resume: false, ..auto_pause(100) }).await;
    scene.host.engine.inject(Point::Snapshot, Fault::Delay(SLOW));
    advance(Duration::from_secs(101)).await;
    until("the pause to begin", || scene.state() == Some(SandboxState::Paused)).await;
    let (_listener, port) = port().await;
    let dial = scene.server.dial(&scene.id, port);
    let (dialled, ()) = tokio::join!(dial, advance(SLOW));
    assert!(matches!(dialled, Err(DialError::NotFound(_))), "{dialled:?}");
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn traffic_during_a_pause_that_fails_reaches_the_same_life() {
    let scene = Scene::with(auto_pause(100)).await;
    let (_listener, port) = port().await;
    let before = scene.server.dial(&scene.id, port).await.unwrap();
    scene.host.engine.inject(Point::Snapshot, Fault::Delay(SLOW));
    scene.host.engine.inject(Point::SwitchDisk, Fault::Refuse);
    advance(Duration::from_secs(101)).await;
    until("the pause to begin", || before.leaving.is_cancelled()).await;
    let dial = scene.server.dial(&scene.id, port);
    let (dialled, ()) = tokio::join!(dial, advance(SLOW));
    assert_eq!(dialled.unwrap().generation, before.generation);
    assert!(!before.ended.is_cancelled());
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn many_wakes_at_once_are_one_restore() {
    let scene = Scene::with(auto_pause(600)).await;
    scene.server.pause(&scene.id).await.unwrap();
    let restores = scene.host.engine.restores();
    let (_listener, port) = port().await;
    let traffic = futures::future::join_all((0..8).map(|_| scene.server.dial(&scene.id, port)));
    let connect = scene.server.connect(&scene.id, Duration::from_secs(50));
    let (dialled, connected) = tokio::join!(traffic, connect);
    assert!(dialled.iter().all(Result::is_ok), "{dialled:?}");
    assert!(!connected.unwrap().resumed, "traffic came first");
    assert_eq!(scene.host.engine.restores(), restores + 1);
    assert_eq!(
        life(&scene.server.sandbox(&scene.id).unwrap()).as_secs(),
        600,
        "neither more traffic nor a shorter connect moves it"
    );
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_waits_when_the_deadline_fires_is_answered_first() {
    for on_timeout in [OnTimeout::Kill, OnTimeout::Pause] {
        let scene = Scene::with(CreateSandbox { on_timeout, ..auto_pause(100) }).await;
        // The owner is busy with a snapshot across the deadline.
        scene.host.engine.inject(Point::Snapshot, Fault::Delay(Duration::from_secs(200)));
        let snapshot = scene.server.snapshot(&scene.id, None);
        let under_way = || scene.host.engine.faults() == 0;
        let connect = async {
            until("the snapshot is under way", under_way).await;
            scene.server.connect(&scene.id, Duration::from_secs(1000)).await
        };
        let pass = async {
            until("the snapshot is under way", under_way).await;
            for _ in 0..30 {
                tokio::task::yield_now().await;
                advance(Duration::from_secs(10)).await;
            }
        };
        let (snapshot, connected, ()) = tokio::join!(snapshot, connect, pass);
        snapshot.unwrap();
        assert!(!connected.unwrap().resumed, "{on_timeout:?}");
        assert_eq!(scene.state(), Some(SandboxState::Running), "{on_timeout:?}");
        scene.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_pause_that_fails_at_the_deadline_is_tried_again() {
    let scene = Scene::with(auto_pause(100)).await;
    for fault in [Fault::Refuse, Fault::Refuse] {
        scene.host.engine.inject(Point::Snapshot, fault);
    }
    let end_at = scene.server.sandbox(&scene.id).unwrap().end_at;
    advance(Duration::from_secs(101)).await;
    until("the first attempt", || scene.host.engine.faults() == 1).await;
    until("the sandbox to go on", || scene.state() == Some(SandboxState::Running)).await;
    assert_eq!(scene.server.sandbox(&scene.id).unwrap().end_at, end_at, "its deadline is what it was");
    // Twice more; each attempt begins only when the one before has ended, which takes a moment of real time.
    let tries = tokio::spawn(async {
        loop {
            advance(Duration::from_secs(1)).await;
        }
    });
    until("the pause", || scene.at_rest()).await;
    tries.abort();
    assert_eq!(scene.host.engine.faults(), 0, "the second attempt failed, too");
    scene.server.connect(&scene.id, Duration::from_secs(60)).await.unwrap();
    assert_eq!(scene.host.memory(&scene.id).word, "kept");
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_an_attempt_left_stopped_is_still_paused_later() {
    let scene = Scene::with(auto_pause(100)).await;
    scene.host.engine.inject(Point::Snapshot, Fault::Refuse);
    scene.host.engine.inject(Point::Resume, Fault::Refuse);
    assert!(scene.server.pause(&scene.id).await.is_err());
    scene.server.pause(&scene.id).await.unwrap();
    scene.server.connect(&scene.id, Duration::from_secs(60)).await.unwrap();
    assert_eq!(scene.host.memory(&scene.id).word, "kept");
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_kill_during_a_pause_or_a_wake_leaves_nothing() {
    for point in [Point::Snapshot, Point::Restore] {
        let scene = Scene::with(auto_pause(100)).await;
        if point == Point::Restore {
            scene.server.pause(&scene.id).await.unwrap();
        }
        scene.host.engine.inject(point, Fault::Delay(SLOW));
        let (_listener, port) = port().await;
        let change = async {
            match point {
                // It may succeed first; nothing of it is left either way.
                Point::Snapshot => drop(scene.server.pause(&scene.id).await),
                _ => drop(scene.server.dial(&scene.id, port).await),
            }
        };
        let kill = async {
            until("the change to begin", || scene.host.engine.faults() == 0).await;
            let kill = scene.server.kill(&scene.id);
            let (killed, ()) = tokio::join!(kill, advance(SLOW));
            killed
        };
        let ((), killed) = tokio::join!(change, kill);
        killed.unwrap();
        assert_eq!(scene.state(), None, "{point:?}");
        assert_eq!(scene.host.engine.live(), 0, "{point:?}");
        let again = scene.server.kill(&scene.id).await;
        assert!(matches!(again, Err(KillError::NotFound(NoSuchSandbox(_)))), "{again:?}");
        scene.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_crashes_during_its_pause_is_gone_and_says_so() {
    let scene = Scene::with(auto_pause(100)).await;
    scene.host.engine.inject(Point::Snapshot, Fault::Crash);
    assert!(scene.server.pause(&scene.id).await.is_err());
    until("the sandbox to go", || scene.state().is_none()).await;
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn pauses_at_once_are_one_pause_and_a_later_one_is_told() {
    let scene = Scene::with(auto_pause(600)).await;
    let results = futures::future::join_all((0..5).map(|_| scene.server.pause(&scene.id))).await;
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    assert!(scene.at_rest());
    assert!(matches!(scene.server.pause(&scene.id).await, Err(SnapshotError::AlreadyPaused(_))));
    // Whoever wants the memory kept is not told that it was when it was dropped, nor the other way round.
    scene.server.resume(&scene.id, LONG).await.unwrap();
    let (kept, dropped) = tokio::join!(scene.server.pause(&scene.id), scene.server.pause_with(&scene.id, Memory::Dropped));
    kept.unwrap();
    assert!(matches!(dropped, Err(SnapshotError::AlreadyPaused(_))), "{dropped:?}");
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn resumes_at_once_are_one_restore_and_agree() {
    let scene = Scene::with(auto_pause(600)).await;
    scene.server.pause(&scene.id).await.unwrap();
    let restores = scene.host.engine.restores();
    let results = futures::future::join_all((0..5).map(|_| scene.server.resume(&scene.id, LONG))).await;
    let started: Vec<_> = results.into_iter().map(|result| result.unwrap().started_at).collect();
    assert!(started.iter().all(|at| *at == started[0]), "{started:?}");
    assert_eq!(scene.host.engine.restores(), restores + 1);
    let later = scene.server.resume(&scene.id, LONG).await;
    assert!(matches!(later, Err(ResumeError::AlreadyRunning(_))), "{later:?}");
    // One that comes while the sandbox is being paused waits for that, and resumes.
    scene.host.engine.inject(Point::Snapshot, Fault::Delay(SLOW));
    let resume = async {
        until("the pause to begin", || scene.state() == Some(SandboxState::Paused)).await;
        let (resumed, ()) = tokio::join!(scene.server.resume(&scene.id, LONG), advance(SLOW));
        resumed
    };
    let (paused, resumed) = tokio::join!(scene.server.pause(&scene.id), resume);
    paused.unwrap();
    resumed.unwrap();
    assert_eq!(scene.state(), Some(SandboxState::Running));
    scene.server.pause(&scene.id).await.unwrap();
    // Nobody who wants a boot is given memory that went on.
    let (kept, booted) =
        tokio::join!(scene.server.resume(&scene.id, LONG), scene.server.resume_with(&scene.id, LONG, Memory::Dropped));
    kept.unwrap();
    assert!(matches!(booted, Err(ResumeError::AlreadyRunning(_))), "{booted:?}");
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn snapshots_at_once_are_each_taken() {
    let scene = Scene::with(auto_pause(600)).await;
    let results = futures::future::join_all((0..3).map(|_| scene.server.snapshot(&scene.id, None))).await;
    let ids: std::collections::BTreeSet<_> = results.into_iter().map(|result| result.unwrap().snapshot_id).collect();
    assert_eq!((ids.len(), scene.state()), (3, Some(SandboxState::Running)));
    // A pause waits for the one that is under way.
    let (snapshot, paused) = tokio::join!(scene.server.snapshot(&scene.id, None), scene.server.pause(&scene.id));
    snapshot.unwrap();
    paused.unwrap();
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn traffic_does_not_boot_what_was_paused_without_its_memory() {
    let scene = Scene::with(auto_pause(600)).await;
    scene.server.pause_with(&scene.id, Memory::Dropped).await.unwrap();
    let (_listener, port) = port().await;
    let dialled = scene.server.dial(&scene.id, port).await;
    assert!(matches!(dialled, Err(DialError::NotFound(_))), "{dialled:?}");
    assert!(scene.at_rest());
    scene.server.connect(&scene.id, LONG).await.unwrap();
    scene.server.dial(&scene.id, port).await.unwrap();
    scene.end().await;
}

#[tokio::test(start_paused = true)]
async fn starts_and_what_runs_at_once_are_taken_down() {
    let scene = Scene::with(auto_pause(600)).await;
    scene.server.pause(&scene.id).await.unwrap();
    scene.server.resume(&scene.id, LONG).await.unwrap();
    let other = scene.server.create(base()).await.unwrap().id;
    let minutes = scene.server.activity(Timestamp::UNIX_EPOCH, Timestamp::MAX);
    // A minute of the real clock may end between two of them.
    let starts: u32 = minutes.iter().map(|minute| minute.starts).sum();
    assert_eq!((starts, minutes.iter().map(|minute| minute.concurrent).max()), (3, Some(2)), "{minutes:?}");
    scene.server.kill(&other).await.unwrap();
    scene.end().await;
}
