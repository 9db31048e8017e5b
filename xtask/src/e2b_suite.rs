//! E2B's own Python test suites against a server of ours, from a checkout that the caller has.
//!
//! Nothing of E2B's is kept here: tests are named by path, and why one cannot pass is said in `reasons.rs`. The suite asserts
//! default addresses in some tests and talks to a server in others, so it runs in two parts with different environments.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};
use fs_err as fs;

use crate::{
    household::Household,
    python,
    run::{Report, Step, say},
    server::{self, Server},
    workspace::Workspace,
};

mod candidate;
mod reasons;
mod tally;

use candidate::Candidate;
use tally::Tally;

/// What the suites need beside the SDK: the versions that their own project files allow.
const RUNNERS: [&str; 7] = [
    "pytest>=9.0.3,<10",
    "pytest-asyncio>=1.3.0,<2",
    "pytest-dotenv>=0.5.2,<0.6",
    "pytest-timeout>=2.4.0,<3",
    "pytest-rerunfailures>=16,<17",
    "pytest-xdist>=3.3.1,<4",
    "python-dotenv>=1.0.0,<2",
];

/// Seconds that a test may take. The suites' own limit is 30 on E2B's machines; an emulated guest boots no faster than it does.
const TEST_DEADLINE: &str = "90";

/// How often a test that failed is run again. The suites give commands seconds that an emulated guest on a busy host may not keep; how
/// many tests passed only then is told.
const RERUNS: &str = "2";

/// The word that stands for the checkout's own SDK.
const CHECKOUT: &str = "checkout";

/// Tests that assert the default addresses, in the directories of those that talk to a server.
const WITHOUT_SERVER: &str = "test_config_propagation.py";

/// The suites build on Ubuntu's image, which the internet has; what they do with it works on our root image as well.
const OPTIONS: [&str; 2] = ["--own-image", "ubuntu:22.04"];

/// What to run.
#[derive(Debug, clap::Args)]
pub(crate) struct Suite {
    /// A checkout of e2b-dev/E2B
    #[arg(long, value_name = "PATH")]
    checkout: PathBuf,
    /// A checkout of e2b-dev/code-interpreter
    #[arg(long, value_name = "PATH")]
    code_interpreter: Option<PathBuf>,
    /// A release of `e2b` from PyPI, or `checkout` for the checkout's own SDK; repeated, a matrix [default: checkout]
    #[arg(long, value_name = "VERSION")]
    sdk: Vec<String>,
    /// Passed to pytest, after `--`
    #[arg(last = true)]
    pytest: Vec<String>,
}

/// One run of pytest.
#[derive(Debug)]
struct Part<'a> {
    name: &'a str,
    python: &'a Path,
    directory: &'a Path,
    paths: Vec<String>,
    arguments: Vec<String>,
    against_server: bool,
}

/// Everything from the environments to the table of results. Fails when a test failed for no known reason.
pub(crate) fn run(workspace: &Workspace, household: &Household, report: &mut Report, suite: &Suite) -> anyhow::Result<()> {
    let interpreter = suite.code_interpreter.as_ref().map(|path| path.join("python").canonicalize()).transpose();
    let interpreter = interpreter.context("the code interpreter's checkout has no `python`")?;
    let mut candidates = Vec::new();
    let mut interpreter_python = None;
    report.step("python environments", |step| {
        python::set_up(step)?;
        for sdk in &suite.sdk {
            candidates.push(match sdk.as_str() {
                CHECKOUT => Candidate::of_checkout(workspace, step, &suite.checkout)?,
                version => Candidate::of_release(workspace, step, &suite.checkout, version)?,
            });
        }
        if candidates.is_empty() {
            candidates.push(Candidate::of_checkout(workspace, step, &suite.checkout)?);
        }
        if let Some(directory) = &interpreter {
            let state = candidate::commit(directory, "HEAD").unwrap_or_default();
            let from = directory.display().to_string();
            interpreter_python = Some(candidate::environment(workspace, step, "e2b-code-interpreter", &from, &state)?);
        }
        Ok(())
    })?;
    let state = household.passable_dir("state-")?;
    let build =
        |step: &mut Step, name| step.run(workspace.firkin().args(["template", "build", name, "--state-dir"]).arg(state.path()));
    report.step("base template", |step| build(step, "base"))?;
    let (mut rows, mut unexplained) = (Vec::new(), 0);
    for candidate in &candidates {
        report.step(&format!("suite of {}", candidate.sdk), |step| {
            let tally = against(workspace, state.path(), &parts(candidate)?, &suite.pytest)?;
            rows.push(tally.row(&candidate.sdk, &candidate.tests));
            unexplained += settle(step, &tally);
            Ok(())
        })?;
    }
    if let (Some(python), Some(directory)) = (&interpreter_python, &interpreter) {
        // Only now: a server keeps sandboxes of every template warm, and these are large.
        report.step("code interpreter template", |step| build(step, "code-interpreter-v1"))?;
        report.step("suite of the code interpreter", |step| {
            let tally = against(workspace, state.path(), &[code_interpreter(python, directory)], &suite.pytest)?;
            rows.push(tally.row("code interpreter", "its checkout"));
            unexplained += settle(step, &tally);
            Ok(())
        })?;
    }
    say(&tally::matrix(&rows));
    if unexplained == 0 { Ok(()) } else { bail!("{unexplained} tests failed for no known reason") }
}

