//! The disk of a state directory: a small one of its own, which can be full.

use std::{io::Write as _, path::Path};

use anyhow::Context as _;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Its size. A state of the bench is some kilobytes.
const SIZE: &str = "size=256m";

/// What takes the room.
const BALLAST: &str = "ballast";

/// Mounts one.
pub(crate) fn make(at: &Path) -> anyhow::Result<()> {
    fs_err::create_dir_all(at)?;
    mount(Some("firkin-cluster"), at, Some("tmpfs"), MsFlags::empty(), Some(SIZE)).context("cannot mount a disk")
}

/// Takes all the room that there is.
pub(crate) fn fill(at: &Path) -> anyhow::Result<()> {
    let mut file = fs_err::File::create(at.join(BALLAST))?;
    // First in large pieces, then to the last page.
    for piece in [1 << 20, 4096] {
        let bytes = vec![1; piece];
        while file.write_all(&bytes).is_ok() {}
    }
    Ok(())
}

/// Gives it back.
pub(crate) fn free(at: &Path) -> anyhow::Result<()> {
    Ok(fs_err::remove_file(at.join(BALLAST))?)
}

/// Unmounts it.
pub(crate) fn remove(at: &Path) -> anyhow::Result<()> {
    umount2(at, MntFlags::MNT_DETACH).context("cannot unmount a disk")
}
