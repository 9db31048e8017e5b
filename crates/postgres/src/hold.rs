//! Who has a catalogue: one server at a time, of one installation, in its term.
//!
//! A session of the database has a lock for as long as the server lives. The database gives it up itself when the server is gone. When the
//! database itself was gone, the lock is taken again; whoever came in between has a higher term, and then it is theirs.

use std::{error::Error, time::Duration};

use firkin_runtime::store::{
    catalog::{Holder, Left},
    database::DatabaseError,
};
use tokio::{
    sync::oneshot,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use crate::{
    address::Address,
    connection::{Connection, WRITERS},
    schema::{self, MigrateError},
};

/// The lock of who serves. The number has no meaning but to be ours.
const SERVER: i64 = 0x0066_6972_6b69_6e02;

/// How long a server before this one is waited for: it ends, or the database notices that it has.
const HANDOVER: Duration = Duration::from_secs(3);

/// Between two tries.
const INTERVAL: Duration = Duration::from_millis(100);

/// Between two looks at whether the session with the lock is there.
const WATCH: Duration = Duration::from_secs(1);

/// How long the database may take to be told that this server has ended.
const FAREWELL: Duration = Duration::from_secs(5);

/// Why a catalogue was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It cannot be reached, or says no.
    #[error("cannot reach the catalogue at {address}")]
    Unreachable {
        /// Where, without a password.
        address: String,
        /// Why.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// Another server has it.
    #[error("another server has the catalogue at {address}: that of installation `{installation}`, on host `{host}`")]
    Taken {
        /// Where.
        address: String,
        /// The other's.
        installation: String,
        /// Where that runs.
        host: String,
    },
    /// It is another installation's.
    #[error(
        "the catalogue at {address} is that of installation `{theirs}`, whose state directory is another one than this (`{ours}`)"
    )]
    Foreign {
        /// Where.
        address: String,
        /// Its installation.
        theirs: String,
        /// Ours.
        ours: String,
    },
    /// There is nothing in it, and there should be.
    #[error(
        "the catalogue at {address} is empty, and that of this state directory is not: it is another database, or a lost one"
    )]
    Empty {
        /// Where.
        address: String,
    },
    /// It is an old copy of what it was.
    #[error(
        "the catalogue at {address} is in term {found}, and this state directory had it in {known}: it is a copy from before, and \
         what was recorded since is not in it"
    )]
    WentBack {
        /// Where.
        address: String,
        /// Its term.
        found: i64,
        /// The last that is known.
        known: i64,
    },
    /// Another copy of the state directory has had it since.
    #[error(
        "the catalogue at {address} is in term {found}, and this state directory had it in {known}: another copy of the directory has \
         had it since"
    )]
    WentOn {
        /// Where.
        address: String,
        /// Its term.
        found: i64,
        /// The last that is known.
        known: i64,
    },
    /// It went away while it was taken, and may be ours.
    #[error("the catalogue at {address} went away while it was taken")]
    Unsettled {
        /// Where, without a password.
        address: String,
        /// Why.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// Its tables cannot be made or brought up to date.
    #[error("cannot use the tables of the catalogue at {address}")]
    Tables {
        /// Where.
        address: String,
        /// Why.
        #[source]
        source: MigrateError,
    },
}

