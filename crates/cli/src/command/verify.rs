//! `firkin verify`: reads every artifact of a state directory that no server uses, and says what is damaged and who needs it.

use firkin_engine::qcow2::Qcow2;
use firkin_runtime::{
    artifact::ArtifactKind,
    state_dir::OpenError,
    store::catalog::Catalog,
    verify::{VerifiedArtifact, VerifyReport, verify},
};

use super::catalog;
use crate::{
    failure::{ExitStatus, advised},
    output::{self, Table},
    settings::Settings,
};

/// Runs the command. Damage is a failure.
pub(crate) async fn run(settings: &Settings) -> anyhow::Result<ExitStatus> {
    let there = settings.catalog.as_ref().map(catalog::catalogue).transpose()?;
    let there = there.as_ref().map(|there| there as &dyn Catalog);
    let report = verify(&settings.state_dir, &Qcow2, there).await.map_err(|error| {
        let hint = match &error {
            OpenError::Locked { .. } => Some("stop that server first (`firkin up --on-exit pause` keeps its sandboxes)"),
            OpenError::Directory { .. } => Some("`--state-dir` names the directory that a server used"),
            OpenError::CatalogElsewhere { address, .. } => {
                let hint = catalog::elsewhere(address);
                return advised(error, Some(hint), None);
            }
            OpenError::CatalogHere { .. } => Some("leave `--catalog` out: this state directory has its records in itself"),
            OpenError::Store(_) => return catalog::advising(error),
            OpenError::CatalogLost { .. } => Some("put `firkin.db` back, or `firkin cluster init --from BACKUP`"),
            OpenError::Restoring { .. } | OpenError::Engine { .. } | OpenError::Network(_) => None,
            OpenError::Encryption(_) | OpenError::Fence(_) | OpenError::Secrets(_) => None,
        };
        advised(error, hint.map(str::to_owned), None)
    })?;
    output::result(settings.format, &report, || table(&report))?;
    for artifact in &report.artifacts {
        for problem in &artifact.examined.problems {
            output::note(&format!("artifact {}: {problem}", artifact.examined.id));
        }
    }
    Ok(if report.is_intact() { ExitStatus::Success } else { ExitStatus::Failure })
}

fn table(report: &VerifyReport) -> Table {
    let mut table = Table::new(&["artifact", "kind", "of", ">members", ">MiB", "result", "needed by"]);
    for artifact in &report.artifacts {
        let VerifiedArtifact { examined, needed_by, .. } = artifact;
        let kind = match examined.kind {
            Some(ArtifactKind::BaseTemplate) => "template",
            Some(ArtifactKind::Continuation) => "snapshot",
            Some(ArtifactKind::Pause) => "pause",
            Some(ArtifactKind::Boot) => "boot",
            None => "-",
        };
        let bytes: u64 = examined.members.iter().map(|member| member.bytes).sum();
        table.row([
            examined.id.to_string(),
            kind.to_owned(),
            examined.logical_id.clone().unwrap_or_else(|| "-".to_owned()),
            examined.members.len().to_string(),
            (bytes >> 20).to_string(),
            if examined.problems.is_empty() { "intact".to_owned() } else { "damaged".to_owned() },
            needed_by.join(", "),
        ]);
    }
    table
}
