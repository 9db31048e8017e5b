//! Volumes: directories that belong to a team and to no sandbox, filled and read through the API.
//!
//! ```text
//!   volumes/<id>/volume.json   name, token, when it was made
//!               /content/      what the user sees
//!               /aside/        uploads under way, and what is being removed
//!               /places        where the entries are that sandboxes know of (SQLite); may be removed while none has it
//! ```
//!
//! A volume appears by the rename of a directory that is whole, and goes by a rename too, so that none is ever half there. The token
//! opens one volume's content and nothing else; whoever has an API key may ask for it.

use std::{
    collections::{HashMap, HashSet},
    io::{self, Read as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, MutexGuard, PoisonError, Weak},
};

use firkin_files::private;
use firkin_share::Share;
use fs_err as fs;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::{
    capacity::{TeamQuotaError, within},
    ground::{
        private::{private_dir, private_file},
        team::{Scope, TeamId},
    },
    host::disk::{DiskPressure, DiskPressureGuard},
};

mod content;
mod room;
#[cfg(test)]
mod shared_tests;
mod usage;

use self::usage::Account;

pub use content::{Attributes, Content, Entry, Kind, MAX_ENTRIES, Upload};

/// Version of `volume.json`.
pub(crate) const FORMAT: u32 = 1;

/// Of a volume's top: for every user of every sandbox that has it. On the host nobody comes there without passing the directory above.
const TOP_MODE: u32 = 0o777;

/// What earlier servers left it at.
const EARLIER_TOP_MODE: u32 = 0o755;

/// The largest `volume.json` that is read.
const MAX_SIDECAR_BYTES: u64 = 4096;

/// Volumes of a server unless it is told otherwise: each is a directory that every list reads.
pub const MAX_VOLUMES: usize = 1000;

/// How much volumes may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VolumeLimits {
    /// The most volumes.
    pub count: usize,
    /// What each may hold, MiB; `None` for a part of the disk, which [`DiskPressureGuard::share`] tells.
    pub quota_mib: Option<u64>,
}

impl Default for VolumeLimits {
    fn default() -> Self {
        Self { count: MAX_VOLUMES, quota_mib: None }
    }
}

/// What one volume holds and may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Bytes that count, unless nobody has counted them yet: each entry's own on the disk, and at least 16 KiB for each.
    pub used_bytes: Option<u64>,
    /// The most.
    pub quota_bytes: u64,
}

/// Bytes of a name.
pub const MAX_NAME_BYTES: usize = 128;

/// Before the id of a directory that is not a volume yet, or not any more.
const UNFINISHED: char = '.';

/// Per cent of its quota from which on a volume is nearly full: while what is left is enough to do something about it.
const NEARLY_FULL_PERCENT: u64 = 90;

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    format: u32,
    /// Its id.
    pub id: String,
    /// Whose it is. Absent in those of earlier servers.
    #[serde(default, skip_serializing_if = "TeamId::is_first")]
    pub owner: TeamId,
    /// Its name, unique in its team.
    pub name: String,
    /// Opens its content.
    pub token: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// Whether its top was ever made writable for all users of sandboxes. Absent in those of earlier servers.
    #[serde(default)]
    has_open_top: bool,
}

