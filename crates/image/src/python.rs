//! Python packages of a root file system that Debian does not have, or has too old: wheels by name and version.
//!
//! ```text
//!   tree of Debian packages --its own pip, run on this host--> tree/usr/local/lib/python3*/dist-packages
//! ```
//!
//! The package index is the one that this machine's pip is set up for: its configuration may name an index, a proxy, a
//! certificate or a directory of wheels, and those are files and variables of the host. So the tree's own Python and pip are run
//! outside of the tree, with its loader and its libraries: nothing has to be installed on the host, nothing of its
//! configuration gets into the tree, and pip sees what Debian has brought already. Nothing is compiled and no code of a package
//! is run: only wheels are taken, each named with its version, and none pulls in others.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fs_err as fs;

use crate::cache::{Slot, blocking};
use crate::command::{CommandError, command, run};
use crate::progress::{ImageStep, Report, say};

/// Fetching 150 MB on a slow line, with the client's own patience between.
const INSTALL_DEADLINE: Duration = Duration::from_secs(40 * 60);
/// Compiling 6,000 modules takes a minute on a busy core.
const COMPILE_DEADLINE: Duration = Duration::from_secs(20 * 60);
/// Where pip of a Debian puts what is not Debian's.
const SCRIPTS: &str = "usr/local/bin";
/// The first line of a script in the tree, whatever path its Python had when it was installed.
const SHEBANG: &[u8] = b"#!/usr/bin/python3";
/// A script that starts a module is 200 bytes; what is larger is a program.
const MAX_SCRIPT_BYTES: u64 = 64 << 10;

/// Variables that would send Python, or what pip installs, elsewhere. Others of pip's stay: they are its configuration.
const MISLEADING: &[&str] = &[
    "PYTHONPATH",
    "PYTHONSTARTUP",
    "PYTHONUSERBASE",
    "PIP_PREFIX",
    "PIP_REQUIRE_VIRTUALENV",
    "PIP_ROOT",
    "PIP_TARGET",
    "PIP_USER",
    "VIRTUAL_ENV",
];

/// Why Python packages are not in a root file system.
#[derive(Debug, thiserror::Error)]
pub enum PythonError {
    /// The tree has no Python to install them with.
    #[error("cannot find Python in `{tree}`")]
    NoPython {
        /// The root of the file system.
        tree: PathBuf,
    },
    /// pip does not install them.
    #[error("cannot install Python packages; the package index is that of this machine's pip: see `pip config list`")]
    Install(#[source] CommandError),
    /// Their modules cannot be compiled.
    #[error("cannot compile the Python packages")]
    Compile(#[source] CommandError),
    /// A file cannot be read or written.
    #[error("cannot finish the Python packages")]
    Io(#[from] std::io::Error),
}

/// Installs packages, each as `NAME==VERSION`, into the tree.
pub(crate) async fn install(slot: &Slot, tree: &Path, packages: &[String], report: Report<'_>) -> Result<(), PythonError> {
    say(report, ImageStep::Python, format!("installing {} packages from the package index", packages.len()));
    let python = Python::of(tree)?;
    let mut install = python.command(slot);
    install.args(["-m", "pip", "install", "--no-deps", "--only-binary", ":all:", "--no-compile", "--no-warn-script-location"]);
    install.args(["--break-system-packages", "--root-user-action", "ignore", "--disable-pip-version-check", "--no-input"]);
    install.args(["--progress-bar", "off"]).args(packages);
    let mut on_line = |line: &str| {
        if line.starts_with("Collecting ") || line.starts_with("Installing ") {
            say(report, ImageStep::Python, line);
        }
    };
    run(install, INSTALL_DEADLINE, slot.log(), &mut on_line).await.map_err(PythonError::Install)?;
    say(report, ImageStep::Python, "compiling their modules");
    let mut compile = python.command(slot);
    // The modules remember where they will be, not where they were compiled.
    compile.args(["-m", "compileall", "-q", "-j", "0", "-s"]).arg(tree).args(["-p", "/"]).arg(&python.packages);
    run(compile, COMPILE_DEADLINE, slot.log(), &mut |_| ()).await.map_err(PythonError::Compile)?;
    let scripts = tree.join(SCRIPTS);
    blocking(move || mend_scripts(&scripts)).await?;
    Ok(())
}

/// The Python of a tree, run from outside of it.
struct Python {
    prefix: PathBuf,
    loader: PathBuf,
    libraries: String,
    program: PathBuf,
    packages: PathBuf,
}

impl Python {
    /// Paths of Debian on a 64-bit PC, the only machine that guests are.
    fn of(tree: &Path) -> Result<Self, PythonError> {
        let absent = || PythonError::NoPython { tree: tree.to_path_buf() };
        let prefix = tree.join("usr");
        // A link to the program of the version; its target is relative, so it stays within the tree.
        let program = fs::canonicalize(prefix.join("bin/python3")).map_err(|_| absent())?;
        let name = program.file_name().and_then(|name| name.to_str()).ok_or_else(absent)?.to_owned();
        let libraries = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"].map(|path| tree.join(path).display().to_string());
        Ok(Python {
            loader: tree.join("usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"),
            libraries: libraries.join(":"),
            packages: prefix.join(format!("local/lib/{name}/dist-packages")),
            program,
            prefix,
        })
    }

    fn command(&self, slot: &Slot) -> tokio::process::Command {
        let mut python = command(&self.loader);
        python.arg("--library-path").arg(&self.libraries).arg(&self.program).arg("-s");
        for name in MISLEADING {
            python.env_remove(name);
        }
        python.env("PYTHONHOME", &self.prefix).env("PYTHONDONTWRITEBYTECODE", "1").env("PYTHONNOUSERSITE", "1");
        python.env("TMPDIR", slot.path());
        python
    }
}

/// Gives scripts the interpreter that they will have.
fn mend_scripts(dir: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let meta = fs::symlink_metadata(&path)?;
        if !meta.is_file() || meta.len() > MAX_SCRIPT_BYTES {
            continue;
        }
        let bytes = fs::read(&path)?;
        if let Some(text) = mended(&bytes) {
            fs::write(&path, text)?;
            fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
        }
    }
    Ok(())
}

/// The script with the interpreter that it will have, if it is one of Python. A path that is too long for a first line stands in
/// the third, behind a shell.
fn mended(script: &[u8]) -> Option<Vec<u8>> {
    let line = |from: usize| script.get(from..)?.iter().position(|&byte| byte == b'\n').map(|end| from + end);
    let first = line(0)?;
    let rest = if script.starts_with(b"#!/bin/sh\n'''exec' ") {
        line(line(first + 1)? + 1)?
    } else if script.starts_with(b"#!") && script[..first].windows(6).any(|word| word == b"python") {
        first
    } else {
        return None;
    };
    Some([SHEBANG, &script[rest..]].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_get_the_interpreter_of_the_guest() {
        let body = "\nimport sys\n";
        let wanted = Some([SHEBANG, body.as_bytes()].concat());
        assert_eq!(mended(format!("#!/cache/tmp/tree/usr/bin/python3.11{body}").as_bytes()), wanted);
        let behind_a_shell = format!("#!/bin/sh\n'''exec' /very/long/python3.11 \"$0\" \"$@\"\n' '''{body}");
        assert_eq!(mended(behind_a_shell.as_bytes()), wanted);
        assert_eq!(mended(b"#!/bin/sh\necho python\n"), None);
        assert_eq!(mended(b"\x7fELF python"), None);
    }

    #[test]
    fn a_tree_without_python_is_told() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Python::of(dir.path()), Err(PythonError::NoPython { .. })));
    }
}
