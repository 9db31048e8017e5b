//! The sidecars: what an artifact is and what its members must be.
//!
//! Old readers' rule: fields are only ever added, and are optional when they are; whatever would make an old reader do something
//! wrong raises [`FORMAT`], and the reader of every released format stays, or refuses the file by its number.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fmt, io,
    path::{Path, PathBuf},
};

use firkin_engine::{BootFiles, Compatibility, Fingerprint, MemoryForm, Processor, Shape, compatibility::Mismatch};
use firkin_wire::{control, nonce::Nonce};
use fs_err as fs;
use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    artifact::{IntegrityError, PublishError, ROOTS},
    capacity::ResourceBudget,
    ground::ids::{ArtifactId, LayerId},
};

/// The version of both sidecars that this code writes, unless members are sealed.
pub const FORMAT: u32 = 1;

/// The version of the manifest of an artifact whose members are sealed, which a reader of the first would not find.
pub const SEALED_FORMAT: u32 = 2;

/// A sidecar is at most this long: a manifest is below 16 KiB, so more is damage or malice.
const MAX_SIDECAR_BYTES: u64 = 1 << 20;

pub(super) const MANIFEST: &str = "manifest.json";
pub(super) const INTEGRITY: &str = "integrity.json";

/// Why an artifact exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ArtifactKind {
    /// A template, booted and prepared.
    BaseTemplate,
    /// A state of a running sandbox from which others start.
    Continuation,
    /// The only state of a paused sandbox.
    Pause,
    /// A sandbox's own disk, booted: the memory that this sandbox goes on from, and its later states stand on.
    Boot,
}

/// Why a sandbox's state was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CutReason {
    /// Somebody asked for a pause.
    Asked,
    /// Its deadline passed.
    Idle,
    /// The server ended.
    Stopped,
    /// The disk was too full for it to write on.
    DiskFull,
    /// It held more of the disk than it may.
    OverQuota,
    /// It went back to a snapshot of its own.
    RolledBack,
    /// It goes to another host.
    Moved,
    /// Somebody asked for a snapshot.
    Snapshot,
    /// It was forked.
    Fork,
}

impl CutReason {
    /// What is made for this reason: a sandbox's only state, or one that others start from while it goes on.
    pub(crate) fn kind(self) -> ArtifactKind {
        match self {
            Self::Asked | Self::Idle | Self::Stopped | Self::DiskFull | Self::OverQuota | Self::RolledBack | Self::Moved => {
                ArtifactKind::Pause
            }
            Self::Snapshot | Self::Fork => ArtifactKind::Continuation,
        }
    }
}

impl fmt::Display for CutReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Asked => "asked",
            Self::Idle => "idle",
            Self::Stopped => "stopped",
            Self::DiskFull => "disk_full",
            Self::OverQuota => "over_quota",
            Self::RolledBack => "rolled_back",
            Self::Moved => "moved",
            Self::Snapshot => "snapshot",
            Self::Fork => "fork",
        })
    }
}

/// Guest memory of an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum MemoryMember {
    /// The artifact's own `memory`.
    Full,
    /// The `memory` of artifact `base`, with the pages of this one's `memory.diff` over it. Diffs never stack.
    Diff {
        /// Artifact whose memory is whole.
        base: ArtifactId,
    },
    /// None: only the disk was kept, and its guest must be booted. There is no device state either.
    Absent,
    /// The state has it: the engine writes no files of memory.
    InState,
}

impl MemoryMember {
    /// Of what was cut out of a machine whose memory is that of `base`, if it is of another artifact's.
    pub(crate) fn of_cut(form: MemoryForm, base: &ArtifactId) -> Self {
        match form {
            MemoryForm::Full => Self::Full,
            MemoryForm::Diff { .. } => Self::Diff { base: base.clone() },
            MemoryForm::InState => Self::InState,
        }
    }
}

/// The root disk of an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskMembers {
    /// Digest of the root image at the bottom.
    pub rootfs: String,
    /// Where that image is.
    pub rootfs_path: PathBuf,
    /// Layers over it, lowest first.
    pub layers: Vec<LayerId>,
}

/// What runs inside the guest of an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestIdentity {
    /// Digest of the kernel.
    pub kernel: String,
    /// Digest of the agent.
    pub agent: String,
    /// Control generation that the frozen agent speaks.
    pub agent_generation: u32,
    /// The nonce that is in its memory, by which it is called once more when it is restored. Absent: it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<Nonce>,
}

impl GuestIdentity {
    /// A guest that was booted from this server's files.
    pub(crate) fn of_boot(files: &BootFiles) -> Self {
        let [kernel, agent] = files.digests().map(str::to_owned);
        Self { kernel, agent, agent_generation: control::GENERATION, nonce: None }
    }
}

/// What an artifact is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotArtifactManifest {
    /// [`FORMAT`] or [`SEALED_FORMAT`].
    pub format: u32,
    /// Its id, also the name of its directory.
    pub id: ArtifactId,
    /// Why it exists.
    pub kind: ArtifactKind,
    /// Why the sandbox was cut; none for what was booted or built, and for artifacts of earlier builds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<CutReason>,
    /// Template or sandbox that it belongs to.
    pub logical_id: String,
    /// Artifact from which the snapshotted machine had been restored.
    pub parent: Option<ArtifactId>,
    /// When.
    pub created_at: Timestamp,
    /// Which engine made it.
    pub engine: Fingerprint,
    /// What runs in it.
    pub guest: GuestIdentity,
    /// Size of the machine.
    pub shape: Shape,
    /// What a sandbox of it needs.
    pub budget: ResourceBudget,
    /// The epoch that its guest is in; whoever restores it must use a higher one.
    pub epoch: u64,
    /// Its memory.
    pub memory: MemoryMember,
    /// Its disk.
    pub disk: DiskMembers,
}

