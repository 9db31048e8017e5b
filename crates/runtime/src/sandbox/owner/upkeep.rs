//! What is done for a sandbox that nobody asks for: its disk is kept shallow, and its memory diff small.
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
//! Of a sandbox that is paused and holds more of the disk than it may, all own layers are merged, however few: that frees what it wrote
//! over, and nobody else can free it. A resume then counts the merged layer instead.
//!
//! The record comes first: until then nothing needs the merged layer, and a crash leaves it to be collected; from then on a later
//! server names it, too. A sandbox that is cut faster than its layers can be merged waits for them in the end: the depth is
//! bounded.
//!
//! A memory is flattened only while its sandbox is paused, and given up when it wakes: a machine cannot change what it maps, and
//! whoever wakes it is not to wait. It begins a while after the pause, so that what is paused and resumed at once costs nothing.

use std::sync::Arc;

use firkin_causes::chain;
use firkin_engine::DiskFormat;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Owner, Phase};
use crate::{
    artifact::{Artifact, ArtifactStore, MAX_DEPTH, MergedLayers, Pin},
    ground::{
        blocking::blocking,
        ids::{ArtifactId, LayerId},
    },
    shared::Shared,
    store::{Held, RecordedPhase},
    upkeep::sandbox_quota,
};

/// At this depth a sandbox waits for its merge: before it is cut again, it is shallow.
const WAITING_DEPTH: usize = 2 * MAX_DEPTH;

/// The upkeep of one sandbox. Dropped, its work is given up.
#[derive(Debug, Default)]
pub(super) struct Upkeep {
    /// The artifact that holds the sandbox while it is paused, and its layers.
    held: Option<(ArtifactId, Vec<LayerId>)>,
    flattening: Option<Work<Flat>>,
    merge: Option<Work<MergedLayers>>,
    /// What was merged, until it is named.
    merged: Option<MergedLayers>,
    /// The depth at which a merge failed: there it is not tried again.
    failed_at: Option<usize>,
    /// It is paused, and holds more of the disk than it may: its layers are merged however few they are.
    crowded: bool,
}

/// Something that is under way. Dropped, it is given up.
#[derive(Debug)]
struct Work<T> {
    task: JoinHandle<Option<T>>,
    /// Layers under the sandbox when it began.
    depth: usize,
    _given_up: DropGuard,
}

/// The state of a paused sandbox with a memory of its own.
#[derive(Debug)]
pub(super) struct Flat {
    /// What it is made of.
    of: ArtifactId,
    artifact: Artifact,
    pin: Pin,
}

/// What has come to an end.
#[derive(Debug)]
pub(super) enum Progress {
    /// Layers were merged, or not.
    Merge,
    /// There is a flat state, unless that failed.
    Flat(Option<Box<Flat>>),
}

impl Upkeep {
    /// The sandbox is being woken: what can only be done while it is paused is given up.
    pub(super) fn wake(&mut self) {
        (self.flattening, self.held, self.crowded) = (None, None, false);
    }

    /// The paused sandbox holds more of the disk than it may.
    pub(super) fn crowd(&mut self) {
        self.crowded = true;
    }

    /// The layers of a disk with what was merged of them.
    pub(super) fn shallow(&self, layers: &[LayerId]) -> Option<Vec<LayerId>> {
        self.merged.as_ref().and_then(|merged| merged.splice(layers))
    }

    /// Ends when something does that is under way. Cancel-safe.
    pub(super) async fn progress(&mut self) -> Progress {
        tokio::select! {
            merged = finished(self.merge.as_mut()) => {
                // It has said why it failed, or was stopped with the runtime.
                self.failed_at = self.merge.take().filter(|_| merged.is_none()).map(|work| work.depth);
                self.merged = merged;
                Progress::Merge
            }
            flat = finished(self.flattening.as_mut()) => {
                self.flattening = None;
                Progress::Flat(flat.map(Box::new))
            }
        }
    }
}

/// Ends when the work does, never where there is none. Cancel-safe.
async fn finished<T>(work: Option<&mut Work<T>>) -> Option<T> {
    match work {
        // One that panicked has failed like any other.
        Some(work) => (&mut work.task).await.ok().flatten(),
        None => std::future::pending().await,
    }
}

