//! How current the host's QEMU is, which is the wall between guests and the host: its package against what this machine's own package
//! lists offer, who looks after updates of it, and which machines still run one that was replaced.
//!
//! Everything is asked of apt and dpkg as they are set up here; nothing is fetched. What the lists do not know is said, and is no fault
//! of the host.

use std::{
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::{Duration, SystemTime},
};

use firkin_image::{
    command::{capture, command},
    compare_versions, sources,
};

use super::finding::{Finding, which};

/// The package that brings QEMU, and the program of it that machines run.
const PACKAGE: &str = "qemu-system-x86";
const PROGRAM: &str = "qemu-system-x86_64";
/// What the kernel keeps of that name.
const SHORT_NAME: &str = "qemu-system-x86";
/// apt may first have to rebuild its cache.
const ASK_DEADLINE: Duration = Duration::from_secs(60);
/// Debian publishes in most weeks; lists that are older than this say little of what there is.
const LISTS_STALE: Duration = Duration::from_secs(14 * DAY);
const DAY: u64 = 24 * 60 * 60;

/// Where a version comes from, as apt's `release` line says it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Release {
    origin: String,
    archive: String,
    codename: String,
    label: String,
}

/// A version that is installed or offered.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Offered {
    version: String,
    /// Codenames of the releases that have it; none: it is only installed.
    from: Vec<String>,
}

/// What apt says of one package.
#[derive(Debug, PartialEq, Eq)]
struct Policy {
    installed: Option<String>,
    offered: Vec<Offered>,
}

/// Looks at the installed package.
pub(super) async fn qemu_package() -> Finding {
    let Some(answer) = asked("apt-cache", &["policy", PACKAGE]).await else {
        return Finding::warn("apt does not answer", "see what `apt-cache policy` says");
    };
    let policy = policy(&answer);
    let Some(installed) = &policy.installed else {
        return Finding::warn(
            format!("package {PACKAGE} is not installed: whatever QEMU runs here, nobody tells how current it is"),
            "install QEMU as a package: `firkin doctor --fix`",
        );
    };
    let releases = releases(&asked("apt-cache", &["policy"]).await.unwrap_or_default());
    let unattended = Unattended::read().await;
    let running = machines_of_a_replaced_program();
    judged(&policy, installed, (&releases, &unattended, lists_age().await, running))
}

type Around<'a> = (&'a [Release], &'a Unattended, Option<Duration>, usize);

/// The finding, of what was seen.
fn judged(policy: &Policy, installed: &str, (releases, unattended, lists, running): Around<'_>) -> Finding {
    let from = policy.offered.iter().find(|offered| offered.version == installed).map(|offered| offered.from.clone());
    let from = from.unwrap_or_default();
    let newest = policy
        .offered
        .iter()
        .filter(|offered| !offered.from.is_empty())
        .max_by(|one, other| compare_versions(&one.version, &other.version));
    let source = if from.is_empty() { String::new() } else { format!(" from {}", from.join(" and ")) };
    let mut found = vec![format!("{PACKAGE} {installed}{source}")];
    let mut todo = Vec::new();
    match newest {
        None => found.push("the package lists do not name it, so nobody knows whether there is a newer one".to_owned()),
        Some(newest) if compare_versions(&newest.version, installed).is_gt() => {
            let release = newest.from.first().cloned().unwrap_or_default();
            found.push(format!("{} is in {release}", newest.version));
            todo.push(format!("`apt-get install --target-release {release} {PACKAGE}`"));
        }
        Some(_) => found.push("the newest in the package lists".to_owned()),
    }
    match lists {
        None => found.push("there are no package lists".to_owned()),
        Some(age) if age > LISTS_STALE => {
            found.push(format!("the lists are {} days old", age.as_secs() / DAY));
            todo.push("`apt-get update`".to_owned());
        }
        Some(age) => found.push(format!("lists of {}", ago(age))),
    }
    if let Some(backports) = from.iter().find(|release| release.ends_with("-backports")) {
        let covered = releases.iter().any(|release| release.codename == *backports && unattended.covers(release));
        let automatic = if covered { "unattended-upgrades covers it" } else { "unattended-upgrades does not cover it" };
        found.push(format!("Debian's security team does not look after {backports}, and {automatic}"));
        if !covered {
            todo.push(format!(
                "install its updates by hand, or let unattended-upgrades: `\"codename={backports}\"` in Origins-Pattern"
            ));
        }
    }
    if running > 0 {
        found.push(format!("{running} machines run a QEMU that was replaced since"));
        todo.push("pause and resume their sandboxes".to_owned());
    }
    let found = found.join("; ");
    if todo.is_empty() { Finding::ok(found) } else { Finding::warn(found, todo.join("; ")) }
}

/// A time that has passed, for people.
pub(super) fn ago(age: Duration) -> String {
    match age.as_secs() / DAY {
        0 => "today".to_owned(),
        1 => "a day ago".to_owned(),
        days => format!("{days} days ago"),
    }
}

