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
    catalog::{Catalog, Holder, Opened},
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
use hold::Hold;
pub use hold::{Greeting, OpenError};

/// Connections for operations. Writers go one by one, and few operations take more than some milliseconds.
const CONNECTIONS: usize = 8;

/// How long an operation waits for one of them.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long is asked after a transaction that was lost while it was being kept. Longer than the database takes to notice that it is alone.
const LOOK_UP: Duration = Duration::from_secs(20);

/// Between two questions then.
const LOOK_UP_INTERVAL: Duration = Duration::from_millis(100);

/// That of who only reads: no catalogue is ever in it, so that nothing is written.
const NO_TERM: i64 = -1;

/// A catalogue in PostgreSQL, as a runtime is told of it.
#[derive(Debug, Clone)]
pub struct Catalogue {
    address: Address,
}

impl Catalogue {
    /// That at an address.
    pub fn at(address: Address) -> Self {
        Self { address }
    }

    /// Asks who is there: the version of the database, and how long its answer took.
    pub async fn greet(&self) -> Result<Greeting, OpenError> {
        hold::greet(&self.address).await
    }
}

impl Catalog for Catalogue {
    fn address(&self) -> String {
        self.address.to_string()
    }

    fn open(&self, holder: Holder) -> BoxFuture<'_, Result<Opened, StoreError>> {
        Box::pin(async move {
            let opened = Postgres::open(self.address.clone(), &holder).await;
            let database = opened.map_err(|error| StoreError::Catalog(error.into()))?;
            Ok(Opened { term: database.term(), database: Arc::new(database) })
        })
    }

    fn look<'a>(&'a self, installation: &'a str) -> BoxFuture<'a, Result<Arc<dyn Database>, StoreError>> {
        Box::pin(async move {
            let opened = Postgres::look(self.address.clone(), installation).await;
            Ok(Arc::new(opened.map_err(|error| StoreError::Catalog(error.into()))?) as Arc<dyn Database>)
        })
    }
}

/// A catalogue in PostgreSQL that is open.
#[derive(Debug)]
pub struct Postgres {
    address: Address,
    term: i64,
    places: Semaphore,
    idle: Arc<Mutex<Vec<Connection>>>,
    hold: Mutex<Option<Hold>>,
}

impl Postgres {
    /// Opens the catalogue at `address` for the installation that is named, makes its tables where there are none, and holds it against
    /// other servers until it is closed.
    pub async fn open(address: Address, holder: &Holder) -> Result<Self, OpenError> {
        let (hold, term) = Hold::take(&address, holder).await?;
        Ok(Self::of(address, term, Some(hold)))
    }

    /// Opens the catalogue at `address` to read it, whoever holds it: it has to be that of the installation, and of this version.
    pub async fn look(address: Address, installation: &str) -> Result<Self, OpenError> {
        hold::look(&address, installation).await?;
        Ok(Self::of(address, NO_TERM, None))
    }

    fn of(address: Address, term: i64, hold: Option<Hold>) -> Self {
        Self { address, term, places: Semaphore::new(CONNECTIONS), idle: Arc::default(), hold: Mutex::new(hold) }
    }

    /// Rises with each who opens the catalogue.
    pub fn term(&self) -> i64 {
        self.term
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

    fn is_shared(&self) -> bool {
        true
    }

    fn after_rows_with_numbers(&self) -> &'static [&'static str] {
        &["SELECT setval(pg_get_serial_sequence('firkin.deliveries', 'number'),
               (SELECT coalesce(max(number), 0) + 1 FROM deliveries), false)"]
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
