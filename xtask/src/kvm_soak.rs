//! Thousands of restores with KVM on a real host: does any fail, and what does each take?
//!
//! `firkin bench` makes them, in the five ways in which users have sandboxes restored: creates one by one, staggered and in
//! bursts, resumes, and forks. It has a server of its own and is made to use KVM. Every restored guest runs a command whose output
//! is waited for, so a machine that died is a failed sample, and a single one fails the run. What is printed at the end is the table
//! for the README.

use std::{
    io::{BufReader, Read as _},
    process::Stdio,
};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use serde::Deserialize;

use crate::{
    run::{Report, Step, say},
    table::{self, Row},
    workspace::Workspace,
};

/// The figures of the bench that are one restore for each sample.
const RESTORES: [&str; 5] = [
    "create to first stdout, ms",
    "staggered create to first stdout, ms",
    "burst create to first stdout, ms",
    "resume to first stdout, ms",
    "fork to first stdout, ms",
];
/// A report has some 5 KB.
const MAX_REPORT_BYTES: u64 = 1 << 20;

/// What to soak with.
#[derive(Debug, Args)]
pub(crate) struct Soak {
    /// Restores altogether
    #[arg(long, value_name = "COUNT", default_value_t = 5000, value_parser = clap::value_parser!(u32).range(25..=50_000))]
    restores: u32,
}

/// What `firkin bench --json` prints, as far as it is of interest here.
#[derive(Debug, Deserialize)]
struct Bench {
    firkin: String,
    acceleration: String,
    host: Host,
    rows: Vec<Row>,
}

#[derive(Debug, Deserialize)]
struct Host {
    cpu: String,
    cpus: usize,
    kernel: String,
}

/// Restores, and fails unless every one of them came to life.
pub(crate) fn run(workspace: &Workspace, report: &mut Report, soak: &Soak) -> anyhow::Result<()> {
    let mut table = String::new();
    report.step("kvm soak", |step| {
        let bench = measure(workspace, soak.restores.div_ceil(u32::try_from(RESTORES.len())?))?;
        table = markdown(&bench);
        judge(&bench, soak.restores, step)
    })?;
    say(&format!("\n{table}"));
    Ok(())
}

fn measure(workspace: &Workspace, samples: u32) -> anyhow::Result<Bench> {
    // One that is not there, so that no server of this host is measured.
    let state = tempfile::tempdir().context("cannot make a directory")?;
    let mut command = workspace.firkin();
    command.args(["bench", "--accel", "kvm", "--json", "--samples", &samples.to_string(), "--state-dir"]);
    command.arg(state.path().join("none")).env_remove("E2B_API_URL").stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().context("cannot start `firkin bench`")?;
    let mut text = Vec::new();
    let output = child.stdout.take().context("the bench has an output")?;
    let read = BufReader::new(output).take(MAX_REPORT_BYTES).read_to_end(&mut text);
    let status = child.wait().context("cannot wait for `firkin bench`")?;
    ensure!(status.success(), "`firkin bench --accel kvm` failed: {status}");
    read.context("cannot read the report")?;
    serde_json::from_slice(&text).context("cannot read the report")
}

/// Fails for one restore that came to nothing, or for fewer than were asked for.
fn judge(bench: &Bench, restores: u32, step: &mut Step) -> anyhow::Result<()> {
    ensure!(bench.acceleration == "kvm", "the machines ran with {}, not with KVM", bench.acceleration);
    if let Some(row) = bench.rows.iter().find(|row| row.failed > 0) {
        bail!("{} of {} attempts failed at `{}`", row.failed, row.samples + row.failed, row.name);
    }
    let mut alive = 0;
    for name in RESTORES {
        let row = bench.rows.iter().find(|row| row.name == name).with_context(|| format!("the report has no row `{name}`"))?;
        alive += row.samples;
    }
    ensure!(alive >= restores, "only {alive} of {restores} restores were made");
    step.passed(alive.into());
    Ok(())
}

/// The table for the README.
fn markdown(bench: &Bench) -> String {
    let Bench { firkin, acceleration, host, rows } = bench;
    let alive: u32 = rows.iter().filter(|row| RESTORES.contains(&row.name.as_str())).map(|row| row.samples).sum();
    let Host { cpu, cpus, kernel } = host;
    let head = format!("firkin {firkin}, {acceleration}, {cpus} x {cpu}, Linux {kernel}: {alive} restores, 0 deaths");
    format!("{head}\n\n{}", table::markdown(rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bench(acceleration: &str, samples: u32, failed: u32) -> Bench {
        let rows = RESTORES.map(|name| Row {
            name: name.to_owned(),
            samples,
            failed,
            min: 1.0,
            p50: 2.0,
            p95: Some(3.0),
            p99: None,
            max: 4.0,
        });
        Bench {
            firkin: "0.1.0 abc".to_owned(),
            acceleration: acceleration.to_owned(),
            host: Host { cpu: "EPYC".to_owned(), cpus: 2, kernel: "6.12".to_owned() },
            rows: rows.into(),
        }
    }

    fn verdict(bench: &Bench) -> Result<(), String> {
        judge(bench, 5000, &mut Step::default()).map_err(|error| error.to_string())
    }

    #[test]
    fn one_death_or_another_acceleration_fails_the_soak() {
        assert_eq!(verdict(&bench("kvm", 1000, 0)), Ok(()));
        assert!(verdict(&bench("kvm", 1000, 1)).unwrap_err().starts_with("1 of 1001 attempts failed at"));
        assert!(verdict(&bench("kvm", 999, 0)).unwrap_err().starts_with("only 4995 of 5000"));
        assert!(verdict(&bench("vm-emulated (tcg)", 1000, 0)).is_err());
        let mut short = bench("kvm", 5000, 0);
        short.rows.pop();
        assert!(verdict(&short).is_err());
    }

    #[test]
    fn the_table_is_markdown() {
        let table = markdown(&bench("kvm", 1000, 0));
        assert!(table.starts_with("firkin 0.1.0 abc, kvm, 2 x EPYC, Linux 6.12: 5000 restores, 0 deaths\n"), "{table}");
        assert!(table.contains("\n| fork to first stdout, ms | 1000 | 1.0 | 2.0 | 3.0 | - | 4.0 |\n"), "{table}");
    }
}
