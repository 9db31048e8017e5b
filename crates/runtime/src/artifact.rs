//! Snapshot artifacts on disk: what they are, how they become visible, and how their integrity is proven.
//!
//! ```text
//!   artifacts/<id>/manifest.json    what it is and what it needs
//!                  integrity.json   size and digest of every member
//!                  state            device state
//!                  memory           whole guest memory (templates), or
//!                  memory.diff      pages that differ from the base's memory
//!   layers/<id>.qcow2               one layer of a root disk, shared by every artifact above it
//! ```
//!
//! An artifact is written into a temporary directory, synced, and renamed: it is whole or absent, and never changes. Layers
//! live apart because the pauses of one sandbox stack on each other: the older artifact can go while its layer stays.
//!
//! Proving integrity reads every byte, so it is done once and remembered under the identity of the file (device, inode, size,
//! modification and change time). Members are read-only files of root; whatever rewrites one changes that identity.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use firkin_engine::{Fingerprint, Shape, parts};
use fs_err as fs;
use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    capacity::ResourceBudget,
    error::{IntegrityError, PublishError},
};

/// The version of both sidecars that this code writes, and the only one it reads.
pub const FORMAT: u32 = 1;

/// A sidecar is at most this long: a manifest is below 16 KiB, so more is damage or malice.
const MAX_SIDECAR_BYTES: u64 = 1 << 20;

const MANIFEST: &str = "manifest.json";
const INTEGRITY: &str = "integrity.json";

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
        base: String,
    },
}

/// The root disk of an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskMembers {
    /// Digest of the root image at the bottom.
    pub rootfs: String,
    /// Where that image is.
    pub rootfs_path: PathBuf,
    /// Layers over it, lowest first.
    pub layers: Vec<String>,
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
}

/// What an artifact is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotArtifactManifest {
    /// [`FORMAT`].
    pub format: u32,
    /// Its id, also the name of its directory.
    pub id: String,
    /// Why it exists.
    pub kind: ArtifactKind,
    /// Template or sandbox that it belongs to.
    pub logical_id: String,
    /// Artifact from which the snapshotted machine had been restored.
    pub parent: Option<String>,
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

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct FileIdentity {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileIdentity {
    fn of(metadata: &std::fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// Every artifact and layer of one state directory. Clones share what has been proven.
#[derive(Debug, Clone)]
pub struct ArtifactStore {
    root: PathBuf,
    proven: Arc<Mutex<HashMap<FileIdentity, String>>>,
    pins: Arc<Mutex<Pins>>,
}

/// Who is being used right now, and when that was last begun, so that collection never takes what it has not seen at rest.
#[derive(Debug, Default)]
struct Pins {
    serial: u64,
    by_name: HashMap<String, Pinned>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Pinned {
    count: u32,
    since: u64,
}

/// Keeps an artifact or a layer from being collected while it is used but not yet recorded.
#[derive(Debug)]
#[must_use = "dropping a pin lets the artifact be collected"]
pub struct Pin {
    name: String,
    pins: Arc<Mutex<Pins>>,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pinned) = pins.by_name.get_mut(&self.name) {
            pinned.count -= 1;
        }
    }
}

/// What could be collected, as seen at one moment. Read the records of what is in use *after* taking it.
#[derive(Debug)]
pub struct Candidates {
    serial: u64,
    artifacts: Vec<String>,
    layers: Vec<String>,
}

/// A new artifact that is still invisible. Dropping it removes what was written.
#[derive(Debug)]
pub struct ArtifactDraft {
    id: String,
    /// Where its members are written.
    dir: PathBuf,
    published: bool,
}

impl ArtifactDraft {
    /// The id that it will have.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where to write its members.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for ArtifactDraft {
    fn drop(&mut self) {
        if !self.published
            && let Err(error) = fs::remove_dir_all(&self.dir)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "cannot remove an unpublished artifact");
        }
    }
}

