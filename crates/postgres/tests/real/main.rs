//! The catalogue on a real PostgreSQL: the contract, what happens when connections are cut in the middle of a commit, when the database is
//! killed, and when a second server comes, alone or as another node.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test's own parts fail by panics, and say what was not tried")]

use std::{path::Path, sync::Arc, time::Duration};

use firkin_postgres::{Address, Catalogue, OpenError, Postgres};
use firkin_runtime::{
    catalogue::{self, Source},
    store::{
        StoreError,
        catalog::{Catalog, Holder, Left},
        contract,
        database::{Database, DatabaseError, Mode, Statements, Value},
    },
};
use tokio::time::timeout;

mod copies;
mod database;
mod nodes;
mod operator;
mod proxy;
mod race;
mod secrets;
mod standby;
mod stored;

use database::Cluster;
use proxy::{Cut, Proxy};

/// The lock that who writes has.
const WRITERS: i64 = 0x0066_6972_6b69_6e01;

/// A statement that changes something, as an operation.
async fn put(database: &Postgres, id: &'static str) -> Result<(), StoreError> {
    let put = Box::new(move |tx: &dyn Statements| {
        let values = [Value::Text(id.to_owned()), Value::Text("{}".to_owned())];
        let done = tx.execute("INSERT INTO sandboxes (id, body) VALUES (?1, ?2)", &values);
        done.map(drop).map_err(|error: DatabaseError| error.of("put"))
    });
    database.run(Mode::Write, put).await
}

async fn ids(database: &Postgres) -> Vec<Value> {
    let (send, receive) = std::sync::mpsc::channel();
    let read = Box::new(move |tx: &dyn Statements| {
        let rows = tx.rows("SELECT id FROM sandboxes ORDER BY id", &[]).map_err(|error| error.of("read"))?;
        send.send(rows.concat()).unwrap();
        Ok(())
    });
    database.run(Mode::Read, read).await.unwrap();
    receive.recv().unwrap()
}

fn texts(ids: &[&str]) -> Vec<Value> {
    ids.iter().map(|id| Value::Text((*id).to_owned())).collect()
}

fn holder(installation: &str, left: Left) -> Holder {
    Holder { installation: installation.to_owned(), left }
}

