//! The instance directory: the bundle that a sandbox is started from, and the record by which a later process finds it.
//!
//! ```text
//!   config.json, empty/   the bundle; its root is in an image, so the directory that stands for it is empty
//!   meminfo               how much memory its guest is shown
//!   disk/                 what the guest writes to its root disk is in a file here that has no name any more
//!   runsc/                the directory of `runsc`: its state, and the socket that the sandbox answers on
//!   control.in, .out      FIFOs
//!   console               what the first process writes to its standard error
//!   runsc.log, gvisor.log what the command says, and the sandbox when it fails
//!   image/                a checkpoint that was proven and is yet to be restored
//!   instance.json         the record
//! ```

use std::{
    io::{self, Read, Seek},
    os::unix::fs::DirBuilderExt,
    path::Path,
};

use fs_err::os::unix::fs::OpenOptionsExt;
use serde::{Deserialize, Serialize};

use super::{
    channel,
    spec::{self, Options},
};
use crate::directory::{enter, open_unfollowed, within};

/// What `runsc` calls its root.
pub(super) const RUNSC_DIR: &str = "runsc";
pub(super) const CONSOLE: &str = "console";
pub(super) const RUNSC_LOG: &str = "runsc.log";
pub(super) const LOG: &str = "gvisor.log";
pub(super) const PID_FILE: &str = "sandbox.pid";
pub(super) const IMAGE_DIR: &str = "image";
/// What covers the host's `/proc/meminfo` where `runsc` makes a sandbox.
pub(super) const MEMINFO: &str = "meminfo";
const DISK_DIR: &str = "disk";
const CONFIG: &str = "config.json";
const RECORD_FILE: &str = "instance.json";
const VERSION: u32 = 1;
/// What is shown of a log.
const TAIL_BYTES: u64 = 4 << 10;
/// More than is ever shown of a console.
const MAX_CONSOLE_BYTES: u64 = 256 << 10;
/// A record has some 300 bytes.
const MAX_RECORD_BYTES: u64 = 64 << 10;

/// The record that a later process adopts the sandbox by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    version: u32,
    pub(super) pid: u32,
    /// Clock ticks after the host's start: a pid alone is reused.
    pub(super) start_time: u64,
    pub(super) uid: u32,
    /// Whether it was ever a machine: one that waits for its snapshot is none.
    pub(super) whole: bool,
    /// The name of its overlay, by which the order of its disk's layers is known.
    pub(super) root_disk: String,
    pub(super) origin: super::state::Origin,
}

impl Record {
    pub(super) fn new((pid, start_time): (u32, u64), uid: u32, root_disk: &str, origin: super::state::Origin) -> Self {
        Self { version: VERSION, pid, start_time, uid, whole: false, root_disk: root_disk.to_owned(), origin }
    }

    /// Publishes the record whole or not at all. It need not outlive the host, so it is not synced.
    pub(super) fn write(&self, dir: &Path) -> io::Result<()> {
        let temporary = dir.join("instance.json.new");
        let mut file = fs_err::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
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

/// Makes all that a sandbox is started from but its bundle, in a directory that is the server's alone.
pub(super) fn make(dir: &Path) -> io::Result<()> {
    enter(dir)?;
    for name in [spec::EMPTY_ROOT, DISK_DIR, RUNSC_DIR, IMAGE_DIR] {
        std::fs::DirBuilder::new().mode(0o700).create(dir.join(name))?;
    }
    channel::make(dir)?;
    [CONSOLE, LOG, RUNSC_LOG].iter().try_for_each(|name| new(dir, name, &[]))
}

/// Makes the bundle, with what the sandbox is shown of its host.
pub(super) fn bundle(dir: &Path, image: &Path, uid: u32, options: Options) -> io::Result<()> {
    new(dir, CONFIG, &spec::text(image, &dir.join(DISK_DIR), uid, options)?)?;
    options.memory_mib.map_or(Ok(()), |mib| new(dir, MEMINFO, spec::meminfo(mib).as_bytes()))
}

fn new(dir: &Path, name: &str, text: &[u8]) -> io::Result<()> {
    let mut file = fs_err::OpenOptions::new().write(true).create_new(true).mode(0o600).open(dir.join(name))?;
    io::Write::write_all(&mut file, text)
}

/// The end of a text file: as much as an error has room for.
pub(super) fn tail(path: &Path) -> io::Result<String> {
    last(path, TAIL_BYTES)
}

/// At most the last `bytes` of a text file.
pub(super) fn last(path: &Path, bytes: u64) -> io::Result<String> {
    let mut file = open_unfollowed(path, false)?;
    let start = file.metadata()?.len().saturating_sub(bytes);
    file.seek(io::SeekFrom::Start(start))?;
    let mut text = Vec::new();
    file.take(bytes).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Empties the console when it has grown too long: a guest can write to it at will. It is opened for appending, so that it goes on at
/// its new end.
pub(super) fn bound_console(dir: &Path) -> io::Result<()> {
    let console = open_unfollowed(&dir.join(CONSOLE), true)?;
    if console.metadata()?.len() > MAX_CONSOLE_BYTES { console.set_len(0) } else { Ok(()) }
}
