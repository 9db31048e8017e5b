//! Who came from whom: templates, the sandboxes created from them, their snapshots, and what was created from those.
//!
//! ```text
//!   base
//!   ├─ i1 ── mine ── i3       a snapshot of i1, a sandbox created from it
//!   │   └─── i2               a fork of i1
//!   └─ i4
//! ```
//!
//! What is made of sandboxes is on record for all nodes of a cluster, sandboxes are for their own: each tells where its own came from
//! ([`Descent`]), and the forest is made of what all tell.
//!
//! It is read from the records, so it shows what exists. What came from something that is gone hangs where that had hung: a
//! snapshot whose sandbox was killed, below that sandbox's template; a fork whose source was killed, below the template of both.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    ground::ids::TemplateId,
    sandbox::owner::show,
    store::{
        SandboxRecord, TemplateRecord, full_names,
        spec::{SandboxId, SandboxState},
    },
};

/// The kind of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LineageKind {
    /// A template.
    Template,
    /// A snapshot of a sandbox.
    Snapshot,
    /// A sandbox.
    Sandbox,
}

/// Something, and what came from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LineageNode {
    /// Its kind.
    pub kind: LineageKind,
    /// Its id.
    pub id: String,
    /// Its names, if it has any.
    pub names: Vec<String>,
    /// Whether it runs, if it is a sandbox.
    pub state: Option<SandboxState>,
    /// When it was made; of a sandbox, when it was last started.
    pub since: Timestamp,
    /// Its children, oldest first.
    pub children: Vec<LineageNode>,
}

/// Where a sandbox came from, as its node tells another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descent {
    /// The sandbox.
    pub sandbox: SandboxId,
    /// What it was created from.
    pub template: TemplateId,
    /// The sandbox that it is a copy of, if it is one.
    pub forked_from: Option<SandboxId>,
    /// Whether it runs.
    pub state: SandboxState,
    /// When it was last started.
    pub since: Timestamp,
}

impl From<&SandboxRecord> for Descent {
    fn from(record: &SandboxRecord) -> Self {
        Self {
            sandbox: record.id.clone(),
            template: record.template_id.clone(),
            forked_from: record.forked_from.clone(),
            state: show(record).state,
            since: record.started_at,
        }
    }
}

type Key = (LineageKind, String);

/// The forest of everything on record, oldest first. A sandbox that two nodes tell of, while it moves, is the first one's.
pub(crate) fn of(templates: &[TemplateRecord], sandboxes: &[Descent]) -> Vec<LineageNode> {
    let made: BTreeMap<&str, LineageKind> = templates.iter().map(|record| (record.id.as_str(), kind(record))).collect();
    let mut alive = BTreeSet::new();
    let sandboxes: Vec<_> = sandboxes.iter().filter(|descent| alive.insert(descent.sandbox.as_str())).collect();
    let made_by = |id: &str| made.get(id).map(|kind| (*kind, id.to_owned()));
    let lives = |id: &str| alive.contains(id).then(|| (LineageKind::Sandbox, id.to_owned()));
    let mut below: BTreeMap<Option<Key>, Vec<LineageNode>> = BTreeMap::new();
    for record in templates {
        // Versions of one template are one node.
        let known = below.values_mut().flatten().find(|node| node.id == record.id.as_str() && node.kind == kind(record));
        if let Some(known) = known {
            known.names.extend(full_names(record));
            continue;
        }
        let source = record.snapshot_of.as_ref().and_then(|id| lives(id.as_str()));
        let parent = source.or_else(|| record.made_from.as_ref().and_then(|id| made_by(id.as_str())));
        below.entry(parent).or_default().push(LineageNode {
            kind: kind(record),
            id: record.id.to_string(),
            names: full_names(record),
            state: None,
            since: record.created_at,
            children: Vec::new(),
        });
    }
    for descent in sandboxes {
        let source = descent.forked_from.as_ref().and_then(|id| lives(id.as_str()));
        below.entry(source.or_else(|| made_by(descent.template.as_str()))).or_default().push(LineageNode {
            kind: LineageKind::Sandbox,
            id: descent.sandbox.to_string(),
            names: Vec::new(),
            state: Some(descent.state),
            since: descent.since,
            children: Vec::new(),
        });
    }
    grow(None, &mut below)
}

fn kind(record: &TemplateRecord) -> LineageKind {
    if record.snapshot_of.is_some() { LineageKind::Snapshot } else { LineageKind::Template }
}

/// Takes what hangs below `parent` out of the map. Each node is in it once, so this ends.
fn grow(parent: Option<Key>, below: &mut BTreeMap<Option<Key>, Vec<LineageNode>>) -> Vec<LineageNode> {
    let mut nodes = below.remove(&parent).unwrap_or_default();
    nodes.sort_by(|a, b| (a.since, &a.id).cmp(&(b.since, &b.id)));
    for node in &mut nodes {
        node.children = grow(Some((node.kind, node.id.clone())), below);
    }
    nodes
}
