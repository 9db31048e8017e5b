//! Who has a catalogue: one server at a time, of one installation, in its term.
//!
//! A session of the database has a lock for as long as the server lives. The database gives it up itself when the server is gone. When the
//! database itself was gone, the lock is taken again; whoever came in between has a higher term, and then it is theirs.

use std::time::Duration;

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
    holding::Holding,
    open_error::OpenError,
    schema,
};

/// How long a server before this one is waited for: it ends, or the database notices that it has.
const HANDOVER: Duration = Duration::from_secs(3);

/// Between two tries.
const INTERVAL: Duration = Duration::from_millis(100);

/// Between two looks at whether the session with the lock is there.
const WATCH: Duration = Duration::from_secs(1);

/// What stands before a cluster's id where the name of an installation would: that has no such character in it, so that no server takes a
/// cluster's catalogue for its own, also none of an earlier version.
pub(crate) const CLUSTER: &str = "cluster:";

/// How long the database may take to be told that this server has ended.
const FAREWELL: Duration = Duration::from_secs(5);

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
        if !lock_in_time(&connection, &Holding::Whole).await.map_err(refused)? {
            return Err(taken(address, &connection).await);
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
        Ok((Self::of(address, connection, Holding::Whole, term), term))
    }

    /// What a connection has locked, for as long as it is held.
    pub(crate) fn of(address: &Address, connection: Connection, holding: Holding, term: i64) -> Self {
        let (ends, ended) = oneshot::channel();
        let watching = tokio::spawn(watch(address.clone(), connection, (holding, term), ended));
        Self { watching, ends: Some(ends) }
    }

    /// Lets the next have it, at once: it has been given back when this returns, if the database could be told.
    pub(crate) async fn give_up(mut self) {
        drop(self.ends.take());
        // If it could not, it is with the end of the session.
        drop(timeout(FAREWELL, &mut self.watching).await);
    }
}

async fn lock(connection: &Connection, holding: &Holding) -> Result<bool, DatabaseError> {
    let asked = async { connection.client().query_one(&holding.lock(), &[]).await?.try_get(0) };
    connection.answered(asked).await
}

/// Waits for a server that ends.
pub(crate) async fn lock_in_time(connection: &Connection, holding: &Holding) -> Result<bool, DatabaseError> {
    let until = Instant::now() + HANDOVER;
    while !lock(connection, holding).await? {
        if Instant::now() > until {
            return Ok(false);
        }
        sleep(INTERVAL).await;
    }
    Ok(true)
}

/// Whose the catalogue is and in which term, once nobody writes: from here on nobody else does, until the transaction ends.
pub(crate) async fn standing(connection: &Connection) -> Result<(Option<String>, i64), DatabaseError> {
    let begin = format!("BEGIN; SELECT pg_advisory_xact_lock({WRITERS})");
    connection.answered(connection.client().batch_execute(&begin)).await?;
    whose(connection).await
}

pub(crate) async fn whose(connection: &Connection) -> Result<(Option<String>, i64), DatabaseError> {
    let found = async {
        let row = connection.client().query_one("SELECT installation, term FROM firkin.catalogue", &[]).await?;
        Ok((row.try_get(0)?, row.try_get(1)?))
    };
    connection.answered(found).await
}

/// Refuses a catalogue that is not in the state in which its holder left it.
pub(crate) fn fits(address: &Address, holder: &Holder, (theirs, found): (Option<String>, i64)) -> Result<(), OpenError> {
    let address = address.to_string();
    match (theirs, holder.left) {
        (Some(theirs), _) if theirs.starts_with(CLUSTER) => {
            Err(OpenError::IsCluster { address, cluster: theirs.trim_start_matches(CLUSTER).to_owned() })
        }
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
pub(crate) async fn is_made(connection: &Connection) -> Result<bool, DatabaseError> {
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
        Some::<String>(theirs) => {
            fits(address, &Holder { installation: installation.to_owned(), left: Left::Never }, (Some(theirs), 0))
        }
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

pub(crate) async fn taken(address: &Address, connection: &Connection) -> OpenError {
    let asked = "SELECT coalesce(installation, ''), coalesce(host, '') FROM firkin.catalogue";
    let read = async {
        let row = connection.client().query_one(asked, &[]).await?;
        Ok((row.try_get(0)?, row.try_get(1)?))
    };
    let unknown = || ("unknown".to_owned(), "unknown".to_owned());
    let (installation, host) = connection.answered(read).await.unwrap_or_else(|_| unknown());
    let address = address.to_string();
    match installation.strip_prefix(CLUSTER) {
        Some(cluster) => OpenError::IsCluster { address, cluster: cluster.to_owned() },
        None => OpenError::Taken { address, installation, host },
    }
}

/// Holds the lock again whenever the database was gone, until the catalogue is another's, or `ended`.
async fn watch(address: Address, mut connection: Connection, (holding, term): (Holding, i64), mut ended: oneshot::Receiver<()>) {
    loop {
        if timeout(WATCH, &mut ended).await.is_ok() {
            let given = async { connection.client().execute("SELECT pg_advisory_unlock_all()", &[]).await };
            if let Err(error) = connection.answered(given).await {
                tracing::debug!(error = firkin_causes::chain(&error), "the database is not told that this server has ended");
            }
            return;
        }
        if connection.is_whole() {
            continue;
        }
        let Ok(again) = Connection::to(&address).await else { continue };
        if !lock(&again, &holding).await.unwrap_or(false) {
            continue;
        }
        let found = async { again.client().query_one(&holding.standing(), &[]).await?.try_get::<_, i64>(0) };
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
