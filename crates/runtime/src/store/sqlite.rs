//! SQLite as the database of one host: a file, its schema and the versions before it.
//!
//! The connection lives on a thread of its own, so that no asynchronous thread waits for the disk.

use std::{os::unix::fs::PermissionsExt as _, path::Path};

use fs_err::os::unix::fs::OpenOptionsExt as _;
use futures::future::BoxFuture;
use rusqlite::{Connection, Transaction, types::ValueRef};
use tokio::sync::{mpsc, oneshot};

use super::{
    SCHEMA, StoreError, builds,
    database::{Database, DatabaseError, Mode, Statements, Tx, Value, Work},
    in_use, look, migrate, of_sqlite, teams, teams_came, templates, webhooks,
};

/// What is answered as paused must survive a power failure. The log is small, its sync about a millisecond.
const SYNCED: &str = "PRAGMA synchronous = FULL";

/// What nobody waits for need not.
const UNSYNCED: &str = "PRAGMA synchronous = NORMAL";

/// Requests waiting for the database; each is a few microseconds to a few milliseconds.
const QUEUE: usize = 256;

/// What the database's thread is asked for.
enum Request {
    Work(Mode, Work, oneshot::Sender<Result<(), StoreError>>),
    Close(oneshot::Sender<Result<(), StoreError>>),
}

/// The database.
#[derive(Debug)]
pub(crate) struct Sqlite {
    requests: mpsc::Sender<Request>,
}

impl Sqlite {
    pub(crate) async fn open(path: &Path) -> Result<Self, StoreError> {
        let path = path.to_owned();
        Self::of(move || connect(&path)).await
    }

    /// One that is gone with its last user.
    pub(crate) async fn in_memory() -> Result<Self, StoreError> {
        Self::of(|| brought_up(Connection::open_in_memory().map_err(of_sqlite("open"))?)).await
    }

    /// Another server's, which may run: nothing is written, made or brought up to date.
    pub(crate) async fn another(path: &Path) -> Result<Self, StoreError> {
        let path = path.to_owned();
        Self::of(move || look::current(&path)).await
    }

    async fn of(connect: impl FnOnce() -> Result<Connection, StoreError> + Send + 'static) -> Result<Self, StoreError> {
        let (requests, mut queue) = mpsc::channel(QUEUE);
        let (opened, result) = oneshot::channel();
        std::thread::Builder::new()
            .name("firkin-store".into())
            .spawn(move || {
                let mut connection = match connect() {
                    Ok(connection) => connection,
                    Err(error) => {
                        drop(opened.send(Err(error)));
                        return;
                    }
                };
                drop(opened.send(Ok(())));
                while let Some(request) = queue.blocking_recv() {
                    match request {
                        Request::Work(mode, work, done) => drop(done.send(run(&mut connection, mode, work))),
                        Request::Close(closed) => {
                            let result = connection.close().map_err(|(_, error)| of_sqlite("close")(error));
                            drop(closed.send(result));
                            return;
                        }
                    }
                }
            })
            .map_err(|_| StoreError::Closed)?;
        result.await.map_err(|_| StoreError::Closed)??;
        Ok(Self { requests })
    }
}

impl Database for Sqlite {
    fn name(&self) -> &'static str {
        "sqlite"
    }

    fn run(&self, mode: Mode, work: Work) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let (done, result) = oneshot::channel();
            self.requests.send(Request::Work(mode, work, done)).await.map_err(|_| StoreError::Closed)?;
            result.await.map_err(|_| StoreError::Closed)?
        })
    }

    /// It is one file again then.
    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let (closed, result) = oneshot::channel();
            self.requests.send(Request::Close(closed)).await.map_err(|_| StoreError::Closed)?;
            result.await.map_err(|_| StoreError::Closed)?
        })
    }
}

fn run(connection: &mut Connection, mode: Mode, work: Work) -> Result<(), StoreError> {
    if mode != Mode::Unsynced {
        return whole(connection, |tx| work(&**tx));
    }
    let relaxed = connection.execute_batch(UNSYNCED).map_err(of_sqlite("configure"));
    let done = relaxed.and_then(|()| whole(connection, |tx| work(&**tx)));
    // Whatever came of it: what follows is durable again.
    let synced = connection.execute_batch(SYNCED).map_err(of_sqlite("configure"));
    synced.and(done)
}

