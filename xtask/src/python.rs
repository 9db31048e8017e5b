//! Python environments for the SDKs: one for each file of pinned requirements, kept until the file changes.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::Context as _;
use fs_err as fs;

use crate::run::{Step, say};

/// The file in an environment that holds the requirements it was made from. Written last: without it, nothing is there.
const STAMP: &str = "made-from.txt";

/// Makes sure that Python can make environments. Debian keeps that in a package of its own.
pub(crate) fn set_up(step: &mut Step) -> anyhow::Result<()> {
    let mut probe = Command::new("python3");
    let probe = probe.args(["-c", "import ensurepip, venv"]).stdin(Stdio::null()).stderr(Stdio::null());
    if probe.status().is_ok_and(|status| status.success()) {
        return Ok(());
    }
    say("installing the Debian package python3-venv");
    step.run(Command::new("apt-get").args(["update", "-qq"]))?;
    step.run(Command::new("apt-get").args(["install", "-qq", "--yes", "python3-venv"]).env("DEBIAN_FRONTEND", "noninteractive"))
}

/// The interpreter of an environment with exactly `requirements`, made now unless an earlier run has left it.
pub(crate) fn environment(cache: &Path, requirements: &Path, step: &mut Step) -> anyhow::Result<PathBuf> {
    let name = requirements.file_stem().context("requirements are a file")?;
    let dir = cache.join("venv").join(name);
    let python = dir.join("bin/python");
    let wanted = fs::read_to_string(requirements)?;
    if fs::read_to_string(dir.join(STAMP)).is_ok_and(|made_from| made_from == wanted) {
        return Ok(python);
    }
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    fs::create_dir_all(&dir)?;
    step.run(Command::new("python3").args(["-m", "venv"]).arg(&dir))?;
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"];
    step.run(Command::new(&python).args(pip).arg(requirements))?;
    fs::write(dir.join(STAMP), wanted)?;
    Ok(python)
}
