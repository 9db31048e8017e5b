//! From what a build made to a template that creates find.
//!
//! A build belongs to one template. Its tags stand for what it made from its end on, until they are built or assigned anew; what
//! another tag stands for stays.

use jiff::Timestamp;

use crate::{
    artifact::Artifact,
    store::{BuildRecord, Defaults, Setup, TemplateRecord},
};

/// What a build made.
pub(super) struct Finished {
    pub(super) artifact: Artifact,
    pub(super) defaults: Defaults,
    pub(super) start: Option<String>,
    pub(super) ready: Option<String>,
    pub(super) warm_up: Option<String>,
    /// Names all that it was made of, of what is looked for by that.
    pub(super) recipe: Option<String>,
}

/// What of a ready command is worth running once in every warm session: a wait for nothing in particular warms nothing.
pub(crate) fn warms(ready: Option<&str>) -> Option<String> {
    ready.filter(|ready| !ready.trim_start().starts_with("sleep")).map(str::to_owned)
}

/// What is to be recorded of a build.
pub(super) fn template(build: &BuildRecord, finished: Finished) -> TemplateRecord {
    let ready = warms(finished.ready.as_deref());
    TemplateRecord {
        id: build.template_id.clone(),
        owner: build.owner.clone(),
        build_id: build.id.clone(),
        artifact: finished.artifact.manifest.id.clone(),
        budget: finished.artifact.manifest.budget,
        created_at: build.created_at,
        updated_at: Timestamp::now(),
        spawn_count: 0,
        last_spawned_at: None,
        description: None,
        snapshot_of: None,
        made_from: None,
        recipe: finished.recipe,
        warm_up: ready.or(finished.warm_up),
        setup: Setup { public: false, defaults: finished.defaults, start: finished.start, ready: finished.ready },
        runs_on: Some(finished.artifact.manifest.engine.acceleration.word().to_owned()),
        names: build.names(),
    }
}
