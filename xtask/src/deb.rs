//! `cargo xtask deb`: the product as a Debian package.
//!
//! What is in the package, and how it is packed, is decided by `packaging/debian/build`, which the tests of the package call too, with the program
//! that they have. `dpkg-deb` is part of every Debian: no tool has to be built for it.

use std::{path::PathBuf, process::Command};

use anyhow::Context as _;
use clap::Args;

use crate::{run::Step, workspace::Workspace};

/// What is packed.
#[derive(Debug, Args)]
pub(crate) struct Package {
    /// Its version, as Debian orders them [default: the product's]
    #[arg(long)]
    version: Option<String>,
    /// Directory for the package [default: target/debian]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Pack a program that was built already, in the place of a release build
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
}

/// Builds the package.
pub(crate) fn build(workspace: &Workspace, package: &Package, step: &mut Step) -> anyhow::Result<()> {
    let target = workspace.binaries.parent().context("binaries are in a directory of the target's")?;
    let program = match &package.program {
        Some(program) => program.clone(),
        None => {
            step.run(&mut workspace.cargo(&["build", "--release", "--package", "firkin"]))?;
            target.join("release/firkin")
        }
    };
    let version = package.version.as_deref().unwrap_or(env!("CARGO_PKG_VERSION"));
    let out = package.out.clone().unwrap_or_else(|| target.join("debian"));
    let mut pack = Command::new(workspace.root.join("packaging/debian/build"));
    step.run(pack.arg(program).arg(version).arg(out).env("STRIP", "1"))
}

#[cfg(test)]
mod tests {
    use std::{path::Path, process::Command};

    use crate::sbom::HOST_PACKAGES;

    /// Templates and what is paused stand on root images of the cache, also those of other servers.
    #[test]
    fn a_purge_leaves_the_cache_to_whoever_stands_on_it() {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("packaging/debian/postrm");
        let purged = |state_dirs: &[&str]| {
            let root = tempfile::tempdir().unwrap();
            let users = root.path().join("var/cache/firkin/users");
            fs_err::create_dir_all(&users).unwrap();
            fs_err::write(users.join("since"), "").unwrap();
            for (at, user) in ["/var/lib/firkin", "/srv/other one"].iter().enumerate() {
                fs_err::write(users.join(at.to_string()), user).unwrap();
            }
            for dir in state_dirs {
                fs_err::create_dir_all(root.path().join(&dir[1..])).unwrap();
            }
            let mut purge = Command::new("sh");
            let status = purge.arg(&script).arg("purge").env("DPKG_ROOT", root.path()).status().unwrap();
            assert!(status.success() && state_dirs.iter().all(|dir| root.path().join(&dir[1..]).exists()));
            !users.exists()
        };
        assert!(!purged(&["/var/lib/firkin"]));
        assert!(!purged(&["/srv/other one"]));
        assert!(purged(&[]));
    }

    #[test]
    fn a_package_wants_what_set_up_installs() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let control = fs_err::read_to_string(root.join("packaging/debian/control")).unwrap();
        let fields =
            control.lines().filter_map(|line| line.strip_prefix("Depends: ").or_else(|| line.strip_prefix("Recommends: ")));
        let named: Vec<&str> = fields.flat_map(|field| field.split(", ")).filter_map(|one| one.split(' ').next()).collect();
        for package in HOST_PACKAGES {
            assert!(
                named.contains(&package),
                "{package} is installed by `firkin doctor --fix`, and the package does not ask for it"
            );
        }
    }
}
