//! Control groups of machines: what each machine's process is held to, where the host can hold it to anything.
//!
//! A group has its instance's name, below a directory that bears the state directory's: what an earlier server left is found by
//! that. It is a guard beside the session's others; who lives on has his group taken over with him.

use std::{path::Path, path::PathBuf};

use firkin_cgroup::{Group, GroupError, Groups, Limits};
use firkin_engine::{Engine, OwnMemory, Shape};

/// A machine's own threads (its main loop, and what works on its disk and its memory) get half a processor besides its guest's.
const ENGINE_CPU_PERCENT: u32 = 50;
/// Digits of the digest in an owner's name: the state directories of one host do not collide.
const OWNER_DIGITS: usize = 16;

/// Opens the control groups of the server on a state directory.
pub fn open(state_dir: &Path) -> Groups {
    let path = fs_err::canonicalize(state_dir).unwrap_or_else(|_| state_dir.to_owned());
    let digest = blake3::hash(path.as_os_str().as_encoded_bytes()).to_hex();
    Groups::open(&digest[..OWNER_DIGITS])
}

/// Where machines get their groups.
#[derive(Debug, Clone)]
pub(crate) struct MachineGroups {
    pub(crate) groups: Option<Groups>,
}

/// The group of one machine, if machines have any.
#[derive(Debug)]
pub(crate) struct MachineGroup(Option<Group>);

impl MachineGroups {
    /// The group of a machine that this engine is about to start as the instance `name`.
    pub(crate) fn make(&self, name: &str, shape: Shape, engine: &dyn Engine) -> Result<MachineGroup, GroupError> {
        let make = |groups: &Groups| groups.make(name, &limits(shape, engine.own_memory(), engine.most_threads()));
        self.groups.as_ref().map(make).transpose().map(MachineGroup)
    }

    /// The group of a machine that runs since an earlier server.
    pub(crate) fn adopt(&self, name: &str, pid: Option<u32>) -> Result<MachineGroup, GroupError> {
        self.groups.as_ref().map(|groups| groups.adopt(name, pid)).transpose().map(MachineGroup)
    }

    /// Removes groups without an owner and without a process. Gives those that went.
    pub(crate) fn sweep(&self) -> Vec<PathBuf> {
        self.groups.as_ref().map(Groups::sweep).unwrap_or_default()
    }
}

impl MachineGroup {
    /// The files by which the machine's process goes in.
    pub(crate) fn entrances(&self) -> Result<Vec<std::os::fd::OwnedFd>, GroupError> {
        self.0.as_ref().map(Group::entrances).transpose().map(Option::unwrap_or_default)
    }

    /// Gives it up without removing it, with a machine that lives on.
    pub(crate) fn release(self) {
        if let Some(group) = self.0 {
            group.release();
        }
    }
}

fn limits(shape: Shape, own: OwnMemory, threads: u32) -> Limits {
    Limits {
        memory_bytes: (u64::from(shape.memory_mib) + own.most_mib) << 20,
        weight: shape.vcpus,
        cpu_percent: shape.vcpus.saturating_mul(100).saturating_add(ENGINE_CPU_PERCENT),
        pids: shape.vcpus.saturating_add(threads),
    }
}

#[cfg(test)]
mod tests {
    use firkin_engine::fake::FakeEngine;

    use super::*;

    #[test]
    fn a_machine_may_take_its_size_and_what_its_engine_needs() {
        let own = OwnMemory { usual_mib: 32, most_mib: 256 };
        let limits = limits(Shape { vcpus: 2, memory_mib: 512 }, own, 128);
        assert_eq!(limits, Limits { memory_bytes: 768 << 20, weight: 2, cpu_percent: 250, pids: 130 });
    }

    #[test]
    fn who_has_no_groups_has_none_for_machines() {
        let (none, engine) = (MachineGroups { groups: None }, FakeEngine::new());
        let group = none.make("a", Shape { vcpus: 1, memory_mib: 1 }, &engine).unwrap();
        assert!(group.entrances().unwrap().is_empty() && none.sweep().is_empty());
        none.adopt("a", None).unwrap().release();
    }
}
