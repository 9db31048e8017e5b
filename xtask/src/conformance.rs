//! The official SDKs against a server that is started for them and stopped after.

use std::{path::Path, process::Command};

use anyhow::Context as _;

use crate::{
    gvisor,
    household::Household,
    node::{self, Packages},
    python,
    run::{Report, Step, say},
    server::{self, Server},
    workspace::Workspace,
};

/// One SDK: its pinned packages and the tests that it drives.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sdk {
    name: &'static str,
    requirements: &'static str,
    tests: &'static str,
    /// Which of its faces, the blocking and the asynchronous one, the tests drive, where not both.
    faces: Option<&'static str>,
}

impl Sdk {
    const fn new(name: &'static str, requirements: &'static str, tests: &'static str) -> Self {
        Self { name, requirements, tests, faces: None }
    }

    /// By the asynchronous face alone, where another engine has both.
    fn on_emulated(self, workspace: &Workspace, parts: Parts) -> Self {
        Self { faces: is_once(workspace, parts).then_some("async"), ..self }
    }
}

const NEWEST: Sdk = Sdk::new("newest SDK", "requirements-newest.txt", "newest");
/// About the guest and not about the SDK, and long: most of it is the installation of Docker on one emulated processor.
const CONTAINERS: Sdk = Sdk::new("containers in a sandbox", "requirements-newest.txt", "containers");
const V1: Sdk = Sdk::new("older SDK", "requirements-v1.txt", "v1");
const CLI: Sdk = Sdk::new("E2B's command line", "requirements-cli.txt", "cli");
/// Python makes the hosts and the server that the JavaScript SDK's tests of what leaves a sandbox need.
const JAVASCRIPT_OUTSIDE: Sdk = Sdk::new("JavaScript SDK and hosts outside", "requirements-newest.txt", "js");
const MCP: Sdk = Sdk::new("MCP gateway", "requirements-gateway.txt", "gateway");
/// Our own routes against their own description; no SDK knows them, and no engine matters.
const OPENAPI: Sdk = Sdk::new("our own routes", "requirements-openapi.txt", "openapi");
const INTERPRETER: Sdk = Sdk::new("code interpreter SDK", "requirements-interpreter.txt", "interpreter");

/// The dashboard, which no SDK knows: a browser drives it.
pub(crate) const BROWSER: Sdk = Sdk::new("browser", "requirements-browser.txt", "browser");
const DESKTOP: Sdk = Sdk::new("desktop SDK", "requirements-desktop.txt", "desktop");

/// The directory with the JavaScript packages and the tests of the JavaScript SDK.
const JAVASCRIPT: &str = "js";

/// The same of the code interpreter's JavaScript SDK.
const JAVASCRIPT_INTERPRETER: &str = "js-interpreter";

/// Which parts the code interpreter's template has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parts {
    /// All.
    All,
    /// Those that cost little to install: a fresh host spends minutes on the others. Tests of the guest run them all, where the
    /// host has them.
    Light,
}

impl Parts {
    /// The others, as the command line and the tests are told of them.
    fn without(self) -> Option<&'static str> {
        match self {
            Self::All => None,
            Self::Light => Some("r,java,science"),
        }
    }
}

/// Whether what differs in the SDKs and not in what they reach is left to the other engine: an emulated machine is slow.
fn is_once(workspace: &Workspace, parts: Parts) -> bool {
    parts == Parts::Light && gvisor::is_here() && workspace.is_emulated()
}

/// The engine beside machines, as the product calls it.
const GVISOR: &str = "gvisor";

/// What the tests of the code interpreter read: the parts that the template lacks.
const WITHOUT_PARTS: &str = "WITHOUT_PARTS";

/// What the Python tests read: the SDK's faces that they drive.
const FACES: &str = "SDK_FACES";

/// Fetches what the tests stand on: Python environments and packages for Node. `pytest` narrows the tests to some.
pub(crate) fn fetch(workspace: &Workspace, pytest: &[String], step: &mut Step) -> anyhow::Result<()> {
    python::set_up(step)?;
    let sdks: &[Sdk] = if pytest.is_empty() { &[NEWEST, V1, INTERPRETER, MCP, BROWSER] } else { &[NEWEST] };
    for sdk in sdks {
        python::environment(&workspace.cache(), &requirements(workspace, *sdk), step)?;
    }
    if pytest.is_empty() {
        node_packages(workspace, JAVASCRIPT_INTERPRETER, step)?;
        node_packages(workspace, JAVASCRIPT, step)?;
    }
    Ok(())
}

