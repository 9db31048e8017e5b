//! States between steps, by the content of all that led to them. A build goes on from the deepest one that it finds.
//!
//! Not every step gets a state of its own: each costs a cut and lengthens the disk's chain. A state is kept of a prepared source, of
//! the end of all steps, and between steps whenever enough work has been done that it is worth more than a cut.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::StepSpec;
use crate::{
    artifact::{Artifact, MemoryMember, Pin},
    ground::{ids::ArtifactId, team::TeamId},
    shared::Shared,
    store::{Defaults, LayerRecord, StoreError},
};

/// Work that is worth a state of its own: several times what a cut takes on an emulated guest.
pub(super) const WORTH: Duration = Duration::from_secs(8);

/// States of one build between its steps, however long they take: each is one layer more on the disk's chain.
pub(super) const MAX_PER_BUILD: usize = 6;

/// States that are kept. What was not gone on from for the longest time goes first.
const MAX_LAYERS: usize = 64;

/// The digest of whatever something is made of.
pub(super) fn key(parts: &impl Serialize) -> String {
    let text = serde_json::to_vec(parts).expect("strings and numbers serialise");
    blake3::hash(&text).to_hex().to_string()
}

/// The key after a step, given that before it.
pub(super) fn after(before: &str, step: &StepSpec) -> String {
    key(&(before, step.kind.to_uppercase(), &step.args, &step.files_hash))
}

/// What a team's own steps go on from. What others made of the same parts is not found by them, nor how soon: that would tell what they
/// build. The sources below, images and templates, are found by all.
pub(super) fn within(team: &TeamId, source: &str) -> String {
    // As it was before there were teams, so that what is kept is found.
    if team.is_first() { source.to_owned() } else { key(&("team-v1", team, source)) }
}

/// A state that a build can go on from.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) context: Defaults,
    pub(super) artifact: Artifact,
    /// Keeps it until it is on record that somebody stands on it.
    pub(super) pin: Pin,
}

/// The state of this key, if it is there and this host can go on from it. Counts as use.
pub(super) async fn find(shared: &Shared, key: &str) -> Result<Option<Found>, StoreError> {
    let Some(record) = shared.store.layer(key.to_owned()).await? else { return Ok(None) };
    // Pinned before it is looked at: what is there then stays.
    let pin = shared.artifacts.pin(record.artifact.clone());
    let usable = |artifact: &Artifact| {
        artifact.manifest.memory != MemoryMember::Absent && shared.gates.check_compatible(&artifact.manifest).is_ok()
    };
    let loaded = shared.artifacts.load(&record.artifact).ok().filter(|_| shared.artifacts.is_usable(&record.artifact));
    let Some(artifact) = loaded.filter(usable) else {
        // Unless another build has put a good one in its place.
        shared.store.delete_layer_as(record).await?;
        return Ok(None);
    };
    shared.store.use_layer(record.clone(), Timestamp::now()).await?;
    Ok(Some(Found { context: record.context, artifact, pin }))
}

/// Keeps a state. Its artifact must be pinned until this returns.
pub(super) async fn keep(shared: &Shared, key: String, artifact: &ArtifactId, context: Defaults) -> Result<(), StoreError> {
    shared.store.put_layer(LayerRecord { key, artifact: artifact.clone(), context, used_at: Timestamp::now() }).await
}

/// Lets go what is too much, or everything when the disk is short.
pub(crate) async fn trim(shared: &Shared) -> Result<(), StoreError> {
    let keep = if shared.gates.disk.check().is_ok() { MAX_LAYERS } else { 0 };
    if shared.store.trim_layers(keep).await? {
        shared.collect();
    }
    Ok(())
}

/// Lets go the states between steps that are what a template was: it is deleted, and its room is wanted back. Prepared sources
/// stay: others stand on them.
pub(crate) async fn drop_artifact(shared: &Shared, artifact: &ArtifactId) -> Result<(), StoreError> {
    if shared.artifacts.load(artifact).is_ok_and(|found| found.manifest.parent.is_none()) {
        return Ok(());
    }
    shared.store.delete_layers_of(artifact.clone()).await
}

/// Whether an artifact is kept here too. Then a template that is no more than it holds nobody.
pub(crate) async fn keeps(shared: &Shared, artifact: &ArtifactId) -> Result<bool, StoreError> {
    shared.store.has_layer_of(artifact.clone()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_tells_everything_apart_that_leads_to_another_state() {
        let step = |kind: &str, args: &[&str], files: Option<&str>| StepSpec {
            kind: kind.to_owned(),
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
            files_hash: files.map(str::to_owned),
            force: false,
        };
        let keys = [
            after("a", &step("RUN", &["x"], None)),
            after("b", &step("RUN", &["x"], None)),
            after("a", &step("RUN", &["x", "root"], None)),
            after("a", &step("RUN", &["x root"], None)),
            after("a", &step("COPY", &["x"], None)),
            after("a", &step("COPY", &["x"], Some("h"))),
        ];
        for (index, key) in keys.iter().enumerate() {
            assert!(!keys[..index].contains(key), "{index}");
        }
        let forced = StepSpec { force: true, ..step("run", &["x"], None) };
        assert_eq!(after("a", &forced), keys[0], "whether it is forced changes nothing of the result");
    }
}
