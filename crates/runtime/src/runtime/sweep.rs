//! Nothing without an owner: what an earlier server left is taken over at the start, and what belongs to nobody is ended and
//! removed, then and every minute.
//!
//! Machines do not die with the server. Those whose sandbox is on record go on under the new server, which also does what their
//! deadline asks for if that passed meanwhile. Everything else of ours is recognised by what it is, not by a journal that would
//! have to be written before each act and believed after each crash:
//!
//! ```text
//!   what                          whose it is                              its owner
//!   instance directory            state directory, locked by its server    the guard of its name (`instances.rs`)
//!   process, by record            pid, start time and user in it           whoever has the directory
//!   process, without a record     user id of a claim, locked likewise      the lease of that slot (`network/sweep.rs`)
//!   way out, rules                name and table of the claim              the lease; the server
//!   control group                 digest of the state directory; locked     the guard of its name, and who is in it
//!   namespace, tap                no name: gone with the last process and descriptor
//!   draft of an artifact          state directory; only at the start       its guard
//! ```

use std::{path::PathBuf, sync::Arc, time::Duration};

use firkin_causes::chain;
use firkin_network::SweptNetwork;
use futures::{StreamExt as _, stream};
use tokio::time::{Instant, MissedTickBehavior};

use crate::{
    ground::{blocking::blocking, team::Scope},
    machine::{launch::LaunchError, session::Session},
    sandbox::owner::{Owner, Owners},
    shared::Shared,
    store::{RecordedPhase, SandboxRecord, state_dir::OpenError},
    template::build::cache,
    upkeep::sandbox_quota,
};

/// Machines that are greeted at a time: one that does not answer must not keep the others waiting.
const ADOPTED_AT_ONCE: usize = 16;

/// Between two sweeps. Guards tidy up at once; this is for what a guard could not do, which nobody waits for.
const INTERVAL: Duration = Duration::from_secs(60);

/// Instances that one pass removes, so that it ends soon.
const INSTANCES_PER_PASS: usize = 64;

/// The things that one sweep removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Swept {
    /// Directories of instances, with their machines.
    pub instances: Vec<PathBuf>,
    /// Processes and interfaces that had no instance.
    pub network: SweptNetwork,
    /// Control groups whose last process had gone.
    pub groups: Vec<PathBuf>,
}

/// Gives every recorded sandbox its owner again and removes what has none.
pub(crate) async fn take_over(owners: &Arc<Owners>) -> Result<(), OpenError> {
    let shared = &owners.shared;
    let mut running = Vec::new();
    let records = shared.store.sandboxes(Scope::Host).await.map_err(OpenError::Store)?;
    // Before any has an owner.
    for record in &records {
        demand_engine(shared, record)?;
    }
    if let Some(fence) = &shared.config.fence {
        let own = records.iter().filter(|record| matches!(record.phase, RecordedPhase::Running { .. }));
        let own = own.map(|record| record.instance().to_owned()).collect();
        // A machine that stands still answers nobody.
        fence.take_over(&own).await.map_err(OpenError::Fence)?;
    }
    for record in records {
        let record = sandbox_quota::begin(shared, record).await;
        match record.phase.clone() {
            RecordedPhase::Paused(held) => Owner::restore_paused(owners, record, held),
            RecordedPhase::Running { .. } => running.push(record),
        }
    }
    let adopting = running.into_iter().map(|record| async { (record.id.clone(), record.guard(), adopt(owners, record).await) });
    let mut adopted = stream::iter(adopting).buffer_unordered(ADOPTED_AT_ONCE);
    let mut forgot = Ok(());
    while let Some((id, guard, outcome)) = adopted.next().await {
        match outcome {
            Ok(()) => tracing::info!(sandbox = %id, "took over a running sandbox"),
            Err(error) => {
                tracing::warn!(sandbox = %id, error = chain(&error), "a sandbox did not outlive the server");
                // All others get their owner first: a machine that is being taken over would end with this.
                if forgot.is_ok() {
                    forgot = shared.store.remove_sandbox(id, guard).await;
                }
            }
        }
    }
    forgot.map_err(OpenError::Store)?;
    if let Some(fence) = &shared.config.fence {
        // Nobody else can have what is on record as running here.
        fence.unlist_all().map_err(OpenError::Fence)?;
    }
    let swept = sweep(shared).await;
    if swept != Swept::default() {
        tracing::info!(?swept, "removed what an earlier server left behind");
    }
    Ok(())
}

/// Refuses to go on without the engine of a machine that runs: it would be taken for dead, and its sandbox be lost.
fn demand_engine(shared: &Shared, record: &SandboxRecord) -> Result<(), OpenError> {
    let RecordedPhase::Running { memory_base, .. } = &record.phase else { return Ok(()) };
    // Of what cannot be read nothing is known; its machine is asked.
    let Ok(base) = shared.artifacts.load(memory_base) else { return Ok(()) };
    let made = base.manifest.engine;
    if shared.launcher.engines.its_own(&made).is_some() || !shared.launcher.instances.path(record.instance()).exists() {
        return Ok(());
    }
    Err(OpenError::Engine { sandbox: record.id.to_string(), engine: made.engine, word: made.acceleration.word() })
}

async fn adopt(owners: &Arc<Owners>, record: SandboxRecord) -> Result<(), LaunchError> {
    let shared = &owners.shared;
    let session = Session::adopt(&shared.launcher, &record).await?;
    let reservation = shared.gates.admission.ledger.adopt(record.budget);
    Owner::adopt(owners, record, session, reservation);
    Ok(())
}

/// Sweeps every minute until the runtime stops.
pub(crate) async fn periodically(shared: Arc<Shared>) {
    let mut pass = tokio::time::interval_at(Instant::now() + INTERVAL, INTERVAL);
    pass.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = pass.tick() => {}
            () = shared.stopping.cancelled() => return,
        }
        // States of builds go before anybody is refused for want of disk.
        if let Err(error) = cache::trim(&shared).await {
            tracing::warn!(error = chain(&error), "cannot remove states of builds that nobody needs");
        }
        shared.collect();
        let swept = sweep(&shared).await;
        if swept != Swept::default() {
            tracing::warn!(?swept, "removed what nobody owned");
        }
    }
}

/// Takes away what nobody owns at this moment. What cannot be taken away is logged, and tried again by the next pass.
pub(crate) async fn sweep(shared: &Shared) -> Swept {
    let mut swept = Swept::default();
    let instances = shared.launcher.instances.clone();
    match blocking(move || instances.orphans(INSTANCES_PER_PASS)).await {
        Ok(orphans) => {
            for dir in orphans {
                swept.instances.push(dir.path().to_owned());
                // Without a machine, or with one that is gone, it cannot be adopted; then only files are left.
                if let Ok((_, mut machine)) = shared.launcher.engines.adopt(dir.path()).await {
                    let exit = machine.kill().await;
                    tracing::warn!(path = %dir.path().display(), ?exit, "ended a machine that belongs to no sandbox");
                }
            }
        }
        Err(error) => tracing::warn!(%error, "cannot look for instances without an owner"),
    }
    // After the machines that could be ended in order: what has no instance any more, or none that can be read.
    match shared.links.sweep().await {
        Ok(network) => swept.network = network,
        Err(error) => tracing::warn!(error = chain(&error), "cannot sweep the network"),
    }
    let groups = shared.launcher.groups.clone();
    swept.groups = blocking(move || groups.sweep()).await;
    swept
}