async fn asked(program: &str, arguments: &[&str]) -> Option<String> {
    let mut ask = command(program);
    ask.args(arguments);
    capture(ask, ASK_DEADLINE).await.ok()
}

/// Reads `apt-cache policy PACKAGE`: a table of versions, each with the places that have it below it.
fn policy(answer: &str) -> Policy {
    let mut policy = Policy { installed: None, offered: Vec::new() };
    let mut in_table = false;
    for line in answer.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["Installed:", version] if *version != "(none)" => policy.installed = Some((*version).to_owned()),
            ["Version", "table:"] => in_table = true,
            ["***", version, _] if in_table => policy.offered.push(Offered { version: (*version).to_owned(), from: Vec::new() }),
            // A place: priority, address, release with component, architecture, `Packages`.
            [_, _, release, _, "Packages"] if in_table => {
                let codename = release.split('/').next().unwrap_or_default();
                if let Some(last) = policy.offered.last_mut() {
                    last.from.push(codename.to_owned());
                }
            }
            [version, priority] if in_table && priority.parse::<i32>().is_ok() => {
                policy.offered.push(Offered { version: (*version).to_owned(), from: Vec::new() });
            }
            _ => {}
        }
    }
    policy
}

/// Reads the `release` lines of `apt-cache policy`: `release o=Debian Backports,a=oldstable-backports,n=bookworm-backports,...`.
fn releases(answer: &str) -> Vec<Release> {
    let lines = answer.lines().filter_map(|line| line.trim().strip_prefix("release "));
    let read = |line: &str| {
        let mut release = Release::default();
        for (name, value) in line.split(',').filter_map(|field| field.split_once('=')) {
            match name {
                "o" => value.clone_into(&mut release.origin),
                "a" => value.clone_into(&mut release.archive),
                "n" => value.clone_into(&mut release.codename),
                "l" => value.clone_into(&mut release.label),
                _ => {}
            }
        }
        release
    };
    lines.map(read).collect()
}

/// What unattended-upgrades may upgrade by itself.
#[derive(Debug, Default)]
struct Unattended {
    /// Conditions that must all hold, of each place.
    patterns: Vec<Vec<(String, String)>>,
}

impl Unattended {
    async fn read() -> Self {
        let configured = asked("apt-config", &["dump"]).await.unwrap_or_default();
        let codename = sources::codename(Path::new("/")).unwrap_or_default();
        if which("unattended-upgrade").is_some() { Self::of(&configured, &codename) } else { Self::default() }
    }

    /// Reads what `apt-config dump` says; a switch that is off lets nothing be upgraded.
    fn of(configured: &str, codename: &str) -> Self {
        let setting = |name: &str| {
            let values = configured.lines().filter_map(|line| line.strip_prefix(name));
            values
                .map(|value| value.trim().trim_end_matches(';').trim_matches('"').replace("${distro_codename}", codename))
                .collect::<Vec<_>>()
        };
        if setting("APT::Periodic::Unattended-Upgrade ").last().is_none_or(|value| value == "0") {
            return Self::default();
        }
        let pairs = |text: &String| {
            let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
            pairs.map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned())).collect::<Vec<_>>()
        };
        let mut patterns: Vec<_> = setting("Unattended-Upgrade::Origins-Pattern:: ").iter().map(pairs).collect();
        let short = setting("Unattended-Upgrade::Allowed-Origins:: ");
        let short = short.iter().filter_map(|text| text.split_once(':'));
        patterns.extend(
            short.map(|(origin, archive)| vec![("o".to_owned(), origin.to_owned()), ("a".to_owned(), archive.to_owned())]),
        );
        Self { patterns }
    }

    fn covers(&self, release: &Release) -> bool {
        let holds = |(name, value): &(String, String)| match name.as_str() {
            "o" | "origin" => *value == release.origin,
            "a" | "archive" | "suite" => *value == release.archive || *value == release.codename,
            "n" | "codename" => *value == release.codename,
            "l" | "label" => *value == release.label,
            // What is not understood is not counted as covering.
            _ => false,
        };
        self.patterns.iter().any(|pattern| !pattern.is_empty() && pattern.iter().all(holds))
    }
}

/// How old the newest list of Debian's own is.
async fn lists_age() -> Option<Duration> {
    let targets = sources::index_targets().await.ok()?;
    let own = targets.into_iter().filter(|target| target.origin.starts_with("Debian"));
    let newest = own.filter_map(|target| fs_err::metadata(target.filename).ok()?.modified().ok()).max()?;
    Some(SystemTime::now().duration_since(newest).unwrap_or_default())
}

