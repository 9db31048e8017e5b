//! Questions to apt: fresh package lists, a package's candidate, a package file, packages for this host.
//!
//! apt stays the authority on sources, pins, proxies and trust; nothing here fetches or verifies by itself.

use std::cmp::Ordering;
use std::path::Path;
use std::time::Duration;

use crate::command::{CommandError, capture, command, run, run_to_end};
use crate::progress::{Event, ImageStep, Progress, Report, say};
use crate::sources::{index_targets, stanzas};

/// Asking apt's own database. It may first have to rebuild its cache.
const QUERY_DEADLINE: Duration = Duration::from_secs(120);
/// Fetching some tens of MiB, on a slow line.
const FETCH_DEADLINE: Duration = Duration::from_secs(20 * 60);
/// Installing QEMU and what it needs: a hundred packages at most.
const INSTALL_DEADLINE: Duration = Duration::from_secs(40 * 60);
/// How long another package manager may hold its locks, such as the daily upgrade of a host.
const LOCK_DEADLINE: Duration = Duration::from_secs(10 * 60);
const LISTS_LOCK: &str = "/var/lib/apt/lists/lock";

/// Why apt did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum AptError {
    /// The package lists cannot be refreshed.
    #[error("cannot refresh the package lists; run `apt-get update` and see what it says")]
    Update(#[source] CommandError),
    /// The package database does not answer.
    #[error("cannot ask apt about `{package}`")]
    Query {
        /// The package, or the beginning of its name.
        package: String,
        /// Why.
        #[source]
        source: CommandError,
    },
    /// A package cannot be fetched.
    #[error("cannot fetch `{package}`")]
    Fetch {
        /// Package and version.
        package: String,
        /// Why.
        #[source]
        source: CommandError,
    },
    /// Another package manager holds apt's lists.
    #[error("cannot lock `{LISTS_LOCK}`: another package manager has held it for {} s", LOCK_DEADLINE.as_secs())]
    Locked,
    /// The lock of apt's lists cannot be asked.
    #[error("cannot ask for the lock `{LISTS_LOCK}`")]
    Lock(#[source] std::io::Error),
    /// Packages cannot be installed on this host.
    #[error("cannot install {packages}; `apt-get install {packages}` by hand may say more")]
    Install {
        /// Their names.
        packages: String,
        /// Why.
        #[source]
        source: CommandError,
    },
    /// apt fetched something, but not what was asked for.
    #[error("cannot find the file that apt fetched for `{package}`")]
    NoFile {
        /// Package and version.
        package: String,
    },
}

/// One installable version of a package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) package: String,
    pub(crate) version: String,
}

/// Refreshes this machine's package lists. A source that does not answer is passed over as long as Debian's own indexes are
/// there, if only old ones. Killed when dropped: an update cut off leaves the old lists.
pub async fn refresh_lists(log: &Path, report: Report<'_>) -> Result<(), AptError> {
    say(report, ImageStep::PackageLists, "apt-get update");
    wait_for_lists().await?;
    let mut update = command("apt-get");
    update.args(["-o", "APT::Update::Error-Mode=any", "-o", "Acquire::Retries=3", "update"]);
    let mut on_line = |line: &str| {
        if line.starts_with("Get:") {
            say(report, ImageStep::PackageLists, line);
        }
    };
    let Err(error) = run(update, FETCH_DEADLINE, log, &mut on_line).await else { return Ok(()) };
    let targets = index_targets().await.map_err(AptError::Update)?;
    if !targets.iter().any(|target| target.origin == "Debian" && target.filename.is_file()) {
        return Err(AptError::Update(error));
    }
    tracing::warn!(%error, "not every package source could be refreshed");
    Ok(())
}

/// Installs packages on this host, from `release` if one is named, without what they merely recommend. Goes on to its end
/// when dropped.
pub async fn install(packages: &[&str], release: Option<&str>, log: &Path, report: Report<'_>) -> Result<(), AptError> {
    let mut install = command("apt-get");
    install.args(["install", "--yes", "--no-install-recommends", "-o", "Acquire::Retries=3"]);
    install.arg("-o").arg(format!("DPkg::Lock::Timeout={}", LOCK_DEADLINE.as_secs()));
    // A configuration file that was changed by hand stays as it is: nobody can be asked.
    install.args(["-o", "Dpkg::Options::=--force-confdef", "-o", "Dpkg::Options::=--force-confold"]);
    if let Some(release) = release {
        install.args(["--target-release", release]);
    }
    install.args(packages).env("NEEDRESTART_SUSPEND", "1");
    let mut follow = PackageProgress::new(ImageStep::Host);
    let mut on_line = |line: &str| {
        if let Some(event) = follow.event(line) {
            report(event);
        }
    };
    run_to_end(install, INSTALL_DEADLINE, log, &mut on_line)
        .await
        .map_err(|source| AptError::Install { packages: packages.join(" "), source })
}

