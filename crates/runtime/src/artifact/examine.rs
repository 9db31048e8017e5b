//! Examination: every member of an artifact read from the disk, whatever is remembered of it.

use std::{collections::HashMap, io, path::PathBuf};

use firkin_causes::chain;
use serde::Serialize;

use super::{Artifact, ArtifactKind, ArtifactStore, MemberIntegrity, manifest::unreadable};
use crate::{artifact::IntegrityError, ground::ids::ArtifactId};

/// What an examination found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExaminedArtifact {
    /// Its id.
    pub id: ArtifactId,
    /// Why it exists, if its manifest can be read.
    pub kind: Option<ArtifactKind>,
    /// Template or sandbox that it belongs to, if its manifest can be read.
    pub logical_id: Option<String>,
    /// Its members, shared ones included.
    pub members: Vec<ExaminedMember>,
    /// What is wrong with it, one line for each problem. Empty: it is intact.
    pub problems: Vec<String>,
}

/// One member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExaminedMember {
    /// As in the integrity record.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// Its recorded size.
    pub bytes: u64,
    /// Whether it is what was recorded.
    pub intact: bool,
}

/// Members that were read already: one that several artifacts share is read once.
#[derive(Debug, Default)]
pub struct Readings {
    by_path: HashMap<PathBuf, Result<MemberIntegrity, (io::ErrorKind, String)>>,
}

impl ArtifactStore {
    /// Reads the artifact `id` whole. Puts it into quarantine when it is damaged and takes it out when it is intact. Blocks.
    pub fn examine(&self, id: &ArtifactId, readings: &mut Readings) -> ExaminedArtifact {
        let mut examined =
            ExaminedArtifact { id: id.clone(), kind: None, logical_id: None, members: Vec::new(), problems: Vec::new() };
        match self.load(id) {
            Ok(artifact) => self.examine_members(&artifact, readings, &mut examined),
            Err(error) => examined.problems.push(chain(&error)),
        }
        if examined.problems.is_empty()
            && let Err(error) = self.release(id)
        {
            examined.problems.push(format!("cannot take it out of quarantine: {error}"));
        }
        examined
    }

    fn examine_members(&self, artifact: &Artifact, readings: &mut Readings, examined: &mut ExaminedArtifact) {
        examined.kind = Some(artifact.manifest.kind);
        examined.logical_id = Some(artifact.manifest.logical_id.clone());
        for (name, path) in artifact.members() {
            let read = || self.proofs.read(path).map_err(|error| (error.kind(), error.to_string()));
            let found = readings.by_path.entry(path.to_owned()).or_insert_with(read);
            let judged = match (artifact.integrity.members.get(&name), found) {
                (None, _) => Err(IntegrityError::Unrecorded { member: name.clone() }),
                (Some(_), Err((kind, text))) => Err(unreadable(path, io::Error::new(*kind, text.clone()))),
                (Some(recorded), Ok(found)) => recorded.matches(&name, found),
            };
            let bytes = artifact.integrity.members.get(&name).map_or(0, |recorded| recorded.bytes);
            let intact = judged.is_ok();
            examined.members.push(ExaminedMember { name, path: path.to_owned(), bytes, intact });
            if let Err(error) = judged {
                self.proofs.forget(path);
                examined.problems.push(chain(&self.judged(&artifact.manifest.id, error)));
            }
        }
        self.proofs.save();
    }
}

impl MemberIntegrity {
    /// Whether `found` is what was recorded of this member.
    pub(super) fn matches(&self, member: &str, found: &Self) -> Result<(), IntegrityError> {
        if found.bytes != self.bytes {
            return Err(IntegrityError::Size { member: member.to_owned(), expected: self.bytes, found: found.bytes });
        }
        if found.blake3 != self.blake3 {
            return Err(IntegrityError::Digest {
                member: member.to_owned(),
                expected: self.blake3.clone(),
                found: found.blake3.clone(),
            });
        }
        Ok(())
    }
}