/// Why something was not done with a volume.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The name cannot be one.
    #[error("a volume's name has 1 to {MAX_NAME_BYTES} letters, digits, `-` and `_`")]
    Name,
    /// The name is in use.
    #[error("a volume with the name `{0}` exists already")]
    NameTaken(String),
    /// There are too many.
    #[error("cannot keep more than {max} volumes")]
    Limit {
        /// The most.
        max: usize,
    },
    /// The team has as many as it may.
    #[error(transparent)]
    TeamQuota(TeamQuotaError),
    /// It would hold more than it may.
    #[error("cannot write to the volume: it may hold {quota_mib} MiB, and {used_mib} MiB of that are in use")]
    Quota {
        /// In use, by what is there and by uploads under way.
        used_mib: u64,
        /// The most.
        quota_mib: u64,
    },
    /// There is none with this id.
    #[error("volume `{0}` not found")]
    NotFound(String),
    /// Sandboxes have it.
    #[error("volume `{0}` is mounted in a sandbox")]
    Mounted(String),
    /// No token, or one of another volume.
    #[error("the token does not open volume `{0}`")]
    Token(String),
    /// The path cannot be one.
    #[error("the path has at most 4096 bytes, and none of them is NUL")]
    Path,
    /// The mode cannot be one.
    #[error("the mode `{0:o}` is not among 0 to 1777: no program of a volume runs as another user")]
    Mode(u32),
    /// Nothing is there.
    #[error("Path {0} not found")]
    PathNotFound(String),
    /// Something is there.
    #[error("Path {0} already exists")]
    Exists(String),
    /// Something else is there than what is wanted.
    #[error("Path {path} is not a {wanted}")]
    Kind {
        /// Where.
        path: String,
        /// The kind that was expected.
        wanted: &'static str,
    },
    /// A listing would be too long.
    #[error("the directory has more than {MAX_ENTRIES} entries; list it in parts")]
    TooMany,
    /// The disk is nearly full.
    #[error("cannot write to the volume")]
    Disk(#[source] DiskPressure),
    /// A file cannot be used.
    #[error("cannot use `{}`", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// All volumes of a state directory.
#[derive(Debug)]
pub struct Volumes {
    dir: PathBuf,
    disk: DiskPressureGuard,
    limits: VolumeLimits,
    /// Held while a name is looked for and taken.
    naming: Mutex<()>,
    /// What each holds, of those that were asked about.
    accounts: std::sync::Mutex<HashMap<String, Arc<Account>>>,
    /// What is going on with them.
    uses: Arc<std::sync::Mutex<Uses>>,
}

/// Volumes that must stay, and those that are to go.
#[derive(Debug, Default)]
struct Uses {
    /// How often each is held.
    held: HashMap<String, usize>,
    ending: HashSet<String>,
    /// What those share that have it mounted. One for each volume that any has had.
    shares: HashMap<String, Arc<Sharing>>,
}

/// Who shares one volume.
#[derive(Debug, Default)]
struct Sharing {
    /// Held while it is opened, so that it is opened once.
    current: Mutex<Weak<Share>>,
    /// Held until its file of places is closed, which takes as long as the disk does.
    open: Arc<Mutex<()>>,
}

/// Keeps a volume from being ended, for a sandbox that is not on record yet.
#[derive(Debug)]
pub(crate) struct VolumeHold {
    uses: Arc<std::sync::Mutex<Uses>>,
    id: String,
}

impl VolumeHold {
    pub(crate) fn id(&self) -> &str {
        &self.id
    }
}

impl Drop for VolumeHold {
    fn drop(&mut self) {
        let mut uses = locked(&self.uses);
        if let Some(held) = uses.held.get_mut(&self.id) {
            *held -= 1;
            if *held == 0 {
                uses.held.remove(&self.id);
            }
        }
    }
}

/// Keeps new sandboxes from a volume that is to go.
#[derive(Debug)]
pub(crate) struct VolumeEnding<'a> {
    volumes: &'a Volumes,
    id: String,
}

impl Drop for VolumeEnding<'_> {
    fn drop(&mut self) {
        locked(&self.volumes.uses).ending.remove(&self.id);
    }
}

/// All volumes of a server in numbers.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct VolumeFigures {
    pub(crate) count: usize,
    /// What they hold, as far as it is counted.
    pub(crate) used_bytes: u64,
    /// Those that hold [`NEARLY_FULL_PERCENT`] of their quota.
    pub(crate) nearly_full: usize,
}

