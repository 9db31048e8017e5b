//! The instance directory: sockets that can be connected to again, and a record by which a later process finds the machine.
//!
//! The directory belongs to the machine's own user, so a broken-out guest could put anything there. What is read back is
//! bounded, is never followed through links, and names a process only if that process is of the directory's owner.

use std::{
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{fs::MetadataExt, net::UnixListener},
    },
    path::{Path, PathBuf},
};

use fs_err::os::unix::fs::OpenOptionsExt;
use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;

/// The monitor's socket.
pub(super) const MONITOR_SOCKET: &str = "qmp.sock";
/// The guest agent's port.
pub(super) const CONTROL_SOCKET: &str = "control.sock";
/// Where QEMU writes device state, relative to its working directory.
pub(super) const STATE_OUT: &str = "state.out";
const RECORD_FILE: &str = "instance.json";
const VERSION: u32 = 1;
/// A record has some 300 bytes and two paths.
const MAX_RECORD_BYTES: u64 = 64 << 10;

/// What an adopting process needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    version: u32,
    pub(super) pid: u32,
    /// Clock ticks after the host's start: a pid alone is reused.
    pub(super) start_time: u64,
    pub(super) uid: u32,
    pub(super) memory_bytes: u64,
    pub(super) memory: MemoryRecord,
}

/// Which file guest memory is in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", content = "path")]
pub(super) enum MemoryRecord {
    /// The machine was booted, and writes to this file.
    Booted(PathBuf),
    /// The machine was restored from this file, and does not write to it.
    Cloned(PathBuf),
}

impl Record {
    pub(super) fn new(pid: u32, start_time: u64, uid: u32, memory_bytes: u64, memory: MemoryRecord) -> Self {
        Self { version: VERSION, pid, start_time, uid, memory_bytes, memory }
    }

    /// Publishes the record whole or not at all. It need not outlive the host, so it is not synced.
    pub(super) fn write(&self, dir: &Path) -> io::Result<()> {
        let temporary = dir.join("instance.json.new");
        let mut file = fs_err::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        serde_json::to_writer(&mut file, self)?;
        fs_err::rename(temporary, dir.join(RECORD_FILE))
    }

    pub(super) fn read(dir: &Path) -> io::Result<Self> {
        let invalid = |text: &'static str| io::Error::new(io::ErrorKind::InvalidData, text);
        let file = open_unfollowed(&dir.join(RECORD_FILE), false)?;
        if !file.metadata()?.is_file() {
            return Err(invalid("the record of an instance is not a file"));
        }
        let mut text = Vec::new();
        file.take(MAX_RECORD_BYTES).read_to_end(&mut text)?;
        let record: Self = serde_json::from_slice(&text)?;
        if record.version != VERSION {
            return Err(invalid("the record of an instance is of an unknown version"));
        }
        let owner = fs_err::metadata(dir)?.uid();
        if owner != record.uid && owner != 0 {
            return Err(invalid("the record of an instance names another user's process"));
        }
        Ok(record)
    }
}

/// Opens a file that may have been replaced by a link or a pipe.
pub(super) fn open_unfollowed(path: &Path, write: bool) -> io::Result<File> {
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    Ok(fs_err::OpenOptions::new().read(true).write(write).custom_flags(flags).open(path)?.into_parts().0)
}

/// Listens in `dir`. The descriptor is QEMU's to accept from; what connects meanwhile waits in the backlog.
pub(super) fn listen(dir: &Path, name: &str) -> io::Result<OwnedFd> {
    let (_held, path) = short_path(dir, name)?;
    Ok(UnixListener::bind(path)?.into())
}

/// Connects to a socket in `dir`.
pub(super) async fn connect(dir: &Path, name: &str) -> io::Result<UnixStream> {
    let (_held, path) = short_path(dir, name)?;
    UnixStream::connect(path).await
}

/// A socket's address has room for 107 bytes of path, and a state directory may be anywhere: go by the directory's descriptor,
/// which must be held while the path is used.
fn short_path(dir: &Path, name: &str) -> io::Result<(File, PathBuf)> {
    let dir = fs_err::File::open(dir)?.into_parts().0;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()));
    Ok((dir, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record::new(7, 9, nix::unistd::getuid().as_raw(), 4096, MemoryRecord::Cloned("/m".into()))
    }

    #[test]
    fn a_record_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        record().write(dir.path()).unwrap();
        assert_eq!(Record::read(dir.path()).unwrap(), record());
    }

    #[test]
    fn a_record_of_another_version_or_none_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Record::read(dir.path()).is_err());
        Record { version: 2, ..record() }.write(dir.path()).unwrap();
        assert!(Record::read(dir.path()).is_err());
    }

    #[test]
    fn a_record_that_is_a_link_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        record().write(elsewhere.path()).unwrap();
        std::os::unix::fs::symlink(elsewhere.path().join(RECORD_FILE), dir.path().join(RECORD_FILE)).unwrap();
        assert!(Record::read(dir.path()).is_err());
    }

    #[tokio::test]
    async fn a_socket_works_below_a_path_longer_than_its_address() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(120));
        fs_err::create_dir(&deep).unwrap();
        let listener = UnixListener::from(listen(&deep, MONITOR_SOCKET).unwrap());
        connect(&deep, MONITOR_SOCKET).await.unwrap();
        listener.accept().unwrap();
    }
}
