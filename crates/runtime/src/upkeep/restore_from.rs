//! `firkin restore-from`: a state directory made anew of copies and a backup of the catalogue.
//!
//! ```text
//!   the newest backup ──► what its records name ──► fetched, proven, placed ──► records of what came back ──► firkin.db
//! ```
//!
//! The database comes last and by a rename: until then there is no state directory that a server would serve, and whoever is interrupted
//! begins again with what is not there yet. What is on record and has no copy is lost, and is named; so is what was never paused. A sandbox
//! that had gone on since its last copied pause goes back to that.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    path::{Path, PathBuf},
};

use firkin_causes::chain;
use firkin_copies::{Blob, Copies, CopyError, Name, Record};
use firkin_engine::DiskFormat;
use fs_err as fs;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::copies::{
    clean::take_over,
    name_of,
    records::{Backup, CopiedFile, FORMAT, Files, Installation, KEY_FILES, from_json, to_json},
};
use crate::{
    artifact::{
        ArtifactKind, ArtifactStore, MemoryMember, PublishError, ROOTS, SnapshotArtifactIntegrity, SnapshotArtifactManifest,
        is_layer, is_own_file, key_of,
    },
    ground::{blocking::blocking, ids::ArtifactId, private::private_dir, team::Scope},
    store::{
        CameBack, Held, LostRecord, RecordedPhase, SandboxRecord, Store, StoreError,
        catalog::{Marker, begun},
        spec::{Memory, SandboxId},
        state_dir::{DATABASE, FETCHED, OpenError, RESTORING, end_restoring, prepare_state_dir},
    },
};

/// What came back, and what did not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RestoreReport {
    /// When the backup of the catalogue was taken.
    pub taken_at: Timestamp,
    /// Artifacts that are there again.
    pub artifacts: usize,
    /// Bytes that were fetched for them now, holes included.
    pub bytes: u64,
    /// Sandboxes that are there again, paused.
    pub sandboxes: Vec<RestoredSandbox>,
    /// Templates, snapshots and sandboxes that are on record and did not come back.
    pub lost: Vec<LostRecord>,
    /// Volumes that there were. Their content is not copied.
    pub volumes: Vec<String>,
    /// Keys that were in the state directory and are not here, by the names of their files. They are not copied: put them there before a
    /// server is started on it. One that the operator had elsewhere is given to the server as before.
    pub keys: Vec<String>,
}

/// A sandbox that is there again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RestoredSandbox {
    /// Its id.
    pub id: SandboxId,
    /// When the state was taken that it goes on from.
    pub as_of: Timestamp,
    /// Whether it had gone on since: what it did then is lost.
    pub went_back: bool,
}

