//! What a server may leave behind on the host, and the proof that it left nothing.
//!
//! A snapshot of everything the product makes outside its state directory is taken before and after. Only additions count, and
//! of those only what bears a mark of this run: a process and its network namespace descend from the run, a file or a mount lies
//! in its directory, an interface or a table has the number of a claim that is not somebody else's. Other servers of the host
//! may come and go meanwhile.
//!
//! The kernel takes some things apart after the last process has gone, so the check waits for the difference to vanish; what
//! was not there at every look was only passing.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use fs_err as fs;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{household::Household, run::Step};

/// How long what is being taken apart may still be seen.
const SETTLE_DEADLINE: Duration = Duration::from_secs(20);

/// Between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Where the host's memory can be used as a disk: each cut makes a room there, and the name says nothing of whose.
const SHARED_MEMORY: &str = "/dev/shm";

/// Where each server that lives or has left machines says which numbers are its.
const CLAIMS: &str = "/run/firkin/network";

/// With what the names of numbered things begin: interfaces, and tables of rules.
const NUMBERED: [&str; 2] = ["fk", "firkin_"];

/// What things there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A server or another program of the product.
    Process,
    /// A virtual machine.
    Machine,
    NetworkNamespace,
    Claim,
    NetworkInterface,
    Mount,
    File,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Machine => "machine",
            Self::NetworkNamespace => "network namespace",
            Self::Claim => "claim of",
            Self::NetworkInterface => "network interface",
            Self::Mount => "mount",
            Self::File => "file",
        }
    }
}

/// Everything of interest on the host at one time, each thing as a line that names it.
#[derive(Debug)]
pub(crate) struct Host {
    things: BTreeSet<String>,
}

impl Host {
    /// Looks at what this household has on the host.
    pub(crate) fn observe(household: &Household) -> anyhow::Result<Self> {
        let mut things = BTreeSet::new();
        processes_and_namespaces(household, &mut things)?;
        let claims = Claims::read(Path::new(CLAIMS))?;
        things.extend(claims.owners.values().filter(|owner| household.made(owner)).map(|owner| format!("claim of {owner}")));
        let nobody_elses = |name: &str| !claims.are_anothers(name, household);
        names_in("/sys/class/net", "network interface", |name| is_numbered(name) && nobody_elses(name), &mut things)?;
        mounts(household, &mut things)?;
        for dir in [household.directory(), &household.directory().join("tmp"), Path::new(SHARED_MEMORY)] {
            names_in(dir, "file", |name| name.contains("firkin"), &mut things)?;
        }
        if !claims.owners.values().any(|owner| !household.made(owner)) {
            // The directory of claims is every server's, and outlives them all.
            names_in("/run", "file", |name| name.contains("firkin") && name != "firkin", &mut things)?;
        }
        for (program, arguments) in [("nft", ["list", "tables"].as_slice()), ("iptables-save", &[])] {
            lines_of(
                program,
                arguments,
                |line| line.split_whitespace().any(|word| is_numbered(word) && nobody_elses(word)),
                &mut things,
            );
        }
        Ok(Self { things })
    }

    /// How many things of one kind there are.
    pub(crate) fn count(&self, kind: Kind) -> usize {
        self.things.iter().filter(|thing| thing.strip_prefix(kind.word()).is_some_and(|rest| rest.starts_with(' '))).count()
    }

    fn since(&self, before: &Self) -> BTreeSet<String> {
        self.things.difference(&before.things).cloned().collect()
    }
}

/// Fails if this household has something on the host that it did not have before.
pub(crate) fn check(household: &Household, before: &Host, step: &mut Step) -> anyhow::Result<()> {
    let deadline = Instant::now() + SETTLE_DEADLINE;
    let mut left = Host::observe(household)?.since(before);
    loop {
        if left.is_empty() {
            step.passed(1);
            return Ok(());
        }
        if Instant::now() > deadline {
            let left: Vec<String> = left.into_iter().collect();
            bail!("left behind on the host:\n  {}", left.join("\n  "));
        }
        thread::park_timeout(LOOK_INTERVAL);
        let now = Host::observe(household)?.things;
        left.retain(|thing| now.contains(thing));
    }
}

