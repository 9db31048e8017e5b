//! PostgreSQL for the tests of the catalogue on it: Debian's programs, without a server of the host's own. Each test starts one for itself.

use std::{path::Path, process::Command};

use fs_err as fs;

use crate::run::{Step, say};

/// Where Debian has the programs, by version.
const PROGRAMS: &str = "/usr/lib/postgresql";

/// What Debian's package asks before it makes a server of its own and starts it.
const CLUSTERS: &str = "/etc/postgresql-common/createcluster.conf";

/// Installs what is missing, from where this machine gets its packages.
pub(crate) fn set_up(step: &mut Step) -> anyhow::Result<()> {
    if is_here() {
        return Ok(());
    }
    say("installing the Debian package postgresql, without a server of it");
    if let Err(error) = install(step) {
        step.skip(&format!("PostgreSQL cannot be installed here, so that the catalogue on it is not tested: {error:#}"));
    }
    Ok(())
}

/// Whether there is what it takes.
pub(crate) fn is_here() -> bool {
    Path::new(PROGRAMS).exists()
}

fn install(step: &mut Step) -> anyhow::Result<()> {
    step.run(Command::new("apt-get").args(["update", "-qq"]))?;
    step.run(&mut packages("postgresql-common"))?;
    let text = fs::read_to_string(CLUSTERS)?;
    fs::write(CLUSTERS, format!("{text}\ncreate_main_cluster = false\n"))?;
    let installed = step.run(&mut packages("postgresql"));
    fs::write(CLUSTERS, text)?;
    installed
}

fn packages(name: &str) -> Command {
    let mut command = Command::new("apt-get");
    command.args(["install", "-qq", "--yes", "--no-install-recommends", name]).env("DEBIAN_FRONTEND", "noninteractive");
    command
}
