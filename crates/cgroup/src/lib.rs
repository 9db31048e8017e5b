//! Groups of processes with limits that the kernel holds them to: on hosts with control groups of version 2, of version 1, or both.
//!
//! ```text
//!   v1, per tree   <own group>/firkin-<owner>/{server, <name>...}
//!   v2, delegated  <own group>/firkin-<owner>/{server, <name>...}    the process moves into `server`, as a group with limits
//!   v2, otherwise  <root>/firkin-<owner>/<name>                      below it holds no process of its own
//! ```
//!
//! A group bears its owner in its name, so that what a dead process left is found again by the next one with that name. The
//! owner's directory is locked while it lives: locks die with their process, and anybody may tidy up what nobody locks.
//!
//! Who has no group of a kind is told so as data, a [`Lack`]: what follows from that is for the caller to say.

use std::{fmt, path::PathBuf};

use serde::Serialize;

mod detect;
mod group;
mod limits;
mod memory;
mod names;
mod owner;
mod place;

pub use self::{
    group::{Group, GroupError},
    limits::Limits,
    memory::MemoryWatch,
    owner::Groups,
};

/// What a group can be limited in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Resource {
    /// Memory, swap and page cache.
    Memory,
    /// Processor time.
    Cpu,
    /// Processes and threads.
    Pids,
    /// Disk I/O.
    Io,
}

impl Resource {
    /// Every one.
    pub const ALL: [Self; 4] = [Self::Memory, Self::Cpu, Self::Pids, Self::Io];

    /// Its controller's name in version 1.
    pub(crate) fn v1(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Pids => "pids",
            Self::Io => "blkio",
        }
    }

    /// Its controller's name in version 2.
    pub(crate) fn v2(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Pids => "pids",
            Self::Io => "io",
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.v2())
    }
}

/// Limits that this host cannot hold anybody to, as far as that is seen without changing anything.
pub fn look() -> Vec<Lack> {
    let (trees, mut lacks) = detect::of_this_process();
    for tree in &trees {
        place::look(tree, &mut lacks);
    }
    lacks
}

/// A limit that this host cannot hold anybody to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Lack {
    /// No tree of groups has the controller.
    #[error("no limit of {resource}: no control group of this host has that controller")]
    Absent {
        /// What is not limited.
        resource: Resource,
    },
    /// The process's own group is not in what is mounted.
    #[error("no limit of {resource}: the group `{group}` is outside of what is mounted at `{}`", mount.display())]
    Outside {
        /// What is not limited.
        resource: Resource,
        /// The process's group.
        group: String,
        /// What is mounted.
        mount: PathBuf,
    },
    /// The kernel refused: a read-only tree, or one that is not ours.
    #[error("no limit of {resource}: `{}` cannot be used: {reason}", path.display())]
    Refused {
        /// What is not limited.
        resource: Resource,
        /// The file or directory.
        path: PathBuf,
        /// The kernel's word for it.
        reason: String,
    },
    /// There is no such setting.
    #[error("no {what}: this host's control groups have none")]
    Setting {
        /// What is not set.
        what: &'static str,
    },
    /// The server shares its fate with everybody else.
    #[error("the server is not preferred: {reason}")]
    Server {
        /// Why.
        reason: String,
    },
}
