//! What outlives the process: sandboxes, templates, snapshots and API keys, in one SQLite database.
//!
//! Others see operations, one for each decision: what is decided by what is on record is decided in here, in the transaction that
//! writes it, so that nobody writes what another has changed since it was read. No query and no connection gets out.
//!
//! The connection lives on a thread of its own, so that no asynchronous thread waits for the disk. Records of sandboxes are
//! JSON with a column for their id: they are always read whole, and their shape grows with the product.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use firkin_wire::nonce::Nonce;
use fs_err::os::unix::fs::OpenOptionsExt as _;
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Params, Transaction, params};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use crate::{
    capacity::ResourceBudget,
    ground::{
        ids::{ArtifactId, BuildId, LayerId, TemplateId},
        reference::{Reference, with_team},
        team::{Scope, TeamId},
    },
    store::spec::{CreateSandbox, Memory, SandboxId},
};

mod builds;
mod columns;
mod in_use;
mod migrate;
mod shelf;
pub(crate) mod spec;
pub mod state_dir;
mod teams;
mod teams_came;
mod templates;
#[cfg(test)]
mod tests;

pub use builds::{BuildLogEntry, BuildReason, BuildState, Defaults};
pub(crate) use builds::{BuildRecord, LayerRecord, Setup};
pub(crate) use in_use::{InUse, Named};
pub(crate) use shelf::WholeTemplate;
pub use teams::KeyScope;
pub(crate) use teams::{Added, KeyRecord, TeamRecord};
pub(crate) use templates::{Assignment, FamilyRecord};

/// Version of the schema, in SQLite's `user_version`.
const SCHEMA: i64 = 3;

/// What is answered as paused must survive a power failure. The log is small, its sync about a millisecond.
const SYNCED: &str = "PRAGMA synchronous = FULL";

/// What nobody waits for need not.
const UNSYNCED: &str = "PRAGMA synchronous = NORMAL";

/// Requests waiting for the database; each is a few microseconds to a few milliseconds.
const QUEUE: usize = 256;

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// What the database's thread is asked for.
enum Request {
    Work(Job),
    Close(oneshot::Sender<Result<(), StoreError>>),
}

/// A sandbox as it is remembered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SandboxRecord {
    pub(crate) id: SandboxId,
    /// Whose it is. Absent in records of earlier servers.
    #[serde(default, skip_serializing_if = "TeamId::is_first")]
    pub(crate) owner: TeamId,
    pub(crate) spec: CreateSandbox,
    pub(crate) template_id: TemplateId,
    pub(crate) alias: Option<String>,
    pub(crate) budget: ResourceBudget,
    pub(crate) started_at: Timestamp,
    pub(crate) end_at: Timestamp,
    pub(crate) access_token: Option<String>,
    /// For the other ports, when they are private. Absent in records of earlier servers.
    #[serde(default)]
    pub(crate) traffic_token: Option<String>,
    /// Counts the restores. A resume with a lower number than the last durable one is impossible.
    pub(crate) epoch: u64,
    /// The sandbox that it is a fork of. Absent in records of earlier servers.
    #[serde(default)]
    pub(crate) forked_from: Option<SandboxId>,
    /// What its template's build left as defaults for commands. Absent in records of earlier servers.
    #[serde(default)]
    pub(crate) defaults: Defaults,
    /// Layers of what it was created on: they are not there for it. Absent in records of earlier servers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) inherited: Option<Vec<LayerId>>,
    pub(crate) phase: RecordedPhase,
}

/// Where a sandbox is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub(crate) enum RecordedPhase {
    /// A machine runs it.
    Running {
        /// Artifact whose memory it maps.
        memory_base: ArtifactId,
        /// Sealed layers under its overlay, lowest first.
        layers: Vec<LayerId>,
        /// Its current overlay, a layer to be.
        overlay: LayerId,
        /// Network slot.
        slot: u16,
        /// Name of the machine's directory. Absent in records of earlier servers: the sandbox's id.
        #[serde(default)]
        instance: Option<String>,
        /// What its guest proves itself by. Absent in records of earlier servers, and where its agent knows of no nonces.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        nonce: Option<Nonce>,
    },
    /// An artifact holds it.
    Paused(Held),
}

/// Where the state of a paused sandbox is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Held {
    /// The artifact.
    pub(crate) artifact: ArtifactId,
    /// The epoch that its guest must be in. Absent in records of earlier servers: the sandbox's own.
    #[serde(default)]
    pub(crate) epoch: Option<u64>,
    /// Whether it holds memory. Absent in records of earlier servers, whose artifacts all do.
    #[serde(default = "kept")]
    pub(crate) memory: Memory,
}

fn kept() -> Memory {
    Memory::Kept
}

