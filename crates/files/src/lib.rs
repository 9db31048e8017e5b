//! Removing a tree whatever its shape: users decide how deep the directories are that we take away.
//!
//! The standard library's removal goes one call and one open directory deeper at each level, so a tree of some thousand levels
//! takes a thread's stack or a process's descriptors, and ends the server. Here nothing grows with the depth: what is found in a
//! directory is removed, and a directory that is found is moved up to the top first, where it waits for its turn with the others.
//! At any time one directory is open beside the top one.
//!
//! No link is followed: names are taken off the directory that holds them, by its descriptor, and the descriptor is that of a
//! directory that was seen there without following anything. No mount point is passed: before a directory is entered or moved the
//! kernel is asked to remove it as an empty one, and of a mount point it says that it is in use, whatever is in it.

pub mod authorities;
pub mod listing;
pub mod private;

use std::{
    ffi::{CStr, CString},
    io,
    os::fd::OwnedFd,
    path::Path,
};

use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, renameat, unlinkat},
    io::Errno,
};

/// How a directory is entered.
const ENTER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Removes a directory with everything in it. A link or a file in its place is an error, and so is its absence.
///
/// Blocks for as long as there is something to remove. What is put in meanwhile may make it fail; then it can be called again.
/// What others take away meanwhile is gone all the same.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    remove(path).map_err(|error| io::Error::new(error.kind(), format!("failed to remove `{}`: {error}", path.display())))
}

fn remove(path: &Path) -> io::Result<()> {
    let top = openat(CWD, path, ENTER, Mode::empty())?;
    let mut moved = 0;
    // Each pass takes what waits in the top directory one level apart, which brings the level below up into it.
    while let Some(name) = empty(&top, &top, &mut moved)? {
        if gone(&top, &name)? {
            continue;
        }
        let below = match openat(&top, &name, ENTER, Mode::empty()) {
            Err(Errno::NOENT) => continue,
            other => other?,
        };
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
                Ok(()) | Err(Errno::NOENT) => continue,
                Err(Errno::ISDIR) => true,
                Err(error) => return Err(error.into()),
            },
            _ => false,
        };
        if !is_directory {
            match unlinkat(directory, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        } else if is_top {
            return Ok(Some(name.to_owned()));
        } else {
            lift(directory, name, top, moved)?;
            found = Some(name.to_owned());
        }
    }
    Ok(found)
}

/// Takes away a directory if it is empty, and tells whether it is gone. A mount point is an error.
fn gone(directory: &OwnedFd, name: &CStr) -> io::Result<bool> {
    match unlinkat(directory, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Moves a directory up to the top, unless it is empty and goes at once.
fn lift(from: &OwnedFd, name: &CStr, top: &OwnedFd, moved: &mut u64) -> io::Result<()> {
    if gone(from, name)? {
        return Ok(());
    }
    loop {
        *moved += 1;
        // Not every file system can be told to replace nothing. A directory replaces an empty directory at most, which is to go too.
        match renameat(from, name, top, format!(".firkin-removed-{moved}")) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            // A name that the tree's author chose, or an earlier removal that did not come to its end.
            Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

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

    /// Names what a test in a process of its own is to remove.
    const REMOVE: &str = "FIRKIN_FILES_TEST_REMOVE";

    /// Runs a test of this program again, below `command`, to remove `root`.
    fn again(test: &str, command: &[&str], root: &Path) -> bool {
        let program = std::env::current_exe().unwrap();
        let mut again = Command::new(command[0]);
        again.args(&command[1..]).arg(program).args(["--exact", test, "--test-threads=1"]).env(REMOVE, root);
        again.stdout(Stdio::null()).status().unwrap().success()
    }

    #[test]
    fn fifteen_thousand_levels_take_a_small_stack_and_few_descriptors() {
        if let Some(root) = std::env::var_os(REMOVE) {
            let remove = move || remove_tree(Path::new(&root));
            std::thread::Builder::new().stack_size(128 << 10).spawn(remove).unwrap().join().unwrap().unwrap();
            return;
        }
        // In memory where there is some: a disk that others use too takes its time over so many directories.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let root = dir.path().join("tree");
        fs::create_dir(&root).unwrap();
        dig(&root, 15_000);
        let test = "tests::fifteen_thousand_levels_take_a_small_stack_and_few_descriptors";
        let ended_well = again(test, &["sh", "-c", r#"ulimit -n 20 && exec "$0" "$@""#], &root);
        let left = fs::read_dir(dir.path()).unwrap().count();
        // Not left to the standard library's removal.
        if root.exists() {
            remove_tree(&root).unwrap();
        }
        assert!(ended_well && left == 0);
    }

    #[test]
    fn what_is_mounted_in_a_tree_keeps_its_files() {
        if let Some(root) = std::env::var_os(REMOVE) {
            assert_eq!(remove_tree(Path::new(&root)).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("tree"), dir.path().join("outside"));
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "x").unwrap();
        for place in ["a", "b/c/d"] {
            let place = root.join(place);
            fs::create_dir_all(&place).unwrap();
            // Of the same file system, which its number would not tell.
            let mount = r#"mount --bind -- "$0" "$1" && shift && exec "$@""#;
            let (outside, place) = (outside.to_str().unwrap(), place.to_str().unwrap());
            let command = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, outside, place];
            assert!(again("tests::what_is_mounted_in_a_tree_keeps_its_files", &command, &root));
            assert!(dir.path().join("outside/kept").exists());
            remove_tree(&root).unwrap();
        }
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
            match n % 3 {
                0 => fs::create_dir_all(root.join(format!(".firkin-removed-{n}/x"))).unwrap(),
                1 => fs::create_dir(root.join(format!(".firkin-removed-{n}"))).unwrap(),
                _ => fs::write(root.join(format!(".firkin-removed-{n}")), "x").unwrap(),
            }
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
