//! The free-space floor, for what runs: admission keeps new work from a disk that is nearly full, and this keeps those who fill it from
//! filling it wholly. A full disk would take their neighbours' writes too, and the records of all.
//!
//! While the disk is below its floor, whoever wrote most since the last look writes no more, one a look: a sandbox is paused, or stands
//! still where there is no room for its memory (`sandbox/owner/room.rs`), and a template build fails, which leaves nothing. Below half of
//! the floor all who write are told at once. Nobody is waited for: what takes long goes on beside the next look. Who writes next to
//! nothing goes on, and so does, for one look, whoever has just come: of them it is not known what they write. Of a build, what its machine
//! writes is watched, and not the image that it pulls and unpacks before.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use firkin_causes::chain;
use tokio::{
    sync::oneshot,
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

use crate::{
    ground::{blocking::blocking, ids::BuildId},
    host::disk::DiskPressure,
    sandbox::owner::{Access, Command, Owners, Relief, SnapshotError, StillError},
    store::spec::SandboxId,
    template::build::Builds,
};

/// Between two looks. A guest writes a gigabyte a second at most, and the floor of a large disk is ten.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// What may be written between two looks without counting as a writer: logs and the like.
const LITTLE_BYTES: u64 = 1 << 20;

/// Who writes to the disk.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Writer {
    Sandbox(SandboxId),
    /// By its id.
    Build(BuildId),
}

/// Bytes that each one's machine holds of the disk: those of the layer that it writes, or of a file without a name.
type Sizes = HashMap<Writer, u64>;

/// How somebody was kept from writing, or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Ended,
    Still,
    Failed,
}

/// Looks until the runtime stops.
pub(crate) async fn hold(owners: Arc<Owners>, builds: Arc<Builds>) {
    let shared = Arc::clone(&owners.shared);
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut watch = Watch::new(owners, builds);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = shared.stopping.cancelled() => break,
        }
        watch.look().await;
    }
    // They hold what the next server waits for: the lock of the state directory.
    watch.under_way.shutdown().await;
}

struct Watch {
    owners: Arc<Owners>,
    builds: Arc<Builds>,
    before: Sizes,
    /// Who is being kept from writing, or let go on.
    under_way: JoinSet<(Writer, Outcome)>,
    told: HashSet<Writer>,
    /// Who could not be.
    cannot: HashSet<Writer>,
    still: HashSet<SandboxId>,
}

impl Watch {
    fn new(owners: Arc<Owners>, builds: Arc<Builds>) -> Self {
        let (under_way, still) = (JoinSet::new(), HashSet::new());
        Self { owners, builds, before: Sizes::new(), under_way, told: HashSet::new(), cannot: HashSet::new(), still }
    }

    async fn look(&mut self) {
        while let Some(done) = self.under_way.try_join_next() {
            // One that panicked has said so, and is not told again.
            if let Ok((writer, outcome)) = done {
                self.note(writer, outcome);
            }
        }
        let owners = Arc::clone(&self.owners);
        let disk = &owners.shared.gates.disk;
        let pressure = disk.check();
        if pressure.is_ok() {
            self.let_go_on();
        }
        // Who wrote how much is worth knowing from some time before it matters.
        if disk.check_for_refill().is_ok() {
            self.before.clear();
            self.cannot.clear();
            return;
        }
        let now = self.sizes().await;
        if let Err(pressure @ DiskPressure::BelowFloor { .. }) = pressure {
            let at_once = if disk.check_reserve().is_err() { usize::MAX } else { 1 };
            for (writer, grown) in next(&self.before, &now, &self.told, &mut self.cannot).into_iter().take(at_once) {
                tracing::warn!(
                    ?writer,
                    grown_mib = grown >> 20,
                    error = chain(&pressure),
                    "keeping from the disk who writes most"
                );
                self.told.insert(writer.clone());
                self.tell(writer, grown);
            }
        }
        self.before = now;
    }

    fn note(&mut self, writer: Writer, outcome: Outcome) {
        self.told.remove(&writer);
        match (outcome, writer) {
            (Outcome::Still, Writer::Sandbox(id)) => drop(self.still.insert(id)),
            (Outcome::Failed, writer) => drop(self.cannot.insert(writer)),
            (Outcome::Ended | Outcome::Still, _) => {}
        }
    }

    /// Has those go on that stand still. Whoever does not is asked again by a later look.
    fn let_go_on(&mut self) {
        for id in std::mem::take(&mut self.still) {
            let owners = Arc::clone(&self.owners);
            self.under_way.spawn(async move {
                let outcome = move_again(&owners, &id).await;
                (Writer::Sandbox(id), outcome)
            });
        }
    }

    fn tell(&mut self, writer: Writer, grown: u64) {
        match &writer {
            Writer::Build(id) => {
                let Some(ended) = self.builds.crowd_out(id) else {
                    self.told.remove(&writer);
                    return;
                };
                self.under_way.spawn(async move {
                    // Until its machine is gone it is not told again in place of somebody else.
                    ended.cancelled_owned().await;
                    (writer, Outcome::Ended)
                });
            }
            Writer::Sandbox(id) => {
                let (owners, id) = (Arc::clone(&self.owners), id.clone());
                self.under_way.spawn(async move {
                    let outcome = make_room(&owners, &id, grown).await;
                    (writer, outcome)
                });
            }
        }
    }

