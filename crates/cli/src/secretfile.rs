//! Secrets of the operator, which come from files and from nowhere else: what stands on a command line or in the environment is seen by
//! other processes, and ends in logs.
//!
//! A file is named by an option, or is a credential that systemd keeps for the service (`LoadCredential=`), found by its name in the
//! directory of `$CREDENTIALS_DIRECTORY`. What other users can read is refused and not only warned of, so that it is noticed on the first
//! day. systemd guards its directory itself and gives the service's user access by the group's bits: there these say nothing.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use fs_err::{self as fs, os::unix::fs::OpenOptionsExt as _};
use nix::fcntl::OFlag;

/// Credential with the API key that a server accepts. Clients are told theirs: a unit's credential of this name may be anybody's.
pub(crate) const API_KEY: &str = "api-key";
/// Credential with the password of the catalogue's user.
pub(crate) const CATALOG_PASSWORD: &str = "catalog-password";
/// Credential with the secret of the cluster.
pub(crate) const CLUSTER_SECRET: &str = "cluster-secret";
/// Credential with the certificate chain for HTTPS, PEM.
pub(crate) const TLS_CERT: &str = "tls-cert";
/// Credential with its private key, PEM.
pub(crate) const TLS_KEY: &str = "tls-key";

/// Largest secret: keys and passwords are far smaller.
const MAX_BYTES: u64 = 64 << 10;

/// The bits that let a group, and others, do anything.
const GROUP: u32 = 0o070;
const OTHERS: u32 = 0o007;

/// A file that holds one secret. It is read when the secret is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SecretFile {
    /// Where it is.
    pub(crate) path: PathBuf,
    /// It is in the directory that systemd keeps for this service.
    kept: bool,
}

/// The credentials that systemd has for this process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Credentials {
    dir: Option<PathBuf>,
    names: BTreeSet<String>,
}

/// Why a secret was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SecretFileError {
    /// It cannot be read.
    #[error("cannot read the secret in `{}`", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A directory, a device, a pipe.
    #[error("cannot use the secret in `{}`: it is not a regular file", .0.display())]
    NotAFile(PathBuf),
    /// Others may read it, or change it.
    #[error("cannot use the secret in `{}`: its mode {mode:o} lets other users in", path.display())]
    Open { path: PathBuf, mode: u32 },
    /// Whoever owns it could change it.
    #[error("cannot use the secret in `{}`: it belongs to user {uid}", path.display())]
    Foreign { path: PathBuf, uid: u32 },
    /// It is not what it is thought to be.
    #[error("cannot use the secret in `{}`: it is longer than {MAX_BYTES} bytes", .0.display())]
    TooLong(PathBuf),
    /// There is nothing in it.
    #[error("cannot use the secret in `{}`: it is empty", .0.display())]
    Empty(PathBuf),
    /// It is not text.
    #[error("cannot use the secret in `{}`: it is not text", .0.display())]
    NotText(PathBuf),
}

impl SecretFileError {
    /// What helps.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Open { path, .. } => {
                Some(format!("`chmod 600 {}`, and change the secret if others may have read it", path.display()))
            }
            Self::Foreign { path, .. } => Some(format!("`chown root {}`", path.display())),
            Self::Read { .. } | Self::NotAFile(_) | Self::TooLong(_) | Self::Empty(_) | Self::NotText(_) => None,
        }
    }
}

impl Credentials {
    /// Those of this process.
    pub(crate) fn of_process() -> Self {
        std::env::var_os("CREDENTIALS_DIRECTORY").map_or_else(Self::default, |dir| Self::within(dir.into()))
    }

    /// Those in `dir`. A directory that cannot be read has none.
    pub(crate) fn within(dir: PathBuf) -> Self {
        let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        Self { dir: Some(dir), names }
    }

    /// The credential of this name, if there is one.
    pub(crate) fn named(&self, name: &str) -> Option<SecretFile> {
        let path = self.dir.as_ref().filter(|_| self.names.contains(name))?.join(name);
        Some(SecretFile { path, kept: true })
    }

    /// A file that the operator names, which may be a credential all the same: `%d/NAME` in a unit.
    pub(crate) fn file(&self, path: &Path) -> SecretFile {
        let kept = self.dir.as_deref() == path.parent() && path.file_name() != Some(OsStr::new(".."));
        SecretFile { path: path.to_owned(), kept }
    }
}

