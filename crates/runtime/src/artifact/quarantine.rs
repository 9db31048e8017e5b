//! Quarantine: an artifact that was found damaged is not tried again, and nothing of it is touched.
//!
//! The mark stands beside the artifacts, `quarantine/<id>.json`, because an artifact never changes, because machines may still
//! run on an intact part of it, and because what is left may be all there is. Artifacts that share no damaged member go on
//! working. `firkin verify` reads a marked artifact again and takes the mark away when all of it is intact.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use firkin_causes::chain;
use fs_err as fs;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    ArtifactStore,
    manifest::{FORMAT, read_sidecar, write_sidecar},
};
use crate::{artifact::IntegrityError, ground::ids::ArtifactId};

/// What a mark says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuarantineMark {
    /// [`FORMAT`].
    pub format: u32,
    /// The artifact.
    pub artifact: ArtifactId,
    /// When it was found damaged.
    pub since: Timestamp,
    /// What was found.
    pub reason: String,
}

/// The marks of one state directory. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Quarantine {
    dir: PathBuf,
    marks: Arc<Mutex<BTreeMap<ArtifactId, QuarantineMark>>>,
}

impl Quarantine {
    pub(super) fn open(dir: PathBuf) -> io::Result<Self> {
        crate::ground::private::private_dir(&dir)?;
        let mut marks = BTreeMap::new();
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            match read_sidecar::<QuarantineMark>(&path) {
                Ok(mark) => drop(marks.insert(mark.artifact.clone(), mark)),
                Err(error) => tracing::warn!(error = chain(&error), "a mark of the quarantine cannot be read"),
            }
        }
        Ok(Self { dir, marks: Arc::new(Mutex::new(marks)) })
    }

    fn marks(&self) -> MutexGuard<'_, BTreeMap<ArtifactId, QuarantineMark>> {
        // Every critical section is one call on the map.
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, id: &ArtifactId) -> PathBuf {
        self.dir.join(format!("{id}.json"))
    }
}

impl ArtifactStore {
    /// Artifacts that were found damaged, by id.
    pub fn quarantined(&self) -> Vec<QuarantineMark> {
        self.quarantine.marks().values().cloned().collect()
    }

    /// Whether an artifact can be restored as far as is known without reading its members.
    pub fn is_usable(&self, id: &ArtifactId) -> bool {
        self.refuse_quarantined(id).is_ok() && self.load(id).is_ok()
    }

    pub(super) fn refuse_quarantined(&self, id: &ArtifactId) -> Result<(), IntegrityError> {
        match self.quarantine.marks().get(id) {
            Some(mark) => Err(IntegrityError::Quarantined { since: mark.since, reason: mark.reason.clone() }),
            None => Ok(()),
        }
    }

    /// Marks `id` if `error` shows that it is damaged, and gives the error back. What merely could not be read this time, or was
    /// written by a newer version, is not damaged.
    pub(super) fn judged(&self, id: &ArtifactId, error: IntegrityError) -> IntegrityError {
        let is_known = matches!(error, IntegrityError::Quarantined { .. });
        // An artifact that does not exist is no damaged one.
        if error.is_damage() && !is_known && self.dir(id).is_dir() {
            self.mark(id, chain(&error));
        }
        error
    }

    fn mark(&self, id: &ArtifactId, reason: String) {
        tracing::error!(artifact = %id, reason, "an artifact is damaged and goes into quarantine; `firkin verify` reads it again");
        let mark = QuarantineMark { format: FORMAT, artifact: id.clone(), since: Timestamp::now(), reason };
        if let Err(error) = write_sidecar(&self.quarantine.path(id), &mark) {
            // Then it is found damaged once more after a restart.
            tracing::warn!(error = chain(&error), "cannot write a mark of the quarantine");
        }
        self.quarantine.marks().insert(id.clone(), mark);
    }

    /// Takes the mark away: the artifact was read and is intact, or is gone.
    pub(super) fn release(&self, id: &ArtifactId) -> io::Result<()> {
        if self.quarantine.marks().remove(id).is_some() {
            remove(&self.quarantine.path(id))?;
        }
        Ok(())
    }
}

impl IntegrityError {
    /// Whether it shows that an artifact is damaged, now or before. What merely could not be read this time, or was written by a newer version, is not.
    pub(crate) fn is_damage(&self) -> bool {
        match self {
            Self::Unreadable { source, .. } => source.kind() == io::ErrorKind::NotFound,
            Self::Malformed { .. }
            | Self::Unrecorded { .. }
            | Self::Size { .. }
            | Self::Digest { .. }
            | Self::Quarantined { .. } => true,
            Self::Format { .. } | Self::Elsewhere(_) => false,
        }
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}
