//! Publication: an artifact is written aside, made durable, and becomes visible by one rename. It is whole or absent.

use std::{
    collections::BTreeMap,
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use firkin_engine::{memory::Captured, parts};
use fs_err as fs;

use super::{
    Artifact, ArtifactStore,
    manifest::{
        FORMAT, INTEGRITY, MANIFEST, MemberIntegrity, MemoryMember, SEALED_FORMAT, SnapshotArtifactIntegrity,
        SnapshotArtifactManifest, write_sidecar,
    },
    member,
    sealed::{Secrecy, present},
    staging::Room,
};
use crate::{
    artifact::{IntegrityError, memory_base},
    ground::ids::{ArtifactId, LayerId},
};

/// Why an artifact could not be published. Nothing of it is visible.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// A file could not be written, synced or renamed.
    #[error("cannot write `{}`", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A member that the artifact would share is damaged.
    #[error("snapshot artifact `{base}`, which it builds on, is not intact")]
    Base {
        /// The artifact whose memory it would share.
        base: ArtifactId,
        /// What is wrong.
        #[source]
        source: IntegrityError,
    },
    /// A member is not what it was to be.
    #[error("a member of the artifact is not what it was said to be")]
    Member(#[source] IntegrityError),
    /// A sidecar does not serialise.
    #[error("cannot serialise a sidecar")]
    Serialise(#[source] serde_json::Error),
}

/// A new artifact that is still invisible. Dropping it removes what was written.
#[derive(Debug)]
pub struct ArtifactDraft {
    id: ArtifactId,
    /// Where its members are written.
    dir: PathBuf,
    published: bool,
    /// Whether it takes the place of a damaged one.
    replaces: bool,
    /// Where they are written first, while a guest waits for it.
    room: Option<Room>,
    /// Its memory, while that is not packed into the member yet.
    captured: Option<Captured>,
    secrecy: Secrecy,
}

impl ArtifactDraft {
    /// The id that it will have.
    pub fn id(&self) -> &ArtifactId {
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
        self.captured = None;
        self.room.take().is_some()
    }

    /// Takes the memory of a cut, which [`ArtifactStore::publish`] packs into the member that it becomes.
    pub(crate) fn keep(&mut self, captured: Option<Captured>) {
        self.captured = captured;
    }

    /// Has it take the place of one of its id that is damaged.
    pub(super) fn replace(&mut self) {
        self.replaces = true;
    }

    /// What becomes of its members, and of the layer that is sealed for it.
    pub(crate) fn secrecy(&self) -> Secrecy {
        self.secrecy
    }

    /// Packs its memory beside what else was written while the guest stood still.
    pub(super) fn pack_where_it_is(&mut self) -> io::Result<()> {
        match self.captured.take() {
            Some(captured) => captured.pack(&self.cut_dir().join(parts::MEMORY_DIFF)).map(drop),
            None => Ok(()),
        }
    }

    /// Puts what was written into memory where members belong.
    fn settle(&mut self, members: &[&str]) -> io::Result<()> {
        if let Some(captured) = self.captured.take() {
            captured.pack(&self.dir.join(parts::MEMORY_DIFF))?;
        }
        if let Some(room) = self.room.take() {
            room.settle(members, &self.dir)?;
        }
        Ok(())
    }
}

impl Drop for ArtifactDraft {
    fn drop(&mut self) {
        if !self.published
            && let Err(error) = firkin_files::remove_tree(&self.dir)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "cannot remove an unpublished artifact");
        }
    }
}

impl ArtifactStore {
    /// Begins a new artifact of what a sandbox holds.
    pub(crate) fn draft_of_sandbox(&self) -> io::Result<ArtifactDraft> {
        self.draft_in(self.secrecy())
    }

    /// Begins a new artifact whose members stay plain: a template's.
    pub fn draft(&self) -> io::Result<ArtifactDraft> {
        self.draft_in(Secrecy::Plain)
    }