/// The lock, while it is held.
#[derive(Debug)]
pub(crate) struct Hold {
    watching: JoinHandle<()>,
    /// Dropped, the lock is given back.
    ends: Option<oneshot::Sender<()>>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

impl Hold {
    /// Takes the catalogue, and the term in which it is ours.
    pub(crate) async fn take(address: &Address, holder: &Holder) -> Result<(Self, i64), OpenError> {
        let unreachable = |source| OpenError::Unreachable { address: address.to_string(), source };
        let refused = |error: DatabaseError| unreachable(error.into());
        let connection = Connection::to(address).await.map_err(unreachable)?;
        let until = Instant::now() + HANDOVER;
        while !lock(&connection).await.map_err(refused)? {
            if Instant::now() > until {
                return Err(taken(address, &connection).await);
            }
            sleep(INTERVAL).await;
        }
        if holder.left != Left::Never && !is_made(&connection).await.map_err(refused)? {
            return Err(OpenError::Empty { address: address.to_string() });
        }
        if is_made(&connection).await.map_err(refused)? {
            // Nothing is done to the tables of another.
            let found = whose(&connection).await.map_err(refused)?;
            fits(address, holder, found)?;
        }
        let tables = |source| OpenError::Tables { address: address.to_string(), source };
        schema::migrate(connection.client()).await.map_err(tables)?;
        // Who is refused leaves its transaction with its connection.
        let (theirs, found) = standing(&connection).await.map_err(refused)?;
        fits(address, holder, (theirs, found))?;
        let unsettled = |error: DatabaseError| OpenError::Unsettled { address: address.to_string(), source: error.into() };
        let term = claim(&connection, holder).await.map_err(unsettled)?;
        let (ends, ended) = oneshot::channel();
        let watching = tokio::spawn(watch(address.clone(), connection, term, ended));
        Ok((Self { watching, ends: Some(ends) }, term))
    }

    /// Lets the next have it, at once: it has been given back when this returns, if the database could be told.
    pub(crate) async fn give_up(mut self) {
        drop(self.ends.take());
        // If it could not, it is with the end of the session.
        drop(timeout(FAREWELL, &mut self.watching).await);
    }
}

async fn lock(connection: &Connection) -> Result<bool, DatabaseError> {
    let asked = async { connection.client().query_one("SELECT pg_try_advisory_lock($1)", &[&SERVER]).await?.try_get(0) };
    connection.answered(asked).await
}

/// Whose the catalogue is and in which term, once nobody writes: from here on nobody else does, until the transaction ends.
async fn standing(connection: &Connection) -> Result<(Option<String>, i64), DatabaseError> {
    let begin = format!("BEGIN; SELECT pg_advisory_xact_lock({WRITERS})");
    connection.answered(connection.client().batch_execute(&begin)).await?;
    whose(connection).await
}

async fn whose(connection: &Connection) -> Result<(Option<String>, i64), DatabaseError> {
    let found = async {
        let row = connection.client().query_one("SELECT installation, term FROM firkin.catalogue", &[]).await?;
        Ok((row.try_get(0)?, row.try_get(1)?))
    };
    connection.answered(found).await
}

/// Refuses a catalogue that is not in the state in which its holder left it.
fn fits(address: &Address, holder: &Holder, (theirs, found): (Option<String>, i64)) -> Result<(), OpenError> {
    let address = address.to_string();
    match (theirs, holder.left) {
        (Some(theirs), _) if theirs != holder.installation => {
            Err(OpenError::Foreign { address, theirs, ours: holder.installation.clone() })
        }
        (None, Left::In(_) | Left::After(_)) => Err(OpenError::Empty { address }),
        (_, Left::In(known) | Left::After(known)) if found < known => Err(OpenError::WentBack { address, found, known }),
        (_, Left::In(known)) if found > known => Err(OpenError::WentOn { address, found, known }),
        _ => Ok(()),
    }
}

/// Has the catalogue be ours, in a new term. Who writes in an earlier term has ended then, or finds that it is over.
async fn claim(connection: &Connection, holder: &Holder) -> Result<i64, DatabaseError> {
    let host = fs_err::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let claim =
        "UPDATE firkin.catalogue SET term = term + 1, last_write = 0, installation = $1, host = $2, since = now() RETURNING term";
    let claimed = async { connection.client().query_one(claim, &[&holder.installation, &host.trim()]).await?.try_get(0) };
    let claimed = connection.answered(claimed).await?;
    connection.end("COMMIT").await?;
    Ok(claimed)
}

/// Whether there are tables of ours.
async fn is_made(connection: &Connection) -> Result<bool, DatabaseError> {
    let asked = "SELECT to_regclass('firkin.catalogue') IS NOT NULL";
    connection.answered(async { connection.client().query_one(asked, &[]).await?.try_get(0) }).await
}

/// Fails unless the catalogue is that of an installation, and of this version.
pub(crate) async fn look(address: &Address, installation: &str) -> Result<(), OpenError> {
    let unreachable = |source| OpenError::Unreachable { address: address.to_string(), source };
    let refused = |error: DatabaseError| unreachable(error.into());
    let connection = Connection::to(address).await.map_err(unreachable)?;
    if !is_made(&connection).await.map_err(refused)? {
        return Err(OpenError::Empty { address: address.to_string() });
    }
    let tables = |source| OpenError::Tables { address: address.to_string(), source };
    schema::demand_current(connection.client()).await.map_err(tables)?;
    let asked = "SELECT installation FROM firkin.catalogue";
    let theirs = connection.answered(async { connection.client().query_one(asked, &[]).await?.try_get(0) });
    match theirs.await.map_err(refused)? {
        Some::<String>(theirs) if theirs == installation => Ok(()),
        Some(theirs) => Err(OpenError::Foreign { address: address.to_string(), theirs, ours: installation.to_owned() }),
        None => Err(OpenError::Empty { address: address.to_string() }),
    }
}

/// What a database says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Greeting {
    /// Its version, in its words.
    pub version: String,
    /// From a question to its answer.
    pub round_trip: Duration,
    /// Whether what it was told to keep is on its disk when it says so.
    pub durable: bool,
}

