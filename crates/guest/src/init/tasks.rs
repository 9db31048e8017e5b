//! A bound of processes and threads in a container, whose runtime has none of its own.
//!
//! Each of them takes some of the host's, and a sandbox that gets no more of those ends as a whole: so a guest is told before, by a fork
//! that fails. It is a control group of the container's own kernel, and root in it may change it: what is bounded is an accident.

use std::{io, path::Path};

use nix::mount::{MsFlags, mount};

/// Where the groups are, out of the way of those that look for the host's.
const PLACE: &str = "/run/firkin/pids";
/// The agent's, and so that of all that it starts.
const GROUP: &str = "guest";
/// More than a browser and a build take together. What the host allows is made for it: `most_threads` of gVisor's engine.
const MOST: u32 = 2048;

/// Bounds this process and whatever it starts from now on.
pub(super) fn bound() -> io::Result<()> {
    fs_err::create_dir_all(PLACE)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("pids"), PLACE, Some("cgroup"), flags, Some("pids"))?;
    let group = Path::new(PLACE).join(GROUP);
    fs_err::create_dir(&group)?;
    fs_err::write(group.join("pids.max"), MOST.to_string())?;
    fs_err::write(group.join("cgroup.procs"), std::process::id().to_string())
}
