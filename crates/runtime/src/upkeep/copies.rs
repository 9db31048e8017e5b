//! Copies off the host: what is durable here is copied to a store that others keep, soon after, and what is not there yet is owed.
//!
//! ```text
//!   a pause, a snapshot, a template is on record ──► owed ──► members that the store lacks ──► its sidecars ──► not owed any more
//!                                                                                                   │
//!                                                     the catalogue, if it has changed ◄────────────┘
//! ```
//!
//! There is no list of what is owed that could be lost: it is what records name here and the store does not have, looked up anew each time.
//! One task does all of it, one thing after another, and only where a server was told to; nobody waits for it. A copy goes some days after
//! what it is of has gone here, and nothing goes that a record names.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    io,
    sync::Arc,
    time::Duration,
};

use firkin_causes::chain;
use firkin_copies::{Backoff, Blob, Copies, CopyError, Name, Put, Record};
use tokio::time::{Instant, sleep};

use crate::{
    artifact::{ArtifactStore, CopiedMember, MemberIntegrity, MemoryMember, NotCopied, ToCopy},
    ground::{blocking::blocking, ids::ArtifactId, team::Scope},
    shared::{Shared, config::CopyConfig},
    store::{RecordedPhase, Store, StoreError},
    telemetry::copies::Copying,
};

mod catalogue;
pub(crate) mod clean;
pub(crate) mod records;

use catalogue::Catalogue;
use clean::Going;
use records::{CopiedFile, Files, to_json};

/// Records change without anybody saying so (deadlines, creates): then the catalogue is looked at this often.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// After a failure, twice as long each time.
const FIRST_WAIT: Duration = Duration::from_secs(2);

