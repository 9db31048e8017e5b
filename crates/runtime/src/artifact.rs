//! Snapshot artifacts on disk: what they are, how they become visible, and how their integrity is proven.
//!
//! ```text
//!   artifacts/<id>/manifest.json    what it is and what it needs
//!                  integrity.json   size and digest of every member
//!                  state            device state
//!                  memory           whole guest memory (templates), or
//!                  memory.diff      pages that differ from the base's memory
//!                  key             wrapped data key, where members are sealed: their names end with `.sealed` then
//!   layers/<id>.<format>            one layer of a root disk, shared by every artifact above it, or
//!          <id>.sealed, <id>.key    a sealed one with its wrapped data key
//!   roots/<blake3>/                 a root image that came with an archive
//!   incoming/<blake3>               what has arrived of an archive
//! ```
//!
//! An artifact is written into a temporary directory, synced, and renamed: it is whole or absent, and never changes. Layers
//! live apart because the pauses of one sandbox stack on each other: the older artifact can go while its layer stays.
//!
//! A diff lies over a whole memory, never over another diff: what one restore reads is bounded by two files.

use std::{
    collections::{HashMap, HashSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, atomic::AtomicBool},
};

use collect::Pins;
use firkin_engine::{DiskFormat, formats, parts};
use fs_err as fs;
use manifest::{INTEGRITY, MANIFEST, read_manifest, read_sidecar, unreadable};
use proof::Proofs;
use quarantine::Quarantine;
use sealed::present;
use staging::Staging;
use vault::Vault;

use crate::ground::ids::{ArtifactId, LayerId};

pub mod archive;
mod collect;
mod copying;
mod examine;
mod fetch;
mod flatten;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod made;
mod manifest;
mod member;
mod merge;
mod proof;
mod publish;
mod quarantine;
mod root_disk;
mod rotate;
mod sealed;
mod shrink;
mod staging;
mod vault;

pub use collect::{Candidates, Pin, PinName};
pub use copying::NotCopied;
pub use examine::{ExaminedArtifact, ExaminedMember, Readings};
pub use fetch::{AlreadyHere, Coming, Fetch, FetchError, Offered, Take};
pub use flatten::FlattenConfig;
pub use manifest::{
    ArtifactKind, CutReason, DiskMembers, FORMAT, GuestIdentity, MemberIntegrity, MemoryMember, SEALED_FORMAT,
    SnapshotArtifactIntegrity, SnapshotArtifactManifest,
};
pub use publish::{ArtifactDraft, PublishError};
pub use quarantine::QuarantineMark;
pub use rotate::{EncryptionStatus, RotateError, Rotation};
pub use vault::{EncryptionConfig, EncryptionError, UnsealError};

pub(crate) use copying::{CopiedMember, ToCopy, is_layer, is_own_file, key_of};
pub(crate) use made::{BootedState, CutState};
pub(crate) use manifest::{memory_base, parse_sidecar};
pub(crate) use merge::{MAX_DEPTH, MergedLayers};
pub(crate) use root_disk::RootDisk;
pub(crate) use sealed::{Readable, Secrecy};

/// An artifact with its files.
#[derive(Debug, Clone)]
pub struct Artifact {
    /// What it is.
    pub manifest: SnapshotArtifactManifest,
    /// What its members must be.
    pub integrity: SnapshotArtifactIntegrity,
    /// Whole memory.
    pub memory: PathBuf,
    /// Pages over it.
    pub memory_diff: Option<PathBuf>,
    /// Device state.
    pub state: PathBuf,
    /// Layers of the disk, lowest first.
    pub layers: Vec<PathBuf>,
}

impl Artifact {
    /// Its disk alone, as if its memory had never been kept.
    pub(crate) fn without_memory(mut self) -> Self {
        self.manifest.memory = MemoryMember::Absent;
        self.memory_diff = None;
        self
    }

