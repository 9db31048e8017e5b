//! The cluster's secret: 32 bytes that every node has, and nobody else. Whoever has it is a node: it makes the key that signs nodes'
//! certificates, the key that seals what all nodes may open, and a tag by which two nodes see that theirs is the same.
//!
//! ```text
//!   secret ─ HKDF-SHA256 ─┬─ "authority"   ─► Ed25519 seed of the certificate authority (`certificate.rs`)
//!                         ├─ "seal"        ─► key for secrets in the catalogue (`sealed.rs`)
//!                         └─ "fingerprint" ─► tag, which tells nothing of the secret
//! ```
//!
//! The file holds it as 64 hexadecimal digits and is its owner's alone, as key files of an installation are: it may be copied to another
//! host, be a credential of systemd, or be made by `openssl rand -hex 32`.

use std::{
    fmt, io,
    io::Read as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use firkin_files::private;
use fs_err as fs;
use ring::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};
use zeroize::Zeroizing;

/// Bytes of the secret, and of each key that is made of it.
pub const SECRET_BYTES: usize = 32;

/// Bytes of the tag: two secrets have the same one by no chance that anybody will see.
const FINGERPRINT_BYTES: usize = 16;

/// Longest file that is read: the digits, and some blanks.
const MAX_FILE_BYTES: u64 = (SECRET_BYTES * 2 + 16) as u64;

/// Bits of everybody but the owner.
const OTHERS: u32 = 0o077;

/// Sets what is derived here apart from what anybody else derives of the same bytes.
const SALT: &[u8] = b"firkin cluster 1";

/// Why the secret of a cluster cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file could not be read, or written.
    #[error("cannot use the cluster's secret `{}`", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is one already, which a new one would replace.
    #[error("cannot make a new secret in `{}`: there is a file already; each node of the cluster has to have the same", path.display())]
    Exists {
        /// Which one.
        path: PathBuf,
    },
    /// Others than its owner may read or write it.
    #[error("the cluster's secret `{}` may be used by others than its owner (mode {mode:o}); `chmod 600` makes it its owner's", path.display())]
    TooOpen {
        /// Which one.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It is not 32 bytes in hexadecimal.
    #[error(
        "the cluster's secret `{}` does not hold {} hexadecimal digits; copy the file of another node, or make one with `firkin cluster found`",
        path.display(),
        SECRET_BYTES * 2
    )]
    Malformed {
        /// Which one.
        path: PathBuf,
    },
}

/// The secret of a cluster.
#[derive(Clone)]
pub struct ClusterSecret(Zeroizing<[u8; SECRET_BYTES]>);

impl fmt::Debug for ClusterSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterSecret")
    }
}

impl ClusterSecret {
    /// A new one, in a new file that only its owner may read. Durable when this returns.
    pub fn create(path: &Path) -> Result<Self, SecretError> {
        let failed = |source| SecretError::File { path: path.to_owned(), source };
        match fs::symlink_metadata(path) {
            Ok(_) => return Err(SecretError::Exists { path: path.to_owned() }),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            Err(_) => {}
        }
        let mut bytes = Zeroizing::new([0; SECRET_BYTES]);
        getrandom::fill(&mut *bytes).expect("the kernel's random generator works");
        let text = Zeroizing::new(format!("{}\n", *hex(&bytes[..])));
        private::replace(path, text.as_bytes(), private::PRIVATE).map_err(failed)?;
        Ok(Self(bytes))
    }

    /// The one in this file.
    pub fn read(path: &Path) -> Result<Self, SecretError> {
        let failed = |source| SecretError::File { path: path.to_owned(), source };
        let malformed = || SecretError::Malformed { path: path.to_owned() };
        let file = fs::File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if metadata.mode() & OTHERS != 0 {
            return Err(SecretError::TooOpen { path: path.to_owned(), mode: metadata.mode() & 0o777 });
        }
        if metadata.len() > MAX_FILE_BYTES {
            return Err(malformed());
        }
        // As large as it may become: a buffer that grows leaves copies behind.
        let mut text = Zeroizing::new(Vec::with_capacity(usize::try_from(MAX_FILE_BYTES).expect("some dozen bytes")));
        file.take(MAX_FILE_BYTES).read_to_end(&mut text).map_err(failed)?;
        Self::parse(&text, path)
    }

    /// The one that this text is, which was read from a file by whoever knows who may read that.
    pub fn parse(text: &[u8], path: &Path) -> Result<Self, SecretError> {
        of_hex(text.trim_ascii()).map(Self).ok_or_else(|| SecretError::Malformed { path: path.to_owned() })
    }

    /// The seed of the key that signs nodes' certificates.
    pub(crate) fn authority(&self) -> Zeroizing<[u8; SECRET_BYTES]> {
        self.derive(b"authority")
    }

