//! `firkin verify`: is what this state directory holds what was written into it, and who would miss what is not?
//!
//! Works on a state directory that no server uses, and holds its lock meanwhile. Nothing that is remembered of an earlier
//! reading counts. What is damaged goes into quarantine, what is intact comes out of it.

use std::path::Path;

use firkin_engine::DiskFormat;
use jiff::Timestamp;
use serde::Serialize;

use crate::{
    artifact::{ArtifactStore, ExaminedArtifact, MemoryMember, QuarantineMark, Readings},
    ground::{blocking::blocking, ids::ArtifactId, reference::Reference, team::Scope},
    store::{
        RecordedPhase, SandboxRecord, TemplateRecord,
        catalog::{self, Catalog},
        state_dir::{OpenError, whole_state_dir},
    },
};

/// The findings of one verification of a state directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// Every artifact, by id.
    pub artifacts: Vec<VerifiedArtifact>,
}

/// One artifact and who needs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VerifiedArtifact {
    /// The result of its examination.
    #[serde(flatten)]
    pub examined: ExaminedArtifact,
    /// Since when it is in quarantine.
    pub quarantined_since: Option<Timestamp>,
    /// Sandboxes, templates, snapshots and artifacts that cannot be restored without it.
    pub needed_by: Vec<String>,
}

impl VerifyReport {
    /// Whether nothing is damaged.
    pub fn is_intact(&self) -> bool {
        self.artifacts.iter().all(|artifact| artifact.examined.problems.is_empty())
    }
}

/// Fails with [`OpenError::Locked`] if a server uses this state directory now. Makes nothing, and holds nothing.
pub fn in_use(state_dir: &Path) -> Result<(), OpenError> {
    let directory = |source| OpenError::Directory { path: state_dir.to_owned(), source };
    let file = match fs_err::File::open(state_dir.join("lock")) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(directory(error)),
    };
    match nix::fcntl::Flock::lock(file.into_file(), nix::fcntl::FlockArg::LockSharedNonblock) {
        Ok(_) => Ok(()),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(OpenError::Locked { path: state_dir.to_owned() }),
        Err((_, other)) => Err(directory(other.into())),
    }
}

/// Reads every member of every artifact below `state_dir`, whose layers are of the form `disks`, and whose records are in `catalog`, or in
/// itself.
pub async fn verify(
    state_dir: &Path,
    disks: &'static dyn DiskFormat,
    catalog: Option<&dyn Catalog>,
) -> Result<VerifyReport, OpenError> {
    let directory = |source| OpenError::Directory { path: state_dir.to_owned(), source };
    // Nothing is made where nothing is.
    fs_err::metadata(state_dir.join("artifacts")).map_err(directory)?;
    let _lock = whole_state_dir(state_dir)?;
    let store = catalog::open(state_dir, catalog).await?;
    let sandboxes = store.sandboxes(Scope::Host).await.map_err(OpenError::Store)?;
    let templates = store.templates(Scope::Host).await.map_err(OpenError::Store)?;
    // Nobody else waits for a catalogue for as long as files are read.
    store.close().await.map_err(OpenError::Store)?;
    let root = state_dir.to_owned();
    let examine = move || {
        let artifacts = ArtifactStore::open(&root, disks)?;
        let mut ids = artifacts.ids()?;
        ids.sort();
        let mut readings = Readings::default();
        let examined: Vec<ExaminedArtifact> = ids.iter().map(|id| artifacts.examine(id, &mut readings)).collect();
        Ok((examined, artifacts.quarantined(), over_bases(&artifacts, &ids)))
    };
    let (examined, marks, over) = blocking(examine).await.map_err(directory)?;
    let artifacts = examined.into_iter().map(|examined| VerifiedArtifact {
        quarantined_since: since(&marks, &examined.id),
        needed_by: needed_by(&examined.id, &sandboxes, &templates, &over),
        examined,
    });
    Ok(VerifyReport { artifacts: artifacts.collect() })
}

/// Artifacts whose memory lies over another's: (artifact, base).
fn over_bases(artifacts: &ArtifactStore, ids: &[ArtifactId]) -> Vec<(ArtifactId, ArtifactId)> {
    let base = |id: &ArtifactId| match artifacts.load(id).ok()?.manifest.memory {
        MemoryMember::Diff { base } => Some((id.clone(), base)),
        MemoryMember::Full | MemoryMember::InState | MemoryMember::Absent => None,
    };
    ids.iter().filter_map(base).collect()
}

fn since(marks: &[QuarantineMark], id: &ArtifactId) -> Option<Timestamp> {
    marks.iter().find(|mark| mark.artifact == *id).map(|mark| mark.since)
}

pub(super) fn needed_by(
    id: &ArtifactId,
    sandboxes: &[SandboxRecord],
    templates: &[TemplateRecord],
    over: &[(ArtifactId, ArtifactId)],
) -> Vec<String> {
    let sandboxes = sandboxes.iter().filter(|sandbox| match &sandbox.phase {
        RecordedPhase::Paused(held) => held.artifact == *id,
        RecordedPhase::Running { memory_base, .. } => memory_base == id,
    });
    let templates = templates.iter().filter(|template| template.artifact == *id).map(|template| {
        let kind = if template.snapshot_of.is_some() { "snapshot" } else { "template" };
        format!("{kind} {}", template.names.first().map_or_else(|| template.id.to_string(), Reference::to_string))
    });
    let over = over.iter().filter(|(_, base)| base == id).map(|(artifact, _)| format!("artifact {artifact}"));
    sandboxes.map(|sandbox| format!("sandbox {}", sandbox.id)).chain(templates).chain(over).collect()
}
