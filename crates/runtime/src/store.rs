//! What outlives the process: sandboxes, templates, snapshots and API keys, in one database.
//!
//! Others see operations, one for each decision: what is decided by what is on record is decided in here, in the transaction that
//! writes it, so that nobody writes what another has changed since it was read. No query and no connection gets out.
//!
//! Which database that is, is below [`database`]. Records of sandboxes are JSON with a column for their id: they are always read whole,
//! and their shape grows with the product.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use firkin_wire::nonce::Nonce;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::{sync::oneshot, time::Instant};

use crate::{
    capacity::ResourceBudget,
    ground::{
        ids::{ArtifactId, BuildId, LayerId, TemplateId},
        reference::{Reference, with_team},
        team::TeamId,
    },
    store::spec::{CreateSandbox, Memory, SandboxId},
};

mod backup;
mod builds;
pub mod catalog;
pub mod claims;
mod columns;
pub mod contract;
pub(crate) mod copy;
pub mod database;
mod imports;
mod in_use;
pub(crate) mod look;
mod migrate;
mod next_life;
mod sandboxes;
mod seconds;
mod shelf;
pub(crate) mod spec;
pub(crate) mod sqlite;
pub mod state_dir;
mod teams;
mod teams_came;
mod templates;
#[cfg(test)]
mod tests;
mod webhooks;

use database::{Database, Mode, Parts, Tx, Value, Work, params, refused};
use sqlite::Sqlite;

pub(crate) use backup::CameBack;
pub use backup::LostRecord;
pub use builds::{BuildLogEntry, BuildReason, BuildState, Defaults};
pub(crate) use builds::{BuildRecord, LayerRecord, Setup};
pub(crate) use imports::Place;
pub(crate) use in_use::{InUse, Named};
pub use next_life::{NextLife, next_life};
pub(crate) use sandboxes::Guard;
use sandboxes::InDoubt;
pub(crate) use seconds::CatalogSeconds;
pub(crate) use shelf::WholeTemplate;
pub use teams::KeyScope;
pub(crate) use teams::{Added, KeyBounds, KeyRecord, TeamRecord};
pub(crate) use templates::{Assignment, FamilyRecord, Spawns};
pub use webhooks::{Delivery, LifecycleKind, ShownDelivery, Webhook};
pub(crate) use webhooks::{Head, MAX_WEBHOOKS, WebhookChange};

/// Version of the schema, in SQLite's `user_version`.
const SCHEMA: i64 = 3;

/// A sandbox as it is remembered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SandboxRecord {
    pub(crate) id: SandboxId,
    /// Whose it is. Absent in records of earlier servers.
    #[serde(default, skip_serializing_if = "TeamId::is_first")]
    pub(crate) owner: TeamId,
    pub(crate) spec: CreateSandbox,
    pub(crate) template_id: TemplateId,
    /// The build of that. Absent in records of earlier servers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) build_id: Option<BuildId>,
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
    /// What it has to be run by, by the word for which that is asked. Absent in records of earlier servers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) runs_on: Option<String>,
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
    /// The database is not there. Nothing was done; what runs goes on.
    #[error("the database is away, and cannot {operation}")]
    Away {
        /// What was tried.
        operation: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The database went away in the middle of it, and has not said since whether it was done.
    #[error("the database went away in {operation}, and whether it was done is not known")]
    Unknown {
        /// What was tried.
        operation: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// What was to be changed has been changed by another since it was read. Nothing was done.
    #[error("{what} has been changed by another since, or is its own now")]
    Fenced {
        /// What.
        what: String,
    },
    /// A catalogue that several could use was not opened.
    #[error("cannot open the catalogue")]
    Catalog(#[source] Box<dyn std::error::Error + Send + Sync>),
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

/// What is on record, in whichever database it is. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    database: Arc<dyn Database>,
    seconds: CatalogSeconds,
    in_doubt: InDoubt,
}

impl Store {
    /// The one of this host alone: a file of SQLite.
    pub(crate) async fn open(path: &Path) -> Result<Self, StoreError> {
        Ok(Self::of(Arc::new(Sqlite::open(path).await?)))
    }

    pub(crate) fn of(database: Arc<dyn Database>) -> Self {
        Self { seconds: CatalogSeconds::of(database.name()), in_doubt: InDoubt::default(), database }
    }

    /// How long its operations took.
    pub(crate) fn seconds(&self) -> CatalogSeconds {
        self.seconds.clone()
    }

    /// What kind of database it is in.
    pub(crate) fn kind(&self) -> &'static str {
        self.database.name()
    }

    /// Whether others can have it after this server.
    pub(crate) fn is_shared(&self) -> bool {
        self.database.is_shared()
    }

    /// The number that a life which begins now has at least.
    pub(crate) fn first_life(&self) -> u64 {
        self.database.first_life()
    }

    /// What of its tables is whose.
    fn parts(&self) -> Parts {
        self.database.parts()
    }

    /// Fails if the database does not answer.
    pub(crate) async fn greet(&self) -> Result<(), StoreError> {
        self.read(|tx| tx.first("SELECT 1", params![], |_| Ok(())).map(drop).map_err(refused("answer"))).await
    }

    /// Closes the database after all that was asked before. What is asked later is refused.
    pub(crate) async fn close(&self) -> Result<(), StoreError> {
        self.database.close().await
    }

    /// Does one operation: all of it, at one moment, or nothing when it fails.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.run_as(Mode::Write, work).await
    }

    /// As [`Store::run`], for what only reads.
    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.run_as(Mode::Read, work).await
    }

    /// As [`Store::run`], but what it did may be lost with the host's power. It costs no sync of the disk.
    async fn run_unsynced<T: Send + 'static>(
        &self,
        work: impl FnOnce(Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.run_as(Mode::Unsynced, work).await
    }

    async fn run_as<T: Send + 'static>(
        &self,
        mode: Mode,
        work: impl FnOnce(Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, result) = oneshot::channel();
        let work: Work = Box::new(move |statements| {
            // Nobody waits for it any more if this fails; it is kept all the same.
            drop(reply.send(work(Tx::of(statements))?));
            Ok(())
        });
        let begun = Instant::now();
        let done = self.database.run(mode, work).await;
        self.seconds.observe(self.database.name(), mode, begun.elapsed(), &done);
        done?;
        result.await.map_err(|_| StoreError::Closed)
    }
}

fn of_sqlite(operation: &'static str) -> impl FnOnce(rusqlite::Error) -> StoreError {
    move |source| StoreError::Refused { operation, source: Box::new(source) }
}

fn to_json<T: Serialize>(table: &'static str, record: &T) -> Result<String, StoreError> {
    serde_json::to_string(record).map_err(|source| StoreError::Row { table, source })
}

fn from_json<T: for<'de> Deserialize<'de>>(table: &'static str, body: &str) -> Result<T, StoreError> {
    serde_json::from_str(body).map_err(|source| StoreError::Row { table, source })
}

fn bodies<T: for<'de> Deserialize<'de>>(
    c: Tx<'_>,
    table: &'static str,
    query: &str,
    params: &[Value],
) -> Result<Vec<T>, StoreError> {
    let rows = c.query(query, params, |row| row.get::<String>(0)).map_err(refused("read rows"))?;
    rows.iter().map(|body| from_json(table, body)).collect()
}

fn one<T: for<'de> Deserialize<'de>>(c: Tx<'_>, table: &'static str, query: &str, id: &str) -> Result<Option<T>, StoreError> {
    let body: Option<String> = c.first(query, params![id], |row| row.get(0)).map_err(refused("read a row"))?;
    body.map(|body| from_json(table, &body)).transpose()
}