impl Owner {
    /// Begins what is due and puts to use what is done.
    pub(super) async fn keep_up(&mut self) {
        self.name_merged().await;
        self.begin_flattening();
        self.begin_merge();
        if let Phase::Running(running) = &self.phase
            && running.session.disk.layers.len() >= WAITING_DEPTH
        {
            // One that was overtaken by a cut is followed by one that is not: nothing is cut meanwhile.
            while self.upkeep.merge.is_some() {
                let progress = self.upkeep.progress().await;
                self.advance(progress).await;
                self.name_merged().await;
                self.begin_merge();
            }
        }
    }

    /// Looks at what holds the sandbox, once, when it has been paused.
    fn begin_flattening(&mut self) {
        let Phase::Paused(held) = &self.phase else {
            self.upkeep.wake();
            return;
        };
        if self.upkeep.held.as_ref().is_some_and(|(artifact, _)| *artifact == held.artifact) {
            return;
        }
        // One that cannot be read is not for us to complain about.
        let loaded = self.shared.artifacts.load(&held.artifact).ok();
        let layers = loaded.as_ref().map(|artifact| artifact.manifest.disk.layers.clone()).unwrap_or_default();
        let depth = layers.len();
        self.upkeep.held = Some((held.artifact.clone(), layers));
        let is_bulky = |artifact: &Artifact| ArtifactStore::is_bulky(artifact, self.shared.config.flatten);
        self.upkeep.flattening = loaded.filter(is_bulky).map(|artifact| {
            let stop = self.shared.stopping.child_token();
            let task = self.shared.tasks.spawn(flatten(Arc::clone(&self.shared), artifact, stop.clone()));
            Work { task, depth, _given_up: stop.drop_guard() }
        });
    }

    /// Takes note of what has come to an end.
    pub(super) async fn advance(&mut self, progress: Progress) {
        let Progress::Flat(Some(flat)) = progress else { return };
        let Phase::Paused(held) = &self.phase else { return };
        if held.artifact != flat.of {
            return;
        }
        let held = Held { artifact: flat.artifact.manifest.id.clone(), ..held.clone() };
        let mut record = self.record.clone();
        record.phase = RecordedPhase::Paused(held.clone());
        match self.shared.store.update_sandbox(record.clone(), self.record.guard()).await {
            Ok(()) => {
                tracing::info!(sandbox = %self.record.id, artifact = %held.artifact, "flattened the memory of a paused sandbox");
                self.record = record;
                self.become_phase(Phase::Paused(held));
            }
            Err(error) => {
                tracing::warn!(sandbox = %self.record.id, error = chain(&error), "cannot record a flattened state");
            }
        }
        drop(flat.pin);
        self.shared.collect();
    }

    /// The sealed layers of the disk as it is now.
    fn layers(&self) -> &[LayerId] {
        match &self.phase {
            Phase::Running(running) => &running.session.disk.layers,
            Phase::Paused(_) => self.upkeep.held.as_ref().map(|(_, layers)| &layers[..]).unwrap_or_default(),
            Phase::Gone => &[],
        }
    }

