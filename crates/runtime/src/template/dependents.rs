//! Who depends on a template or a snapshot, so that it is not deleted under them.
//!
//! Artifacts are counted by reference: a deletion never takes memory or a disk layer from anybody. What a deletion can take is the
//! place that a name leads to, and room that is then not given back. So a template or snapshot stays while
//!
//! - a sandbox that was created from it exists, running or paused: its template is what it tells its users, and what they look up;
//! - a snapshot stands on its memory: the deletion would free next to nothing, and look as if it had.
//!
//! What was only *derived* does not hold it: a snapshot of a sandbox that came from another snapshot has the whole difference to
//! the template in itself, so the other snapshot can go once its sandboxes are gone. A sandbox does not hold its own snapshots
//! either, nor they it.

use crate::{
    ground::{
        ids::{ArtifactId, TemplateId},
        reference::Reference,
        team::{Scope, TeamId},
    },
    store::{SandboxRecord, TemplateRecord, spec::SandboxId},
};

/// The dependents of a template or snapshot, each as a person of `scope` would name it, who is told of others' no more than that they are.
///
/// `artifacts` are those that would go with it, and `base_of` tells on whose memory another one stands.
pub(crate) fn of(
    (scope, id): (&Scope, &TemplateId),
    artifacts: &[&ArtifactId],
    sandboxes: &[SandboxRecord],
    templates: &[TemplateRecord],
    base_of: impl Fn(&ArtifactId) -> Option<ArtifactId>,
) -> Vec<String> {
    let of_it = sandboxes.iter().filter(|sandbox| sandbox.template_id == *id).map(|sandbox| (&sandbox.owner, &sandbox.id));
    created(scope, of_it).chain(standing((scope, id), artifacts, templates, base_of)).collect()
}

/// What another team has made of it.
const ANOTHERS: &str = "another team";

/// Sandboxes that were created from it.
pub(crate) fn created<'a>(
    scope: &Scope,
    sandboxes: impl IntoIterator<Item = (&'a TeamId, &'a SandboxId)>,
) -> impl Iterator<Item = String> {
    sandboxes.into_iter().map(|(owner, id)| if scope.sees(owner) { format!("sandbox `{id}`") } else { ANOTHERS.to_owned() })
}

/// Those of them that stand on its memory.
pub(crate) fn standing(
    (scope, id): (&Scope, &TemplateId),
    artifacts: &[&ArtifactId],
    templates: &[TemplateRecord],
    base_of: impl Fn(&ArtifactId) -> Option<ArtifactId>,
) -> Vec<String> {
    let stands = |other: &&TemplateRecord| {
        let base = || base_of(&other.artifact);
        other.id != *id && !artifacts.contains(&&other.artifact) && base().is_some_and(|base| artifacts.contains(&&base))
    };
    let kind = |record: &TemplateRecord| if record.snapshot_of.is_some() { "snapshot" } else { "template" };
    let standing = templates.iter().filter(stands);
    standing
        .map(|record| {
            if !scope.sees(&record.owner) {
                return ANOTHERS.to_owned();
            }
            format!("{} `{}`", kind(record), record.names.first().map_or_else(|| record.id.to_string(), Reference::to_string))
        })
        .collect()
}
