//! PostgreSQL as the catalogue of a runtime: how it is reached, what its tables are, and what happens when it goes away.
//!
//! ```text
//!   operation ─► a connection of the pool ─► BEGIN, which life of the catalogue is this? ─► statements ─► its number, COMMIT
//!                                                                                                  lost in it: is its number the last?
//! ```
//!
//! Writers go one after the other, as they do in SQLite: what an operation decides by what it has read is true when it is kept. Whoever reads
//! waits for nobody. Each write leaves a number in the catalogue, in its own transaction, and the next begins once it is known what became of it.
//! The database's own numbers of transactions would not do: after a crash it gives those again that it had not written down.
//!
//! One server has a catalogue at a time, or the nodes of a cluster have it together, each what is its own. Whoever has it holds a lock in the
//! database, and each of its transactions looks whether the number that it was given for its time, the *term*, is still the last: who was taken
//! for dead and is not changes nothing more.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use firkin_runtime::store::{
    StoreError,
    catalog::{Catalog, Holder, Opened},
    database::{Database, DatabaseError, Mode, Parts, Work},
};
use futures::future::BoxFuture;
use tokio::{
    sync::{Mutex as AsyncMutex, Semaphore},
    time::{Instant, timeout},
};
use tokio_postgres::SimpleQueryMessage;

mod address;
mod claim;
mod cluster;
mod connection;
mod copies;
mod hold;
mod holding;
mod lease;
mod members;
mod membership;
mod node;
mod open_error;
mod operator;
mod schema;
mod secrets;
mod stored;

pub use address::{Address, InvalidAddress};
pub use claim::{ClaimError, Claimed};
pub use cluster::{ClusterRecord, Founder, Founding, init};
use connection::{Connection, away};
pub use copies::Owed;
pub use hold::Greeting;
use hold::Hold;
use holding::Holding;
pub use holding::{InvalidNodeId, NodeId};
pub use lease::{Lease, LeaseTimes};
pub use members::{AWAY, AnySandbox, Members, NodeRecord, NodeState, Whereabouts};
pub use membership::Membership;
pub use node::{Node, NodeCatalogue};
pub use open_error::OpenError;
pub use operator::{Buildable, ClockOffset, Counted, Health, PausedSandbox};
pub use schema::MigrateError;
pub use secrets::{Inserted, Reseal, SecretHead, SecretRow, SharedKeyRow, Wanted};
pub use stored::Storing;

/// Connections for operations. Writers go one by one, and few operations take more than some milliseconds.
const CONNECTIONS: usize = 8;

/// How long an operation waits for one of them, and one that writes for those before it.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long is asked after a transaction that was lost while it was being kept. Longer than the database takes to notice that it is alone.
const LOOK_UP: Duration = Duration::from_secs(20);

/// Between two questions then.
const LOOK_UP_INTERVAL: Duration = Duration::from_millis(100);

/// Lives that a sandbox may have before the database goes back, as a power of two: those of another era have higher numbers, so that none is given
/// twice. `demand_era` of the tables says the same.
const LIVES_OF_AN_ERA: u32 = 20;

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
            let database = opened.map_err(not_opened)?;
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

/// Only one that went away while it was taken may have been.
fn not_opened(error: OpenError) -> StoreError {
    match error {
        OpenError::Unsettled { .. } => StoreError::Unknown { operation: "take the catalogue", source: error.into() },
        _ => StoreError::Catalog(error.into()),
    }
}

/// A catalogue in PostgreSQL that is open.
#[derive(Debug)]
pub struct Postgres {
    address: Address,
    holding: Holding,
    term: i64,
    /// Held by who writes, until it is known what became of it.
    writing: AsyncMutex<Writes>,
    /// The number of the last write that was kept, for who does not write.
    kept: AtomicI64,
    /// How often the database may have gone back, as far as this node has heard.
    era: AtomicI64,
    places: Semaphore,
    idle: Arc<Mutex<Vec<Connection>>>,
    hold: Mutex<Option<Hold>>,
}

/// The numbers of writes.
#[derive(Debug, Default, Clone, Copy)]
struct Writes {
    /// The last that was tried.
    tried: i64,
    /// The last that was kept, and that no loss of power takes.
    kept: i64,
}

