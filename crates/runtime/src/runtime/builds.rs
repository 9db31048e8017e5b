//! The runtime's face for builds.

use std::{collections::HashSet, sync::Arc, time::Instant};

use jiff::Timestamp;
use tokio::sync::oneshot;

use crate::{
    capacity::ResourceBudget,
    ground::{
        ids::{BuildId, TemplateId},
        random::is_uuid,
        reference::Sought,
        team::Scope,
    },
    runtime::Runtime,
    shared::Shared,
    store::{BuildLogEntry, BuildReason, BuildRecord, BuildState, StoreError},
    telemetry::changes::BuildEvent,
    template::build::{
        BuildInfo, BuildPlan, BuildRequest, FileUpload, Live, RequestedBuild,
        error::{FilesError, NoBuild, RequestError},
        job,
        names::{self, Named},
    },
};

/// A build that has begun.
pub(crate) struct Begun {
    pub(crate) live: Arc<Live>,
    recorded: oneshot::Receiver<Result<(), NoBuild>>,
}

impl Begun {
    /// Waits until it is on record that it has.
    pub(crate) async fn recorded(self) -> Result<(), NoBuild> {
        self.recorded.await.map_err(|_| NoBuild::Stopping)?
    }
}

impl Runtime {
    /// Makes a place for a build. A name and tag that exist keep their template's id.
    pub async fn request_build(&self, request: &BuildRequest) -> Result<RequestedBuild, RequestError> {
        let named = names::parse(&self.scope, request, self.capacity().capacity.memory_mib)?;
        self.place(named).await.map_err(RequestError::Store)
    }

    /// Puts a build that waits on record.
    pub(crate) async fn place(&self, named: Named) -> Result<RequestedBuild, StoreError> {
        let now = Timestamp::now();
        let record = BuildRecord {
            id: BuildId::generate(),
            owner: named.owner,
            // Unless a template of that name is there.
            template_id: TemplateId::generate(),
            name: named.name,
            tags: named.tags,
            cpus: named.cpus,
            memory_mib: named.memory_mib,
            min_free_disk_mib: named.min_free_disk_mib,
            disk_mib: None,
            state: BuildState::Waiting,
            reason: None,
            created_at: now,
            updated_at: now,
            finished_at: None,
        };
        let (record, template) = self.shared().store.request_build(record).await?;
        job::tell(self.shared(), &record, BuildEvent::Requested);
        Ok(RequestedBuild {
            template_id: record.template_id.into(),
            build_id: record.id.into(),
            owner: template.owner,
            name: template.name.map(String::from),
            tags: record.tags.into_iter().map(String::from).collect(),
            public: template.public,
        })
    }

    /// Starts a build that waits. It goes on by itself.
    pub async fn start_build(&self, template: &str, build: &str, plan: BuildPlan) -> Result<(), NoBuild> {
        self.begin_build(template, build, plan).await?.recorded().await
    }

    /// As [`Runtime::start_build`], and gives what goes on before anything is waited for.
    pub(crate) async fn begin_build(&self, template: &str, build: &str, plan: BuildPlan) -> Result<Begun, NoBuild> {
        let shared = self.shared();
        if shared.stopping.is_cancelled() {
            return Err(NoBuild::Stopping);
        }
        let mut record = find(shared, &self.scope, template, build).await?;
        if record.state != BuildState::Waiting {
            return Err(NoBuild::Started(build.to_owned()));
        }
        // Its disk is taken once it is known whose it is.
        let budget = ResourceBudget { cpus: record.cpus, memory_mib: u64::from(record.memory_mib), disk_mib: 0 };
        let now = Instant::now();
        let shares = shared.teams.take_one(&record.owner, budget, now).map_err(NoBuild::TeamQuota)?;
        record.state = BuildState::Building;
        record.updated_at = Timestamp::now();
        let begun = self.builds.begin(record.clone(), shared.files.for_build());
        let Some(begun) = begun else {
            // Somebody else was faster, and pays for it.
            shared.teams.uncount_create(&record.owner, now);
            return Err(NoBuild::Started(build.to_owned()));
        };
        let (builds, live) = (Arc::clone(&self.builds), Arc::clone(&begun));
        let absent = NoBuild::NotFound { template: template.to_owned(), build: build.to_owned() };
        let (reply, recorded) = oneshot::channel();
        // A task of its own: a caller that goes away leaves none that has begun and never ends.
        shared.tasks.spawn(async move {
            let begun = match builds.shared.store.begin_build(record.id, record.updated_at).await {
                Ok(Some(_)) => Ok(()),
                // Its template was deleted meanwhile.
                Ok(None) => Err(absent),
                Err(error) => Err(NoBuild::Store(error)),
            };
            let goes_on = begun.is_ok();
            if goes_on {
                job::tell(&builds.shared, &live.record, BuildEvent::Started);
            } else {
                builds.end(&live);
            }
            drop(reply.send(begun));
            if goes_on {
                job::run(builds, live, plan, shares).await;
            }
        });
        Ok(Begun { live: begun, recorded })
    }

