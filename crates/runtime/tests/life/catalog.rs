//! A catalogue that is not in the state directory: what happens while it is not there, and whom it goes with.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use firkin_copies::{Access, Copies, Destination, Limits};
use firkin_engine::qcow2::Qcow2;
use firkin_runtime::{
    config::CopyConfig,
    owner::{DeadlineError, KillError, OnExit, ResumeError, RollbackError, SnapshotError},
    restore_from::restore_from,
    sandbox::{CreateError, SandboxState},
    state_dir::OpenError,
    store::{
        StoreError,
        catalog::{Catalog, Holder, Opened, sqlite},
        database::{Database, DatabaseError, Mode, Statements, Value, Work},
    },
};
use futures::future::BoxFuture;

use crate::{
    bench::{Host, base, hold_the_clock, until},
    rollback::scene,
};

/// Longer than any of these tests.
const LIFE: Duration = Duration::from_secs(3600);

/// A catalogue beside the state directory, which comes and goes.
#[derive(Debug, Clone)]
pub(crate) struct Elsewhere {
    path: PathBuf,
    away: Arc<AtomicBool>,
    /// It goes away when it has made so many more changes of sandboxes, and says nothing of the last; never for 0.
    goes: Arc<AtomicI64>,
    /// It says nothing of builds.
    deaf_to_builds: Arc<AtomicBool>,
    term: Arc<AtomicI64>,
}

impl Elsewhere {
    fn of(host: &Host) -> Self {
        let path = host.state_dir().with_file_name("elsewhere.db");
        Self { path, away: Arc::default(), goes: Arc::default(), deaf_to_builds: Arc::default(), term: Arc::default() }
    }

    /// It goes away with the next change but so many, and keeps that.
    pub(crate) fn goes_after(&self, changes: i64) {
        self.goes.store(changes + 1, Ordering::SeqCst);
    }

    /// It is there again.
    pub(crate) fn back(&self) {
        self.away.store(false, Ordering::SeqCst);
    }

    fn is_away(&self) -> Result<(), StoreError> {
        if !self.away.load(Ordering::SeqCst) {
            return Ok(());
        }
        Err(StoreError::Away { operation: "begin", source: "nobody answers".into() })
    }
}

impl Catalog for Elsewhere {
    fn address(&self) -> String {
        "postgres://elsewhere/firkin".to_owned()
    }

    fn open(&self, _: Holder) -> BoxFuture<'_, Result<Opened, StoreError>> {
        Box::pin(async move {
            self.is_away()?;
            let database = Arc::new(Sometimes { inner: sqlite(&self.path).await?, of: self.clone() });
            Ok(Opened { database, term: self.term.fetch_add(1, Ordering::SeqCst) + 1 })
        })
    }

    fn look<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Arc<dyn Database>, StoreError>> {
        Box::pin(async move { sqlite(&self.path).await })
    }
}

/// A host whose servers record elsewhere what there is.
pub(crate) fn with_catalogue() -> (Host, Elsewhere) {
    let mut host = Host::new();
    let elsewhere = Elsewhere::of(&host);
    host.catalog = Some(Arc::new(elsewhere.clone()));
    (host, elsewhere)
}

/// Sees whether a record of a sandbox is changed.
struct Watched<'a> {
    inner: &'a dyn Statements,
    wrote: &'a AtomicBool,
    is_deaf_to_builds: bool,
}

impl Statements for Watched<'_> {
    fn execute(&self, statement: &str, values: &[Value]) -> Result<usize, DatabaseError> {
        self.wrote.fetch_or(statement.contains(" sandboxes "), Ordering::SeqCst);
        self.inner.execute(statement, values)
    }

    fn rows(&self, statement: &str, values: &[Value]) -> Result<Vec<Vec<Value>>, DatabaseError> {
        if self.is_deaf_to_builds && statement.contains(" builds ") {
            return Err(DatabaseError::Away("nobody answers".into()));
        }
        self.inner.rows(statement, values)
    }
}

