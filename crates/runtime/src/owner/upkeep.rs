//! What is done for a sandbox that nobody asks for: its disk is kept shallow.
//!
//! ```text
//!   cut, cut, cut ... ──► too deep ──► upper layers are merged, in the background ──► recorded, then named by the next cut
//! ```
//!
//! Layers are merged while a sandbox runs or is paused; the merged one is put to use while it runs. The machine keeps the files
//! open that it was started with; what changes is what the record and later artifacts name, and the header of the layer that the
//! machine writes, when that is sealed. A layer that was sealed meanwhile names what lay below it then, so a merge that was
//! overtaken by a cut is of no use and another one begins.
//!
//! The record comes first: until then nothing needs the merged layer, and a crash leaves it to be collected; from then on a later
//! server names it, too. A sandbox that is cut faster than its layers can be merged waits for them in the end: the depth is
//! bounded.

use std::sync::Arc;

use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Owner, Phase, chain};
use crate::{
    artifact::{MAX_DEPTH, MergedLayers},
    core::Core,
    store::RecordedPhase,
};

/// At this depth a sandbox waits for its merge: before it is cut again, it is shallow.
const WAITING_DEPTH: usize = 2 * MAX_DEPTH;

/// The upkeep of one sandbox. Dropped, its work is given up.
#[derive(Debug, Default)]
pub(super) struct Upkeep {
    /// The artifact that holds the sandbox while it is paused, and its layers.
    held: Option<(String, Vec<String>)>,
    merge: Option<Merge>,
    /// What was merged, until it is named.
    merged: Option<MergedLayers>,
    /// The depth at which a merge failed: there it is not tried again.
    failed_at: Option<usize>,
}

/// Layers that are being merged.
#[derive(Debug)]
struct Merge {
    task: JoinHandle<Option<MergedLayers>>,
    depth: usize,
    _given_up: DropGuard,
}

impl Upkeep {
    /// Ends when the merge does, never where there is none. Cancel-safe.
    pub(super) async fn progress(&mut self) {
        let Some(merge) = &mut self.merge else { return std::future::pending().await };
        let outcome = (&mut merge.task).await;
        self.failed_at = None;
        match outcome {
            Ok(Some(merged)) => self.merged = Some(merged),
            // It has said why, or was stopped with the runtime.
            Ok(None) | Err(_) => self.failed_at = Some(merge.depth),
        }
        self.merge = None;
    }
}

impl Owner {
    /// Begins what is due and puts to use what is done.
    pub(super) async fn keep_up(&mut self) {
        self.name_merged().await;
        self.begin_merge();
        if let Phase::Running(running) = &self.phase
            && running.session.layers.len() >= WAITING_DEPTH
        {
            // One that was overtaken by a cut is followed by one that is not: nothing is cut meanwhile.
            while self.upkeep.merge.is_some() {
                self.upkeep.progress().await;
                self.name_merged().await;
                self.begin_merge();
            }
        }
    }

    /// The sealed layers of the disk as it is now.
    fn layers(&mut self) -> &[String] {
        match &self.phase {
            Phase::Running(running) => &running.session.layers,
            Phase::Paused(held) => {
                if self.upkeep.held.as_ref().is_none_or(|(artifact, _)| *artifact != held.artifact) {
                    // One that cannot be read is not for us to complain about.
                    let loaded = self.core.artifacts.load(&held.artifact).map(|artifact| artifact.manifest.disk.layers);
                    self.upkeep.held = Some((held.artifact.clone(), loaded.unwrap_or_default()));
                }
                self.upkeep.held.as_ref().map(|(_, layers)| &layers[..]).unwrap_or_default()
            }
        }
    }

    fn begin_merge(&mut self) {
        let layers = self.layers().to_vec();
        let (depth, upkeep) = (layers.len(), &self.upkeep);
        let done = upkeep.merged.as_ref().is_some_and(|merged| merged.splice(&layers).is_some());
        if depth <= MAX_DEPTH || done || upkeep.merge.is_some() || upkeep.failed_at == Some(depth) {
            return;
        }
        let stop = self.core.stopping.child_token();
        let task = self.core.tasks.spawn(merge(Arc::clone(&self.core), layers, stop.clone()));
        self.upkeep.merge = Some(Merge { task, depth, _given_up: stop.drop_guard() });
    }

    /// Has the record, and then the running session, name what was merged. What does not fit is dropped.
    async fn name_merged(&mut self) {
        let Phase::Running(running) = &mut self.phase else { return };
        let Some(merged) = self.upkeep.merged.take() else { return };
        let Some(shallow) = merged.splice(&running.session.layers) else { return };
        let mut record = self.record.clone();
        let RecordedPhase::Running { layers, .. } = &mut record.phase else { return };
        layers.clone_from(&shallow);
        let depths = (running.session.layers.len(), shallow.len());
        match self.core.store.put_sandbox(record.clone()).await {
            Ok(()) => {
                running.session.name_layers(shallow, merged.pin);
                self.record = record;
                tracing::info!(sandbox = %self.record.id, from = depths.0, to = depths.1, "merged the layers of a disk");
            }
            Err(error) => {
                // Kept whatever the store says: what it refused it may have written.
                let layers = running.session.layers.clone();
                running.session.name_layers(layers, merged.pin);
                self.upkeep.failed_at = Some(depths.0);
                tracing::warn!(sandbox = %self.record.id, error = chain(&error), "cannot record the merged layers of a disk");
            }
        }
    }
}

/// Merges the upper ones of `layers`, when it is this sandbox's turn.
async fn merge(core: Arc<Core>, layers: Vec<String>, stop: CancellationToken) -> Option<MergedLayers> {
    // They stay while they are read, whatever becomes of the sandbox.
    let _pins: Vec<_> = layers.iter().map(|id| core.artifacts.pin(format!("layer:{id}"))).collect();
    let _turn = tokio::select! {
        turn = core.upkeep.acquire() => turn.ok()?,
        () = stop.cancelled() => return None,
    };
    if let Err(error) = core.gates.disk.check() {
        tracing::warn!(error = chain(&error), "the layers of a disk are not merged");
        return None;
    }
    let artifacts = core.artifacts.clone();
    let merged = tokio::task::spawn_blocking(move || artifacts.merge_layers(&layers, &|| !stop.is_cancelled())).await;
    match merged.expect("a merge does not panic and the runtime does not stop under it") {
        Ok(merged) => Some(merged),
        Err(error) => {
            tracing::warn!(error = chain(&error), "the layers of a disk are not merged");
            None
        }
    }
}
