//! Standing in for the image's `sudo` where it cannot work.
//!
//! Whether programs run as their owner is found out by one: flags of mounts and of the process tell what ought to be, and a runtime that
//! ignores the bit tells nothing.

use std::{
    io,
    os::unix::{fs::symlink, process::CommandExt},
    path::Path,
    process::Command,
};

use fs_err::os::unix::fs::OpenOptionsExt;

use crate::reaper::{Exit, Reaper};

/// The word that asks whether this process is root in effect.
pub(crate) const IS_ROOT: &str = "is-root";
/// Where this program is in an image, for the link that stands in.
const AGENT: &str = "/usr/lib/firkin/guest";
/// The image's.
const SUDO: &str = "/usr/bin/sudo";
/// Before that in every usual `PATH`, and out of reach of the package manager, which puts the image's back at an upgrade.
const BEFORE: &str = "/usr/local/bin/sudo";
/// A program that runs as its owner, while that is tried.
const TRIAL: &str = "/usr/lib/firkin/.setuid";
/// Somebody who is not root.
const NOBODY: u32 = 65_534;

/// Puts this program in the place of an image's `sudo` that cannot work, and tells whether it stands there. Blocks. An image that has none
/// gets none.
pub(crate) fn take_place(reaper: &Reaper) -> io::Result<bool> {
    let images = match fs_err::symlink_metadata(SUDO) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let ours = images.is_symlink() && fs_err::read_link(SUDO)? == Path::new(AGENT);
    if ours {
        return Ok(true);
    }
    if setuid_works(reaper)? {
        return Ok(false);
    }
    let new = Path::new(SUDO).with_file_name(".sudo.firkin");
    match fs_err::remove_file(&new) {
        // Left by an end in between.
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    symlink(AGENT, &new)?;
    fs_err::rename(new, SUDO)?;
    let dir = Path::new(BEFORE).parent().unwrap_or(Path::new("/"));
    if dir.is_dir() && fs_err::symlink_metadata(BEFORE).is_err() {
        symlink(AGENT, BEFORE)?;
    }
    Ok(true)
}

/// Whether a program of root's that is to run as root does so for somebody else.
fn setuid_works(reaper: &Reaper) -> io::Result<bool> {
    let mut trial = fs_err::OpenOptions::new().write(true).create(true).truncate(true).mode(0o755).open(TRIAL)?;
    let copied = io::copy(&mut fs_err::File::open("/proc/self/exe")?, &mut trial);
    let marked = copied.and_then(|_| trial.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o4755)));
    drop(trial);
    let tried = marked.and_then(|()| reaper.spawn(Command::new(TRIAL).arg(IS_ROOT).uid(NOBODY).gid(NOBODY)));
    let exit = tried.map(|started| started.exit.blocking_recv());
    fs_err::remove_file(TRIAL)?;
    Ok(matches!(exit?, Ok(Exit::Code(0))))
}
