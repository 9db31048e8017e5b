//! The runtime's face for what moves between hosts: templates, snapshots and paused sandboxes leave as one stream, and come as one.
//!
//! What leaves stays: the archive is a copy. A sandbox that was taken in elsewhere is two sandboxes of one id from then on, each with the
//! same tokens, and only whoever moved it knows which is to go on.
//!
//! What comes takes nothing from anybody: ids and names that are in use here are refused before anything is written. It is on record when
//! all of it is on the disk, or not at all.

use std::{
    collections::{HashMap, HashSet},
    io,
};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream::BoxStream};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    artifact::{
        MemoryMember,
        archive::{ArchiveHeader, ArchiveKind, Blocking, Content, PackError, Packing, UnpackError, Unpacked, written},
    },
    ground::{
        blocking::{blocking, whole},
        ids::{ArtifactId, BuildId, TemplateId},
        reference::{InvalidReference, NoTemplate, Reference, Sought, with_team},
    },
    host::disk::DiskPressure,
    restore::SnapshotRestoreError,
    runtime::Runtime,
    sandbox::{
        mounts::{self, MountsError},
        owner::{Owner, gone},
    },
    start::fetching,
    storage::volumes::VolumeHold,
    store::{
        Held, Place, RecordedPhase, SandboxRecord, Setup, StoreError, TemplateRecord,
        spec::{NoSuchSandbox, SandboxId},
    },
    telemetry::changes::TemplateEvent,
    upkeep::{disk_budget, sandbox_quota},
};

/// What is to leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leaving {
    /// A version of a template, by name or id.
    Template(String),
    /// A snapshot, likewise.
    Snapshot(String),
    /// A paused sandbox.
    Sandbox(SandboxId),
}

