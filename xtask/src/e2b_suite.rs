//! E2B's own Python test suites against a server of ours, from a checkout that the caller has.
//!
//! Nothing of E2B's is kept here: tests are named by path, and why one cannot pass is said in `reasons.rs`. The suite asserts
//! default addresses in some tests and talks to a server in others, so it runs in two parts with different environments.

use std::{
    fs::Permissions,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};
use fs_err as fs;

use crate::{
    python,
    run::{Report, Step, say},
    server::{self, Server},
    workspace::Workspace,
};

mod reasons;
mod tally;

use tally::Tally;

/// What the suites need beside the SDK: the versions that their own project files allow.
const RUNNERS: [&str; 6] = [
    "pytest>=9.0.3,<10",
    "pytest-asyncio>=1.3.0,<2",
    "pytest-dotenv>=0.5.2,<0.6",
    "pytest-timeout>=2.4.0,<3",
    "pytest-xdist>=3.3.1,<4",
    "python-dotenv>=1.0.0,<2",
];

/// Seconds that a test may take. The suites' own limit is 30 on E2B's machines; an emulated guest boots no faster than it does.
const TEST_DEADLINE: &str = "90";

/// Tests that assert the default addresses, in the directories of those that talk to a server.
const WITHOUT_SERVER: &str = "test_config_propagation.py";

/// What to run.
#[derive(Debug, clap::Args)]
pub(crate) struct Suite {
    /// A checkout of e2b-dev/E2B
    #[arg(long, value_name = "PATH")]
    checkout: PathBuf,
    /// A checkout of e2b-dev/code-interpreter
    #[arg(long, value_name = "PATH")]
    code_interpreter: Option<PathBuf>,
    /// A release of `e2b` from PyPI instead of the checkout's own SDK
    #[arg(long, value_name = "VERSION")]
    sdk: Option<String>,
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

/// Everything from the environment to the table of results. Fails when a test failed for no known reason.
pub(crate) fn run(workspace: &Workspace, report: &mut Report, suite: &Suite) -> anyhow::Result<()> {
    let sdk = suite.checkout.join("packages/python-sdk").canonicalize().context("the checkout has no `packages/python-sdk`")?;
    let interpreter = suite.code_interpreter.as_ref().map(|path| path.join("python").canonicalize()).transpose();
    let interpreter = interpreter.context("the code interpreter's checkout has no `python`")?;
    let mut pythons = Vec::new();
    report.step("python environment", |step| {
        python::set_up(step)?;
        let from = suite.sdk.as_ref().map_or_else(|| sdk.display().to_string(), |version| format!("e2b=={version}"));
        let name = suite.sdk.as_ref().map_or_else(|| "e2b-checkout".to_owned(), |version| format!("e2b-{version}"));
        pythons.push(environment(workspace, step, &name, &[from], &sdk)?);
        if let Some(interpreter) = &interpreter {
            let from = interpreter.display().to_string();
            pythons.push(environment(workspace, step, "e2b-code-interpreter", &[from], interpreter)?);
        }
        Ok(())
    })?;
    // Machines run as users of their own, who must be able to enter it: not below a home directory.
    let state = tempfile::Builder::new().prefix("firkin-suite-").tempdir_in("/var/tmp").context("cannot make a directory")?;
    fs::set_permissions(state.path(), Permissions::from_mode(0o711))?;
    let outcomes = state.path().join("outcomes");
    report.step("base template", |step| {
        step.run(workspace.firkin().args(["template", "build", "base", "--state-dir"]).arg(state.path()))
    })?;
    report.step("e2b suite", |step| {
        let server = Server::start(workspace, state.path())?;
        let mut parts = vec![without_server(&pythons[0], &sdk)?, against_server(&pythons[0], &sdk)];
        if let (Some(python), Some(interpreter)) = (pythons.get(1), &interpreter) {
            parts.push(code_interpreter(python, interpreter));
        }
        for part in &parts {
            run_part(workspace, state.path(), &outcomes, part, &suite.pytest)?;
        }
        let tally = Tally::read(&outcomes)?;
        say(&tally.table());
        step.passed(tally.passed);
        step.skipped(tally.excused());
        server.stop()?;
        let unexplained = tally.unexplained();
        if unexplained == 0 { Ok(()) } else { bail!("{unexplained} tests failed for no known reason") }
    })
}

/// An interpreter with the SDK at `from` and what runs the tests, made anew when the checkout has moved.
fn environment(workspace: &Workspace, step: &mut Step, name: &str, from: &[String], tree: &Path) -> anyhow::Result<PathBuf> {
    let cache = workspace.cache().join("e2b-suite");
    fs::create_dir_all(&cache)?;
    let file = cache.join(format!("{name}.txt"));
    let lines: Vec<&str> = from.iter().map(String::as_str).chain(RUNNERS).collect();
    fs::write(&file, format!("# checkout {}\n{}\n", head(tree), lines.join("\n")))?;
    python::environment(&workspace.cache(), &file, step)
}

/// The commit that a checkout is at.
fn head(tree: &Path) -> String {
    let output = Command::new("git").args(["rev-parse", "HEAD"]).current_dir(tree).stderr(Stdio::null()).output();
    output.map_or_else(|_| "unknown".to_owned(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn without_server<'a>(python: &'a Path, sdk: &'a Path) -> anyhow::Result<Part<'a>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(sdk.join("tests"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with("test_") {
            paths.push(format!("tests/{name}"));
        }
    }
    for half in ["tests/sync/sandbox_sync", "tests/async/sandbox_async"] {
        paths.push(format!("{half}/{WITHOUT_SERVER}"));
    }
    paths.sort();
    paths.retain(|path| sdk.join(path).exists());
    Ok(Part { name: "sdk-alone", python, directory: sdk, paths, arguments: Vec::new(), against_server: false })
}

fn against_server<'a>(python: &'a Path, sdk: &'a Path) -> Part<'a> {
    Part {
        name: "sdk",
        python,
        directory: sdk,
        paths: ["tests/shared", "tests/sync", "tests/async"].map(str::to_owned).to_vec(),
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
            "--tb=no",
            "--timeout",
            TEST_DEADLINE,
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