/// Waits until nobody refreshes the lists: apt itself would give up at once. Its lock is one of fcntl(2).
async fn wait_for_lists() -> Result<(), AptError> {
    use nix::fcntl::{FcntlArg, fcntl};
    let Ok(file) = fs_err::OpenOptions::new().write(true).open(LISTS_LOCK) else {
        // Before the first update there is no file, and so nobody holds it.
        return Ok(());
    };
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let lock = nix::libc::flock {
            l_type: i16::try_from(nix::libc::F_WRLCK).unwrap_or_default(),
            l_whence: i16::try_from(nix::libc::SEEK_SET).unwrap_or_default(),
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        let taken = fcntl(file.file(), FcntlArg::F_SETLKW(&lock)).map_err(std::io::Error::from);
        // Closing the file gives the lock back, for apt to take.
        drop(file);
        drop(sender.send(taken));
    });
    match tokio::time::timeout(LOCK_DEADLINE, receiver).await {
        Ok(Ok(taken)) => taken.map(drop).map_err(AptError::Lock),
        Ok(Err(_)) | Err(_) => Err(AptError::Locked),
    }
}

/// The candidates of all packages whose name begins with `prefix` and is accepted by `wanted`.
pub(crate) async fn candidates(prefix: &str, wanted: impl Fn(&str) -> bool) -> Result<Vec<Candidate>, AptError> {
    let failed = |source| AptError::Query { package: prefix.to_owned(), source };
    let mut names = command("apt-cache");
    names.args(["pkgnames", prefix]);
    let names = capture(names, QUERY_DEADLINE).await.map_err(failed)?;
    let names: Vec<&str> = names.lines().filter(|name| wanted(name)).collect();
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let mut show = command("apt-cache");
    show.args(["--no-all-versions", "show"]).args(&names);
    let shown = capture(show, QUERY_DEADLINE).await.map_err(failed)?;
    let parsed = stanzas(&shown).map(|fields| Candidate { package: fields.get("package"), version: fields.get("version") });
    Ok(parsed.filter(|candidate| names.contains(&candidate.package.as_str())).collect())
}

/// Fetches one package file into a directory, verified by apt, and gives its path.
pub(crate) async fn download(candidate: &Candidate, into: &Path, log: &Path) -> Result<std::path::PathBuf, AptError> {
    let package = format!("{}={}", candidate.package, candidate.version);
    let mut fetch = command("apt-get");
    // The directory is ours, not the unprivileged fetcher's.
    fetch.args(["-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3", "download", &package]).current_dir(into);
    run(fetch, FETCH_DEADLINE, log, &mut |_| ()).await.map_err(|source| AptError::Fetch { package: package.clone(), source })?;
    let found = fs_err::read_dir(into).ok().and_then(|entries| {
        let mut paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        paths.find(|path| path.extension().is_some_and(|extension| extension == "deb"))
    });
    found.ok_or(AptError::NoFile { package })
}

/// Compares two versions as dpkg does (deb-version(7)): epoch, upstream version, revision; in each, digits by value and the
/// rest letter before sign, `~` before everything, even the end.
pub fn compare_versions(left: &str, right: &str) -> Ordering {
    let split = |version: &str| {
        let (epoch, rest) = version.split_once(':').unwrap_or(("0", version));
        let (upstream, revision) = rest.rsplit_once('-').unwrap_or((rest, "0"));
        (epoch.parse::<u64>().unwrap_or(0), upstream.to_owned(), revision.to_owned())
    };
    let (left, right) = (split(left), split(right));
    left.0.cmp(&right.0).then_with(|| compare_part(&left.1, &right.1)).then_with(|| compare_part(&left.2, &right.2))
}

fn compare_part(left: &str, right: &str) -> Ordering {
    let (mut left, mut right) = (left.as_bytes(), right.as_bytes());
    while !left.is_empty() || !right.is_empty() {
        let (left_text, left_rest) = prefix(left, |byte| !byte.is_ascii_digit());
        let (right_text, right_rest) = prefix(right, |byte| !byte.is_ascii_digit());
        let length = left_text.len().max(right_text.len());
        let weight = |text: &[u8], n: usize| text.get(n).map_or(0, |&byte| character_weight(byte));
        for n in 0..length {
            match weight(left_text, n).cmp(&weight(right_text, n)) {
                Ordering::Equal => {}
                unequal => return unequal,
            }
        }
        let (left_number, left_after) = prefix(left_rest, |byte| byte.is_ascii_digit());
        let (right_number, right_after) = prefix(right_rest, |byte| byte.is_ascii_digit());
        match compare_numbers(left_number, right_number) {
            Ordering::Equal => (left, right) = (left_after, right_after),
            unequal => return unequal,
        }
    }
    Ordering::Equal
}