impl SnapshotArtifactManifest {
    /// What it was made as: what is cut from a machine of a sealed one is as secret.
    pub(crate) fn is_sealed(&self) -> bool {
        self.format == SEALED_FORMAT
    }

    /// The processor that its guest was shown, or what of it this host cannot restore faithfully.
    pub(crate) fn processor(&self, here: &Compatibility) -> Result<Processor, Mismatch> {
        let processor = here.processor(&self.engine)?;
        if self.guest.agent_generation > control::GENERATION {
            return Err(Mismatch {
                what: "guest agent generation",
                made_with: self.guest.agent_generation.to_string(),
                here: format!("up to {}", control::GENERATION),
            });
        }
        Ok(processor)
    }
}

/// Size and digest of one member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberIntegrity {
    /// Size in bytes, holes included.
    pub bytes: u64,
    /// BLAKE3, hexadecimal.
    pub blake3: String,
}

/// Size and digest of every member of an artifact, shared ones included.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotArtifactIntegrity {
    /// [`FORMAT`].
    pub format: u32,
    /// By the member's name: `memory`, `memory.diff`, `state`, `layer:<id>`.
    pub members: BTreeMap<String, MemberIntegrity>,
}

/// The one field that is read before anything else is believed.
#[derive(Deserialize)]
struct Versioned {
    format: u32,
}

/// A file of an artifact that cannot be read.
pub(super) fn unreadable(path: &Path, source: io::Error) -> IntegrityError {
    IntegrityError::Unreadable { path: path.to_owned(), source }
}

/// Reads a sidecar. Its size is checked before it is read, and its format before anything else in it is believed.
pub(super) fn read_sidecar<T: DeserializeOwned>(path: &Path) -> Result<T, IntegrityError> {
    let bytes = fs::metadata(path).map_err(|source| unreadable(path, source))?.len();
    if bytes > MAX_SIDECAR_BYTES {
        return Err(unreadable(path, io::Error::new(io::ErrorKind::FileTooLarge, format!("{bytes} bytes"))));
    }
    parse_sidecar(path, &fs::read(path).map_err(|source| unreadable(path, source))?)
}

/// Reads the manifest at `path` of an artifact in `state_dir`. A root image that came with an archive or with copies lies in the state
/// directory, and goes where that goes: what the manifest says is where it was when the artifact came.
pub(super) fn read_manifest(state_dir: &Path, path: &Path) -> Result<SnapshotArtifactManifest, IntegrityError> {
    let mut manifest: SnapshotArtifactManifest = read_sidecar(path)?;
    let image = &mut manifest.disk.rootfs_path;
    if let Some(own) = came_with(image).map(|tail| state_dir.join(tail))
        && own != *image
        && own.exists()
    {
        *image = own;
    }
    Ok(manifest)
}

/// The part of a root image's path that is the same in every state directory, if it came with an archive or with copies:
/// `roots/<digest>/<file>`.
fn came_with(image: &Path) -> Option<PathBuf> {
    let dir = image.parent()?;
    let is_digest = dir.file_name().and_then(OsStr::to_str).is_some_and(|name| blake3::Hash::from_hex(name).is_ok());
    let roots = dir.parent()?.file_name()?;
    (is_digest && roots == ROOTS)
        .then(|| Path::new(ROOTS).join(dir.file_name().unwrap_or_default()).join(image.file_name().unwrap_or_default()))
}

/// Reads a sidecar of this text, which is or was at `path`.
pub(crate) fn parse_sidecar<T: DeserializeOwned>(path: &Path, text: &[u8]) -> Result<T, IntegrityError> {
    let malformed = |source| IntegrityError::Malformed { path: path.to_owned(), source };
    let found = serde_json::from_slice::<Versioned>(text).map_err(malformed)?.format;
    if !(FORMAT..=SEALED_FORMAT).contains(&found) {
        return Err(IntegrityError::Format { path: path.to_owned(), found, known: SEALED_FORMAT });
    }
    serde_json::from_slice(text).map_err(malformed)
}

/// Writes a sidecar, durable.
pub(super) fn write_sidecar<T: Serialize>(path: &Path, value: &T) -> Result<(), PublishError> {
    let text = serde_json::to_vec_pretty(value).map_err(PublishError::Serialise)?;
    let write = || -> io::Result<()> { crate::ground::private::private_file(path, &text)?.sync_all() };
    write().map_err(|source| PublishError::File { path: path.to_owned(), source })
}

/// The artifact whose memory a session of `manifest` maps.
pub(crate) fn memory_base(manifest: &SnapshotArtifactManifest) -> ArtifactId {
    match &manifest.memory {
        // What has no file of memory is mapped by nobody, so its own id does no harm.
        MemoryMember::Full | MemoryMember::Absent | MemoryMember::InState => manifest.id.clone(),
        MemoryMember::Diff { base } => base.clone(),
    }
}
