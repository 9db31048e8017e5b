//! The runtime's face for templates: looking at them, changing and deleting them, and their tags.

use std::collections::HashSet;

use crate::{
    artifact::memory_base,
    capacity::ResourceBudget,
    ground::{
        blocking::whole,
        ids::{ArtifactId, BuildId},
        reference::{DEFAULT, NoTemplate, Reference, Sought, TemplateName},
        team::Scope,
    },
    runtime::Runtime,
    store::{Assignment, BuildRecord, BuildState, FamilyRecord, StoreError, TemplateRecord, WholeTemplate},
    telemetry::changes::TemplateEvent,
    template::{
        TagInfo, TemplateInfo, TemplateUpdate,
        build::{self, BuildInfo},
        dependents,
        tags::{self, TagError, Tagged},
    },
};

/// Why a template or a snapshot was not deleted.
#[derive(Debug, thiserror::Error)]
pub enum DeleteError {
    /// No template or snapshot by that name or id.
    #[error(transparent)]
    NotFound(#[from] NoTemplate),
    /// Others are built on it.
    #[error("template '{template}' is in use by {}", users.join(", "))]
    InUse {
        /// The template.
        template: String,
        /// Sandboxes, snapshots and templates that need it.
        users: Vec<String>,
    },
    /// The store failed.
    #[error("cannot record the deletion")]
    Store(#[source] StoreError),
}

impl Runtime {
    /// Every template (snapshots excluded), also those of which no build has ended, newest first.
    pub async fn templates(&self) -> Result<Vec<TemplateInfo>, StoreError> {
        let store = &self.shared().store;
        let read = || store.whole_templates(self.scope.clone());
        let whole = self.as_they_are(read, |whole| whole.iter_mut().flat_map(|template| &mut template.builds).collect()).await?;
        let whole = whole.into_iter();
        let mut templates: Vec<TemplateInfo> =
            whole.filter(|template| template.family.snapshot_of.is_none()).filter_map(|template| template.show(None)).collect();
        templates.sort_by(|a, b| (b.created_at, &b.id).cmp(&(a.created_at, &a.id)));
        Ok(templates)
    }

    /// A template or snapshot by id or name. With a tag it is shown as the tag's build, which has to be there; without one as that of
    /// `default`, else as the newest.
    pub async fn template(&self, reference: &str) -> Result<Option<TemplateInfo>, StoreError> {
        let Ok(sought) = reference.parse::<Sought>() else { return Ok(None) };
        let Some((template, meant)) = self.whole_template(&sought).await? else { return Ok(None) };
        if meant.is_none() && sought.reference.other_tag().is_some() {
            return Ok(None);
        }
        Ok(template.show(meant.as_ref()))
    }

    /// The template or snapshot that a create would start from, whether or not anything was built: its id, and whether it is public. A
    /// tag has to be there.
    pub async fn usable_template(&self, reference: &str) -> Result<Option<(String, bool)>, StoreError> {
        let Ok(sought) = reference.parse::<Sought>() else { return Ok(None) };
        let (store, scope) = (&self.shared().store, &self.scope);
        let found = match sought.reference.other_tag() {
            Some(_) => {
                let version = store.usable_template(scope.clone(), sought).await?.found();
                version.map(|record| (record.id, record.setup.public))
            }
            None => store.usable_family(scope.clone(), sought).await?.map(|family| (family.id, family.public)),
        };
        Ok(found.map(|(id, public)| (id.into(), public)))
    }

    /// The builds of a template that are remembered, newest first, and what it was built of otherwise.
    pub async fn template_builds(&self, id: &str) -> Result<Vec<BuildInfo>, StoreError> {
        let Ok(sought) = id.parse() else { return Ok(Vec::new()) };
        let Some((template, _)) = self.whole_template(&sought).await? else { return Ok(Vec::new()) };
        let WholeTemplate { versions, builds, .. } = template;
        let known: HashSet<&BuildId> = builds.iter().map(|build| &build.id).collect();
        let of_it = versions.iter().filter(|version| !known.contains(&version.build_id));
        let mut shown: Vec<BuildInfo> = of_it.map(without_build).collect();
        shown.extend(builds.iter().map(BuildRecord::show));
        shown.sort_by(|a, b| (b.created_at, &b.id).cmp(&(a.created_at, &a.id)));
        Ok(shown)
    }

    async fn whole_template(&self, sought: &Sought) -> Result<Option<(WholeTemplate, Option<TemplateRecord>)>, StoreError> {
        let store = &self.shared().store;
        let read = || store.whole_template(self.scope.clone(), sought.clone());
        self.as_they_are(read, |found| found.iter_mut().flat_map(|(template, _)| &mut template.builds).collect()).await
    }

    /// Changes a template, whether or not anything was built of it. Gives it as it is then.
    pub async fn update_template(&self, reference: &str, update: TemplateUpdate) -> Result<Option<TemplateInfo>, StoreError> {
        let TemplateUpdate { public, description } = update;
        let Ok(sought) = reference.parse() else { return Ok(None) };
        let wanted = (self.scope.clone(), sought);
        let Some(id) = self.shared().store.update_template(wanted, public, description).await? else { return Ok(None) };
        let updated = self.template(id.as_str()).await?;
        if let Some(TemplateInfo { owner, snapshot_of, .. }) = &updated {
            self.tell_template(TemplateEvent::Updated, owner, id.as_str(), snapshot_of.as_ref());
        }
        Ok(updated)
    }

    /// Deletes a template with all of its builds and tags, or a snapshot. Refused while a sandbox that was created from it exists,
    /// running or paused, and while a snapshot stands on its memory. A create that is under way succeeds, from what is then gone; a
    /// build that is, ends. With another tag than `default`, only that tag of a template is deleted, while it has others.
    ///
    /// What has begun is done to its end, also when the caller goes away.
    pub async fn delete_template(&self, reference: &str) -> Result<(), DeleteError> {
        let (runtime, reference) = (self.clone(), reference.to_owned());
        whole(self.shared().tasks.spawn(async move { runtime.delete(&reference).await })).await
    }

    async fn delete(&self, reference: &str) -> Result<(), DeleteError> {
        let store = &self.shared().store;
        let wanted = Sought::wanted(reference)?;
        let found = store.family(self.scope.clone(), wanted.clone()).await.map_err(DeleteError::Store)?;
        let family = found.ok_or_else(|| NoTemplate::Absent(reference.to_owned()))?;
        // Whosever they are: another team's may stand on what is public.
        let all = store.templates(Scope::Host).await.map_err(DeleteError::Store)?;
        let own: Vec<&TemplateRecord> = all.iter().filter(|record| record.id == family.id).collect();
        let names = self.names_meant((reference, wanted.reference), &family).await?;
        let goes = |version: &&&TemplateRecord| version.names.iter().all(|name| names.contains(name));
        if !names.is_empty() && own.iter().flat_map(|version| &version.names).any(|name| !names.contains(name)) {
            let going: Vec<&TemplateRecord> = own.iter().filter(goes).copied().collect();
            let (artifacts, shared) = self.artifacts_of(&going, &all).await?;
            let users = dependents::standing((&self.scope, &family.id), &artifacts, &all, |artifact| self.base_of(artifact));
            refuse_if_used(reference, users)?;
            // Somebody else may have removed it meanwhile: then it is gone as well.
            store.remove_names(family.owner.clone(), names).await.map(drop).map_err(DeleteError::Store)?;
            self.tell_template(TemplateEvent::TagsChanged, &family.owner, family.id.as_str(), family.snapshot_of.as_ref());
            return self.let_go(artifacts.into_iter().chain(shared)).await;
        }
        let sandboxes = store.everyones_sandboxes().await.map_err(DeleteError::Store)?;
        let (artifacts, shared) = self.artifacts_of(&own, &all).await?;
        let users = dependents::of((&self.scope, &family.id), &artifacts, &sandboxes, &all, |artifact| self.base_of(artifact));
        refuse_if_used(reference, users)?;
        // A create may have come since.
        let users = store.delete_template(family.id.clone()).await.map_err(DeleteError::Store)?;
        let users = users.iter().map(|(owner, id)| (owner, id));
        refuse_if_used(reference, dependents::created(&self.scope, users).collect())?;
        build::cancel_all(&self.builds, &family.id).await;
        self.tell_template(TemplateEvent::Deleted, &family.owner, family.id.as_str(), family.snapshot_of.as_ref());
        self.let_go(artifacts.into_iter().chain(shared)).await
    }

    /// The names that are to go, if a reference does not mean the whole template.
    async fn names_meant(
        &self,
        (reference, wanted): (&str, Reference),
        family: &FamilyRecord,
    ) -> Result<Vec<Reference>, DeleteError> {
        let is_former =
            wanted.name.as_str() != family.id.as_str() && family.name.as_ref().is_some_and(|name| *name != wanted.name);
        if family.snapshot_of.is_some() || (wanted.other_tag().is_none() && !is_former) {
            return Ok(Vec::new());
        }
        let found =
            self.shared().store.template(Scope::Team(family.owner.clone()), wanted.clone()).await.map_err(DeleteError::Store)?;
        let version = NoTemplate::unless_found(reference, found)?;
        match wanted.other_tag() {
            Some(_) => Ok(version.names.into_iter().filter(|name| name.tag == wanted.tag).collect()),
            // An id of earlier goes with what it stood for, which never was the default.
            None if version.tags().any(|tag| tag == DEFAULT) => Err(NoTemplate::Absent(reference.to_owned()).into()),
            None => Ok(version.names),
        }
    }

    /// The artifacts of these versions that nobody else has, and those that others or builds have too.
    async fn artifacts_of<'a>(
        &self,
        versions: &[&'a TemplateRecord],
        all: &[TemplateRecord],
    ) -> Result<(Vec<&'a ArtifactId>, Vec<&'a ArtifactId>), DeleteError> {
        let (mut own, mut shared) = (Vec::new(), Vec::new());
        for version in versions {
            let stays = |other: &TemplateRecord| !versions.iter().any(|version| version.build_id == other.build_id);
            let others = all.iter().any(|other| stays(other) && other.artifact == version.artifact);
            let kept = build::keeps(self.shared(), &version.artifact).await.map_err(DeleteError::Store)?;
            if others || kept { &mut shared } else { &mut own }.push(&version.artifact);
        }
        Ok((own, shared))
    }

    /// On whose memory an artifact stands. One that cannot be read holds nothing.
    fn base_of(&self, artifact: &ArtifactId) -> Option<ArtifactId> {
        Some(memory_base(&self.shared().artifacts.load(artifact).ok()?.manifest))
    }

    async fn let_go(&self, artifacts: impl Iterator<Item = &ArtifactId>) -> Result<(), DeleteError> {
        for artifact in artifacts {
            build::drop_artifact(self.shared(), artifact).await.map_err(DeleteError::Store)?;
        }
        self.pool.templates_changed();
        self.shared().collect();
        Ok(())
    }

    /// Has tags stand for the build that `target` names, by name or id. A tag that is in use moves.
    pub async fn assign_tags(&self, target: &str, tags: Vec<String>) -> Result<Tagged, TagError> {
        let tagged = tags::assign(&self.shared().store, &self.scope, target, tags).await?;
        self.tell_template(TemplateEvent::TagsChanged, &tagged.owner, &tagged.template_id, None);
        self.pool.templates_changed();
        self.shared().collect();
        Ok(tagged)
    }

    /// Takes tags of a template away. All of them, or none when one is not there. What no tag stands for then is gone.
    pub async fn remove_tags(&self, name: &str, tags: Vec<String>) -> Result<(), TagError> {
        let (owner, id) = tags::remove(&self.shared().store, &self.scope, name, &tags).await?;
        self.tell_template(TemplateEvent::TagsChanged, &owner, &id, None);
        self.pool.templates_changed();
        self.shared().collect();
        Ok(())
    }
}

fn refuse_if_used(reference: &str, mut users: Vec<String>) -> Result<(), DeleteError> {
    // Others are told once, however much they have.
    users.dedup();
    if users.is_empty() { Ok(()) } else { Err(DeleteError::InUse { template: reference.to_owned(), users }) }
}

impl WholeTemplate {
    /// A template as the API shows it: as `version`, else as its default, else as its newest version, else as its newest build.
    fn show(self, version: Option<&TemplateRecord>) -> Option<TemplateInfo> {
        let tags = self.tags();
        let Self { family, versions: own, builds, .. } = self;
        let default = || own.iter().find(|record| record.tags().any(|tag| tag == DEFAULT));
        let newest = || own.iter().max_by_key(|record| record.updated_at);
        let shown = version.or_else(default).or_else(newest);
        let runs_on = shown.and_then(|version| version.runs_on.clone());
        let (build_id, state, budget) = match shown {
            Some(version) => (version.build_id.clone(), BuildState::Ready, version.budget),
            None => {
                let build = builds.iter().max_by_key(|build| (build.created_at, &build.id))?;
                let disk_mib = build.disk_mib.unwrap_or_default();
                let budget = ResourceBudget { cpus: build.cpus, memory_mib: u64::from(build.memory_mib), disk_mib };
                (build.id.clone(), build.state, budget)
            }
        };
        let mut aliases: Vec<String> = own
            .iter()
            .filter_map(|record| record.base_name().map(|_| &record.names))
            .flatten()
            .map(|name| name.clone().short().to_string())
            .collect();
        aliases.sort();
        if aliases.is_empty() {
            aliases.extend(family.name.as_ref().map(TemplateName::to_string));
        }
        let unlisted = own.iter().filter(|record| !builds.iter().any(|build| build.id == record.build_id)).count();
        Some(TemplateInfo {
            build_id: build_id.into(),
            state,
            builds: builds.len() + unlisted,
            aliases,
            tags,
            budget,
            runs_on,
            id: family.id.into(),
            owner: family.owner,
            name: family.name.map(String::from),
            created_at: family.created_at,
            updated_at: family.updated_at,
            spawn_count: family.spawn_count,
            last_spawned_at: family.last_spawned_at,
            snapshot_of: family.snapshot_of,
            public: family.public,
            description: family.description,
        })
    }

    fn tags(&self) -> Vec<TagInfo> {
        let shown = |assignment: &Assignment| {
            let version = self.versions.iter().find(|version| version.build_id == assignment.build_id)?;
            let tag = assignment.name.tag().to_owned();
            let (build_id, assigned_at) = (version.build_id.to_string(), assignment.at);
            Some(TagInfo { tag, build_id, assigned_at, built_at: version.updated_at })
        };
        self.assignments.iter().filter_map(shown).collect()
    }
}

/// The build of a template that has none on record: one of the host itself, or a snapshot.
fn without_build(version: &TemplateRecord) -> BuildInfo {
    BuildInfo {
        id: version.build_id.to_string(),
        template_id: version.id.to_string(),
        tags: version.tags().map(str::to_owned).collect(),
        cpus: version.budget.cpus,
        memory_mib: u32::try_from(version.budget.memory_mib).unwrap_or(u32::MAX),
        disk_mib: Some(version.budget.disk_mib),
        state: BuildState::Ready,
        reason: None,
        created_at: version.updated_at,
        updated_at: version.updated_at,
        finished_at: Some(version.updated_at),
    }
}
