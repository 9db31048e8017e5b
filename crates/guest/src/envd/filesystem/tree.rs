//! Changing and listing directories.

use std::{
    io,
    path::{Path, PathBuf},
};

use connectrpc::ConnectError;
use firkin_wire::envd::filesystem::EntryInfo;

use super::{entry, io_error};
use crate::envd::{
    paths,
    trouble::Trouble,
    users::{User, UserDb},
};

/// Entries of one listing. More would not fit a message that clients take.
const MAX_ENTRIES: usize = 100_000;

/// Makes a directory and what is missing above it. One that exists already is the client's to know.
pub(super) fn make_dir(path: &Path, user: &User, db: &UserDb) -> Result<EntryInfo, ConnectError> {
    match fs_err::metadata(path) {
        Ok(found) if found.is_dir() => {
            return Err(ConnectError::already_exists(format!("directory already exists: {}", path.display())));
        }
        Ok(_) => {
            let text = format!("path already exists but it is not a directory: {}", path.display());
            return Err(ConnectError::invalid_argument(text));
        }
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
        Err(error) => return Err(io_error(&error)),
    }
    paths::make_dirs(path, user).map_err(|error| io_error(&error))?;
    entry::describe(path, db).map_err(|error| io_error(&error))
}

/// Renames a file or directory, making what is missing above its new place.
pub(super) fn rename(source: &Path, destination: &Path, user: &User, db: &UserDb) -> Result<EntryInfo, ConnectError> {
    if let Err(error) = fs_err::symlink_metadata(source) {
        return Err(match error.kind() {
            io::ErrorKind::NotFound => ConnectError::not_found(format!("source file not found: {error}")),
            _ => io_error(&error),
        });
    }
    if let Some(parent) = destination.parent() {
        paths::make_dirs(parent, user).map_err(|error| io_error(&error))?;
    }
    fs_err::rename(source, destination).map_err(|error| io_error(&error))?;
    entry::describe(destination, db).map_err(|error| io_error(&error))
}

/// Removes a file, or a directory with all that is in it. What is missing counts as removed.
pub(super) fn remove(path: &Path) -> Result<(), ConnectError> {
    if path == Path::new("/") {
        return Err(ConnectError::invalid_argument("cannot remove the root directory"));
    }
    let result = match fs_err::symlink_metadata(path) {
        // Of any depth: the standard library's removal would end the agent.
        Ok(found) if found.is_dir() => firkin_files::remove_tree(path),
        Ok(_) => fs_err::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(()),
        Err(error) => Err(error),
    };
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(|error| io_error(&error)),
    }
}

/// The entries of a directory, `depth` levels down, each directory before its contents, names in byte order. Symlinks inside are not
/// followed; `root` itself may be one, and paths are told under `root` as it was named.
pub(super) fn list(root: &Path, depth: u32, db: &UserDb) -> Result<Vec<EntryInfo>, ConnectError> {
    let found = fs_err::metadata(root).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => ConnectError::not_found(format!("path not found: {error}")),
        _ => io_error(&error),
    })?;
    if !found.is_dir() {
        return Err(ConnectError::invalid_argument(format!("path is not a directory: {}", root.display())));
    }
    let mut entries = Vec::new();
    // Directories still to be read, the next one last; a stack, because a path may be deeper than a thread's.
    let mut pending: Vec<(PathBuf, u32)> = names_reversed(root, 1).map_err(|error| io_error(&error))?;
    while let Some((path, level)) = pending.pop() {
        if entries.len() == MAX_ENTRIES {
            return Err(ConnectError::failed_precondition(format!("cannot list more than {MAX_ENTRIES} entries")));
        }
        match entry::describe(&path, db) {
            // Gone since its directory was read, or so deep that no path names it: the rest is there all the same.
            Err(error) if Trouble::of(&error).passes() => continue,
            Err(error) => return Err(io_error(&error)),
            Ok(entry) => entries.push(entry),
        }
        if level < depth && fs_err::symlink_metadata(&path).is_ok_and(|found| found.is_dir()) {
            match names_reversed(&path, level + 1) {
                Err(error) if Trouble::of(&error).passes() => {}
                other => pending.extend(other.map_err(|error| io_error(&error))?),
            }
        }
    }
    Ok(entries)
}

fn names_reversed(dir: &Path, level: u32) -> io::Result<Vec<(PathBuf, u32)>> {
    let mut paths = Vec::new();
    for entry in fs_err::read_dir(dir)? {
        paths.push((entry?.path(), level));
    }
    paths.sort_unstable_by(|left, right| right.cmp(left));
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use rustix::fs::{Mode, OFlags};

    use super::*;

    #[test]
    fn a_listing_is_ordered_bounded_in_depth_and_does_not_follow_links() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs_err::create_dir_all(at("b/c/d")).unwrap();
        fs_err::write(at("a"), "").unwrap();
        fs_err::write(at("b-file"), "").unwrap();
        fs_err::os::unix::fs::symlink(at("b"), at("link")).unwrap();
        let names = |root: &Path, depth| -> Vec<String> {
            let entries = list(root, depth, &UserDb::default()).unwrap();
            entries.iter().map(|entry| Path::new(&entry.path).strip_prefix(root).unwrap().display().to_string()).collect()
        };
        assert_eq!(names(dir.path(), 1), ["a", "b", "b-file", "link"]);
        assert_eq!(names(dir.path(), 2), ["a", "b", "b/c", "b-file", "link"]);
        assert_eq!(names(&at("link"), 5), ["c", "c/d"]);
    }

    #[test]
    fn a_tree_that_is_too_deep_to_name_is_listed_as_far_as_it_can_be() {
        let dir = tempfile::tempdir().unwrap();
        let name = "d".repeat(200);
        let mut inside = rustix::fs::open(dir.path(), OFlags::DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..30 {
            rustix::fs::mkdirat(&inside, &name, Mode::RWXU).unwrap();
            inside = rustix::fs::openat(&inside, &name, OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        let entries = list(dir.path(), u32::MAX, &UserDb::default()).unwrap();
        assert!((15..25).contains(&entries.len()), "{}", entries.len());
        remove(&dir.path().join(&name)).unwrap();
        assert!(list(dir.path(), 1, &UserDb::default()).unwrap().is_empty());
    }

    #[test]
    fn the_depth_of_what_is_removed_takes_no_stack() {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let mut inside = rustix::fs::open(dir.path(), OFlags::DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..15_000 {
            rustix::fs::mkdirat(&inside, "d", Mode::RWXU).unwrap();
            inside = rustix::fs::openat(&inside, "d", OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        let top = dir.path().join("d");
        std::thread::Builder::new().stack_size(256 << 10).spawn(move || remove(&top).unwrap()).unwrap().join().unwrap();
        assert!(!dir.path().join("d").exists());
    }

    #[test]
    fn removing_what_is_missing_is_fine_but_not_the_root() {
        let dir = tempfile::tempdir().unwrap();
        fs_err::create_dir_all(dir.path().join("x/y")).unwrap();
        remove(&dir.path().join("x")).unwrap();
        remove(&dir.path().join("x")).unwrap();
        assert!(!dir.path().join("x").exists());
        assert!(remove(Path::new("/")).is_err());
    }
}