async fn open(url: &str) -> Postgres {
    Postgres::open(url.parse().unwrap(), &holder("here", Left::Never)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_catalogue_in_postgresql_is_whole_through_all_that_happens_to_it() {
    let Some(mut cluster) = Cluster::start() else { return };
    let url = cluster.database("contract");
    let database = Arc::new(open(&url).await);
    contract::check(database.clone()).await.unwrap();
    database.close().await.unwrap();

    tables_of_the_first_version_are_brought_up_to_date(&cluster.database("first"), &cluster).await;
    a_directory_finds_the_catalogue_that_it_left(&cluster.database("left"), &cluster.database("empty"), &cluster).await;
    a_catalogue_that_goes_back_is_written_no_more(&cluster.database("back"), &cluster).await;
    a_catalogue_moves_here_and_comes_back_from_a_backup(&cluster.database("moved"), &cluster.database("again")).await;
    one_server_has_it(&cluster.database("held")).await;
    a_newer_version_is_refused(&cluster.database("newer"), &cluster).await;
    a_server_killed_at_any_step_leaves_whole_operations(&cluster.database("steps"), &cluster).await;
    a_commit_that_was_cut_is_asked_about(&cluster.database("cut"), &cluster).await;
    a_server_that_comes_waits_for_who_writes(&cluster.database("waited")).await;
    what_a_crash_took_is_not_taken_for_kept(&mut cluster).await;
    a_killed_database_comes_back(&mut cluster).await;
}

/// As a server of that version left them.
async fn tables_of_the_first_version_are_brought_up_to_date(url: &str, cluster: &Cluster) {
    const FIRST: &str = concat!(
        "CREATE SCHEMA firkin;
         CREATE TABLE firkin.catalogue (
             one BOOLEAN PRIMARY KEY DEFAULT TRUE CHECK (one), schema BIGINT NOT NULL, written_by TEXT NOT NULL, installation TEXT,
             host TEXT, since TIMESTAMPTZ, term BIGINT NOT NULL, last_write BIGINT NOT NULL);
         INSERT INTO firkin.catalogue VALUES (TRUE, 1, '0.1.0', 'here', 'old', now(), 4, 9);",
        include_str!("../../src/schema-1.sql"),
        "INSERT INTO firkin.sandboxes VALUES ('i1', '{}');
         INSERT INTO firkin.builds VALUES ('b1', '{}');
         INSERT INTO firkin.build_layers VALUES ('k1', 'first');"
    );
    cluster.sql("first", FIRST).await;
    let opened = Postgres::open(url.parse().unwrap(), &holder("here", Left::In(4))).await.unwrap();
    put(&opened, "i2").await.unwrap();
    assert_eq!((ids(&opened).await, opened.term()), (texts(&["i1", "i2"]), 5));
    // One of one name, whoever made it.
    const AGAIN: &str = "INSERT INTO build_layers (key, body) VALUES ('k1', 'second') ON CONFLICT (key, node) DO NOTHING";
    assert!(AGAIN.contains(opened.parts().state_key));
    change(&opened, &[AGAIN]).await.unwrap();
    opened.close().await.unwrap();
    cluster.sql("first", "DO $$ BEGIN ASSERT (SELECT body = 'first' AND node = '' FROM firkin.build_layers); END $$").await;
}

async fn a_directory_finds_the_catalogue_that_it_left(url: &str, empty: &str, cluster: &Cluster) {
    let take = async |url: &str, left| {
        let opened = Postgres::open(url.parse().unwrap(), &holder("here", left)).await?;
        opened.close().await.unwrap();
        Ok::<_, OpenError>(opened.term())
    };
    assert_eq!(take(url, Left::Never).await.unwrap(), 1);
    assert_eq!(take(url, Left::In(1)).await.unwrap(), 2);
    // It was stopped before it could remember the second.
    assert_eq!(take(url, Left::After(1)).await.unwrap(), 3);
    let copy = take(url, Left::In(2)).await;
    assert!(matches!(copy, Err(OpenError::WentOn { found: 3, known: 2, .. })), "{copy:?}");
    cluster.sql("left", "UPDATE firkin.catalogue SET term = 1").await;
    for left in [Left::In(3), Left::After(3)] {
        let old = take(url, left).await;
        assert!(matches!(old, Err(OpenError::WentBack { found: 1, known: 3, .. })), "{old:?}");
    }
    let lost = take(empty, Left::In(3)).await;
    assert!(matches!(lost, Err(OpenError::Empty { .. })), "{lost:?}");
    assert_eq!(take(empty, Left::Never).await.unwrap(), 1, "nothing was made of it");
}

/// A standby that had not caught up is in the same term, and lacks what was kept.
async fn a_catalogue_that_goes_back_is_written_no_more(url: &str, cluster: &Cluster) {
    let database = open(url).await;
    put(&database, "i1").await.unwrap();
    put(&database, "i2").await.unwrap();
    cluster
        .sql("back", "UPDATE firkin.catalogue SET last_write = last_write - 1; DELETE FROM firkin.sandboxes WHERE id = 'i2'")
        .await;
    let fenced = put(&database, "i3").await;
    assert!(matches!(fenced, Err(StoreError::Fenced { .. })), "{fenced:?}");
    assert_eq!(ids(&database).await, texts(&["i1"]));
    database.close().await.unwrap();
}

async fn a_catalogue_moves_here_and_comes_back_from_a_backup(url: &str, again: &str) {
    let state = tempfile::tempdir().unwrap();
    contract::leave_behind(state.path()).await.unwrap();
    let saved = async |catalog: Option<&dyn Catalog>| {
        let mut lines = Vec::new();
        catalogue::backup(state.path(), catalog, &mut lines).await.unwrap();
        let lines = String::from_utf8(lines).unwrap();
        let rows: Vec<String> = lines.lines().filter(|line| line.starts_with('[')).map(str::to_owned).collect();
        (lines, rows)
    };
    let (_, own) = saved(None).await;
    let [there, other] = [url, again].map(|url| Catalogue::at(url.parse().unwrap()));
    catalogue::init(state.path(), &there, Source::Own).await.unwrap();
    // Whoever serves is not disturbed by a backup, and cannot be written by it.
    let opened = Postgres::open(url.parse().unwrap(), &holder(&installation(state.path()), Left::Never)).await.unwrap();
    let (lines, moved) = saved(Some(&there)).await;
    assert_eq!(moved, own);
    let reader = Postgres::look(url.parse().unwrap(), &installation(state.path())).await.unwrap();
    let refused = put(&reader, "i9").await;
    assert!(matches!(refused, Err(StoreError::Fenced { .. })), "{refused:?}");
    // What counts its rows itself goes on behind those that came.
    let more = Box::new(|tx: &dyn Statements| {
        let insert = "INSERT INTO deliveries (webhook, due_ms, body) SELECT webhook, due_ms, body FROM deliveries LIMIT 1";
        tx.execute(insert, &[]).map(drop).map_err(|error: DatabaseError| error.of("put"))
    });
    opened.run(Mode::Write, more).await.unwrap();
    opened.close().await.unwrap();
    catalogue::init(state.path(), &other, Source::Backup(&mut lines.as_bytes())).await.unwrap();
    assert_eq!(saved(Some(&other)).await.1, own);
}

/// By which a catalogue knows a state directory.
fn installation(state: &Path) -> String {
    let marker = fs_err::read_to_string(state.join("catalog.json")).unwrap();
    let (_, name) = marker.split_once("\"installation\": \"").unwrap();
    name.split('"').next().unwrap().to_owned()
}

/// What a server that is taken for dead has begun is over before the next one reads anything.
async fn a_server_that_comes_waits_for_who_writes(url: &str) {
    open(url).await.close().await.unwrap();
    let (writer, driven) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
    let driven = tokio::spawn(driven);
    writer.batch_execute(&format!("BEGIN; SELECT pg_advisory_xact_lock({WRITERS})")).await.unwrap();
    let mut opening = Box::pin(open(url));
    assert!(timeout(Duration::from_millis(500), &mut opening).await.is_err(), "somebody writes");
    drop(writer);
    driven.await.unwrap().unwrap();
    opening.await.close().await.unwrap();
}

/// A database that is killed before it has written a transaction down gives its number to the next one.
async fn what_a_crash_took_is_not_taken_for_kept(cluster: &mut Cluster) {
    let url = cluster.database("lost");
    let database = Arc::new(open(&url).await);
    let (written, is_written) = tokio::sync::oneshot::channel();
    let (go_on, goes_on) = std::sync::mpsc::channel();
    let putting = Arc::clone(&database);
    let putting = tokio::spawn(async move {
        let put = Box::new(move |tx: &dyn Statements| {
            let done = tx.execute("INSERT INTO sandboxes (id, body) VALUES ('lost', '{}')", &[]);
            written.send(()).unwrap();
            goes_on.recv().unwrap();
            done.map(drop).map_err(|error| error.of("put"))
        });
        putting.run(Mode::Write, put).await
    });
    is_written.await.unwrap();
    cluster.kill();
    cluster.start_again();
    for other in ["a", "b"] {
        cluster.sql("lost", &format!("INSERT INTO firkin.sandboxes (id, body) VALUES ('{other}', '{{}}')")).await;
    }
    go_on.send(()).unwrap();
    let lost = putting.await.unwrap();
    assert!(matches!(lost, Err(StoreError::Away { .. })), "{lost:?}");
    assert_eq!(ids(&database).await, texts(&["a", "b"]));
    put(&database, "c").await.unwrap();
    database.close().await.unwrap();
}

async fn one_server_has_it(url: &str) {
    let address: Address = url.parse().unwrap();
    let first = open(url).await;
    let second = Postgres::open(address.clone(), &holder("here", Left::Never)).await;
    assert!(matches!(&second, Err(OpenError::Taken { installation, .. }) if installation == "here"), "{second:?}");
    first.close().await.unwrap();
    let other = Postgres::open(address, &holder("elsewhere", Left::Never)).await;
    assert!(matches!(&other, Err(OpenError::Foreign { theirs, .. }) if theirs == "here"), "{other:?}");
    let next = open(url).await;
    put(&next, "i1").await.unwrap();
    let late = put(&first, "i2").await;
    assert!(matches!(late, Err(StoreError::Closed)), "{late:?}");
    next.close().await.unwrap();
}

async fn a_newer_version_is_refused(url: &str, cluster: &Cluster) {
    open(url).await.close().await.unwrap();
    cluster.sql("newer", "UPDATE firkin.catalogue SET schema = 99, written_by = '9.9.9'").await;
    let refused = Postgres::open(url.parse().unwrap(), &holder("here", Left::Never)).await;
    let Err(OpenError::Tables { source, .. }) = refused else { panic!("{refused:?}") };
    assert!(source.to_string().contains("99") && source.to_string().contains("9.9.9"), "{source}");
}

/// An operation of several statements.
async fn change(database: &Postgres, statements: &'static [&'static str]) -> Result<(), StoreError> {
    let change = Box::new(move |tx: &dyn Statements| {
        let each = statements.iter().try_for_each(|statement| tx.execute(statement, &[]).map(drop));
        each.map_err(|error: DatabaseError| error.of("change"))
    });
    database.run(Mode::Write, change).await
}

/// From opening the catalogue to giving it up, a server is killed before each of its messages; what the next one finds is what whole operations
/// left.
async fn a_server_killed_at_any_step_leaves_whole_operations(url: &str, cluster: &Cluster) {
    const FIRST: &[&str] =
        &["INSERT INTO sandboxes (id, body) VALUES ('a', '{}')", "INSERT INTO sandboxes (id, body) VALUES ('b', '{}')"];
    const SECOND: &[&str] = &["DELETE FROM sandboxes WHERE id = 'a'", "INSERT INTO sandboxes (id, body) VALUES ('c', '{}')"];
    let (mut term, mut found, mut step) = (0, Vec::new(), 0);
    loop {
        let proxy = Proxy::until(cluster.port(), step).await;
        let through = url.replace(&cluster.port().to_string(), &proxy.port().to_string());
        let left = if term == 0 { Left::Never } else { Left::In(term) };
        let serve = async {
            let opened = Postgres::open(through.parse().unwrap(), &holder("here", left)).await?;
            for operation in [FIRST, SECOND] {
                if change(&opened, operation).await.is_err() {
                    return Ok(());
                }
            }
            opened.close().await.unwrap();
            Ok::<_, OpenError>(())
        };
        // Killed: what it would do about it, it does not come to.
        let done = tokio::select! {
            done = serve => Some(done),
            () = proxy.ended() => None,
        };
        let left = if term == 0 { Left::Never } else { Left::After(term) };
        let next = Postgres::open(url.parse().unwrap(), &holder("here", left)).await.unwrap();
        assert!(next.term() > term, "a term is given once");
        term = next.term();
        found.push(ids(&next).await);
        change(&next, &["DELETE FROM sandboxes"]).await.unwrap();
        next.close().await.unwrap();
        step += 1;
        if matches!(done, Some(Ok(()))) && !proxy.has_ended() {
            break;
        }
        assert!(step < 200, "it comes to no end");
    }
    let stages = [texts(&[]), texts(&["a", "b"]), texts(&["b", "c"])];
    let at: Vec<usize> =
        found.iter().map(|ids| stages.iter().position(|stage| stage == ids).expect("whole operations")).collect();
    // Messages are joined on their way, now these and now those, so that a later step may be an earlier stage.
    assert!(at.first() == Some(&0) && at.contains(&1) && at.last() == Some(&2), "{at:?}");
}

async fn a_commit_that_was_cut_is_asked_about(url: &str, cluster: &Cluster) {
    let proxy = Proxy::start(cluster.port()).await;
    let database = open(&url.replace(&cluster.port().to_string(), &proxy.port().to_string())).await;
    put(&database, "i0").await.unwrap();
    // It never hears of the commit: what was done is undone, and whoever asked is told that nothing was.
    proxy.cut_at_next(Cut::BeforeCommit);
    let lost = put(&database, "i1").await;
    assert!(matches!(lost, Err(StoreError::Away { .. })), "{lost:?}");
    assert_eq!(ids(&database).await, texts(&["i0"]));
    // It keeps it, and its answer is lost: whoever asked is told that it was kept, and it was once.
    proxy.cut_at_next(Cut::AfterCommit);
    put(&database, "i2").await.unwrap();
    assert_eq!(ids(&database).await, texts(&["i0", "i2"]));
    database.close().await.unwrap();
}

async fn a_killed_database_comes_back(cluster: &mut Cluster) {
    let url = cluster.database("killed");
    let database = Arc::new(open(&url).await);
    put(&database, "i1").await.unwrap();
    cluster.kill();
    let lost = put(&database, "i2").await;
    assert!(matches!(lost, Err(StoreError::Away { .. })), "{lost:?}");
    cluster.start_again();
    put(&database, "i3").await.unwrap();
    assert_eq!(ids(&database).await, texts(&["i1", "i3"]));
    // Who comes in between has it, and who had it changes nothing more.
    cluster.sql("killed", "UPDATE firkin.catalogue SET term = term + 1").await;
    let fenced = put(&database, "i4").await;
    assert!(matches!(fenced, Err(StoreError::Fenced { .. })), "{fenced:?}");
    timeout(Duration::from_secs(60), database.close()).await.unwrap().unwrap();
}
