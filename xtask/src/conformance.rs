//! The official SDKs against a server that is started for them and stopped after.

use std::{path::Path, process::Command};

use anyhow::Context as _;

use crate::{
    gvisor,
    household::Household,
    leaks,
    node::{self, Packages},
    python,
    run::{Report, Step, say},
    server::{self, Server},
    workspace::Workspace,
};

/// One SDK: its pinned packages and the tests that it drives.
#[derive(Debug, Clone, Copy)]
struct Sdk {
    name: &'static str,
    requirements: &'static str,
    tests: &'static str,
}

const NEWEST: Sdk = Sdk { name: "newest SDK", requirements: "requirements-newest.txt", tests: "newest" };
/// About the guest and not about the SDK, and long: most of it is the installation of Docker on one emulated processor.
const CONTAINERS: Sdk = Sdk { name: "containers in a sandbox", requirements: "requirements-newest.txt", tests: "containers" };
const V1: Sdk = Sdk { name: "older SDK", requirements: "requirements-v1.txt", tests: "v1" };
const CLI: Sdk = Sdk { name: "E2B's command line", requirements: "requirements-cli.txt", tests: "cli" };
const MCP: Sdk = Sdk { name: "MCP gateway", requirements: "requirements-gateway.txt", tests: "gateway" };
const INTERPRETER: Sdk = Sdk { name: "code interpreter SDK", requirements: "requirements-interpreter.txt", tests: "interpreter" };

const DESKTOP: Sdk = Sdk { name: "desktop SDK", requirements: "requirements-desktop.txt", tests: "desktop" };

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

/// How a server is asked for gVisor.
const ON_GVISOR: [&str; 2] = ["--engine", "gvisor"];

/// What the tests of the code interpreter read: the parts that the template lacks.
const WITHOUT_PARTS: &str = "WITHOUT_PARTS";

/// Fetches what the tests stand on: Python environments and packages for Node. `pytest` narrows the tests to some.
pub(crate) fn fetch(workspace: &Workspace, pytest: &[String], step: &mut Step) -> anyhow::Result<()> {
    python::set_up(step)?;
    let sdks: &[Sdk] = if pytest.is_empty() { &[NEWEST, V1, INTERPRETER, MCP] } else { &[NEWEST] };
    for sdk in sdks {
        python::environment(&workspace.cache(), &requirements(workspace, *sdk), step)?;
    }
    if pytest.is_empty() {
        node_packages(workspace, JAVASCRIPT_INTERPRETER, step)?;
        node_packages(workspace, JAVASCRIPT, step)?;
    }
    Ok(())
}

/// Everything from the first template to the check that nothing is left. `pytest` narrows the tests to some.
pub(crate) fn run(
    workspace: &Workspace,
    household: &Household,
    report: &mut Report,
    parts: Parts,
    pytest: &[String],
) -> anyhow::Result<()> {
    let whole = pytest.is_empty();
    let sdks: &[Sdk] = if whole { &[NEWEST, V1] } else { &[NEWEST] };
    let (state, other_state) = (household.passable_dir("state-")?, household.passable_dir("state-")?);
    let build_in = |state: &Path, name| {
        let mut command = workspace.firkin();
        command.args(["template", "build", name, "--state-dir"]).arg(state);
        command
    };
    let build = |name| build_in(state.path(), name);
    report.step("base template", |step| step.run(&mut build("base")))?;
    let before = leaks::Host::observe(household)?;
    let sdk_conformance = |step: &mut Step| against_server(workspace, state.path(), sdks, pytest, step);
    if whole {
        let containers = |step: &mut Step| {
            step.run(&mut build_in(other_state.path(), "base"))?;
            against_server(workspace, other_state.path(), &[CONTAINERS], pytest, step)
        };
        report.steps_at_once(("sdk conformance", sdk_conformance), ("containers in a sandbox", containers))?;
        report.step("javascript sdk and command line conformance", |step| javascript(workspace, state.path(), step))?;
    } else {
        report.step("sdk conformance", sdk_conformance)?;
    }
    // Only now: a server keeps sandboxes of every template warm, and these are large.
    if whole {
        let without = parts.without();
        let options = without.iter().flat_map(|names| ["--without", names]);
        let template = |step: &mut Step| step.run(build("code-interpreter-v1").args(options));
        report.step("code interpreter template", template)?;
        report.step("code interpreter conformance", |step| interpreter(workspace, state.path(), without, step))?;
        // Its tests have the server build the template while it serves.
        report.step("mcp gateway conformance", |step| against_server(workspace, state.path(), &[MCP], pytest, step))?;
    }
    // Not in every test run: with Debian's build of `runsc` one pause in some hundred leaves a sandbox that does not answer.
    if whole && parts == Parts::All {
        report.step("sdk conformance on gVisor", |step| on_gvisor(workspace, household, step))?;
        report.step("other conformance on gVisor", |step| others_on_gvisor(workspace, household, parts, step))?;
    }
    // A session and a browser are 500 MB to fetch, and minutes to start in an emulated guest.
    if whole && parts == Parts::All {
        report.step("desktop template", |step| step.run(&mut build("desktop")))?;
        report.step("desktop conformance", |step| against_server(workspace, state.path(), &[DESKTOP], pytest, step))?;
    }
    report.step("nothing left by the server", |step| leaks::check(household, &before, step))
}

