//! The meaning of a path in a request: `~`, relative paths, the default directory; and making the directories above it.

use std::{
    io,
    os::unix::fs::{DirBuilderExt, lchown},
    path::{Component, Path, PathBuf},
};

use super::users::User;

/// Why a path cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PathError {
    /// `~name` is somebody else's home, which is not expanded.
    #[error("cannot expand user-specific home directory in `{0}`")]
    OtherHome(String),
    /// A NUL byte cannot be part of a path.
    #[error("cannot use a path with a NUL byte")]
    Nul,
    /// Longer than Linux takes.
    #[error("cannot use a path of {0} bytes")]
    TooLong(usize),
}

/// PATH_MAX of Linux.
const MAX_PATH_BYTES: usize = 4096;

/// The absolute path that `path` means for `user`. Empty means the default directory, or home when there is none.
pub(crate) fn resolve(path: &str, user: &User, default_dir: Option<&str>) -> Result<PathBuf, PathError> {
    if path.contains('\0') {
        return Err(PathError::Nul);
    }
    if path.len() > MAX_PATH_BYTES {
        return Err(PathError::TooLong(path.len()));
    }
    let path = if path.is_empty() { default_dir.unwrap_or_default() } else { path };
    let expanded = match path.strip_prefix('~') {
        None => PathBuf::from(path),
        Some(rest) if rest.is_empty() || rest.starts_with('/') => user.home.join(rest.trim_start_matches('/')),
        Some(_) => return Err(PathError::OtherHome(path.to_owned())),
    };
    Ok(clean(&user.home.join(expanded)))
}

/// The path without `.`, `..`, doubled and trailing slashes, by its text alone.
pub(crate) fn clean(path: &Path) -> PathBuf {
    let mut out = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => {
                out.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    out
}

/// Makes `path` and what is missing above it, each new directory owned by `user` with mode 755.
pub(crate) fn make_dirs(path: &Path, user: &User) -> io::Result<()> {
    match fs_err::metadata(path) {
        Ok(found) if found.is_dir() => return Ok(()),
        Ok(_) => return Err(io::Error::new(io::ErrorKind::NotADirectory, format!("path is a file: {}", path.display()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    if let Some(parent) = path.parent() {
        make_dirs(parent, user)?;
    }
    match std::fs::DirBuilder::new().mode(0o755).create(path) {
        // Somebody else was quicker; whoever made it owns it.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => make_dirs_again(path),
        Err(error) => Err(error),
        Ok(()) => lchown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())),
    }
}

/// After a lost race: fine if the winner made a directory.
fn make_dirs_again(path: &Path) -> io::Result<()> {
    if fs_err::metadata(path)?.is_dir() { Ok(()) } else { Err(io::ErrorKind::NotADirectory.into()) }
}

#[cfg(test)]
mod tests {
    use nix::unistd::{Gid, Uid};

    use super::*;

    fn user() -> User {
        User {
            name: "user".to_owned(),
            uid: Uid::from_raw(1000),
            gid: Gid::from_raw(1000),
            groups: Vec::new(),
            home: PathBuf::from("/home/user"),
            shell: "/bin/sh".to_owned(),
        }
    }

    #[test]
    fn paths_mean_what_the_contract_says() {
        for (path, default_dir, expected) in [
            ("/a/b", None, "/a/b"),
            ("/a//b/./c/", None, "/a/b/c"),
            ("a", None, "/home/user/a"),
            ("../x", None, "/home/x"),
            ("~", None, "/home/user"),
            ("~/a", None, "/home/user/a"),
            ("", None, "/home/user"),
            ("", Some("/work"), "/work"),
            ("a", Some("/work"), "/home/user/a"),
            ("/../..", None, "/"),
        ] {
            assert_eq!(resolve(path, &user(), default_dir).unwrap(), Path::new(expected), "{path}");
        }
        assert!(matches!(resolve("~other/x", &user(), None), Err(PathError::OtherHome(_))));
        assert!(matches!(resolve("a\0b", &user(), None), Err(PathError::Nul)));
    }
}