    /// Its members, shared ones included, by the names that they have in the integrity record.
    fn members(&self) -> Vec<(String, &Path)> {
        let mut members: Vec<(String, &Path)> = match self.manifest.memory {
            MemoryMember::Full | MemoryMember::Diff { .. } => {
                vec![(parts::STATE.to_owned(), &self.state), (parts::MEMORY.to_owned(), &self.memory)]
            }
            MemoryMember::InState => vec![(parts::STATE.to_owned(), &self.state)],
            MemoryMember::Absent => Vec::new(),
        };
        if let Some(diff) = &self.memory_diff {
            members.push((parts::MEMORY_DIFF.to_owned(), diff));
        }
        for (id, path) in self.manifest.disk.layers.iter().zip(&self.layers) {
            members.push((id.member(), path));
        }
        members
    }
}

/// What is wrong with an artifact.
#[derive(Debug, thiserror::Error)]
pub enum IntegrityError {
    /// A file of it cannot be read.
    #[error("cannot read `{}`", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A sidecar is not what a sidecar must be.
    #[error("`{}` is not a valid sidecar", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A sidecar was written in a format that this version does not know.
    #[error("`{}` has format version {found}, this version reads {known}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// What is known.
        known: u32,
    },
    /// A member that the manifest names is not in the integrity record.
    #[error("member `{member}` has no recorded digest")]
    Unrecorded {
        /// The member.
        member: String,
    },
    /// A member has another size than was recorded.
    #[error("member `{member}` has {found} bytes, {expected} were recorded")]
    Size {
        /// The member.
        member: String,
        /// Recorded.
        expected: u64,
        /// Found.
        found: u64,
    },
    /// It was found damaged before, and has not been read since.
    #[error("it is in quarantine since {since} ({reason}); `firkin verify` reads it again and lets it out if it is intact")]
    Quarantined {
        /// When it was found damaged.
        since: jiff::Timestamp,
        /// What was found then.
        reason: String,
    },
    /// It is on another host, and did not come.
    #[error("it did not come from where it is")]
    Elsewhere(#[source] Box<FetchError>),
    /// A member has other content than was recorded.
    #[error("member `{member}` has digest `{found}`, `{expected}` was recorded")]
    Digest {
        /// The member.
        member: String,
        /// Recorded.
        expected: String,
        /// Found.
        found: String,
    },
}

/// Every artifact and layer of one state directory. Clones share what has been proven.
#[derive(Debug, Clone)]
pub struct ArtifactStore {
    root: PathBuf,
    proofs: Proofs,
    quarantine: Quarantine,
    pins: Arc<Mutex<Pins>>,
    staging: Staging,
    vault: Vault,
    /// Held by whoever rotates its key.
    rotating: Arc<Mutex<()>>,
    /// Set by whoever takes an archive in.
    importing: Arc<AtomicBool>,
    /// What root images and layers were found to carry.
    measured: Arc<Mutex<HashMap<member::Identity, MemberIntegrity>>>,
    disks: &'static dyn DiskFormat,
    /// Whether what is on record may be on other hosts.
    shares: bool,
}

/// The directory of root images that came with archives or with copies.
pub(crate) const ROOTS: &str = "roots";

/// The name of a layer's file, or of that of an overlay which may become one.
fn disk_file(id: &LayerId, form: &dyn DiskFormat) -> String {
    format!("{id}.{}", form.extension())
}

impl ArtifactStore {
    /// As [`ArtifactStore::open`], with the keys that `config` means, and with what it has sealed from now on.
    pub fn open_encrypted(
        state_dir: &Path,
        disks: &'static dyn DiskFormat,
        config: &EncryptionConfig,
    ) -> Result<Self, EncryptionError> {
        if config.seal && disks.layers_are_directories() {
            return Err(EncryptionError::Directories);
        }
        let failed = |source| EncryptionError::File { path: state_dir.to_owned(), source };
        let store = Self::open(state_dir, disks).map_err(failed)?;
        let in_use = !store.wrapped_keys().map_err(failed)?.is_empty();
        Ok(Self { vault: Vault::open(state_dir, config, in_use)?, ..store })
    }