/// Machines whose program is another file than the one that is installed now.
fn machines_of_a_replaced_program() -> usize {
    let file = |path: &Path| fs_err::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()));
    let Some(installed) = which(PROGRAM).and_then(|path| file(&path)) else { return 0 };
    let Ok(processes) = fs_err::read_dir("/proc") else { return 0 };
    let paths = processes.filter_map(|entry| Some(entry.ok()?.path()));
    let machines = paths.filter(|path| fs_err::read_to_string(path.join("comm")).is_ok_and(|name| name.trim_end() == SHORT_NAME));
    machines.filter(|path| file(&path.join("exe")).is_some_and(|runs| runs != installed)).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::finding::Status;

    const POLICY: &str = "qemu-system-x86:
  Installed: 1:10.0.2+ds-2+deb13u1~bpo12+1
  Candidate: 1:10.0.2+ds-2+deb13u1~bpo12+1
  Version table:
     1:10.0.8+ds-1~bpo12+1 100
        100 http://near.test/debian bookworm-backports/main amd64 Packages
 *** 1:10.0.2+ds-2+deb13u1~bpo12+1 100
        100 http://near.test/debian bookworm-backports/main amd64 Packages
        100 /var/lib/dpkg/status
     1:7.2+dfsg-7+deb12u18 500
        500 http://near.test/debian bookworm/main amd64 Packages
";
    const RELEASES: &str = "Package files:
 100 http://near.test/debian bookworm-backports/main amd64 Packages
     release o=Debian Backports,a=oldstable-backports,n=bookworm-backports,l=Debian Backports,c=main,b=amd64
     origin near.test
";

    fn judge(policy_text: &str, unattended: &Unattended, days: Option<u64>, running: usize) -> Finding {
        let policy = policy(policy_text);
        let installed = policy.installed.clone().unwrap();
        let lists = days.map(|days| Duration::from_secs(days * DAY));
        judged(&policy, &installed, (&releases(RELEASES), unattended, lists, running))
    }

    #[test]
    fn a_package_is_held_against_what_the_lists_offer() {
        let behind = judge(POLICY, &Unattended::default(), Some(1), 2);
        assert_eq!(behind.status, Status::Warn);
        for said in [
            "qemu-system-x86 1:10.0.2+ds-2+deb13u1~bpo12+1 from bookworm-backports",
            "1:10.0.8+ds-1~bpo12+1 is in bookworm-backports",
            "lists of a day ago",
            "Debian's security team does not look after bookworm-backports, and unattended-upgrades does not cover it",
            "2 machines run a QEMU that was replaced since",
        ] {
            assert!(behind.found.contains(said), "{said}: {}", behind.found);
        }
        let remedy = behind.remedy.unwrap();
        assert!(remedy.starts_with("`apt-get install --target-release bookworm-backports qemu-system-x86`"), "{remedy}");
        assert!(!behind.found.contains("near.test") && !remedy.contains("near.test"), "no host is named");
    }

    #[test]
    fn what_is_newest_and_looked_after_is_in_order() {
        let newest = POLICY.replace("1:10.0.8+ds-1~bpo12+1", "1:9.0.0~bpo12+1");
        let configured = "APT::Periodic::Unattended-Upgrade \"1\";\nUnattended-Upgrade::Origins-Pattern:: \"origin=Debian,codename=bookworm\";\n\
            Unattended-Upgrade::Origins-Pattern:: \"codename=${distro_codename}-backports\";\n";
        let covered = Unattended::of(configured, "bookworm");
        let good = judge(&newest, &covered, Some(0), 0);
        assert_eq!((good.status, good.remedy), (Status::Ok, None), "{}", good.found);
        assert!(good.found.contains("the newest in the package lists") && good.found.contains("unattended-upgrades covers it"));

        let off = Unattended::of(&configured.replace("\"1\"", "\"0\""), "bookworm");
        assert_eq!(judge(&newest, &off, Some(0), 0).status, Status::Warn);
        let security_only = Unattended::of(
            "APT::Periodic::Unattended-Upgrade \"1\";\nUnattended-Upgrade::Allowed-Origins:: \"Debian:bookworm\";\n",
            "bookworm",
        );
        assert_eq!(judge(&newest, &security_only, Some(0), 0).status, Status::Warn);
    }

    #[test]
    fn lists_that_are_old_or_absent_are_said() {
        let old = judge(POLICY, &Unattended::default(), Some(40), 0);
        assert!(old.found.contains("the lists are 40 days old") && old.remedy.unwrap().contains("`apt-get update`"));
        let alone =
            "qemu-system-x86:\n  Installed: 1:10.0\n  Version table:\n *** 1:10.0 100\n        100 /var/lib/dpkg/status\n";
        let unknown = judge(alone, &Unattended::default(), None, 0);
        assert_eq!(unknown.status, Status::Ok, "that is no fault of the host");
        assert!(
            unknown.found.contains("do not name it") && unknown.found.contains("there are no package lists"),
            "{}",
            unknown.found
        );
    }
}
