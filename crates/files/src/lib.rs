//! Removing a tree whatever its shape: users decide how deep the directories are that we take away.
//!
//! The standard library's removal goes one call and one open directory deeper at each level, so a tree of some thousand levels
//! takes a thread's stack or a process's descriptors, and ends the server. Here nothing grows with the depth: what is found in a
//! directory is removed, and a directory that is found is moved up to the top first, where it waits for its turn with the others.
//! At any time one directory is open beside the top one.
//!
//! No link is followed and no mount point is passed: names are taken off the directory that holds them, by its descriptor, and the
//! descriptor is that of a directory that was seen there without following anything.

use std::{
    ffi::{CString, OsStr},
    io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::Path,
};

use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, RenameFlags, openat, renameat_with, unlinkat},
    io::Errno,
};

/// How a directory is entered.
const ENTER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Removes a directory with everything in it. A link or a file in its place is an error, and so is its absence.
///
/// Blocks for as long as there is something to remove. What is put in meanwhile may make it fail; then it can be called again.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    remove(path).map_err(|error| io::Error::new(error.kind(), format!("failed to remove `{}`: {error}", path.display())))
}

fn remove(path: &Path) -> io::Result<()> {
    let top = openat(CWD, path, ENTER, Mode::empty())?;
    let mut moved = 0;
    // Each pass takes what waits in the top directory one level apart, which brings the level below up into it.
    while let Some(name) = empty(&top, &top, &mut moved)? {
        let below = openat(&top, &name, ENTER, Mode::empty())?;
        while empty(&below, &top, &mut moved)?.is_some() {}
        unlinkat(&top, &name, AtFlags::REMOVEDIR)?;
    }
    drop(top);
    unlinkat(CWD, path, AtFlags::REMOVEDIR).map_err(io::Error::from)
}

/// Takes away what is in `directory`: files go, directories are moved into `top`. In the top one itself they stay, and one of
/// them is given. Elsewhere, gives a name when a directory was moved, because what was read of the directory may be out of date.
fn empty(directory: &OwnedFd, top: &OwnedFd, moved: &mut u64) -> io::Result<Option<CString>> {
    let is_top = std::ptr::eq(directory, top);
    let mut found = None;
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let is_directory = match entry.file_type() {
            FileType::Directory => true,
            FileType::Unknown => match unlinkat(directory, name, AtFlags::empty()) {
                Ok(()) => continue,
                Err(Errno::ISDIR) => true,
                Err(error) => return Err(error.into()),
            },
            _ => false,
        };
        if !is_directory {
            unlinkat(directory, name, AtFlags::empty())?;
        } else if is_top {
            return Ok(Some(name.to_owned()));
        } else {
            lift(directory, OsStr::from_bytes(name.to_bytes()), top, moved)?;
            found = Some(name.to_owned());
        }
    }
    Ok(found)
}

/// Moves a directory up to the top, unless it is empty and goes at once.
fn lift(from: &OwnedFd, name: &OsStr, top: &OwnedFd, moved: &mut u64) -> io::Result<()> {
    match unlinkat(from, name, AtFlags::REMOVEDIR) {
        Ok(()) => return Ok(()),
        Err(Errno::NOTEMPTY | Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    loop {
        *moved += 1;
        match renameat_with(from, name, top, format!(".firkin-removed-{moved}"), RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(()),
            // A name that the tree's author chose, or an earlier removal that did not come to its end.
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use fs_err as fs;
    use rustix::fs::mkdirat;

    use super::*;

    /// A chain of directories with a file in each, made without a path.
    fn dig(root: &Path, levels: usize) {
        let mut at = openat(CWD, root, ENTER, Mode::empty()).unwrap();
        for _ in 0..levels {
            mkdirat(&at, "d", Mode::from_raw_mode(0o700)).unwrap();
            openat(&at, "f", OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC, Mode::from_raw_mode(0o600)).unwrap();
            at = openat(&at, "d", ENTER, Mode::empty()).unwrap();
        }
    }

    #[test]
    fn fifteen_thousand_levels_take_a_small_stack_and_two_descriptors() {
        // In memory where there is some: a disk that others use too takes its time over so many directories.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let root = dir.path().join("tree");
        fs::create_dir(&root).unwrap();
        dig(&root, 15_000);
        let removed = std::thread::Builder::new().stack_size(128 << 10).spawn(move || remove_tree(&root)).unwrap();
        removed.join().unwrap().unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_wide_tree_goes_with_all_its_kinds_and_nothing_else_does() {
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("tree"), dir.path().join("outside"));
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "x").unwrap();
        for n in 0..40 {
            fs::create_dir_all(root.join(format!("a{n}/b/c"))).unwrap();
            fs::write(root.join(format!("a{n}/b/f")), "x").unwrap();
            std::os::unix::fs::symlink(&outside, root.join(format!("a{n}/link"))).unwrap();
            // A name of our own choosing may be there already.
            fs::create_dir_all(root.join(format!(".firkin-removed-{n}/x"))).unwrap();
        }
        let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
        remove_tree(&root).unwrap();
        assert!(!root.exists() && outside.join("kept").exists());
    }

    #[test]
    fn what_is_no_directory_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link, real) = (dir.path().join("file"), dir.path().join("link"), dir.path().join("real"));
        fs::write(&file, "x").unwrap();
        fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        assert!(remove_tree(&file).is_err() && remove_tree(&link).is_err());
        assert_eq!(remove_tree(&dir.path().join("absent")).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(file.exists() && real.exists());
    }
}
