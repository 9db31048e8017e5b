//! What is used, as collection and the disk budget see it: all of it at one moment, so that nothing slips by on its way from one
//! table to another.

use super::{LayerRecord, RecordedPhase, SandboxRecord, Store, StoreError, TemplateRecord, bodies, builds};

/// What is on record of the files below the state directory.
#[derive(Debug)]
pub(crate) struct InUse {
    /// Artifacts that somebody needs: versions, snapshots, paused sandboxes, and what machines map their memory from.
    pub(crate) artifacts: Vec<String>,
    /// Sealed layers under the disks of machines.
    pub(crate) layers: Vec<String>,
    /// States of builds, which can be made again.
    pub(crate) states: Vec<LayerRecord>,
}

impl Store {
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
