//! What outlives the process: sandboxes, templates, snapshots and API keys, in one SQLite database.
//!
//! The connection lives on a thread of its own, so that no asynchronous thread waits for the disk. Records of sandboxes are
//! JSON with a column for their id: they are always read whole, and their shape grows with the product.

use std::{collections::BTreeMap, path::Path};

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Transaction, params};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use crate::{
    build::{Defaults, Setup},
    capacity::ResourceBudget,
    error::StoreError,
    runtime::TEAM,
    sandbox::{CreateSandbox, Memory, SandboxId},
};

mod builds;

pub(crate) use builds::{Became, LayerRecord};

/// Version of the schema, in SQLite's `user_version`.
const SCHEMA: i64 = 1;

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
    pub(crate) spec: CreateSandbox,
    pub(crate) template_id: String,
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
    pub(crate) phase: RecordedPhase,
}

/// Where a sandbox is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub(crate) enum RecordedPhase {
    /// A machine runs it.
    Running {
        /// Artifact whose memory it maps.
        memory_base: String,
        /// Sealed layers under its overlay, lowest first.
        layers: Vec<String>,
        /// Its current overlay, a layer to be.
        overlay: String,
        /// Network slot.
        slot: u16,
        /// Name of the machine's directory. Absent in records of earlier servers: the sandbox's id.
        #[serde(default)]
        instance: Option<String>,
    },
    /// An artifact holds it.
    Paused(Held),
}

/// Where the state of a paused sandbox is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Held {
    /// The artifact.
    pub(crate) artifact: String,
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