/// What a store that was away for long waits for at most once it is back.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// Why a round ended before all was done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RoundError {
    #[error(transparent)]
    Copy(#[from] CopyError),
    #[error("cannot read what is on record")]
    Store(#[from] StoreError),
    #[error("cannot use the state directory")]
    File(#[from] io::Error),
    /// Two hosts that copy to one place would remove each other's copies.
    #[error("the copies at that place are those of another state directory; give each its own prefix or directory")]
    Foreign,
}

impl RoundError {
    fn kind(&self) -> &'static str {
        match self {
            Self::Copy(error) => error.kind(),
            Self::Store(_) => "store",
            Self::File(_) => "file",
            Self::Foreign => "foreign",
        }
    }
}

/// Has whatever becomes durable copied, where a store was given. Otherwise nothing.
pub(crate) fn begin(shared: &Arc<Shared>) {
    if let Some((copying, config)) = shared.copying.clone().zip(shared.config.copies.clone()) {
        shared.tasks.spawn(keep(Arc::clone(shared), config, copying));
    }
}

/// Copies whatever becomes durable, until the runtime stops. What it is at then is begun again by the next.
async fn keep(shared: Arc<Shared>, config: CopyConfig, copying: Arc<Copying>) {
    let mut worker = Worker::new(Arc::clone(&shared), config, Arc::clone(&copying));
    let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
    loop {
        let round = tokio::select! {
            round = worker.round() => round,
            () = shared.stopping.cancelled() => return,
        };
        match round {
            Ok(()) => {
                backoff.worked();
                tokio::select! {
                    () = copying.wanted() => {}
                    () = sleep(LOOK_EVERY) => {}
                    () = shared.stopping.cancelled() => return,
                }
            }
            Err(error) => {
                copying.failed(error.kind());
                let wait = backoff.next_wait();
                tracing::warn!(error = chain(&error), again_in_s = wait.as_secs(), "cannot copy off the host what is owed");
                tokio::select! {
                    () = sleep(wait) => {}
                    () = shared.stopping.cancelled() => return,
                }
            }
        }
    }
}

struct Worker {
    shared: Arc<Shared>,
    copies: Copies,
    copying: Arc<Copying>,
    config: CopyConfig,
    /// What the store has whole; absent until it was asked.
    there: Option<HashSet<ArtifactId>>,
    /// What cannot be copied though it is here, which is said once.
    hopeless: HashSet<ArtifactId>,
    catalogue: Catalogue,
    going: Option<Going>,
    cleaned: Option<Instant>,
}

impl Worker {
    fn new(shared: Arc<Shared>, config: CopyConfig, copying: Arc<Copying>) -> Self {
        let copies = config.copies.clone();
        let catalogue = Catalogue::default();
        Self { shared, copies, copying, config, there: None, hopeless: HashSet::new(), catalogue, going: None, cleaned: None }
    }

    /// Copies all that is owed now.
    async fn round(&mut self) -> Result<(), RoundError> {
        // What changes from here on is for the next.
        let changes = self.copying.changes();
        if self.going.is_none() {
            self.going = Some(Going::open(&self.shared.config.state_dir, &self.copies).await?);
        }
        let mut there = match self.there.take() {
            Some(there) => there,
            None => self.copies.artifacts().await?.iter().filter_map(|name| name.as_str().parse().ok()).collect(),
        };
        let copied = self.copy_owed(&mut there).await;
        self.there = Some(there);
        // Also when an artifact could not be copied: then it says what is missing.
        let backed_up = self.catalogue.back_up(&self.shared, &self.copies).await;
        copied?;
        backed_up?;
        self.copying.backed_up();
        self.clean().await?;
        self.copying.settled(changes);
        Ok(())
    }

    async fn copy_owed(&mut self, there: &mut HashSet<ArtifactId>) -> Result<(), RoundError> {
        let mut owed = self.owed(there).await?;
        while let Some((id, bytes)) = owed.first().cloned() {
            self.copying.owe(owed.len(), owed.iter().map(|(_, bytes)| bytes).sum());
            let begun = Instant::now();
            let copied = self.copy(&id).await;
            // It may have been unneeded meanwhile, and was kept for this.
            self.shared.collect_again();
            match copied {
                Ok(stored) => {
                    self.copying.copied(begun.elapsed().as_secs_f64(), stored);
                    tracing::info!(artifact = %id, bytes, stored, seconds = begun.elapsed().as_secs_f64(), "copied off the host");
                    there.insert(id);
                }
                // Collected since.
                Err(_) if !self.shared.artifacts.is_there(&id) => {}
                Err(Uncopied::Copy(error @ (CopyError::Damaged { .. } | CopyError::File { .. }))) => {
                    self.give_up(id, &error, error.kind());
                }
                Err(Uncopied::Copy(error)) => return Err(error.into()),
                Err(Uncopied::Here(error)) => self.give_up(id, &error, "damaged"),
            }
            owed.remove(0);
        }
        self.copying.owe(self.hopeless.len(), 0);
        Ok(())
    }

    /// One that is damaged here must not keep the others from being copied.
    fn give_up(&mut self, id: ArtifactId, error: &(dyn std::error::Error + 'static), kind: &'static str) {
        self.copying.failed(kind);
        tracing::error!(artifact = %id, error = chain(error), "cannot copy this off the host, whatever is done there");
        self.hopeless.insert(id);
    }

    /// What records name and the store lacks, with the bytes of its files; those that others stand on come first.
    async fn owed(&mut self, there: &HashSet<ArtifactId>) -> Result<Vec<(ArtifactId, u64)>, RoundError> {
        let named = named(&self.shared.store).await?;
        self.hopeless.retain(|id| named.contains(id));
        let missing: Vec<ArtifactId> = named.into_iter().collect();
        let (there, hopeless) = (there.clone(), self.hopeless.clone());
        let artifacts = self.shared.artifacts.clone();
        Ok(blocking(move || owed_of(&artifacts, missing, |id| there.contains(id) || hopeless.contains(id))).await)
    }

    /// Copies one artifact: what the store lacks of its members, then what says that it is there. Gives the packed bytes that were sent.
    async fn copy(&self, id: &ArtifactId) -> Result<u64, Uncopied> {
        let _pin = self.shared.artifacts.pin(id);
        let (artifacts, wanted) = (self.shared.artifacts.clone(), id.clone());
        let ToCopy { manifest, integrity, members, root, keys } =
            blocking(move || artifacts.to_copy(&wanted)).await.map_err(|error| Uncopied::Here(Box::new(error)))?;
        let image = manifest.disk.rootfs_path.clone();
        let root = CopiedMember { name: String::new(), path: image, recorded: root };
        let mut files = Files { keys: keys.into_iter().collect(), ..Files::of(copied_file(&root)?) };
        let mut stored = 0;
        for member in members.iter().chain([&root]) {
            let file = copied_file(member)?;
            if let Put::Copied { stored: bytes } = self.copies.put(&file.blob, &member.path).await? {
                stored += bytes;
            }
            if !member.name.is_empty() {
                files.members.insert(member.name.clone(), file);
            }
        }
        let name = name_of(id);
        for (record, text) in [
            (Record::Files(name.clone()), to_json(&files)),
            (Record::Integrity(name.clone()), to_json(&integrity)),
            (Record::Manifest(name), to_json(&manifest)),
        ] {
            self.copies.put_record(&record, text).await?;
        }
        Ok(stored)
    }

    /// Removes copies of what has been gone for long, now and then.
    async fn clean(&mut self) -> Result<(), RoundError> {
        if self.cleaned.is_some_and(|cleaned| cleaned.elapsed() < self.config.clean_every) {
            return Ok(());
        }
        let Some(going) = &mut self.going else { return Ok(()) };
        let gone = going.clean(&self.shared, &self.copies, self.config.keep).await?;
        if let Some(there) = &mut self.there {
            there.retain(|id| !gone.contains(id));
        }
        self.cleaned = Some(Instant::now());
        Ok(())
    }
}

/// Why an artifact was not copied.
enum Uncopied {
    /// Here is why.
    Here(Box<NotCopied>),
    Copy(CopyError),
}

impl From<CopyError> for Uncopied {
    fn from(error: CopyError) -> Self {
        Self::Copy(error)
    }
}

/// Ids of artifacts are names of copies.
pub(crate) fn name_of(id: &ArtifactId) -> Name {
    id.as_str().parse().expect("an id has 1 to 64 letters, digits, `-` and `_`, and so have names")
}

fn blob_of(recorded: &MemberIntegrity, name: &str) -> Result<Blob, CopyError> {
    let damaged = |source: firkin_copies::NameError| CopyError::Damaged { name: name.to_owned(), source: source.into() };
    Ok(Blob { blake3: recorded.blake3.parse().map_err(damaged)?, bytes: recorded.bytes })
}

fn copied_file(member: &CopiedMember) -> Result<CopiedFile, CopyError> {
    let file = member.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(CopiedFile { blob: blob_of(&member.recorded, &member.path.display().to_string())?, file })
}

/// Artifacts that templates, snapshots and paused sandboxes are.
async fn named(store: &Store) -> Result<BTreeSet<ArtifactId>, StoreError> {
    let versions = store.templates(Scope::Host).await?.into_iter().map(|version| version.artifact);
    let sandboxes = store.sandboxes(Scope::Host).await?;
    let paused = sandboxes.into_iter().filter_map(|sandbox| match sandbox.phase {
        RecordedPhase::Paused(held) => Some(held.artifact),
        RecordedPhase::Running { .. } => None,
    });
    Ok(versions.chain(paused).collect())
}

/// Those of `named`, and what they stand on, that are not `settled`.
fn owed_of(artifacts: &ArtifactStore, named: Vec<ArtifactId>, settled: impl Fn(&ArtifactId) -> bool) -> Vec<(ArtifactId, u64)> {
    let mut bytes: HashMap<ArtifactId, u64> = HashMap::new();
    let (mut bases, mut others) = (BTreeSet::new(), Vec::new());
    for id in named {
        // What was collected meanwhile is not owed; what cannot be read is found out by whoever copies it.
        let Ok(artifact) = artifacts.load(&id) else {
            others.push(id);
            continue;
        };
        bytes.insert(id.clone(), artifact.integrity.members.values().map(|member| member.bytes).sum());
        if let MemoryMember::Diff { base } = artifact.manifest.memory {
            bases.insert(base);
        }
        others.push(id);
    }
    others.retain(|id| !bases.contains(id));
    let all = bases.into_iter().chain(others).filter(|id| !settled(id));
    all.map(|id| (bytes.get(&id).copied().unwrap_or(0), id)).map(|(bytes, id)| (id, bytes)).collect()
}
