//! The `runsc` binary, kept by its digest.
//!
//! A checkpoint is readable by the build that wrote it and by no other. So the binary is copied to where an upgrade of the package does not
//! reach it, with what its release has beside it, and a snapshot is restored with the one that it names.

use std::{
    fs::Permissions,
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use fs_err::os::unix::fs::OpenOptionsExt;

/// The binary's name, in `PATH` and below its digest.
const NAME: &str = "runsc";
/// Where releases from 2026 on have binaries that `runsc` runs, beside it.
const SIDE_DIR: &str = "gvisor-bin";
/// A release has a handful.
const MAX_SIDE_FILES: usize = 64;
/// A build has 30 to 70 MB.
const MAX_BYTES: u64 = 1 << 30;

/// A binary that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Program {
    pub(super) path: PathBuf,
    /// blake3 of it, in hexadecimal digits.
    pub(super) digest: String,
}

impl Program {
    /// Keeps what `found` is now, and what lies beside it, in `pins`, which is the server's alone. Blocks: it reads all of it.
    ///
    /// What is kept stays until whoever knows which snapshots name it has it removed.
    pub(super) fn pin(found: &Path, pins: &Path) -> io::Result<Self> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(pins)?;
        let copy = tempfile::Builder::new().prefix(".new-").permissions(Permissions::from_mode(0o755)).tempdir_in(pins)?;
        let found = fs_err::canonicalize(found)?;
        let digest = digest_of(&found, Some(copy.path()))?;
        if let Ok(kept) = Self::kept(&digest, pins) {
            return Ok(kept);
        }
        let dir = pins.join(&digest);
        if dir.exists() {
            // Of this name and not whole.
            fs_err::remove_dir_all(&dir)?;
        }
        fs_err::File::open(copy.path())?.sync_all()?;
        fs_err::rename(copy.path(), &dir)?;
        Ok(Self { path: dir.join(NAME), digest })
    }

    /// The binary of this digest, if it is kept and whole.
    pub(super) fn kept(digest: &str, pins: &Path) -> io::Result<Self> {
        if !is_digest(digest) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no digest"));
        }
        let path = pins.join(digest).join(NAME);
        if digest_of(&path, None)? != digest {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the binary that is kept is damaged"));
        }
        Ok(Self { path, digest: digest.to_owned() })
    }
}

fn is_digest(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Digests of what is kept beside this one.
pub(super) fn others(but: &Program, pins: &Path) -> io::Result<Vec<String>> {
    let names = fs_err::read_dir(pins)?.map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()));
    names.filter(|name| name.as_ref().map_or(true, |name| is_digest(name) && *name != but.digest)).collect()
}

/// Removes the binary of this digest with all that is beside it. Half of it is none, which a later call removes.
pub(super) fn remove(digest: &str, pins: &Path) -> io::Result<()> {
    if !is_digest(digest) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no digest"));
    }
    match fs_err::remove_dir_all(pins.join(digest)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// What a binary says to this word. A process that was forked while the copy was made has it open for writing, and until that runs something
/// else, nobody can run the copy.
fn asked(program: &Path, word: &str) -> io::Result<Output> {
    /// Between fork and exec of another process are milliseconds.
    const BUSY: std::time::Duration = std::time::Duration::from_secs(5);
    let began = std::time::Instant::now();
    loop {
        match Command::new(program).arg(word).env_clear().stdin(Stdio::null()).output() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && began.elapsed() < BUSY => std::thread::yield_now(),
            told => return told,
        }
    }
}

/// A binary's version by its own word, the first line of `--version`. Blocks.
pub(super) fn version(program: &Path) -> io::Result<String> {
    let told = asked(program, "--version")?;
    let text = String::from_utf8_lossy(&told.stdout);
    let first = text.lines().next().and_then(|line| line.strip_prefix("runsc version "));
    let version = first.map(|version| version.trim().to_owned()).filter(|version| !version.is_empty());
    version.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it does not tell its version"))
}

/// The flags that a binary has, as it lists them. Blocks.
pub(super) fn known_flags(program: &Path) -> io::Result<String> {
    let told = asked(program, "flags")?;
    Ok(String::from_utf8_lossy(&[told.stdout, told.stderr].concat()).into_owned())
}

/// The first binary of this name in `PATH`.
pub(super) fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(NAME)).find(|candidate| candidate.is_file())
}

/// Digest of a file.
pub(super) fn digest(path: &Path) -> io::Result<String> {
    copy_digested(fs_err::File::open(path)?, io::sink())
}

