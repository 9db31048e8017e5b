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

use crate::store::{SandboxRecord, TemplateRecord};

/// The dependents of `target`, each as a person would name it. `base_of` tells on whose memory an artifact stands.
pub(crate) fn of(
    target: &TemplateRecord,
    sandboxes: &[SandboxRecord],
    templates: &[TemplateRecord],
    base_of: impl Fn(&str) -> Option<String>,
) -> Vec<String> {
    let created = sandboxes.iter().filter(|sandbox| sandbox.template_id == target.id);
    let stands = |other: &&TemplateRecord| {
        other.id != target.id && other.artifact != target.artifact && base_of(&other.artifact).as_ref() == Some(&target.artifact)
    };
    let standing = templates.iter().filter(stands);
    let kind = |record: &TemplateRecord| if record.snapshot_of.is_some() { "snapshot" } else { "template" };
    created
        .map(|sandbox| format!("sandbox `{}`", sandbox.id))
        .chain(standing.map(|record| format!("{} `{}`", kind(record), record.names.first().unwrap_or(&record.id))))
        .collect()
}
