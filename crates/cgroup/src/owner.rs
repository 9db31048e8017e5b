//! All groups of one owner: who has which, and what is left of those that nobody has.

use std::{collections::HashSet, path::PathBuf, sync::Arc};

use fs_err as fs;

use crate::{
    Lack, Resource,
    detect::{self, Version},
    group::{Group, GroupError},
    limits::{Limits, cpu_weight},
    names::Inner,
    place::{Place, SERVER, directories, name, remove, write},
};

/// How unlikely the server is to be killed when the host has no memory left; -1000 is never.
const SERVER_OOM_SCORE: i32 = -500;

/// The groups of one owner. Clones share them.
#[derive(Debug, Clone)]
pub struct Groups {
    inner: Arc<Inner>,
    lacks: Vec<Lack>,
}

impl Groups {
    /// The groups of `owner`, a word that files can be named by, as far as this host has any. Where the process's own group is
    /// divided, as version 2 has it, the process goes into one of its own.
    pub fn open(owner: &str) -> Self {
        let (trees, mut lacks) = detect::of_this_process();
        let places = trees.iter().filter_map(|tree| Place::make(tree, owner, &mut lacks)).collect();
        Self { inner: Arc::new(Inner::new(places)), lacks }
    }

    /// Limits that this host cannot hold anybody to.
    pub fn lacks(&self) -> &[Lack] {
        &self.lacks
    }

    /// A group with these limits. One of that name which nobody owns is taken.
    pub fn make(&self, name: &str, limits: &Limits) -> Result<Group, GroupError> {
        Group::make(&self.inner, name, limits)
    }

    /// The group that an earlier owner gave a process, wherever that owner's groups were.
    pub fn adopt(&self, name: &str, pid: Option<u32>) -> Result<Group, GroupError> {
        if !self.inner.own(name) {
            return Err(GroupError::Owned { name: name.to_owned() });
        }
        let mut dirs: HashSet<PathBuf> = self.inner.places.iter().map(|place| place.dir.join(name)).collect();
        if let Some(groups) = pid.and_then(|pid| fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()) {
            let (trees, _) = detect::trees(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default(), &groups);
            dirs.extend(trees.into_iter().map(|tree| tree.own).filter(|dir| super::place::name(dir) == Some(name)));
        }
        Ok(Group { inner: Arc::clone(&self.inner), name: name.to_owned(), dirs: dirs.into_iter().collect(), stays: false })
    }

    /// Removes groups that nobody owns and nobody is in. Gives those that went.
    pub fn sweep(&self) -> Vec<PathBuf> {
        let seen = self.inner.places.iter().flat_map(|place| directories(&place.dir));
        // Seen first: a group is owned before it is made.
        let left = seen.filter(|dir| name(dir).is_some_and(|name| name != SERVER && !self.inner.is_owned(name)));
        left.filter(|dir| remove(dir)).collect()
    }

    /// Puts this process into a group that is preferred to those of others, with `memory_bytes` that are never taken from it. Gives what
    /// of that the host does not do.
    pub fn prefer_server(&self, memory_bytes: u64) -> Vec<Lack> {
        let refused = |what: String| move |error: std::io::Error| Lack::Server { reason: format!("{what}: {error}") };
        let mut lacks = Vec::new();
        for place in &self.inner.places {
            let resources = place.resources.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            if place.left.is_none() {
                let reason = format!(
                    "its control group for {resources} is not its own to divide: set `MemoryMin=` and `OOMScoreAdjust=` in its unit"
                );
                lacks.push(Lack::Server { reason });
                continue;
            }
            lacks.extend(place.take_server_in().map_err(refused(format!("no control group of its own for {resources}"))).err());
            lacks.extend(prefer(place, memory_bytes).map_err(refused(format!("its control group for {resources}"))).err());
            if place.version == Version::V1 && place.resources.contains(&Resource::Memory) {
                lacks.push(Lack::Setting { what: "memory reserve of the server (version 2 has it)" });
            }
        }
        let score = write("/proc/self/oom_score_adj".as_ref(), &SERVER_OOM_SCORE.to_string());
        lacks.extend(score.map_err(refused("its score for the OOM killer is that of everybody".to_owned())).err());
        lacks
    }
}

/// Sets what the server's group is preferred by.
fn prefer(place: &Place, memory_bytes: u64) -> std::io::Result<()> {
    let server = place.dir.join(SERVER);
    if place.resources.contains(&Resource::Cpu) {
        let cpus = std::thread::available_parallelism().map_or(1, |cpus| u32::try_from(cpus.get()).unwrap_or(u32::MAX));
        let setting = cpu_weight(place.version, cpus);
        write(&server.join(setting.file), &setting.value)?;
    }
    if place.version == Version::V2 && place.resources.contains(&Resource::Memory) {
        write(&place.dir.join("memory.min"), &memory_bytes.to_string())?;
        write(&server.join("memory.min"), &memory_bytes.to_string())?;
    }
    Ok(())
}