    /// How the engine of its disk keeps disks, if that is here.
    fn form(&self) -> Option<&'static dyn DiskFormat> {
        match &self.phase {
            Phase::Running(running) => Some(running.session.disk.form),
            Phase::Paused(held) => {
                let made = self.shared.artifacts.load(&held.artifact).ok()?.manifest.engine;
                Some(self.shared.launcher.engines.its_own(&made)?.disks())
            }
            Phase::Gone => None,
        }
    }

    fn begin_merge(&mut self) {
        let layers = self.layers().to_vec();
        let (depth, upkeep) = (layers.len(), &self.upkeep);
        let own = if upkeep.crowded { self.first_own(&layers) } else { None };
        let done = upkeep.shallow(&layers).is_some();
        if (depth <= MAX_DEPTH && own.is_none()) || done || upkeep.merge.is_some() || upkeep.failed_at == Some(depth) {
            return;
        }
        let Some(form) = self.form() else { return };
        let stop = self.shared.stopping.child_token();
        let task = self.shared.tasks.spawn(merge(Arc::clone(&self.shared), (layers, form), own, stop.clone()));
        self.upkeep.merge = Some(Work { task, depth, _given_up: stop.drop_guard() });
    }

    /// Where the sandbox's own layers begin, if there are several, above the lowest of all.
    fn first_own(&self, layers: &[LayerId]) -> Option<usize> {
        let first = sandbox_quota::own_layers(&self.record, layers).next()?;
        let first = layers.iter().position(|layer| layer == first)?.max(1);
        (layers.len() > first + 1).then_some(first)
    }

    /// Has the record, and then the running session, name what was merged. What does not fit is dropped.
    async fn name_merged(&mut self) {
        let Phase::Running(running) = &mut self.phase else { return };
        let Some(merged) = self.upkeep.merged.take() else { return };
        let Some(shallow) = merged.splice(&running.session.disk.layers) else { return };
        let mut record = self.record.clone();
        let RecordedPhase::Running { layers, .. } = &mut record.phase else { return };
        layers.clone_from(&shallow);
        let depths = (running.session.disk.layers.len(), shallow.len());
        match self.shared.store.update_sandbox(record.clone(), self.record.guard()).await {
            Ok(()) => {
                running.session.name_layers(shallow, merged.pin);
                self.record = record;
                tracing::info!(sandbox = %self.record.id, from = depths.0, to = depths.1, "merged the layers of a disk");
            }
            Err(error) => {
                // Kept whatever the store says: what it refused it may have written.
                let layers = running.session.disk.layers.clone();
                running.session.name_layers(layers, merged.pin);
                self.upkeep.failed_at = Some(depths.0);
                tracing::warn!(sandbox = %self.record.id, error = chain(&error), "cannot record the merged layers of a disk");
            }
        }
    }
}

/// Merges the upper ones of `layers`, or those from the one that is given, when it is this sandbox's turn.
async fn merge(
    shared: Arc<Shared>,
    (layers, form): (Vec<LayerId>, &'static dyn DiskFormat),
    from: Option<usize>,
    stop: CancellationToken,
) -> Option<MergedLayers> {
    // They stay while they are read, whatever becomes of the sandbox.
    let _pins: Vec<_> = layers.iter().map(|id| shared.artifacts.pin(id.clone())).collect();
    let _turn = tokio::select! {
        turn = shared.upkeep.acquire() => turn.ok()?,
        () = stop.cancelled() => return None,
    };
    if let Err(error) = shared.gates.disk.check() {
        tracing::warn!(error = chain(&error), "the layers of a disk are not merged");
        return None;
    }
    let (artifacts, stopped) = (shared.artifacts.clone(), stop.clone());
    match blocking(move || artifacts.merge_layers(&layers, from, form, &|| !stopped.is_cancelled())).await {
        Ok(merged) => Some(merged),
        Err(_) if stop.is_cancelled() => None,
        Err(error) => {
            tracing::warn!(error = chain(&error), "the layers of a disk are not merged");
            None
        }
    }
}

/// Gives the state of a paused sandbox a memory of its own, some time after the pause, when it is its turn.
async fn flatten(shared: Arc<Shared>, artifact: Artifact, stop: CancellationToken) -> Option<Flat> {
    let work = async {
        tokio::time::sleep(shared.config.flatten.after).await;
        shared.upkeep.acquire().await.ok()
    };
    let _turn = tokio::select! {
        turn = work => turn?,
        () = stop.cancelled() => return None,
    };
    if let Err(error) = shared.gates.disk.check() {
        tracing::warn!(error = chain(&error), "the memory of a paused sandbox is not flattened");
        return None;
    }
    let (artifacts, of, stopped) = (shared.artifacts.clone(), artifact.manifest.id.clone(), stop.clone());
    match blocking(move || artifacts.flatten(&artifact, &|| !stopped.is_cancelled())).await {
        Ok((artifact, pin)) => Some(Flat { of, artifact, pin }),
        // It was woken, or is gone.
        Err(_) if stop.is_cancelled() => None,
        Err(error) => {
            tracing::warn!(error = chain(&error), "the memory of a paused sandbox is not flattened");
            None
        }
    }
}