#[derive(Debug)]
struct Sometimes {
    inner: Arc<dyn Database>,
    of: Elsewhere,
}

impl Database for Sometimes {
    fn name(&self) -> &'static str {
        "elsewhere"
    }

    fn run(&self, mode: Mode, work: Work) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            self.of.is_away()?;
            let wrote = Arc::new(AtomicBool::new(false));
            let seen = Arc::clone(&wrote);
            let is_deaf_to_builds = self.of.deaf_to_builds.load(Ordering::SeqCst);
            let watched: Work = Box::new(move |inner| work(&Watched { inner, wrote: &seen, is_deaf_to_builds }));
            self.inner.run(mode, watched).await?;
            let last = |left| if left > 0 { Some(left - 1) } else { None };
            if wrote.load(Ordering::SeqCst) && self.of.goes.fetch_update(Ordering::SeqCst, Ordering::SeqCst, last) == Ok(1) {
                self.of.away.store(true, Ordering::SeqCst);
                return Err(StoreError::Unknown { operation: "commit", source: "it was cut".into() });
            }
            Ok(())
        })
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner.close()
    }
}

#[tokio::test]
async fn a_catalogue_that_goes_away_ends_no_sandbox() {
    let (host, elsewhere) = with_catalogue();
    let server = host.server().await;
    let (running, paused) = (server.create(base()).await.unwrap().id, server.create(base()).await.unwrap().id);
    for id in [&running, &paused] {
        host.remember(id, "kept");
    }
    server.pause(&paused).await.unwrap();
    let held = server.capacity().usage.total();
    elsewhere.away.store(true, Ordering::SeqCst);

    assert!(server.catalog().await.away.unwrap().contains("nobody answers"));
    assert!(matches!(server.pause(&running).await, Err(SnapshotError::Store(StoreError::Away { .. }))));
    assert!(matches!(server.set_timeout(&running, LIFE * 2).await, Err(DeadlineError::Store(StoreError::Away { .. }))));
    let refused = server.resume(&paused, LIFE).await.unwrap_err();
    assert!(firkin_causes::chain(&refused).contains("the database is away"), "{refused:?}");
    assert!(matches!(server.kill(&paused).await, Err(KillError::Store(StoreError::Away { .. }))));
    server.create(base()).await.unwrap_err();
    assert!(server.stats(&running).await.unwrap().is_some(), "it goes on");
    assert_eq!((host.engine.live(), server.capacity().usage.total()), (1, held));

    elsewhere.away.store(false, Ordering::SeqCst);
    assert_eq!(server.catalog().await.away, None);
    server.resume(&paused, LIFE).await.unwrap();
    assert_eq!([&running, &paused].map(|id| host.memory(id).word), ["kept", "kept"]);
    server.shutdown(OnExit::Pause).await;
    drop(server);
    let server = host.server().await;
    let states = [&running, &paused].map(|id| server.sandbox(id).unwrap().state);
    assert_eq!(states, [SandboxState::Paused, SandboxState::Paused]);
    server.shutdown(OnExit::Kill).await;
}

#[tokio::test]
async fn what_may_have_been_recorded_is_told_as_unknown_and_loses_nothing() {
    let (host, elsewhere) = with_catalogue();
    let server = host.server().await;
    let id = server.create(base()).await.unwrap().id;
    host.remember(&id, "kept");
    // It is recorded as paused, and nobody has heard so: the sandbox goes on as if it were not.
    elsewhere.goes_after(0);
    let unknown = server.pause(&id).await;
    assert!(matches!(unknown, Err(SnapshotError::Store(StoreError::Unknown { .. }))), "{unknown:?}");
    elsewhere.away.store(false, Ordering::SeqCst);
    assert_eq!(server.sandbox(&id).unwrap().state, SandboxState::Running);
    host.remember(&id, "kept longer");
    server.pause(&id).await.unwrap();
    // A create of which nobody knows leaves neither a machine nor, after the next start, a record.
    elsewhere.goes_after(0);
    let unknown = server.create(base()).await;
    assert!(matches!(unknown, Err(CreateError::Store(StoreError::Unknown { .. }))), "{unknown:?}");
    elsewhere.away.store(false, Ordering::SeqCst);
    assert_eq!(host.engine.live(), 0);
    server.shutdown(OnExit::Pause).await;
    drop(server);
    let server = host.server().await;
    let all: Vec<_> = server.sandboxes().into_iter().map(|sandbox| sandbox.id).collect();
    assert_eq!(all, std::slice::from_ref(&id));
    server.resume(&id, LIFE).await.unwrap();
    assert_eq!(host.memory(&id).word, "kept longer");
    server.shutdown(OnExit::Kill).await;
}

