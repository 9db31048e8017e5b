//! An owner's directory in one tree of groups: made, with the resources that it can limit, and locked.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use fs_err as fs;
use nix::fcntl::{Flock, FlockArg};

use crate::{
    Lack, Limits, Resource,
    detect::{Tree, Version},
    limits::{Setting, cpu_weight},
};

/// With what an owner's directory begins.
pub(crate) const PREFIX: &str = "firkin-";
/// The group of the process that owns the others.
pub(crate) const SERVER: &str = "server";

/// Groups of a host that are looked at for what dead owners have left: far more than most have, and read within a second.
const MAX_GROUPS: usize = 20_000;

/// Where an owner's groups are in one tree.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) version: Version,
    /// The owner's directory. It holds no process itself.
    pub(crate) dir: PathBuf,
    pub(crate) resources: Vec<Resource>,
    /// The group that the process is in otherwise, where it may be in one of the owner's instead.
    pub(crate) left: Option<PathBuf>,
    #[expect(dead_code, reason = "held, not read")]
    lock: Flock<File>,
}

impl Place {
    /// Makes it. What cannot be had of it is added to `lacks`.
    pub(crate) fn make(tree: &Tree, owner: &str, lacks: &mut Vec<Lack>) -> Option<Self> {
        let refused = |path: &Path, error: &io::Error, lacks: &mut Vec<Lack>| {
            let lack = |&resource| Lack::Refused { resource, path: path.to_owned(), reason: error.to_string() };
            lacks.extend(tree.resources.iter().map(lack));
        };
        let base = base(tree, is_delegated(&tree.own));
        let dir = base.join(format!("{PREFIX}{owner}"));
        sweep_others(&tree.mount, &dir);
        let lock = match take(&dir) {
            Ok(lock) => lock,
            Err(error) => {
                refused(&dir, &error, lacks);
                return None;
            }
        };
        let inside = tree.version == Version::V1 || (base == tree.own && !is_root(&base));
        let left = inside.then(|| tree.own.clone());
        let mut place = Self { version: tree.version, dir, resources: tree.resources.clone(), left, lock };
        if place.version == Version::V2 {
            // A group with controllers for those below it may hold no process, unless it is the host's root.
            if place.left.is_some()
                && let Err(error) = place.take_server_in()
            {
                refused(&place.dir, &error, lacks);
                return None;
            }
            place.enable(&base, lacks);
            let dir = place.dir.clone();
            place.enable(&dir, lacks);
        }
        place.look_for_settings(lacks);
        place.weigh_in();
        (!place.resources.is_empty()).then_some(place)
    }

    /// Moves this process into the owner's directory.
    pub(crate) fn take_server_in(&self) -> io::Result<()> {
        let server = self.dir.join(SERVER);
        made(&server)?;
        write(&server.join("cgroup.procs"), "0")
    }

    /// Gives groups below `dir` their controllers, version 2.
    fn enable(&mut self, dir: &Path, lacks: &mut Vec<Lack>) {
        let path = dir.join("cgroup.subtree_control");
        self.resources.retain(|resource| match write(&path, &format!("+{}", resource.v2())) {
            Ok(()) => true,
            Err(error) => {
                lacks.push(Lack::Refused { resource: *resource, path: path.clone(), reason: error.to_string() });
                false
            }
        });
    }

    /// Keeps the resources for which this host has settings. A group of version 1 has them all at once; one of version 2 has what was
    /// enabled above it, which the owner's directory itself has too.
    fn look_for_settings(&mut self, lacks: &mut Vec<Lack>) {
        const ANY: Limits = Limits { memory_bytes: 0, weight: 1, cpu_percent: 0, pids: 0 };
        let (version, dir) = (self.version, self.dir.clone());
        self.resources.retain(|&resource| {
            let (here, missing): (Vec<Setting>, Vec<Setting>) =
                ANY.settings(version, resource).into_iter().partition(|setting| dir.join(setting.file).exists());
            for setting in missing {
                lacks.push(match setting.optional {
                    Some(what) => Lack::Setting { what },
                    None => Lack::Absent { resource },
                });
            }
            !here.is_empty()
        });
    }

    /// On each processor, all groups of the owner weigh as much as one ordinary process: none of them starves what else is on the
    /// host, nor is starved by it.
    fn weigh_in(&self) {
        let cpus = std::thread::available_parallelism().map_or(1, |cpus| u32::try_from(cpus.get()).unwrap_or(u32::MAX));
        let setting = cpu_weight(self.version, cpus);
        if self.resources.contains(&Resource::Cpu)
            && let Err(error) = write(&self.dir.join(setting.file), &setting.value)
        {
            tracing::warn!(%error, "cannot give control groups their weight");
        }
    }