fn locked(uses: &std::sync::Mutex<Uses>) -> MutexGuard<'_, Uses> {
    // Each holder makes one change, so a poisoned value is a whole one.
    uses.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Volumes {
    /// Those of this directory. Nothing is read yet.
    pub(crate) fn of(state_dir: &Path, disk: DiskPressureGuard, limits: VolumeLimits) -> Self {
        let dir = state_dir.join("volumes");
        Self { dir, disk, limits, naming: Mutex::default(), accounts: std::sync::Mutex::default(), uses: Arc::default() }
    }

    /// Makes an empty volume of a team. Durable when this returns.
    async fn create(&self, (owner, most): (TeamId, Option<u32>), name: &str) -> Result<Volume, VolumeError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if !(1..=MAX_NAME_BYTES).contains(&name.len()) || !name.bytes().all(allowed) {
            return Err(VolumeError::Name);
        }
        self.disk.check().map_err(VolumeError::Disk)?;
        let naming = self.naming.lock().await;
        let existing = self.list(&Scope::Host).await?;
        if existing.iter().any(|volume| volume.owner == owner && volume.name == name) {
            return Err(VolumeError::NameTaken(name.to_owned()));
        }
        let used = existing.iter().filter(|volume| volume.owner == owner).count() as u64;
        within("volumes", most.map(u64::from), used, 1).map_err(VolumeError::TeamQuota)?;
        if existing.len() >= self.limits.count {
            return Err(VolumeError::Limit { max: self.limits.count });
        }
        let volume = Volume {
            format: FORMAT,
            id: crate::ground::random::uuid(),
            owner,
            name: name.to_owned(),
            token: crate::ground::random::hex::<32>(),
            created_at: Timestamp::now(),
            has_open_top: true,
        };
        let (dir, made) = (self.dir.clone(), volume.clone());
        blocking(move || make(&dir, &made)).await?;
        drop(naming);
        // It is one of all from now on. Where the disk cannot be measured, it is from its first use.
        drop(self.account(&volume.id));
        Ok(volume)
    }

    /// Every volume of a scope, oldest first.
    async fn list(&self, scope: &Scope) -> Result<Vec<Volume>, VolumeError> {
        let dir = self.dir.clone();
        let mut volumes = blocking(move || list(&dir)).await?;
        volumes.retain(|volume| scope.sees(&volume.owner));
        Ok(volumes)
    }

    /// One volume, if it is the scope's.
    pub(crate) async fn get(&self, scope: &Scope, id: &str) -> Result<Volume, VolumeError> {
        let (dir, wanted) = (self.dir.clone(), id.to_owned());
        let found = blocking(move || read(&dir, &wanted)).await?;
        if scope.sees(&found.owner) { Ok(found) } else { Err(VolumeError::NotFound(id.to_owned())) }
    }

    /// What a volume holds, as far as that is known, and may hold.
    fn usage(&self, id: &str) -> Result<Usage, VolumeError> {
        let account = self.account(id)?;
        Ok(Usage { used_bytes: account.used(), quota_bytes: account.quota() })
    }

    /// All volumes in numbers.
    pub(crate) fn figures(&self) -> VolumeFigures {
        let accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut figures = VolumeFigures { count: accounts.len(), ..VolumeFigures::default() };
        for account in accounts.values() {
            let used = account.used().unwrap_or(0);
            figures.used_bytes = figures.used_bytes.saturating_add(used);
            figures.nearly_full += usize::from(used.saturating_mul(100) >= account.quota().saturating_mul(NEARLY_FULL_PERCENT));
        }
        figures
    }

    /// Counts what each volume holds, one after the other, so that it is known before somebody asks.
    pub(crate) async fn count_all(&self) -> Result<(), VolumeError> {
        for volume in self.list(&Scope::Host).await? {
            match self.content(&volume.id).await {
                Ok(content) => content.count().await?,
                // It went meanwhile.
                Err(_) if matches!(self.get(&Scope::Host, &volume.id).await, Err(VolumeError::NotFound(_))) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn account(&self, id: &str) -> Result<Arc<Account>, VolumeError> {
        let quota = self.disk.share(self.limits.quota_mib).map_err(VolumeError::Disk)?;
        // Each holder makes one change, so a poisoned map is a whole one.
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Arc::clone(accounts.entry(id.to_owned()).or_insert_with(|| Account::new(quota))))
    }

    async fn content(&self, id: &str) -> Result<Content, VolumeError> {
        let (dir, disk, account) = (self.dir.join(id), self.disk.clone(), self.account(id)?);
        blocking(move || Content::open(&dir, disk, account)).await
    }

    /// Keeps a volume. Refused for one that is being ended.
    pub(crate) fn hold(&self, id: &str) -> Result<VolumeHold, VolumeError> {
        let mut uses = locked(&self.uses);
        if uses.ending.contains(id) {
            return Err(VolumeError::NotFound(id.to_owned()));
        }
        *uses.held.entry(id.to_owned()).or_default() += 1;
        Ok(VolumeHold { uses: Arc::clone(&self.uses), id: id.to_owned() })
    }

    /// Finds a volume and keeps it.
    pub(crate) async fn hold_by_name(&self, scope: &Scope, name: &str) -> Result<VolumeHold, VolumeError> {
        let found = self.list(scope).await?.into_iter().find(|volume| volume.name == name && volume.owner == scope.owner());
        let volume = found.ok_or_else(|| VolumeError::NotFound(name.to_owned()))?;
        let hold = self.hold(&volume.id)?;
        // Looked for before it was held, it may have gone.
        self.get(scope, &volume.id).await?;
        Ok(hold)
    }

    /// What all that have a volume mounted share of it. Waits for who has just closed it; no other volume does.
    pub(crate) async fn share(&self, id: &str) -> Result<Arc<Share>, VolumeError> {
        let volume = self.get(&Scope::Host, id).await?;
        let sharing = Arc::clone(locked(&self.uses).shares.entry(id.to_owned()).or_default());
        let mut current = sharing.current.lock().await;
        if let Some(share) = current.upgrade() {
            return Ok(share);
        }
        let content = self.content(id).await?;
        // Given up by whoever waits for this, the work is done all the same, and gives it back.
        let open = Arc::clone(&sharing.open).lock_owned().await;
        let dir = self.dir.join(id);
        let opened = blocking(move || {
            let file = |source| VolumeError::File { path: dir.clone(), source };
            open_top(&dir, volume).map_err(file)?;
            let share = Arc::new(room::share(content.root(), &dir.join("places"), open).map_err(file)?);
            content.root().account.set_guests(&share);
            Ok(share)
        });
        let share = opened.await?;
        *current = Arc::downgrade(&share);
        Ok(share)
    }

    /// The first half of ending a volume: no sandbox gets it any more. Refused while one is getting it.
    pub(crate) fn begin_end(&self, id: &str) -> Result<VolumeEnding<'_>, VolumeError> {
        let mut uses = locked(&self.uses);
        if uses.held.contains_key(id) {
            return Err(VolumeError::Mounted(id.to_owned()));
        }
        if !uses.ending.insert(id.to_owned()) {
            return Err(VolumeError::NotFound(id.to_owned()));
        }
        Ok(VolumeEnding { volumes: self, id: id.to_owned() })
    }

    /// Ends a volume with everything in it, which no sandbox has. Uploads under way fail.
    pub(crate) async fn destroy(&self, ending: VolumeEnding<'_>) -> Result<(), VolumeError> {
        let id = &ending.id;
        self.get(&Scope::Host, id).await?;
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        locked(&self.uses).shares.remove(id);
        let (dir, id) = (self.dir.clone(), id.clone());
        blocking(move || {
            read(&dir, &id)?;
            let gone = dir.join(format!("{UNFINISHED}{id}"));
            let file = |source| VolumeError::File { path: dir.join(&id), source };
            fs::rename(dir.join(&id), &gone).map_err(file)?;
            sync(&dir)?;
            firkin_files::remove_tree(&gone).map_err(file)
        })
        .await
    }

    /// The content of a volume, for who has its token, whosever it is.
    async fn open(&self, id: &str, token: Option<&str>) -> Result<Content, VolumeError> {
        let refused = || VolumeError::Token(id.to_owned());
        // Whoever has no token is not told which volumes there are.
        let volume = self.get(&Scope::Host, id).await.map_err(|error| match error {
            VolumeError::NotFound(_) => refused(),
            other => other,
        })?;
        let digest = |token: &str| blake3::hash(token.as_bytes());
        // Digests are compared in constant time.
        if token.is_none_or(|token| digest(token) != digest(&volume.token)) {
            return Err(refused());
        }
        self.content(id).await
    }
}

