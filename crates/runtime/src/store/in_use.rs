//! What is used, as collection and the disk budget see it: all of it at one moment, so that nothing slips by on its way from one
//! table to another.

use std::collections::HashSet;

use super::{
    LayerRecord, RecordedPhase, SandboxRecord, Store, StoreError, TemplateRecord, bodies, builds,
    database::{Mode, params, refused},
    spec::SandboxId,
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

/// What finds versions by the sandbox that they are snapshots of, and by their artifact. A server that knows nothing of these keeps them
/// right all the same, so they are no other version of the schema.
pub(super) const INDICES: &str = "
    CREATE INDEX IF NOT EXISTS versions_of_sandbox ON versions (json_extract(body, '$.snapshot_of'), json_extract(body, '$.artifact'));
    CREATE INDEX IF NOT EXISTS versions_of_artifact ON versions (json_extract(body, '$.artifact'), json_extract(body, '$.snapshot_of'));";

const OF_SANDBOX: &str = "SELECT json_extract(body, '$.artifact') FROM versions WHERE json_extract(body, '$.snapshot_of') = ?1";
const OF_ARTIFACT: &str = "SELECT json_extract(body, '$.snapshot_of') FROM versions WHERE json_extract(body, '$.artifact') = ?1";

impl Store {
    /// Artifacts of the snapshots of a sandbox.
    pub(crate) async fn snapshots_of(&self, id: SandboxId) -> Result<Vec<ArtifactId>, StoreError> {
        self.read(move |tx| tx.query(OF_SANDBOX, params![id.as_str()], |row| row.get(0)).map_err(refused("read versions"))).await
    }

    /// Which of these artifacts templates and snapshots name.
    pub(crate) async fn named(&self, artifacts: HashSet<ArtifactId>) -> Result<Vec<Named>, StoreError> {
        self.read(move |tx| {
            let mut found = Vec::new();
            for artifact in artifacts {
                let of = tx.query(OF_ARTIFACT, params![artifact.as_str()], |row| row.get::<Option<String>>(0));
                for of in of.map_err(refused("read versions"))? {
                    found.push(Named { artifact: artifact.clone(), snapshot_of: of.and_then(|id| id.parse().ok()) });
                }
            }
            Ok(found)
        })
        .await
    }

    /// Everything that is used now.
    pub(crate) async fn in_use(&self) -> Result<InUse, StoreError> {
        // Files go by what this says. Where a commit may still be under way that nobody has seen (its answer was lost), or another server may
        // have come, that is waited for, and found, by who writes and not by who reads.
        let mode = if self.is_shared() { Mode::Write } else { Mode::Read };
        let parts = self.parts();
        self.run_as(mode, move |tx| {
            let versions: Vec<TemplateRecord> = bodies(tx, "versions", "SELECT body FROM versions", params![])?;
            let sandboxes: Vec<SandboxRecord> = bodies(tx, "sandboxes", "SELECT body FROM sandboxes", params![])?;
            let states = builds::layers(tx)?;
            let mut used = InUse { artifacts: versions.into_iter().map(|v| v.artifact).collect(), layers: Vec::new(), states };
            if parts.has_others {
                // What was this server's may be another's by now, which has yet to get what holds it.
                let held = tx.query(parts.all_held, params![], |row| row.get(0));
                used.artifacts.extend(held.map_err(refused("read what is held"))?);
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::goes_through_no_table;

    #[tokio::test]
    async fn who_names_an_artifact_is_found_by_an_index() {
        goes_through_no_table([OF_SANDBOX, OF_ARTIFACT].map(str::to_owned)).await;
    }
}
