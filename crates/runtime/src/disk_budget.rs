//! Collection, and the disk budget: what nobody needs is removed, and what can be made again goes, oldest use first, until the
//! state directory fits. When even that is not enough, nothing new is kept; what users have is never touched, and pausing goes on
//! down to the floor.
//!
//! Volumes are not counted: they are their users', and may have more files than can be walked every time. Nor is the directory
//! walked for each thing that goes: one walk tells what each would free, and so how many must go. Only what cannot be foreseen, as
//! a machine that writes or a build that uses something just now, makes another round necessary.

use std::{collections::HashSet, io, path::PathBuf, sync::Arc, time::SystemTime};

use firkin_causes::chain;

use self::plan::{Candidate, DiskUse, Spare, What};
use crate::{
    artifact::MemoryMember,
    core::Core,
    disk::DiskPressure,
    store::{InUse, RecordedPhase, StoreError},
};

mod plan;

/// Collects whenever that is wanted, until the runtime stops.
pub(crate) async fn keep_whenever_wanted(core: Arc<Core>) {
    loop {
        tokio::select! {
            () = core.collection_wanted() => {}
            () = core.stopping.cancelled() => return,
        }
        if let Err(error) = keep(&core).await {
            tracing::warn!(error = chain(&*error), "cannot collect unused artifacts");
        }
    }
}

/// Collects what nobody needs, then lets go what can be made again until the rest fits. Gives the bytes that are held then, or
/// nothing when there is no budget.
pub(crate) async fn keep(core: &Core) -> Result<Option<u64>, Box<dyn std::error::Error + Send + Sync>> {
    let _turn = core.collecting.lock().await;
    collect(core).await?;
    let Some(budget_mib) = core.config.disk_budget_mib else { return Ok(None) };
    let budget = budget_mib.saturating_mul(1 << 20);
    loop {
        let held = look(core).await?;
        let needed = needed(core).await?;
        let plan = held.plan(&needed_parts(core, &needed).await?, candidates(core, &needed).await?);
        core.metrics.disk(budget, held.bytes, plan.iter().map(|spare| spare.bytes).sum());
        // Each round lets something go, so there is a last one.
        if held.bytes <= budget || !let_go(core, plan, held.bytes - budget).await? {
            return Ok(Some(held.bytes));
        }
        collect(core).await?;
    }
}

/// Refuses what would be kept besides what already exceeds the budget.
pub(crate) async fn admit(core: &Core) -> Result<(), DiskPressure> {
    let Some(budget_mib) = core.config.disk_budget_mib else { return Ok(()) };
    let path = || core.config.state_dir.clone();
    let held = keep(core).await.map_err(|error| {
        let source = io::Error::other(chain(&*error));
        DiskPressure::ProbeFailed { path: path(), source }
    })?;
    let held_mib = held.unwrap_or(0).div_ceil(1 << 20);
    if held_mib > budget_mib {
        return Err(DiskPressure::OverBudget { path: path(), held_mib, budget_mib });
    }
    Ok(())
}

/// Removes what nobody needs; only in its turn. Candidates first, then what is in use: whatever comes into use in between is not
/// a candidate.
async fn collect(core: &Core) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let artifacts = core.artifacts.clone();
    let candidates = tokio::task::spawn_blocking(move || artifacts.candidates()).await??;
    let InUse { artifacts: mut keep, layers, states } = core.store.in_use().await?;
    keep.extend(states.into_iter().map(|state| state.artifact));
    let artifacts = core.artifacts.clone();
    let removed = tokio::task::spawn_blocking(move || artifacts.collect(&candidates, &keep, &layers)).await??;
    if !removed.is_empty() {
        tracing::debug!(count = removed.len(), "collected unused artifacts");
    }
    Ok(())
}

/// The use of the state directory now.
async fn look(core: &Core) -> io::Result<DiskUse> {
    let root = core.config.state_dir.clone();
    tokio::task::spawn_blocking(move || DiskUse::below(&root)).await.map_err(io::Error::other)?
}

/// Things that can be made again and that nothing else stands on.
async fn candidates(core: &Core, needed: &HashSet<String>) -> Result<Vec<Candidate>, Box<dyn std::error::Error + Send + Sync>> {
    let layers = core.store.layers().await?.into_iter().filter(|layer| !needed.contains(&layer.artifact));
    let mut found: Vec<Candidate> = layers
        .map(|layer| {
            let (used, parts) = (SystemTime::from(layer.used_at), parts_of(core, &layer.artifact));
            Candidate { used, what: What::Layer(layer), parts }
        })
        .collect();
    let uploads = core.files.at_rest()?.into_iter();
    found.extend(uploads.map(|(used, path)| Candidate {
        used,
        parts: HashSet::from([path.clone()]),
        what: What::Upload(path, used),
    }));
    Ok(found)
}

/// Lets go the first of `plan` until they free `excess` bytes. Whether anything went.
async fn let_go(core: &Core, plan: Vec<Spare>, excess: u64) -> Result<bool, Box<dyn std::error::Error + Send + Sync>> {
    let (mut any, mut freed) = (false, 0);
    for Spare { what, bytes } in plan {
        if freed >= excess {
            break;
        }
        // Only if it is what it was: whoever has come to use it meanwhile has noted that.
        let went = match what {
            What::Layer(layer) => core.store.delete_layer_as(layer).await?,
            What::Upload(path, used) => core.files.remove_unused(&path, used)?,
        };
        if went {
            (any, freed) = (true, freed + bytes);
        }
    }
    Ok(any)
}

/// The parts that needed artifacts and running sandboxes keep.
async fn needed_parts(core: &Core, needed: &HashSet<String>) -> Result<HashSet<PathBuf>, StoreError> {
    let mut parts: HashSet<PathBuf> = needed.iter().flat_map(|artifact| parts_of(core, artifact)).collect();
    for sandbox in core.store.sandboxes().await? {
        if let RecordedPhase::Running { layers, .. } = sandbox.phase {
            parts.extend(layers.iter().map(|layer| core.artifacts.layer(layer)));
        }
    }
    Ok(parts)
}

/// Artifacts that stay whether or not builds know them: to forget those would free nothing.
async fn needed(core: &Core) -> Result<HashSet<String>, StoreError> {
    let mut needed: HashSet<String> = core.store.templates().await?.into_iter().map(|t| t.artifact).collect();
    needed.extend(core.store.sandboxes().await?.into_iter().map(|sandbox| match sandbox.phase {
        RecordedPhase::Paused(held) => held.artifact,
        RecordedPhase::Running { memory_base, .. } => memory_base,
    }));
    let bases: Vec<String> = needed.iter().filter_map(|id| base_of(core, id)).collect();
    needed.extend(bases);
    Ok(needed)
}

/// The artifact on whose memory this one stands.
fn base_of(core: &Core, id: &str) -> Option<String> {
    match core.artifacts.load(id).ok()?.manifest.memory {
        MemoryMember::Diff { base } => Some(base),
        MemoryMember::Full | MemoryMember::InState | MemoryMember::Absent => None,
    }
}

/// Everything that an artifact keeps from being collected. Of one that cannot be read that is itself.
fn parts_of(core: &Core, id: &str) -> HashSet<PathBuf> {
    let mut parts = HashSet::new();
    // Diffs do not stack, so this has two rounds at most.
    let mut next = Some(id.to_owned());
    while let Some(id) = next.take() {
        if parts.insert(core.artifacts.dir(&id))
            && let Ok(artifact) = core.artifacts.load(&id)
        {
            parts.extend(artifact.layers);
            next = base_of(core, &id);
        }
    }
    parts
}