/// Runs these parts against a server of their own.
fn against(workspace: &Workspace, state: &Path, parts: &[Part<'_>], pytest: &[String]) -> anyhow::Result<Tally> {
    let outcomes = tempfile::NamedTempFile::new().context("cannot make a file for outcomes")?;
    let server = Server::start_with_https(workspace, state, &OPTIONS)?;
    for part in parts {
        run_part(workspace, state, outcomes.path(), part, pytest)?;
    }
    server.stop()?;
    Tally::read(outcomes.path())
}

/// Tells and counts what became of the tests. Returns how many failed for no known reason.
fn settle(step: &mut Step, tally: &Tally) -> usize {
    say(&tally.table());
    step.passed(tally.passed);
    step.skipped(tally.excused());
    tally.unexplained()
}

fn parts(candidate: &Candidate) -> anyhow::Result<Vec<Part<'_>>> {
    let mut parts = Vec::new();
    if candidate.own_tests {
        parts.push(without_server(candidate)?);
    }
    parts.push(against_server(candidate));
    Ok(parts)
}

fn without_server(candidate: &Candidate) -> anyhow::Result<Part<'_>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(candidate.directory.join("tests"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with("test_") {
            paths.push(format!("tests/{name}"));
        }
    }
    for half in ["tests/sync/sandbox_sync", "tests/async/sandbox_async"] {
        paths.push(format!("{half}/{WITHOUT_SERVER}"));
    }
    paths.sort();
    paths.retain(|path| candidate.directory.join(path).exists());
    Ok(Part {
        name: "sdk-alone",
        python: &candidate.python,
        directory: &candidate.directory,
        paths,
        arguments: Vec::new(),
        against_server: false,
    })
}

fn against_server(candidate: &Candidate) -> Part<'_> {
    let mut paths = ["tests/shared", "tests/sync", "tests/async"].map(str::to_owned).to_vec();
    paths.retain(|path| candidate.directory.join(path).exists());
    Part {
        name: "sdk",
        python: &candidate.python,
        directory: &candidate.directory,
        paths,
        arguments: vec![format!("--ignore-glob=*/{WITHOUT_SERVER}")],
        against_server: true,
    }
}

fn code_interpreter<'a>(python: &'a Path, directory: &'a Path) -> Part<'a> {
    let paths = vec!["tests".to_owned()];
    Part { name: "interpreter", python, directory, paths, arguments: Vec::new(), against_server: true }
}

fn run_part(workspace: &Workspace, state: &Path, outcomes: &Path, part: &Part<'_>, pytest: &[String]) -> anyhow::Result<()> {
    say(&format!("\n{}:", part.name));
    let mut command = Command::new(part.python);
    // `-P`: what was installed is tested, not what happens to lie in the checkout.
    command
        .args([
            "-B",
            "-P",
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "-p",
            "outcomes",
            "-q",
            "--tb=short",
            "--continue-on-collection-errors",
            "--timeout",
            TEST_DEADLINE,
            "--reruns",
            RERUNS,
        ])
        .args(&part.arguments)
        .args(&part.paths)
        .args(pytest)
        .current_dir(part.directory)
        .env("PYTHONPATH", workspace.root.join("tests/conformance"))
        .env("OUTCOMES", outcomes)
        .env("PART", part.name)
        .stdin(Stdio::null());
    // Variables of the person who runs this must not point the SDK elsewhere.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("E2B_")) {
        command.env_remove(name);
    }
    if part.against_server {
        command.envs(server::variables(workspace, state)?);
    }
    // Failing tests are what the tally is about. Exit 5: the caller's own selection left nothing of this part.
    let status = command.status().with_context(|| format!("cannot run pytest for {}", part.name))?;
    match status.code() {
        Some(0..=2 | 5) => Ok(()),
        _ => bail!("pytest ended badly for {}: {status}", part.name),
    }
}
