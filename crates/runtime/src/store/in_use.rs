//! What is used, as collection and the disk budget see it: all of it at one moment, so that nothing slips by on its way from one
//! table to another.

use super::{
    LayerRecord, RecordedPhase, SandboxRecord, Store, StoreError, TemplateRecord, bodies, builds, spec::SandboxId, sqlite,
};
use crate::ground::ids::{ArtifactId, LayerId};

/// What is on record of the files below the state directory.
#[derive(Debug)]
pub(crate) struct InUse {
    /// Artifacts that somebody needs: versions, snapshots, paused sandboxes, and what machines map their memory from.
    pub(crate) artifacts: Vec<ArtifactId>,
    /// Sealed layers under the disks of machines.
    pub(crate) layers: Vec<LayerId>,
    /// States of builds, which can be made again.
    pub(crate) states: Vec<LayerRecord>,
}

/// An artifact that a template or snapshot names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) artifact: ArtifactId,
    /// The sandbox that it is a snapshot of; absent for a template.
    pub(crate) snapshot_of: Option<SandboxId>,
}

impl Store {
    /// Artifacts of all templates and snapshots, without all else that is on record of them.
    pub(crate) async fn named_artifacts(&self) -> Result<Vec<Named>, StoreError> {
        self.run(|tx| {
            let query = "SELECT json_extract(body, '$.artifact'), json_extract(body, '$.snapshot_of') FROM versions";
            let mut statement = tx.prepare_cached(query).map_err(sqlite("prepare a read"))?;
            let columns = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get::<_, Option<String>>(1)?));
            let rows = statement.query_map([], columns).map_err(sqlite("read versions"))?;
            let named =
                |(artifact, of): (String, Option<String>)| Named { artifact, snapshot_of: of.and_then(|id| id.parse().ok()) };
            rows.map(|row| row.map(named).map_err(sqlite("read a version"))).collect()
        })
        .await
    }

    /// Everything that is used now.
    pub(crate) async fn in_use(&self) -> Result<InUse, StoreError> {
        self.run(|tx| {
            let versions: Vec<TemplateRecord> = bodies(tx, "versions", "SELECT body FROM versions", [])?;
            let sandboxes: Vec<SandboxRecord> = bodies(tx, "sandboxes", "SELECT body FROM sandboxes", [])?;
            let states = builds::layers(tx)?;
            let mut used = InUse { artifacts: versions.into_iter().map(|v| v.artifact).collect(), layers: Vec::new(), states };
            for sandbox in sandboxes {
                match sandbox.phase {
                    RecordedPhase::Paused(held) => used.artifacts.push(held.artifact),
                    RecordedPhase::Running { memory_base, layers, .. } => {
                        used.artifacts.push(memory_base);
                        used.layers.extend(layers);
                    }
                }
            }
            Ok(used)
        })
        .await
    }
}
