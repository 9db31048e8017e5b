//! The head of an archive: all that follows it, by size and digest, and what it is of.
//!
//! Old readers' rule: as for manifests, fields are only ever added and are optional when they are; what would make an old reader do
//! something wrong raises [`ARCHIVE_FORMAT`].

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt,
};

use firkin_engine::{DiskFormat, ImageForm, formats};
use serde::{Deserialize, Serialize};

use super::super::{
    manifest::{FORMAT, MemberIntegrity, MemoryMember, SnapshotArtifactManifest},
    publish::own_members,
};
use crate::ground::ids::LayerId;

/// The version of archives that this code writes, and the newest that it reads.
pub const ARCHIVE_FORMAT: u32 = 1;

/// The longest header that is read: a manifest is below 16 KiB, and a disk has some ten layers.
pub(super) const MAX_HEADER_BYTES: u64 = 16 << 20;

/// The name of its entry, the first.
pub(super) const HEADER: &str = "archive.json";

/// The name of the entry that carries the content of this digest.
pub(super) fn blob_name(digest: &str) -> String {
    format!("blobs/{digest}")
}

/// The name of the entry that carries it from the byte `begun` on, for whoever has what is before that.
pub(super) fn rest_name(digest: &str, begun: u64) -> String {
    if begun == 0 { blob_name(digest) } else { format!("{}@{begun}", blob_name(digest)) }
}

/// From which byte on an entry of this name carries the content of this digest, if it does.
pub(super) fn rest_of(name: &str, digest: &str) -> Option<u64> {
    let rest = name.strip_prefix(&blob_name(digest))?;
    if rest.is_empty() { Some(0) } else { rest.strip_prefix('@')?.parse().ok().filter(|begun| *begun > 0) }
}

/// Hexadecimal digits of a digest.
const DIGEST_DIGITS: usize = 64;

/// What an archive is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ArchiveKind {
    /// One version of a template.
    Template,
    /// A snapshot of a sandbox.
    Snapshot,
    /// A paused sandbox.
    Sandbox,
    /// An artifact, for a host that has the record of what stands on it.
    Artifact,
}

impl fmt::Display for ArchiveKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Template => "template",
            Self::Snapshot => "snapshot",
            Self::Sandbox => "sandbox",
            Self::Artifact => "artifact",
        })
    }
}

/// An artifact in an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarriedArtifact {
    /// As it was published, with an empty path for its root image.
    pub manifest: SnapshotArtifactManifest,
    /// Size and digest of each of its own files.
    pub members: BTreeMap<String, MemberIntegrity>,
    /// Digest of its root image without its zeros, BLAKE3.
    pub root: String,
}

/// A layer in an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarriedLayer {
    /// Its id.
    pub id: LayerId,
    /// How the names of its files end, by which its form is known.
    pub form: String,
    /// Size and digest of what it carries.
    #[serde(flatten)]
    pub content: MemberIntegrity,
}

/// A root image in an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarriedRoot {
    /// Its form.
    pub form: RootForm,
    /// Bytes of the image.
    pub size: u64,
    /// Size and digest of it without its zeros.
    #[serde(flatten)]
    pub content: MemberIntegrity,
}

/// The form of a root image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RootForm {
    /// [`ImageForm::Ext4`].
    Ext4,
    /// [`ImageForm::ErofsWithAgent`].
    Erofs,
}

impl RootForm {
    pub(super) fn file_name(self) -> &'static str {
        match self {
            Self::Ext4 => "rootfs.ext4",
            Self::Erofs => "rootfs.erofs",
        }
    }
}

impl From<ImageForm> for RootForm {
    fn from(form: ImageForm) -> Self {
        match form {
            ImageForm::Ext4 => Self::Ext4,
            ImageForm::ErofsWithAgent => Self::Erofs,
        }
    }
}

/// What an archive says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveHeader {
    /// [`ARCHIVE_FORMAT`].
    pub format: u32,
    /// What it is of.
    pub kind: ArchiveKind,
    /// What is on record of that: its form is the affair of who keeps such records.
    pub record: serde_json::Value,
    /// The artifact that it is of, after the one whose memory it stands on.
    pub artifacts: Vec<CarriedArtifact>,
    /// Layers of their disks.
    pub layers: Vec<CarriedLayer>,
    /// Root images below these.
    pub roots: Vec<CarriedRoot>,
}

/// One content that an archive carries, by the first that needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blob {
    pub(super) content: MemberIntegrity,
    /// Whose it is.
    pub(super) of: String,
    pub(super) member: String,
}

impl Blob {
    /// As errors call it.
    pub(super) fn name(&self) -> String {
        format!("member `{}` of {}", self.member, self.of)
    }
}

