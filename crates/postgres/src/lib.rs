//! PostgreSQL as the catalogue of a runtime: how it is reached, what its tables are, and what happens when it goes away.
//!
//! ```text
//!   operation ─► a connection of the pool ─► BEGIN, which life of the catalogue is this? ─► statements ─► COMMIT
//!                                                                                             lost in it: asked by its number
//! ```
//!
//! Writers go one after the other, as they do in SQLite: what an operation decides by what it has read is true when it is kept. Whoever reads
//! waits for nobody. One server has a catalogue at a time. It holds a lock in the database, and each of its transactions looks whether
//! the number that it was given for its time, the *term*, is still the last: who was taken for dead and is not changes nothing more.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use firkin_runtime::store::{
    StoreError,
    database::{Database, DatabaseError, Mode, Work},
};
use futures::future::BoxFuture;
use tokio::{sync::Semaphore, time::Instant};
use tokio_postgres::SimpleQueryMessage;

mod address;
mod connection;
mod hold;
mod schema;

pub use address::{Address, InvalidAddress};
use connection::{Connection, away, refusal};
pub use hold::OpenError;
use hold::{Hold, Holder};

/// Connections for operations. Writers go one by one, and few operations take more than some milliseconds.
const CONNECTIONS: usize = 8;

/// How long an operation waits for one of them.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long is asked after a transaction that was lost while it was being kept. Longer than the database takes to notice that it is alone.
const LOOK_UP: Duration = Duration::from_secs(20);

/// Between two questions then.
const LOOK_UP_INTERVAL: Duration = Duration::from_millis(100);

/// A catalogue in PostgreSQL.
#[derive(Debug)]
pub struct Postgres {
    address: Address,
    term: i64,
    places: Semaphore,
    idle: Arc<Mutex<Vec<Connection>>>,
    hold: Mutex<Option<Hold>>,
}

impl Postgres {
    /// Opens the catalogue at `address` for the installation of that id, makes its tables where there are none, and holds it against
    /// other servers until it is closed.
    pub async fn open(address: Address, installation: &str) -> Result<Self, OpenError> {
        let (hold, term) = Hold::take(&address, &Holder { installation: installation.to_owned() }).await?;
        let places = Semaphore::new(CONNECTIONS);
        Ok(Self { address, term, places, idle: Arc::default(), hold: Mutex::new(Some(hold)) })
    }

    /// A connection in a transaction, with the transaction's number if it writes.
    async fn begin(&self, mode: Mode) -> Result<(Connection, Option<String>), DatabaseError> {
        loop {
            let known = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let is_known = known.is_some();
            let connection = match known {
                Some(connection) => connection,
                None => Connection::to(&self.address).await.map_err(|error| DatabaseError::Away(error.into()))?,
            };
            match connection.begin(mode).await {
                Ok(rows) => return self.checked(mode, connection, &rows).await,
                // It was cut while nobody used it, and nothing was asked of it yet.
                Err(DatabaseError::Away(_)) if is_known => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn checked(
        &self,
        mode: Mode,
        connection: Connection,
        rows: &[SimpleQueryMessage],
    ) -> Result<(Connection, Option<String>), DatabaseError> {
        if mode == Mode::Read {
            return Ok((connection, None));
        }
        let row = rows.iter().rev().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some((row.get(0)?.to_owned(), row.get(1)?.to_owned())),
            _ => None,
        });
        match row {
            Some((term, number)) if term == self.term.to_string() => Ok((connection, Some(number))),
            Some(_) => {
                connection.end("ROLLBACK").await?;
                Err(DatabaseError::Fenced)
            }
            None => Err(DatabaseError::Refused("the catalogue has no term".into())),
        }
    }

    async fn transact(&self, mode: Mode, work: Work) -> Result<(), StoreError> {
        let place = tokio::time::timeout(PATIENCE, self.places.acquire()).await;
        let place = place.map_err(|late| away(late).of("wait for a connection"))?.map_err(|_| StoreError::Closed)?;
        let (connection, number) = self.begin(mode).await.map_err(|error| error.of("begin"))?;
        // Operations ask and wait, so they do it where waiting is allowed.
        let handle = tokio::runtime::Handle::current();
        let done = tokio::task::spawn_blocking(move || {
            let done = work(&connection.statements(&handle));
            (connection, done)
        });
        let Ok((connection, done)) = done.await else { return Err(StoreError::Closed) };
        let done = match done {
            Ok(()) => self.keep(&connection, number).await,
            // With a connection that is gone, so is what was done on it.
            Err(error) => connection.end("ROLLBACK").await.map_or(Ok(()), |()| Ok(())).and(Err(error)),
        };
        if connection.is_whole() {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        }
        drop(place);
        done
    }

    async fn keep(&self, connection: &Connection, number: Option<String>) -> Result<(), StoreError> {
        match (connection.end("COMMIT").await, number) {
            (Err(DatabaseError::Away(cause)), Some(number)) => self.was_kept(&number, cause).await,
            (Err(error), _) => Err(error.of("commit")),
            (Ok(()), _) => Ok(()),
        }
    }

    /// What became of a transaction that was lost while it was being kept: the database knows by its number. It is never done again.
    async fn was_kept(&self, number: &str, cause: Box<dyn std::error::Error + Send + Sync>) -> Result<(), StoreError> {
        let until = Instant::now() + LOOK_UP;
        tracing::warn!(
            number,
            error = firkin_causes::chain(&*cause),
            "the database went away in a commit; it is asked what it did"
        );
        while Instant::now() < until {
            match self.status(number).await.as_deref() {
                Ok("committed") => return Ok(()),
                Ok("aborted") => return Err(DatabaseError::Away(cause).of("commit")),
                // It is not back, or has not noticed yet that nobody listens.
                Ok(_) | Err(_) => tokio::time::sleep(LOOK_UP_INTERVAL).await,
            }
        }
        Err(DatabaseError::Unknown(cause).of("commit"))
    }

    async fn status(&self, number: &str) -> Result<String, DatabaseError> {
        let connection = Connection::to(&self.address).await.map_err(|error| DatabaseError::Away(error.into()))?;
        let row = connection.client().query_one("SELECT pg_xact_status($1::text::xid8)", &[&number]).await;
        row.and_then(|row| row.try_get(0)).map_err(refusal)
    }
}

impl Database for Postgres {
    fn name(&self) -> &'static str {
        "postgresql"
    }

    fn run(&self, mode: Mode, work: Work) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.transact(mode, work))
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            // All places: whoever has one is waited for.
            let all = u32::try_from(CONNECTIONS).unwrap_or(u32::MAX);
            let places = tokio::time::timeout(PATIENCE, self.places.acquire_many(all)).await;
            self.places.close();
            drop(places);
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
            let hold = self.hold.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(hold) = hold {
                hold.give_up().await;
            }
            Ok(())
        })
    }
}
