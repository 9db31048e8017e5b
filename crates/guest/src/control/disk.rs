//! Making a machine small before it becomes a template.
#![expect(unsafe_code, reason = "neither nix nor rustix wraps FITRIM")]

use std::{io, os::fd::AsRawFd};

use nix::{errno::Errno, ioctl_readwrite};

/// `struct fstrim_range` of `linux/fs.h`.
#[repr(C)]
pub(super) struct TrimRange {
    start: u64,
    len: u64,
    min_len: u64,
}

ioctl_readwrite!(trim_file_system, b'X', 121, TrimRange);

/// Writes dirty pages, gives free disk blocks back, drops what the page cache and the slabs can spare.
pub(super) fn shrink() -> io::Result<()> {
    nix::unistd::sync();
    trim("/")?;
    tell_kernel("drop_caches", "3")?;
    // Merges what the dropping has freed into large blocks, which the balloon can report.
    tell_kernel("compact_memory", "1")
}

/// A kernel that is not asked for it, as a container's is not, has nothing of the kind to do.
fn tell_kernel(what: &str, value: &str) -> io::Result<()> {
    // Not made: whoever may not make files there is told that, and not that there is none.
    let told = fs_err::OpenOptions::new().write(true).open(format!("/proc/sys/vm/{what}"));
    match told.and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes())) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        told => told,
    }
}

fn trim(mount: &str) -> io::Result<()> {
    let root = fs_err::File::open(mount)?;
    let mut range = TrimRange { start: 0, len: u64::MAX, min_len: 0 };
    // SAFETY: the kernel reads and writes one `fstrim_range`, which is alive and exclusively borrowed for the call.
    match unsafe { trim_file_system(root.as_raw_fd(), &raw mut range) } {
        // A disk without discard has nothing to give back.
        Ok(_) | Err(Errno::EOPNOTSUPP | Errno::ENOTTY) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
