//! The `runsc` binary, kept by its digest.
//!
//! A checkpoint is readable by the build that wrote it and by no other. So the binary is copied to where an upgrade of the package does not
//! reach it, and a snapshot is restored with the one that it names.

use std::{
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use fs_err::os::unix::fs::OpenOptionsExt;

/// The binary's name, in `PATH` and below its digest.
const NAME: &str = "runsc";
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
    /// Keeps what `found` is now in `pins`, which is the server's alone. Blocks: it reads the binary.
    pub(super) fn pin(found: &Path, pins: &Path) -> io::Result<Self> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(pins)?;
        let mut copy = tempfile::Builder::new().prefix(".new-").tempfile_in(pins)?;
        let digest = copy_digested(fs_err::File::open(found)?.take(MAX_BYTES), copy.as_file_mut())?;
        if let Ok(kept) = Self::kept(&digest, pins) {
            return Ok(kept);
        }
        let dir = pins.join(&digest);
        fs_err::create_dir_all(&dir)?;
        // A sandbox runs it anew, as its own user.
        copy.as_file().set_permissions(std::fs::Permissions::from_mode(0o555))?;
        copy.as_file().sync_all()?;
        // Closed for writing before it is run.
        copy.into_temp_path().persist(dir.join(NAME)).map_err(|error| error.error)?;
        Ok(Self { path: dir.join(NAME), digest })
    }

    /// The binary of this digest, if it is kept and whole.
    pub(super) fn kept(digest: &str, pins: &Path) -> io::Result<Self> {
        if digest.len() != 64 || !digest.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no digest"));
        }
        let path = pins.join(digest).join(NAME);
        let found =
            copy_digested(fs_err::OpenOptions::new().read(true).custom_flags(nix::libc::O_NOFOLLOW).open(&path)?, io::sink())?;
        if found != digest {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the binary that is kept is damaged"));
        }
        Ok(Self { path, digest: found })
    }

    /// Its version by its own word, the first line of `--version`. Blocks.
    pub(super) fn version(&self) -> io::Result<String> {
        let told = Command::new(&self.path).arg("--version").env_clear().stdin(Stdio::null()).output()?;
        let text = String::from_utf8_lossy(&told.stdout);
        let first = text.lines().next().and_then(|line| line.strip_prefix("runsc version "));
        let version = first.map(|version| version.trim().to_owned()).filter(|version| !version.is_empty());
        version.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it does not tell its version"))
    }
}

/// The flags that it has, as it lists them. Blocks.
pub(super) fn known_flags(program: &Program) -> io::Result<String> {
    let told = Command::new(&program.path).arg("flags").env_clear().stdin(Stdio::null()).output()?;
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
    }
}
