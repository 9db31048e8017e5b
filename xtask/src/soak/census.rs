//! What is there between two cycles, when nobody uses the server: of its memory and its parts, on the host, and on its disk.
//!
//! Then no sandbox exists, so whatever there is beyond the warm pool is too much. What each warm machine has is taken off, since
//! the pool's depth follows demand and is no leak.

use std::{
    collections::BTreeMap,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use fs_err as fs;
use nix::unistd::Pid;
use serde::Serialize;

use super::{
    ledger::{Groups, Ledger},
    trend::Tolerance,
};
use crate::{
    household::Household,
    leaks::{Host, Kind},
};

/// Where control groups are.
const CONTROL_GROUPS: &str = "/sys/fs/cgroup";
const MIB: f64 = 1_048_576.0;

/// Of what a figure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// The server's process: another one begins anew.
    Server,
    /// The host, or the state directory.
    Host,
}

/// A figure, and by how much it may grow over a run, however long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Figure {
    pub(super) name: &'static str,
    pub(super) owner: Owner,
    pub(super) tolerance: Tolerance,
}

const fn figure(name: &'static str, owner: Owner, tolerance: Tolerance) -> Figure {
    Figure { name, owner, tolerance }
}

/// Every figure that is taken.
pub(super) const FIGURES: [Figure; 15] = [
    // Allocators keep what they had at the busiest moment, which comes late in a long run.
    figure("server, PSS, MiB", Owner::Server, Tolerance { absolute: 4.0, share: 0.1 }),
    // Each machine takes ten, and the pool may have some machines more at the end.
    figure("server, descriptors", Owner::Server, Tolerance::of(30.0)),
    // Those that wait for blocking work end when there has been none for ten seconds.
    figure("server, threads", Owner::Server, Tolerance::of(8.0)),
    // As deep as demand has made the pool.
    figure("host, machines", Owner::Host, Tolerance::of(4.0)),
    figure("host, processes beside machines", Owner::Host, Tolerance::NONE),
    figure("host, network namespaces beside machines'", Owner::Host, Tolerance::NONE),
    // Some are kept ready for machines to come.
    figure("host, network interfaces beside machines'", Owner::Host, Tolerance::of(4.0)),
    figure("host, mounts", Owner::Host, Tolerance::NONE),
    figure("host, control groups", Owner::Host, Tolerance::NONE),
    figure("host, claims", Owner::Host, Tolerance::NONE),
    figure("host, files outside the state directory", Owner::Host, Tolerance::NONE),
    figure("state directory, artifacts", Owner::Host, Tolerance::NONE),
    figure("state directory, layers", Owner::Host, Tolerance::NONE),
    figure("state directory, files", Owner::Host, Tolerance::NONE),
    // The database's journal is written again from its start once it has 4 MiB.
    figure("state directory, MiB", Owner::Host, Tolerance { absolute: 8.0, share: 0.05 }),
];

/// All figures at one time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Sample {
    /// After this cycle.
    pub(super) cycle: u64,
    /// How long after the start.
    pub(super) seconds: u64,
    /// How many servers there have been: each begins anew.
    pub(super) server: u64,
    /// By name.
    pub(super) values: BTreeMap<&'static str, f64>,
}

/// Where to look.
#[derive(Debug, Clone, Copy)]
pub(super) struct Places<'a> {
    pub(super) household: &'a Household,
    pub(super) state_dir: &'a Path,
    pub(super) server: Pid,
}

/// Takes every figure, and holds what the server says of itself against what there is.
pub(super) fn take(places: Places<'_>, metrics: &str) -> anyhow::Result<(BTreeMap<&'static str, f64>, Vec<String>)> {
    let Places { household, state_dir, server } = places;
    let host = Host::observe(household)?;
    let count = |kind| whole(host.count(kind));
    let machines = count(Kind::Machine);
    let groups = owner(server)?.map(|owner| groups(&owner)).transpose()?;
    let tree = tree(state_dir)?;
    let in_run = entries(&state_dir.join("run"))?;
    let ledger = Ledger { machines: host.count(Kind::Machine), instances: in_run, groups };
    let values = [
        pss_mib(server)?,
        whole(entries(&Path::new("/proc").join(server.to_string()).join("fd"))?),
        whole(entries(&Path::new("/proc").join(server.to_string()).join("task"))?),
        machines,
        whole(household.processes()?.len()) - machines,
        count(Kind::NetworkNamespace) - machines,
        count(Kind::NetworkInterface) - machines,
        count(Kind::Mount),
        whole(groups.map_or(0, |groups| groups.beside_machines)),
        count(Kind::Claim),
        count(Kind::File),
        whole(entries(&state_dir.join("artifacts"))?),
        whole(entries(&state_dir.join("layers"))?),
        whole(tree.files),
        tree.mib,
    ];
    let values = FIGURES.iter().map(|figure| figure.name).zip(values).collect();
    Ok((values, ledger.against(metrics)))
}