impl SecretFile {
    /// The secret, without the newline that editors and `echo` put at the end.
    pub(crate) fn read(&self) -> Result<String, SecretFileError> {
        let path = || self.path.clone();
        let failed = |source| SecretFileError::Read { path: path(), source };
        // Nobody waits for the other end of a pipe.
        let opened = fs::OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(&self.path);
        let file = opened.map_err(failed)?;
        let meta = file.metadata().map_err(failed)?;
        if !meta.is_file() {
            return Err(SecretFileError::NotAFile(path()));
        }
        let shut = if self.kept { OTHERS } else { GROUP | OTHERS };
        if meta.mode() & shut != 0 {
            return Err(SecretFileError::Open { path: path(), mode: meta.mode() & 0o777 });
        }
        if meta.uid() != 0 && meta.uid() != nix::unistd::geteuid().as_raw() {
            return Err(SecretFileError::Foreign { path: path(), uid: meta.uid() });
        }
        let mut bytes = Vec::new();
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(SecretFileError::TooLong(path()));
        }
        let mut text = String::from_utf8(bytes).map_err(|_| SecretFileError::NotText(path()))?;
        if text.ends_with('\n') {
            text.pop();
        }
        if text.is_empty() { Err(SecretFileError::Empty(path())) } else { Ok(text) }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn write(path: &Path, text: impl AsRef<[u8]>, mode: u32) {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_secret_is_its_file_without_one_newline() {
        let dir = tempfile::tempdir().unwrap();
        let file = Credentials::default().file(&dir.path().join("key"));
        for (text, secret) in [("s3cret\n", "s3cret"), ("s3cret", "s3cret"), (" two\nlines\n\n", " two\nlines\n")] {
            write(&file.path, text, 0o600);
            assert_eq!(file.read().unwrap(), secret);
        }
        let link = Credentials::default().file(&dir.path().join("link"));
        std::os::unix::fs::symlink(&file.path, &link.path).unwrap();
        assert!(link.read().is_ok(), "certificates of Let's Encrypt are links");
    }

    #[test]
    fn what_other_users_can_reach_is_refused_with_what_helps() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let file = Credentials::default().file(&path);
        for mode in [0o640, 0o620, 0o604, 0o602, 0o644, 0o666] {
            write(&path, "s3cret\n", mode);
            let error = file.read().unwrap_err();
            assert!(matches!(error, SecretFileError::Open { mode: found, .. } if found == mode), "{error}");
            assert_eq!(
                error.hint().unwrap(),
                format!("`chmod 600 {}`, and change the secret if others may have read it", path.display())
            );
        }
        for mode in [0o600, 0o400] {
            write(&path, "s3cret\n", mode);
            assert!(file.read().is_ok(), "{mode:o}");
        }
        if nix::unistd::geteuid().is_root() {
            nix::unistd::chown(&path, Some(1.into()), None).unwrap();
            assert!(matches!(file.read(), Err(SecretFileError::Foreign { uid: 1, .. })));
        }
    }

    #[test]
    fn what_is_no_secret_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let file = Credentials::default().file(&path);
        assert!(matches!(file.read(), Err(SecretFileError::Read { .. })));
        for empty in ["", "\n"] {
            write(&path, empty, 0o600);
            assert!(matches!(file.read(), Err(SecretFileError::Empty(_))));
        }
        write(&path, vec![b'x'; 65 << 10], 0o600);
        assert!(matches!(file.read(), Err(SecretFileError::TooLong(_))));
        write(&path, [0xff, 0xfe], 0o600);
        assert!(matches!(file.read(), Err(SecretFileError::NotText(_))));
        assert!(matches!(Credentials::default().file(dir.path()).read(), Err(SecretFileError::NotAFile(_))));
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(matches!(file.read(), Err(SecretFileError::NotAFile(_))), "and nobody waits");
    }

    #[test]
    fn credentials_are_found_by_name_and_guarded_by_who_keeps_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(API_KEY);
        // As systemd gives them to a service with a user of its own.
        write(&path, "s3cret\n", 0o440);
        let credentials = Credentials::within(dir.path().to_owned());
        assert_eq!(credentials.named(API_KEY).unwrap().read().unwrap(), "s3cret");
        assert_eq!(credentials.named(TLS_KEY), None);
        assert_eq!(credentials.file(&path).read().unwrap(), "s3cret");
        assert!(Credentials::default().file(&path).read().is_err());
        write(&path, "s3cret\n", 0o444);
        assert!(matches!(credentials.named(API_KEY).unwrap().read(), Err(SecretFileError::Open { .. })));
        assert_eq!(Credentials::within(dir.path().join("none")).named(API_KEY), None);
    }
}