/// The newest SDK's tests with sandboxes of gVisor.
fn on_gvisor(workspace: &Workspace, household: &Household, step: &mut Step) -> anyhow::Result<()> {
    if !gvisor::is_here() {
        step.skip("there is no `runsc` or `mkfs.erofs` on this host");
        return Ok(());
    }
    let state = household.passable_dir("state-")?;
    step.run(workspace.firkin().args(["template", "build", "base", "--state-dir"]).arg(state.path()).args(ON_GVISOR))?;
    let mirror = server::tests_registry();
    let server = Server::start_with(workspace, state.path(), &[&["--registry-mirror", &mirror], &ON_GVISOR[..]].concat())?;
    let mut command = suite(workspace, state.path(), NEWEST, step)?;
    // Servers that tests start themselves are asked for it by this.
    command.env("FIRKIN_ENGINE", ON_GVISOR[1]);
    step.run(&mut command).with_context(|| format!("the {} failed on gVisor\n{}", NEWEST.name, server.log_tail()))?;
    server.stop()
}

/// All other suites with sandboxes of gVisor but the desktop's, on one state directory. Tests that are about what such sandboxes lack are
/// skipped by their names.
fn others_on_gvisor(workspace: &Workspace, household: &Household, parts: Parts, step: &mut Step) -> anyhow::Result<()> {
    if !gvisor::is_here() {
        step.skip("there is no `runsc` or `mkfs.erofs` on this host");
        return Ok(());
    }
    let workspace = workspace.with_engine(ON_GVISOR[1]);
    let state = household.passable_dir("state-")?;
    let without = parts.without();
    let build = |name: &str, options: &[&str]| {
        let mut command = workspace.firkin();
        command.args(["template", "build", name, "--state-dir"]).arg(state.path()).args(options);
        command
    };
    step.run(&mut build("base", &[]))?;
    against_server(&workspace, state.path(), &[V1, CONTAINERS], &[], step)?;
    javascript(&workspace, state.path(), step)?;
    let options: Vec<&str> = without.iter().flat_map(|names| ["--without", names]).collect();
    step.run(&mut build("code-interpreter-v1", &options))?;
    interpreter(&workspace, state.path(), without, step)?;
    against_server(&workspace, state.path(), &[MCP], &[], step)
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
    let mut tests = suite(workspace, state_dir, CLI, step)?;
    tests.env("NODE_MODULES", packages.modules()).env("PATH", &packages.path);
    step.run(&mut tests).with_context(|| format!("{} failed\n{}", CLI.name, server.log_tail()))?;
    server.stop()
}

/// The code interpreter's SDKs: Python's under pytest, then JavaScript's under Node's own test runner.
fn interpreter(workspace: &Workspace, state_dir: &Path, without: Option<&str>, step: &mut Step) -> anyhow::Result<()> {
    let packages = node_packages(workspace, JAVASCRIPT_INTERPRETER, step)?;
    let server = Server::start(workspace, state_dir)?;
    let mut python = suite(workspace, state_dir, INTERPRETER, step)?;
    let mut javascript = packages.tests(&directory(workspace).join(JAVASCRIPT_INTERPRETER))?;
    javascript.envs(server::variables(workspace, state_dir)?).env_remove("E2B_DOMAIN").env_remove("E2B_DEBUG");
    for (name, tests) in [(INTERPRETER.name, &mut python), ("code interpreter's JavaScript SDK", &mut javascript)] {
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
fn suite(workspace: &Workspace, state_dir: &Path, sdk: Sdk, step: &mut Step) -> anyhow::Result<Command> {
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
        .envs(workspace.engine_variable())
        .envs(server::variables(workspace, state_dir)?);
    Ok(command)
}

fn directory(workspace: &Workspace) -> std::path::PathBuf {
    workspace.root.join("tests/conformance")
}

fn requirements(workspace: &Workspace, sdk: Sdk) -> std::path::PathBuf {
    directory(workspace).join(sdk.requirements)
}
