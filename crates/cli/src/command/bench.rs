//! `firkin bench`: how long users wait, and what an idle sandbox costs, measured through the same doors that users have.
//!
//! Everything is timed from outside: a create from before its request is sent, a first output when its bytes are here. What
//! cannot be seen from outside (memory of machines, sizes of snapshots) is read from this host where the server runs on it, and
//! left out where not. Whatever ends the run, no sandbox of it stays: all carry a mark, by which the last step finds them.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, anyhow};
use fs_err as fs;
use serde::{Deserialize, Serialize};

use self::report::{Figures, Report};
use super::{
    hosting::{self, Interrupts},
    quickstart::running_server,
};
use crate::{
    api::Api,
    args::bench::{BenchArgs, DeadFiles},
    failure::{Advise as _, ExitStatus},
    output,
    progress::Progress,
    serverfile,
    service::Handed,
    settings::{ServerSource, Settings},
};

mod compare;
mod host;
mod report;
mod run;

/// Samples of each kind unless told otherwise: the fewest that have a 95th percentile.
const SAMPLES: u32 = 100;

/// Samples of each kind in a run that only shows that everything works.
const QUICK_SAMPLES: u32 = 5;

/// The largest file that is read as a report.
const REPORT_LIMIT: u64 = 16 << 20;

/// How much is measured.
#[derive(Debug, Clone)]
struct Plan {
    template: String,
    samples: u32,
    /// Sandboxes created at once.
    burst: u32,
    /// Idle sandboxes alive together.
    clones: u32,
    /// What the server is given to remove, if that is all that is measured.
    dead: Option<Dead>,
}

/// Artifacts that nobody needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Dead {
    /// How many at once.
    artifacts: u32,
    /// The size of each.
    mib: u32,
    /// What it is made of.
    files: DeadFiles,
}

/// The server that is measured.
struct Subject<'a> {
    api: &'a Api,
    acceleration: &'a str,
    /// Its state directory, if it is on this host.
    state_dir: Option<&'a Path>,
}

/// Runs the command.
pub(crate) async fn run(settings: &Settings, args: BenchArgs) -> anyhow::Result<ExitStatus> {
    if let Some(files) = &args.compare {
        let (a, b) = (read(&files[0])?, read(&files[1])?);
        for difference in compare::differences(&a, &b) {
            output::note(&difference);
        }
        let compared = compare::compare(&a, &b);
        output::result(settings.format, &compared, || compare::table(&compared))?;
        return Ok(ExitStatus::Success);
    }
    let samples = args.samples.unwrap_or(if args.quick { QUICK_SAMPLES } else { SAMPLES });
    let dead = args.dead_artifacts.map(|artifacts| Dead { artifacts, mib: args.dead_mib, files: args.dead_files });
    let plan = Plan { template: args.template, samples, burst: args.burst.min(samples), clones: args.clones, dead };
    let mut interrupts = Interrupts::listen()?;
    let progress = Progress::on_stderr(settings.live_progress);
    let report = match given(settings).await? {
        Some((api, acceleration)) => {
            output::note(&format!("measuring the server at {}", api.target().api_url));
            let state_dir = (settings.server == ServerSource::StateDir).then_some(settings.state_dir.as_path());
            let subject = Subject { api: &api, acceleration: &acceleration, state_dir };
            measure(&subject, &plan, &progress, &mut interrupts).await?
        }
        None => Box::pin(own_server(settings, &plan, &progress, &mut interrupts)).await?,
    };
    let Some(report) = report else { return Ok(ExitStatus::Interrupted) };
    output::result(settings.format, &report, || report.table())?;
    Ok(ExitStatus::Success)
}

/// The server that the surroundings point at, with its acceleration as far as it is known.
async fn given(settings: &Settings) -> anyhow::Result<Option<(Api, String)>> {
    match settings.server {
        ServerSource::Variables { .. } => Ok(Some((Api::new(serverfile::find(settings)?), "unknown".to_owned()))),
        ServerSource::StateDir => running_server(settings).await,
    }
}

/// Measures a server of our own, whose state goes with it. `None` if interrupted.
async fn own_server(
    settings: &Settings,
    plan: &Plan,
    progress: &Progress,
    interrupts: &mut Interrupts,
) -> anyhow::Result<Option<Report>> {
    // Not in `/tmp`, which may be memory: snapshots are meant to be on a disk.
    let dir = tempfile::Builder::new().prefix("firkin-bench-").tempdir_in("/var/tmp").context("cannot make a state directory")?;
    output::note(&format!("no server runs: measuring one of our own, with its state in {}", dir.path().display()));
    let settings = Settings { state_dir: dir.path().to_owned(), server: ServerSource::StateDir, ..settings.clone() };
    let socket = hosting::bind(&settings, hosting::IfTaken::AnyFreePort, &mut Handed::default())?;
    let Some(host) = interrupts.unless(hosting::open(&settings, progress, &hosting::Begins::default())).await? else {
        return Ok(None);
    };
    let acceleration = host.acceleration();
    let server = host.serve(&settings, socket, Handed::default(), None).await?;
    let api = Api::new(server.target().clone());
    let subject = Subject { api: &api, acceleration: &acceleration, state_dir: Some(dir.path()) };
    let report = measure(&subject, plan, progress, interrupts).await;
    let stopped = server.stop(firkin_runtime::owner::OnExit::Kill).await;
    let report = report?;
    stopped?;
    Ok(report)
}

/// Measures everything in the plan. No sandbox of it is left, however it ends. `None` if interrupted.
async fn measure(
    subject: &Subject<'_>,
    plan: &Plan,
    progress: &Progress,
    interrupts: &mut Interrupts,
) -> anyhow::Result<Option<Report>> {
    let mut run = run::Run::new(subject.api, plan, progress, subject.state_dir);
    let measured = interrupts.unless(Box::pin(run.all())).await;
    let figures = std::mem::take(&mut run.figures);
    let cleaned = run.clean_up().await;
    let Some(()) = measured? else { return Ok(None) };
    cleaned?;
    Ok(Some(Report::new(subject.acceleration, &subject.api.target().api_url, plan, &figures)))
}

/// A report of an earlier run.
fn read(path: &Path) -> anyhow::Result<Report> {
    let bytes = fs::metadata(path)?.len();
    if bytes > REPORT_LIMIT {
        return Err(anyhow!("cannot use `{}`: {bytes} bytes are more than {REPORT_LIMIT}", path.display()));
    }
    serde_json::from_str(&fs::read_to_string(path)?)
        .with_context(|| format!("cannot understand `{}`", path.display()))
        .hint("`firkin bench --json` writes such files")
}

/// Milliseconds, as figures have them.
fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// A named series of figures, made when it is first written to.
fn series<'a>(figures: &'a mut Figures, name: &str) -> &'a mut report::Series {
    let found = figures.iter().position(|(known, _)| known == name);
    let index = found.unwrap_or_else(|| {
        figures.push((name.to_owned(), report::Series::default()));
        figures.len() - 1
    });
    &mut figures[index].1
}