fn prefix(text: &[u8], belongs: impl Fn(u8) -> bool) -> (&[u8], &[u8]) {
    text.split_at(text.iter().position(|&byte| !belongs(byte)).unwrap_or(text.len()))
}

/// Digits of any length: by length without leading zeros, then as text.
fn compare_numbers(left: &[u8], right: &[u8]) -> Ordering {
    let significant =
        |digits: &[u8]| digits.iter().position(|&digit| digit != b'0').map_or(Vec::new(), |at| digits[at..].to_vec());
    let (left, right) = (significant(left), significant(right));
    left.len().cmp(&right.len()).then_with(|| left.cmp(&right))
}

fn character_weight(byte: u8) -> i32 {
    match byte {
        b'~' => -1,
        letter if letter.is_ascii_alphabetic() => i32::from(letter),
        sign => i32::from(sign) + 256,
    }
}

/// Makes progress of what apt and dpkg say while they install.
#[derive(Debug)]
pub(crate) struct PackageProgress {
    step: ImageStep,
    done: u64,
    total: u64,
}

impl PackageProgress {
    pub(crate) fn new(step: ImageStep) -> Self {
        PackageProgress { step, done: 0, total: 0 }
    }

    /// The progress that a line of apt's tells of, if any.
    pub(crate) fn event(&mut self, line: &str) -> Option<Event> {
        let words: Vec<&str> = line.split_whitespace().take(8).collect();
        if let Some(detail) = line.strip_prefix("I: ") {
            return Some(Event { step: self.step, detail: detail.to_owned(), progress: None });
        }
        if line.contains(" newly installed, ") {
            // Said once for every run of apt; each package is unpacked and then set up.
            let changed = |n: usize| words.get(n).and_then(|count| count.parse::<u64>().ok()).unwrap_or(0);
            self.total += 2 * (changed(0) + changed(2));
            return None;
        }
        let (detail, counts) = match words.as_slice() {
            ["Unpacking", package, ..] => (format!("unpacking {package}"), true),
            ["Setting", "up", package, ..] => (format!("setting up {package}"), true),
            // Number, base, suite, architecture, package: an index has no package.
            [get, _, _, _, package, _, _, ..] if get.starts_with("Get:") => (format!("fetching {package}"), false),
            _ => return None,
        };
        self.done = (self.done + u64::from(counts)).min(self.total);
        let progress = (counts && self.total > 0).then_some(Progress { done: self.done, total: self.total });
        Some(Event { step: self.step, detail, progress })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_counts_unpacking_and_setting_up() {
        let mut follow = PackageProgress::new(ImageStep::Packages);
        assert_eq!(follow.event("I: running apt-get update...").unwrap().detail, "running apt-get update...");
        assert_eq!(follow.event("Get:1 http://a.test/debian bookworm InRelease [151 kB]"), None);
        assert_eq!(follow.event("1 upgraded, 1 newly installed, 0 to remove and 0 not upgraded."), None);
        let event = follow.event("Get:1 http://a.test/debian bookworm/main amd64 bash amd64 5.2 [1 kB]").unwrap();
        assert_eq!((event.detail.as_str(), event.progress), ("fetching bash", None));
        let event = follow.event("Unpacking bash (5.2.15-2) ...").unwrap();
        assert_eq!(event.progress, Some(Progress { done: 1, total: 4 }));
        let event = follow.event("Setting up bash (5.2.15-2) ...").unwrap();
        assert_eq!((event.detail.as_str(), event.progress), ("setting up bash", Some(Progress { done: 2, total: 4 })));
        assert_eq!(follow.event("(Reading database ... 100%)"), None);
    }

    #[test]
    fn versions_compare_as_dpkg_does() {
        let ascending = [
            "0~",
            "0",
            "1.0~rc1",
            "1.0",
            "1.0-1",
            "1.0-1+b1",
            "1.0-10",
            "1.1",
            "6.1.192-2",
            "6.12.95-1~bpo12+1",
            "6.12.95-1",
            "6.12.117-1~deb12u1",
            "6.12.117+deb12",
            "10.0.2+ds-2~bpo12+1",
            "1:0.1",
        ];
        for pair in ascending.windows(2) {
            assert_eq!(compare_versions(pair[0], pair[1]), Ordering::Less, "{} < {}", pair[0], pair[1]);
            assert_eq!(compare_versions(pair[1], pair[0]), Ordering::Greater, "{} > {}", pair[1], pair[0]);
        }
        assert_eq!(compare_versions("1.02", "1.2"), Ordering::Equal);
        assert_eq!(compare_versions("1.0", "1.0-0"), Ordering::Equal);
    }
}