    /// The key that seals what all nodes may open.
    pub(crate) fn seal(&self) -> Zeroizing<[u8; SECRET_BYTES]> {
        self.derive(b"seal")
    }

    /// By what two nodes see that they have the same: 32 hexadecimal digits, which tell nothing of it.
    pub fn fingerprint(&self) -> String {
        hex(&*self.derive::<FINGERPRINT_BYTES>(b"fingerprint")).to_string()
    }

    fn derive<const N: usize>(&self, what: &[u8]) -> Zeroizing<[u8; N]> {
        let key: Prk = Salt::new(HKDF_SHA256, SALT).extract(&*self.0);
        let mut derived = Zeroizing::new([0; N]);
        let info = [what];
        let made = key.expand(&info, Bytes(N)).and_then(|key| key.fill(&mut *derived));
        made.expect("less is asked for than HKDF gives");
        derived
    }
}

/// So many bytes of HKDF.
struct Bytes(usize);

impl KeyType for Bytes {
    fn len(&self) -> usize {
        self.0
    }
}

fn hex(bytes: &[u8]) -> Zeroizing<String> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = Zeroizing::new(String::with_capacity(bytes.len() * 2));
    for byte in bytes {
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from(DIGITS[usize::from(digit)]));
        }
    }
    text
}

fn of_hex(text: &[u8]) -> Option<Zeroizing<[u8; SECRET_BYTES]>> {
    let mut bytes = Zeroizing::new([0; SECRET_BYTES]);
    if text.len() != 2 * SECRET_BYTES {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        for digit in pair {
            let value = u8::try_from(char::from(*digit).to_digit(16)?).ok()?;
            *byte = *byte << 4 | value;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_secret_is_made_once_and_is_the_same_wherever_it_is_copied_to() {
        let dir = tempfile::tempdir().unwrap();
        let (path, copy) = (dir.path().join("cluster.secret"), dir.path().join("copy"));
        let made = ClusterSecret::create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(matches!(ClusterSecret::create(&path), Err(SecretError::Exists { .. })));
        fs::copy(&path, &copy).unwrap();
        for read in [ClusterSecret::read(&path).unwrap(), ClusterSecret::read(&copy).unwrap()] {
            assert_eq!(read.fingerprint(), made.fingerprint());
            assert_eq!(read.authority(), made.authority());
        }
        let other = ClusterSecret::create(&dir.path().join("other")).unwrap();
        assert_ne!(other.fingerprint(), made.fingerprint());
        // What is derived for one purpose is nothing of another's, and nothing that is shown has the secret in it.
        let keys = [made.authority().to_vec(), made.seal().to_vec(), made.0.to_vec()];
        assert!(keys[0] != keys[1] && keys[1] != keys[2] && keys[0] != keys[2]);
        let shown = format!("{made:?} {}", made.fingerprint());
        assert!(keys.iter().all(|key| !shown.contains(&hex(&key[..8])[..])));
    }

    #[test]
    fn what_is_derived_never_changes() {
        // Nodes of two versions have to understand each other: these values, which another implementation gave, are for ever.
        let secret = ClusterSecret(Zeroizing::new([7; SECRET_BYTES]));
        assert_eq!(secret.fingerprint(), FINGERPRINT);
        assert_eq!(&hex(&secret.authority()[..])[..16], AUTHORITY);
        assert_eq!(&hex(&secret.seal()[..])[..16], SEAL);
    }

    const FINGERPRINT: &str = "ccc6801ba762d81337ba2d8688514a9b";
    const AUTHORITY: &str = "9585780577ba775d";
    const SEAL: &str = "e5f62720e63eb970";

    #[test]
    fn a_file_that_is_too_open_or_of_another_size_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        let put = |text: &str, mode| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            ClusterSecret::read(&path)
        };
        let digits = "0f".repeat(SECRET_BYTES);
        put(&digits, 0o600).unwrap();
        put(&format!("{digits}\n"), 0o400).unwrap();
        for mode in [0o640, 0o604, 0o620, 0o601] {
            let refused = put(&digits, mode).unwrap_err();
            assert!(matches!(refused, SecretError::TooOpen { mode: found, .. } if found == mode), "{refused}");
            assert!(refused.to_string().contains(path.to_str().unwrap()));
        }
        for text in ["", "\n", &digits[2..], &format!("{digits}0f"), &"g".repeat(64), &"0 ".repeat(32), &digits.repeat(40)] {
            let refused = put(text, 0o600).unwrap_err();
            assert!(matches!(refused, SecretError::Malformed { .. }), "{text:?}");
            assert!(!format!("{refused:?}").contains(&digits[..32]));
        }
        assert!(matches!(ClusterSecret::read(&dir.path().join("none")), Err(SecretError::File { .. })));
    }
}
