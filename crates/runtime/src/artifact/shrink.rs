//! Large files are emptied in small steps before they are removed.
//!
//! What a file had is freed in the file system's journal, and all of a file in one go: whoever waits for the journal waits for that.
//! Creates do, whose records have to be durable before they are told. 256 MiB that had been written and read took 95 ms to remove on
//! ext4, and a sync beside it up to 85 ms instead of 3; in steps of 4 MiB the whole took as long, and a sync up to 10 ms.
//!
//! A name can be taken from whoever still uses a file, its content cannot. Pins see to it that nobody does; the kernel is asked as
//! well, because a mistake would not be noticed at a resume but end a machine that runs.
#![expect(unsafe_code, reason = "neither nix nor rustix wraps F_SETLEASE")]

use std::{
    io,
    os::{
        fd::AsRawFd as _,
        unix::fs::{MetadataExt as _, PermissionsExt as _},
    },
    path::Path,
};

use fs_err as fs;
use fs_err::os::unix::fs::OpenOptionsExt as _;
use nix::{errno::Errno, libc};

/// What is freed in one step. Half of it makes the whole take twice as long, twice of it keeps a sync waiting twice as long.
const STEP: u64 = 4 << 20;

/// Of `asm-generic/fcntl.h`; libc has it for few targets.
const F_SETSIG: libc::c_int = 10;

/// Empties each file in a directory.
pub(super) fn empty_files_in(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        empty(&entry?.path())?;
    }
    Ok(())
}

/// Empties a file, step by step, from its end, unless it is small, has another name, or is in use. Of anything else nothing happens.
///
/// Blocks for as long as there is something to free.
pub(super) fn empty(path: &Path) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    if !metadata.is_file() || metadata.nlink() > 1 || metadata.len() <= STEP {
        return Ok(());
    }
    // Members are sealed.
    fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    let file = fs::OpenOptions::new().write(true).custom_flags(libc::O_NOFOLLOW).open(path)?;
    if !is_ours_alone(file.file())? {
        tracing::warn!(path = %path.display(), "what is removed is still in use: its room comes back when it is not");
        return Ok(());
    }
    let mut left = metadata.len();
    while left > 0 {
        left = left.saturating_sub(STEP);
        file.set_len(left)?;
    }
    Ok(())
}

/// Whether nobody else has the file open or maps it: only then the kernel gives a lease for writing (fcntl(2)). As long as this
/// descriptor is open, who would open the file waits.
fn is_ours_alone(file: &std::fs::File) -> io::Result<bool> {
    let descriptor = file.as_raw_fd();
    // Who would open it has us told by a signal: SIGIO unless another is chosen, and that ends a process. This one is ignored.
    // SAFETY: F_SETSIG takes a number, not an address. The descriptor is open.
    let chosen = unsafe { libc::fcntl(descriptor, F_SETSIG, libc::SIGURG) };
    Errno::result(chosen)?;
    // SAFETY: F_SETLEASE takes a number, not an address. The descriptor is open.
    let leased = unsafe { libc::fcntl(descriptor, libc::F_SETLEASE, libc::F_WRLCK) };
    match Errno::result(leased) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN) => Ok(false),
        // Of a file system or a server that may not: then the file goes in one step.
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_emptied_unless_somebody_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let (path, second) = (dir.path().join("memory"), dir.path().join("second"));
        let len = || fs::metadata(&path).unwrap().len();
        fs::File::create(&path).unwrap().set_len(3 * STEP + 1).unwrap();
        fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).unwrap();
        let open = fs::File::open(&path).unwrap();
        empty_files_in(dir.path()).unwrap();
        assert_eq!(len(), 3 * STEP + 1, "it is open");
        drop(open);
        fs::hard_link(&path, &second).unwrap();
        empty_files_in(dir.path()).unwrap();
        assert_eq!(len(), 3 * STEP + 1, "it has another name");
        fs::remove_file(&second).unwrap();
        empty_files_in(dir.path()).unwrap();
        assert_eq!(len(), 0);
    }

    #[test]
    fn who_opens_a_file_that_is_being_emptied_ends_nothing() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let emptied = fs::OpenOptions::new().write(true).open(file.path()).unwrap();
        // Its own descriptor is closed with this.
        let path = file.into_temp_path();
        assert!(is_ours_alone(emptied.file()).unwrap());
        let refused = fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn what_is_no_file_or_a_small_one_stays() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("directory")).unwrap();
        fs::write(dir.path().join("small"), vec![1; 100]).unwrap();
        std::os::unix::fs::symlink("small", dir.path().join("link")).unwrap();
        empty_files_in(dir.path()).unwrap();
        assert_eq!(fs::metadata(dir.path().join("small")).unwrap().len(), 100);
    }
}
