//! The dashboard in Debian's Chromium, headless, against a server of its own: what people do there, and a screenshot of every page.

use std::process::Command;

use anyhow::Context as _;

use crate::{
    conformance::{BROWSER, suite},
    gvisor,
    household::Household,
    run::{Report, Step, say},
    server::Server,
    workspace::Workspace,
};

/// The Debian packages of the browser, and of a font that has what pages show.
const PACKAGES: [&str; 2] = ["chromium", "fonts-dejavu-core"];

/// Where the program is, by Debian's choice.
const CHROMIUM: &str = "/usr/bin/chromium";

/// Parts that the interpreter's template is made without.
const LIGHT: &str = "r,java,science";

/// Where screenshots are left, below the directory of builds.
const SCREENSHOTS: &str = "browser/screenshots";

/// Installs what is missing, from where this machine gets its packages. Says why where it cannot.
fn set_up(step: &mut Step) -> anyhow::Result<bool> {
    if std::path::Path::new(CHROMIUM).exists() {
        return Ok(true);
    }
    say("installing the Debian packages chromium and fonts-dejavu-core");
    let updated = step.run(Command::new("apt-get").args(["update", "-qq"]));
    let mut install = Command::new("apt-get");
    install.args(["install", "-qq", "--yes", "--no-install-recommends"]).args(PACKAGES).env("DEBIAN_FRONTEND", "noninteractive");
    if let Err(error) = updated.and_then(|()| step.run(&mut install)) {
        step.skip(&format!("Chromium cannot be installed here, so that the dashboard is not looked at: {error:#}"));
        return Ok(false);
    }
    Ok(true)
}

/// The tests. On gVisor where it is here: its sandboxes start in a fraction of the time that emulated ones take.
pub(crate) fn run(workspace: &Workspace, household: &Household, report: &mut Report, pytest: &[String]) -> anyhow::Result<()> {
    report.step("dashboard in a browser", |step| {
        if !set_up(step)? {
            return Ok(());
        }
        let workspace = if gvisor::is_here() { &workspace.with_engine("gvisor") } else { workspace };
        let state = household.passable_dir("state-")?;
        let server = Server::start(workspace, state.path())?;
        // Cells of code want an interpreter: the one of the light conformance tests, whose root image is there by now. The server builds it.
        let mut template = workspace.firkin();
        template.args(["template", "build", "code-interpreter-v1", "--without", LIGHT, "--state-dir"]).arg(state.path());
        step.run(&mut template)?;
        let mut tests = suite(workspace, state.path(), BROWSER, step)?;
        let screenshots = workspace.binaries.join(SCREENSHOTS);
        tests.args(pytest).env("CHROMIUM", CHROMIUM).env("SCREENSHOTS", &screenshots);
        step.run(&mut tests).with_context(|| format!("the dashboard failed\n{}", server.log_tail()))?;
        say(&format!("screenshots: {}", screenshots.display()));
        server.stop()
    })
}