impl ArtifactStore {
    /// Opens (and creates) the directories below `state_dir`, and removes drafts that a crash left.
    pub fn open(state_dir: &Path) -> io::Result<Self> {
        for name in ["artifacts", "layers"] {
            let dir = state_dir.join(name);
            fs::create_dir_all(&dir)?;
            // An engine may pass through, nobody but root may list: ids are unguessable.
            fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o711))?;
        }
        let store = Self { root: state_dir.to_owned(), proven: Arc::default(), pins: Arc::default() };
        for entry in fs::read_dir(store.root.join("artifacts"))? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with('.') {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(store)
    }

    fn dir(&self, id: &str) -> PathBuf {
        self.root.join("artifacts").join(id)
    }

    /// Where a layer is, whether or not it exists.
    pub fn layer(&self, id: &str) -> PathBuf {
        self.root.join("layers").join(format!("{id}.qcow2"))
    }

    /// Begins a new artifact.
    pub fn draft(&self) -> io::Result<ArtifactDraft> {
        let id = crate::random::alphanumeric(20);
        let dir = self.root.join("artifacts").join(format!(".{id}"));
        fs::create_dir(&dir)?;
        fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o711))?;
        Ok(ArtifactDraft { id, dir, published: false })
    }

    /// Takes the file at `path`, on the same file system, as layer `id`: immutable from now on. Not yet durable;
    /// [`ArtifactStore::publish`] of the artifact that names it makes it so.
    pub fn adopt_layer(&self, id: &str, path: &Path) -> io::Result<()> {
        freeze(path)?;
        fs::rename(path, self.layer(id))
    }

    /// Digests every member, writes both sidecars, syncs all of it and makes the artifact visible.
    ///
    /// Blocks: call it off the asynchronous threads.
    pub fn publish(&self, mut draft: ArtifactDraft, manifest: SnapshotArtifactManifest) -> Result<Artifact, PublishError> {
        let file = |path: &Path| {
            let path = path.to_owned();
            move |source| PublishError::File { path, source }
        };
        let own: &[&str] = match manifest.memory {
            MemoryMember::Full => &[parts::STATE, parts::MEMORY],
            MemoryMember::Diff { .. } => &[parts::STATE, parts::MEMORY_DIFF],
        };
        let mut members = BTreeMap::new();
        let mut digests = Vec::new();
        for name in own {
            let path = draft.dir.join(name);
            seal(&path).map_err(file(&path))?;
            let (integrity, _) = self.digest(&path).map_err(file(&path))?;
            digests.push((*name, integrity.blake3.clone()));
            members.insert((*name).to_owned(), integrity);
        }
        if let MemoryMember::Diff { base } = &manifest.memory {
            let path = self.dir(base).join(parts::MEMORY);
            members.insert(parts::MEMORY.to_owned(), self.digest(&path).map_err(file(&path))?.0);
        }
        for layer in &manifest.disk.layers {
            let path = self.layer(layer);
            let (integrity, fresh) = self.digest(&path).map_err(file(&path))?;
            if fresh {
                fs::File::open(&path).and_then(|f| f.sync_all()).map_err(file(&path))?;
            }
            members.insert(format!("layer:{layer}"), integrity);
        }
        let integrity = SnapshotArtifactIntegrity { format: FORMAT, members };
        write_sidecar(&draft.dir.join(MANIFEST), &manifest)?;
        write_sidecar(&draft.dir.join(INTEGRITY), &integrity)?;
        let layers = self.root.join("layers");
        sync_dir(&layers).map_err(file(&layers))?;
        sync_dir(&draft.dir).map_err(file(&draft.dir))?;
        let target = self.dir(&draft.id);
        fs::rename(&draft.dir, &target).map_err(file(&target))?;
        draft.published = true;
        let parent = self.root.join("artifacts");
        sync_dir(&parent).map_err(file(&parent))?;
        // The change time moved with the seal, not with the directory's rename, so what was digested is still proven.
        Ok(self.assemble(manifest, integrity))
    }

    /// Reads the sidecars of an artifact. Proves nothing yet.
    pub fn load(&self, id: &str) -> Result<Artifact, IntegrityError> {
        let manifest: SnapshotArtifactManifest = read_sidecar(&self.dir(id).join(MANIFEST), |m: &Versioned| m.format)?;
        let integrity = read_sidecar(&self.dir(id).join(INTEGRITY), |m: &Versioned| m.format)?;
        Ok(self.assemble(manifest, integrity))
    }

    fn assemble(&self, manifest: SnapshotArtifactManifest, integrity: SnapshotArtifactIntegrity) -> Artifact {
        let dir = self.dir(&manifest.id);
        let (memory, memory_diff) = match &manifest.memory {
            MemoryMember::Full => (dir.join(parts::MEMORY), None),
            MemoryMember::Diff { base } => (self.dir(base).join(parts::MEMORY), Some(dir.join(parts::MEMORY_DIFF))),
        };
        let layers = manifest.disk.layers.iter().map(|id| self.layer(id)).collect();
        Artifact { state: dir.join(parts::STATE), memory, memory_diff, layers, manifest, integrity }
    }

    /// Proves that every member is what was recorded: all sizes first, then all digests.
    ///
    /// Blocks when a member has not been proven in this process yet.
    pub fn verify(&self, artifact: &Artifact) -> Result<(), IntegrityError> {
        let mut members: Vec<(String, &Path)> =
            vec![(parts::STATE.to_owned(), &artifact.state), (parts::MEMORY.to_owned(), &artifact.memory)];
        if let Some(diff) = &artifact.memory_diff {
            members.push((parts::MEMORY_DIFF.to_owned(), diff));
        }
        for (id, path) in artifact.manifest.disk.layers.iter().zip(&artifact.layers) {
            members.push((format!("layer:{id}"), path));
        }
        let mut expected = Vec::with_capacity(members.len());
        for (member, path) in &members {
            let record =
                artifact.integrity.members.get(member).ok_or_else(|| IntegrityError::Unrecorded { member: member.clone() })?;
            let found = fs::metadata(path).map_err(|source| unreadable(path, source))?.len();
            if found != record.bytes {
                return Err(IntegrityError::Size { member: member.clone(), expected: record.bytes, found });
            }
            expected.push(&record.blake3);
        }
        for ((member, path), expected) in members.iter().zip(expected) {
            let (found, _) = self.digest(path).map_err(|source| unreadable(path, source))?;
            if found.blake3 != *expected {
                self.forget(path);
                return Err(IntegrityError::Digest { member: member.clone(), expected: expected.clone(), found: found.blake3 });
            }
        }
        Ok(())
    }

    /// Size and digest of a file, from memory when it has been read before; and whether it was read now.
    fn digest(&self, path: &Path) -> io::Result<(MemberIntegrity, bool)> {
        let before = FileIdentity::of(&fs::metadata(path)?);
        if let Some(known) = self.proven.lock().unwrap_or_else(PoisonError::into_inner).get(&before) {
            return Ok((MemberIntegrity { bytes: before.bytes, blake3: known.clone() }, false));
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(fs::File::open(path)?)?;
        let blake3 = hasher.finalize().to_hex().to_string();
        if FileIdentity::of(&fs::metadata(path)?) != before {
            return Err(io::Error::other("the file changed while it was read"));
        }
        self.proven.lock().unwrap_or_else(PoisonError::into_inner).insert(before, blake3.clone());
        Ok((MemberIntegrity { bytes: before.bytes, blake3 }, true))
    }

    fn forget(&self, path: &Path) {
        if let Ok(metadata) = fs::metadata(path) {
            self.proven.lock().unwrap_or_else(PoisonError::into_inner).remove(&FileIdentity::of(&metadata));
        }
    }

    /// Every artifact's id, in no order.
    pub fn ids(&self) -> io::Result<Vec<String>> {
        let mut ids = Vec::new();
        for entry in fs::read_dir(self.root.join("artifacts"))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if !name.starts_with('.') {
                ids.push(name);
            }
        }
        Ok(ids)
    }

    /// Keeps `name` (an artifact, or `layer:<id>`) from being collected until the guard is dropped.
    pub fn pin(&self, name: impl Into<String>) -> Pin {
        let name = name.into();
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        pins.serial += 1;
        let since = pins.serial;
        let pinned = pins.by_name.entry(name.clone()).or_default();
        pinned.count += 1;
        pinned.since = since;
        Pin { name, pins: Arc::clone(&self.pins) }
    }

    /// Everything that nobody uses at this moment.
    pub fn candidates(&self) -> io::Result<Candidates> {
        let (serial, pinned) = {
            let pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
            let pinned: Vec<String> = pins.by_name.iter().filter(|(_, p)| p.count > 0).map(|(name, _)| name.clone()).collect();
            (pins.serial, pinned)
        };
        let mut artifacts = self.ids()?;
        artifacts.retain(|id| !pinned.contains(id));
        let mut layers = Vec::new();
        for entry in fs::read_dir(self.root.join("layers"))? {
            let path = entry?.path();
            if let Some(id) = path.file_stem().map(|stem| stem.to_string_lossy().into_owned())
                && !pinned.contains(&format!("layer:{id}"))
            {
                layers.push(id);
            }
        }
        Ok(Candidates { serial, artifacts, layers })
    }

    /// Removes those candidates that are neither in `keep`, nor needed by one that is, nor used since they were listed.
    /// `keep_layers` are layers of live sandboxes. Returns the artifacts it removed. Blocks.
    pub fn collect(&self, candidates: &Candidates, keep: &[String], keep_layers: &[String]) -> io::Result<Vec<String>> {
        let pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        let used = |name: &str| pins.by_name.get(name).is_some_and(|p| p.count > 0 || p.since > candidates.serial);
        let mut layers: HashSet<String> = keep_layers.iter().cloned().collect();
        let mut live: HashSet<String> = HashSet::new();
        let mut queue: Vec<String> = keep.to_vec();
        queue.extend(self.ids()?.into_iter().filter(|id| used(id) || !candidates.artifacts.contains(id)));
        while let Some(id) = queue.pop() {
            if live.insert(id.clone()) {
                // What cannot be read cannot be followed: then nothing is collected, rather than too much.
                let manifest = self.load(&id).map_err(io::Error::other)?.manifest;
                layers.extend(manifest.disk.layers);
                if let MemoryMember::Diff { base } = manifest.memory {
                    queue.push(base);
                }
            }
        }
        let mut removed = Vec::new();
        for id in candidates.artifacts.iter().filter(|id| !live.contains(*id)) {
            // Renamed first, so that an interrupted removal leaves a draft and not half an artifact.
            let doomed = self.root.join("artifacts").join(format!(".{id}"));
            fs::rename(self.dir(id), &doomed)?;
            fs::remove_dir_all(&doomed)?;
            removed.push(id.clone());
        }
        for id in candidates.layers.iter().filter(|id| !layers.contains(*id) && !used(&format!("layer:{id}"))) {
            fs::remove_file(self.layer(id))?;
        }
        Ok(removed)
    }
}

