//! Builds, their logs, and the states between their steps. The tables came after the first release of the schema and change
//! nothing in it, so they are made where they are missing.

use std::collections::BTreeMap;

use firkin_wire::rest::LogLevel;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    Store, TemplateRecord, bodies,
    database::{Tx, params, refused},
    one,
    templates::{FamilyRecord, drop_bare, family, id_of_name, is_version, put_family, put_template},
    to_json,
};
use crate::{
    ground::{
        ids::{ArtifactId, BuildId, TemplateId},
        reference::{Reference, Tag, TemplateName},
        team::{Scope, TeamId},
    },
    store::StoreError,
};

/// What commands of a sandbox get that ask for nothing else. Absent: as envd has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Defaults {
    /// User.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Working directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// Environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
}

/// What a template has besides its artifact.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Setup {
    /// Whether it is marked as public.
    #[serde(default)]
    pub(crate) public: bool,
    /// What commands of its sandboxes get that ask for nothing else.
    #[serde(default)]
    pub(crate) defaults: Defaults,
    /// The command that runs in it since its build.
    #[serde(default)]
    pub(crate) start: Option<String>,
    /// What said that it was ready.
    #[serde(default)]
    pub(crate) ready: Option<String>,
}

/// A build as it is remembered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BuildRecord {
    pub(crate) id: BuildId,
    /// Whose it is. Absent in records of earlier servers.
    #[serde(default, skip_serializing_if = "TeamId::is_first")]
    pub(crate) owner: TeamId,
    pub(crate) template_id: TemplateId,
    /// Absent for a template without a name, and empty on disk.
    #[serde(with = "maybe_empty")]
    pub(crate) name: Option<TemplateName>,
    pub(crate) tags: Vec<Tag>,
    pub(crate) cpus: u32,
    pub(crate) memory_mib: u32,
    /// What its root file system must have free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) min_free_disk_mib: Option<u64>,
    pub(crate) disk_mib: Option<u64>,
    pub(crate) state: BuildState,
    pub(crate) reason: Option<BuildReason>,
    pub(crate) created_at: Timestamp,
    pub(crate) updated_at: Timestamp,
    pub(crate) finished_at: Option<Timestamp>,
}

impl BuildRecord {
    pub(crate) fn ended(&self) -> bool {
        matches!(self.state, BuildState::Ready | BuildState::Error)
    }

    /// `name:tag` of each tag, with the id where there is no name.
    pub(crate) fn names(&self) -> Vec<Reference> {
        let name = self.name.clone().unwrap_or_else(|| TemplateName::from(&self.template_id));
        self.tags.iter().map(|tag| Reference { name: name.clone(), tag: Some(tag.clone()) }).collect()
    }
}

/// A name that is an empty text where there is none.
mod maybe_empty {
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer, de::Error as _};

    use super::TemplateName;

    pub(super) fn serialize<S: Serializer>(name: &Option<TemplateName>, serializer: S) -> Result<S::Ok, S::Error> {
        name.as_ref().map_or("", TemplateName::as_str).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<TemplateName>, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(D::Error::custom) }
    }
}

/// How far a build has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BuildState {
    /// Not started.
    Waiting,
    /// Under way.
    Building,
    /// Its template can be used.
    Ready,
    /// It failed, or the server that ran it is gone.
    Error,
}

/// Why a build failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildReason {
    /// In words.
    pub message: String,
    /// `base`, the number of a step from 1, or `finalize`.
    pub step: String,
}

/// One entry of a build's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildLogEntry {
    /// When.
    pub at: Timestamp,
    /// How grave.
    pub level: LogLevel,
    /// `base`, the number of a step, or `finalize`.
    pub step: String,
    /// What.
    pub message: String,
}

