//! The directory of one trial, and what is left of trials whose process was killed.
//!
//! A trial starts sandboxes, and whoever is killed meanwhile ends none of them. Its directory is locked for as long as its process lives, since
//! locks die with their process: so the next trial in the same place tells what is left from what goes on beside it.

use std::{
    io,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use tempfile::TempDir;

use super::{
    instance::{RUNSC_DIR, Record},
    remains::Remains,
};

const PREFIX: &str = ".trial-";
/// From a trial's directory to those of its sandboxes: the network, the form of the disk, and which of them it is.
const DEPTH: usize = 3;

/// A directory for one trial. Dropping it removes it.
#[derive(Debug)]
pub(super) struct Trial {
    pub(super) dir: TempDir,
    /// Holds the lock.
    _locked: fs_err::File,
}

impl Trial {
    /// A new one in `pins`, after removing what killed processes left there. Blocks.
    pub(super) fn begin(pins: &Path) -> io::Result<Self> {
        // Until the new one is locked, nobody else looks what is left.
        let turn = fs_err::File::open(pins)?;
        flock(&turn, FlockOperation::LockExclusive)?;
        for entry in fs_err::read_dir(pins)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(PREFIX) {
                remove_if_left(&entry.path())?;
            }
        }
        let dir = tempfile::Builder::new().prefix(PREFIX).tempdir_in(pins)?;
        let locked = fs_err::File::open(dir.path())?;
        flock(&locked, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self { dir, _locked: locked })
    }
}

fn remove_if_left(dir: &Path) -> io::Result<()> {
    let file = match fs_err::File::open(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => return Ok(()),
        locked => locked?,
    }
    tracing::info!(dir = %dir.display(), "removing what is left of a trial of gVisor");
    end_below(dir, DEPTH)?;
    match fs_err::remove_dir_all(dir) {
        // Its own process is just removing it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Ends the sandboxes of a trial, and the commands that were starting them.
fn end_below(dir: &Path, depth: usize) -> io::Result<()> {
    for entry in fs_err::read_dir(dir)? {
        let path: PathBuf = entry?.path();
        if depth > 1 && path.is_dir() {
            end_below(&path, depth - 1)?;
        } else if path.join(RUNSC_DIR).is_dir() {
            // One that has no record yet has no process but that command.
            let uid = Record::read(&path).map_or(0, |record| record.uid);
            let remains = Remains::of(uid, &path.join(RUNSC_DIR));
            remains.searcher().end();
            remains.release();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read,
        process::{Command, Stdio},
    };

    use super::*;

    #[test]
    fn what_a_killed_trial_left_goes_with_the_next_and_one_that_goes_on_stays() {
        let pins = tempfile::tempdir().unwrap();
        let live = Trial::begin(pins.path()).unwrap();
        let left = pins.path().join(".trial-left");
        let root = left.join("plain/sized/first").join(RUNSC_DIR);
        fs_err::create_dir_all(&root).unwrap();
        let mut mark = std::ffi::OsString::from("--root=");
        mark.push(&root);
        let mut process = Command::new("sh");
        let process = process.args(["-c", "echo; read line", "sh"]).arg(mark).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = process.spawn().unwrap();
        // From here on it has its arguments.
        process.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let next = Trial::begin(pins.path()).unwrap();
        assert!(!left.exists() && live.dir.path().exists() && next.dir.path().exists());
        // Only root's processes are known by that argument.
        if nix::unistd::geteuid().is_root() {
            use std::os::unix::process::ExitStatusExt;
            assert_eq!(process.wait().unwrap().signal(), Some(9));
        } else {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }
}