    /// How far a build has come, also after its end.
    pub async fn build(&self, template: &str, build: &str) -> Result<BuildInfo, NoBuild> {
        let read = || find(self.shared(), &self.scope, template, build);
        Ok(self.as_they_are(read, |record| vec![record]).await?.show())
    }

    /// The log of a build so far, oldest first.
    pub async fn build_log(&self, template: &str, build: &str) -> Result<Vec<BuildLogEntry>, NoBuild> {
        let shared = self.shared();
        // Before its record: what has ended since is on record with its log.
        let live = build.parse().ok().and_then(|build| self.builds.live(&build));
        let record = find(shared, &self.scope, template, build).await?;
        match live {
            Some(live) => Ok(live.log.entries()),
            None => shared.store.build_log(record.id).await.map_err(NoBuild::Store),
        }
    }

    /// Every build of this scope that is remembered, newest first.
    pub async fn builds(&self) -> Result<Vec<BuildInfo>, StoreError> {
        let store = &self.shared().store;
        let builds = self.as_they_are(|| store.builds(self.scope.clone()), |builds| builds.iter_mut().collect()).await?;
        let mut builds: Vec<BuildInfo> = builds.iter().map(BuildRecord::show).collect();
        builds.sort_by(|a, b| (b.created_at, &b.id).cmp(&(a.created_at, &a.id)));
        Ok(builds)
    }

    /// What `read` finds, with its `builds` as they are. One that is on record as under way, and is not, has ended since and is on
    /// record by the next look, or never will be.
    pub(crate) async fn as_they_are<T, E, F>(
        &self,
        read: impl Fn() -> F,
        builds: impl Fn(&mut T) -> Vec<&mut BuildRecord>,
    ) -> Result<T, E>
    where
        F: Future<Output = Result<T, E>>,
    {
        let mut found = read().await?;
        let ended = |build: &&mut BuildRecord| build.state == BuildState::Building && self.builds.live(&build.id).is_none();
        let ended: HashSet<BuildId> = builds(&mut found).into_iter().filter(ended).map(|build| build.id.clone()).collect();
        if ended.is_empty() {
            return Ok(found);
        }
        let mut found = read().await?;
        let still = |build: &&mut BuildRecord| build.state == BuildState::Building && ended.contains(&build.id);
        builds(&mut found).into_iter().filter(still).for_each(unrecorded);
        Ok(found)
    }

    /// Whether files of this digest are here already.
    pub fn has_files(&self, hash: &str) -> Result<bool, FilesError> {
        self.shared().files.of(&self.scope.owner()).contains(hash)
    }

    /// Begins to receive files for `COPY`, an archive that the client names by this digest.
    pub fn receive_files(&self, hash: &str) -> Result<FileUpload, FilesError> {
        let shared = self.shared();
        shared.gates.disk.check().map_err(FilesError::DiskPressure)?;
        shared.files.of(&self.scope.owner()).receive(hash)
    }

    /// A ticket with which a client may upload files of this digest for its team until `expires`, a Unix time.
    pub fn sign_upload(&self, template: &str, hash: &str, expires: i64) -> String {
        let text = self.upload(template, hash, expires);
        blake3::keyed_hash(&self.builds.signing_key, text.as_bytes()).to_hex().to_string()
    }

    /// What is signed for an upload.
    fn upload(&self, template: &str, hash: &str, expires: i64) -> String {
        format!("{} {template} {hash} {expires}", self.scope.owner())
    }

    /// Whether a signature is what was given to this team for this upload, and is still good.
    pub fn upload_is_signed(&self, template: &str, hash: &str, expires: i64, signature: &str) -> bool {
        let text = self.upload(template, hash, expires);
        let expected = blake3::keyed_hash(&self.builds.signing_key, text.as_bytes());
        // Compares digests, in constant time.
        let signed = blake3::Hash::from_hex(signature).is_ok_and(|found| found == expected);
        signed && Timestamp::now().as_second() <= expires
    }
}

/// A build that has ended without anybody knowing how: its end could not be recorded.
fn unrecorded(record: &mut BuildRecord) {
    let message = "the end of the build could not be recorded; the server's log says why; build it again".to_owned();
    record.state = BuildState::Error;
    record.reason = Some(BuildReason { message, step: "finalize".to_owned() });
}

async fn find(shared: &Shared, scope: &Scope, template: &str, build: &str) -> Result<BuildRecord, NoBuild> {
    let id = Some(build).filter(|build| is_uuid(build)).and_then(|build| build.parse().ok()).ok_or(NoBuild::Malformed)?;
    let record = shared.store.build(scope, id).await.map_err(NoBuild::Store)?;
    // By name too, and by an id of earlier.
    let absent = || NoBuild::NotFound { template: template.to_owned(), build: build.to_owned() };
    let sought: Sought = template.parse().map_err(|_| absent())?;
    let family = shared.store.family(scope.clone(), sought).await.map_err(NoBuild::Store)?;
    record.filter(|record| family.is_some_and(|family| family.id == record.template_id)).ok_or_else(absent)
}