    /// Opens (and creates) the directories below `state_dir`, whose layers are of the form `disks` unless their names say otherwise, and
    /// removes drafts that a crash left.
    /// Without keys: what is sealed is proven and collected, and not restored.
    pub fn open(state_dir: &Path, disks: &'static dyn DiskFormat) -> io::Result<Self> {
        for name in ["artifacts", "layers"] {
            crate::ground::private::private_dir(&state_dir.join(name))?;
        }
        let staging = Staging::open(Path::new(staging::SHARED_MEMORY), state_dir)?;
        let proofs = Proofs::open(state_dir.join("proofs"));
        let quarantine = Quarantine::open(state_dir.join("quarantine"))?;
        let (pins, rotating, importing, vault) = (Arc::default(), Arc::default(), Arc::default(), Vault::shut());
        let (root, measured) = (state_dir.to_owned(), Arc::default());
        let store = Self { root, proofs, quarantine, pins, staging, vault, rotating, importing, measured, disks, shares: false };
        store.remove_hidden()?;
        Ok(store)
    }

    /// Where an artifact is, whether or not it exists.
    pub(crate) fn dir(&self, id: &ArtifactId) -> PathBuf {
        self.root.join("artifacts").join(id.as_str())
    }

    /// Whether there is an artifact of this id, intact or not.
    pub(crate) fn is_here(&self, id: &ArtifactId) -> bool {
        self.dir(id).is_dir()
    }

    /// Whether an archive is being taken in.
    pub(crate) fn is_importing(&self) -> bool {
        self.importing.load(std::sync::atomic::Ordering::SeqCst)
    }

    /// Has what is on record and not here be on other hosts, and not lost: nothing here stands on it.
    pub(crate) fn sharing(self, shares: bool) -> Self {
        Self { shares, ..self }
    }

    /// Whether an artifact that is on record is on another host.
    fn is_elsewhere(&self, id: &ArtifactId) -> bool {
        self.shares && !self.is_here(id)
    }

    /// Where a layer is that is not encrypted: in the form in which it is there, whichever engine made it.
    pub fn layer(&self, id: &LayerId) -> PathBuf {
        let own = self.layer_in(id, self.disks);
        if own.symlink_metadata().is_ok() {
            return own;
        }
        let mut others = formats().into_iter().map(|form| self.layer_in(id, form));
        others.find(|path| path.symlink_metadata().is_ok()).unwrap_or(own)
    }

    /// Where a layer of this form is, whether or not it exists.
    pub(crate) fn layer_in(&self, id: &LayerId, form: &dyn DiskFormat) -> PathBuf {
        self.root.join("layers").join(disk_file(id, form))
    }