pub(crate) async fn greet(address: &Address) -> Result<Greeting, OpenError> {
    let unreachable = |source| OpenError::Unreachable { address: address.to_string(), source };
    let refused = |error: DatabaseError| unreachable(error.into());
    let connection = Connection::to(address).await.map_err(unreachable)?;
    let asked = "SELECT current_setting('server_version'),
                 current_setting('fsync') = 'on' AND current_setting('synchronous_commit') <> 'off'";
    let said = async {
        let row = connection.client().query_one(asked, &[]).await?;
        Ok((row.try_get(0)?, row.try_get(1)?))
    };
    let (version, durable) = connection.answered(said).await.map_err(refused)?;
    let begun = Instant::now();
    connection.answered(connection.client().simple_query("SELECT 1")).await.map_err(refused)?;
    Ok(Greeting { version, round_trip: begun.elapsed(), durable })
}

async fn taken(address: &Address, connection: &Connection) -> OpenError {
    let asked = "SELECT coalesce(installation, ''), coalesce(host, '') FROM firkin.catalogue";
    let read = async {
        let row = connection.client().query_one(asked, &[]).await?;
        Ok((row.try_get(0)?, row.try_get(1)?))
    };
    let unknown = || ("unknown".to_owned(), "unknown".to_owned());
    let (installation, host) = connection.answered(read).await.unwrap_or_else(|_| unknown());
    OpenError::Taken { address: address.to_string(), installation, host }
}

/// Holds the lock again whenever the database was gone, until the catalogue is another's, or `ended`.
async fn watch(address: Address, mut connection: Connection, term: i64, mut ended: oneshot::Receiver<()>) {
    loop {
        if timeout(WATCH, &mut ended).await.is_ok() {
            let given = async { connection.client().execute("SELECT pg_advisory_unlock($1)", &[&SERVER]).await };
            if let Err(error) = connection.answered(given).await {
                tracing::debug!(error = firkin_causes::chain(&error), "the database is not told that this server has ended");
            }
            return;
        }
        if connection.is_whole() {
            continue;
        }
        let Ok(again) = Connection::to(&address).await else { continue };
        if !lock(&again).await.unwrap_or(false) {
            continue;
        }
        let found = async { again.client().query_one("SELECT term FROM firkin.catalogue", &[]).await?.try_get::<_, i64>(0) };
        match again.answered(found).await {
            Ok(found) if found == term => {
                tracing::info!(catalogue = %address, "the database is back");
                connection = again;
            }
            Ok(_) => {
                tracing::error!(catalogue = %address, "the catalogue is another server's now: nothing is recorded any more");
                return;
            }
            Err(_) => {}
        }
    }
}
