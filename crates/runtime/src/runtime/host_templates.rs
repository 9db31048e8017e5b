//! The runtime's face for the host's own templates: building them, like any other, and waiting for the end.

use std::sync::Arc;

use crate::{
    ground::{
        progress::Report,
        reference::{InvalidReference, Reference, Tag},
        team::Scope,
    },
    images::standard::BuildTemplate,
    runtime::Runtime,
    start::fetching,
    store::{BuildReason, BuildState, StoreError},
    template::{
        TemplateInfo,
        build::{BuildPlan, Live, Source, error::NoBuild, names::Named, warms, whole},
    },
};

/// Last lines of a failed build's log that its error repeats.
const LAST_LINES: usize = 20;

/// Why a template was not built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The name is malformed.
    #[error(transparent)]
    InvalidName(#[from] InvalidReference),
    /// It did not begin.
    #[error("cannot start the build")]
    NotStarted(#[source] NoBuild),
    /// It failed.
    #[error("{}{}", reason.message, said(log))]
    Failed {
        /// Why.
        reason: BuildReason,
        /// The last that it said.
        log: Vec<String>,
    },
    /// It was deleted while it went on.
    #[error("the template was deleted while it was built")]
    Deleted,
    /// Its end is not on record, so nobody knows what it made.
    #[error("the end of the build could not be recorded; the server's log says why")]
    Unrecorded,
    /// The store failed.
    #[error("cannot record the template")]
    Store(#[source] StoreError),
}

fn said(log: &[String]) -> String {
    if log.is_empty() { String::new() } else { format!("; the build said last:\n{}", log.join("\n")) }
}

/// Ends a build that nobody waits for any more.
struct Waiting(Arc<Live>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.abandoned.cancel();
    }
}

impl Runtime {
    /// Boots, prepares and snapshots a template. The build ends with this future.
    pub async fn build_template(&self, build: BuildTemplate, report: Report<'_>) -> Result<TemplateInfo, BuildError> {
        let named = Named {
            owner: self.scope.owner(),
            name: Some(build.name.parse()?),
            tags: vec![Tag::default()],
            cpus: build.cpus,
            memory_mib: build.memory_mib,
            min_free_disk_mib: None,
        };
        let place = self.place(named).await.map_err(BuildError::Store)?;
        let plan = BuildPlan {
            nested_virtualization: build.nested_virtualization,
            engine: build.engine,
            source: Source::Standard(Box::new(build)),
            force: true,
            steps: Vec::new(),
            start: None,
            ready: None,
        };
        let begun = self.begin_build(&place.template_id, &place.build_id, plan).await.map_err(BuildError::NotStarted)?;
        let waiting = Waiting(Arc::clone(&begun.live));
        begun.recorded().await.map_err(BuildError::NotStarted)?;
        self.ended(&waiting, report).await
    }

    /// Tells what a build says until it ends.
    async fn ended(&self, Waiting(live): &Waiting, report: Report<'_>) -> Result<TemplateInfo, BuildError> {
        let mut told = 0;
        loop {
            let new = tokio::select! {
                biased;
                new = live.log.after(told) => new,
                () = live.ended.cancelled() => break,
            };
            told += new.len();
            new.iter().for_each(|entry| report(&entry.message));
        }
        let store = &self.shared().store;
        let record =
            store.build(&Scope::Host, live.record.id.clone()).await.map_err(BuildError::Store)?.ok_or(BuildError::Deleted)?;
        if let Some(reason) = record.reason {
            // The last of it says the reason once more.
            let said = live.log.entries().into_iter().map(|entry| entry.message);
            let log = said.filter(|message| !message.contains(&reason.message)).collect::<Vec<_>>();
            return Err(BuildError::Failed { reason, log: log[log.len().saturating_sub(LAST_LINES)..].to_vec() });
        }
        if record.state != BuildState::Ready {
            return Err(BuildError::Unrecorded);
        }
        self.template(live.record.template_id.as_str()).await.map_err(BuildError::Store)?.ok_or(BuildError::Deleted)
    }

    /// Builds a template unless one of that name was made of the very same parts. Returns it, and whether it was built.
    pub async fn ensure_template(&self, build: BuildTemplate, report: Report<'_>) -> Result<(TemplateInfo, bool), BuildError> {
        let shared = self.shared();
        let recipe = whole::recipe(shared, &build);
        let name = Reference { name: build.name.parse()?, tag: None };
        let existing = shared.store.template(self.scope.clone(), name).await.map_err(BuildError::Store)?.found();
        if let Some(existing) = existing.filter(|t| t.recipe.as_ref() == Some(&recipe))
            && fetching::is_usable(shared, &existing.artifact).await
        {
            // An earlier version may have built it, which did not remember this.
            let warm_up = warms(build.ready.as_deref());
            if existing.warm_up != warm_up {
                shared.store.set_warm_up(existing.build_id, warm_up).await.map_err(BuildError::Store)?;
                self.pool.templates_changed();
            }
            let found = self.template(&build.name).await.map_err(BuildError::Store)?;
            return Ok((found.ok_or(BuildError::Deleted)?, false));
        }
        Ok((self.build_template(build, report).await?, true))
    }
}
