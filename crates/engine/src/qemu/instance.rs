//! The instance directory: sockets that can be connected to again, and a record by which a later process finds the machine.
//!
//! The directory is the server's alone. The machine has its sockets and files as descriptors and no way in, so what lies there
//! is what a server of ours put there: a socket is that of the machine whose directory it is in, and a record is ours. A directory
//! that anybody else could have written to is refused, and nothing in it is opened.

use std::{
    io::{self, Read},
    path::{Path, PathBuf},
};

use fs_err::os::unix::fs::OpenOptionsExt;
use serde::{Deserialize, Serialize};

use crate::directory::{enter, open_unfollowed, within};

/// The monitor's socket.
pub(super) const MONITOR_SOCKET: &str = "qmp.sock";
/// The guest agent's port.
pub(super) const CONTROL_SOCKET: &str = "control.sock";
const RECORD_FILE: &str = "instance.json";
const VERSION: u32 = 1;
/// A record has some 300 bytes and two paths.
const MAX_RECORD_BYTES: u64 = 64 << 10;

/// The record that a later process adopts the machine by.
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

/// The file that guest memory is in.
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
        let held = enter(dir)?;
        let file = open_unfollowed(&within(&held, RECORD_FILE), false)?;
        let mut text = Vec::new();
        file.take(MAX_RECORD_BYTES).read_to_end(&mut text)?;
        let record: Self = serde_json::from_slice(&text)?;
        if record.version != VERSION {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the record of an instance is of an unknown version"));
        }
        Ok(record)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::directory::{connect, listen};

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

    /// What a machine that was taken over did with a directory of its own: another machine's socket in place of its own, and a
    /// record that names any file of the host.
    #[tokio::test]
    async fn nothing_is_opened_in_a_directory_that_somebody_else_may_write_to() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        record().write(dir.path()).unwrap();
        let listener = UnixListener::from(listen(dir.path(), CONTROL_SOCKET).unwrap());
        connect(dir.path(), CONTROL_SOCKET).await.unwrap();
        listener.accept().unwrap();
        fs_err::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o722)).unwrap();
        assert_eq!(Record::read(dir.path()).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(connect(dir.path(), CONTROL_SOCKET).await.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        fs_err::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let link = tempfile::tempdir().unwrap();
        let link = link.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        assert!(connect(&link, CONTROL_SOCKET).await.is_err(), "a link in place of the directory");
    }

    #[tokio::test]
    async fn a_link_in_place_of_a_socket_is_not_followed() {
        let (own, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let others = UnixListener::from(listen(other.path(), CONTROL_SOCKET).unwrap());
        others.set_nonblocking(true).unwrap();
        std::os::unix::fs::symlink(other.path().join(CONTROL_SOCKET), own.path().join(CONTROL_SOCKET)).unwrap();
        assert_eq!(connect(own.path(), CONTROL_SOCKET).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(others.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock, "nobody has called");
        connect(other.path(), CONTROL_SOCKET).await.unwrap();
    }

    #[test]
    fn a_pipe_in_place_of_a_file_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join(RECORD_FILE);
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(Record::read(dir.path()).is_err());
        for write in [false, true] {
            assert!(open_unfollowed(&pipe, write).is_err());
            assert!(open_unfollowed(Path::new("/dev/null"), write).is_err(), "a device");
        }
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
