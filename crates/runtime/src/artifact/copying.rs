//! What of an artifact is copied off the host, and how what comes back becomes an artifact again.
//!
//! Members are copied as they are on the disk: what is sealed stays sealed, and its digest is that of the sealed file. Which of the two
//! names a member's file had is part of the copy; from there only names are believed that such a member can have.

use std::{
    io,
    path::{Path, PathBuf},
};

use firkin_engine::{formats, parts};
use fs_err as fs;

use super::{
    ArtifactStore, IntegrityError, MemberIntegrity, MemoryMember, PublishError, SnapshotArtifactIntegrity,
    SnapshotArtifactManifest,
    manifest::{INTEGRITY, MANIFEST, write_sidecar},
    member,
    publish::{mode_of, sync_dir},
    sealed::{KEY, SEALED, artifact_owner, layer_owner},
};
use crate::ground::ids::{ArtifactId, LayerId};

/// How the names of members begin that are layers.
const LAYER: &str = "layer:";

/// The longest wrapped key.
const MAX_KEY_BYTES: u64 = 4096;

/// An artifact as it is copied.
#[derive(Debug)]
pub(crate) struct ToCopy {
    pub(crate) manifest: SnapshotArtifactManifest,
    pub(crate) integrity: SnapshotArtifactIntegrity,
    /// Its own members and its layers.
    pub(crate) members: Vec<CopiedMember>,
    /// The image that its disk stands on.
    pub(crate) root: MemberIntegrity,
    /// The wrapped keys of what of it is sealed, by what they open: a copy outlives what it is of, whose key goes with it.
    pub(crate) keys: Vec<(String, String)>,
}

/// One file of it.
#[derive(Debug)]
pub(crate) struct CopiedMember {
    /// As in the integrity record.
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) recorded: MemberIntegrity,
}

/// Why an artifact cannot be copied.
#[derive(Debug, thiserror::Error)]
pub enum NotCopied {
    /// It is damaged.
    #[error(transparent)]
    Damaged(#[from] IntegrityError),
    /// A file of it cannot be read.
    #[error("cannot read `{}`", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its engine keeps layers as directories.
    #[error("its layer `{}` is a directory, and only files are copied", path.display())]
    Directory {
        /// Which one.
        path: PathBuf,
    },
}

impl ArtifactStore {
    /// What a copy of an artifact has. Its root image is read where it has not been before, so that blocks.
    pub(crate) fn to_copy(&self, id: &ArtifactId) -> Result<ToCopy, NotCopied> {
        self.refuse_quarantined(id)?;
        let artifact = self.load(id)?;
        let is_of_base = |name: &str| name == parts::MEMORY && matches!(artifact.manifest.memory, MemoryMember::Diff { .. });
        let mut members = Vec::new();
        for (name, path) in artifact.members().into_iter().filter(|(name, _)| !is_of_base(name)) {
            let recorded = artifact.integrity.members.get(&name).cloned();
            let recorded = recorded.ok_or_else(|| IntegrityError::Unrecorded { member: name.clone() })?;
            if path.is_dir() {
                return Err(NotCopied::Directory { path: path.to_owned() });
            }
            members.push(CopiedMember { name, path: path.to_owned(), recorded });
        }
        let image = &artifact.manifest.disk.rootfs_path;
        let root = self.proofs.digest(image).map_err(|source| NotCopied::File { path: image.clone(), source })?;
        self.proofs.save();
        let own = (artifact_owner(id.as_str()), self.dir(id).join(KEY));
        let layers = artifact.manifest.disk.layers.iter().map(|id| (layer_owner(id.as_str()), self.layer_key(id)));
        let mut keys = Vec::new();
        for (owner, path) in [own].into_iter().chain(layers) {
            let key = read_key(&path).map_err(|source| NotCopied::File { path, source })?;
            keys.extend(key.map(|key| (owner, key)));
        }
        Ok(ToCopy { manifest: artifact.manifest, integrity: artifact.integrity, members, root, keys })
    }

    /// Every wrapped key, by what it opens.
    pub(crate) fn keys_to_copy(&self) -> io::Result<Vec<(String, String)>> {
        let mut keys = Vec::new();
        for (owner, path) in self.wrapped_keys()? {
            // One that is not there has been removed since.
            keys.extend(read_key(&path)?.map(|key| (owner, key)));
        }
        keys.sort();
        Ok(keys)
    }

    /// Where the file of a layer with this name goes; none if no layer of such a name has such a file.
    pub(crate) fn copied_layer(&self, member: &str, file: &str) -> Option<PathBuf> {
        let id: LayerId = member.strip_prefix(LAYER)?.parse().ok()?;
        let extension = file.strip_prefix(id.as_str())?.strip_prefix('.')?;
        let known = extension == SEALED || formats().iter().any(|form| form.extension() == extension);
        known.then(|| self.root.join("layers").join(file))
    }

    /// Puts a file that was fetched where a layer is. It is the store's from then on, and durable.
    pub(crate) fn place_layer(&self, from: &Path, to: &Path) -> io::Result<()> {
        member::freeze(from, 0o400)?;
        member::sync(from)?;
        fs::rename(from, to)?;
        sync_dir(&self.root.join("layers"))
    }