    /// The form of an overlay or a layer.
    fn form_of(&self, path: &Path) -> &'static dyn DiskFormat {
        let is_of = |form: &&dyn DiskFormat| path.extension().is_some_and(|extension| extension == form.extension());
        formats().into_iter().find(is_of).unwrap_or(self.disks)
    }

    /// Reads the sidecars of an artifact. Proves nothing yet, but a sidecar that is damaged puts it into quarantine.
    pub fn load(&self, id: &ArtifactId) -> Result<Artifact, IntegrityError> {
        let read = || {
            let manifest = read_manifest(&self.root, &self.dir(id).join(MANIFEST))?;
            let integrity = read_sidecar(&self.dir(id).join(INTEGRITY))?;
            Ok(self.assemble(manifest, integrity))
        };
        read().map_err(|error| self.judged(id, error))
    }

    fn assemble(&self, manifest: SnapshotArtifactManifest, integrity: SnapshotArtifactIntegrity) -> Artifact {
        let dir = self.dir(&manifest.id);
        let (memory, memory_diff) = match &manifest.memory {
            MemoryMember::Full | MemoryMember::Absent | MemoryMember::InState => (dir.join(parts::MEMORY), None),
            MemoryMember::Diff { base } => (self.dir(base).join(parts::MEMORY), Some(present(dir.join(parts::MEMORY_DIFF)))),
        };
        let layers = manifest.disk.layers.iter().map(|id| self.layer_file(id)).collect();
        Artifact { state: present(dir.join(parts::STATE)), memory: present(memory), memory_diff, layers, manifest, integrity }
    }

    /// Proves that every member is what was recorded: all sizes first, then all digests. One that is not puts the artifact into
    /// quarantine, and an artifact in quarantine is refused unread.
    ///
    /// Blocks when a member has not been proven since it was written last.
    pub fn verify(&self, artifact: &Artifact) -> Result<(), IntegrityError> {
        let id = &artifact.manifest.id;
        self.refuse_quarantined(id)?;
        self.prove(artifact).map_err(|error| self.judged(id, error))
    }

    fn prove(&self, artifact: &Artifact) -> Result<(), IntegrityError> {
        let members = artifact.members();
        let mut recorded = Vec::with_capacity(members.len());
        for (member, path) in &members {
            let record =
                artifact.integrity.members.get(member).ok_or_else(|| IntegrityError::Unrecorded { member: member.clone() })?;
            let found = member::Identity::of(path).map_err(|source| unreadable(path, source))?.bytes;
            if found != record.bytes {
                return Err(IntegrityError::Size { member: member.clone(), expected: record.bytes, found });
            }
            recorded.push(record);
        }
        for ((member, path), recorded) in members.iter().zip(recorded) {
            let found = self.proofs.digest(path).map_err(|source| unreadable(path, source))?;
            recorded.matches(member, &found).inspect_err(|_| self.proofs.forget(path))?;
        }
        self.proofs.save();
        Ok(())
    }

    /// Bytes of members that were read to prove them since the store was opened.
    pub fn bytes_read(&self) -> u64 {
        self.proofs.bytes_read()
    }

    /// The root images that artifacts in a state directory stand on, whoever's it is. Fails where one cannot be read, and with
    /// [`io::ErrorKind::NotFound`] where there is none: a mount point without its disk is an empty directory.
    pub fn root_images(state_dir: &Path) -> io::Result<HashSet<PathBuf>> {
        let mut found = HashSet::new();
        for entry in fs::read_dir(state_dir.join("artifacts"))? {
            let path = entry?.path().join(MANIFEST);
            match read_manifest(state_dir, &path) {
                Ok(manifest) => drop(found.insert(manifest.disk.rootfs_path)),
                // A draft, or on its way out.
                Err(_) if !path.exists() => {}
                Err(error) => return Err(io::Error::other(error)),
            }
        }
        Ok(found)
    }

    /// Every artifact's id, in no order.
    pub fn ids(&self) -> io::Result<Vec<ArtifactId>> {
        Self::ids_below(&self.root)
    }

    /// The artifact whose memory another lies over, in a state directory that may be another server's. None where there is none, and where
    /// its sidecar is no sidecar.
    pub(crate) fn base_below(state_dir: &Path, id: &ArtifactId) -> io::Result<Option<ArtifactId>> {
        let path = state_dir.join("artifacts").join(id.as_str()).join(MANIFEST);
        match read_manifest(state_dir, &path) {
            Ok(manifest) => Ok(Some(memory_base(&manifest)).filter(|base| base != id)),
            Err(IntegrityError::Unreadable { source, .. }) if source.kind() != io::ErrorKind::NotFound => Err(source),
            Err(_) => Ok(None),
        }
    }

    /// The same of a state directory that may be another server's.
    pub(crate) fn ids_below(state_dir: &Path) -> io::Result<Vec<ArtifactId>> {
        let mut ids = Vec::new();
        for entry in fs::read_dir(state_dir.join("artifacts"))? {
            // Drafts and what is being removed have names that are no ids.
            if let Some(id) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) {
                ids.push(id);
            }
        }
        Ok(ids)
    }
}