/// Why nothing was exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// No template or snapshot by that name or id.
    #[error(transparent)]
    NoTemplate(#[from] NoTemplate),
    /// No such sandbox.
    #[error(transparent)]
    NoSandbox(#[from] NoSuchSandbox),
    /// No such artifact.
    #[error("snapshot artifact `{0}` not found")]
    NoArtifact(ArtifactId),
    /// It runs: what it holds changes.
    #[error("sandbox `{0}` runs; pause it first")]
    Running(SandboxId),
    /// It cannot be packed.
    #[error("cannot export `{name}`")]
    Pack {
        /// What.
        name: String,
        /// Why.
        #[source]
        source: PackError,
    },
    /// The store failed.
    #[error("cannot read what is to be exported")]
    Store(#[from] StoreError),
}

/// What is about to leave, kept from collection. Nothing of it is read before somebody asks for it.
#[derive(Debug)]
pub struct Export {
    /// What it is called, with letters, digits, `-`, `_` and `.` alone: for the name of a file.
    pub name: String,
    packing: Packing,
}

impl Export {
    /// What the archive says of itself, as JSON.
    pub fn header(&self) -> Bytes {
        serde_json::to_vec(self.packing.header()).expect("a header has no maps with keys that are not texts").into()
    }

    /// Without the contents of these digests (BLAKE3, hexadecimal), for somebody who has them. Others are passed over.
    #[must_use]
    pub fn without(self, digests: &HashSet<String>) -> Self {
        Self { packing: self.packing.without(digests), ..self }
    }

    /// With the contents of these digests from such a byte on, for somebody who has what is before that. Others are passed over.
    #[must_use]
    pub fn from(self, begun: HashMap<String, u64>) -> Self {
        Self { packing: self.packing.from(begun), ..self }
    }

    /// What follows the header, in its order. It is kept from collection as long as this is.
    pub fn contents(&self) -> impl Iterator<Item = Content> {
        self.packing.contents()
    }

    /// The archive. An error in it is its last part: what was taken until then is no archive.
    pub fn stream(self) -> impl Stream<Item = io::Result<Bytes>> + Send {
        written(self.name, self.packing)
    }
}

/// Why nothing was imported. Nothing of it is visible.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The name that it is to have is malformed.
    #[error(transparent)]
    InvalidName(#[from] InvalidReference),
    /// It is of something else than what is wanted.
    #[error("the archive is of a {found}, not of a {wanted}")]
    Kind {
        /// What it is of.
        found: ArchiveKind,
        /// What is wanted.
        wanted: ArchiveKind,
    },
    /// It is of nothing that could be on record: hosts bring artifacts to each other so.
    #[error("the archive is of an artifact, and not of what stands on it")]
    Artifact,
    /// A sandbox has no name to be given.
    #[error("a sandbox keeps its id, and is given no name")]
    Unnameable,
    /// The archive is damaged, foreign, cut off, or of something that is another here.
    #[error("cannot import the archive")]
    Unpack(#[from] UnpackError),
    /// Its record is none of what it says that it is of.
    #[error("the record in the archive is not that of a {kind}")]
    Record {
        /// What it is of.
        kind: &'static str,
        /// What is wrong, if it can be read.
        #[source]
        source: Option<serde_json::Error>,
    },
    /// What it needs is not what this host has.
    #[error("what is in the archive cannot be restored on this host")]
    Incompatible(#[source] Box<SnapshotRestoreError>),
    /// It has volumes that this host has not.
    #[error("the sandbox in the archive cannot have its volumes on this host")]
    Volumes(#[from] MountsError),
    /// The server ends before all of it has come.
    #[error("the server is stopping")]
    Stopping,
    /// Its name or id is in use.
    #[error("{0} is here already, and is another than that of the archive")]
    Taken(String),
    /// The disk has no room for it.
    #[error("the disk has no room for the archive")]
    Disk(#[from] DiskPressure),
    /// The store failed.
    #[error("cannot record what was imported")]
    Store(#[from] StoreError),
}

/// As what an archive is to be taken in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImportAs {
    /// Only if it is of this.
    pub kind: Option<ArchiveKind>,
    /// The name of a template or a snapshot, instead of its own.
    pub name: Option<String>,
}

/// What came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Imported {
    /// What it is.
    pub kind: ArchiveKind,
    /// Its id: that of a template, of a snapshot or of a sandbox.
    pub id: String,
    /// Its names, if it has any.
    pub names: Vec<String>,
    /// Its artifact.
    pub artifact: ArtifactId,
    /// Whether all of it was here before. Nothing has changed then.
    pub was_here: bool,
    /// Bytes that were written for it, holes included.
    pub bytes: u64,
}

/// The record of what comes, read.
enum Coming {
    Template(Box<TemplateRecord>),
    /// With its volumes, which stay until it is on record.
    Sandbox(Box<SandboxRecord>, Held, Vec<VolumeHold>),
}

impl Runtime {
    /// Has something ready to leave. It stays here as it is.
    pub async fn export(&self, what: Leaving) -> Result<Export, ExportError> {
        match what {
            Leaving::Template(reference) => self.export_template(&reference, ArchiveKind::Template).await,
            Leaving::Snapshot(reference) => self.export_template(&reference, ArchiveKind::Snapshot).await,
            Leaving::Sandbox(id) => self.export_sandbox(id).await,
        }
    }

    /// Has an artifact ready to leave, whatever stands on it: for another host of the same operator, which has the record already.
    pub async fn export_artifact(&self, id: &ArtifactId) -> Result<Export, ExportError> {
        if !self.shared.artifacts.is_here(id) {
            return Err(ExportError::NoArtifact(id.clone()));
        }
        self.pack(id.to_string(), id, ArchiveKind::Artifact, &()).await
    }

    async fn export_template(&self, reference: &str, kind: ArchiveKind) -> Result<Export, ExportError> {
        let sought = Sought::wanted(reference)?;
        let found = self.shared.store.template(self.scope.clone(), sought).await?;
        let record = NoTemplate::unless_found(reference, found)?;
        if record.snapshot_of.is_some() != (kind == ArchiveKind::Snapshot) {
            return Err(NoTemplate::Absent(reference.to_owned()).into());
        }
        let name = record.names.first().map_or_else(|| record.id.to_string(), |name| name.to_string().replace(':', "-"));
        // A version that is deleted from here on is packed, or refused as not there.
        self.pack(name, &record.artifact, kind, &record).await
    }

    async fn export_sandbox(&self, id: SandboxId) -> Result<Export, ExportError> {
        // What it held when it was looked for may be gone by the time that it is kept.
        let mut before = None;
        loop {
            let records = self.shared.store.sandboxes(self.scope.clone()).await?;
            let record = records.into_iter().find(|record| record.id == id).ok_or_else(|| gone(&id))?;
            let RecordedPhase::Paused(held) = &record.phase else { return Err(ExportError::Running(id)) };
            let artifact = held.artifact.clone();
            if let Some((kept, _pin)) = &before
                && *kept == artifact
            {
                return self.pack(id.to_string(), &artifact, ArchiveKind::Sandbox, &record).await;
            }
            before = Some((artifact.clone(), self.shared.artifacts.pin(&artifact)));
        }
    }

    async fn pack(
        &self,
        name: String,
        artifact: &ArtifactId,
        kind: ArchiveKind,
        record: &impl Serialize,
    ) -> Result<Export, ExportError> {
        let failed = |source| ExportError::Pack { name: name.clone(), source };
        let record = serde_json::to_value(record).map_err(|error| failed(PackError::Write(error.into())))?;
        let (artifacts, artifact) = (self.shared.artifacts.clone(), artifact.clone());
        let packing = blocking(move || artifacts.packing(&artifact, kind, record)).await.map_err(failed)?;
        Ok(Export { name, packing })
    }

    /// Takes an archive in, and what it is of on record: a template or a snapshot under the name that is given, else under its own; a
    /// sandbox paused, under its own id. What comes is this scope's.
    ///
    /// What has begun is done to its end, also when the caller goes away; an archive whose stream ends before is refused as cut off.
    pub async fn import(
        &self,
        archive: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
        ImportAs { kind, name }: ImportAs,
    ) -> Result<Imported, ImportError> {
        let name = name.map(|name| Reference::given(&self.scope, &name)).transpose()?.map(Reference::full);
        let (runtime, archive) = (self.clone(), archive.boxed());
        whole(self.shared.tasks.spawn(async move { runtime.take_in(archive, (kind, name)).await })).await
    }

    async fn take_in(
        &self,
        archive: BoxStream<'static, io::Result<Bytes>>,
        (wanted, name): (Option<ArchiveKind>, Option<Reference>),
    ) -> Result<Imported, ImportError> {
        let shared = &self.shared;
        shared.gates.disk.check()?;
        disk_budget::admit(shared).await?;
        // Whoever sends slowly does not hold the end of the server up.
        let stream = archive.take_until(shared.stopping.clone().cancelled_owned()).boxed();
        let reader = Blocking::of(stream);
        fetching::wait_for_imports(shared).await;
        let artifacts = shared.artifacts.clone();
        let stopped = |error: UnpackError| if shared.stopping.is_cancelled() { ImportError::Stopping } else { error.into() };
        let incoming = blocking(move || artifacts.receive(reader)).await.map_err(stopped)?;
        let header = incoming.header().clone();
        if let Some(wanted) = wanted.filter(|wanted| *wanted != header.kind) {
            return Err(ImportError::Kind { found: header.kind, wanted });
        }
        let coming = self.judge(&header, name).await?;
        let bytes = incoming.missing_bytes();
        shared.gates.disk.check_with(bytes)?;
        let kind = header.kind;
        let artifacts = shared.artifacts.clone();
        let unpacked = blocking(move || artifacts.unpack(incoming)).await.map_err(stopped)?;
        let imported = |(id, names, was_here): (String, Vec<String>, bool), unpacked: &Unpacked| Imported {
            kind,
            id,
            names,
            artifact: unpacked.artifact.manifest.id.clone(),
            was_here: was_here && unpacked.was_here,
            bytes,
        };
        let recorded = match coming {
            Coming::Template(record) => self.record_template(*record).await?,
            Coming::Sandbox(record, held, _volumes) => self.record_sandbox(*record, held).await?,
        };
        // Its pins until here: now it is on record.
        Ok(imported(recorded, &unpacked))
    }

    /// Refuses what could not be taken in, before any of it is written.
    async fn judge(&self, header: &ArchiveHeader, name: Option<Reference>) -> Result<Coming, ImportError> {
        let manifest = &header.artifact().manifest;
        if let Err(error) = self.shared.gates.check_compatible(manifest) {
            // Without memory it is booted, by what this host has. A disk is in the form of the engine that wrote it all the same.
            let is_booted = manifest.memory == MemoryMember::Absent
                && !matches!(error, SnapshotRestoreError::Incompatible { what: "engine", .. });
            if !is_booted {
                return Err(ImportError::Incompatible(Box::new(error)));
            }
        }
        match header.kind {
            ArchiveKind::Template | ArchiveKind::Snapshot => {
                let record = self.template_that_comes(header, name)?;
                if let Place::Taken(what) = self.shared.store.place_of(record.clone()).await? {
                    return Err(ImportError::Taken(what));
                }
                Ok(Coming::Template(Box::new(record)))
            }
            ArchiveKind::Artifact => Err(ImportError::Artifact),
            ArchiveKind::Sandbox if name.is_some() => Err(ImportError::Unnameable),
            ArchiveKind::Sandbox => {
                let (mut record, held) = self.sandbox_that_comes(header)?;
                if self.is_another(&record, &held).await? {
                    return Err(ImportError::Taken(format!("sandbox `{}`", record.id)));
                }
                // Those of these names: an id of a volume means nothing on another host.
                let volumes = mounts::resolve(&self.shared, &self.scope, &mut record.spec.volumes).await?;
                Ok(Coming::Sandbox(Box::new(record), held, volumes))
            }
        }
    }

    fn template_that_comes(&self, header: &ArchiveHeader, name: Option<Reference>) -> Result<TemplateRecord, ImportError> {
        let kind = if header.kind == ArchiveKind::Snapshot { "snapshot" } else { "template" };
        let record: TemplateRecord = read(header, kind)?;
        let fits = record.artifact == header.artifact().manifest.id
            && record.snapshot_of.is_some() == (header.kind == ArchiveKind::Snapshot)
            && (record.snapshot_of.is_some() || !record.names.is_empty());
        if !fits {
            return Err(ImportError::Record { kind, source: None });
        }
        let (id, build_id, names) = match name {
            // Another one than that of its own name, which may be here.
            Some(name) => (TemplateId::generate(), BuildId::generate(), vec![name]),
            None => (record.id, record.build_id, record.names),
        };
        let setup = Setup { public: false, ..record.setup };
        let owner = self.scope.owner();
        Ok(TemplateRecord { id, build_id, names, owner, setup, spawn_count: 0, last_spawned_at: None, ..record })
    }

    fn sandbox_that_comes(&self, header: &ArchiveHeader) -> Result<(SandboxRecord, Held), ImportError> {
        let kind = "paused sandbox";
        let record: SandboxRecord = read(header, kind)?;
        let RecordedPhase::Paused(held) = record.phase.clone() else { return Err(ImportError::Record { kind, source: None }) };
        if held.artifact != header.artifact().manifest.id {
            return Err(ImportError::Record { kind, source: None });
        }
        let held = Held { epoch: Some(held.epoch.unwrap_or(record.epoch)), ..held };
        // Its next life is another than that where it came from.
        let epoch = record.epoch.checked_add(1).ok_or(ImportError::Record { kind, source: None })?;
        let (owner, phase) = (self.scope.owner(), RecordedPhase::Paused(held.clone()));
        Ok((SandboxRecord { owner, epoch, phase, ..record }, held))
    }

    /// Whether there is a sandbox of that id which is another, or holds another state.
    async fn is_another(&self, record: &SandboxRecord, held: &Held) -> Result<bool, ImportError> {
        let all = self.shared.store.sandboxes(crate::ground::team::Scope::Host).await?;
        let found = all.into_iter().find(|other| other.id == record.id);
        Ok(found.is_some_and(|found| found.owner != record.owner || !holds(&found, held)))
    }

    async fn record_template(&self, record: TemplateRecord) -> Result<(String, Vec<String>, bool), ImportError> {
        let (found, was_here) = match self.shared.store.import_template(record.clone()).await? {
            Place::Free => (record, false),
            Place::Same(found) => (*found, true),
            Place::Taken(what) => return Err(ImportError::Taken(what)),
        };
        if !was_here {
            let event = if found.snapshot_of.is_some() { TemplateEvent::Snapshot } else { TemplateEvent::Updated };
            self.tell_template(event, &found.owner, found.id.as_str(), found.snapshot_of.as_ref());
            self.pool.templates_changed();
        }
        let names = found.names.iter().map(|name| with_team(&found.owner, name.clone().short())).collect();
        Ok((found.id.to_string(), names, was_here))
    }

    async fn record_sandbox(&self, record: SandboxRecord, held: Held) -> Result<(String, Vec<String>, bool), ImportError> {
        /// Who has this finds what was recorded with its owner, or nobody gives it one.
        static RECORDING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
        let _recording = RECORDING.lock().await;
        let id = record.id.to_string();
        match self.shared.store.insert_sandbox(record.clone()).await {
            Ok(()) => {}
            Err(StoreError::Fenced { .. }) => {
                if self.is_another(&record, &held).await? {
                    return Err(ImportError::Taken(format!("sandbox `{id}`")));
                }
                // It has none where the catalogue went away before it said that it had kept what an earlier try recorded.
                let has_owner = self.owners.handles().contains_key(&record.id);
                if has_owner {
                    return Ok((id, Vec::new(), true));
                }
            }
            Err(error) => return Err(error.into()),
        }
        let record = sandbox_quota::begin(&self.shared, record).await;
        Owner::of_imported(&self.owners, record, held);
        Ok((id, Vec::new(), false))
    }
}

fn holds(record: &SandboxRecord, held: &Held) -> bool {
    matches!(&record.phase, RecordedPhase::Paused(here) if here.artifact == held.artifact)
}

fn read<T: DeserializeOwned>(header: &ArchiveHeader, kind: &'static str) -> Result<T, ImportError> {
    serde_json::from_value(header.record.clone()).map_err(|error| ImportError::Record { kind, source: Some(error) })
}