/// The volumes of one team, or of the host.
#[derive(Debug, Clone, Copy)]
pub struct TeamVolumes<'a> {
    pub(crate) volumes: &'a Volumes,
    pub(crate) scope: &'a Scope,
    /// The most volumes that the team may have.
    pub(crate) most: Option<u32>,
}

impl TeamVolumes<'_> {
    /// Makes an empty volume. Durable when this returns.
    pub async fn create(&self, name: &str) -> Result<Volume, VolumeError> {
        self.volumes.create((self.scope.owner(), self.most), name).await
    }

    /// Every volume, oldest first.
    pub async fn list(&self) -> Result<Vec<Volume>, VolumeError> {
        self.volumes.list(self.scope).await
    }

    /// One volume.
    pub async fn get(&self, id: &str) -> Result<Volume, VolumeError> {
        self.volumes.get(self.scope, id).await
    }

    /// What one of these volumes holds, as far as that is known, and may hold.
    pub fn usage(&self, volume: &Volume) -> Result<Usage, VolumeError> {
        self.volumes.usage(&volume.id)
    }

    /// The content of a volume, for who has its token, whosever it is.
    pub async fn open(&self, id: &str, token: Option<&str>) -> Result<Content, VolumeError> {
        self.volumes.open(id, token).await
    }
}