    /// Makes the group `name`, or takes the one that is there, and limits it.
    pub(crate) fn limit(&self, name: &str, limits: &Limits) -> Result<(), (PathBuf, io::Error)> {
        let dir = self.dir.join(name);
        made(&dir).map_err(|error| (dir.clone(), error))?;
        for resource in &self.resources {
            for setting in limits.settings(self.version, *resource) {
                let path = dir.join(setting.file);
                match write(&path, &setting.value) {
                    Err(error) if setting.optional.is_none() || error.kind() != io::ErrorKind::NotFound => {
                        return Err((path, error));
                    }
                    Ok(()) | Err(_) => {}
                }
            }
        }
        Ok(())
    }

    /// The file by which a process that has one thread goes into a group. In version 1 a thread goes by itself, which waits for
    /// nothing; all of a process waits for all processors of the host, some milliseconds.
    pub(crate) fn entrance(&self, name: &str) -> PathBuf {
        self.dir.join(name).join(match self.version {
            Version::V1 => "tasks",
            Version::V2 => "cgroup.procs",
        })
    }

    /// Moves this process out again and removes the directory, if it is empty.
    pub(crate) fn give_back(&self) {
        // In version 2 the group that it was in has controllers for others now, and takes no process.
        if self.version == Version::V1
            && self.dir.join(SERVER).exists()
            && let Some(left) = &self.left
            && let Err(error) = write(&left.join("cgroup.procs"), "0")
        {
            tracing::debug!(%error, "cannot leave the server's control group");
        }
        for dir in [&self.dir.join(SERVER), &self.dir] {
            remove(dir);
        }
    }
}

/// Adds what is seen to be missing of a tree, where nothing has been made.
pub(crate) fn look(tree: &Tree, lacks: &mut Vec<Lack>) {
    let base = base(tree, is_delegated(&tree.own));
    if let Err(error) = rustix::fs::access(&base, rustix::fs::Access::WRITE_OK) {
        let lack = |&resource| Lack::Refused { resource, path: base.clone(), reason: error.to_string() };
        lacks.extend(tree.resources.iter().map(lack));
    }
}

/// Below what an owner's directory is.
fn base(tree: &Tree, delegated: bool) -> PathBuf {
    let own = tree.version == Version::V1 || delegated || (tree.own == tree.mount && !is_root(&tree.mount));
    if own { tree.own.clone() } else { tree.mount.clone() }
}

/// Whether it is the root of the host's tree, and not only of what a container sees.
fn is_root(mount: &Path) -> bool {
    !mount.join("cgroup.type").exists()
}

/// Whether the group is ours to divide: systemd says so with `Delegate=`.
fn is_delegated(group: &Path) -> bool {
    ["trusted.delegate", "user.delegate"].iter().any(|name| {
        let mut value = [0; 1];
        rustix::fs::getxattr(group, *name, &mut value).is_ok_and(|length| length == 1 && &value == b"1")
    })
}

/// Removes what owners left anywhere in a tree who live no more: whoever lives locks his directory. An earlier process of the same owner
/// is one of them, if it was in another group than this one: a session's, or that of another unit.
fn sweep_others(mount: &Path, own: &Path) {
    for other in owners_below(mount).iter().filter(|other| *other != own) {
        if let Ok(_held) = lock(other) {
            for group in directories(other).iter().chain([other]) {
                remove(group);
            }
        }
    }
}

/// The directories of owners, at any depth.
fn owners_below(mount: &Path) -> Vec<PathBuf> {
    let (mut owners, mut left, mut seen) = (Vec::new(), vec![mount.to_owned()], 0);
    while let Some(dir) = left.pop().filter(|_| seen < MAX_GROUPS) {
        for group in directories(&dir) {
            seen += 1;
            if name(&group).is_some_and(|name| name.starts_with(PREFIX)) { owners.push(group) } else { left.push(group) }
        }
    }
    owners
}

/// Removes a group, unless somebody is in it or below it. Whether it is gone.
pub(crate) fn remove(dir: &Path) -> bool {
    match fs::remove_dir(dir) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::NotFound => true,
        Err(error) => {
            tracing::debug!(%error, "a control group stays for now");
            false
        }
    }
}

/// The groups in a group.
pub(crate) fn directories(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let entries = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    entries.map(|entry| entry.path()).collect()
}

/// The last part of a path.
pub(crate) fn name(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}