/// Kills the machines that this household has left, so that a run which has found them leaves none.
pub(crate) fn end_machines(household: &Household) -> anyhow::Result<()> {
    for pid in household.processes()? {
        // A process may end while it is looked at: what cannot be read is gone.
        let Ok(name) = fs::read_to_string(format!("/proc/{pid}/comm")) else { continue };
        if name.starts_with("qemu") {
            kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL).with_context(|| format!("cannot kill machine {pid}"))?;
        }
    }
    Ok(())
}

/// Virtual machines and servers of the household, and the network namespaces that any of its processes is in.
fn processes_and_namespaces(household: &Household, things: &mut BTreeSet<String>) -> anyhow::Result<()> {
    for pid in household.processes()? {
        let path = Path::new("/proc").join(pid.to_string());
        // A process may end while it is looked at: what cannot be read is gone.
        if let Ok(namespace) = fs::read_link(path.join("ns/net")) {
            things.insert(format!("network namespace {}", namespace.display()));
        }
        let Ok(name) = fs::read_to_string(path.join("comm")) else { continue };
        let what = match name.as_str() {
            name if name.starts_with("qemu") => Kind::Machine,
            name if name.starts_with("firkin") => Kind::Process,
            _ => continue,
        };
        let words = fs::read(path.join("cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).replace('\0', " ");
        things.insert(format!("{} {pid} {}: {}", what.word(), name.trim(), words.chars().take(160).collect::<String>()));
    }
    Ok(())
}

/// Which numbers are whose, by what servers have written down.
#[derive(Debug, Default)]
struct Claims {
    owners: BTreeMap<String, String>,
}

impl Claims {
    fn read(dir: &Path) -> anyhow::Result<Self> {
        let mut owners = BTreeMap::new();
        if !dir.is_dir() {
            return Ok(Self::default());
        }
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(number) = name.strip_prefix("claim-") else { continue };
            // One that is free has no owner, and one that is given up has no file.
            let owner = fs::read_to_string(entry.path()).unwrap_or_default();
            if !owner.is_empty() {
                owners.insert(number.to_owned(), owner);
            }
        }
        Ok(Self { owners })
    }

    /// Whether a thing with this name has the number of a server that is not of the household. A number that nobody holds was
    /// left behind by whoever had it.
    fn are_anothers(&self, name: &str, household: &Household) -> bool {
        number(name).and_then(|number| self.owners.get(number)).is_some_and(|owner| !household.made(owner))
    }
}

fn is_numbered(name: &str) -> bool {
    number(name).is_some()
}

/// The number of the claim in the name of an interface or a table.
fn number(name: &str) -> Option<&str> {
    let rest = NUMBERED.iter().find_map(|prefix| name.strip_prefix(prefix))?;
    let digits = rest.get(..2)?;
    let ends = rest[2..].bytes().next().is_none_or(|next| !next.is_ascii_alphanumeric());
    (digits.bytes().all(|byte| byte.is_ascii_digit()) && ends).then_some(digits)
}

fn names_in(
    dir: impl AsRef<Path>,
    what: &str,
    wanted: impl Fn(&str) -> bool,
    things: &mut BTreeSet<String>,
) -> anyhow::Result<()> {
    let dir = dir.as_ref();
    if !dir.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if wanted(&name) {
            things.insert(format!("{what} {}/{name}", dir.display()));
        }
    }
    Ok(())
}

/// Mount points in the household's directory, those that hold a namespace included.
fn mounts(household: &Household, things: &mut BTreeSet<String>) -> anyhow::Result<()> {
    for line in fs::read_to_string("/proc/self/mountinfo")?.lines() {
        let point = line.split(' ').nth(4).context("a line of mountinfo has ten fields")?;
        if household.made(point) {
            things.insert(format!("mount {point}"));
        }
    }
    Ok(())
}

