//! A copy of the database of this host while it is used, and what becomes of such a copy on another.

use std::{collections::HashSet, path::Path};

use rusqlite::{Connection, OpenFlags};

use super::{
    Held, RecordedPhase, SandboxRecord, Sqlite, Store, StoreError, TemplateRecord, bodies, builds,
    copy::Rows,
    database::{Database as _, Tx, params, refused},
    of_sqlite,
    spec::SandboxId,
    state_dir::DATABASE,
    templates, to_json,
};
use crate::ground::{blocking::blocking, ids::ArtifactId, reference::Reference};

/// Writes all that is in the database `from` at one moment to the new file `to`. Nobody who writes waits for it; this blocks.
fn vacuum(from: &Path, to: &Path) -> Result<(), StoreError> {
    let connection = Connection::open_with_flags(from, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(of_sqlite("open"))?;
    let to = to.to_str().ok_or(StoreError::Closed)?;
    connection.execute("VACUUM INTO ?1", [to]).map(drop).map_err(of_sqlite("back up"))
}

/// What a record lost whose artifact did not come back.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct LostRecord {
    /// `sandbox`, `template` or `snapshot`.
    pub kind: &'static str,
    /// Its id, or its name with the tag.
    pub name: String,
    /// Why it is lost.
    pub why: String,
}

/// What came back.
#[derive(Debug, Default)]
pub(crate) struct CameBack {
    /// Artifacts that are here with all that they stand on.
    pub(crate) artifacts: HashSet<ArtifactId>,
    /// The state that each sandbox goes on from; one that is missing here is lost.
    pub(crate) sandboxes: Vec<(SandboxId, Held)>,
}

impl Store {
    /// Writes all that is on record at one moment to the new file `to`, which is a database of SQLite whatever this one is.
    pub(crate) async fn back_up(&self, state_dir: &Path, to: &Path) -> Result<(), StoreError> {
        if self.is_shared() {
            let copy = Sqlite::open(to).await?;
            let put = Rows::of(&*self.database).await?.put(&copy, true).await;
            copy.close().await?;
            return put.map(drop).map_err(|error| StoreError::Refused { operation: "back up", source: error.into() });
        }
        let (from, to) = (state_dir.join(DATABASE), to.to_owned());
        blocking(move || vacuum(&from, &to)).await
    }

    /// Makes of what was on record what came back: paused sandboxes, versions with their artifacts, and nothing that leads nowhere.
    pub(crate) async fn keep_what_came_back(&self, came: CameBack) -> Result<(), StoreError> {
        self.run(move |tx| {
            let sandboxes: Vec<SandboxRecord> = bodies(tx, "sandboxes", "SELECT body FROM sandboxes ORDER BY id", params![])?;
            for record in sandboxes {
                let id = record.id.clone();
                match came.sandboxes.iter().find(|(known, _)| *known == id) {
                    Some((_, held)) => {
                        // Its pause may be of a later life than this backup knows of; the next is later still.
                        let epoch = record.epoch.max(held.epoch.unwrap_or_default());
                        let phase = RecordedPhase::Paused(held.clone());
                        let body = to_json("sandboxes", &SandboxRecord { epoch, phase, ..record })?;
                        tx.execute("UPDATE sandboxes SET body = ?2 WHERE id = ?1", params![id.as_str(), body])
                    }
                    None => tx.execute("DELETE FROM sandboxes WHERE id = ?1", params![id.as_str()]),
                }
                .map_err(refused("put a sandbox"))?;
            }
            let versions = templates::versions(tx, "ORDER BY v.build_id", params![])?;
            for version in versions.iter().filter(|version| !came.artifacts.contains(&version.artifact)) {
                remove_version(tx, version)?;
            }
            for state in builds::layers(tx)?.iter().filter(|state| !came.artifacts.contains(&state.artifact)) {
                tx.execute("DELETE FROM build_layers WHERE key = ?1", params![state.key]).map_err(refused("delete a layer"))?;
            }
            Ok(())
        })
        .await
    }
}

/// A template stays without that version, as one that was never built; a snapshot is its only version.
fn remove_version(tx: Tx<'_>, version: &TemplateRecord) -> Result<(), StoreError> {
    tx.execute("DELETE FROM names WHERE build_id = ?1", params![version.build_id]).map_err(refused("remove a name"))?;
    tx.execute("DELETE FROM versions WHERE build_id = ?1", params![version.build_id]).map_err(refused("delete a version"))?;
    if version.snapshot_of.is_some() {
        tx.execute("DELETE FROM former_ids WHERE template_id = ?1", params![version.id]).map_err(refused("delete ids"))?;
        tx.execute("DELETE FROM templates WHERE id = ?1", params![version.id]).map_err(refused("delete a snapshot"))?;
    }
    Ok(())
}

impl LostRecord {
    /// A version of a template, or a snapshot.
    pub(crate) fn version(version: &TemplateRecord, why: String) -> Self {
        let kind = if version.snapshot_of.is_some() { "snapshot" } else { "template" };
        Self { kind, name: version.names.first().map_or_else(|| version.id.to_string(), Reference::to_string), why }
    }

    pub(crate) fn sandbox(id: &SandboxId, why: String) -> Self {
        Self { kind: "sandbox", name: id.to_string(), why }
    }
}