    /// What each has written.
    async fn sizes(&self) -> Sizes {
        let builds = self.builds.workplaces().into_iter().map(|(id, dir)| (Writer::Build(id), dir));
        let sandboxes = running(&self.owners).into_iter().map(|(id, dir)| (Writer::Sandbox(id), dir));
        let dirs: Vec<(Writer, PathBuf)> = sandboxes.chain(builds).collect();
        let engines = self.owners.shared.launcher.engines.clone();
        // Of one that has gone meanwhile there is nothing to know.
        blocking(move || dirs.into_iter().filter_map(|(writer, dir)| Some((writer, engines.bytes_of(&dir).ok()?))).collect())
            .await
    }
}

/// Where the machine of each running sandbox writes.
pub(super) fn running(owners: &Owners) -> Vec<(SandboxId, PathBuf)> {
    let instances = &owners.shared.launcher.instances;
    let handles = owners.handles();
    let dirs = handles.iter().filter_map(|(id, handle)| {
        let view = handle.view.borrow();
        matches!(view.access, Access::Running(_)).then(|| (id.clone(), instances.path(&view.instance)))
    });
    dirs.collect()
}

/// Who is to be told next, the largest writer first, but for those who have been told and those with whom it failed: these are tried
/// again once nobody else writes.
fn next(before: &Sizes, now: &Sizes, told: &HashSet<Writer>, cannot: &mut HashSet<Writer>) -> Vec<(Writer, u64)> {
    let free = now.iter().filter(|(writer, _)| !told.contains(writer) && !cannot.contains(writer));
    let grown = free.filter_map(|(writer, bytes)| Some((writer.clone(), bytes.saturating_sub(*before.get(writer)?))));
    let mut writers: Vec<(Writer, u64)> = grown.filter(|(_, bytes)| *bytes > LITTLE_BYTES).collect();
    writers.sort_by(|a, b| (b.1, &b.0).cmp(&(a.1, &a.0)));
    if writers.is_empty() {
        cannot.clear();
    }
    writers
}

/// Has a sandbox write no more.
async fn make_room(owners: &Owners, id: &SandboxId, grown: u64) -> Outcome {
    let Some(handle) = owners.handles().get(id).cloned() else { return Outcome::Ended };
    let (reply, answer) = oneshot::channel();
    if handle.commands.send(Command::MakeRoom { grown, reply }).await.is_err() {
        return Outcome::Ended;
    }
    match answer.await {
        Ok(Ok(Relief::Still)) => Outcome::Still,
        // Gone, or paused by somebody else.
        Ok(Ok(Relief::Paused) | Err(SnapshotError::AlreadyPaused(_) | SnapshotError::NotFound(_))) | Err(_) => Outcome::Ended,
        Ok(Err(error)) => {
            tracing::error!(sandbox = %id, error = chain(&error), "cannot stop the sandbox that writes most");
            Outcome::Failed
        }
    }
}

/// Has a sandbox go on that stands still.
async fn move_again(owners: &Owners, id: &SandboxId) -> Outcome {
    let Some(handle) = owners.handles().get(id).cloned() else { return Outcome::Ended };
    let (reply, answer) = oneshot::channel();
    if handle.commands.send(Command::MoveAgain { reply }).await.is_err() {
        return Outcome::Ended;
    }
    match answer.await {
        // It moves, or is gone.
        Ok(Ok(())) | Err(_) => Outcome::Ended,
        Ok(Err(StillError::Disk(_))) => Outcome::Still,
        Ok(Err(error @ StillError::Machine(_))) => {
            tracing::error!(sandbox = %id, error = chain(&error), "cannot let a sandbox go on that stood still");
            Outcome::Still
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writer(id: &str) -> Writer {
        if let Some(build) = id.strip_prefix("build-") {
            Writer::Build(build.parse().unwrap())
        } else {
            Writer::Sandbox(id.parse().unwrap())
        }
    }

    fn sizes<const N: usize>(sizes: [(&str, u64); N]) -> Sizes {
        sizes.into_iter().map(|(id, mib)| (writer(id), mib << 20)).collect()
    }

    fn found(before: &Sizes, now: &Sizes, told: &[&str], cannot: &mut HashSet<Writer>) -> Vec<(Writer, u64)> {
        let told = told.iter().copied().map(writer).collect();
        next(before, now, &told, cannot).into_iter().map(|(writer, bytes)| (writer, bytes >> 20)).collect()
    }

    #[test]
    fn it_is_growth_that_counts_and_not_size() {
        let before = sizes([("large", 900), ("writer", 10), ("cut", 500), ("build-b", 7)]);
        let now = sizes([("large", 901), ("writer", 40), ("cut", 20), ("new", 5), ("build-b", 47)]);
        let none = &mut HashSet::new();
        assert_eq!(found(&before, &now, &[], none), [(writer("build-b"), 40), (writer("writer"), 30)]);
        assert_eq!(found(&before, &now, &["build-b"], none), [(writer("writer"), 30)]);
        assert_eq!(found(&Sizes::new(), &now, &[], none), [], "what is there already was not written just now");
        assert_eq!(found(&before, &before, &[], none), []);
    }

    #[test]
    fn who_cannot_be_stopped_shields_nobody_and_is_tried_again() {
        let (before, now) = (sizes([("first", 0), ("second", 0)]), sizes([("first", 90), ("second", 50)]));
        let mut cannot = HashSet::new();
        let mut first = || {
            let found = found(&before, &now, &[], &mut cannot).into_iter().next().map(|(writer, _)| writer);
            cannot.extend(found.clone());
            found
        };
        assert_eq!(
            [first(), first(), first(), first()],
            [Some(writer("first")), Some(writer("second")), None, Some(writer("first"))]
        );
    }
}
