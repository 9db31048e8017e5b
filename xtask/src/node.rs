//! E2B's JavaScript packages: the SDK and the command line, at the versions that a lock file names, and what runs them.
//!
//! Node.js comes with the Python environment of `requirements-cli.txt`, because Debian's is older than what these packages
//! want: so every host has the same one, and nothing is installed outside the cache.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;
use fs_err as fs;

use crate::run::Step;

/// The file that holds the lock that the packages were installed from. Written last: without it, nothing is there.
const STAMP: &str = "made-from.json";

/// An installed set of packages.
#[derive(Debug)]
pub(crate) struct Packages {
    /// Where `node_modules` is.
    pub(crate) directory: PathBuf,
    /// The search path with this Node.js first, for programs that begin with `#!/usr/bin/env node`.
    pub(crate) path: OsString,
}

impl Packages {
    /// The directory with the packages, for those who look for their programs.
    pub(crate) fn modules(&self) -> PathBuf {
        self.directory.join("node_modules")
    }

    /// Node's own test runner over the tests of `source`, which are put beside the packages: that is where they look for them.
    pub(crate) fn tests(&self, source: &Path) -> anyhow::Result<Command> {
        let mut names = Vec::new();
        for entry in fs::read_dir(source)? {
            let path = entry?.path();
            let name = path.file_name().context("an entry of a directory has a name")?.to_owned();
            if name.to_string_lossy().ends_with(".test.mjs") {
                fs::copy(&path, self.directory.join(&name))?;
                names.push(name);
            }
        }
        names.sort();
        let mut command = Command::new("node");
        command.args(["--test", "--test-reporter=spec"]).args(names).current_dir(&self.directory).env("PATH", &self.path);
        Ok(command)
    }
}

/// The packages that the lock file in `manifest` names, installed now unless an earlier run has left them. `python` is the
/// interpreter of the environment that has Node.js.
pub(crate) fn packages(cache: &Path, manifest: &Path, python: &Path, step: &mut Step) -> anyhow::Result<Packages> {
    let binaries = python.parent().context("an interpreter is in a directory")?;
    let rest = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(binaries.to_owned()).chain(std::env::split_paths(&rest)))
        .context("cannot put Node.js on the search path")?;
    let name = manifest.file_name().context("the packages' manifest is in a directory with a name")?;
    let found = Packages { directory: cache.join("node").join(name), path };
    let wanted = fs::read_to_string(manifest.join("package-lock.json"))?;
    if fs::read_to_string(found.directory.join(STAMP)).is_ok_and(|made_from| made_from == wanted) {
        return Ok(found);
    }
    if found.directory.exists() {
        fs::remove_dir_all(&found.directory)?;
    }
    fs::create_dir_all(&found.directory)?;
    for file in ["package.json", "package-lock.json"] {
        fs::copy(manifest.join(file), found.directory.join(file))?;
    }
    let mut install = Command::new("npm");
    install.args(["ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]);
    step.run(install.current_dir(&found.directory).env("PATH", &found.path))?;
    fs::write(found.directory.join(STAMP), wanted)?;
    Ok(found)
}