impl Postgres {
    /// Opens the catalogue at `address` for the installation that is named, makes its tables where there are none, and holds it against
    /// other servers until it is closed.
    pub async fn open(address: Address, holder: &Holder) -> Result<Self, OpenError> {
        let (hold, term) = Hold::take(&address, holder).await?;
        Ok(Self::of(address, Holding::Whole, (term, Some(hold))))
    }

    /// Opens the catalogue at `address` to read it, whoever holds it: it has to be that of the installation, and of this version.
    pub async fn look(address: Address, installation: &str) -> Result<Self, OpenError> {
        hold::look(&address, installation).await?;
        Ok(Self::of(address, Holding::Whole, (NO_TERM, None)))
    }

    fn of(address: Address, holding: Holding, (term, hold): (i64, Option<Hold>)) -> Self {
        let (writing, places) = (AsyncMutex::default(), Semaphore::new(CONNECTIONS));
        let (kept, era) = (AtomicI64::new(0), AtomicI64::new(0));
        Self { address, holding, term, writing, kept, era, places, idle: Arc::default(), hold: Mutex::new(hold) }
    }

    /// The number of the last write that is durable.
    pub(crate) fn kept(&self) -> i64 {
        self.kept.load(Ordering::SeqCst)
    }

    /// From now on lives have the numbers of this era, or of a later one.
    pub(crate) fn begin_era(&self, era: i64) {
        self.era.fetch_max(era, Ordering::SeqCst);
    }

    /// Rises with each who opens the catalogue.
    pub fn term(&self) -> i64 {
        self.term
    }

