//! `firkin restore-from`: a state directory of copies, for a host that lost its own.

use firkin_engine::qcow2::Qcow2;
use firkin_runtime::{
    restore_from::{RestoreError, RestoreReport, RestoredSandbox, restore_from},
    state_dir::OpenError,
};

use crate::{
    copies::{RestoreFromArgs, StoreSettings},
    failure::{ExitStatus, advised},
    output::{self, Table},
    progress::Progress,
    secretfile::Credentials,
    settings::Settings,
};

/// Runs the command. What is lost is a failure: somebody has to know.
pub(crate) async fn run(settings: &Settings, args: RestoreFromArgs) -> anyhow::Result<ExitStatus> {
    let store = StoreSettings::of_restore(&args, &Credentials::of_process());
    let copies = store.open()?;
    let progress = Progress::on_stderr(settings.live_progress);
    let step = progress.step(&format!("restoring `{}` from {}", settings.state_dir.display(), store.destination));
    let restored = Box::pin(restore_from(&copies, &settings.state_dir, &Qcow2, &|line| step.at(line))).await;
    let report = restored.map_err(|error| {
        let hint = hint(&error);
        advised(error, hint.map(str::to_owned), None)
    })?;
    step.done(&format!("restored {} artifacts from {}", report.artifacts, store.destination));
    output::result(settings.format, &report, || table(&report))?;
    for volume in &report.volumes {
        output::note(&format!("volume {volume}: the content of volumes is not copied"));
    }
    for key in &report.keys {
        output::note(&format!("{key} is not copied: put the old one into `{}` before `firkin up`", settings.state_dir.display()));
    }
    Ok(if report.lost.is_empty() { ExitStatus::Success } else { ExitStatus::Failure })
}

fn hint(error: &RestoreError) -> Option<&'static str> {
    match error {
        RestoreError::NotEmpty { .. } => Some("`--state-dir` chooses another directory"),
        RestoreError::Open(OpenError::Locked { .. }) => Some("a server uses it: stop that first"),
        RestoreError::NoCatalogue => Some("it has to be what `firkin up --copy-to` was given, with its prefix"),
        RestoreError::Copies(error) if error.is_away() => Some("the same command goes on from what was fetched"),
        RestoreError::Copies(_) | RestoreError::File { .. } | RestoreError::Place(_) => None,
        RestoreError::Open(_) | RestoreError::Store(_) => None,
    }
}

fn table(report: &RestoreReport) -> Table {
    let mut table = Table::new(&["what", "name", "result"]);
    for RestoredSandbox { id, as_of, went_back } in &report.sandboxes {
        let how = if *went_back { "paused, went back to its state of" } else { "paused, as of" };
        table.row(["sandbox".to_owned(), id.to_string(), format!("{how} {as_of}")]);
    }
    for lost in &report.lost {
        table.row([lost.kind.to_owned(), lost.name.clone(), format!("lost: {}", lost.why)]);
    }
    table
}
