//! Small files of `/etc` and `/run/e2b` that say who the machine is.
//!
//! They live in memory and are bound over those of the disk, as container engines do it: a restore rewrites them with a handful of
//! system calls and no disk page, where a rename on the disk is most of what an emulated guest does to become somebody. What
//! programs write to them stays in them until the next restore says otherwise.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
    path::Path,
};

use fs_err::os::unix::fs::OpenOptionsExt;
use nix::mount::{MsFlags, mount};

/// The number of this life, in decimal digits and a newline. It only grows, and each restore writes it before user code hears
/// anything: a program that keeps secrets compares it, or watches it with inotify, to learn that its memory has been cloned.
pub(super) const EPOCH_FILE: &str = "/run/firkin/epoch";

/// Where the files are; root's alone to write.
const DIRECTORY: &str = "/run/firkin/etc";

/// Where programs that know E2B look for where they are; a file for each variable of that name.
const E2B_DIRECTORY: &str = "/run/e2b";

/// The most that is taken over of a file of the disk.
const MAX_BYTES: u64 = 64 << 10;

/// One file, held open: whatever is mounted or renamed later, it is the one that was bound.
#[derive(Debug)]
pub(super) struct Bound(File);

/// All of them.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) hostname: Bound,
    pub(super) hosts: Bound,
    pub(super) machine_id: Bound,
    pub(super) resolv_conf: Bound,
    pub(super) epoch: Bound,
    pub(super) sandbox_id: Bound,
    pub(super) template_id: Bound,
}

impl Files {
    /// Binds a file of our own over each file of `/etc`, with the same content.
    pub(super) fn bind() -> io::Result<Self> {
        let directory = Path::new(DIRECTORY);
        fs_err::create_dir_all(directory)?;
        let bound = |name: &str| {
            let (own, shown) = (directory.join(name), Path::new("/etc").join(name));
            let file = Bound::create(&own, &take_over(&shown)?)?;
            mount(Some(&own), &shown, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
            Ok::<_, io::Error>(file)
        };
        let e2b = Path::new(E2B_DIRECTORY);
        fs_err::create_dir_all(e2b)?;
        Bound::create(&e2b.join(".E2B_SANDBOX"), b"true")?;
        Ok(Self {
            hostname: bound("hostname")?,
            hosts: bound("hosts")?,
            machine_id: bound("machine-id")?,
            resolv_conf: bound("resolv.conf")?,
            epoch: Bound::create(Path::new(EPOCH_FILE), b"0\n")?,
            sandbox_id: Bound::create(&e2b.join(".E2B_SANDBOX_ID"), b"")?,
            template_id: Bound::create(&e2b.join(".E2B_TEMPLATE_ID"), b"")?,
        })
    }
}

/// Makes `path` a plain file that can be bound over, and gives what it holds. Images have links there, to services that do not
/// run here.
fn take_over(path: &Path) -> io::Result<Vec<u8>> {
    match fs_err::symlink_metadata(path) {
        Ok(found) if found.is_file() => {
            let mut content = Vec::new();
            fs_err::File::open(path)?.take(MAX_BYTES).read_to_end(&mut content)?;
            return Ok(content);
        }
        Ok(_) => fs_err::remove_file(path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    fs_err::OpenOptions::new().write(true).create_new(true).mode(0o644).open(path)?;
    Ok(Vec::new())
}

impl Bound {
    fn create(path: &Path, content: &[u8]) -> io::Result<Self> {
        let mut options = fs_err::OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(true).mode(0o644).open(path)?.into_file();
        file.write_all_at(content, 0)?;
        Ok(Self(file))
    }

    /// Makes the file hold `content`. Its length is asked for, never cut to what it is: a clone's files are mostly as long as those
    /// of the template.
    pub(super) fn put(&self, content: &str) -> io::Result<()> {
        self.0.write_all_at(content.as_bytes(), 0)?;
        if self.0.metadata()?.len() != content.len() as u64 {
            self.0.set_len(content.len() as u64)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_old_stays_behind_what_is_new() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hosts");
        let file = Bound::create(&path, b"as the image had it").unwrap();
        file.put("a longer text than that of the image").unwrap();
        assert_eq!(fs_err::read_to_string(&path).unwrap(), "a longer text than that of the image");
        file.put("short").unwrap();
        assert_eq!(fs_err::read_to_string(&path).unwrap(), "short");
    }

    #[test]
    fn a_link_is_replaced_never_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (target, link, missing) = (dir.path().join("target"), dir.path().join("link"), dir.path().join("missing"));
        fs_err::write(&target, "elsewhere").unwrap();
        fs_err::os::unix::fs::symlink(&target, &link).unwrap();
        assert_eq!(take_over(&target).unwrap(), b"elsewhere");
        assert_eq!(take_over(&link).unwrap(), b"");
        assert_eq!(take_over(&missing).unwrap(), b"");
        assert!(fs_err::symlink_metadata(&link).unwrap().is_file() && fs_err::symlink_metadata(&missing).unwrap().is_file());
        assert_eq!(fs_err::read_to_string(&target).unwrap(), "elsewhere");
    }
}
