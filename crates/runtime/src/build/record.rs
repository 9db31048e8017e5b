//! From what a build made to a template that creates find.
//!
//! A name with a tag stands for one build until it is built or assigned anew. So when a build takes some of a template's names, the
//! others stay with what they stood for, as a template of its own; and a template that has lost all of its names and has no
//! sandbox is gone.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Defaults, registry::BuildRecord};
use crate::{
    artifact::Artifact,
    core::Core,
    error::StoreError,
    store::{Became, TemplateRecord},
};

/// What a template has besides its artifact.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Setup {
    /// Whether it is marked as public.
    #[serde(default)]
    pub(crate) public: bool,
    /// What commands of its sandboxes get that ask for nothing else.
    #[serde(default)]
    pub(crate) defaults: Defaults,
    /// The command that runs in it since its build.
    #[serde(default)]
    pub(crate) start: Option<String>,
    /// What said that it was ready.
    #[serde(default)]
    pub(crate) ready: Option<String>,
}

/// What a build made.
pub(super) struct Finished {
    pub(super) artifact: Artifact,
    pub(super) defaults: Defaults,
    pub(super) start: Option<String>,
    pub(super) ready: Option<String>,
    pub(super) warm_up: Option<String>,
}

/// What is to be recorded of a build: the template of its names.
pub(super) async fn template(core: &Core, build: &BuildRecord, finished: Finished) -> Result<Became, StoreError> {
    let now = Timestamp::now();
    let names = build.names();
    let all = core.store.templates().await?;
    let earlier = all.iter().find(|record| record.id == build.template_id);
    let parted = earlier.and_then(|earlier| {
        let others: Vec<String> = earlier.names.iter().filter(|name| !names.contains(name)).cloned().collect();
        (!others.is_empty()).then(|| TemplateRecord { id: crate::random::alphanumeric(20), names: others, ..earlier.clone() })
    });
    // A wait for nothing in particular warms nothing.
    let ready = finished.ready.clone().filter(|ready| !ready.trim_start().starts_with("sleep"));
    let template = TemplateRecord {
        id: build.template_id.clone(),
        build_id: build.id.clone(),
        artifact: finished.artifact.manifest.id.clone(),
        budget: finished.artifact.manifest.budget,
        created_at: earlier.map_or(build.created_at, |earlier| earlier.created_at),
        updated_at: now,
        spawn_count: earlier.map_or(0, |earlier| earlier.spawn_count),
        last_spawned_at: earlier.and_then(|earlier| earlier.last_spawned_at),
        snapshot_of: None,
        made_from: None,
        recipe: None,
        warm_up: ready.or(finished.warm_up),
        setup: Setup {
            public: earlier.is_some_and(|earlier| earlier.setup.public),
            defaults: finished.defaults,
            start: finished.start,
            ready: finished.ready,
        },
        names: names.clone(),
    };
    let is_bereft = |other: &&TemplateRecord| {
        other.id != build.template_id
            && other.snapshot_of.is_none()
            && !other.names.is_empty()
            && other.names.iter().all(|name| names.contains(name))
    };
    let sandboxes = core.store.sandboxes().await?;
    let is_used = |other: &&TemplateRecord| sandboxes.iter().any(|sandbox| sandbox.template_id == other.id);
    let bereft = all.iter().filter(is_bereft).filter(|other| !is_used(other)).map(|other| other.id.clone()).collect();
    Ok(Became { template, parted, bereft })
}
