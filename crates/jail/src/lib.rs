//! The jail of a program that runs what strangers wrote: what is left to it when all of it is theirs.
//!
//! It knows programs, files and descriptors, and neither what the program is nor who uses it. What the program works on, it is
//! handed as open descriptors; it needs the name of nothing but itself, its libraries and the few files it was built to open.
//!
//! ```text
//!   once per program    root: a read-only file system in memory that holds the program, in a mount namespace of its own
//!                       filter: the system calls it may make, compiled
//!                       survey: which parts this host gives, each tried
//!   per process         fork into a new pid namespace ─► groups, network, root, namespaces, /proc, limits
//!                       ─► capabilities, user ─► user namespace ─► Landlock ─► filter ─► exec
//! ```
//!
//! | part | what it takes away | by |
//! |---|---|---|
//! | [`Part::Processes`] | other processes: they have no number, so no signal and no trace reaches them | `pid_namespaces(7)` |
//! | [`Part::Files`] | every file and path socket of the host, shared memory included | `mount_namespaces(7)`, `pivot_root(2)` |
//! | [`Part::Ipc`] | System V and POSIX queues, semaphores, shared memory | `ipc_namespaces(7)` |
//! | [`Part::HostName`] | the host's name | `uts_namespaces(7)` |
//! | [`Part::Groups`] | the names of other control groups | `cgroup_namespaces(7)` |
//! | [`Part::Users`] | every id but its own, and any right that a capability regained would give outside | `user_namespaces(7)` |
//! | [`Part::Paths`] | opening anew what it was not handed so; connections; abstract sockets | `landlock(7)` |
//! | [`Part::Calls`] | the kernel behind every system call that is not listed | `seccomp(2)` |
//!
//! A user of its own, no capabilities, no new privileges, a network namespace, limits and closed descriptors are no parts: without
//! them nothing starts. A part that the host does not give is named in the survey, and what it would have taken away is left; what
//! was given when it was tried and fails later ends the start.

#[expect(unsafe_code, reason = "raw system calls: wrappers may take locks that another thread held at the fork")]
mod child;
mod confinement;
mod filter;
mod jail;
mod part;
mod paths;
mod program;
mod root;
mod spawn;
mod survey;

pub use confinement::{Confinement, Limits, Network};
pub use filter::{Allowed, Condition};
pub use jail::Jail;
pub use part::{Part, Standing};
pub use program::Program;
pub use survey::survey;