/// What of interest a tool lists, if there is such a tool. The product speaks netlink and needs none, so a host without it is seen less well.
fn lines_of(program: &str, arguments: &[&str], wanted: impl Fn(&str) -> bool, things: &mut BTreeSet<String>) {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).output();
    let Ok(output) = output else { return };
    let text = String::from_utf8_lossy(&output.stdout);
    // Comments carry times and counters.
    let lines = text.lines().filter(|line| !line.starts_with(['#', ':']) && wanted(line));
    things.extend(lines.map(|line| format!("{program}: {line}")));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::household::tests::{named, of_this_process, waiting};

    #[test]
    fn what_is_new_is_found_and_what_is_gone_is_not() {
        let host = |things: &[&str]| Host { things: things.iter().map(|thing| (*thing).to_owned()).collect() };
        assert_eq!(host(&["a", "c"]).since(&host(&["a", "b"])), BTreeSet::from(["c".to_owned()]));
        assert!(host(&["a"]).since(&host(&["a", "b"])).is_empty());
        let host = host(&["process 1 firkin", "mount /a", "mount /b", "mounted"]);
        assert_eq!([Kind::Process, Kind::Mount, Kind::File].map(|kind| host.count(kind)), [1, 2, 0]);
    }

    #[test]
    fn a_machine_of_this_run_is_seen_and_one_of_anybody_else_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let ours = of_this_process(dir.path());
        let before = Host::observe(&ours).unwrap();
        let mut machine = waiting(&named(dir.path()));
        let line = format!("process {} firkin-vm", machine.id());
        // The same machine, looked at by a run that has nothing to do with it.
        let mut stranger = waiting(Path::new("/bin/cat"));
        let elsewhere = tempfile::tempdir().unwrap();
        let others = ours.clone().of(stranger.id(), elsewhere.path());
        let (seen, strange) = (Host::observe(&ours).unwrap().since(&before), Host::observe(&others).unwrap());
        for child in [&mut machine, &mut stranger] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert!(seen.iter().any(|thing| thing.starts_with(&line)), "{line} is not in {seen:?}");
        assert!(strange.things.iter().all(|thing| !thing.contains("process")), "{strange:?}");
    }

    #[test]
    fn numbers_belong_to_whoever_has_claimed_them() {
        let dir = tempfile::tempdir().unwrap();
        let household = of_this_process(dir.path());
        let claims = dir.path().join("claims");
        fs::create_dir(&claims).unwrap();
        fs::write(claims.join("claim-00"), dir.path().join("state").to_str().unwrap()).unwrap();
        fs::write(claims.join("claim-01"), "/var/lib/firkin").unwrap();
        fs::write(claims.join("claim-02"), "").unwrap();
        let claims = Claims::read(&claims).unwrap();
        for (name, anothers) in
            [("fk00-7", false), ("firkin_00", false), ("fk01-7", true), ("firkin_01", true), ("fk02-7", false), ("fk33-1", false)]
        {
            assert!(is_numbered(name), "{name}");
            assert_eq!(claims.are_anothers(name, &household), anothers, "{name}");
        }
        for name in ["eth0", "fk", "fk1-2", "firkin", "firkin_1", "fkab-1", "fk001", "docker0"] {
            assert!(!is_numbered(name), "{name}");
        }
    }

    #[test]
    fn what_lies_in_the_runs_directory_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let household = of_this_process(dir.path());
        let before = Host::observe(&household).unwrap();
        fs::write(dir.path().join("firkin-left"), "").unwrap();
        let left = Host::observe(&household).unwrap().since(&before);
        assert!(left.contains(&format!("file {}/firkin-left", dir.path().display())), "{left:?}");
    }
}
