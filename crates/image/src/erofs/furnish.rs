//! What a container's root needs beside the files of a machine's: the agent, which no initramfs brings here, and places for mounts.
//!
//! All paths are those of the image: whoever calls this has it as his root. Nothing shows when it was done, so that the same image
//! and agent give the same files.

use std::{
    collections::BTreeMap,
    io,
    os::unix::fs::{PermissionsExt, lchown},
    path::{Path, PathBuf},
    time::SystemTime,
};

use fs_err::{self as fs, os::unix::fs::OpenOptionsExt};

use super::{CONTAINER_AGENT, view::set_modified};

/// Directories that are mounted at, and their modes.
const PLACES: [(&str, u32); 5] = [("/dev", 0o755), ("/proc", 0o755), ("/run", 0o755), ("/sys", 0o755), ("/tmp", 0o1777)];
const AGENT_MODE: u32 = 0o755;
const DIRECTORY_MODE: u32 = 0o755;

/// Adds them.
pub(super) fn furnish(agent: &[u8]) -> io::Result<()> {
    let mut times = Times::new()?;
    for (place, mode) in PLACES {
        times.directory(Path::new(place), mode)?;
    }
    let path = Path::new(CONTAINER_AGENT);
    let parent = path.parent().unwrap_or(path);
    times.directory(parent, DIRECTORY_MODE)?;
    times.keep(parent)?;
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(path)?.into_parts().0;
    io::Write::write_all(&mut file, agent)?;
    drop(file);
    times.made(path, AGENT_MODE)?;
    times.restore()
}

/// What times files are to have in the end.
struct Times {
    /// Of what is new: that of the image's root, from before.
    new: SystemTime,
    wanted: BTreeMap<PathBuf, SystemTime>,
}

impl Times {
    fn new() -> io::Result<Self> {
        let root = fs::metadata("/")?.modified()?;
        Ok(Self { new: root, wanted: BTreeMap::from([("/".into(), root)]) })
    }

    /// Remembers the time of a directory that is about to be changed.
    fn keep(&mut self, directory: &Path) -> io::Result<()> {
        let time = fs::metadata(directory)?.modified()?;
        self.wanted.entry(fs::canonicalize(directory)?).or_insert(time);
        Ok(())
    }

    /// Gives what was just made its owner, mode and time.
    fn made(&mut self, path: &Path, mode: u32) -> io::Result<()> {
        lchown(path, Some(0), Some(0))?;
        fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
        self.wanted.insert(fs::canonicalize(path)?, self.new);
        Ok(())
    }

    /// Makes a directory with those above it, as far as they are not there. A link to one is one.
    fn directory(&mut self, path: &Path, mode: u32) -> io::Result<()> {
        let mut missing: Vec<&Path> = path.ancestors().take_while(|above| !above.is_dir()).collect();
        while let Some(directory) = missing.pop() {
            self.keep(directory.parent().unwrap_or(directory))?;
            fs::create_dir(directory)?;
            self.made(directory, if directory == path { mode } else { DIRECTORY_MODE })?;
        }
        Ok(())
    }

    fn restore(self) -> io::Result<()> {
        self.wanted.iter().try_for_each(|(path, time)| set_modified(path, *time))
    }
}
