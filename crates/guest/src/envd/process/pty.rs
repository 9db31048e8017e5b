//! Terminals for commands that want one.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    os::unix::fs::fchown,
};

use fs_err::os::unix::fs::OpenOptionsExt;
use nix::{
    fcntl::OFlag,
    pty::{grantpt, posix_openpt, ptsname_r, unlockpt},
};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::envd::users::{User, UserDb};

/// Width and height in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    /// Columns.
    pub(crate) cols: u16,
    /// Rows.
    pub(crate) rows: u16,
}

/// Both ends of a terminal.
#[derive(Debug)]
pub(crate) struct Terminal {
    /// Ours.
    pub(crate) master: OwnedFd,
    /// The command's; owned by its user, so that it can be opened again by name.
    pub(crate) slave: std::fs::File,
}

/// Opens a terminal of this size for `user`.
pub(crate) fn open(size: Size, user: &User) -> io::Result<Terminal> {
    let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = ptsname_r(&master)?;
    let slave = fs_err::OpenOptions::new().read(true).write(true).custom_flags(OFlag::O_NOCTTY.bits()).open(name)?;
    let tty_group = UserDb::load().ok().and_then(|db| db.group_id("tty")).unwrap_or(user.gid);
    if nix::unistd::geteuid().is_root() {
        fchown(&slave, Some(user.uid.as_raw()), Some(tty_group.as_raw()))?;
    }
    let master = OwnedFd::from(master);
    resize(&master, size)?;
    Ok(Terminal { master, slave: slave.into_file() })
}

/// Changes the size; the kernel tells the foreground process group.
pub(super) fn resize(master: impl AsFd, size: Size) -> io::Result<()> {
    tcsetwinsize(master, Winsize { ws_col: size.cols, ws_row: size.rows, ws_xpixel: 0, ws_ypixel: 0 })?;
    Ok(())
}
