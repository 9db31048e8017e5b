//! Collection, and the disk budget: what nobody needs is removed, and what can be made again goes, oldest use first, until the
//! state directory fits. When even that is not enough, nothing new is kept; what users have is never touched, and pausing goes on
//! down to the floor.
//!
//! Volumes are not counted: they are their users', and may have more files than can be walked every time. Nor is the directory
//! walked for each thing that goes: one walk tells what each would free, and so how many must go. Only what cannot be foreseen, as
//! a machine that writes or a build that uses something just now, makes another round necessary.

use std::{
    collections::HashSet,
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use firkin_causes::chain;

use self::plan::{Candidate, DiskUse, Spare, What};
use super::programs;
use crate::{
    artifact::{ArtifactStore, MemoryMember},
    ground::ids::ArtifactId,
    host::disk::DiskPressure,
    shared::Shared,
    store::{InUse, LayerRecord},
};

mod plan;

/// How long nothing is collected after a collection, as a multiple of what that took.
const REST: u32 = 9;

/// And at least, and at most.
const RESTS: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(5)];

/// Collects whenever that is wanted, until the runtime stops. It looks at all that is on record, and each sandbox that ends wants it. In a catalogue that
/// hosts share all writers wait for that: so there it rests, and takes a tenth of the time at most, unless it takes longer than half a second. What is
/// wanted meanwhile is done once.
pub(crate) async fn keep_whenever_wanted(shared: Arc<Shared>) {
    loop {
        tokio::select! {
            () = shared.collection_wanted() => {}
            () = shared.stopping.cancelled() => return,
        }
        let (kept, took) = {
            let turn = shared.collecting.lock().await;
            let begun = Instant::now();
            let kept = keep_in_turn(&shared).await;
            drop(turn);
            (kept, begun.elapsed())
        };
        if let Err(error) = kept {
            tracing::warn!(error = chain(&*error), "cannot collect unused artifacts");
        }
        if !shared.store.is_shared() {
            continue;
        }
        tokio::select! {
            () = tokio::time::sleep(rest_after(took)) => {}
            () = shared.stopping.cancelled() => return,
        }
    }
}

fn rest_after(took: Duration) -> Duration {
    let [least, most] = RESTS;
    took.saturating_mul(REST).clamp(least, most)
}

/// Collects what nobody needs, then lets go what can be made again until the rest fits. Gives the bytes that are held then, or
/// nothing when there is no budget.
pub(crate) async fn keep(shared: &Shared) -> Result<Option<u64>, Box<dyn std::error::Error + Send + Sync>> {
    let _turn = shared.collecting.lock().await;
    keep_in_turn(shared).await
}

async fn keep_in_turn(shared: &Shared) -> Result<Option<u64>, Box<dyn std::error::Error + Send + Sync>> {
    collect(shared).await?;
    if let Err(error) = programs::forget_unnamed(shared).await {
        tracing::warn!(error = chain(&error), "cannot tell which programs of engines are needed: all are kept");
    }
    let Some(budget_mib) = shared.config.disk_budget_mib else { return Ok(None) };
    let budget = budget_mib.saturating_mul(1 << 20);
    loop {
        let Found { bytes, plan } = look(shared).await?;
        shared.metrics.disk(budget, bytes, plan.iter().map(|spare| spare.bytes).sum());
        // Each round lets something go, so there is a last one.
        if bytes <= budget || !let_go(shared, plan, bytes - budget).await? {
            return Ok(Some(bytes));
        }
        collect(shared).await?;
    }
}

