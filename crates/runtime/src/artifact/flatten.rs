//! A state whose memory diff has become large gets a memory of its own.
//!
//! A diff is relative to the memory that the machine was restored over, and cumulative: it grows with everything that the sandbox
//! ever wrote, and each restore has to write all of it into the new machine. So the same state is published once more as a new
//! artifact, whose memory is whole: what is restored from it starts with an empty diff. The price is disk, which is why it is paid
//! only for a diff that is large by itself and in proportion.

use std::{io, time::Duration};

use firkin_engine::{memory, parts};
use fs_err as fs;

use super::{Artifact, ArtifactStore, Pin};
use crate::artifact::{IntegrityError, PublishError};

/// When the memory diff of a paused sandbox counts as large, so that base and diff are made one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlattenConfig {
    /// Bytes that it may have whatever the size of its machine.
    pub floor_bytes: u64,
    /// Hundredths of the machine's memory that it may have.
    pub percent: u64,
    /// From the pause on. What is resumed before that costs nothing.
    pub after: Duration,
}

impl Default for FlattenConfig {
    fn default() -> Self {
        // 64 MiB are written into a machine in some 40 ms, as long as the rest of a restore takes.
        Self { floor_bytes: 64 << 20, percent: 25, after: Duration::from_secs(10) }
    }
}

/// Why a state did not get a memory of its own. It stays as it is.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FlattenArtifactError {
    /// It is not what was published.
    #[error("the snapshot artifact is not intact")]
    Integrity(#[source] IntegrityError),
    /// Base and diff could not be made one.
    #[error(transparent)]
    Memory(#[from] firkin_engine::memory::FlattenError),
    /// The new artifact could not be published.
    #[error("cannot publish the flattened state")]
    Publish(#[from] PublishError),
}

impl ArtifactStore {
    /// Whether the diff of this artifact is so large that it should be flattened. One that is sealed never is: all of a whole memory
    /// would have to be opened at each resume, and could be shared by nobody.
    pub(crate) fn is_bulky(artifact: &Artifact, config: FlattenConfig) -> bool {
        if artifact.is_sealed() {
            return false;
        }
        let part = (u64::from(artifact.manifest.shape.memory_mib) << 20) / 100 * config.percent;
        let diff = artifact.memory_diff.as_ref().and_then(|path| fs::metadata(path).ok());
        diff.is_some_and(|metadata| metadata.len() > config.floor_bytes.max(part))
    }

    /// Publishes the state of `artifact` once more, with a memory of its own. Given up when `goes_on` says no.
    ///
    /// Blocks for as long as its memory takes to be copied.
    pub(crate) fn flatten(
        &self,
        artifact: &Artifact,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<(Artifact, Pin), FlattenArtifactError> {
        // Damage is not passed on: what is copied was proven to be what was published.
        self.verify(artifact).map_err(FlattenArtifactError::Integrity)?;
        let file = |source: io::Error| PublishError::File { path: self.root.clone(), source };
        let draft = self.draft().map_err(file)?;
        let pin = self.pin(draft.id());
        if let Some(diff) = &artifact.memory_diff {
            memory::flatten(&artifact.memory, diff, &draft.dir().join(parts::MEMORY), goes_on)?;
        }
        fs::copy(&artifact.state, draft.dir().join(parts::STATE)).map_err(file)?;
        let manifest = artifact.manifest.of_flattened(draft.id());
        Ok((self.publish(draft, manifest)?, pin))
    }
}