/// Every suite with machines, and with sandboxes of gVisor beside them, which are followed by `last`. `pytest` narrows the tests to some.
pub(crate) fn run(
    workspace: &Workspace,
    household: &Household,
    report: &mut Report,
    (parts, pytest): (Parts, &[String]),
    last: impl FnOnce(&mut Report) -> anyhow::Result<()> + Send,
) -> anyhow::Result<()> {
    let machines = &workspace.with_engine(workspace.engine_of_machines()?);
    let state = household.passable_dir("state-")?;
    report.step("base template", |step| step.run(&mut build(machines, state.path(), "base")))?;
    if pytest.is_empty() {
        // Those of one row leave a processor idle while they wait; together they take half the time.
        let beside = |report: &mut Report| {
            report.step("conformance on gVisor", |step| on_gvisor(workspace, household, parts, step))?;
            last(report)
        };
        report.at_once(|report| on_machines(machines, state.path(), parts, report), beside)?;
    } else {
        report.step("sdk conformance", |step| against_server(machines, state.path(), &[NEWEST], pytest, step))?;
    }
    // A session and a browser are 500 MB to fetch, and minutes to start in an emulated guest.
    if pytest.is_empty() && parts == Parts::All {
        report.step("desktop template", |step| step.run(&mut build(machines, state.path(), "desktop")))?;
        report.step("desktop conformance", |step| against_server(machines, state.path(), &[DESKTOP], pytest, step))?;
    }
    Ok(())
}

/// The tests of what only machines have, and every suite.
fn on_machines(workspace: &Workspace, state: &Path, parts: Parts, report: &mut Report) -> anyhow::Result<()> {
    let newest = NEWEST.on_emulated(workspace, parts);
    report.step("sdk conformance", |step| against_server(workspace, state, &[newest, V1], &[], step))?;
    report.step("containers in a sandbox", |step| against_server(workspace, state, &[CONTAINERS], &[], step))?;
    report.step("other conformance", |step| {
        if !is_once(workspace, parts) {
            javascript(workspace, state, step)?;
        }
        interpreter_and_gateway(workspace, state, parts, step)
    })
}

fn build(workspace: &Workspace, state: &Path, name: &str) -> Command {
    let mut command = workspace.firkin();
    command.args(["template", "build", name, "--state-dir"]).arg(state);
    command
}

/// What has the large templates, which are made only now: a server keeps sandboxes of each warm. The gateway's tests have the server build its
/// template while it serves.
fn interpreter_and_gateway(workspace: &Workspace, state: &Path, parts: Parts, step: &mut Step) -> anyhow::Result<()> {
    let without = parts.without();
    let options = without.iter().flat_map(|names| ["--without", names]);
    step.run(build(workspace, state, "code-interpreter-v1").args(options))?;
    interpreter(workspace, state, (INTERPRETER.on_emulated(workspace, parts), without), step)?;
    against_server(workspace, state, &[MCP], &[], step)
}

/// All suites with sandboxes of gVisor but the desktop's. Tests that are about what such sandboxes lack are skipped by their names. Servers
/// that tests start themselves are asked for it too.
fn on_gvisor(workspace: &Workspace, household: &Household, parts: Parts, step: &mut Step) -> anyhow::Result<()> {
    if !gvisor::is_here() {
        step.skip("there is no `runsc` or `mkfs.erofs` on this host");
        return Ok(());
    }
    let workspace = &workspace.with_engine(GVISOR);
    let state = household.passable_dir("state-")?;
    step.run(&mut build(workspace, state.path(), "base"))?;
    against_server(workspace, state.path(), &[NEWEST, V1], &[], step)?;
    if parts == Parts::All {
        against_server(workspace, state.path(), &[CONTAINERS, OPENAPI], &[], step)?;
    }
    javascript(workspace, state.path(), step)?;
    interpreter_and_gateway(workspace, state.path(), parts, step)
}

fn against_server(
    workspace: &Workspace,
    state_dir: &Path,
    sdks: &[Sdk],
    pytest: &[String],
    step: &mut Step,
) -> anyhow::Result<()> {
    let server = Server::start(workspace, state_dir)?;
    for sdk in sdks {
        say(&format!("{}:", sdk.name));
        let mut command = suite(workspace, state_dir, *sdk, step)?;
        step.run(command.args(pytest)).with_context(|| format!("the {} failed\n{}", sdk.name, server.log_tail()))?;
    }
    // Two sandboxes are still there when the server is told to stop: ending them is its own business.
    for _ in 0..2 {
        step.run(workspace.firkin().args(["sandbox", "create", "--json", "--state-dir"]).arg(state_dir))?;
    }
    server.stop()
}