/// What a layer of an archive lies over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Under<'a> {
    /// The root image of this digest.
    Root(&'a str),
    Layer(&'a LayerId),
}

/// The form of disks whose files are called so, of those that can be carried.
pub(super) fn form_called(extension: &str) -> Option<&'static dyn DiskFormat> {
    formats().into_iter().find(|form| form.extension() == extension && !form.layers_are_directories())
}

impl ArchiveHeader {
    /// The artifact that it is of.
    pub fn artifact(&self) -> &CarriedArtifact {
        self.artifacts.last().expect("an archive without artifacts is refused")
    }

    /// What follows, in this order.
    pub(super) fn blobs(&self) -> Vec<Blob> {
        let roots = self.roots.iter().map(|root| Blob {
            content: root.content.clone(),
            of: "the archive".to_owned(),
            member: "root image".to_owned(),
        });
        let layers = self.layers.iter().map(|layer| Blob {
            content: layer.content.clone(),
            of: "the archive".to_owned(),
            member: layer.id.member(),
        });
        let members = self.artifacts.iter().flat_map(|artifact| {
            let of = format!("snapshot artifact `{}`", artifact.manifest.id);
            let blob = move |(member, content): (&String, &MemberIntegrity)| Blob {
                content: content.clone(),
                of: of.clone(),
                member: member.clone(),
            };
            artifact.members.iter().map(blob)
        });
        let mut seen = HashSet::new();
        roots.chain(layers).chain(members).filter(|blob| seen.insert(blob.content.blake3.clone())).collect()
    }

    /// What each layer lies over, if its artifacts agree on that.
    pub(super) fn below(&self) -> Result<HashMap<&LayerId, Under<'_>>, &'static str> {
        let mut below = HashMap::new();
        for artifact in &self.artifacts {
            let mut under = Under::Root(&artifact.root);
            for layer in &artifact.manifest.disk.layers {
                if below.insert(layer, under).is_some_and(|other| other != under) {
                    return Err("a layer lies over two things");
                }
                under = Under::Layer(layer);
            }
        }
        Ok(below)
    }

    /// Refuses what cannot be: everything that is used later without another look.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        self.check_artifacts()?;
        let named: HashSet<&LayerId> = self.below()?.into_keys().collect();
        let carried: HashSet<&LayerId> = self.layers.iter().map(|layer| &layer.id).collect();
        if named != carried || carried.len() != self.layers.len() {
            return Err("its layers are not those of its artifacts");
        }
        if self.layers.iter().any(|layer| form_called(&layer.form).is_none()) {
            return Err("a layer is of no form that is known");
        }
        let named: HashSet<&str> = self.artifacts.iter().map(|artifact| artifact.root.as_str()).collect();
        let carried: HashSet<&str> = self.roots.iter().map(|root| root.content.blake3.as_str()).collect();
        if named != carried || carried.len() != self.roots.len() {
            return Err("its root images are not those of its artifacts");
        }
        self.check_contents()
    }

    fn check_artifacts(&self) -> Result<(), &'static str> {
        let Some((artifact, bases)) = self.artifacts.split_last() else { return Err("it has no artifact") };
        let fits = match (&artifact.manifest.memory, bases) {
            (MemoryMember::Diff { base }, [of]) => {
                of.manifest.id == *base && of.manifest.id != artifact.manifest.id && of.manifest.memory == MemoryMember::Full
            }
            (MemoryMember::Full | MemoryMember::Absent | MemoryMember::InState, []) => true,
            _ => false,
        };
        if !fits {
            return Err("what its artifact stands on is not in it");
        }
        for CarriedArtifact { manifest, members, .. } in &self.artifacts {
            let own: BTreeSet<&str> = own_members(&manifest.memory).iter().copied().collect();
            if manifest.format != FORMAT || !own.iter().eq(members.keys()) {
                return Err("an artifact has not the members that such a one has");
            }
        }
        Ok(())
    }

    fn check_contents(&self) -> Result<(), &'static str> {
        let roots = self.roots.iter().map(|root| &root.content);
        let layers = self.layers.iter().map(|layer| &layer.content);
        let members = self.artifacts.iter().flat_map(|artifact| artifact.members.values());
        let mut sizes = HashMap::new();
        let mut total: u64 = 0;
        for MemberIntegrity { bytes, blake3 } in roots.chain(layers).chain(members) {
            let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            if blake3.len() != DIGEST_DIGITS || !blake3.bytes().all(is_digit) {
                return Err("a digest is none");
            }
            if sizes.insert(blake3, *bytes).is_some_and(|other| other != *bytes) {
                return Err("one content has two sizes");
            }
            total = total.checked_add(*bytes).ok_or("it is larger than any disk")?;
        }
        Ok(())
    }
}