    /// A connection in a transaction, for who writes only in a catalogue that has what was `kept` in it.
    async fn begin(&self, mode: Mode, kept: Option<i64>) -> Result<Connection, DatabaseError> {
        loop {
            let known = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let is_known = known.is_some();
            let connection = match known {
                Some(connection) => connection,
                None => Connection::to(&self.address).await.map_err(DatabaseError::Away)?,
            };
            match connection.begin(mode, &self.holding).await {
                Ok(rows) => {
                    let Some(kept) = kept else { return Ok(connection) };
                    let Standing { term, last_write, has_lease } = self.stands(&rows)?;
                    if term == self.term && last_write >= kept {
                        if has_lease {
                            return Ok(connection);
                        }
                        connection.end("ROLLBACK").await?;
                        return Err(away(LeaseOver));
                    }
                    if term == self.term {
                        tracing::error!(catalogue = %self.address, last_write, kept, "the catalogue went back behind what it had kept: nothing is recorded any more");
                    }
                    connection.end("ROLLBACK").await?;
                    return Err(DatabaseError::Fenced);
                }
                // It was cut while nobody used it, and nothing was asked of it yet.
                Err(DatabaseError::Away(_)) if is_known && connection.is_closed() => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn transact(&self, mode: Mode, work: Work) -> Result<(), StoreError> {
        let turn = match mode {
            Mode::Read => None,
            Mode::Write | Mode::Unsynced => {
                let turn = timeout(PATIENCE, self.writing.lock()).await;
                Some(turn.map_err(|late| away(late).of("wait for those that write"))?)
            }
        };
        let place = timeout(PATIENCE, self.places.acquire()).await;
        let place = place.map_err(|late| away(late).of("wait for a connection"))?.map_err(|_| StoreError::Closed)?;
        let kept = turn.as_ref().map(|writes| writes.kept);
        let connection = self.begin(mode, kept).await.map_err(|error| error.of("begin"))?;
        // Operations ask and wait, so they do it where waiting is allowed.
        let handle = tokio::runtime::Handle::current();
        let done = tokio::task::spawn_blocking(move || {
            let statements = connection.statements(&handle);
            let done = work(&statements).map(|()| statements.has_changed());
            (connection, done)
        });
        let Ok((connection, done)) = done.await else { return Err(StoreError::Closed) };
        let done = match (done, turn) {
            (Ok(true), Some(mut writes)) => {
                writes.tried += 1;
                let kept = self.keep(&connection, writes.tried).await;
                if kept.is_ok() && mode == Mode::Write {
                    writes.kept = writes.tried;
                    self.kept.store(writes.kept, Ordering::SeqCst);
                }
                kept
            }
            // With a connection that is gone there is nothing to be kept.
            (Ok(_), _) => connection.end("COMMIT").await.map_err(|error| error.of("commit")),
            // With a connection that is gone, so is what was done on it.
            (Err(error), _) => connection.end("ROLLBACK").await.map_or(Ok(()), |()| Ok(())).and(Err(error)),
        };
        if connection.is_whole() {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        }
        drop(place);
        done
    }

    async fn keep(&self, connection: &Connection, number: i64) -> Result<(), StoreError> {
        match connection.end(&format!("{}; COMMIT", self.holding.note(number))).await {
            Err(DatabaseError::Away(cause)) => self.was_kept(number, cause).await,
            ended => ended.map_err(|error| error.of("commit")),
        }
    }

    /// What became of a transaction that was lost while it was being kept: nobody has written since. It is never done again.
    async fn was_kept(&self, number: i64, cause: Box<dyn std::error::Error + Send + Sync>) -> Result<(), StoreError> {
        let until = Instant::now() + LOOK_UP;
        tracing::warn!(
            number,
            error = firkin_causes::chain(&*cause),
            "the database went away in a commit; it is asked what it did"
        );
        while Instant::now() < until {
            match self.standing().await {
                // Another server has overwritten it.
                Ok(Standing { term, .. }) if term != self.term => break,
                Ok(Standing { last_write, .. }) if last_write == number => return Ok(()),
                Ok(_) => return Err(DatabaseError::Away(cause).of("commit")),
                // It is not back, or has not noticed yet that nobody listens.
                Err(_) => tokio::time::sleep(LOOK_UP_INTERVAL).await,
            }
        }
        Err(DatabaseError::Unknown(cause).of("commit"))
    }

    /// Once what was lost is over.
    async fn standing(&self) -> Result<Standing, DatabaseError> {
        let connection = Connection::to(&self.address).await.map_err(DatabaseError::Away)?;
        self.stands(&connection.begin(Mode::Write, &self.holding).await?)
    }

    /// What a writer was told at its beginning.
    fn stands(&self, rows: &[SimpleQueryMessage]) -> Result<Standing, DatabaseError> {
        standing(rows).ok_or_else(|| match self.holding {
            Holding::Whole => DatabaseError::Refused("the catalogue has no term".into()),
            // Its row is gone, or an operator has said that it is off.
            Holding::Node(_) => DatabaseError::Fenced,
        })
    }
}

/// Why a node writes nothing: others may take what is its own.
#[derive(Debug, thiserror::Error)]
#[error("the lease of this node is over, and is not renewed yet")]
struct LeaseOver;

/// What a writer is told at its beginning.
struct Standing {
    term: i64,
    last_write: i64,
    has_lease: bool,
}

/// The last answer that has a row in it is to the last question, unless that has none.
fn standing(rows: &[SimpleQueryMessage]) -> Option<Standing> {
    rows.iter().rev().find_map(|message| match message {
        SimpleQueryMessage::Row(row) if row.len() > 1 => Some(Standing {
            term: row.get(0)?.parse().ok()?,
            last_write: row.get(1)?.parse().ok()?,
            has_lease: row.len() == 2 || row.get(2)? == "t",
        }),
        _ => None,
    })
}

impl Database for Postgres {
    fn name(&self) -> &'static str {
        "postgresql"
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn parts(&self) -> Parts {
        // Others have states of the same name.
        let whole = Parts { state_key: "key, node", ..Parts::WHOLE };
        match self.holding {
            Holding::Whole => whole,
            Holding::Node(_) => Parts {
                has_others: true,
                all_sandboxes: "firkin.sandboxes",
                all_held: "SELECT held_artifact FROM firkin.sandboxes WHERE held_artifact IS NOT NULL",
                own_builds: "own_builds",
                own_deliveries: "own_deliveries",
                ..whole
            },
        }
    }

    fn first_life(&self) -> u64 {
        u64::try_from(self.era.load(Ordering::SeqCst)).unwrap_or_default() << LIVES_OF_AN_ERA
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
            let places = timeout(PATIENCE, self.places.acquire_many(all)).await;
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
