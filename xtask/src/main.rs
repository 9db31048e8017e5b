//! `cargo xtask`: everything that has to hold before a change lands, run the same way by people and by CI.
//!
//! `cargo xtask test` is the whole of it, set-up included, on a machine where nothing was installed by hand. The other
//! commands are parts of it. This program only arranges: what is checked lives in the tests of the crates, in `xtask/tests`
//! (rules about the text of the project) and in `tests/conformance` (the official SDKs).

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod advisories;
mod browser;
mod cluster;
mod conformance;
mod deb;
mod e2b_suite;
mod gvisor;
mod household;
mod http;
mod interrupt;
mod kvm_soak;
mod leaks;
mod monitoring;
mod moto;
mod nested;
mod node;
mod postgres;
mod python;
mod run;
mod rust_tests;
mod sbom;
mod server;
mod soak;
mod table;
mod workspace;

use conformance::Parts;
use household::Household;
use run::{Report, Step};
use workspace::Workspace;

/// Runs the project's checks.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// All set-up, then every check, within half an hour on two cores
    Test,
    /// Formatting of Rust sources
    Fmt,
    /// Clippy, with warnings as errors; licences, sources and advisories of all crates
    Lint,
    /// A list of everything that the product is made of, as CycloneDX JSON
    Sbom(sbom::List),
    /// A Debian package of a release build, with units, configuration, manual pages and completions
    Deb(deb::Package),
    /// Rules about the text of the project: files, links, promises, dependencies
    Tidy,
    /// Tests of the crates, which need no virtual machine
    Unit,
    /// Documentation builds without a warning
    Doc,
    /// Tests that run virtual machines
    Vm,
    /// The official SDKs against a server of our own
    Conformance {
        /// Passed to pytest for the newest SDK, after `--`; the older SDK is left out then
        #[arg(last = true)]
        pytest: Vec<String>,
    },
    /// The dashboard in Debian's Chromium against a server of our own; leaves a screenshot of every page
    Browser {
        /// Passed to pytest, after `--`
        #[arg(last = true)]
        pytest: Vec<String>,
    },
    /// The files for Prometheus and Grafana, with Debian's Prometheus against a server of our own
    Monitoring,
    /// E2B's own Python test suites, from a checkout, against a server of our own
    E2bSuite(e2b_suite::Suite),
    /// Several servers in namespaces, with PostgreSQL and faults between them: random schedules, and what has to hold
    ///
    /// Servers on the fake engine, which are nodes of one cluster; the loss of one; mutants that have to be caught. Faults: SIGKILL and SIGSTOP of server, warden and PostgreSQL;
    /// whatever one sends to another lost, in one direction or both; a full disk. A schedule that has failed is run again by its seed. Not
    /// covered: a clock that steps, which only the whole host has
    Cluster(cluster::Cluster),
    /// The long form of the tests: hours of use of one server, after which nothing may have failed, grown or been left
    Soak(soak::Soak),
    /// Thousands of restores with KVM on this host, none of which may die; prints the README's table
    KvmSoak(kvm_soak::Soak),
    /// The whole product on KVM, in an emulated machine that has it: for hosts without
    ///
    /// In a sandbox whose processor has virtualisation: a server with `kvm` and nothing else, template, create, commands, fork, pause
    /// and resume, snapshot, kill -9 of the server and take-over, `firkin bench --quick`, and tests of the newest Python SDK. Without a
    /// network, and nothing of it is left. Not covered: the SDK's other tests unless they are named after `--`, the other
    /// SDKs, images from registries, the desktop and the code interpreter, sandboxes that reach the internet, a reboot of the inner
    /// host, Intel's processors, and speed: everything is emulated
    Nested(nested::Nested),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match Household::ours() {
        Ok(Some(household)) => {
            let mut report = Report::default();
            let outcome = Workspace::find().and_then(|workspace| run_command(cli.command, &workspace, &household, &mut report));
            return report.close(outcome);
        }
        Ok(None) => household::keep(),
        Err(error) => Err(error),
    };
    outcome.unwrap_or_else(|error| Report::default().close(Err(error)))
}