#[test]
fn a_state_directory_is_opened_with_its_own_catalogue_or_not_at_all() {
    let (mut host, _) = with_catalogue();
    let id = host.serve(async |server| {
        let id = server.create(base()).await.unwrap().id;
        server.pause(&id).await.unwrap();
        id
    });
    let artifacts = host.artifacts();
    let catalog = host.catalog.take();
    let refused = host.refused_on(&host.engine);
    assert!(matches!(&refused, OpenError::CatalogElsewhere { address, .. } if address.contains("elsewhere")), "{refused:?}");
    assert_eq!(host.artifacts(), artifacts, "nothing is collected that another catalogue names");
    host.catalog = catalog;
    host.serve(async |server| drop(server.resume(&id, LIFE).await.unwrap()));
}

#[tokio::test(start_paused = true)]
async fn what_ends_while_the_catalogue_is_away_is_forgotten_when_it_is_back() {
    let clock = hold_the_clock();
    let (host, elsewhere) = with_catalogue();
    let server = host.server().await;
    let id = server.create(base()).await.unwrap().id;
    elsewhere.away.store(true, Ordering::SeqCst);
    assert!(matches!(server.kill(&id).await, Err(KillError::Store(StoreError::Away { .. }))));
    assert_eq!(host.engine.live(), 0, "it ended all the same");
    let recorded = || {
        let database = rusqlite::Connection::open(&elsewhere.path).unwrap();
        database.query_row("SELECT count(*) FROM sandboxes", [], |row| row.get::<_, i64>(0)).unwrap()
    };
    assert_eq!(recorded(), 1);
    elsewhere.away.store(false, Ordering::SeqCst);
    tokio::time::advance(Duration::from_secs(5)).await;
    until("that it is forgotten", || recorded() == 0).await;
    server.shutdown(OnExit::Kill).await;
    clock.abort();
}

