//! What a server may leave behind on the host, and the proof that it left nothing.
//!
//! A snapshot of everything the product makes outside its state directory is taken before and after. Only additions count.
//! The kernel takes some things apart after the last process has gone, so the check waits for the difference to vanish.

use std::{
    collections::BTreeSet,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use fs_err as fs;

use crate::run::Step;

/// How long what is being taken apart may still be seen.
const SETTLE_DEADLINE: Duration = Duration::from_secs(20);

/// Between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Directories where temporary things of ours would lie.
const TEMPORARY: [&str; 4] = ["/tmp", "/var/tmp", "/run", "/dev/shm"];

/// Everything of interest on the host at one time, each thing as a line that names it.
#[derive(Debug)]
pub(crate) struct Host {
    things: BTreeSet<String>,
}

impl Host {
    /// Looks at the host.
    pub(crate) fn observe() -> anyhow::Result<Self> {
        let mut things = BTreeSet::new();
        processes_and_namespaces(&mut things)?;
        names_in("/sys/class/net", "network interface", |_| true, &mut things)?;
        mounts(&mut things)?;
        for dir in TEMPORARY {
            names_in(dir, "file", |name| name.contains("firkin"), &mut things)?;
        }
        for (program, arguments) in [("nft", ["list", "tables"].as_slice()), ("iptables-save", &[])] {
            lines_of(program, arguments, &mut things);
        }
        Ok(Self { things })
    }

    fn since(&self, before: &Self) -> Vec<String> {
        self.things.difference(&before.things).cloned().collect()
    }
}

/// Fails if the host has something that it did not have before.
pub(crate) fn check(before: &Host, step: &mut Step) -> anyhow::Result<()> {
    let deadline = Instant::now() + SETTLE_DEADLINE;
    loop {
        let left = Host::observe()?.since(before);
        if left.is_empty() {
            step.passed(1);
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("left behind on the host:\n  {}", left.join("\n  "));
        }
        thread::park_timeout(LOOK_INTERVAL);
    }
}

/// Virtual machines and servers by process, and network namespaces by whichever process is in them.
fn processes_and_namespaces(things: &mut BTreeSet<String>) -> anyhow::Result<()> {
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let Some(pid) = path.file_name().and_then(|name| name.to_str()).filter(|name| name.parse::<u32>().is_ok()) else {
            continue;
        };
        // A process may end while it is looked at: what cannot be read is gone.
        if let Ok(namespace) = fs::read_link(path.join("ns/net")) {
            things.insert(format!("network namespace {}", namespace.display()));
        }
        let Ok(name) = fs::read_to_string(path.join("comm")) else { continue };
        if name.starts_with("qemu") || name.starts_with("firkin") {
            let words = fs::read(path.join("cmdline")).unwrap_or_default();
            let words = String::from_utf8_lossy(&words).replace('\0', " ");
            things.insert(format!("process {pid} {}: {}", name.trim(), words.chars().take(160).collect::<String>()));
        }
    }
    Ok(())
}

fn names_in(dir: &str, what: &str, wanted: impl Fn(&str) -> bool, things: &mut BTreeSet<String>) -> anyhow::Result<()> {
    if !Path::new(dir).is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if wanted(&name) {
            things.insert(format!("{what} {dir}/{name}"));
        }
    }
    Ok(())
}

/// Mount points, those that hold a namespace included.
fn mounts(things: &mut BTreeSet<String>) -> anyhow::Result<()> {
    for line in fs::read_to_string("/proc/self/mountinfo")?.lines() {
        let point = line.split(' ').nth(4).context("a line of mountinfo has ten fields")?;
        things.insert(format!("mount {point}"));
    }
    Ok(())
}

/// What a tool lists, if there is such a tool. The product speaks netlink and needs none, so a host without it is seen less well.
fn lines_of(program: &str, arguments: &[&str], things: &mut BTreeSet<String>) {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).output();
    let Ok(output) = output else { return };
    let text = String::from_utf8_lossy(&output.stdout);
    // Comments carry times and counters.
    let lines = text.lines().filter(|line| !line.starts_with(['#', ':']) && !line.is_empty());
    things.extend(lines.map(|line| format!("{program}: {line}")));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_new_is_found_and_what_is_gone_is_not() {
        let host = |things: &[&str]| Host { things: things.iter().map(|thing| (*thing).to_owned()).collect() };
        assert_eq!(host(&["a", "c"]).since(&host(&["a", "b"])), ["c"]);
        assert!(host(&["a"]).since(&host(&["a", "b"])).is_empty());
    }

    #[test]
    fn this_host_can_be_observed() {
        let host = Host::observe().unwrap();
        for expected in ["network namespace net:", "network interface ", "mount /"] {
            assert!(host.things.iter().any(|thing| thing.starts_with(expected)), "no {expected}");
        }
    }
}
