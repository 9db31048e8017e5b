//! Which SDK is tested, and by which tests.
//!
//! Tests assert what their own release of the SDK does inside, so a release is tested by the tests of its tag where the checkout
//! has that. A release without a tag there, as the newest ones are, is tested by the checkout's tests that talk to a server: what
//! the others say about another release's inside says nothing about us.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};
use fs_err as fs;

use super::RUNNERS;
use crate::{python, run::Step, workspace::Workspace};

/// Where the SDK is in a checkout.
const PACKAGE: &str = "packages/python-sdk";

/// An SDK with the tests that drive it.
#[derive(Debug)]
pub(super) struct Candidate {
    /// The SDK, as tables show it.
    pub(super) sdk: String,
    /// The tests, as tables show them.
    pub(super) tests: String,
    /// The interpreter that has the SDK.
    pub(super) python: PathBuf,
    /// The directory above the tests.
    pub(super) directory: PathBuf,
    /// Whether the tests are of this very release.
    pub(super) own_tests: bool,
}

impl Candidate {
    /// The checkout's own SDK and tests.
    pub(super) fn of_checkout(workspace: &Workspace, step: &mut Step, checkout: &Path) -> anyhow::Result<Self> {
        let directory = package(checkout)?;
        let commit = commit(checkout, "HEAD").unwrap_or_else(|| "unknown".to_owned());
        let from = directory.display().to_string();
        let python = environment(workspace, step, "e2b-checkout", &from, &commit)?;
        let sdk = format!("checkout {}", &commit[..commit.len().min(8)]);
        Ok(Self { tests: sdk.clone(), sdk, python, directory, own_tests: true })
    }

    /// A release from PyPI.
    pub(super) fn of_release(workspace: &Workspace, step: &mut Step, checkout: &Path, version: &str) -> anyhow::Result<Self> {
        let python = environment(workspace, step, &format!("e2b-{version}"), &format!("e2b=={version}"), "")?;
        let sdk = format!("e2b {version}");
        let tag = format!("@e2b/python-sdk@{version}");
        let Some(commit) = commit(checkout, &tag) else {
            let head = commit(checkout, "HEAD").unwrap_or_else(|| "unknown".to_owned());
            let tests = format!("checkout {}", &head[..head.len().min(8)]);
            return Ok(Self { sdk, tests, python, directory: package(checkout)?, own_tests: false });
        };
        let unpacked = workspace.cache().join("e2b-suite").join(format!("tests-{version}-{commit}"));
        if !unpacked.exists() {
            unpack(checkout, &tag, &unpacked)?;
        }
        Ok(Self { sdk, tests: format!("tag {version}"), python, directory: unpacked.join(PACKAGE), own_tests: true })
    }
}

/// An interpreter with what `from` names and what runs the tests, made anew when `state` has changed.
pub(super) fn environment(
    workspace: &Workspace,
    step: &mut Step,
    name: &str,
    from: &str,
    state: &str,
) -> anyhow::Result<PathBuf> {
    let cache = workspace.cache().join("e2b-suite");
    fs::create_dir_all(&cache)?;
    let file = cache.join(format!("{name}.txt"));
    fs::write(&file, format!("# {state}\n{from}\n{}\n", RUNNERS.join("\n")))?;
    python::environment(&workspace.cache(), &file, step)
}

/// The commit that a name stands for, if the checkout has it.
pub(super) fn commit(checkout: &Path, name: &str) -> Option<String> {
    let mut asked = Command::new("git");
    let asked = asked.arg("-C").arg(checkout).args(["rev-parse", "--verify", "--quiet", &format!("{name}^{{commit}}")]);
    let output = asked.stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}

fn package(checkout: &Path) -> anyhow::Result<PathBuf> {
    checkout.join(PACKAGE).canonicalize().with_context(|| format!("the checkout has no `{PACKAGE}`"))
}

/// Puts the SDK's directory at `tag` below `dir`, whole or not at all.
fn unpack(checkout: &Path, tag: &str, dir: &Path) -> anyhow::Result<()> {
    let parent = dir.parent().context("a cached directory has a parent")?;
    let aside = tempfile::Builder::new().prefix("tests-").tempdir_in(parent)?;
    let archive = aside.path().join("archive.tar");
    let run = |command: &mut Command| {
        let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
        if status.success() { Ok(()) } else { bail!("{command:?} failed: {status}") }
    };
    run(Command::new("git").arg("-C").arg(checkout).args(["archive", "--format=tar", "-o"]).arg(&archive).args([tag, PACKAGE]))?;
    run(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(aside.path()))?;
    fs::remove_file(&archive)?;
    fs::rename(aside.keep(), dir)?;
    Ok(())
}
