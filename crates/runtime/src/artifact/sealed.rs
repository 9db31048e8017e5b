//! Members that are sealed: how a sandbox's files become such ones, and how an engine gets to read them.
//!
//! A sealed member is another file than the plain one would be, by its name, so what a file is follows from where it is and not from
//! what is in it. Digests are those of the sealed file: it is proven, examined and collected like any other, without a key.
//!
//! What is opened for a machine lies in that machine's directory and goes with it, except device state and memory's diff, which are
//! read once: they are opened into memory if there is room, and have no name anywhere.

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Write},
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use firkin_engine::{DiskError, DiskFormat, SnapshotMemory, parts};
use firkin_seal::DataKey;
use fs_err as fs;
use fs_err::os::unix::fs::OpenOptionsExt;

use super::{Artifact, ArtifactDraft, ArtifactStore, MemoryMember, UnsealError, member, memory_base, staging::Room};
use crate::ground::ids::{ArtifactId, LayerId};

/// How names of sealed files end.
pub(super) const SEALED: &str = "sealed";

/// How names of layers' wrapped keys end.
pub(super) const KEY: &str = "key";

/// Bytes that are written at a time.
const BUFFER_BYTES: usize = 1 << 20;

/// What becomes of the files that a cut leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Secrecy {
    /// They stay as they are: a template's, which many share, or this server does not encrypt.
    Plain,
    /// They are sealed.
    Sealed,
}

/// A snapshot as an engine reads it.
#[derive(Debug)]
pub(crate) struct Readable {
    pub(crate) memory: Option<SnapshotMemory>,
    pub(crate) state: PathBuf,
    /// Lowest first.
    pub(crate) layers: Vec<PathBuf>,
    /// Files without a name that these paths lead to, and the room that they are in, as long as this is held.
    _held: Vec<(File, Option<Room>)>,
}

/// The sealed file that stands for the member at `path`.
pub(super) fn sealed_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(SEALED);
    PathBuf::from(name)
}

/// The file of a member: the sealed one if there is one.
pub(super) fn present(path: PathBuf) -> PathBuf {
    let sealed = sealed_path(&path);
    if sealed.exists() { sealed } else { path }
}

fn is_sealed(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == SEALED)
}

pub(super) fn artifact_owner(id: &str) -> String {
    format!("artifact:{id}")
}

pub(super) fn layer_owner(id: &str) -> String {
    format!("layer:{id}")
}

impl Artifact {
    /// Whether it has a member that is sealed.
    pub(crate) fn is_sealed(&self) -> bool {
        self.members().iter().any(|(_, path)| is_sealed(path))
    }
}

impl ArtifactStore {
    /// What becomes of sandboxes' files.
    pub(crate) fn secrecy(&self) -> Secrecy {
        if self.vault.seals() { Secrecy::Sealed } else { Secrecy::Plain }
    }

    /// What becomes of a template's files that stand on these layers: where one is a sandbox's, they are as a sandbox's.
    pub(crate) fn secrecy_over(&self, layers: &[LayerId]) -> Secrecy {
        if layers.iter().any(|id| self.sealed_layer(id).exists()) { self.secrecy() } else { Secrecy::Plain }
    }

    /// The file of a layer: the sealed one if there is one.
    pub(crate) fn layer_file(&self, id: &LayerId) -> PathBuf {
        let sealed = self.sealed_layer(id);
        if sealed.exists() { sealed } else { self.layer(id) }
    }

    pub(super) fn sealed_layer(&self, id: &LayerId) -> PathBuf {
        self.root.join("layers").join(format!("{id}.{SEALED}"))
    }

    pub(super) fn layer_key(&self, id: &LayerId) -> PathBuf {
        self.root.join("layers").join(format!("{id}.{KEY}"))
    }

    /// Takes the file at `path` as layer `id`, as [`ArtifactStore::adopt_layer`] does, in this form.
    pub(crate) fn keep_layer(&self, id: &LayerId, path: &Path, secrecy: Secrecy) -> io::Result<()> {
        match secrecy {
            Secrecy::Plain => self.adopt_layer(id, path),
            Secrecy::Sealed => self.seal_layer(id, path),
        }
    }