/// Runs file work where it may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, VolumeError> + Send + 'static) -> Result<T, VolumeError> {
    let broken = |error| VolumeError::File { path: PathBuf::from("volumes"), source: io::Error::other(error) };
    tokio::task::spawn_blocking(work).await.map_err(broken)?
}

fn make(dir: &Path, volume: &Volume) -> Result<(), VolumeError> {
    let (draft, target) = (dir.join(format!("{UNFINISHED}{}", volume.id)), dir.join(&volume.id));
    let write = || -> io::Result<()> {
        private_dir(dir)?;
        sweep(dir)?;
        private_dir(&draft)?;
        fs::create_dir(draft.join("content"))?;
        fs::set_permissions(draft.join("content"), std::fs::Permissions::from_mode(TOP_MODE))?;
        private_dir(&draft.join("aside"))?;
        private_file(&draft.join("volume.json"), &serde_json::to_vec(volume)?)?;
        for path in [draft.join("volume.json"), draft.clone()] {
            fs::File::open(path)?.sync_all()?;
        }
        fs::rename(&draft, &target)
    };
    write().map_err(|source| VolumeError::File { path: target.clone(), source })?;
    sync(dir)
}

/// Makes the top of a volume that an earlier server made what those of this one are, once: as its users leave it then, it stays.
fn open_top(dir: &Path, volume: Volume) -> io::Result<()> {
    if volume.has_open_top {
        return Ok(());
    }
    let top = dir.join("content");
    if fs::metadata(&top)?.permissions().mode() & 0o7777 == EARLIER_TOP_MODE {
        fs::set_permissions(&top, std::fs::Permissions::from_mode(TOP_MODE))?;
    }
    let text = serde_json::to_vec(&Volume { has_open_top: true, ..volume })?;
    private::replace(&dir.join("volume.json"), &text, private::PRIVATE)
}

