//! What is known against the crates that were locked: cargo-deny with RustSec's database.
//!
//! The database is fetched where that works. Where it does not, the copy that is there is used, and its age is printed; where there is
//! none, or no cargo-deny, a counted skip says how many crates nobody has looked at.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, SystemTime},
};

use fs_err as fs;

use crate::run::{Step, say};

/// Older copies are called stale: what was found since then is a month's.
const STALE: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// How to have cargo-deny. Not a part of the set-up: it takes minutes to build where there is no copy of it.
const HAVE_IT: &str = "`cargo install --locked cargo-deny`";

/// Looks the locked crates up. `cargo` makes a call of cargo in the workspace.
pub(crate) fn check(step: &mut Step, root: &Path, cargo: impl Fn(&[&str]) -> Command) -> anyhow::Result<()> {
    let crates = fs::read_to_string(root.join("Cargo.lock"))?.matches("[[package]]").count();
    let unseen = |why: &str| format!("{why}: {crates} locked crates were not looked up among known vulnerabilities");
    let succeeds = |arguments: &[&str]| {
        let status = cargo(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    };
    if !succeeds(&["deny", "--version"]) {
        step.skip(&unseen(&format!("cargo-deny is not installed ({HAVE_IT})")));
        return Ok(());
    }
    if succeeds(&["deny", "fetch", "db"]) {
        return step.run(&mut cargo(&["deny", "check", "--disable-fetch", "advisories"]));
    }
    let Some(made) = newest(&cargo_home().join("advisory-dbs")) else {
        step.skip(&unseen("the database of advisories can neither be fetched nor is there a copy"));
        return Ok(());
    };
    say(&told(SystemTime::now().duration_since(made).unwrap_or_default()));
    step.run(&mut cargo(&["deny", "check", "--disable-fetch", "advisories"]))
}

fn told(age: Duration) -> String {
    let days = age.as_secs() / (24 * 60 * 60);
    let stale = if age > STALE { ", which is STALE: what was found since then is not known here" } else { "" };
    format!("the database of advisories cannot be fetched: the copy of {days} days ago is used{stale}")
}

/// When the newest copy of a database was fetched.
fn newest(dir: &Path) -> Option<SystemTime> {
    let copies = fs::read_dir(dir).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    copies.filter(|copy| copy.is_dir()).filter_map(|copy| fetched(&copy)).max()
}

/// git writes one of these when it fetches.
fn fetched(copy: &Path) -> Option<SystemTime> {
    let marks = ["FETCH_HEAD", ".git/FETCH_HEAD", ".git/HEAD", "HEAD"];
    marks.iter().find_map(|mark| fs::metadata(copy.join(mark)).ok()?.modified().ok())
}

fn cargo_home() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cargo");
    std::env::var_os("CARGO_HOME").map_or_else(home, PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cargo that has the subcommand `deny`, or not, and a network, or not.
    fn stand_in(has: bool, network: bool) -> impl Fn(&[&str]) -> Command {
        move |arguments| {
            let good = match arguments {
                [_, "--version"] => has,
                [_, "fetch", ..] => network,
                _ => true,
            };
            Command::new(if good { "true" } else { "false" })
        }
    }

    fn root() -> &'static Path {
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
    }

    #[test]
    fn what_was_not_looked_at_is_said() {
        let mut step = Step::default();
        check(&mut step, root(), stand_in(false, true)).unwrap();
        let why = step.why_skipped().unwrap();
        assert!(why.contains("locked crates were not looked up") && why.contains(HAVE_IT), "{why}");
        assert!(!why.contains(" 0 locked"), "{why}");
        let mut step = Step::default();
        check(&mut step, root(), stand_in(true, true)).unwrap();
        assert_eq!(step.why_skipped(), None);
    }

    #[test]
    fn a_copy_tells_its_age() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(newest(dir.path()), None);
        fs::create_dir_all(dir.path().join("advisory-db-1")).unwrap();
        assert_eq!(newest(dir.path()), None, "an empty directory is no copy");
        fs::write(dir.path().join("advisory-db-1/FETCH_HEAD"), b"").unwrap();
        assert!(newest(dir.path()).is_some());
        let day = Duration::from_secs(24 * 60 * 60);
        assert!(!told(29 * day).contains("STALE") && told(31 * day).contains("31 days ago is used, which is STALE"));
    }
}
