//! Set-up: from what is lacking to actions, and from actions to a host that has it.
//!
//! Debian 12 has a QEMU that is too old, and a gVisor that does not start on new kernels, so it gets bookworm-backports as a source of its
//! own: with apt's default pin nothing comes from there unless it is asked for. What later releases have will do. Every action may be
//! repeated.

use std::collections::BTreeSet;
use std::fmt;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use firkin_image::sources::{self, Mirrors, SourcesError};
use firkin_image::{AptError, Report, install, refresh_lists};

use super::finding::{Check, Lack};

/// The release whose own QEMU and gVisor are too old, and the source that has newer ones.
const OLD_RELEASE: &str = "bookworm";
const BACKPORTS: &str = "bookworm-backports";
const BACKPORTS_FILE: &str = "/etc/apt/sources.list.d/firkin-backports.sources";
const QEMU: &str = "qemu-system-x86";
const GVISOR: &str = "runsc";
/// The package that makes its root images.
const MAKES_IMAGES: &str = "erofs-utils";

/// One change of the host. Displayed as a sentence without its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// A package source is added.
    AddSource {
        /// Its suite.
        suite: String,
        /// Its mirror.
        uri: String,
        /// The file that is written.
        path: PathBuf,
        /// Its content.
        stanza: String,
    },
    /// The package lists are refreshed.
    RefreshLists,
    /// Packages are installed.
    Install {
        /// Their names.
        packages: Vec<&'static str>,
        /// The suite they come from, unless it is the host's own release.
        suite: Option<String>,
    },
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::AddSource { suite, uri, path, .. } => {
                write!(f, "add {suite} (from this machine's own Debian mirror, {uri}) as {}", path.display())
            }
            Action::RefreshLists => f.write_str("refresh the package lists (apt-get update)"),
            Action::Install { packages, suite: Some(suite) } => write!(f, "install {} from {suite}", packages.join(", ")),
            Action::Install { packages, suite: None } => write!(f, "install {}", packages.join(", ")),
        }
    }
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlanError {
    /// It is not known where packages would come from.
    #[error("cannot tell where this machine gets Debian packages from")]
    Sources(#[from] SourcesError),
}

/// Why a plan was not carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SetupError {
    /// A package source cannot be added.
    #[error("cannot add the package source `{path}`")]
    AddSource {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// apt failed.
    #[error("cannot set this host up")]
    Apt(#[from] AptError),
}

/// The plan that mends what is lacking. Empty if nothing is, or nothing that packages bring.
pub(crate) async fn plan(checks: &[Check]) -> Result<Vec<Action>, PlanError> {
    let lacks: Vec<Lack> = checks.iter().filter_map(|check| check.lack).collect();
    if lacks.is_empty() {
        return Ok(Vec::new());
    }
    let mirrors = sources::mirrors(Path::new("/")).await?;
    let configured = sources::read(Path::new("/etc/apt")).map_err(SourcesError::Read)?;
    let has_backports = configured.iter().any(|source| source.binary && source.suites.iter().any(|suite| suite == BACKPORTS));
    Ok(actions(&lacks, &mirrors, has_backports))
}

fn actions(lacks: &[Lack], mirrors: &Mirrors, has_backports: bool) -> Vec<Action> {
    let mut own: Vec<&'static str> = Vec::new();
    let mut newer: Vec<&'static str> = Vec::new();
    for lack in lacks {
        match lack {
            Lack::Package(name) => own.push(name),
            Lack::Qemu => newer.push(QEMU),
            Lack::Gvisor => {
                own.push(MAKES_IMAGES);
                newer.push(GVISOR);
            }
        }
    }
    // More than one check may have found the same.
    for names in [&mut own, &mut newer] {
        let mut seen = BTreeSet::new();
        names.retain(|name| seen.insert(*name));
    }
    if mirrors.codename != OLD_RELEASE {
        own.splice(..0, newer.drain(..));
    }
    let mut actions = Vec::new();
    if !newer.is_empty() && !has_backports {
        actions.push(Action::AddSource {
            suite: BACKPORTS.to_owned(),
            uri: mirrors.main.uri.clone(),
            path: BACKPORTS_FILE.into(),
            stanza: mirrors.main.stanza(&[BACKPORTS]),
        });
    }
    actions.push(Action::RefreshLists);
    if !own.is_empty() {
        actions.push(Action::Install { packages: own, suite: None });
    }
    if !newer.is_empty() {
        actions.push(Action::Install { packages: newer, suite: Some(BACKPORTS.to_owned()) });
    }
    actions
}

/// Carries a plan out, in order, up to the first failure. What apt says goes to `log`. An installation that has begun goes on
/// when the future is dropped.
pub(crate) async fn apply(actions: &[Action], log: &Path, report: Report<'_>) -> Result<(), SetupError> {
    for action in actions {
        match action {
            Action::AddSource { path, stanza, .. } => {
                add_source(path, stanza).map_err(|source| SetupError::AddSource { path: path.clone(), source })?;
            }
            Action::RefreshLists => refresh_lists(log, report).await?,
            Action::Install { packages, suite } => install(packages, suite.as_deref(), log, report).await?,
        }
    }
    Ok(())
}

/// Writes a source file whole: apt must never read a half.
fn add_source(path: &Path, stanza: &str) -> std::io::Result<()> {
    // apt ignores files with this ending.
    let new = path.with_extension("sources.firkin-new");
    let mut file = fs_err::File::create(&new)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))?;
    file.write_all(format!("# Added by firkin: Debian 12's own QEMU cannot restore snapshots from files.\n{stanza}").as_bytes())?;
    file.sync_all()?;
    fs_err::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use firkin_image::sources::Mirror;

    fn mirrors(codename: &str) -> Mirrors {
        let main = Mirror { uri: "http://near.test/debian".into(), signed_by: Some("/k.gpg".into()) };
        Mirrors { main, security: None, codename: codename.into() }
    }

    fn sentences(lacks: &[Lack], codename: &str, has_backports: bool) -> Vec<String> {
        actions(lacks, &mirrors(codename), has_backports).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn debian_12_gets_qemu_from_backports_and_the_rest_from_itself() {
        assert_eq!(
            sentences(&[Lack::Qemu, Lack::Package("mmdebstrap"), Lack::Package("mmdebstrap")], "bookworm", false),
            [
                "add bookworm-backports (from this machine's own Debian mirror, http://near.test/debian) as \
                 /etc/apt/sources.list.d/firkin-backports.sources",
                "refresh the package lists (apt-get update)",
                "install mmdebstrap",
                "install qemu-system-x86 from bookworm-backports",
            ]
        );
    }

    #[test]
    fn gvisor_comes_with_what_makes_its_images() {
        assert_eq!(
            sentences(&[Lack::Qemu, Lack::Gvisor], "bookworm", true),
            [
                "refresh the package lists (apt-get update)",
                "install erofs-utils",
                "install qemu-system-x86, runsc from bookworm-backports"
            ]
        );
        assert_eq!(
            sentences(&[Lack::Gvisor, Lack::Gvisor], "trixie", false),
            ["refresh the package lists (apt-get update)", "install runsc, erofs-utils"]
        );
    }

    #[test]
    fn a_host_with_backports_keeps_its_sources() {
        assert_eq!(
            sentences(&[Lack::Qemu], "bookworm", true),
            ["refresh the package lists (apt-get update)", "install qemu-system-x86 from bookworm-backports"]
        );
        assert_eq!(
            sentences(&[Lack::Package("e2fsprogs")], "bookworm", false),
            ["refresh the package lists (apt-get update)", "install e2fsprogs"]
        );
    }

    #[test]
    fn later_releases_have_a_qemu_that_will_do() {
        assert_eq!(
            sentences(&[Lack::Qemu, Lack::Package("mmdebstrap")], "trixie", false),
            ["refresh the package lists (apt-get update)", "install qemu-system-x86, mmdebstrap"]
        );
    }

    #[test]
    fn a_source_is_written_whole_and_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("firkin-backports.sources");
        for _ in 0..2 {
            add_source(&path, &mirrors("bookworm").main.stanza(&[BACKPORTS])).unwrap();
        }
        let text = fs_err::read_to_string(&path).unwrap();
        assert_eq!(sources::parse_deb822(&text)[0].suites, [BACKPORTS]);
        assert_eq!(fs_err::read_dir(dir.path()).unwrap().count(), 1);
    }
}