    /// The plain file stays until the sealed one has its name, so that whoever is interrupted finds one of them.
    fn seal_layer(&self, id: &LayerId, path: &Path) -> io::Result<()> {
        member::demand(path, false)?;
        member::freeze(path, 0o400)?;
        let (owner, target) = (layer_owner(id.as_str()), self.sealed_layer(id));
        let hidden = self.root.join("layers").join(format!(".{id}.{SEALED}"));
        let seal = || {
            let key = self.vault.new_key(&owner, &self.layer_key(id))?;
            seal_file((&key, &owner), path, &hidden)?;
            member::freeze(&hidden, 0o400)?;
            fs::rename(&hidden, &target)
        };
        if let Err(error) = seal() {
            // On a full disk it must not keep the room from others. What cannot be removed is removed by the next start.
            for undone in [fs::remove_file(&hidden), self.vault.destroy(&self.layer_key(id))] {
                if let Err(error) =
                    undone.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
                {
                    tracing::warn!(layer = %id, %error, "cannot remove what is left of a layer that was not sealed");
                }
            }
            return Err(error);
        }
        fs::remove_file(path)
    }

    /// Seals the members of a draft into its directory, from wherever they are.
    pub(super) fn seal_members(&self, draft: &mut ArtifactDraft, members: &[&str]) -> io::Result<()> {
        draft.pack_where_it_is()?;
        let owner = artifact_owner(draft.id().as_str());
        let key = self.vault.new_key(&owner, &draft.dir().join(KEY))?;
        for name in members {
            let staged = draft.cut_dir().join(name);
            let plain = if staged.exists() { staged } else { draft.dir().join(name) };
            member::demand(&plain, false)?;
            seal_file((&key, &format!("{owner}/{name}")), &plain, &sealed_path(&draft.dir().join(name)))?;
            fs::remove_file(&plain)?;
        }
        draft.leave_memory();
        Ok(())
    }

    /// Every file of a wrapped key, with its owner's name.
    pub(super) fn wrapped_keys(&self) -> io::Result<Vec<(String, PathBuf)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.root.join("artifacts"))? {
            let entry = entry?;
            let path = entry.path().join(KEY);
            if path.exists() {
                // Drafts are sealed before they have their name.
                let name = entry.file_name().to_string_lossy().into_owned();
                found.push((artifact_owner(name.trim_start_matches('.')), path));
            }
        }
        for entry in fs::read_dir(self.root.join("layers"))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == KEY)
                && let Some(id) = path.file_stem()
            {
                found.push((layer_owner(&id.to_string_lossy()), path));
            }
        }
        Ok(found)
    }

    /// Proves that the keys are there for what of `artifact` is sealed.
    pub(crate) fn demand_keys(&self, artifact: &Artifact) -> Result<(), UnsealError> {
        let own = |path: &Path| path.parent() == Some(&self.dir(&artifact.manifest.id));
        if artifact.manifest.is_sealed()
            && let Some((_, path)) = artifact.members().iter().find(|(_, path)| own(path) && !is_sealed(path))
        {
            return Err(UnsealError::Plain { path: path.to_path_buf() });
        }
        for (member, path) in artifact.members().iter().filter(|(_, path)| is_sealed(path)) {
            match member.strip_prefix("layer:").and_then(|id| id.parse().ok()) {
                Some(id) => self.key_of_layer(&id)?,
                None if own(path) => self.key_of_artifact(&artifact.manifest.id)?,
                None => self.key_of_artifact(&memory_base(&artifact.manifest))?,
            };
        }
        Ok(())
    }

    fn key_of_layer(&self, id: &LayerId) -> Result<DataKey, UnsealError> {
        self.vault.key(&layer_owner(id.as_str()), &self.layer_key(id))
    }

    fn key_of_artifact(&self, id: &ArtifactId) -> Result<DataKey, UnsealError> {
        self.vault.key(&artifact_owner(id.as_str()), &self.dir(id).join(KEY))
    }

    /// `artifact` as an engine reads it that works in `dir`. What is sealed is opened, whole, before anybody may use it.
    ///
    /// Blocks, unless nothing is sealed.
    pub(crate) fn readable(&self, artifact: &Artifact, dir: &Path) -> Result<Readable, UnsealError> {
        let layers = self.readable_layers(&artifact.manifest.disk.layers, dir)?;
        let mut held = Vec::new();
        let id = &artifact.manifest.id;
        let (memory, state) = match &artifact.manifest.memory {
            MemoryMember::Absent => (None, artifact.state.clone()),
            MemoryMember::InState => {
                (Some(SnapshotMemory::InState), self.read_once((id, parts::STATE), &artifact.state, dir, &mut held)?)
            }
            MemoryMember::Full | MemoryMember::Diff { .. } => {
                let base = self.readable_memory(&memory_base(&artifact.manifest), &artifact.memory, dir)?;
                let memory = match &artifact.memory_diff {
                    None => SnapshotMemory::Full(base),
                    Some(diff) => {
                        let diff = self.read_once((id, parts::MEMORY_DIFF), diff, dir, &mut held)?;
                        SnapshotMemory::Diff { base, diff }
                    }
                };
                (Some(memory), self.read_once((id, parts::STATE), &artifact.state, dir, &mut held)?)
            }
        };
        Ok(Readable { memory, state, layers, _held: held })
    }

    /// Layers as an engine reads them that works in `dir`.
    pub(crate) fn readable_layers(&self, layers: &[LayerId], dir: &Path) -> Result<Vec<PathBuf>, UnsealError> {
        layers.iter().map(|id| self.readable_layer(id, dir)).collect()
    }

    fn readable_layer(&self, id: &LayerId, dir: &Path) -> Result<PathBuf, UnsealError> {
        let path = self.layer_file(id);
        if !is_sealed(&path) {
            return Ok(path);
        }
        let (key, target) = (self.key_of_layer(id)?, dir.join(format!("below-{id}")));
        open_named((&key, &layer_owner(id.as_str())), &path, &target, 0o400)?;
        Ok(target)
    }

    fn readable_memory(&self, id: &ArtifactId, path: &Path, dir: &Path) -> Result<PathBuf, UnsealError> {
        if !is_sealed(path) {
            return Ok(path.to_owned());
        }
        let (key, target) = (self.key_of_artifact(id)?, dir.join(parts::MEMORY));
        // As a whole memory that was never sealed: an engine opens it anew by its descriptor.
        open_named((&key, &format!("{}/{}", artifact_owner(id.as_str()), parts::MEMORY)), path, &target, 0o444)?;
        Ok(target)
    }

    /// Opens a member of the artifact `id` that is read before its machine starts, into memory if there is room.
    fn read_once(
        &self,
        (id, name): (&ArtifactId, &str),
        path: &Path,
        dir: &Path,
        held: &mut Vec<(File, Option<Room>)>,
    ) -> Result<PathBuf, UnsealError> {
        if !is_sealed(path) {
            return Ok(path.to_owned());
        }
        let key = self.key_of_artifact(id)?;
        let file = |source| UnsealError::File { path: path.to_owned(), source };
        let bytes = fs::metadata(path).map_err(file)?.len();
        let room = self.staging.room(bytes).ok();
        let plain = tempfile::tempfile_in(room.as_ref().map_or(dir, Room::path)).map_err(file)?;
        open_into((&key, &format!("{}/{name}", artifact_owner(id.as_str()))), path, &plain)?;
        let by_descriptor = PathBuf::from(format!("/proc/self/fd/{}", plain.as_raw_fd()));
        held.push((plain, room));
        Ok(by_descriptor)
    }

    /// What the layer `id` lies over by its own word. A sealed one is opened in `dir` for that.
    pub(super) fn below_layer(&self, id: &LayerId, form: &dyn DiskFormat, dir: &Path) -> Result<Option<PathBuf>, DiskError> {
        let path = self.readable_layer(id, dir).map_err(|error| DiskError::Refused(Box::new(error)))?;
        form.below(&path)
    }
}

