//! The bench of several servers (`tests/cluster`): it is built and run here, and what it found is shown. Schedules of chance, the loss of a node, mutants.

use clap::Args;

use crate::{postgres, run::Step, workspace::Workspace};

/// The package of the bench, and its program.
const PACKAGE: &str = "firkin-cluster-tests";
const PROGRAM: &str = "firkin-cluster";

/// What it wants of the host beside PostgreSQL: namespaces that lose what is sent.
const IP: &str = "/usr/sbin/ip";

/// Schedules of faults, run against servers that are hosts of their own.
#[derive(Debug, Args)]
pub(crate) struct Cluster {
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
    /// Only a part: `schedules`, `loss`, `mutants`
    #[arg(long, value_name = "PART")]
    only: Option<String>,
}

/// As much as is part of every run of the tests: below three minutes, and the same each time, so that it fails for what was changed. Others are
/// drawn by `cargo xtask cluster`.
pub(crate) const SHORT: Cluster = Cluster { schedules: 1, seconds: 16, seed: Some(SEED), keep_logs: false, only: None };

/// A schedule in which nodes are lost.
const SEED: u64 = 184_815_512;

/// Runs it; it fails for each thing that did not hold.
pub(crate) fn run(workspace: &Workspace, cluster: &Cluster, step: &mut Step) -> anyhow::Result<()> {
    if !postgres::is_here() || !std::path::Path::new(IP).exists() {
        step.skip("PostgreSQL or `ip` is not on this host, so that no cluster of servers was tried");
        return Ok(());
    }
    step.run(&mut workspace.cargo(&["build", "--quiet", "--package", PACKAGE]))?;
    let mut command = std::process::Command::new(workspace.binaries.join(PROGRAM));
    command.current_dir(&workspace.root).arg("run");
    command.args(["--schedules", &cluster.schedules.to_string(), "--seconds", &cluster.seconds.to_string()]);
    command.args(cluster.seed.map(|seed| format!("--seed={seed}"))).args(cluster.keep_logs.then_some("--keep-logs"));
    command.args(cluster.only.as_ref().map(|part| format!("--only={part}")));
    step.run(&mut command)?;
    step.passed(cluster.schedules);
    Ok(())
}
