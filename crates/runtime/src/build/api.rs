//! What the runtime offers of builds.

use std::sync::Arc;

use jiff::Timestamp;

use super::{
    BuildInfo, BuildLogEntry, BuildPlan, BuildRequest, BuildState, FileUpload, RequestedBuild,
    error::{FilesError, NoBuild, RequestError},
    job, names,
    registry::{BuildRecord, Live},
};
use crate::{
    core::Core,
    error::StoreError,
    runtime::{Runtime, TEAM, full_names},
    store::TemplateRecord,
    template,
};

impl Runtime {
    /// Makes a place for a build. A name and tag that exist keep their template's id.
    pub async fn request_build(&self, request: &BuildRequest) -> Result<RequestedBuild, RequestError> {
        let named = names::parse(request, self.capacity().capacity.memory_mib)?;
        let core = self.core();
        let full = format!("{}:{}", named.name, named.tags[0]);
        let template = core.store.template(full.clone()).await.map_err(RequestError::Store)?;
        let template = template.filter(|template| template.snapshot_of.is_none());
        let public = template.as_ref().is_some_and(|template| template.setup.public);
        let template_id = match template {
            Some(template) => template.id,
            None => {
                let builds = core.store.builds().await.map_err(RequestError::Store)?;
                let pending = builds.into_iter().find(|build| !build.ended() && build.names().contains(&full));
                pending.map_or_else(|| crate::random::alphanumeric(20), |build| build.template_id)
            }
        };
        let now = Timestamp::now();
        let record = BuildRecord {
            id: template::uuid(),
            template_id,
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
        core.store.put_build(record.clone()).await.map_err(RequestError::Store)?;
        Ok(RequestedBuild { template_id: record.template_id, build_id: record.id, name: record.name, tags: record.tags, public })
    }

    /// Starts a build that waits. It goes on by itself.
    pub async fn start_build(&self, template: &str, build: &str, plan: BuildPlan) -> Result<(), NoBuild> {
        let core = self.core();
        if core.stopping.is_cancelled() {
            return Err(NoBuild::Stopping);
        }
        let mut record = find(core, template, build).await?;
        if record.state != BuildState::Waiting {
            return Err(NoBuild::Started(build.to_owned()));
        }
        record.state = BuildState::Building;
        record.updated_at = Timestamp::now();
        let begun = core.builds.begin(record.clone()).ok_or_else(|| NoBuild::Started(build.to_owned()))?;
        if let Err(error) = core.store.put_build(record).await {
            core.builds.end(&begun);
            return Err(NoBuild::Store(error));
        }
        core.tasks.spawn(job::run(Arc::clone(core), begun, plan));
        Ok(())
    }

    /// How far a build has come, also after its end.
    pub async fn build(&self, template: &str, build: &str) -> Result<BuildInfo, NoBuild> {
        Ok(find(self.core(), template, build).await?.show())
    }

    /// What a build has said so far, oldest first.
    pub async fn build_log(&self, template: &str, build: &str) -> Result<Vec<BuildLogEntry>, NoBuild> {
        let core = self.core();
        let live = core.builds.live(build);
        find(core, template, build).await?;
        match live {
            Some(live) => Ok(live.log.entries()),
            None => core.store.build_log(build.to_owned()).await.map_err(NoBuild::Store),
        }
    }

    /// Every build that is remembered, newest first.
    pub async fn builds(&self) -> Result<Vec<BuildInfo>, StoreError> {
        let core = self.core();
        let mut builds: Vec<BuildInfo> = core.store.builds().await?.iter().map(BuildRecord::show).collect();
        builds.sort_by(|a, b| (b.created_at, &b.id).cmp(&(a.created_at, &a.id)));
        Ok(builds)
    }

    /// Whether files of this digest are here already.
    pub fn has_files(&self, hash: &str) -> Result<bool, FilesError> {
        self.core().files.contains(hash)
    }

    /// Begins to receive files for `COPY`, an archive that the client names by this digest.
    pub fn receive_files(&self, hash: &str) -> Result<FileUpload, FilesError> {
        let core = self.core();
        core.gates.disk.check().map_err(FilesError::DiskPressure)?;
        core.files.receive(hash)
    }

    /// What lets a client that shows it bring files of this digest until `expires`, a Unix time.
    pub fn sign_upload(&self, template: &str, hash: &str, expires: i64) -> String {
        let text = format!("{template} {hash} {expires}");
        blake3::keyed_hash(&self.core().builds.signing_key, text.as_bytes()).to_hex().to_string()
    }

    /// Whether a signature is what was given for this upload, and is still good.
    pub fn upload_is_signed(&self, template: &str, hash: &str, expires: i64, signature: &str) -> bool {
        let text = format!("{template} {hash} {expires}");
        let expected = blake3::keyed_hash(&self.core().builds.signing_key, text.as_bytes());
        // Compares digests, in constant time.
        let signed = blake3::Hash::from_hex(signature).is_ok_and(|found| found == expected);
        signed && Timestamp::now().as_second() <= expires
    }

    /// Marks a template as public or not. Gives its full names.
    pub async fn set_public(&self, reference: &str, public: bool) -> Result<Option<Vec<String>>, StoreError> {
        let core = self.core();
        let Some(mut record) = family_member(core, reference).await? else { return Ok(None) };
        record.setup.public = public;
        let names = full_names(&record);
        core.store.put_template(record).await?;
        Ok(Some(names))
    }
}

async fn find(core: &Core, template: &str, build: &str) -> Result<BuildRecord, NoBuild> {
    let record = core.store.build(build.to_owned()).await.map_err(NoBuild::Store)?;
    let known = |record: &BuildRecord| record.template_id == template || record.name == template;
    record.filter(known).ok_or_else(|| NoBuild::NotFound { template: template.to_owned(), build: build.to_owned() })
}

/// What a reference names; a name without a tag that nothing stands for names the newest build of that name.
pub(crate) async fn family_member(core: &Core, reference: &str) -> Result<Option<TemplateRecord>, StoreError> {
    if let Some(found) = core.store.template(reference.to_owned()).await? {
        return Ok(Some(found));
    }
    let name = reference.strip_prefix(TEAM).and_then(|rest| rest.strip_prefix('/')).unwrap_or(reference);
    if name.contains(':') {
        return Ok(None);
    }
    let of_name = |record: &TemplateRecord| {
        let named = |full: &String| full.rsplit_once(':').is_some_and(|(base, _)| base == name);
        record.snapshot_of.is_none() && record.names.iter().any(named)
    };
    Ok(core.store.templates().await?.into_iter().filter(of_name).max_by_key(|record| record.updated_at))
}

/// Ends the builds of a template and forgets all of them. Whether there was any.
pub(crate) async fn cancel_all(core: &Core, reference: &str) -> Result<bool, StoreError> {
    let of_it = |build: &BuildRecord| build.template_id == reference || build.name == reference;
    let ids: Vec<BuildRecord> = core.store.builds().await?.into_iter().filter(of_it).collect();
    let mut templates: Vec<String> = ids.iter().map(|build| build.template_id.clone()).collect();
    templates.dedup();
    let live: Vec<Arc<Live>> = templates.iter().flat_map(|template| core.builds.live_of(template)).collect();
    for build in &live {
        build.cancel.cancel();
    }
    for build in &live {
        build.ended.cancelled().await;
    }
    core.store.delete_builds(ids.iter().map(|build| build.id.clone()).collect()).await?;
    Ok(!ids.is_empty())
}