impl Statements for Connection {
    fn execute(&self, statement: &str, values: &[Value]) -> Result<usize, DatabaseError> {
        let mut statement = self.prepare_cached(statement).map_err(refusal)?;
        statement.execute(rusqlite::params_from_iter(values)).map_err(refusal)
    }

    fn rows(&self, statement: &str, values: &[Value]) -> Result<Vec<Vec<Value>>, DatabaseError> {
        let mut statement = self.prepare_cached(statement).map_err(refusal)?;
        let columns = statement.column_count();
        let rows = statement.query_map(rusqlite::params_from_iter(values), |row| {
            (0..columns).map(|column| row.get_ref(column)?.try_into()).collect::<rusqlite::Result<Vec<Value>>>()
        });
        rows.map_err(refusal)?.collect::<Result<_, _>>().map_err(refusal)
    }
}

fn refusal(error: rusqlite::Error) -> DatabaseError {
    DatabaseError::Refused(Box::new(error))
}

impl TryFrom<ValueRef<'_>> for Value {
    type Error = rusqlite::Error;

    fn try_from(value: ValueRef<'_>) -> Result<Self, rusqlite::Error> {
        Ok(match value {
            ValueRef::Null => Self::Null,
            ValueRef::Integer(number) => Self::Integer(number),
            ValueRef::Real(_) => return Err(rusqlite::Error::InvalidQuery),
            ValueRef::Text(_) => Self::Text(value.as_str()?.to_owned()),
            ValueRef::Blob(bytes) => Self::Bytes(bytes.to_owned()),
        })
    }
}

impl rusqlite::ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
        Ok(rusqlite::types::ToSqlOutput::Borrowed(match self {
            Self::Null => ValueRef::Null,
            Self::Integer(number) => ValueRef::Integer(*number),
            Self::Text(text) => ValueRef::Text(text.as_bytes()),
            Self::Bytes(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

pub(super) fn whole<T>(
    c: &mut Connection,
    work: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let tx = c.transaction().map_err(of_sqlite("begin"))?;
    let done = work(&tx)?;
    tx.commit().map_err(of_sqlite("commit"))?;
    Ok(done)
}

/// What names and tokens are in is for this user alone. SQLite gives the files that it makes later the mode of the first.
fn keep_private(path: &Path) -> std::io::Result<()> {
    fs_err::OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
    for suffix in ["", "-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        match fs_err::set_permissions(&name, std::fs::Permissions::from_mode(0o600)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn connect(path: &Path) -> Result<Connection, StoreError> {
    keep_private(path).map_err(|source| StoreError::File { path: path.to_owned(), source })?;
    let connection = Connection::open(path).map_err(of_sqlite("open"))?;
    connection.execute_batch("PRAGMA journal_mode = WAL;").map_err(of_sqlite("configure"))?;
    brought_up(connection)
}

/// A connection to tables of this version, which are made or brought up to date.
fn brought_up(mut connection: Connection) -> Result<Connection, StoreError> {
    connection.execute_batch(SYNCED).map_err(of_sqlite("configure"))?;
    // A migration makes tables anew that others refer to, and looks itself whether all lead somewhere then.
    connection.execute_batch("PRAGMA foreign_keys = OFF;").map_err(of_sqlite("configure"))?;
    let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(of_sqlite("read the version"))?;
    match found {
        0 => whole(&mut connection, |tx| create(tx))?,
        1 => {
            builds::create_tables(&connection)?;
            whole(&mut connection, migrate::from_1)?;
        }
        2 => whole(&mut connection, teams_came::from_2)?,
        SCHEMA => {}
        found => return Err(StoreError::Schema { found, known: SCHEMA }),
    }
    connection.execute_batch("PRAGMA foreign_keys = ON;").map_err(of_sqlite("configure"))?;
    builds::create_tables(&connection)?;
    webhooks::create_tables(&connection)?;
    connection.execute_batch(in_use::INDICES).map_err(of_sqlite("create indices"))?;
    Ok(connection)
}

fn create(c: &Connection) -> Result<(), StoreError> {
    let tables = format!(
        "CREATE TABLE sandboxes (id TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;
         {}
         {}
         PRAGMA user_version = {SCHEMA};",
        templates::TABLES,
        teams::TABLES
    );
    c.execute_batch(&tables).map_err(of_sqlite("create the schema"))?;
    teams::put_first(Tx::of(c))
}
