//! The place that a root file system is seen in while it is put together.
//!
//! It is a directory outside the cache, held by a lock on itself: a build that is killed loses the lock and leaves an empty directory,
//! which the next build takes away.

use std::{
    fs::File,
    io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use fs_err as fs;
use nix::fcntl::{Flock, FlockArg};

use crate::command::command;

/// Where these directories are made. All may pass through it, and it is always there.
pub(crate) const PARENT: &str = "/run";

const PREFIX: &str = "firkin-tree-";

/// How often a new one is made because a sweep took it before it was held. Each time another process has to begin at that instant.
const ATTEMPTS: usize = 8;

const ENTER_TREE: &str = r#"mkdir -p -m 0755 -- "$1" && chmod 0755 -- "$1" && mount --bind -- "$1" "$2" && shift 2 && exec "$@""#;

/// Where the tree is seen by the programs that make it, and by nobody else: apt's downloader, which has no privileges, cannot pass
/// through the directory that the tree is in. It is new and empty, so that the tree hides nothing: whatever stands in the cache
/// or in apt's sources may be anywhere.
pub(crate) struct MountPoint {
    path: PathBuf,
    #[expect(dead_code, reason = "held, not read")]
    lock: Flock<File>,
}

impl MountPoint {
    /// A new one, after what killed builds left is gone.
    pub(crate) fn new(parent: &Path) -> io::Result<Self> {
        sweep(parent)?;
        for _ in 0..ATTEMPTS {
            let made = tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent)?;
            let path = made.keep();
            // Another's sweep may take it until it is held, and holds it meanwhile.
            if let Ok(lock) = hold(&path, FlockArg::LockExclusive)
                && lock.metadata()?.nlink() > 0
            {
                fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
                return Ok(Self { path, lock });
            }
        }
        Err(io::Error::new(io::ErrorKind::ResourceBusy, "other builds remove it again and again"))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A command that has `tree` here, in namespaces of its own: its mounts are seen by nobody else, and its processes all die
    /// with it.
    pub(crate) fn enter(&self, tree: &Path) -> tokio::process::Command {
        let mut enter = command("unshare");
        enter.args(["--mount", "--mount-proc", "--pid", "--fork", "--kill-child", "--"]);
        enter.args(["sh", "-c", ENTER_TREE, "sh"]).arg(tree).arg(&self.path);
        enter
    }
}

impl Drop for MountPoint {
    /// Takes away the directory and never what is in it. Nothing is, in our namespace.
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.path) {
            tracing::warn!(%error, "cannot remove the directory that a root file system was built in");
        }
    }
}

/// Removes those that nobody holds. One that is not empty stays: no build of ours leaves any such.
fn sweep(parent: &Path) -> io::Result<()> {
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        if !entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()) || !entry.file_type()?.is_dir() {
            continue;
        }
        let Ok(_held) = hold(&entry.path(), FlockArg::LockExclusiveNonblock) else { continue };
        if let Err(error) = fs::remove_dir(entry.path())
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "cannot remove what a killed build left behind; the next build tries again");
        }
    }
    Ok(())
}

fn hold(path: &Path, how: FlockArg) -> io::Result<Flock<File>> {
    let directory = fs::File::open(path)?.into_parts().0;
    Flock::lock(directory, how).map_err(|(_, errno)| errno.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_seen_in_a_place_of_its_own_that_does_not_stay() {
        let parent = tempfile::tempdir().unwrap();
        let (one, two) = (MountPoint::new(parent.path()).unwrap(), MountPoint::new(parent.path()).unwrap());
        for seen in [&one, &two] {
            assert!(seen.path.parent() == Some(parent.path()) && fs::read_dir(&seen.path).unwrap().next().is_none());
            assert_eq!(fs::metadata(&seen.path).unwrap().permissions().mode() & 0o777, 0o755);
        }
        let enter = one.enter(Path::new("/mnt/cache/tree"));
        let arguments: Vec<_> = enter.as_std().get_args().skip_while(|argument| *argument != "sh").skip(3).collect();
        assert_eq!(arguments, ["sh".as_ref(), "/mnt/cache/tree".as_ref(), one.path.as_os_str()]);
        drop(one);
        drop(two);
        assert!(fs::read_dir(parent.path()).unwrap().next().is_none());
    }

    #[test]
    fn what_a_killed_build_left_goes_with_the_next_and_nothing_else_does() {
        let parent = tempfile::tempdir().unwrap();
        let at = |name: &str| parent.path().join(name);
        for name in ["firkin-tree-killed", "firkin-tree-full", "firkin-tree-full/kept", "another"] {
            fs::create_dir(at(name)).unwrap();
        }
        fs::write(at("firkin-tree-file"), "").unwrap();
        let one = MountPoint::new(parent.path()).unwrap();
        let two = MountPoint::new(parent.path()).unwrap();
        assert!(one.path.exists() && two.path.exists(), "a build does not take another's away");
        assert!(!at("firkin-tree-killed").exists());
        for name in ["firkin-tree-full/kept", "firkin-tree-file", "another"] {
            assert!(at(name).exists(), "{name}");
        }
    }
}