#[tokio::test]
async fn a_life_is_claimed_before_its_guest_begins_it() {
    let (host, elsewhere) = with_catalogue();
    let server = host.server().await;
    let id = server.create(base()).await.unwrap().id;
    host.remember(&id, "kept");
    server.pause(&id).await.unwrap();
    // Another server has it since, and this one does not know.
    let database = rusqlite::Connection::open(&elsewhere.path).unwrap();
    let claim = "UPDATE sandboxes SET body = json_set(body, '$.epoch', json_extract(body, '$.epoch') + ?1)";
    database.execute(claim, [1]).unwrap();
    let lives = host.memory(&id).identities.len();
    let fenced = server.resume(&id, LIFE).await;
    assert!(matches!(fenced, Err(ResumeError::Store(StoreError::Fenced { .. }))), "{fenced:?}");
    assert_eq!((host.memory(&id).identities.len(), host.engine.live()), (lives, 0), "no guest has seen a life that is another's");
    database.execute(claim, [-1]).unwrap();
    // A claim of which nothing came is no loss: what holds the sandbox is what it was.
    elsewhere.goes_after(0);
    let unknown = server.resume(&id, LIFE).await;
    assert!(matches!(unknown, Err(ResumeError::Store(StoreError::Unknown { .. }))), "{unknown:?}");
    elsewhere.away.store(false, Ordering::SeqCst);
    let before = host.memory(&id).identities.last().unwrap().epoch;
    server.resume(&id, LIFE).await.unwrap();
    assert_eq!(host.memory(&id).word, "kept");
    // It is the claimed one that its guest is in, and that is on record as running: no other node could be given the same.
    let lived = host.memory(&id).identities.last().unwrap().epoch;
    assert_eq!((lived, epoch_on_record(&database, &id)), (before + 1, before + 1));
    server.pause(&id).await.unwrap();
    // One that runs and of which nobody knows whether that was recorded goes on, and its next change records it.
    elsewhere.goes_after(1);
    let unknown = server.resume(&id, LIFE).await;
    assert!(matches!(unknown, Err(ResumeError::Store(StoreError::Unknown { .. }))), "{unknown:?}");
    elsewhere.away.store(false, Ordering::SeqCst);
    assert_eq!((server.sandbox(&id).unwrap().state, host.engine.live()), (SandboxState::Running, 1));
    host.remember(&id, "kept longer");
    server.shutdown(OnExit::Pause).await;
    drop(server);
    let server = host.server().await;
    server.resume(&id, LIFE).await.unwrap();
    assert_eq!(host.memory(&id).word, "kept longer");
    server.shutdown(OnExit::Kill).await;
}

/// The life that is on record of a sandbox.
fn epoch_on_record(database: &rusqlite::Connection, id: &firkin_runtime::sandbox::SandboxId) -> u64 {
    let asked = "SELECT json_extract(body, '$.epoch') FROM sandboxes WHERE id = ?1";
    database.query_row(asked, [id.as_str()], |row| row.get::<_, i64>(0)).unwrap().unsigned_abs()
}

#[tokio::test]
async fn a_rollback_is_claimed_before_its_guest_begins() {
    let (host, elsewhere) = with_catalogue();
    let server = host.server().await;
    let (id, checkpoint) = scene(&host, &server).await;
    let lives = host.memory(&id).identities.len();
    // It goes away with the claim, after what the sandbox was is durable.
    elsewhere.goes_after(1);
    let failed = server.rollback(&id, &checkpoint).await;
    assert!(matches!(failed, Err(RollbackError::Restore { source: ResumeError::Store(_), .. })), "{failed:?}");
    assert_eq!(
        (host.memory(&id).identities.len(), host.engine.live()),
        (lives, 0),
        "no guest has seen a life that may be another's"
    );
    assert_eq!(server.sandbox(&id).unwrap().state, SandboxState::Paused);
    elsewhere.away.store(false, Ordering::SeqCst);
    server.resume(&id, LIFE).await.unwrap();
    assert_eq!(host.memory(&id).word, "later", "it is what it was");
    server.rollback(&id, &checkpoint).await.unwrap();
    assert_eq!(host.memory(&id).word, "then");
    server.shutdown(OnExit::Kill).await;
}

#[tokio::test]
async fn what_is_copied_off_a_host_has_the_records_of_a_catalogue_elsewhere() {
    let (mut host, _) = with_catalogue();
    let there = tempfile::tempdir().unwrap();
    let destination = Destination::Directory(there.path().join("there"));
    let copies = Copies::open(&destination, &Access::default(), &Limits::default()).unwrap();
    *host.copies.lock().unwrap() = Some(CopyConfig::new(copies.clone()));
    let server = host.server().await;
    let id = server.create(base()).await.unwrap().id;
    host.remember(&id, "kept");
    server.pause(&id).await.unwrap();
    server.copied().await;
    server.shutdown(OnExit::Kill).await;
    drop(server);
    fs_err::remove_dir_all(host.state_dir()).unwrap();
    // The catalogue itself is gone too: what came back has its records in itself.
    (host.catalog, *host.copies.lock().unwrap()) = (None, None);
    let report = Box::pin(restore_from(&copies, &host.state_dir(), &Qcow2, &|_| {})).await.unwrap();
    assert_eq!(report.lost.len(), 0, "{report:?}");
    let server = host.server().await;
    server.resume(&id, LIFE).await.unwrap();
    assert_eq!(host.memory(&id).word, "kept");
    server.shutdown(OnExit::Kill).await;
}