/// Digest of the binary at `program`, or, where a directory of others lies beside it, of all of them with their names. They are copied to
/// `into`, if that is said.
fn digest_of(program: &Path, into: Option<&Path>) -> io::Result<String> {
    let own = keep(program, into.map(|into| into.join(NAME)))?;
    let beside = program.with_file_name(SIDE_DIR);
    let mut names = match fs_err::read_dir(&beside) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.file_name())).collect::<io::Result<Vec<_>>>()?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(own),
        Err(error) => return Err(error),
    };
    if names.len() > MAX_SIDE_FILES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "there are too many files beside `runsc`"));
    }
    if let Some(into) = into {
        fs_err::create_dir(into.join(SIDE_DIR))?;
    }
    names.sort();
    let mut hasher = blake3::Hasher::new();
    hasher.update(own.as_bytes());
    for name in names {
        let digest = keep(&beside.join(&name), into.map(|into| into.join(SIDE_DIR).join(&name)))?;
        hasher.update(name.as_encoded_bytes()).update(b"\0").update(digest.as_bytes());
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// Digest of a file, which is copied to `to`, if that is said. A sandbox runs it anew, as its own user.
fn keep(from: &Path, to: Option<PathBuf>) -> io::Result<String> {
    let file = fs_err::OpenOptions::new().read(true).custom_flags(nix::libc::O_NOFOLLOW).open(from)?;
    let Some(to) = to else { return copy_digested(file.take(MAX_BYTES), io::sink()) };
    let mut copy = fs_err::OpenOptions::new().write(true).create_new(true).mode(0o755).open(to)?;
    let digest = copy_digested(file.take(MAX_BYTES), &mut copy)?;
    copy.set_permissions(Permissions::from_mode(0o555))?;
    copy.sync_all()?;
    Ok(digest)
}

fn copy_digested(mut from: impl Read, mut to: impl Write) -> io::Result<String> {
    let (mut hasher, mut buffer) = (blake3::Hasher::new(), vec![0; 1 << 20]);
    loop {
        match from.read(&mut buffer)? {
            0 => break,
            count => {
                hasher.update(&buffer[..count]);
                to.write_all(&buffer[..count])?;
            }
        }
    }
    to.flush()?;
    Ok(hasher.finalize().to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_that_somebody_still_has_open_is_run_when_it_can_be() {
        let dir = tempfile::tempdir().unwrap();
        let found = dir.path().join("found");
        fs_err::write(&found, "#!/bin/sh\necho runsc version 7\n").unwrap();
        let program = Program::pin(&found, &dir.path().join("engines")).unwrap();
        fs_err::set_permissions(&program.path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let open = fs_err::OpenOptions::new().append(true).open(&program.path).unwrap();
        let refused = Command::new(&program.path).status().unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ExecutableFileBusy);
        let asked = std::thread::spawn(move || version(&program.path));
        drop(open);
        assert_eq!(asked.join().unwrap().unwrap(), "7");
    }

    #[test]
    fn a_binary_outlives_its_upgrade_and_a_damaged_one_is_not_run() {
        let dir = tempfile::tempdir().unwrap();
        let (found, pins) = (dir.path().join("found"), dir.path().join("engines"));
        fs_err::write(&found, "one").unwrap();
        let one = Program::pin(&found, &pins).unwrap();
        assert_eq!(Program::pin(&found, &pins).unwrap(), one, "it is kept once");
        fs_err::write(&found, "two").unwrap();
        let two = Program::pin(&found, &pins).unwrap();
        assert_ne!(one.digest, two.digest);
        assert_eq!(Program::kept(&one.digest, &pins).unwrap(), one);
        assert_eq!(fs_err::read(&one.path).unwrap(), b"one");
        assert_eq!(fs_err::read_dir(&pins).unwrap().count(), 2, "no copy is left");
        fs_err::remove_file(&one.path).unwrap();
        fs_err::write(&one.path, "three").unwrap();
        assert!(Program::kept(&one.digest, &pins).is_err());
        assert!(Program::kept("../two", &pins).is_err());
        assert!(remove("../two", &pins).is_err());
        assert_eq!(others(&two, &pins).unwrap(), std::slice::from_ref(&one.digest));
        remove(&one.digest, &pins).unwrap();
        remove(&one.digest, &pins).expect("it is gone already");
        assert_eq!((others(&two, &pins).unwrap().len(), Program::kept(&two.digest, &pins).unwrap()), (0, two));
        fs_err::write(&found, "one").unwrap();
        assert_eq!(Program::pin(&found, &pins).unwrap(), one, "one that is damaged is made anew");
        assert_eq!(Program::kept(&one.digest, &pins).unwrap(), one);
    }

    #[test]
    fn what_a_release_has_beside_its_binary_is_kept_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let (found, beside, pins) = (dir.path().join("runsc"), dir.path().join(SIDE_DIR), dir.path().join("engines"));
        fs_err::write(&found, "runsc").unwrap();
        let alone = Program::pin(&found, &pins).unwrap();
        fs_err::create_dir(&beside).unwrap();
        fs_err::write(beside.join("gofer"), "#!/bin/sh\necho kept\n").unwrap();
        let whole = Program::pin(&found, &pins).unwrap();
        assert_ne!(whole.digest, alone.digest, "it is another program");
        fs_err::remove_dir_all(&beside).unwrap();
        let gofer = whole.path.with_file_name(SIDE_DIR).join("gofer");
        assert_eq!(asked(&gofer, "").unwrap().stdout, b"kept\n", "it can be run");
        assert_eq!(Program::kept(&whole.digest, &pins).unwrap(), whole);
        fs_err::remove_file(&gofer).unwrap();
        assert!(Program::kept(&whole.digest, &pins).is_err(), "one without its parts is damaged");
    }
}
