//! What things are called in a store of copies. Every name is made here, of parts that were checked: nothing that a store or a
//! manifest says becomes a path as it is.

use std::{fmt, str::FromStr};

use object_store::path::Path;
use serde::{Deserialize, Serialize};

/// The longest name of a record: an id, or a time.
const MAX_NAME_BYTES: usize = 64;

/// A BLAKE3 digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

/// A text that is no name for a copy.
#[derive(Debug, thiserror::Error)]
pub enum NameError {
    /// It is not the digest of anything.
    #[error("a digest has 64 digits of 0 to 9 and a to f")]
    Digest,
    /// It is no name.
    #[error("a name has 1 to {MAX_NAME_BYTES} letters, digits, `-` and `_`")]
    Name,
}

impl Digest {
    /// The digest of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self::from(blake3::hash(bytes))
    }
}

impl From<blake3::Hash> for Digest {
    fn from(hash: blake3::Hash) -> Self {
        Self(hash.into())
    }
}

impl FromStr for Digest {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let lower = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let hash = blake3::Hash::from_hex(text).ok().filter(|_| lower);
        hash.map(Self::from).ok_or(NameError::Digest)
    }
}

impl TryFrom<String> for Digest {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from(self.0).to_hex())
    }
}

/// A file by what is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Blob {
    /// Of the plain bytes.
    pub blake3: Digest,
    /// How many these are, holes included.
    pub bytes: u64,
}

impl Blob {
    pub(crate) fn path(&self) -> Path {
        blob_path(&self.blake3)
    }
}

pub(crate) fn blob_path(digest: &Digest) -> Path {
    Path::from_iter([BLOBS, &digest.to_string()])
}

/// The name of a record: an artifact's id, or the time of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(String);

impl Name {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        if plain && (1..=MAX_NAME_BYTES).contains(&text.len()) { Ok(Self(text.to_owned())) } else { Err(NameError::Name) }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

pub(crate) const BLOBS: &str = "blobs";
pub(crate) const ARTIFACTS: &str = "artifacts";
pub(crate) const CATALOGUE: &str = "catalogue";
pub(crate) const MANIFEST: &str = "manifest.json";
pub(crate) const ARCHIVE: &str = "archive.json";

/// A small file of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// What an artifact is. Written last: an artifact that has one is there whole.
    Manifest(Name),
    /// What its members must be.
    Integrity(Name),
    /// Which blobs its members are, and what their files are called.
    Files(Name),
    /// A backup of the catalogue.
    Catalogue(Name),
    /// What an archive says of itself whose contents are all there. Written last.
    Archive(Name),
    /// Whose copies these are.
    Installation,
}

impl Record {
    pub(crate) fn path(&self) -> Path {
        match self {
            Self::Manifest(name) => Path::from_iter([ARTIFACTS, name.as_str(), MANIFEST]),
            Self::Integrity(name) => Path::from_iter([ARTIFACTS, name.as_str(), "integrity.json"]),
            Self::Files(name) => Path::from_iter([ARTIFACTS, name.as_str(), "files.json"]),
            Self::Archive(name) => Path::from_iter([ARTIFACTS, name.as_str(), ARCHIVE]),
            Self::Catalogue(name) => Path::from_iter([CATALOGUE, &format!("{name}.json")]),
            Self::Installation => Path::from("installation.json"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain() {
        for bad in ["", ".", "..", "a/b", "a.json", "a\0", "ä", "a b", &"x".repeat(65)] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
        let name: Name = "20261130T081500123Z".parse().unwrap();
        assert_eq!(Record::Catalogue(name).path().as_ref(), "catalogue/20261130T081500123Z.json");
        let hex = Digest::of(b"x").to_string();
        assert_eq!(hex.parse::<Digest>().unwrap(), Digest::of(b"x"));
        for bad in [hex.to_uppercase(), hex[1..].to_owned(), format!("{hex}0"), format!("../{}", &hex[3..])] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
        assert_eq!(Blob { blake3: Digest::of(b"x"), bytes: 1 }.path().as_ref(), format!("blobs/{hex}"));
    }
}
