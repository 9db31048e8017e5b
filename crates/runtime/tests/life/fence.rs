//! What others could have is listed, from before its guest begins until it is on record as running here, and what they cannot is not.

use std::{
    collections::{BTreeSet, HashSet},
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use firkin_engine::fake::{Fault, Point};
use firkin_runtime::{
    config::RuntimeConfig,
    fence::Fence,
    launch::{BootError, LaunchError},
    owner::{OnExit, ResumeError, SnapshotError},
    restore::SnapshotRestoreError,
    sandbox::{Memory, SandboxState},
    store::StoreError,
};
use futures::future::BoxFuture;

use crate::{
    bench::{Host, base, hold_the_clock, until},
    catalog::with_catalogue,
};

/// Longer than any of these tests.
const LIFE: Duration = Duration::from_secs(3600);

/// Somebody who would stop what is listed.
#[derive(Debug, Default)]
struct Watching {
    listed: Mutex<BTreeSet<String>>,
    /// Everything that ever was.
    was_listed: Mutex<Vec<String>>,
    is_over: AtomicBool,
    /// What a server said that it has, when it began.
    own: Mutex<HashSet<String>>,
    /// What it was to kill.
    ended: Mutex<Vec<String>>,
}

impl Watching {
    fn listed(&self) -> usize {
        self.listed.lock().unwrap().len()
    }

    fn was_listed(&self) -> usize {
        self.was_listed.lock().unwrap().len()
    }
}

impl Fence for Watching {
    fn holds(&self) -> bool {
        !self.is_over.load(Ordering::SeqCst)
    }

    fn list(&self, machine: &str, _processes: &[u32]) -> io::Result<()> {
        self.was_listed.lock().unwrap().push(machine.to_owned());
        self.listed.lock().unwrap().insert(machine.to_owned());
        Ok(())
    }

    fn unlist(&self, machine: &str) -> io::Result<()> {
        self.listed.lock().unwrap().remove(machine);
        Ok(())
    }

    fn end(&self, machine: &str) -> io::Result<()> {
        self.ended.lock().unwrap().push(machine.to_owned());
        self.unlist(machine)
    }

    fn take_over<'a>(&'a self, own: &'a HashSet<String>) -> BoxFuture<'a, io::Result<()>> {
        own.clone_into(&mut self.own.lock().unwrap());
        Box::pin(async { Ok(()) })
    }

    fn unlist_all(&self) -> io::Result<()> {
        self.listed.lock().unwrap().clear();
        Ok(())
    }
}

fn fenced(host: &Host, fence: &Arc<Watching>) -> RuntimeConfig {
    RuntimeConfig { fence: Some(Arc::clone(fence) as Arc<dyn Fence>), ..host.config() }
}

#[tokio::test]
async fn what_others_could_have_is_listed_before_its_guest_begins_and_until_it_is_on_record() {
    let (host, elsewhere) = with_catalogue();
    let fence = Arc::new(Watching::default());
    let server = host.opened(fenced(&host, &fence)).await;
    let id = server.create(base()).await.unwrap().id;
    assert_eq!(fence.was_listed(), 0, "nobody else knows of what is new");
    server.pause(&id).await.unwrap();
    server.resume(&id, LIFE).await.unwrap();
    assert_eq!(fence.was_listed(), 1);
    until("that it is listed no more", || fence.listed() == 0).await;
    server.pause(&id).await.unwrap();
    // Where the lease is over, its guest does not begin.
    let lives = host.memory(&id).identities.len();
    fence.is_over.store(true, Ordering::SeqCst);
    let over = server.resume(&id, LIFE).await;
    assert!(matches!(over, Err(ResumeError::Restore { .. })), "{over:?}");
    assert_eq!((host.memory(&id).identities.len(), host.engine.live(), fence.listed()), (lives, 0, 0));
    fence.is_over.store(false, Ordering::SeqCst);
    // As long as nobody knows whether it is on record, it stays listed.
    elsewhere.goes_after(1);
    let unknown = server.resume(&id, LIFE).await;
    assert!(matches!(unknown, Err(ResumeError::Store(StoreError::Unknown { .. }))), "{unknown:?}");
    assert_eq!((server.sandbox(&id).unwrap().state, fence.listed()), (SandboxState::Running, 1));
    // One that stands still is not paused, and is told when it goes on.
    fence.is_over.store(true, Ordering::SeqCst);
    let held = server.pause(&id).await;
    assert!(matches!(held, Err(SnapshotError::Machine { .. })), "{held:?}");
    fence.is_over.store(false, Ordering::SeqCst);
    elsewhere.back();
    let clocks = host.memory(&id).identities.len();
    server.went_on().await;
    until("that the clock of its guest is set", || host.memory(&id).identities.len() > clocks).await;
    until("that it is on record, and listed no more", || fence.listed() == 0).await;
    // What is settled as the server ends does not stay listed.
    elsewhere.goes_after(0);
    let unknown = server.pause(&id).await;
    assert!(matches!(unknown, Err(SnapshotError::Store(StoreError::Unknown { .. }))), "{unknown:?}");
    assert_eq!(fence.listed(), 1);
    elsewhere.back();
    server.shutdown(OnExit::Leave).await;
    assert_eq!(fence.listed(), 0);
    drop(server);
    // The next server says what it has, and what is listed of it; what an earlier one may have left listed is forgotten.
    let own = fence.was_listed.lock().unwrap().last().unwrap().clone();
    fence.list(&own, &[]).unwrap();
    fence.list("of-nobody", &[]).unwrap();
    let server = host.opened(fenced(&host, &fence)).await;
    assert_eq!((&*fence.own.lock().unwrap(), fence.listed()), (&HashSet::from([own]), 0));
    assert_eq!(server.sandbox(&id).unwrap().state, SandboxState::Running);
    server.shutdown(OnExit::Kill).await;
}

#[tokio::test]
async fn what_could_not_go_on_while_others_might_have_had_it_goes_on_once_it_is_on_record() {
    let (host, elsewhere) = with_catalogue();
    let fence = Arc::new(Watching::default());
    let server = host.opened(fenced(&host, &fence)).await;
    let id = server.create(base()).await.unwrap().id;
    let told = host.memory(&id).identities.len();
    fence.is_over.store(true, Ordering::SeqCst);
    elsewhere.goes_after(0);
    let unknown = server.pause(&id).await;
    assert!(matches!(unknown, Err(SnapshotError::Store(StoreError::Unknown { .. }))), "{unknown:?}");
    let held = server.pause(&id).await;
    assert!(matches!(held, Err(SnapshotError::Machine { .. })), "{held:?}");
    assert_eq!((host.memory(&id).identities.len(), fence.listed()), (told, 0), "it stands still");
    // The lease does not matter to what nobody else can have.
    elsewhere.back();
    until("that it goes on", || host.memory(&id).identities.len() > told).await;
    server.pause(&id).await.unwrap();
    server.shutdown(OnExit::Kill).await;
}

#[tokio::test]
async fn a_server_that_pauses_what_it_has_leaves_to_the_next_what_stands_still() {
    let (host, elsewhere) = with_catalogue();
    let fence = Arc::new(Watching::default());
    let server = host.opened(fenced(&host, &fence)).await;
    let id = server.create(base()).await.unwrap().id;
    fence.is_over.store(true, Ordering::SeqCst);
    elsewhere.goes_after(0);
    let unknown = server.pause(&id).await;
    assert!(matches!(unknown, Err(SnapshotError::Store(StoreError::Unknown { .. }))), "{unknown:?}");
    server.shutdown(OnExit::Pause).await;
    drop(server);
    assert_eq!(host.engine.live(), 1, "nobody knows whether it is on record as paused, so its machine is there");
    elsewhere.back();
    fence.is_over.store(false, Ordering::SeqCst);
    let server = host.opened(fenced(&host, &fence)).await;
    server.connect(&id, LIFE).await.unwrap();
    assert_eq!((server.sandbox(&id).unwrap().state, host.engine.live()), (SandboxState::Running, 1));
    server.shutdown(OnExit::Kill).await;
}

#[tokio::test]
async fn a_boot_is_not_tried_again_while_the_lease_is_over() {
    let (host, _elsewhere) = with_catalogue();
    let fence = Arc::new(Watching::default());
    let server = host.opened(fenced(&host, &fence)).await;
    let id = server.create(base()).await.unwrap().id;
    server.pause_with(&id, Memory::Dropped).await.unwrap();
    let boots = host.engine.boots();
    fence.is_over.store(true, Ordering::SeqCst);
    let over = server.resume(&id, LIFE).await;
    let Err(ResumeError::Restore { source: SnapshotRestoreError::Boot(BootError::Up { attempts, source }), .. }) = &over else {
        panic!("{over:?}")
    };
    assert!(matches!(source, LaunchError::Fence(_)), "{source:?}");
    assert_eq!((*attempts, host.engine.boots(), fence.listed()), (1, boots + 1, 0));
    fence.is_over.store(false, Ordering::SeqCst);
    server.resume(&id, LIFE).await.unwrap();
    server.shutdown(OnExit::Kill).await;
}

#[tokio::test(start_paused = true)]
async fn nothing_goes_on_before_what_is_anothers_has_ended_though_its_owner_is_busy() {
    let clock = hold_the_clock();
    let host = Host::new();
    let fence = Arc::new(Watching::default());
    let server = host.opened(fenced(&host, &fence)).await;
    let id = server.create(base()).await.unwrap().id;
    host.engine.inject(Point::Snapshot, Fault::Delay(LIFE / 2));
    let (busy, of) = (server.clone(), id.clone());
    let pausing = tokio::spawn(async move { busy.pause(&of).await });
    until("that its owner is busy", || host.engine.faults() == 0).await;
    let catalogue = rusqlite::Connection::open(host.state_dir().join("firkin.db")).unwrap();
    assert_eq!(catalogue.execute("DELETE FROM sandboxes WHERE id = ?1", [id.as_str()]).unwrap(), 1);
    let lets = server.clone();
    let lets = tokio::spawn(async move { lets.let_go_of_what_is_anothers().await });
    while !lets.is_finished() {
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    let late = lets.await.unwrap();
    assert!(matches!(late, Err(StoreError::Fenced { .. })), "{late:?}");
    assert!(server.has(&id) && fence.ended.lock().unwrap().len() == 1);
    // It ends once its owner comes to it.
    tokio::time::advance(LIFE / 2).await;
    pausing.await.unwrap().unwrap_err();
    until("that it has ended", || !server.has(&id)).await;
    assert_eq!((server.let_go_of_what_is_anothers().await.unwrap(), host.engine.live()), (0, 0));
    server.shutdown(OnExit::Kill).await;
    clock.abort();
}