    /// Begins a new artifact in this form.
    pub(crate) fn draft_in(&self, secrecy: Secrecy) -> io::Result<ArtifactDraft> {
        self.draft_called(ArtifactId::generate(), secrecy)
    }

    /// Begins an artifact that has an id already: it came from elsewhere.
    pub(super) fn draft_called(&self, id: ArtifactId, secrecy: Secrecy) -> io::Result<ArtifactDraft> {
        // Not the name that an artifact of this id has while it is being collected.
        let dir = self.root.join("artifacts").join(format!(".{id}.new"));
        std::fs::DirBuilder::new().mode(0o700).create(&dir)?;
        Ok(ArtifactDraft { id, dir, published: false, replaces: false, room: None, captured: None, secrecy })
    }

    /// Takes room in memory for a cut into `draft` that may write `expected` bytes of memory. Where there is none, the cut is
    /// written to the disk, which takes longer.
    pub fn stage(&self, draft: &mut ArtifactDraft, expected: u64) {
        let expected = match draft.secrecy {
            Secrecy::Plain => expected,
            // It is packed there, too: it is to reach the disk sealed.
            Secrecy::Sealed => expected.saturating_mul(2),
        };
        match self.staging.room(expected) {
            Ok(room) => draft.room = Some(room),
            Err(reason) => {
                tracing::info!(reason = firkin_causes::chain(&reason), "a cut is written to the disk, not into memory");
            }
        }
    }

    /// Takes the file at `path`, on the same file system, as layer `id`: immutable from now on. Not yet durable;
    /// [`ArtifactStore::publish`] of the artifact that names it makes it so.
    pub fn adopt_layer(&self, id: &LayerId, path: &Path) -> io::Result<()> {
        let form = self.form_of(path);
        let target = self.layer_in(id, form);
        // Out of the machine's reach first: there it could be exchanged between a look and the change.
        fs::rename(path, &target)?;
        let freeze = || {
            member::demand(&target, form.layers_are_directories())?;
            member::freeze(&target, MEMBER)
        };
        freeze().inspect_err(|_| {
            if let Err(error) = member::remove(&target) {
                tracing::warn!(%error, "cannot remove what did not become a layer");
            }
        })
    }

    /// Digests every member, writes both sidecars, syncs all of it and makes the artifact visible.
    ///
    /// Blocks: call it off the asynchronous threads.
    pub fn publish(&self, draft: ArtifactDraft, manifest: SnapshotArtifactManifest) -> Result<Artifact, PublishError> {
        self.publish_expecting(draft, manifest, &BTreeMap::new())
    }