/// Why a state directory was not made of copies.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// It is in use, or cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Something is there that would be mixed with what comes back.
    #[error("`{}` is not empty: what comes back goes into a state directory of its own", path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// There is no backup of a catalogue.
    #[error("there is no backup of a catalogue among these copies")]
    NoCatalogue,
    /// The store does not give what it has. What was fetched stays, and another attempt goes on from there.
    #[error("cannot read the copies")]
    Copies(#[from] CopyError),
    /// A file of the state directory cannot be written.
    #[error("cannot write `{}`", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What was fetched cannot be put in its place.
    #[error("cannot put an artifact in its place")]
    Place(#[from] PublishError),
    /// The database cannot be read or written.
    #[error("cannot read the catalogue that was backed up")]
    Store(#[from] StoreError),
}

/// Which backup is restored: another attempt goes on with the same.
#[derive(Debug, Serialize, Deserialize)]
struct Restoring {
    format: u32,
    catalogue: String,
}

/// Makes the state directory `state_dir`, where there is none, of `copies`. `tell` hears what is being done.
pub async fn restore_from(
    copies: &Copies,
    state_dir: &Path,
    disks: &'static dyn DiskFormat,
    tell: &(dyn Fn(&str) + Sync),
) -> Result<RestoreReport, RestoreError> {
    let fresh = demand_empty(state_dir)?;
    let _lock = prepare_state_dir(state_dir)?;
    let failed = |source| RestoreError::File { path: state_dir.to_owned(), source };
    // Manifests have it in them, and servers know it by this path.
    let state_dir = &*fs::canonicalize(state_dir).map_err(failed)?;
    let failed = |source| RestoreError::File { path: state_dir.to_owned(), source };
    for dir in [FETCHED, ROOTS] {
        private_dir(&state_dir.join(dir)).map_err(failed)?;
    }
    let name = which(copies, state_dir, fresh).await?;
    let record = Record::Catalogue(name);
    let backup: Backup = from_json(&record, &copies.record(&record).await?)?;
    tell(&format!("the catalogue of {}", backup.taken_at));
    let installation: Installation = from_json(&Record::Installation, &copies.record(&Record::Installation).await?)?;
    let artifacts = ArtifactStore::open(state_dir, disks).map_err(failed)?;
    let mut restorer = Restorer { copies, state_dir, artifacts, tell, came: HashMap::new(), bytes: 0 };
    let fetched = restorer.fetch(&backup.database).await?;
    // What is fetched stays as it is, for another attempt.
    let database = state_dir.join(FETCHED).join(DATABASE);
    // The log of an attempt that was killed would be taken for this one's, and what that had removed would be lost without a word.
    for log in ["firkin.db-wal", "firkin.db-shm"] {
        match fs::remove_file(state_dir.join(FETCHED).join(log)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            Ok(()) | Err(_) => {}
        }
    }
    fs::copy(&fetched, &database).map_err(failed)?;
    let store = Store::open(&database).await?;
    let restored = restorer.all(&store).await;
    let (came, mut report) = match restored {
        Ok(restored) => restored,
        Err(error) => {
            store.close().await?;
            return Err(error);
        }
    };
    let kept = store.keep_what_came_back(came).await;
    store.close().await?;
    kept?;
    restorer.keys_and_secrets(&backup, &mut report).await?;
    report.taken_at = backup.taken_at;
    report.volumes.clone_from(&backup.volumes);
    take_over(state_dir, &installation).map_err(failed)?;
    finish(state_dir, &database).map_err(failed)?;
    Ok(report)
}

/// Refuses a directory that somebody uses, or has used. Whether nothing has been begun in it.
fn demand_empty(state_dir: &Path) -> Result<bool, RestoreError> {
    let not_empty = || Err(RestoreError::NotEmpty { path: state_dir.to_owned() });
    if state_dir.join(DATABASE).exists() || begun(Marker::read(state_dir)?.as_ref()).is_some() {
        return not_empty();
    }
    if state_dir.join(RESTORING).exists() {
        return Ok(false);
    }
    for dir in ["artifacts", "layers", "volumes", FETCHED, ROOTS] {
        let path = state_dir.join(dir);
        match fs::read_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(RestoreError::File { path, source }),
            Ok(mut entries) => {
                if entries.next().is_some() {
                    return not_empty();
                }
            }
        }
    }
    Ok(true)
}

/// The backup that was begun with, else the newest.
async fn which(copies: &Copies, state_dir: &Path, fresh: bool) -> Result<Name, RestoreError> {
    let path = state_dir.join(RESTORING);
    let failed = |source| RestoreError::File { path: path.clone(), source };
    if !fresh && let Some(text) = firkin_files::private::read(&path, 4096).map_err(failed)? {
        let begun: Restoring = from_json(&Record::Installation, &text)?;
        let name = begun.catalogue.parse().ok();
        return name.ok_or_else(|| failed(io::ErrorKind::InvalidData.into()));
    }
    let newest = copies.catalogues().await?.pop().ok_or(RestoreError::NoCatalogue)?;
    let begun = Restoring { format: FORMAT, catalogue: newest.to_string() };
    firkin_files::private::replace(&path, &to_json(&begun), firkin_files::private::PRIVATE).map_err(failed)?;
    Ok(newest)
}

/// From here on it is a state directory like any other.
fn finish(state_dir: &Path, database: &Path) -> io::Result<()> {
    fs::File::open(database)?.sync_all()?;
    fs::rename(database, state_dir.join(DATABASE))?;
    fs::File::open(state_dir)?.sync_all()?;
    end_restoring(state_dir)
}

struct Restorer<'a> {
    copies: &'a Copies,
    state_dir: &'a Path,
    artifacts: ArtifactStore,
    tell: &'a (dyn Fn(&str) + Sync),
    /// What became of each artifact that was wanted: why it did not come back, if it did not.
    came: HashMap<ArtifactId, Option<String>>,
    bytes: u64,
}