impl SandboxRecord {
    /// What a snapshot of it passes on.
    pub(crate) fn setup(&self) -> Setup {
        Setup { defaults: self.defaults.clone(), ..Setup::default() }
    }

    /// The name of its machine's directory, if it has one.
    pub(crate) fn instance(&self) -> &str {
        match &self.phase {
            RecordedPhase::Running { instance: Some(instance), .. } => instance,
            RecordedPhase::Running { instance: None, .. } | RecordedPhase::Paused { .. } => self.id.as_str(),
        }
    }
}

/// What a build of a template made, or a snapshot, as it is remembered. What all builds of a template share is in [`FamilyRecord`],
/// and stands in the record as it is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TemplateRecord {
    /// Of the template.
    pub(crate) id: TemplateId,
    /// The template's. Absent in records of earlier servers.
    #[serde(default, skip_serializing_if = "TeamId::is_first")]
    pub(crate) owner: TeamId,
    /// Its own.
    pub(crate) build_id: BuildId,
    pub(crate) artifact: ArtifactId,
    pub(crate) budget: ResourceBudget,
    /// When the template was.
    pub(crate) created_at: Timestamp,
    /// When this was built.
    pub(crate) updated_at: Timestamp,
    /// Of all of the template's builds.
    pub(crate) spawn_count: u64,
    pub(crate) last_spawned_at: Option<Timestamp>,
    /// What the template is for. Absent in records of earlier servers.
    #[serde(default)]
    pub(crate) description: Option<String>,
    /// The sandbox that a snapshot was taken of; absent for a template.
    pub(crate) snapshot_of: Option<SandboxId>,
    /// The template or snapshot that this sandbox had been created from. Absent for a template, and in records of earlier servers.
    #[serde(default)]
    pub(crate) made_from: Option<TemplateId>,
    /// Digest of everything that the build was made from: an equal one need not be built again.
    pub(crate) recipe: Option<String>,
    /// What runs once in every warm session: the template's ready command. Absent for snapshots and in older records.
    #[serde(default)]
    pub(crate) warm_up: Option<String>,
    /// What its build left. Absent in records of earlier servers.
    #[serde(default)]
    pub(crate) setup: Setup,
    /// `name:tag`, each unique in its team.
    pub(crate) names: Vec<Reference>,
}

/// Names with the team.
pub(crate) fn full_names(record: &TemplateRecord) -> Vec<String> {
    let named = record.names.iter().filter(|_| record.base_name().is_some());
    named.map(|name| with_team(&record.owner, name)).collect()
}

/// What went wrong in the database.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Its file cannot be made, or not be made private.
    #[error("cannot keep `{}` private", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The database says no.
    #[error("the database refused {operation}")]
    Refused {
        /// What was tried.
        operation: &'static str,
        /// Why, in the database's words.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A row cannot be read by this version.
    #[error("a row of `{table}` cannot be read")]
    Row {
        /// The table.
        table: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The database was written by a newer version.
    #[error("the database has schema version {found}, this version reads up to {known}")]
    Schema {
        /// Found.
        found: i64,
        /// Known.
        known: i64,
    },
    /// The database of an earlier version has rows that refer to nothing. It is left as it was.
    #[error("the database cannot be brought to schema version {SCHEMA}: some of its rows refer to nothing")]
    Migration,
    /// The database's thread is gone.
    #[error("the database is closed")]
    Closed,
}

/// The database. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    requests: mpsc::Sender<Request>,
}