/// Takes away what a crash left of a volume that came or went.
fn sweep(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            firkin_files::remove_tree(&entry.path())?;
        }
    }
    Ok(())
}

fn sync(dir: &Path) -> Result<(), VolumeError> {
    let synced = fs::File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(|source| VolumeError::File { path: dir.to_owned(), source })
}

fn list(dir: &Path) -> Result<Vec<Volume>, VolumeError> {
    let file = |source| VolumeError::File { path: dir.to_owned(), source };
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(file)?,
    };
    let mut volumes = Vec::new();
    for entry in entries {
        let name = entry.map_err(file)?.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(UNFINISHED) {
            continue;
        }
        match read(dir, &name) {
            Ok(volume) => volumes.push(volume),
            // It went while we looked.
            Err(VolumeError::NotFound(_)) => {}
            Err(error) => return Err(error),
        }
    }
    volumes.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
    Ok(volumes)
}

fn read(dir: &Path, id: &str) -> Result<Volume, VolumeError> {
    let absent = || VolumeError::NotFound(id.to_owned());
    // An id is a name of our own making, never a path.
    if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return Err(absent());
    }
    let path = dir.join(id).join("volume.json");
    let file = |source| VolumeError::File { path: path.clone(), source };
    // It may go at any time: what is opened is whole.
    let opened = match fs::File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(absent()),
        opened => opened.map_err(file)?,
    };
    let mut text = Vec::new();
    opened.take(MAX_SIDECAR_BYTES + 1).read_to_end(&mut text).map_err(file)?;
    if text.len() as u64 > MAX_SIDECAR_BYTES {
        return Err(file(io::ErrorKind::InvalidData.into()));
    }
    let volume: Volume = serde_json::from_slice(&text).map_err(|error| file(error.into()))?;
    if volume.format == FORMAT {
        Ok(volume)
    } else {
        Err(file(io::Error::new(io::ErrorKind::InvalidData, format!("format {} is not {FORMAT}", volume.format))))
    }
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, time::Duration};

    use tokio::time::timeout;

    use super::*;
    use crate::host::disk::StatvfsProbe;

    /// On one thread, which nothing may keep.
    #[tokio::test]
    async fn a_volume_is_opened_and_closed_while_all_others_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let disk = DiskPressureGuard::new(dir.path().to_owned(), Some(0), Arc::new(StatvfsProbe));
        let volumes = Volumes::of(dir.path(), disk, VolumeLimits::default());
        let [one, two] = ["one", "two"].map(|name| volumes.create((TeamId::default(), None), name));
        let (one, two) = (one.await.unwrap(), two.await.unwrap());
        let first = volumes.share(&one.id).await.unwrap();
        assert!(Arc::ptr_eq(&first, &volumes.share(&one.id).await.unwrap()));
        drop(first);
        // Whoever comes next finds it closed.
        drop(volumes.share(&one.id).await.unwrap());
        let open = Arc::clone(&locked(&volumes.uses).shares[&one.id].open);
        drop(open.lock_owned().await);

        let places = rusqlite::Connection::open(dir.path().join("volumes").join(&one.id).join("places")).unwrap();
        places.execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE").unwrap();
        {
            let mut opening = pin!(volumes.share(&one.id));
            assert!(timeout(Duration::from_millis(100), &mut opening).await.is_err(), "somebody has its places");
            drop(volumes.hold(&one.id).unwrap());
            volumes.share(&two.id).await.unwrap();
            drop(places);
            opening.await.unwrap();
        }
        // Who gives up leaves nothing behind that keeps the next.
        drop(timeout(Duration::ZERO, volumes.share(&one.id)).await);
        volumes.share(&one.id).await.unwrap();
    }
}
