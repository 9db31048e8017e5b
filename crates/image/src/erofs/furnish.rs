//! What a container's root needs beside the files of a machine's: the agent, which no initramfs brings here, places for mounts, and the
//! list of all its files, by which the agent tells later what a sandbox has changed.
//!
//! All paths are those of the image: whoever calls this has it as his root. Nothing shows when it was done, so that the same image
//! and agent give the same files.

use std::{
    collections::BTreeMap,
    fs::{File, Metadata},
    io::{self, BufWriter, Write},
    os::unix::fs::{PermissionsExt, lchown},
    path::{Path, PathBuf},
    time::SystemTime,
};

use firkin_files::listing::{self, Listed};
use fs_err::{self as fs, os::unix::fs::OpenOptionsExt};

use super::{CONTAINER_AGENT, view::set_modified};

/// Directories that are mounted at, and their modes.
const PLACES: [(&str, u32); 5] = [("/dev", 0o755), ("/proc", 0o755), ("/run", 0o755), ("/sys", 0o755), ("/tmp", 0o1777)];
const AGENT_MODE: u32 = 0o755;
const DIRECTORY_MODE: u32 = 0o755;

/// The list, beside the agent.
const LIST: &str = "files";
const LIST_MODE: u32 = 0o644;

/// Adds them. `left_out` tells which files will not be in the image.
pub(super) fn furnish(agent: &[u8], left_out: fn(&Path) -> bool) -> io::Result<()> {
    let mut times = Times::new()?;
    for (place, mode) in PLACES {
        times.directory(Path::new(place), mode)?;
    }
    let path = Path::new(CONTAINER_AGENT);
    let parent = path.parent().unwrap_or(path);
    times.directory(parent, DIRECTORY_MODE)?;
    times.keep(parent)?;
    anew(path)?.write_all(agent)?;
    times.made(path, AGENT_MODE)?;
    let list = parent.join(LIST);
    list_files(anew(&list)?, parent, left_out)?;
    times.made(&list, LIST_MODE)?;
    times.restore()
}

/// A file in the place of any that was there.
fn anew(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    Ok(fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.into_parts().0)
}

/// Lists all files but those in `own`, the agent's directory: what is there is made anew for every image.
fn list_files(to: File, own: &Path, left_out: fn(&Path) -> bool) -> io::Result<()> {
    let root = Path::new("/");
    let own = fs::canonicalize(own)?;
    let mut to = BufWriter::new(to);
    listing::begin(&mut to)?;
    let mut each = |path: PathBuf, metadata: &Metadata| {
        if left_out(&path) || root.join(&path).starts_with(&own) {
            return Ok(());
        }
        listing::add(&mut to, &Listed::of(root, path, metadata)?)
    };
    listing::walk(root, &mut each)?;
    to.flush()
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