impl Store {
    pub(crate) async fn open(path: &Path) -> Result<Self, StoreError> {
        let (requests, mut queue) = mpsc::channel(QUEUE);
        let (opened, result) = oneshot::channel();
        let path = path.to_owned();
        std::thread::Builder::new()
            .name("firkin-store".into())
            .spawn(move || {
                let mut connection = match connect(&path) {
                    Ok(connection) => connection,
                    Err(error) => {
                        drop(opened.send(Err(error)));
                        return;
                    }
                };
                drop(opened.send(Ok(())));
                while let Some(request) = queue.blocking_recv() {
                    match request {
                        Request::Work(job) => job(&mut connection),
                        Request::Close(closed) => {
                            let result = connection.close().map_err(|(_, error)| sqlite("close")(error));
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

    /// Closes the database after all that was asked before, so that it is one file again. What is asked later is refused.
    pub(crate) async fn close(&self) -> Result<(), StoreError> {
        let (closed, result) = oneshot::channel();
        self.requests.send(Request::Close(closed)).await.map_err(|_| StoreError::Closed)?;
        result.await.map_err(|_| StoreError::Closed)?
    }

    /// Does one operation: all of it, at one moment, or nothing when it fails.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, result) = oneshot::channel();
        let job: Job = Box::new(move |connection| drop(reply.send(whole(connection, work))));
        self.requests.send(Request::Work(job)).await.map_err(|_| StoreError::Closed)?;
        result.await.map_err(|_| StoreError::Closed)?
    }

    /// As [`Store::run`], but what it did may be lost with the host's power. It costs no sync of the disk.
    async fn run_unsynced<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, result) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            let relaxed = connection.execute_batch(UNSYNCED).map_err(sqlite("configure"));
            let done = relaxed.and_then(|()| whole(connection, work));
            // Whatever came of it: what follows is durable again.
            let synced = connection.execute_batch(SYNCED).map_err(sqlite("configure"));
            drop(reply.send(synced.and(done)));
        });
        self.requests.send(Request::Work(job)).await.map_err(|_| StoreError::Closed)?;
        result.await.map_err(|_| StoreError::Closed)?
    }

    /// Inserts or replaces a sandbox. Durable when this returns.
    pub(crate) async fn put_sandbox(&self, record: SandboxRecord) -> Result<(), StoreError> {
        self.run(move |tx| {
            let body = to_json("sandboxes", &record)?;
            tx.execute("INSERT OR REPLACE INTO sandboxes (id, body) VALUES (?1, ?2)", params![record.id.as_str(), body])
                .map_err(sqlite("put a sandbox"))?;
            Ok(())
        })
        .await
    }

    pub(crate) async fn delete_sandbox(&self, id: SandboxId) -> Result<(), StoreError> {
        self.run(move |tx| {
            tx.execute("DELETE FROM sandboxes WHERE id = ?1", params![id.as_str()]).map_err(sqlite("delete a sandbox"))?;
            Ok(())
        })
        .await
    }

    /// Those of a scope.
    pub(crate) async fn sandboxes(&self, scope: Scope) -> Result<Vec<SandboxRecord>, StoreError> {
        let mut sandboxes: Vec<SandboxRecord> =
            self.run(|tx| bodies(tx, "sandboxes", "SELECT body FROM sandboxes ORDER BY id", [])).await?;
        sandboxes.retain(|sandbox| scope.sees(&sandbox.owner));
        Ok(sandboxes)
    }
}

fn whole<T>(c: &mut Connection, work: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError>) -> Result<T, StoreError> {
    let tx = c.transaction().map_err(sqlite("begin"))?;
    let done = work(&tx)?;
    tx.commit().map_err(sqlite("commit"))?;
    Ok(done)
}

fn sqlite(operation: &'static str) -> impl FnOnce(rusqlite::Error) -> StoreError {
    move |source| StoreError::Refused { operation, source: Box::new(source) }
}

fn to_json<T: Serialize>(table: &'static str, record: &T) -> Result<String, StoreError> {
    serde_json::to_string(record).map_err(|source| StoreError::Row { table, source })
}

fn from_json<T: for<'de> Deserialize<'de>>(table: &'static str, body: &str) -> Result<T, StoreError> {
    serde_json::from_str(body).map_err(|source| StoreError::Row { table, source })
}

fn bodies<T: for<'de> Deserialize<'de>>(
    c: &Connection,
    table: &'static str,
    query: &str,
    params: impl Params,
) -> Result<Vec<T>, StoreError> {
    let mut statement = c.prepare_cached(query).map_err(sqlite("prepare a read"))?;
    let rows = statement.query_map(params, |row| row.get::<_, String>(0)).map_err(sqlite("read rows"))?;
    rows.map(|body| from_json(table, &body.map_err(sqlite("read a row"))?)).collect()
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
    let mut connection = Connection::open(path).map_err(sqlite("open"))?;
    connection.execute_batch("PRAGMA journal_mode = WAL;").map_err(sqlite("configure"))?;
    connection.execute_batch(SYNCED).map_err(sqlite("configure"))?;
    // A migration makes tables anew that others refer to, and looks itself whether all lead somewhere then.
    connection.execute_batch("PRAGMA foreign_keys = OFF;").map_err(sqlite("configure"))?;
    let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(sqlite("read the version"))?;
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
    connection.execute_batch("PRAGMA foreign_keys = ON;").map_err(sqlite("configure"))?;
    builds::create_tables(&connection)?;
    connection.execute_batch(in_use::INDICES).map_err(sqlite("create indices"))?;
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
    c.execute_batch(&tables).map_err(sqlite("create the schema"))?;
    teams::put_first(c)
}

fn one<T: for<'de> Deserialize<'de>>(
    c: &Connection,
    table: &'static str,
    query: &str,
    id: &str,
) -> Result<Option<T>, StoreError> {
    let body: Option<String> = c.query_row(query, params![id], |row| row.get(0)).optional().map_err(sqlite("read a row"))?;
    body.map(|body| from_json(table, &body)).transpose()
}
