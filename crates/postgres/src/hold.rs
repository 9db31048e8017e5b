//! Who has a catalogue: one server at a time, of one installation, in its term.
//!
//! A session of the database has a lock for as long as the server lives. The database gives it up itself when the server is gone. When the
//! database itself was gone, the lock is taken again; whoever came in between has a higher term, and then it is theirs.

use std::time::Duration;

use firkin_runtime::store::catalog::{Holder, Left};
use tokio::{task::JoinHandle, time::Instant};

use crate::{
    address::Address,
    connection::Connection,
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
        source: tokio_postgres::Error,
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
pub(crate) struct Hold(JoinHandle<()>);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Hold {
    /// Takes the catalogue, and the term in which it is ours.
    pub(crate) async fn take(address: &Address, holder: &Holder) -> Result<(Self, i64), OpenError> {
        let unreachable = |source| OpenError::Unreachable { address: address.to_string(), source };
        let connection = Connection::to(address).await.map_err(unreachable)?;
        let until = Instant::now() + HANDOVER;
        while !lock(&connection).await.map_err(unreachable)? {
            if Instant::now() > until {
                return Err(taken(address, &connection).await);
            }
            tokio::time::sleep(INTERVAL).await;
        }
        if holder.left != Left::Never && !is_made(&connection).await.map_err(unreachable)? {
            return Err(OpenError::Empty { address: address.to_string() });
        }
        let tables = |source| OpenError::Tables { address: address.to_string(), source };
        schema::migrate(connection.client()).await.map_err(tables)?;
        let found = "SELECT installation, term FROM firkin.catalogue";
        let row = connection.client().query_one(found, &[]).await.map_err(unreachable)?;
        let theirs: Option<String> = row.try_get(0).map_err(unreachable)?;
        let found: i64 = row.try_get(1).map_err(unreachable)?;
        let address_of = || address.to_string();
        match (theirs, holder.left) {
            (Some(theirs), _) if theirs != holder.installation => {
                return Err(OpenError::Foreign { address: address_of(), theirs, ours: holder.installation.clone() });
            }
            (None, Left::In(_) | Left::After(_)) => return Err(OpenError::Empty { address: address_of() }),
            (_, Left::In(known) | Left::After(known)) if found < known => {
                return Err(OpenError::WentBack { address: address_of(), found, known });
            }
            (_, Left::In(known)) if found > known => return Err(OpenError::WentOn { address: address_of(), found, known }),
            _ => {}
        }
        let claim = "UPDATE firkin.catalogue SET term = term + 1, installation = $1, host = $2, since = now() RETURNING term";
        let host = fs_err::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let claimed = connection.client().query_one(claim, &[&holder.installation, &host.trim()]).await.map_err(unreachable)?;
        let term = claimed.try_get(0).map_err(unreachable)?;
        Ok((Self(tokio::spawn(watch(address.clone(), connection, term))), term))
    }

    /// Lets the next have it, at once.
    pub(crate) async fn give_up(mut self) {
        self.0.abort();
        // Its end is the session's.
        drop((&mut self.0).await);
    }
}

/// Whether there are tables of ours.
pub(crate) async fn is_made(connection: &Connection) -> Result<bool, tokio_postgres::Error> {
    let row = connection.client().query_one("SELECT to_regclass('firkin.catalogue') IS NOT NULL", &[]).await?;
    row.try_get(0)
}

async fn lock(connection: &Connection) -> Result<bool, tokio_postgres::Error> {
    let row = connection.client().query_one("SELECT pg_try_advisory_lock($1)", &[&SERVER]).await?;
    row.try_get(0)
}

/// Fails unless the catalogue is that of an installation, and of this version.
pub(crate) async fn look(address: &Address, installation: &str) -> Result<(), OpenError> {
    let unreachable = |source| OpenError::Unreachable { address: address.to_string(), source };
    let connection = Connection::to(address).await.map_err(unreachable)?;
    if !is_made(&connection).await.map_err(unreachable)? {
        return Err(OpenError::Empty { address: address.to_string() });
    }
    let tables = |source| OpenError::Tables { address: address.to_string(), source };
    schema::demand_current(connection.client()).await.map_err(tables)?;
    let row = connection.client().query_one("SELECT installation FROM firkin.catalogue", &[]).await;
    let theirs: Option<String> = row.and_then(|row| row.try_get(0)).map_err(unreachable)?;
    match theirs {
        Some(theirs) if theirs == installation => Ok(()),
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
    let connection = Connection::to(address).await.map_err(unreachable)?;
    let asked = "SELECT current_setting('server_version'),
                 current_setting('fsync') = 'on' AND current_setting('synchronous_commit') <> 'off'";
    let row = connection.client().query_one(asked, &[]).await.map_err(unreachable)?;
    let begun = Instant::now();
    connection.client().simple_query("SELECT 1").await.map_err(unreachable)?;
    let round_trip = begun.elapsed();
    let (version, durable) = (row.try_get(0).map_err(unreachable)?, row.try_get(1).map_err(unreachable)?);
    Ok(Greeting { version, round_trip, durable })
}

async fn taken(address: &Address, connection: &Connection) -> OpenError {
    let asked = "SELECT coalesce(installation, ''), coalesce(host, '') FROM firkin.catalogue";
    let row = connection.client().query_one(asked, &[]).await;
    let read = row.and_then(|row| Ok((row.try_get(0)?, row.try_get(1)?)));
    let unknown = || ("unknown".to_owned(), "unknown".to_owned());
    let (installation, host) = read.unwrap_or_else(|_| unknown());
    OpenError::Taken { address: address.to_string(), installation, host }
}

/// Holds the lock again whenever the database was gone, until the catalogue is another's.
async fn watch(address: Address, mut connection: Connection, term: i64) {
    loop {
        tokio::time::sleep(WATCH).await;
        if connection.is_whole() {
            continue;
        }
        let Ok(again) = Connection::to(&address).await else { continue };
        if !lock(&again).await.unwrap_or(false) {
            continue;
        }
        let row = again.client().query_one("SELECT term FROM firkin.catalogue", &[]).await;
        match row.and_then(|row| row.try_get::<_, i64>(0)) {
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