fn made(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// How long who looks through what dead owners have left may hold a directory that was just made, or have removed it.
const SWEPT_WITHIN: Duration = Duration::from_millis(500);

/// Makes the directory and locks it, also while others look whether somebody has it.
fn take(dir: &Path) -> io::Result<Flock<File>> {
    let begun = Instant::now();
    loop {
        let taken = made(dir).and_then(|()| lock(dir));
        let is_swept = match &taken {
            // What was opened may have lost its name since.
            Ok(_) => !dir.exists(),
            Err(error) => matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotFound),
        };
        if !is_swept || begun.elapsed() > SWEPT_WITHIN {
            return taken;
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

fn lock(dir: &Path) -> io::Result<Flock<File>> {
    let file = fs::File::open(dir)?.into_parts().0;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| error.into())
}

/// Writes to a file that is there. A made-up one is made longer or shorter by it as the kernel's never are.
pub(crate) fn write(path: &Path, value: &str) -> io::Result<()> {
    use io::Write as _;
    fs::OpenOptions::new().write(true).truncate(true).open(path)?.write_all(value.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(host: &Path, version: Version) -> Tree {
        let own = host.join("own");
        fs::create_dir_all(&own).unwrap();
        Tree { version, mount: host.to_owned(), own, resources: Resource::ALL.to_vec() }
    }

    #[test]
    fn groups_lie_where_they_may() {
        let host = tempfile::tempdir().unwrap();
        let (root, own) = (host.path().to_owned(), host.path().join("own"));
        assert_eq!(base(&tree(host.path(), Version::V1), false), own, "limits of who runs us go on to hold");
        assert_eq!(base(&tree(host.path(), Version::V2), true), own, "a unit with Delegate=");
        assert_eq!(base(&tree(host.path(), Version::V2), false), root, "a session's group is not ours to divide");
        fs::write(host.path().join("cgroup.type"), "domain").unwrap();
        let container = Tree { own: root.clone(), ..tree(host.path(), Version::V2) };
        assert_eq!(base(&container, false), root);
        assert!(!is_root(&root));
    }

    #[test]
    fn what_is_not_there_is_named_and_no_error() {
        let host = tempfile::tempdir().unwrap();
        let tree = tree(host.path(), Version::V1);
        let dir = tree.own.join("firkin-x");
        fs::create_dir(&dir).unwrap();
        for file in ["memory.limit_in_bytes", "pids.max", "cpu.shares", "cpu.cfs_period_us", "cpu.cfs_quota_us"] {
            fs::write(dir.join(file), "").unwrap();
        }
        let mut lacks = Vec::new();
        let place = Place::make(&tree, "x", &mut lacks).unwrap();
        assert_eq!(place.resources, [Resource::Memory, Resource::Cpu, Resource::Pids]);
        assert_eq!(lacks, [Lack::Setting { what: "limit of swap" }, Lack::Setting { what: "weight of disk I/O" }]);
    }

    #[test]
    fn a_tree_that_takes_nothing_is_a_lack_of_all_it_has() {
        let host = tempfile::tempdir().unwrap();
        let mut tree = tree(host.path(), Version::V1);
        tree.own = host.path().join("absent");
        let mut lacks = Vec::new();
        assert!(Place::make(&tree, "x", &mut lacks).is_none());
        assert_eq!(lacks.len(), Resource::ALL.len());
        let mut seen = Vec::new();
        look(&tree, &mut seen);
        assert_eq!(seen.len(), Resource::ALL.len());
        look(&Tree { own: host.path().to_owned(), ..tree }, &mut seen);
        assert_eq!(seen.len(), Resource::ALL.len(), "nothing is missing of one that can be written");
    }

    #[test]
    fn what_a_dead_owner_left_goes_and_what_a_living_one_has_stays() {
        let host = tempfile::tempdir().unwrap();
        let tree = tree(host.path(), Version::V1);
        let (here, elsewhere) = (tree.own.clone(), host.path().join("user.slice/session-1"));
        for path in ["firkin-dead/a", "firkin-alive/a", "firkin-x/a", "other/a"] {
            fs::create_dir_all(here.join(path)).unwrap();
        }
        // Of this owner, started by another user, and of one who lives.
        for path in ["firkin-x/server", "firkin-there/a"] {
            fs::create_dir_all(elsewhere.join(path)).unwrap();
        }
        let held = ["own/firkin-alive", "user.slice/session-1/firkin-there"].map(|path| lock(&host.path().join(path)).unwrap());
        sweep_others(host.path(), &here.join("firkin-x"));
        let left = |dir: &Path| {
            let mut left: Vec<String> = directories(dir).iter().filter_map(|path| name(path)).map(str::to_owned).collect();
            left.sort();
            left
        };
        assert_eq!(left(&here), ["firkin-alive", "firkin-x", "other"]);
        assert_eq!(left(&elsewhere), ["firkin-there"]);
        drop(held);
    }
}
