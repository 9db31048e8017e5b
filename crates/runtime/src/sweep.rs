//! Start-up: what an earlier server left is taken over, or ended and removed. Afterwards everything has an owner.
//!
//! Machines do not die with the server. Those whose sandbox is on record go on under the new server, which also does what their
//! deadline asks for if that passed meanwhile; every other instance directory is killed (the engine checks that the process is
//! the one it started) and removed.

use std::{collections::HashSet, sync::Arc};

use fs_err as fs;
use futures::{StreamExt as _, stream};

use crate::{
    core::Core,
    error::{LaunchError, OpenError},
    owner::{Owner, chain},
    session::Session,
    store::{RecordedPhase, SandboxRecord},
};

/// Machines that are greeted at a time: one that does not answer must not keep the others waiting.
const ADOPTED_AT_ONCE: usize = 16;

/// Gives every recorded sandbox its owner again and removes what has none.
pub(crate) async fn take_over(core: &Arc<Core>) -> Result<(), OpenError> {
    let mut running = Vec::new();
    for record in core.store.sandboxes().await.map_err(OpenError::Store)? {
        match record.phase.clone() {
            RecordedPhase::Paused(held) => Owner::restore_paused(core, record, held),
            RecordedPhase::Running { .. } => running.push(record),
        }
    }
    let mut known = HashSet::new();
    let adopting = running.into_iter().map(|record| async { (record.id.clone(), adopt(core, record).await) });
    let mut adopted = stream::iter(adopting).buffer_unordered(ADOPTED_AT_ONCE);
    while let Some((id, outcome)) = adopted.next().await {
        match outcome {
            Ok(()) => {
                tracing::info!(sandbox = %id, "took over a running sandbox");
                known.insert(id.to_string());
            }
            Err(error) => {
                tracing::warn!(sandbox = %id, error = chain(&error), "a sandbox did not outlive the server");
                core.store.delete_sandbox(id).await.map_err(OpenError::Store)?;
            }
        }
    }
    remove_orphans(core, &known).await
}

async fn adopt(core: &Arc<Core>, record: SandboxRecord) -> Result<(), LaunchError> {
    let session = Session::adopt(core, &record).await?;
    let reservation = core.gates.admission.ledger.adopt(record.budget);
    Owner::adopt(core, record, session, reservation);
    Ok(())
}

/// Ends machines, and removes directories, that belong to no sandbox.
async fn remove_orphans(core: &Arc<Core>, known: &HashSet<String>) -> Result<(), OpenError> {
    let run = core.run_dir();
    let directory = |source| OpenError::Directory { path: run.clone(), source };
    for entry in fs::read_dir(&run).map_err(directory)? {
        let path = entry.map_err(directory)?.path();
        if path.file_name().is_some_and(|name| known.contains(&*name.to_string_lossy())) {
            continue;
        }
        // A directory whose machine is gone, or never was, cannot be adopted; then only files are left.
        if let Ok(mut machine) = core.launcher.engine.adopt(&path).await {
            let exit = machine.kill().await;
            tracing::warn!(path = %path.display(), ?exit, "ended a machine that belongs to no sandbox");
        }
        fs::remove_dir_all(&path).map_err(directory)?;
    }
    Ok(())
}