/// The JavaScript SDK under Node's own test runner, then E2B's command line, which is written with it, under pytest.
fn javascript(workspace: &Workspace, state_dir: &Path, step: &mut Step) -> anyhow::Result<()> {
    let packages = node_packages(workspace, JAVASCRIPT, step)?;
    let server = Server::start(workspace, state_dir)?;
    let mut tests = packages.tests(&directory(workspace).join(JAVASCRIPT))?;
    tests.envs(server::variables(workspace, state_dir)?).env_remove("E2B_DOMAIN").env_remove("E2B_DEBUG");
    step.run(&mut tests).with_context(|| format!("the JavaScript SDK failed\n{}", server.log_tail()))?;
    for sdk in [JAVASCRIPT_OUTSIDE, CLI] {
        let mut tests = suite(workspace, state_dir, sdk, step)?;
        tests.env("NODE_MODULES", packages.modules()).env("PATH", &packages.path);
        step.run(&mut tests).with_context(|| format!("{} failed\n{}", sdk.name, server.log_tail()))?;
    }
    server.stop()
}

/// The code interpreter's SDKs: Python's under pytest, then JavaScript's under Node's own test runner.
fn interpreter(
    workspace: &Workspace,
    state_dir: &Path,
    (sdk, without): (Sdk, Option<&str>),
    step: &mut Step,
) -> anyhow::Result<()> {
    let packages = node_packages(workspace, JAVASCRIPT_INTERPRETER, step)?;
    let server = Server::start(workspace, state_dir)?;
    let mut python = suite(workspace, state_dir, sdk, step)?;
    let mut javascript = packages.tests(&directory(workspace).join(JAVASCRIPT_INTERPRETER))?;
    javascript.envs(server::variables(workspace, state_dir)?).env_remove("E2B_DOMAIN").env_remove("E2B_DEBUG");
    let mut suites = vec![(sdk.name, &mut python)];
    if sdk.faces.is_none() {
        suites.push(("code interpreter's JavaScript SDK", &mut javascript));
    }
    for (name, tests) in suites {
        say(&format!("{name}:"));
        tests.env(WITHOUT_PARTS, without.unwrap_or_default());
        step.run(tests).with_context(|| format!("the {name} failed\n{}", server.log_tail()))?;
    }
    server.stop()
}

fn node_packages(workspace: &Workspace, name: &str, step: &mut Step) -> anyhow::Result<Packages> {
    let python = python::environment(&workspace.cache(), &requirements(workspace, CLI), step)?;
    node::packages(&workspace.cache(), &directory(workspace).join(name), &python, step)
}

/// pytest over the tests of one SDK, pointed at the server of this state directory.
pub(crate) fn suite(workspace: &Workspace, state_dir: &Path, sdk: Sdk, step: &mut Step) -> anyhow::Result<Command> {
    let python = python::environment(&workspace.cache(), &requirements(workspace, sdk), step)?;
    let mut command = Command::new(python);
    command
        .args(["-B", "-m", "pytest", "-p", "no:cacheprovider", "--durations=10", sdk.tests])
        .current_dir(directory(workspace))
        // Variables of the person who runs this must not point the SDK elsewhere.
        .env_remove("E2B_DOMAIN")
        .env_remove("E2B_DEBUG")
        // For tests that kill servers of their own, and for those that drive this one by the command line.
        .env("FIRKIN_BIN", workspace.binaries.join("firkin"))
        .env("FIRKIN_STATE_DIR", state_dir)
        .envs(workspace.variables())
        .envs(sdk.faces.map(|faces| (FACES, faces)))
        .envs(server::variables(workspace, state_dir)?);
    Ok(command)
}

fn directory(workspace: &Workspace) -> std::path::PathBuf {
    workspace.root.join("tests/conformance")
}

/// What the newest SDK's environment is made from.
pub(crate) fn newest(workspace: &Workspace) -> std::path::PathBuf {
    requirements(workspace, NEWEST)
}

fn requirements(workspace: &Workspace, sdk: Sdk) -> std::path::PathBuf {
    directory(workspace).join(sdk.requirements)
}