#[test]
fn a_server_that_loses_its_catalogue_as_it_begins_leaves_what_runs_to_the_next_one() {
    let (host, elsewhere) = with_catalogue();
    let ids = host.crash_after(async |server| {
        let mut ids = Vec::new();
        for _ in 0..3 {
            let id = server.create(base()).await.unwrap().id;
            host.remember(&id, "kept");
            ids.push(id);
        }
        ids
    });
    // What is to be forgotten of this one cannot be: the first change of all is the last.
    let (ended, left) = ids.split_first().unwrap();
    host.guest(ended).power_off();
    elsewhere.goes_after(0);
    let refused = host.refused_on(&host.engine);
    assert!(matches!(refused, OpenError::Store(_)), "{refused:?}");
    assert_eq!(host.engine.live(), 2, "those that it had taken over run");
    // The next one has no word of the database after all that is on record was read: of builds that were under way.
    elsewhere.away.store(false, Ordering::SeqCst);
    elsewhere.deaf_to_builds.store(true, Ordering::SeqCst);
    let refused = host.refused_on(&host.engine);
    assert!(matches!(refused, OpenError::Store(_)), "{refused:?}");
    elsewhere.deaf_to_builds.store(false, Ordering::SeqCst);
    host.serve(async |server| {
        assert_eq!(server.sandboxes().len(), 2);
        for id in left {
            assert_eq!(server.sandbox(id).unwrap().state, SandboxState::Running);
            server.pause(id).await.unwrap();
            server.resume(id, LIFE).await.unwrap();
            assert_eq!(host.memory(id).word, "kept");
        }
    });
}

#[tokio::test]
async fn what_cannot_be_recorded_as_paused_when_its_server_ends_runs_on() {
    let (host, elsewhere) = with_catalogue();
    let server = host.server().await;
    let id = server.create(base()).await.unwrap().id;
    host.remember(&id, "kept");
    elsewhere.away.store(true, Ordering::SeqCst);
    server.shutdown(OnExit::Pause).await;
    drop(server);
    assert_eq!(host.engine.live(), 1);
    elsewhere.away.store(false, Ordering::SeqCst);
    let server = host.server().await;
    assert_eq!(server.sandbox(&id).unwrap().state, SandboxState::Running);
    server.shutdown(OnExit::Pause).await;
    drop(server);
    let server = host.server().await;
    server.resume(&id, LIFE).await.unwrap();
    assert_eq!(host.memory(&id).word, "kept");
    server.shutdown(OnExit::Kill).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_in_doubt_is_recorded_when_the_catalogue_is_back() {
    let clock = hold_the_clock();
    let (host, elsewhere) = with_catalogue();
    let server = host.server().await;
    let id = server.create(base()).await.unwrap().id;
    elsewhere.goes_after(0);
    let unknown = server.pause(&id).await;
    assert!(matches!(unknown, Err(SnapshotError::Store(StoreError::Unknown { .. }))), "{unknown:?}");
    let recorded = || {
        let database = rusqlite::Connection::open(&elsewhere.path).unwrap();
        let phase = "SELECT json_extract(body, '$.phase.phase') FROM sandboxes";
        database.query_row(phase, [], |row| row.get::<_, String>(0)).unwrap()
    };
    assert_eq!(recorded(), "paused", "a server that came now would end its machine");
    elsewhere.away.store(false, Ordering::SeqCst);
    tokio::time::advance(Duration::from_secs(5)).await;
    until("that it is on record as it is", || recorded() == "running").await;
    server.shutdown(OnExit::Kill).await;
    clock.abort();
}
