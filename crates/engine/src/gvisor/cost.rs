//! A sandbox's cost to its host, read from the kernel.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader},
    os::unix::fs::MetadataExt,
};

use rustix::process::Pid;

use crate::{HostUse, process::stat_field};

/// How the file in memory is called that holds what a guest has in memory.
const MEMORY_FILE: &str = "/memfd:runsc-memory";
/// And the file that holds what it wrote to its root disk.
const DISK_FILE: &str = "/runsc-filestore-";

/// Memory of the sandbox's process and of its guest, and CPU time of all its processes. The guest's pages are counted once, in the file that
/// they are in, whoever has them mapped: what runs its processes has, twice each, and the sandbox some. What is on its
/// disk is page cache, which is nobody's.
pub(super) fn of_sandbox(pid: u32, all: &[Pid]) -> io::Result<HostUse> {
    let own = own(BufReader::new(fs_err::File::open(format!("/proc/{pid}/smaps"))?))?;
    let guest = demanded(bytes_of(pid, &[MEMORY_FILE])?)?;
    let mut ticks = 0;
    for process in all {
        let process = u32::try_from(process.as_raw_nonzero().get()).map_err(io::Error::other)?;
        // One may have ended meanwhile.
        ticks += stat_field(process, 14).unwrap_or_default() + stat_field(process, 15).unwrap_or_default();
    }
    let cpu_ms = ticks * 1000 / rustix::param::clock_ticks_per_second();
    Ok(HostUse { pss_bytes: own + guest, guest_pss_bytes: guest, cpu_ms })
}

/// What a guest has in memory and has written to its root disk: what a checkpoint would write of it, at most.
pub(super) fn checkpoint_bytes(pid: u32) -> io::Result<u64> {
    demanded(bytes_of(pid, &[MEMORY_FILE, DISK_FILE])?)
}

/// What the guest's root disk takes of the host's. A sandbox that is yet to be restored has none.
pub(super) fn disk_bytes(pid: u32) -> io::Result<u64> {
    bytes_of(pid, &[DISK_FILE]).map(Option::unwrap_or_default)
}

fn demanded(bytes: Option<u64>) -> io::Result<u64> {
    bytes.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the sandbox has no file of memory"))
}

/// What its files of these names take, if it has any.
fn bytes_of(pid: u32, names: &[&str]) -> io::Result<Option<u64>> {
    let mut seen = BTreeMap::new();
    for entry in fs_err::read_dir(format!("/proc/{pid}/fd"))? {
        let path = entry?.path();
        // A descriptor may have been closed meanwhile.
        let Ok(target) = fs_err::read_link(&path) else { continue };
        if names.iter().any(|name| target.to_string_lossy().contains(name)) {
            let Ok(file) = fs_err::metadata(&path) else { continue };
            seen.insert((file.dev(), file.ino()), file.blocks() * 512);
        }
    }
    Ok((!seen.is_empty()).then(|| seen.values().sum()))
}

/// The share of a process in all that it has mapped but what the guest has in memory and on its disk, in bytes: by `smaps`, where
/// `7f..-7f.. rw-p ... PATH` begins a mapping and every other line is `Field: value`.
fn own(smaps: impl BufRead) -> io::Result<u64> {
    let (mut kib, mut counts) = (0, true);
    for line in smaps.lines() {
        let line = line?;
        if let Some(share) = line.strip_prefix("Pss:") {
            let share = share.trim().strip_suffix(" kB").and_then(|share| share.parse::<u64>().ok());
            kib += share.filter(|_| counts).unwrap_or_default();
        } else if line.split(' ').next().is_some_and(|range| range.contains('-')) {
            counts = ![MEMORY_FILE, DISK_FILE].iter().any(|name| line.contains(name));
        }
    }
    Ok(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_guest_has_is_not_its_sandboxs_own() {
        let smaps = "\
            1000-2000 r-xp 00000000 fe:00 7 /exe\nSize: 4 kB\nPss: 4 kB\nPss_Dirty: 4 kB\n\
            5000-9000 rw-s 00000000 00:01 9 /memfd:runsc-memory (deleted)\nPss:                  12 kB\nVmFlags: rd wr\n\
            9000-a000 rw-s 00004000 fe:00 8 /x/disk/runsc-filestore-1 (deleted)\nPss: 3 kB\n\
            b000-c000 rw-p 00000000 00:00 0\nPss: 1 kB\n";
        assert_eq!(own(smaps.as_bytes()).unwrap(), 5 * 1024);
    }
}