    /// As [`ArtifactStore::publish`], for members of which some are known to be what `expected` says, or are damaged.
    pub(super) fn publish_expecting(
        &self,
        mut draft: ArtifactDraft,
        mut manifest: SnapshotArtifactManifest,
        expected: &BTreeMap<String, MemberIntegrity>,
    ) -> Result<Artifact, PublishError> {
        let file = |path: &Path| {
            let path = path.to_owned();
            move |source| PublishError::File { path, source }
        };
        let own = own_members(&manifest.memory);
        let settled = match draft.secrecy {
            Secrecy::Plain => draft.settle(own),
            Secrecy::Sealed => self.seal_members(&mut draft, own),
        };
        settled.map_err(file(&draft.dir))?;
        manifest.format = if draft.secrecy == Secrecy::Sealed { SEALED_FORMAT } else { FORMAT };
        let mut members = BTreeMap::new();
        for name in own {
            let path = present(draft.dir.join(name));
            seal(&path, mode_of(&path)).map_err(file(&path))?;
            let found = self.proofs.digest(&path).map_err(file(&path))?;
            expected.get(*name).map_or(Ok(()), |expected| expected.matches(name, &found)).map_err(PublishError::Member)?;
            members.insert((*name).to_owned(), found);
        }
        members.extend(self.shared_members(&manifest)?);
        let integrity = SnapshotArtifactIntegrity { format: FORMAT, members };
        write_sidecar(&draft.dir.join(MANIFEST), &manifest)?;
        write_sidecar(&draft.dir.join(INTEGRITY), &integrity)?;
        let layers = self.root.join("layers");
        sync_dir(&layers).map_err(file(&layers))?;
        sync_dir(&draft.dir).map_err(file(&draft.dir))?;
        let target = self.dir(&draft.id);
        {
            let _held = self.vault.hold();
            if draft.replaces {
                self.set_aside(&draft.id).map_err(file(&target))?;
            }
            fs::rename(&draft.dir, &target).map_err(file(&target))?;
        }
        if draft.replaces {
            self.forget_damaged(&draft.id);
        }
        draft.published = true;
        let parent = self.root.join("artifacts");
        sync_dir(&parent).map_err(file(&parent))?;
        // The change time moved with the seal, not with the directory's rename, so what was digested is still proven.
        for name in own {
            let path = present(target.join(name));
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
            let path = self.layer_file(layer);
            if !self.proofs.knows(&path).map_err(file(&path))? {
                // A new one is durable before anything says that it is proven.
                member::sync(&path).map_err(file(&path))?;
            }
            shared.insert(layer.member(), self.proofs.digest(&path).map_err(file(&path))?);
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

/// The files that an artifact with such a memory has to itself.
pub(super) fn own_members(memory: &MemoryMember) -> &'static [&'static str] {
    match memory {
        MemoryMember::Full => &[parts::STATE, parts::MEMORY],
        MemoryMember::Diff { .. } => &[parts::STATE, parts::MEMORY_DIFF],
        MemoryMember::InState => &[parts::STATE],
        MemoryMember::Absent => &[],
    }
}

/// Members and layers are handed to machines as descriptors, and are the server's alone to open.
const MEMBER: u32 = 0o400;
/// Whole memory too, but an engine maps it by opening its descriptor anew (`/proc/self/fd`), for which the kernel asks the file
/// itself whether it may be read. No directory on the way to it can be entered by anybody else.
const WHOLE_MEMORY: u32 = 0o444;

pub(super) fn mode_of(member: &Path) -> u32 {
    if member.ends_with(parts::MEMORY) { WHOLE_MEMORY } else { MEMBER }
}

/// Makes a member durable and read-only.
fn seal(path: &Path, mode: u32) -> io::Result<()> {
    member::demand(path, false)?;
    member::freeze(path, mode)?;
    member::sync(path)
}

pub(super) fn sync_dir(path: &Path) -> io::Result<()> {
    fs::File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use firkin_engine::qcow2::Qcow2;

    use super::*;

    #[test]
    fn only_a_plain_file_of_one_name_becomes_a_layer() {
        let dir = tempfile::tempdir().unwrap();
        let store = ArtifactStore::open(dir.path(), &Qcow2).unwrap();
        let path = |name: &str| dir.path().join(name);
        let named = |id: &str| id.parse::<LayerId>().unwrap();
        fs::write(path("secret"), "of the host").unwrap();
        fs::set_permissions(path("secret"), std::fs::Permissions::from_mode(0o600)).unwrap();

        std::os::unix::fs::symlink(path("secret"), path("link")).unwrap();
        fs::hard_link(path("secret"), path("second")).unwrap();
        nix::unistd::mkfifo(&path("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        for hostile in ["link", "second", "pipe"] {
            store.adopt_layer(&named(hostile), &path(hostile)).unwrap_err();
            assert!(!store.layer(&named(hostile)).exists(), "{hostile}");
        }
        assert_eq!(fs::metadata(path("secret")).unwrap().permissions().mode() & 0o777, 0o600, "nothing of the host was touched");

        fs::write(path("layer"), "x").unwrap();
        store.adopt_layer(&named("layer"), &path("layer")).unwrap();
        assert_eq!(fs::metadata(store.layer(&named("layer"))).unwrap().permissions().mode() & 0o777, 0o400);
    }
}