/// The one field that is read before anything else is believed.
#[derive(Deserialize)]
struct Versioned {
    format: u32,
}

fn unreadable(path: &Path, source: io::Error) -> IntegrityError {
    IntegrityError::Unreadable { path: path.to_owned(), source }
}

fn read_sidecar<T: DeserializeOwned>(path: &Path, version: impl Fn(&Versioned) -> u32) -> Result<T, IntegrityError> {
    let bytes = fs::metadata(path).map_err(|source| unreadable(path, source))?.len();
    if bytes > MAX_SIDECAR_BYTES {
        return Err(unreadable(path, io::Error::new(io::ErrorKind::FileTooLarge, format!("{bytes} bytes"))));
    }
    let text = fs::read(path).map_err(|source| unreadable(path, source))?;
    let malformed = |source| IntegrityError::Malformed { path: path.to_owned(), source };
    let found = version(&serde_json::from_slice(&text).map_err(malformed)?);
    if found != FORMAT {
        return Err(IntegrityError::Format { path: path.to_owned(), found, known: FORMAT });
    }
    serde_json::from_slice(&text).map_err(malformed)
}

fn write_sidecar<T: Serialize>(path: &Path, value: &T) -> Result<(), PublishError> {
    let text = serde_json::to_vec_pretty(value).map_err(PublishError::Serialise)?;
    let write = || -> io::Result<()> {
        let mut file = fs::File::create(path)?;
        io::Write::write_all(&mut file, &text)?;
        file.sync_all()
    };
    write().map_err(|source| PublishError::File { path: path.to_owned(), source })
}

/// Makes a member durable and read-only.
fn seal(path: &Path) -> io::Result<()> {
    let file = fs::File::open(path)?;
    file.sync_all()?;
    freeze(path)
}

/// Takes a file away from the machine that wrote it. Without root, machines are the same user as we are.
fn freeze(path: &Path) -> io::Result<()> {
    if nix::unistd::geteuid().is_root() {
        nix::unistd::chown(path, Some(nix::unistd::Uid::from_raw(0)), Some(nix::unistd::Gid::from_raw(0)))?;
    }
    fs::set_permissions(path, std::fs::Permissions::from_mode(0o444))
}

fn sync_dir(path: &Path) -> io::Result<()> {
    fs::File::open(path)?.sync_all()
}
