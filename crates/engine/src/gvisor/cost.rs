//! A sandbox's cost to its host, read from the kernel.

use std::{io, os::unix::fs::MetadataExt};

use rustix::process::Pid;

use crate::{HostUse, process::stat_field};

/// The name of the file in memory that holds what a guest has in memory: pages of its processes and what it wrote to files.
const MEMORY_FILE: &str = "/memfd:runsc-memory";

/// Memory of the sandbox's process, and CPU time of all. Its helpers share one address space that is the guest's, whose pages are counted
/// once, in the file that they are in.
pub(super) fn of_sandbox(pid: u32, all: &[Pid]) -> io::Result<HostUse> {
    let rollup = fs_err::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let own = rollup.lines().find_map(pss).unwrap_or_default();
    let guest = memory_bytes(pid)?;
    let mut ticks = 0;
    for process in all {
        let process = u32::try_from(process.as_raw_nonzero().get()).map_err(io::Error::other)?;
        // One may have ended meanwhile.
        ticks += stat_field(process, 14).unwrap_or_default() + stat_field(process, 15).unwrap_or_default();
    }
    let cpu_ms = ticks * 1000 / rustix::param::clock_ticks_per_second();
    Ok(HostUse { pss_bytes: own.max(guest), guest_pss_bytes: guest, cpu_ms })
}

/// What a guest has in memory: what a checkpoint would write of it, at most.
pub(super) fn memory_bytes(pid: u32) -> io::Result<u64> {
    for entry in fs_err::read_dir(format!("/proc/{pid}/fd"))? {
        let path = entry?.path();
        if fs_err::read_link(&path).is_ok_and(|target| target.as_os_str().as_encoded_bytes().starts_with(MEMORY_FILE.as_bytes()))
        {
            return Ok(fs_err::metadata(&path)?.blocks() * 512);
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "the sandbox has no file of memory"))
}

/// `Pss:   12 kB`, in bytes.
fn pss(line: &str) -> Option<u64> {
    let kib: u64 = line.strip_prefix("Pss:")?.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}