fn run_command(command: Command, workspace: &Workspace, household: &Household, report: &mut Report) -> anyhow::Result<()> {
    match command {
        Command::Test => test(workspace, household, report),
        Command::Fmt => report.step("formatting", |step| workspace.formatting(step)),
        Command::Lint => {
            report.step("lints", |step| workspace.lints(step))?;
            dependencies(workspace, report)
        }
        Command::Sbom(list) => report.step("bill of materials", |step| sbom::write(workspace, &list, step)),
        Command::Deb(package) => report.step("debian package", |step| deb::build(workspace, &package, step)),
        Command::Tidy => report.step("tidiness", |step| workspace.tidiness(step)),
        Command::Unit => report.step("unit tests", |step| workspace.unit_tests(step)),
        Command::Doc => report.step("documentation", |step| workspace.documentation(step)),
        Command::Vm => {
            report.step("build", |step| workspace.build(step))?;
            report.step("host set-up", |step| workspace.host_set_up(step))?;
            report.step("gVisor", gvisor::set_up)?;
            report.step("vm tests", |step| workspace.vm_tests(step))
        }
        Command::Conformance { pytest } => {
            report.step("build", |step| workspace.build(step))?;
            report.step("host set-up", |step| workspace.host_set_up(step))?;
            report.step("packages of the tests", |step| conformance::fetch(workspace, &pytest, step))?;
            report.step("gVisor", gvisor::set_up)?;
            let before = leaks::Host::observe(household)?;
            conformance::run(workspace, household, report, (Parts::All, &pytest), |_| Ok(()))?;
            report.step("nothing left on the host", |step| leaks::check(household, &before, step))
        }
        Command::Browser { pytest } => {
            report.step("build", |step| workspace.build(step))?;
            report.step("host set-up", |step| workspace.host_set_up(step))?;
            report.step("gVisor", gvisor::set_up)?;
            browser::run(workspace, household, report, &pytest)
        }
        Command::Monitoring => {
            report.step("build", |step| workspace.build(step))?;
            report.step("host set-up", |step| workspace.host_set_up(step))?;
            monitoring::run(workspace, household, report)
        }
        Command::E2bSuite(suite) => {
            report.step("build", |step| workspace.build(step))?;
            report.step("host set-up", |step| workspace.host_set_up(step))?;
            e2b_suite::run(workspace, household, report, &suite)
        }
        Command::Cluster(asked) => cluster::run(workspace, household, report, asked),
        Command::Soak(soak) => {
            report.step("build", |step| workspace.build(step))?;
            report.step("host set-up", |step| workspace.host_set_up(step))?;
            soak::run(workspace, household, report, &soak)
        }
        Command::KvmSoak(soak) => {
            report.step("build", |step| workspace.build(step))?;
            report.step("host set-up", |step| workspace.host_set_up(step))?;
            kvm_soak::run(workspace, report, &soak)
        }
        Command::Nested(nested) => {
            report.step("build", |step| workspace.build_all(step))?;
            report.step("host set-up", |step| workspace.host_set_up(step))?;
            nested::run(workspace, household, report, &nested)
        }
    }
}

fn dependencies(workspace: &Workspace, report: &mut Report) -> anyhow::Result<()> {
    report.step("dependencies", |step| workspace.dependencies(step))?;
    report.step("advisories", |step| workspace.advisories(step))
}

/// Cheap checks first: what fails in seconds should not fail after ten minutes.
fn test(workspace: &Workspace, household: &Household, report: &mut Report) -> anyhow::Result<()> {
    report.step("formatting", |step| workspace.formatting(step))?;
    let packages = |step: &mut Step| conformance::fetch(workspace, &[], step);
    report.steps_at_once(("lints", |step| workspace.lints(step)), ("packages of the tests", packages))?;
    dependencies(workspace, report)?;
    report.step("build", |step| workspace.build(step))?;
    report.step("host set-up", |step| workspace.host_set_up(step))?;
    report.step("gVisor", gvisor::set_up)?;
    report.step("PostgreSQL", postgres::set_up)?;
    let moto = report.produce("moto", |step| moto::set_up(workspace, step))?;
    let before = leaks::Host::observe(household)?;
    let tests = report.produce("build of the rust tests", |step| rust_tests::build(workspace, step))?;
    let documentation = |step: &mut Step| workspace.documentation(step);
    report
        .steps_at_once(("rust tests", |step| rust_tests::run(tests, moto.as_deref(), step)), ("documentation", documentation))?;
    report.step("cluster", |step| cluster::bench(workspace, &cluster::SHORT, step))?;
    conformance::run(workspace, household, report, (Parts::Light, &[]), |report| {
        browser::run(workspace, household, report, &[])?;
        monitoring::run(workspace, household, report)
    })?;
    report.step("nothing left on the host", |step| leaks::check(household, &before, step))
}
