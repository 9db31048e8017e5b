//! gVisor for the tests of its engine, whatever the host: the product's own set-up brings it where it is asked for.

use std::process::{Command, Stdio};

use fs_err as fs;

use crate::run::{Step, say};

/// The programs that the tests look for.
const PROGRAMS: [&str; 2] = ["runsc", "mkfs.erofs"];
/// The Debian packages that have them.
const PACKAGES: [&str; 2] = ["runsc", "erofs-utils"];

/// Installs what is missing, from where this machine gets its packages. Debian 12's own build does not start on new kernels; the product's
/// set-up has added its backports, from the same mirror, if they were not there.
pub(crate) fn set_up(step: &mut Step) -> anyhow::Result<()> {
    if is_here() {
        return Ok(());
    }
    say("installing the Debian packages runsc and erofs-utils");
    let codename = fs::read_to_string("/etc/os-release")?;
    let codename = codename.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).unwrap_or_default().trim_matches('"');
    let mut install = Command::new("apt-get");
    install.args(["install", "-qq", "--yes"]).env("DEBIAN_FRONTEND", "noninteractive");
    if codename == "bookworm" {
        install.args(["--target-release", "bookworm-backports"]);
    }
    let updated = step.run(Command::new("apt-get").args(["update", "-qq"]));
    let installed = updated.and_then(|()| step.run(install.args(PACKAGES)));
    if let Err(error) = installed {
        step.skip(&format!("gVisor cannot be installed here, so that its engine is not tested: {error:#}"));
    }
    Ok(())
}

/// Whether there is what it takes.
pub(crate) fn is_here() -> bool {
    PROGRAMS.iter().all(|program| on_path(program))
}

fn on_path(program: &str) -> bool {
    let found =
        Command::new("sh").args(["-c", &format!("command -v {program}")]).stdin(Stdio::null()).stdout(Stdio::null()).status();
    found.is_ok_and(|status| status.success())
}
