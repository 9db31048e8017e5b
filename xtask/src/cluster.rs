//! The bench of several servers (`tests/cluster`): it is built and run here, and what it found is shown. Schedules of chance, the loss of a node, mutants.
//! Beside it what is shown and measured with a real engine (`tests/cluster/*.py`).

use std::{path::Path, process::Command};

use anyhow::ensure;
use clap::{Args, Subcommand};

use crate::{
    conformance, gvisor,
    household::Household,
    leaks, postgres, python,
    run::{Report, Step},
    workspace::Workspace,
};

/// The package of the bench, and its program.
const PACKAGE: &str = "firkin-cluster-tests";
const PROGRAM: &str = "firkin-cluster";

/// What it wants of the host beside PostgreSQL: namespaces that lose what is sent.
const IP: &str = "/usr/sbin/ip";

/// What is shown and measured with a real engine, below the root.
const DEMO: &str = "tests/cluster/demo.py";
const REACH: &str = "tests/cluster/reach.py";

/// Schedules of faults, run against servers that are hosts of their own; or a demonstration.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Cluster {
    #[command(subcommand)]
    show: Option<Show>,
    #[command(flatten)]
    bench: Bench,
}

/// What is shown instead of judged.
#[derive(Debug, Subcommand)]
enum Show {
    /// Three hosts on this machine: one is killed, one drained, and what was on them goes on elsewhere
    Demo {
        /// Let the cluster run until Ctrl-C
        #[arg(long)]
        keep: bool,
    },
    /// What it costs to come in through another node, and to go on on one, by a release build; prints the table of the documents
    Reach {
        /// Samples of each figure
        #[arg(long, value_name = "COUNT", default_value_t = 40)]
        samples: u32,
    },
}

/// Schedules of faults.
#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// Schedules, one after the other
    #[arg(long, value_name = "COUNT", default_value_t = 200)]
    schedules: u64,
    /// How long things go wrong in each
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    seconds: u64,
    /// What the first is made of, each other one having the next number [default: chance, and it is printed]
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
    /// Keep the directory of a run that has failed, with the logs of its servers
    #[arg(long)]
    keep_logs: bool,
    /// Only a part: `schedules`, `loss`, `mutants`; or `load`, which is none of these: five nodes of a release build, with 2,000 sandboxes that come
    /// and go for `--seconds`, and then the loss of one with 200 that are paused
    #[arg(long, value_name = "PART")]
    only: Option<String>,
    /// Have each second node run another build's program of this bench, as of the version before, and no mutants
    #[arg(long, value_name = "PROGRAM")]
    beside: Option<std::path::PathBuf>,
}

/// As much as is part of every run of the tests: below three minutes, and the same each time, so that it fails for what was changed. Others are
/// drawn by `cargo xtask cluster`.
pub(crate) const SHORT: Bench = Bench { schedules: 1, seconds: 16, seed: Some(SEED), keep_logs: false, only: None, beside: None };

/// A schedule in which nodes are lost.
const SEED: u64 = 184_815_512;

/// Runs what was asked for, set-up included.
pub(crate) fn run(workspace: &Workspace, household: &Household, report: &mut Report, asked: Cluster) -> anyhow::Result<()> {
    match asked.show {
        None => {
            report.step("PostgreSQL", postgres::set_up)?;
            let before = leaks::Host::observe(household)?;
            report.step("cluster", |step| bench(workspace, &asked.bench, step))?;
            report.step("nothing left on the host", |step| leaks::check(household, &before, step))
        }
        Some(show) => {
            report.step("build", |step| workspace.build(step))?;
            report.step("host set-up", |step| workspace.host_set_up(step))?;
            report.step("gVisor", gvisor::set_up)?;
            report.step("PostgreSQL", postgres::set_up)?;
            report.step("Python", python::set_up)?;
            let before = leaks::Host::observe(household)?;
            match show {
                Show::Demo { keep } => report.step("demonstration", |step| {
                    let firkin = workspace.binaries.join("firkin");
                    with_engine(workspace, household, (DEMO, &firkin), keep.then_some("--keep"), step)
                }),
                Show::Reach { samples } => report.step("reach", |step| {
                    let firkin = workspace.release_build(step)?;
                    with_engine(workspace, household, (REACH, &firkin), Some(&samples.to_string()), step)
                }),
            }?;
            report.step("nothing left on the host", |step| leaks::check(household, &before, step))
        }
    }
}

/// Runs one of them in namespaces of its own. On gVisor where it is here: emulated machines would begin one after the other for minutes.
fn with_engine(
    workspace: &Workspace,
    household: &Household,
    (program, firkin): (&str, &Path),
    more: Option<&str>,
    step: &mut Step,
) -> anyhow::Result<()> {
    ensure!(postgres::is_here() && Path::new(IP).exists(), "PostgreSQL or `ip` is not on this host, and a cluster needs both");
    let workspace = if gvisor::is_here() { &workspace.with_engine("gvisor") } else { workspace };
    let python = python::environment(&workspace.cache(), &conformance::newest(workspace), step)?;
    let directory = household.passable_dir("hosts-")?;
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount"]).arg(python).arg("-B").arg(workspace.root.join(program)).arg(firkin).arg(directory.path());
    step.run(command.args(more).current_dir(&workspace.root).envs(workspace.variables()))
}

/// Runs schedules; it fails for each thing that did not hold.
pub(crate) fn bench(workspace: &Workspace, bench: &Bench, step: &mut Step) -> anyhow::Result<()> {
    if !postgres::is_here() || !Path::new(IP).exists() {
        step.skip("PostgreSQL or `ip` is not on this host, so that no cluster of servers was tried");
        return Ok(());
    }
    // What it costs is that of what users have.
    let (release, built) = match bench.only.as_deref() {
        Some("load") => (&["--release"][..], workspace.binaries.with_file_name("release")),
        _ => (&[][..], workspace.binaries.clone()),
    };
    step.run(workspace.cargo(&["build", "--quiet", "--package", PACKAGE]).args(release))?;
    let mut command = Command::new(built.join(PROGRAM));
    command.current_dir(&workspace.root).arg("run");
    command.args(["--schedules", &bench.schedules.to_string(), "--seconds", &bench.seconds.to_string()]);
    if let Some(beside) = &bench.beside {
        command.arg("--beside").arg(beside);
    }
    command.args(bench.seed.map(|seed| format!("--seed={seed}"))).args(bench.keep_logs.then_some("--keep-logs"));
    command.args(bench.only.as_ref().map(|part| format!("--only={part}")));
    step.run(&mut command)?;
    step.passed(bench.schedules);
    Ok(())
}
