//! The parts of a jail, and how they stand on a host.

use std::fmt;

/// A part of a jail that hosts may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// A pid namespace of its own.
    Processes,
    /// A root of its own. Needs [`Part::Processes`]: what a root shows of processes is its own.
    Files,
    /// An IPC namespace of its own.
    Ipc,
    /// A UTS namespace of its own.
    HostName,
    /// A cgroup namespace of its own.
    Groups,
    /// A user namespace of its own, with nobody but its user.
    Users,
    /// Landlock. Needs [`Part::Files`].
    Paths,
    /// The filter of system calls.
    Calls,
}

impl Part {
    /// All, in the order in which they are put on.
    pub const ALL: [Self; 8] =
        [Self::Processes, Self::Files, Self::Ipc, Self::HostName, Self::Groups, Self::Users, Self::Paths, Self::Calls];

    /// What it cannot be had without.
    pub(crate) fn needs(self) -> Option<Self> {
        match self {
            Self::Files => Some(Self::Processes),
            Self::Paths => Some(Self::Files),
            Self::Processes | Self::Ipc | Self::HostName | Self::Groups | Self::Users | Self::Calls => None,
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Processes => "pid namespace",
            Self::Files => "root of its own",
            Self::Ipc => "ipc namespace",
            Self::HostName => "uts namespace",
            Self::Groups => "cgroup namespace",
            Self::Users => "user namespace",
            Self::Paths => "landlock",
            Self::Calls => "system call filter",
        })
    }
}

/// How a part stands on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Every process of the jail is in it.
    Held,
    /// None is, for this reason.
    Lacking(String),
}

/// The parts that are held.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Held(u16);

impl Held {
    pub(crate) fn has(self, part: Part) -> bool {
        self.0 & (1 << part as u16) != 0
    }

    pub(crate) fn with(self, part: Part) -> Self {
        Self(self.0 | 1 << part as u16)
    }
}