/// Refuses what would be kept besides what already exceeds the budget.
pub(crate) async fn admit(shared: &Shared) -> Result<(), DiskPressure> {
    let Some(budget_mib) = shared.config.disk_budget_mib else { return Ok(()) };
    let path = || shared.config.state_dir.clone();
    let held = keep(shared).await.map_err(|error| {
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
async fn collect(shared: &Shared) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let artifacts = shared.artifacts.clone();
    let candidates = tokio::task::spawn_blocking(move || artifacts.candidates()).await??;
    let InUse { artifacts: mut keep, layers, states } = shared.store.in_use().await?;
    keep.extend(states.into_iter().map(|state| state.artifact));
    let artifacts = shared.artifacts.clone();
    let removed = tokio::task::spawn_blocking(move || artifacts.collect(&candidates, &keep, &layers)).await??;
    if !removed.is_empty() {
        tracing::debug!(count = removed.len(), "collected unused artifacts");
    }
    Ok(())
}

/// What the state directory holds, and what may go of it.
struct Found {
    bytes: u64,
    plan: Vec<Spare>,
}

/// Looks at the state directory. Manifests of all that is in use are read, so that is done where it keeps nobody waiting.
async fn look(shared: &Shared) -> Result<Found, Box<dyn std::error::Error + Send + Sync>> {
    let in_use = shared.store.in_use().await?;
    let (root, artifacts, files) = (shared.config.state_dir.clone(), shared.artifacts.clone(), shared.files.clone());
    let look = move || {
        let held = DiskUse::below(&root)?;
        let needed = needed(&artifacts, in_use.artifacts);
        let mut parts: HashSet<PathBuf> = needed.iter().flat_map(|id| parts_of(&artifacts, id)).collect();
        parts.extend(in_use.layers.iter().map(|layer| artifacts.layer_file(layer)));
        let states = in_use.states.into_iter().filter(|state| !needed.contains(&state.artifact));
        let plan = held.plan(&parts, candidates(&artifacts, states, files.at_rest()?));
        Ok::<_, io::Error>(Found { bytes: held.bytes, plan })
    };
    Ok(tokio::task::spawn_blocking(look).await??)
}

/// What can be made again and nobody stands on.
fn candidates(
    artifacts: &ArtifactStore,
    states: impl Iterator<Item = LayerRecord>,
    uploads: Vec<(SystemTime, PathBuf)>,
) -> Vec<Candidate> {
    let state = |state: LayerRecord| {
        let (used, parts) = (SystemTime::from(state.used_at), parts_of(artifacts, &state.artifact));
        Candidate { used, what: What::Layer(state), parts }
    };
    let upload = |(used, path): (SystemTime, PathBuf)| {
        let parts = HashSet::from([path.clone()]);
        Candidate { used, what: What::Upload(path, used), parts }
    };
    states.map(state).chain(uploads.into_iter().map(upload)).collect()
}

/// Lets go the first of `plan` until they free `excess` bytes. Whether anything went.
async fn let_go(shared: &Shared, plan: Vec<Spare>, excess: u64) -> Result<bool, Box<dyn std::error::Error + Send + Sync>> {
    let (mut any, mut freed) = (false, 0);
    for Spare { what, bytes } in plan {
        if freed >= excess {
            break;
        }
        // Only if it is what it was: whoever has come to use it meanwhile has noted that.
        let went = match what {
            What::Layer(layer) => shared.store.delete_layer_as(layer).await?,
            What::Upload(path, used) => {
                let files = shared.files.clone();
                tokio::task::spawn_blocking(move || files.remove_unused(&path, used)).await??
            }
        };
        if went {
            (any, freed) = (true, freed + bytes);
        }
    }
    Ok(any)
}

/// Artifacts that stay whether or not builds know them: to forget those would free nothing.
fn needed(artifacts: &ArtifactStore, used: Vec<ArtifactId>) -> HashSet<ArtifactId> {
    let bases: Vec<ArtifactId> = used.iter().filter_map(|id| base_of(artifacts, id)).collect();
    used.into_iter().chain(bases).collect()
}

/// The artifact on whose memory this one stands.
fn base_of(artifacts: &ArtifactStore, id: &ArtifactId) -> Option<ArtifactId> {
    match artifacts.load(id).ok()?.manifest.memory {
        MemoryMember::Diff { base } => Some(base),
        MemoryMember::Full | MemoryMember::InState | MemoryMember::Absent => None,
    }
}

/// Everything that an artifact keeps from being collected. Of one that cannot be read that is itself.
fn parts_of(artifacts: &ArtifactStore, id: &ArtifactId) -> HashSet<PathBuf> {
    let mut parts = HashSet::new();
    // Diffs do not stack, so this has two rounds at most.
    let mut next = Some(id.clone());
    while let Some(id) = next.take() {
        if parts.insert(artifacts.dir(&id))
            && let Ok(artifact) = artifacts.load(&id)
        {
            parts.extend(artifact.layers);
            next = base_of(artifacts, &id);
        }
    }
    parts
}