impl Restorer<'_> {
    /// Fetches what is on record.
    async fn all(&mut self, store: &Store) -> Result<(CameBack, RestoreReport), RestoreError> {
        let versions = store.templates(Scope::Host).await?;
        let sandboxes = store.sandboxes(Scope::Host).await?;
        let mut came = CameBack::default();
        let mut report = RestoreReport {
            taken_at: Timestamp::now(),
            artifacts: 0,
            bytes: 0,
            sandboxes: Vec::new(),
            lost: Vec::new(),
            volumes: Vec::new(),
            keys: Vec::new(),
        };
        for version in &versions {
            if let Some(why) = self.bring(&version.artifact).await? {
                report.lost.push(LostRecord::version(version, why));
            }
        }
        let mut pauses = None;
        for record in &sandboxes {
            match self.sandbox(record, &mut pauses).await? {
                Ok((held, restored)) => {
                    came.sandboxes.push((record.id.clone(), held));
                    report.sandboxes.push(restored);
                }
                Err(why) => report.lost.push(LostRecord::sandbox(&record.id, why)),
            }
        }
        came.artifacts = self.came.iter().filter(|(_, why)| why.is_none()).map(|(id, _)| id.clone()).collect();
        (report.artifacts, report.bytes) = (came.artifacts.len(), self.bytes);
        Ok((came, report))
    }

    /// The state that a sandbox goes on from: that on record, else its newest pause among the copies. `pauses` is made when it is needed.
    async fn sandbox(
        &mut self,
        record: &SandboxRecord,
        pauses: &mut Option<Pauses>,
    ) -> Result<Result<(Held, RestoredSandbox), String>, RestoreError> {
        let mut why = "it was running, and no pause of it was copied".to_owned();
        if let RecordedPhase::Paused(held) = &record.phase {
            match self.bring(&held.artifact).await? {
                None => {
                    let as_of = self.manifest_here(&held.artifact)?.created_at;
                    let restored = RestoredSandbox { id: record.id.clone(), as_of, went_back: false };
                    return Ok(Ok((held.clone(), restored)));
                }
                Some(reason) => why = reason,
            }
        }
        let pauses = match pauses {
            Some(pauses) => pauses,
            None => pauses.insert(self.pauses().await?),
        };
        for manifest in pauses.get(record.id.as_str()).into_iter().flatten() {
            if self.bring(&manifest.id).await?.is_none() {
                let memory = if manifest.memory == MemoryMember::Absent { Memory::Dropped } else { Memory::Kept };
                let held = Held { artifact: manifest.id.clone(), epoch: Some(manifest.epoch), memory };
                let restored = RestoredSandbox { id: record.id.clone(), as_of: manifest.created_at, went_back: true };
                return Ok(Ok((held, restored)));
            }
        }
        Ok(Err(why))
    }

    /// The pauses among the copies, by sandbox, the newest first. Those that cannot be read are none.
    async fn pauses(&self) -> Result<Pauses, RestoreError> {
        let mut pauses = Pauses::new();
        for name in self.copies.artifacts().await? {
            let Ok(id) = name.as_str().parse() else { continue };
            match self.sidecars(&id).await {
                Ok((manifest, ..)) if manifest.kind == ArtifactKind::Pause => {
                    pauses.entry(manifest.logical_id.clone()).or_default().push(manifest);
                }
                Err(error) if !lost(&error) => return Err(error.into()),
                Ok(_) | Err(_) => {}
            }
        }
        for of_one in pauses.values_mut() {
            of_one.sort_by_key(|pause| std::cmp::Reverse((pause.epoch, pause.created_at)));
        }
        Ok(pauses)
    }

    fn manifest_here(&self, id: &ArtifactId) -> Result<SnapshotArtifactManifest, RestoreError> {
        let here = self
            .artifacts
            .load(id)
            .map_err(|error| RestoreError::File { path: self.artifacts.dir(id), source: io::Error::other(chain(&error)) })?;
        Ok(here.manifest)
    }

    /// Fetches an artifact with all that it stands on. Gives why it is lost, if it is; what merely cannot be read now is an error.
    async fn bring(&mut self, id: &ArtifactId) -> Result<Option<String>, RestoreError> {
        if let Some(known) = self.came.get(id) {
            return Ok(known.clone());
        }
        let brought = Box::pin(self.try_bring(id)).await;
        let why = match brought {
            Ok(why) => why,
            Err(RestoreError::Copies(error)) if lost(&error) => Some(chain(&error)),
            Err(error) => return Err(error),
        };
        self.came.insert(id.clone(), why.clone());
        Ok(why)
    }

    async fn try_bring(&mut self, id: &ArtifactId) -> Result<Option<String>, RestoreError> {
        let (mut manifest, integrity, files) = match self.sidecars(id).await {
            Err(CopyError::Absent { .. }) => return Ok(Some("it was not copied".to_owned())),
            sidecars => sidecars?,
        };
        if let MemoryMember::Diff { base } = manifest.memory.clone()
            && let Some(why) = self.bring(&base).await?
        {
            return Ok(Some(format!("it stands on artifact `{base}`: {why}")));
        }
        if self.artifacts.is_there(id) {
            return Ok(None);
        }
        (self.tell)(&format!("artifact {id} of {}", manifest.logical_id));
        let mut own = Vec::new();
        for (member, file) in &files.members {
            let expected = integrity.members.get(member);
            let is_recorded = expected
                .is_some_and(|recorded| recorded.bytes == file.blob.bytes && recorded.blake3 == file.blob.blake3.to_string());
            if !is_recorded {
                return Ok(Some(format!("its member `{member}` is not what was recorded")));
            }
            if is_own_file(member, &file.file) {
                own.push((file.file.clone(), file.blob));
            } else if let Some(to) = self.artifacts.copied_layer(member, &file.file) {
                self.layer(&file.blob, &to).await?;
                if let Some(key) = files.keys.get(member) {
                    self.artifacts.place_key(member, key).map_err(|source| RestoreError::File { path: to, source })?;
                }
            } else {
                return Ok(Some(format!("its member `{member}` has a file of another's name")));
            }
        }
        if let Some(lacking) = lacking(&manifest, &files) {
            return Ok(Some(format!("its copy has no `{lacking}`")));
        }
        manifest.disk.rootfs_path = self.root(&files.root).await?;
        let mut fetched = Vec::new();
        for (name, blob) in own {
            fetched.push((name, self.fetch(&blob).await?));
        }
        let (artifacts, key) = (self.artifacts.clone(), files.keys.get(&key_of(id)).cloned());
        blocking(move || artifacts.place(&manifest, &integrity, (&fetched, key.as_deref()))).await?;
        Ok(None)
    }

    /// What says what an artifact is. That of another is damaged.
    async fn sidecars(&self, id: &ArtifactId) -> Result<Sidecars, CopyError> {
        let name = name_of(id);
        let manifest = Record::Manifest(name.clone());
        let manifest: SnapshotArtifactManifest = parsed(&manifest, &self.copies.record(&manifest).await?)?;
        if manifest.id != *id {
            let source = io::Error::other(format!("it is the manifest of `{}`", manifest.id));
            return Err(CopyError::Damaged { name: id.to_string(), source: firkin_copies::Damage::Packing(source) });
        }
        let integrity = Record::Integrity(name.clone());
        let integrity = parsed(&integrity, &self.copies.record(&integrity).await?)?;
        let files = Record::Files(name);
        let files = from_json(&files, &self.copies.record(&files).await?)?;
        Ok((manifest, integrity, files))
    }

    async fn layer(&mut self, blob: &Blob, to: &Path) -> Result<(), RestoreError> {
        // It has its name when it is right. Others may stand on it too.
        if to.exists() {
            return Ok(());
        }
        let from = self.fetch(blob).await?;
        let (artifacts, to) = (self.artifacts.clone(), to.to_owned());
        let place = move || artifacts.place_layer(&from, &to).map_err(|source| RestoreError::File { path: to, source });
        blocking(place).await
    }

    /// The root image, in a place of this state directory, by what is in it.
    async fn root(&mut self, root: &CopiedFile) -> Result<PathBuf, RestoreError> {
        use std::os::unix::fs::PermissionsExt as _;
        // Beside those of archives, which are called by what they carry of an image and not by its whole file.
        let place = self.state_dir.join(ROOTS).join(root.blob.blake3.to_string());
        let to = place.join(if root.file.ends_with(".erofs") { "rootfs.erofs" } else { "rootfs.ext4" });
        if !to.exists() {
            let from = self.fetch(&root.blob).await?;
            private_dir(&place).map_err(|source| RestoreError::File { path: place, source })?;
            // As in the cache: machines of other users are handed it, open.
            let placed = fs::set_permissions(&from, std::fs::Permissions::from_mode(0o444)).and_then(|()| fs::rename(&from, &to));
            placed.map_err(|source| RestoreError::File { path: to.clone(), source })?;
        }
        Ok(to)
    }

    /// A file that is what it must be: fetched now, or by an earlier attempt.
    async fn fetch(&mut self, blob: &Blob) -> Result<PathBuf, RestoreError> {
        let path = self.state_dir.join(FETCHED).join(blob.blake3.to_string());
        if fs::metadata(&path).is_ok_and(|found| found.len() == blob.bytes) {
            return Ok(path);
        }
        self.copies.get(blob, &path).await?;
        self.bytes += blob.bytes;
        Ok(path)
    }

    /// Puts back what is sealed, and says which keys are not here.
    async fn keys_and_secrets(&mut self, backup: &Backup, report: &mut RestoreReport) -> Result<(), RestoreError> {
        let state_dir = self.state_dir;
        let failed = |source| RestoreError::File { path: state_dir.to_owned(), source };
        if let Some(secrets) = &backup.secrets {
            let from = self.fetch(secrets).await?;
            fs::rename(&from, state_dir.join("secrets")).map_err(failed)?;
        }
        if let Some(keys) = &backup.keys {
            let text = fs::read(self.fetch(keys).await?).map_err(failed)?;
            let keys: BTreeMap<String, String> = serde_json::from_slice::<Vec<(String, String)>>(&text)
                .map_err(|error| failed(error.into()))?
                .into_iter()
                .collect();
            for (owner, text) in keys {
                self.artifacts.place_key(&owner, &text).map_err(failed)?;
            }
        }
        // What the backup says of them is believed as far as they are such names.
        let had = KEY_FILES.into_iter().filter(|name| backup.key_files.iter().any(|had| had == name));
        report.keys = had.filter(|name| !state_dir.join(name).exists()).map(str::to_owned).collect();
        Ok(())
    }
}

