//! `firkin upgrade-check`: can this program go on with what the server left, or still runs? Run it as the new version, before the old one is stopped.

use anyhow::Context as _;
use firkin_runtime::{
    upgrade::{Look, UpgradeReport, Verdict, look_at},
    verify::in_use,
};
use serde::Serialize;

use crate::{
    failure::ExitStatus,
    output::{self, Table},
    serverfile::ServerFile,
    settings::Settings,
};

/// What was found.
#[derive(Debug, Serialize)]
struct Found {
    /// Of this program.
    version: &'static str,
    /// Of the server that runs, if one does and says so.
    running: Option<String>,
    /// Whether this program can go on.
    adoptable: bool,
    #[serde(flatten)]
    report: UpgradeReport,
}

/// Runs the command. What cannot be gone on with is a failure.
pub(crate) fn run(settings: &Settings) -> anyhow::Result<ExitStatus> {
    let report = look_at(&settings.state_dir).with_context(|| format!("cannot look at `{}`", settings.state_dir.display()))?;
    let running = in_use(&settings.state_dir).is_err().then(|| ServerFile::read(&settings.server_file())).transpose()?.flatten();
    let running = running.map(|file| if file.version.is_empty() { "unknown".to_owned() } else { file.version });
    let found = Found { version: env!("CARGO_PKG_VERSION"), running, adoptable: report.is_adoptable(), report };
    output::result(settings.format, &found, || table(&found.report.looks))?;
    for look in &found.report.looks {
        for refused in &look.refused {
            output::note(&format!("{}: {refused}", look.what));
        }
    }
    if found.adoptable {
        return Ok(ExitStatus::Success);
    }
    output::note("hint: keep the version that runs; `firkin sandbox pause` and the release notes say how sandboxes come along");
    Ok(ExitStatus::Failure)
}

fn table(looks: &[Look]) -> Table {
    let mut table = Table::new(&["what", ">count", "found", "known here", "so it is"]);
    for look in looks {
        let verdict = match look.verdict {
            Verdict::Readable => "read as it is",
            Verdict::Migrated => "brought up to date, and closed to earlier versions",
            Verdict::Refused => "refused",
            Verdict::Elsewhere => "looked at by the start",
        };
        let found = if look.found.is_empty() { "-".to_owned() } else { look.found.clone() };
        table.row([look.what.to_owned(), look.count.to_string(), found, look.known.clone(), verdict.to_owned()]);
    }
    table
}