/// A template or a snapshot as it is remembered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TemplateRecord {
    pub(crate) id: String,
    pub(crate) build_id: String,
    pub(crate) artifact: String,
    pub(crate) budget: ResourceBudget,
    pub(crate) created_at: Timestamp,
    pub(crate) updated_at: Timestamp,
    pub(crate) spawn_count: u64,
    pub(crate) last_spawned_at: Option<Timestamp>,
    /// The sandbox that a snapshot was taken of; absent for a template.
    pub(crate) snapshot_of: Option<SandboxId>,
    /// The template or snapshot that this sandbox had been created from. Absent for a template, and in records of earlier servers.
    #[serde(default)]
    pub(crate) made_from: Option<String>,
    /// Digest of everything that the build was made from: an equal one need not be built again.
    pub(crate) recipe: Option<String>,
    /// What runs once in every warm session: the template's ready command. Absent for snapshots and in older records.
    #[serde(default)]
    pub(crate) warm_up: Option<String>,
    /// What its build left. Absent in records of earlier servers.
    #[serde(default)]
    pub(crate) setup: Setup,
    /// `name:tag`, each unique in the whole database.
    pub(crate) names: Vec<String>,
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

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, result) = oneshot::channel();
        let job: Job = Box::new(move |connection| drop(reply.send(work(connection))));
        self.requests.send(Request::Work(job)).await.map_err(|_| StoreError::Closed)?;
        result.await.map_err(|_| StoreError::Closed)?
    }

    /// Inserts or replaces a sandbox. Durable when this returns.
    pub(crate) async fn put_sandbox(&self, record: SandboxRecord) -> Result<(), StoreError> {
        self.run(move |c| {
            let body = to_json("sandboxes", &record)?;
            c.execute("INSERT OR REPLACE INTO sandboxes (id, body) VALUES (?1, ?2)", params![record.id.as_str(), body])
                .map_err(sqlite("put a sandbox"))?;
            Ok(())
        })
        .await
    }

    pub(crate) async fn delete_sandbox(&self, id: SandboxId) -> Result<(), StoreError> {
        self.run(move |c| {
            c.execute("DELETE FROM sandboxes WHERE id = ?1", params![id.as_str()]).map_err(sqlite("delete a sandbox"))?;
            Ok(())
        })
        .await
    }

    pub(crate) async fn sandboxes(&self) -> Result<Vec<SandboxRecord>, StoreError> {
        self.run(|c| bodies(c, "sandboxes", "SELECT body FROM sandboxes ORDER BY id")).await
    }

    /// Inserts or replaces a template, taking its names from whoever had them.
    pub(crate) async fn put_template(&self, record: TemplateRecord) -> Result<(), StoreError> {
        self.run(move |c| {
            let tx = c.transaction().map_err(sqlite("begin"))?;
            put_template(&tx, &record)?;
            tx.commit().map_err(sqlite("commit a template"))
        })
        .await
    }

    /// Gives a template further names, taking them from whoever had them.
    pub(crate) async fn add_names(&self, id: String, names: Vec<String>) -> Result<(), StoreError> {
        self.run(move |c| {
            let tx = c.transaction().map_err(sqlite("begin"))?;
            for name in &names {
                tx.execute("INSERT OR REPLACE INTO names (name, template_id) VALUES (?1, ?2)", params![name, id])
                    .map_err(sqlite("add a name"))?;
            }
            tx.commit().map_err(sqlite("commit names"))
        })
        .await
    }

    /// Removes names. When one of them is not there, it is returned and all stay.
    pub(crate) async fn remove_names(&self, names: Vec<String>) -> Result<Option<String>, StoreError> {
        self.run(move |c| {
            let tx = c.transaction().map_err(sqlite("begin"))?;
            for name in names {
                if tx.execute("DELETE FROM names WHERE name = ?1", params![name]).map_err(sqlite("remove a name"))? == 0 {
                    return Ok(Some(name));
                }
            }
            tx.commit().map_err(sqlite("commit names"))?;
            Ok(None)
        })
        .await
    }

    /// Counts one more sandbox of a template.
    pub(crate) async fn count_spawn(&self, id: String, at: Timestamp) -> Result<(), StoreError> {
        self.run(move |c| {
            let body: Option<String> = c
                .query_row("SELECT body FROM templates WHERE id = ?1", params![id], |row| row.get(0))
                .optional()
                .map_err(sqlite("read a template"))?;
            let Some(body) = body else { return Ok(()) };
            let mut record: TemplateRecord = from_json("templates", &body)?;
            record.spawn_count += 1;
            record.last_spawned_at = Some(at);
            let body = to_json("templates", &record)?;
            c.execute("UPDATE templates SET body = ?2 WHERE id = ?1", params![id, body]).map_err(sqlite("count a spawn"))?;
            Ok(())
        })
        .await
    }

    pub(crate) async fn delete_template(&self, id: String) -> Result<(), StoreError> {
        self.run(move |c| {
            let tx = c.transaction().map_err(sqlite("begin"))?;
            delete_template(&tx, &id)?;
            tx.commit().map_err(sqlite("commit a deletion"))
        })
        .await
    }

    /// Every template and snapshot with the names it holds now.
    pub(crate) async fn templates(&self) -> Result<Vec<TemplateRecord>, StoreError> {
        self.run(|c| {
            let mut records: Vec<TemplateRecord> = bodies(c, "templates", "SELECT body FROM templates ORDER BY id")?;
            let mut names: BTreeMap<String, Vec<String>> = BTreeMap::new();
            let mut statement =
                c.prepare_cached("SELECT template_id, name FROM names ORDER BY name").map_err(sqlite("read names"))?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).map_err(sqlite("read names"))?;
            for row in rows {
                let (id, name): (String, String) = row.map_err(sqlite("read names"))?;
                names.entry(id).or_default().push(name);
            }
            for record in &mut records {
                record.names = names.remove(&record.id).unwrap_or_default();
            }
            Ok(records)
        })
        .await
    }

    /// A template or snapshot by id, or by name (`name` means `name:default`).
    pub(crate) async fn template(&self, reference: String) -> Result<Option<TemplateRecord>, StoreError> {
        let reference = reference.strip_prefix(TEAM).and_then(|rest| rest.strip_prefix('/')).unwrap_or(&reference).to_owned();
        let (base, tag) = reference.rsplit_once(':').unwrap_or((&reference, "default"));
        let wanted = format!("{base}:{tag}");
        // `<id>:default` is how unnamed snapshots are shown.
        let by_id = (tag == "default").then(|| base.to_owned());
        let records = self.templates().await?;
        let found =
            records.iter().find(|r| Some(&r.id) == by_id.as_ref()).or_else(|| records.iter().find(|r| r.names.contains(&wanted)));
        Ok(found.cloned())
    }

    pub(crate) async fn put_api_key(&self, digest: [u8; 32]) -> Result<(), StoreError> {
        self.run(move |c| {
            c.execute("INSERT OR IGNORE INTO api_keys (digest) VALUES (?1)", params![digest]).map_err(sqlite("put a key"))?;
            Ok(())
        })
        .await
    }

    pub(crate) async fn api_keys(&self) -> Result<Vec<[u8; 32]>, StoreError> {
        self.run(|c| {
            let mut statement = c.prepare_cached("SELECT digest FROM api_keys").map_err(sqlite("read keys"))?;
            let rows = statement.query_map([], |row| row.get(0)).map_err(sqlite("read keys"))?;
            rows.collect::<Result<_, _>>().map_err(sqlite("read keys"))
        })
        .await
    }
}