type Sidecars = (SnapshotArtifactManifest, SnapshotArtifactIntegrity, Files);

type Pauses = HashMap<String, Vec<SnapshotArtifactManifest>>;

/// What another attempt would find as it is.
fn lost(error: &CopyError) -> bool {
    matches!(error, CopyError::Absent { .. } | CopyError::Damaged { .. })
}

/// A sidecar, which has formats of its own.
fn parsed<T: serde::de::DeserializeOwned>(record: &Record, text: &[u8]) -> Result<T, CopyError> {
    crate::artifact::parse_sidecar(&PathBuf::from(format!("{record:?}")), text).map_err(|error| {
        let source = firkin_copies::Damage::Packing(io::Error::other(chain(&error)));
        CopyError::Damaged { name: format!("{record:?}"), source }
    })
}

/// A member that an artifact must have and its copy has not.
fn lacking(manifest: &SnapshotArtifactManifest, files: &Files) -> Option<String> {
    use firkin_engine::parts;
    let own: &[&str] = match manifest.memory {
        MemoryMember::Full => &[parts::STATE, parts::MEMORY],
        MemoryMember::Diff { .. } => &[parts::STATE, parts::MEMORY_DIFF],
        MemoryMember::InState => &[parts::STATE],
        MemoryMember::Absent => &[],
    };
    let layers: HashSet<&str> = files.members.keys().filter_map(|name| is_layer(name).then_some(name.as_str())).collect();
    let own = own.iter().find(|name| !files.members.contains_key(**name)).map(|name| (*name).to_owned());
    let mut of_disk = manifest.disk.layers.iter().map(crate::ground::ids::LayerId::member);
    own.or_else(|| of_disk.find(|name| !layers.contains(name.as_str())))
}