pub(super) fn create_tables(c: &rusqlite::Connection) -> Result<(), StoreError> {
    c.execute_batch(
        "CREATE TABLE IF NOT EXISTS builds (id TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;
         CREATE TABLE IF NOT EXISTS build_logs (id TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;
         CREATE TABLE IF NOT EXISTS build_layers (key TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;
         CREATE INDEX IF NOT EXISTS builds_of_template ON builds (json_extract(body, '$.template_id'));",
    )
    .map_err(super::of_sqlite("create the tables of builds"))
}

impl Store {
    /// Makes a place for a build: in the template of its name, else in a new one. Gives the build with its template's id, and
    /// that template.
    pub(crate) async fn request_build(&self, record: BuildRecord) -> Result<(BuildRecord, FamilyRecord), StoreError> {
        self.run(move |tx| {
            let name = record.name.clone();
            let known = name.as_ref().map(|name| id_of_name(tx, &record.owner, name)).transpose()?.flatten();
            let template_id = known.unwrap_or_else(|| record.template_id.clone());
            let template = match family(tx, &template_id)? {
                Some(template) => template,
                None => FamilyRecord::unbuilt((template_id.clone(), record.owner.clone()), name, record.created_at),
            };
            put_family(tx, &template)?;
            let record = BuildRecord { template_id, ..record };
            let body = to_json("builds", &record)?;
            tx.execute("INSERT INTO builds (id, body) VALUES (?1, ?2)", params![record.id, body])
                .map_err(refused("put a build"))?;
            Ok((record, template))
        })
        .await
    }

    /// Takes a build that waits for one that has begun. Gives it as it is then, unless it is gone or has begun before.
    pub(crate) async fn begin_build(&self, id: BuildId, at: Timestamp) -> Result<Option<BuildRecord>, StoreError> {
        self.run(move |tx| {
            let record: Option<BuildRecord> = one(tx, "builds", "SELECT body FROM builds WHERE id = ?1", id.as_str())?;
            let Some(record) = record.filter(|record| record.state == BuildState::Waiting) else { return Ok(None) };
            let begun = BuildRecord { state: BuildState::Building, updated_at: at, ..record };
            put_build(tx, &begun)?;
            Ok(Some(begun))
        })
        .await
    }

    /// Has every build of this server that has begun end as failed.
    pub(crate) async fn fail_builds_under_way(&self, reason: BuildReason, at: Timestamp) -> Result<(), StoreError> {
        let own = format!("SELECT body FROM {} ORDER BY id", self.parts().own_builds);
        self.run(move |tx| {
            let builds: Vec<BuildRecord> = bodies(tx, "builds", &own, params![])?;
            for record in builds.into_iter().filter(|record| record.state == BuildState::Building) {
                let reason = Some(reason.clone());
                let failed = BuildRecord { state: BuildState::Error, reason, updated_at: at, finished_at: Some(at), ..record };
                put_build(tx, &failed)?;
            }
            Ok(())
        })
        .await
    }

    /// Those of a scope.
    pub(crate) async fn builds(&self, scope: Scope) -> Result<Vec<BuildRecord>, StoreError> {
        let mut builds: Vec<BuildRecord> =
            self.read(|tx| bodies(tx, "builds", "SELECT body FROM builds ORDER BY id", params![])).await?;
        builds.retain(|build| scope.sees(&build.owner));
        Ok(builds)
    }

    /// One, if it is a scope's.
    pub(crate) async fn build(&self, scope: &Scope, id: BuildId) -> Result<Option<BuildRecord>, StoreError> {
        let found: Option<BuildRecord> =
            self.read(move |tx| one(tx, "builds", "SELECT body FROM builds WHERE id = ?1", id.as_str())).await?;
        Ok(found.filter(|build| scope.sees(&build.owner)))
    }

    /// Removes those builds that ended, but for the last `keep` and those that became a version which is there.
    pub(crate) async fn forget_ended_builds(&self, keep: usize) -> Result<(), StoreError> {
        self.run(move |tx| {
            let mut ended: Vec<BuildRecord> = bodies(tx, "builds", "SELECT body FROM builds ORDER BY id", params![])?;
            ended.retain(BuildRecord::ended);
            ended.sort_by_key(|record| record.updated_at);
            let mut old = Vec::new();
            for record in ended.iter().rev().skip(keep) {
                if !is_version(tx, &record.id)? {
                    old.push(record.id.clone());
                }
            }
            if old.is_empty() { Ok(()) } else { delete_builds(tx, &old) }
        })
        .await
    }

    /// Records how a build ended, with its log and with what became of it: all of that or nothing. Nothing if the build has been
    /// deleted meanwhile; its template would come back. Whether it did.
    pub(crate) async fn end_build(
        &self,
        record: BuildRecord,
        log: Vec<BuildLogEntry>,
        became: Option<TemplateRecord>,
    ) -> Result<bool, StoreError> {
        self.run(move |tx| {
            let known: Option<BuildRecord> = one(tx, "builds", "SELECT body FROM builds WHERE id = ?1", record.id.as_str())?;
            if known.is_none() {
                return Ok(false);
            }
            if let Some(template) = &became {
                put_template(tx, template)?;
            }
            put_build(tx, &record)?;
            let log = to_json("build_logs", &log)?;
            tx.execute(
                "INSERT INTO build_logs (id, body) VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE SET body = excluded.body",
                params![record.id, log],
            )
            .map_err(refused("put a build's log"))?;
            Ok(true)
        })
        .await
    }

    pub(crate) async fn build_log(&self, id: BuildId) -> Result<Vec<BuildLogEntry>, StoreError> {
        let found = self.read(move |tx| one(tx, "build_logs", "SELECT body FROM build_logs WHERE id = ?1", id.as_str())).await?;
        Ok(found.unwrap_or_default())
    }

    /// Inserts or replaces a state between two steps.
    pub(crate) async fn put_layer(&self, record: LayerRecord) -> Result<(), StoreError> {
        let key = self.parts().state_key;
        self.run(move |tx| put_layer((tx, key), &record)).await
    }

    pub(crate) async fn layer(&self, key: String) -> Result<Option<LayerRecord>, StoreError> {
        self.read(move |tx| one(tx, "build_layers", "SELECT body FROM build_layers WHERE key = ?1", &key)).await
    }

    /// Whether this artifact is a state.
    pub(crate) async fn has_layer_of(&self, artifact: ArtifactId) -> Result<bool, StoreError> {
        self.read(move |tx| Ok(layers(tx)?.iter().any(|layer| layer.artifact == artifact))).await
    }

    /// Notes that a state is gone on from, if it is there and has not become another one.
    pub(crate) async fn use_layer(&self, record: LayerRecord, at: Timestamp) -> Result<(), StoreError> {
        let key = self.parts().state_key;
        self.run(move |tx| {
            let found: Option<LayerRecord> =
                one(tx, "build_layers", "SELECT body FROM build_layers WHERE key = ?1", &record.key)?;
            match found.filter(|found| found.artifact == record.artifact) {
                Some(found) => put_layer((tx, key), &LayerRecord { used_at: at, ..found }),
                None => Ok(()),
            }
        })
        .await
    }

    /// Removes a state if it is on record as `record`, which a use since would have changed. Whether it was.
    pub(crate) async fn delete_layer_as(&self, record: LayerRecord) -> Result<bool, StoreError> {
        self.run(move |tx| {
            let found: Option<LayerRecord> =
                one(tx, "build_layers", "SELECT body FROM build_layers WHERE key = ?1", &record.key)?;
            if found.as_ref() != Some(&record) {
                return Ok(false);
            }
            delete_layers(tx, &[record])?;
            Ok(true)
        })
        .await
    }

    /// Removes all states but the `keep` that were used last. Whether there were any.
    pub(crate) async fn trim_layers(&self, keep: usize) -> Result<bool, StoreError> {
        self.run(move |tx| {
            let mut layers = layers(tx)?;
            layers.sort_by_key(|layer| layer.used_at);
            layers.truncate(layers.len().saturating_sub(keep));
            delete_layers(tx, &layers)?;
            Ok(!layers.is_empty())
        })
        .await
    }

    /// Removes the states that are this artifact.
    pub(crate) async fn delete_layers_of(&self, artifact: ArtifactId) -> Result<(), StoreError> {
        self.run(move |tx| {
            let mut layers = layers(tx)?;
            layers.retain(|layer| layer.artifact == artifact);
            delete_layers(tx, &layers)
        })
        .await
    }
}

/// Removes builds with their logs, and templates of which then nothing is left.
fn delete_builds(tx: Tx<'_>, ids: &[BuildId]) -> Result<(), StoreError> {
    for id in ids {
        tx.execute("DELETE FROM builds WHERE id = ?1", params![id]).map_err(refused("delete a build"))?;
        tx.execute("DELETE FROM build_logs WHERE id = ?1", params![id]).map_err(refused("delete a build's log"))?;
    }
    drop_bare(tx)
}

fn put_build(c: Tx<'_>, record: &BuildRecord) -> Result<(), StoreError> {
    let body = to_json("builds", record)?;
    c.execute(
        "INSERT INTO builds (id, body) VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE SET body = excluded.body",
        params![record.id, body],
    )
    .map_err(refused("put a build"))?;
    Ok(())
}

pub(super) fn layers(c: Tx<'_>) -> Result<Vec<LayerRecord>, StoreError> {
    bodies(c, "build_layers", "SELECT body FROM build_layers ORDER BY key", params![])
}

fn delete_layers(c: Tx<'_>, layers: &[LayerRecord]) -> Result<(), StoreError> {
    for layer in layers {
        c.execute("DELETE FROM build_layers WHERE key = ?1", params![layer.key]).map_err(refused("delete a layer"))?;
    }
    Ok(())
}

fn put_layer((c, key): (Tx<'_>, &str), record: &LayerRecord) -> Result<(), StoreError> {
    let body = to_json("build_layers", record)?;
    let put =
        format!("INSERT INTO build_layers (key, body) VALUES (?1, ?2) ON CONFLICT ({key}) DO UPDATE SET body = excluded.body");
    c.execute(&put, params![record.key, body]).map_err(refused("put a layer"))?;
    Ok(())
}

/// A state of a build's machine that others may go on from.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct LayerRecord {
    /// Digest of all that it was made of.
    pub(crate) key: String,
    /// Where it is.
    pub(crate) artifact: ArtifactId,
    /// What the next step finds.
    pub(crate) context: crate::store::Defaults,
    /// When it was made or last gone on from.
    pub(crate) used_at: jiff::Timestamp,
}
