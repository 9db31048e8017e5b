//! Publication: an artifact is written aside, made durable, and becomes visible by one rename. It is whole or absent.

use std::{
    collections::BTreeMap,
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use firkin_engine::parts;
use fs_err as fs;

use super::{
    Artifact, ArtifactStore,
    manifest::{
        FORMAT, INTEGRITY, MANIFEST, MemberIntegrity, MemoryMember, SnapshotArtifactIntegrity, SnapshotArtifactManifest,
        write_sidecar,
    },
    staging::Room,
};
use crate::{error::PublishError, restore::memory_base};

/// A new artifact that is still invisible. Dropping it removes what was written.
#[derive(Debug)]
pub struct ArtifactDraft {
    id: String,
    /// Where its members are written.
    dir: PathBuf,
    published: bool,
    /// Where they are written first, while a guest waits for it.
    room: Option<Room>,
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

    /// Where to write its members while a guest stands still: in memory if there is room, else [`ArtifactDraft::dir`].
    /// [`ArtifactStore::publish`] puts them where they belong.
    pub fn cut_dir(&self) -> &Path {
        self.room.as_ref().map_or(&self.dir, Room::path)
    }

    /// Gives the room in memory up, with what was written into it. Whether there was any.
    pub fn leave_memory(&mut self) -> bool {
        self.room.take().is_some()
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
    /// Begins a new artifact.
    pub fn draft(&self) -> io::Result<ArtifactDraft> {
        let id = crate::random::alphanumeric(20);
        let dir = self.root.join("artifacts").join(format!(".{id}"));
        fs::create_dir(&dir)?;
        fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o711))?;
        Ok(ArtifactDraft { id, dir, published: false, room: None })
    }

    /// Takes room in memory for a cut into `draft` that may write `expected` bytes of memory. Where there is none, the cut is
    /// written to the disk, which takes longer.
    pub fn stage(&self, draft: &mut ArtifactDraft, expected: u64) {
        match self.staging.room(expected) {
            Ok(room) => draft.room = Some(room),
            Err(reason) => {
                tracing::info!(reason = crate::owner::chain(&reason), "a cut is written to the disk, not into memory");
            }
        }
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
            MemoryMember::Absent => &[],
        };
        if let Some(room) = draft.room.take() {
            room.settle(own, &draft.dir).map_err(file(&draft.dir))?;
        }
        let mut members = BTreeMap::new();
        for name in own {
            let path = draft.dir.join(name);
            seal(&path).map_err(file(&path))?;
            members.insert((*name).to_owned(), self.proofs.digest(&path).map_err(file(&path))?);
        }
        members.extend(self.shared_members(&manifest)?);
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
        for name in own {
            let path = target.join(name);
            self.proofs.digest(&path).map_err(file(&path))?;
        }
        self.proofs.save();
        Ok(self.assemble(manifest, integrity))
    }

    /// Memory and layers that the artifact shares with others. They are recorded as what they were when they were published: a
    /// member that was damaged since must not become what is expected of it.
    fn shared_members(&self, manifest: &SnapshotArtifactManifest) -> Result<BTreeMap<String, MemberIntegrity>, PublishError> {
        let file = |path: &Path| {
            let path = path.to_owned();
            move |source| PublishError::File { path, source }
        };
        let mut shared = BTreeMap::new();
        let mut recorded = BTreeMap::new();
        if let MemoryMember::Diff { base } = &manifest.memory {
            let damaged = |source| PublishError::Base { base: base.clone(), source };
            let base = self.load(base).map_err(damaged)?;
            assert_eq!(base.manifest.memory, MemoryMember::Full, "diffs do not stack: a session's memory is always a whole one");
            recorded = base.integrity.members;
            shared.insert(parts::MEMORY.to_owned(), self.proofs.digest(&base.memory).map_err(file(&base.memory))?);
        }
        for layer in &manifest.disk.layers {
            let path = self.layer(layer);
            if !self.proofs.knows(&path).map_err(file(&path))? {
                // A new one is durable before anything says that it is proven.
                fs::File::open(&path).and_then(|f| f.sync_all()).map_err(file(&path))?;
            }
            shared.insert(format!("layer:{layer}"), self.proofs.digest(&path).map_err(file(&path))?);
        }
        for (name, found) in &shared {
            if let Some(recorded) = recorded.get(name) {
                let judged = recorded.matches(name, found);
                judged.map_err(|source| PublishError::Base { base: memory_base(manifest), source })?;
            }
        }
        Ok(shared)
    }
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