fn sqlite(operation: &'static str) -> impl FnOnce(rusqlite::Error) -> StoreError {
    move |source| StoreError::Sqlite { operation, source }
}

fn put_template(tx: &Transaction<'_>, record: &TemplateRecord) -> Result<(), StoreError> {
    let body = to_json("templates", record)?;
    tx.execute("INSERT OR REPLACE INTO templates (id, body) VALUES (?1, ?2)", params![record.id, body])
        .map_err(sqlite("put a template"))?;
    tx.execute("DELETE FROM names WHERE template_id = ?1", params![record.id]).map_err(sqlite("clear names"))?;
    for name in &record.names {
        tx.execute("INSERT OR REPLACE INTO names (name, template_id) VALUES (?1, ?2)", params![name, record.id])
            .map_err(sqlite("put a name"))?;
    }
    Ok(())
}

fn delete_template(tx: &Transaction<'_>, id: &str) -> Result<(), StoreError> {
    tx.execute("DELETE FROM names WHERE template_id = ?1", params![id]).map_err(sqlite("delete names"))?;
    tx.execute("DELETE FROM templates WHERE id = ?1", params![id]).map_err(sqlite("delete a template"))?;
    Ok(())
}

fn to_json<T: Serialize>(table: &'static str, record: &T) -> Result<String, StoreError> {
    serde_json::to_string(record).map_err(|source| StoreError::Row { table, source })
}

fn from_json<T: for<'de> Deserialize<'de>>(table: &'static str, body: &str) -> Result<T, StoreError> {
    serde_json::from_str(body).map_err(|source| StoreError::Row { table, source })
}

fn bodies<T: for<'de> Deserialize<'de>>(c: &Connection, table: &'static str, query: &str) -> Result<Vec<T>, StoreError> {
    let mut statement = c.prepare_cached(query).map_err(sqlite("prepare a read"))?;
    let rows = statement.query_map([], |row| row.get::<_, String>(0)).map_err(sqlite("read rows"))?;
    rows.map(|body| from_json(table, &body.map_err(sqlite("read a row"))?)).collect()
}

fn connect(path: &Path) -> Result<Connection, StoreError> {
    let connection = Connection::open(path).map_err(sqlite("open"))?;
    // FULL: what is answered as paused must survive a power failure. The log is small, its sync about a millisecond.
    connection
        .execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;")
        .map_err(sqlite("configure"))?;
    let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(sqlite("read the version"))?;
    match found {
        0 => connection
            .execute_batch(
                "BEGIN;
                 CREATE TABLE sandboxes (id TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;
                 CREATE TABLE templates (id TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;
                 CREATE TABLE names (name TEXT PRIMARY KEY, template_id TEXT NOT NULL REFERENCES templates (id)) WITHOUT ROWID;
                 CREATE TABLE api_keys (digest BLOB PRIMARY KEY) WITHOUT ROWID;
                 PRAGMA user_version = 1;
                 COMMIT;",
            )
            .map_err(sqlite("create the schema"))?,
        SCHEMA => {}
        found => return Err(StoreError::Schema { found, known: SCHEMA }),
    }
    builds::create_tables(&connection)?;
    Ok(connection)
}