    /// Writes a wrapped key of `owner` where it is looked for. One of nothing that is known here is left out.
    pub(crate) fn place_key(&self, owner: &str, text: &str) -> io::Result<()> {
        let path = match owner.split_once(':') {
            Some(("layer", id)) => id.parse().ok().map(|id: LayerId| self.layer_key(&id)).filter(|_| self.has_whole_layer(id)),
            Some(("artifact", id)) => id.parse().ok().map(|id: ArtifactId| self.dir(&id).join(KEY)),
            Some(_) | None => None,
        };
        match path.filter(|path| path.parent().is_some_and(Path::is_dir)) {
            Some(path) => firkin_files::private::replace(&path, text.as_bytes(), firkin_files::private::PRIVATE),
            None => Ok(()),
        }
    }

    fn has_whole_layer(&self, id: &str) -> bool {
        id.parse::<LayerId>().is_ok_and(|id| self.layer_file(&id).exists())
    }

    /// Makes an artifact of sidecars and of files that were fetched, each with the name that it has: whole or not at all, and durable.
    pub(crate) fn place(
        &self,
        manifest: &SnapshotArtifactManifest,
        integrity: &SnapshotArtifactIntegrity,
        (own, key): (&[(String, PathBuf)], Option<&str>),
    ) -> Result<(), PublishError> {
        let file = |path: &Path| {
            let path = path.to_owned();
            move |source| PublishError::File { path, source }
        };
        let artifacts = self.root.join("artifacts");
        let hidden = artifacts.join(format!(".{}.fetched", manifest.id));
        if hidden.exists() {
            firkin_files::remove_tree(&hidden).map_err(file(&hidden))?;
        }
        crate::ground::private::private_dir(&hidden).map_err(file(&hidden))?;
        for (name, from) in own {
            let to = hidden.join(name);
            fs::rename(from, &to).map_err(file(from))?;
            member::freeze(&to, mode_of(&to)).and_then(|()| member::sync(&to)).map_err(file(&to))?;
        }
        if let Some(key) = key {
            let path = hidden.join(KEY);
            firkin_files::private::replace(&path, key.as_bytes(), firkin_files::private::PRIVATE).map_err(file(&path))?;
        }
        write_sidecar(&hidden.join(MANIFEST), manifest)?;
        write_sidecar(&hidden.join(INTEGRITY), integrity)?;
        sync_dir(&hidden).map_err(file(&hidden))?;
        let target = self.dir(&manifest.id);
        fs::rename(&hidden, &target).map_err(file(&target))?;
        sync_dir(&artifacts).map_err(file(&artifacts))
    }

    /// Whether an artifact is there.
    pub(crate) fn is_there(&self, id: &ArtifactId) -> bool {
        self.dir(id).join(MANIFEST).exists()
    }
}

/// What opens an artifact's own members, by the name that wrapped keys have.
pub(crate) fn key_of(id: &ArtifactId) -> String {
    artifact_owner(id.as_str())
}

fn read_key(path: &Path) -> io::Result<Option<String>> {
    let text = firkin_files::private::read(path, MAX_KEY_BYTES)?;
    text.map(|text| String::from_utf8(text).map_err(io::Error::other)).transpose()
}

/// Whether a member that is an artifact's own can have a file of this name.
pub(crate) fn is_own_file(member: &str, file: &str) -> bool {
    let own = [parts::STATE, parts::MEMORY, parts::MEMORY_DIFF].contains(&member);
    own && (file == member || file.strip_prefix(member).is_some_and(|rest| rest.strip_prefix('.') == Some(SEALED)))
}

/// Whether this member is a layer.
pub(crate) fn is_layer(member: &str) -> bool {
    member.starts_with(LAYER)
}

#[cfg(test)]
mod tests {
    use firkin_engine::qcow2::Qcow2;

    use super::*;

    #[test]
    fn only_names_are_believed_that_such_a_member_has() {
        let dir = tempfile::tempdir().unwrap();
        let store = ArtifactStore::open(dir.path(), &Qcow2).unwrap();
        let layers = dir.path().join("layers");
        for file in ["abc.qcow2", "abc.sealed", "abc.mark"] {
            assert_eq!(store.copied_layer("layer:abc", file), Some(layers.join(file)));
        }
        for (member, file) in [
            ("layer:abc", "other.qcow2"),
            ("layer:abc", "abc.key"),
            ("layer:abc", "abc"),
            ("layer:abc", "abc./../../x.qcow2"),
            ("layer:../abc", "../abc.qcow2"),
            ("abc", "abc.qcow2"),
        ] {
            assert_eq!(store.copied_layer(member, file), None, "{member} {file}");
        }
        for (member, file, own) in [
            ("memory", "memory", true),
            ("memory.diff", "memory.diff.sealed", true),
            ("state", "state.sealed", true),
            ("memory", "memory.diff", false),
            ("state", "manifest.json", false),
            ("manifest.json", "manifest.json", false),
            ("state", "../state", false),
        ] {
            assert_eq!(is_own_file(member, file), own, "{member} {file}");
        }
    }
}