/// Seals the file `plain` into the new file `sealed`, durable but for its name.
fn seal_file((key, name): (&DataKey, &str), plain: &Path, sealed: &Path) -> io::Result<()> {
    let from = fs::File::open(plain)?;
    let to = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(sealed)?;
    let mut to = BufWriter::with_capacity(BUFFER_BYTES, to);
    firkin_seal::seal(key, name, &mut BufReader::with_capacity(BUFFER_BYTES, from), &mut to)?;
    to.flush()?;
    to.get_ref().sync_all()
}

/// Opens the file `sealed` into the file `target`, which is that of no other.
fn open_named(key: (&DataKey, &str), sealed: &Path, target: &Path, mode: u32) -> Result<(), UnsealError> {
    let file = |source| UnsealError::File { path: target.to_owned(), source };
    if fs::symlink_metadata(target).is_ok_and(|found| found.nlink() == 1) {
        // Opened before, as by a start that failed halfway.
        fs::remove_file(target).map_err(file)?;
    }
    let plain = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(target).map_err(file)?;
    open_into(key, sealed, plain.file())?;
    plain.set_permissions(std::fs::Permissions::from_mode(mode)).map_err(file)
}

fn open_into((key, name): (&DataKey, &str), sealed: &Path, plain: &File) -> Result<(), UnsealError> {
    let mut from = fs::File::open(sealed).map_err(|source| UnsealError::File { path: sealed.to_owned(), source })?;
    let opened = firkin_seal::open(key, name, &mut from, plain);
    opened.map(drop).map_err(|source| UnsealError::Open { path: sealed.to_owned(), source })
}
