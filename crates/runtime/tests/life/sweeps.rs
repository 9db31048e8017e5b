//! Sweeps meet nothing that has an owner, and silent guests are not ended in haste.

use std::time::Duration;

use firkin_engine::fake::{Fault, Point};
use firkin_runtime::{owner::OnExit, sweep::Swept};

use crate::bench::{DEAF, Host, base, hold_the_clock, names};

/// Longer than any of these tests.
const LIFE: Duration = Duration::from_secs(3600);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sweeps_take_what_nobody_owns_and_no_session_that_is_being_launched() {
    let host = Host::new();
    let server = host.server().await;
    let left = host.state_dir().join("run/left");
    fs_err::create_dir(&left).unwrap();
    assert_eq!(server.sweep().await.instances, std::slice::from_ref(&left));
    assert!(!left.exists());

    for _ in 0..8 {
        host.engine.inject(Point::Restore, Fault::Delay(Duration::from_millis(5)));
        host.engine.inject(Point::Resume, Fault::Delay(Duration::from_millis(5)));
    }
    let work = async || {
        for _ in 0..5 {
            let id = server.create(base()).await.unwrap().id;
            host.remember(&id, "kept");
            server.pause(&id).await.unwrap();
            server.resume(&id, LIFE).await.unwrap();
            assert_eq!(host.memory(&id).word, "kept");
            server.kill(&id).await.unwrap();
        }
    };
    let sweeps = async {
        loop {
            assert_eq!(server.sweep().await, Swept::default());
        }
    };
    tokio::select! {
        _ = futures::future::join_all([work(), work(), work(), work()]) => {}
        () = sweeps => {}
    }
    server.shutdown(OnExit::Kill).await;
    assert_eq!((host.engine.live(), names(&host.state_dir().join("run")).len()), (0, 0));
}

/// Moves the clock on in steps, and lets everything happen that is due, until `level` holds. Gives the time that it took.
async fn moved_on(limit: Duration, level: impl Fn() -> bool) -> Duration {
    let begun = tokio::time::Instant::now();
    while !level() && begun.elapsed() < limit {
        tokio::time::advance(Duration::from_secs(1)).await;
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
    }
    begun.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_silent_guest_lives_on_and_ends_only_when_its_engine_is_silent_too() {
    hold_the_clock();
    let host = Host::new();
    let server = host.server().await;
    let id = server.create(base()).await.unwrap().id;
    let lives = || server.sandbox(&id).is_ok();

    host.remember(&id, DEAF);
    moved_on(Duration::from_secs(900), || !lives()).await;
    assert!(lives(), "a silent guest is its user's");

    // An engine that is silent for a moment is only slow.
    host.engine.inject(Point::Answer, Fault::Hang);
    host.engine.inject(Point::Answer, Fault::Hang);
    moved_on(Duration::from_secs(300), || !lives()).await;
    assert!(lives());

    for _ in 0..3 {
        host.engine.inject(Point::Answer, Fault::Hang);
    }
    let took = moved_on(Duration::from_secs(900), || !lives()).await;
    assert!(!lives() && took > Duration::from_secs(60), "{took:?}");
    server.shutdown(OnExit::Kill).await;
    assert_eq!((host.engine.live(), server.capacity().usage.total().cpus), (0, 0));
}