#[expect(clippy::cast_precision_loss, reason = "counts of things on a host are far below 2^52")]
fn whole(count: usize) -> f64 {
    count as f64
}

/// Entries of a directory; one that is not there has none.
fn entries(dir: &Path) -> anyhow::Result<usize> {
    if dir.is_dir() { Ok(fs::read_dir(dir)?.count()) } else { Ok(0) }
}

fn pss_mib(process: Pid) -> anyhow::Result<f64> {
    let text = fs::read_to_string(format!("/proc/{process}/smaps_rollup"))?;
    let kib = text.lines().find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    Ok(kib.context("smaps_rollup has no `Pss:`")? / 1024.0)
}

/// Files of a state directory but those of machines, and what they take of the disk.
#[derive(Debug, Default, PartialEq)]
struct Tree {
    files: usize,
    mib: f64,
}

fn tree(state_dir: &Path) -> anyhow::Result<Tree> {
    let (mut found, mut left) = (Tree::default(), vec![state_dir.to_owned()]);
    while let Some(dir) = left.pop() {
        // What is removed meanwhile is not there.
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            let Ok(metadata) = entry.path().symlink_metadata() else { continue };
            match metadata.is_dir() {
                true if entry.path() == state_dir.join("run") => {}
                true => left.push(entry.path()),
                false => {
                    found.files += 1;
                    #[expect(clippy::cast_precision_loss, reason = "a disk has less than 2^52 bytes")]
                    let bytes = (metadata.blocks() * 512) as f64;
                    found.mib += bytes / MIB;
                }
            }
        }
    }
    Ok(found)
}

/// The name of a server's control groups, where the host gives it any.
pub(super) fn owner(server: Pid) -> anyhow::Result<Option<String>> {
    let told = fs::read_to_string(format!("/proc/{server}/cgroup"))?;
    Ok(told.lines().flat_map(|line| line.split('/')).find(|name| name.starts_with("firkin-")).map(str::to_owned))
}

/// All groups of that name.
pub(super) fn groups(owner: &str) -> anyhow::Result<Groups> {
    let mut groups = Groups { trees: 0, of_machines: 0, beside_machines: 0 };
    let mut left = vec![Path::new(CONTROL_GROUPS).to_owned()];
    while let Some(dir) = left.pop() {
        for group in directories(&dir) {
            if group.file_name().is_some_and(|name| name == owner) {
                let below = directories(&group);
                let servers = below.iter().filter(|group| group.ends_with("server")).count();
                groups.trees += 1;
                groups.of_machines += below.len() - servers;
                groups.beside_machines += 1 + servers;
            } else {
                left.push(group);
            }
        }
    }
    Ok(groups)
}

/// Directories in a directory, which may be going.
fn directories(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let directories = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories.map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_machines_are_not_those_of_the_state() {
        let dir = tempfile::tempdir().unwrap();
        for sub in ["run/a", "artifacts/x"] {
            fs::create_dir_all(dir.path().join(sub)).unwrap();
        }
        for (file, bytes) in [("run/a/overlay", 1 << 20), ("artifacts/x/memory", 1 << 20), ("lock", 0)] {
            fs::write(dir.path().join(file), vec![1; bytes]).unwrap();
        }
        let found = tree(dir.path()).unwrap();
        assert_eq!(found.files, 2);
        assert!((1.0..1.5).contains(&found.mib), "{found:?}");
        assert_eq!((entries(&dir.path().join("artifacts")).unwrap(), entries(&dir.path().join("none")).unwrap()), (1, 0));
    }

    #[test]
    fn a_process_has_memory() {
        assert!(pss_mib(Pid::this()).unwrap() > 0.1);
    }

    #[test]
    fn every_figure_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<_> = FIGURES.iter().map(|figure| figure.name).collect();
        assert_eq!(names.len(), FIGURES.len());
    }
}
