//! What is written beside blobs: which of them an artifact's members are, and which a backup of the catalogue is.
//!
//! Old readers' rule: fields are only ever added, and are optional when they are; anything else raises [`FORMAT`].

use std::collections::BTreeMap;

use firkin_copies::{Blob, CopyError, Damage, Record};
use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::ground::random;

/// Keys of an installation, which are not copied: its owner keeps them, and puts them back.
pub(crate) const KEY_FILES: [&str; 4] = ["encryption.key", "secrets.key", "workload.key", "egress-authority.pem"];

/// The version of these records.
pub(crate) const FORMAT: u32 = 1;

/// Which blobs an artifact is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Files {
    /// [`FORMAT`].
    pub(crate) format: u32,
    /// Its own members and its layers, by the names that they have in the integrity record.
    pub(crate) members: BTreeMap<String, CopiedFile>,
    /// The image that its disk stands on.
    pub(crate) root: CopiedFile,
    /// The wrapped keys of what of it is sealed, by what they open. Those of the catalogue's backup go before them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) keys: BTreeMap<String, String>,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CopiedFile {
    /// What it was called, without its directory.
    pub(crate) file: String,
    /// What is in it.
    #[serde(flatten)]
    pub(crate) blob: Blob,
}

impl Files {
    pub(crate) fn of(root: CopiedFile) -> Self {
        Self { format: FORMAT, members: BTreeMap::new(), root, keys: BTreeMap::new() }
    }

    /// Every blob of it.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = Blob> {
        self.members.values().chain([&self.root]).map(|file| file.blob)
    }
}

/// A backup of the catalogue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Backup {
    /// [`FORMAT`].
    pub(crate) format: u32,
    /// When.
    pub(crate) taken_at: Timestamp,
    /// By which version of the server.
    pub(crate) version: String,
    /// The database.
    pub(crate) database: Blob,
    /// Secrets, sealed. What opens them is not copied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) secrets: Option<Blob>,
    /// The wrapped keys of what is sealed. What opens them is not copied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) keys: Option<Blob>,
    /// Keys that were in the state directory, by the names of their files. They are not copied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) key_files: Vec<String>,
    /// Volumes that there were, whose content is not copied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) volumes: Vec<String>,
}

impl Backup {
    /// Every blob of it.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = Blob> {
        [Some(self.database), self.secrets, self.keys].into_iter().flatten()
    }

    /// Whether it is a backup of the same.
    pub(crate) fn is_as(&self, other: &Self) -> bool {
        let Self { format: _, taken_at: _, version: _, database, secrets, keys, key_files, volumes } = self;
        (database, secrets, keys) == (&other.database, &other.secrets, &other.keys)
            && (key_files, volumes) == (&other.key_files, &other.volumes)
    }
}

/// Whose copies these are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Installation {
    /// [`FORMAT`].
    pub(crate) format: u32,
    /// Of the state directory, made by chance.
    pub(crate) id: String,
}

impl Installation {
    pub(crate) fn generate() -> Self {
        Self { format: FORMAT, id: random::uuid() }
    }
}

pub(crate) fn to_json<T: Serialize>(record: &T) -> Vec<u8> {
    serde_json::to_vec_pretty(record).expect("a record has no key that is not a text")
}

#[derive(Deserialize)]
struct Versioned {
    format: u32,
}

/// Reads what was read of a store. Its format is looked at before anything else in it is believed.
pub(crate) fn from_json<T: DeserializeOwned>(record: &Record, text: &[u8]) -> Result<T, CopyError> {
    let damaged = |source: std::io::Error| CopyError::Damaged { name: format!("{record:?}"), source: Damage::Packing(source) };
    let format = serde_json::from_slice::<Versioned>(text).map_err(|error| damaged(error.into()))?.format;
    if format != FORMAT {
        let text = format!("it has format version {format}, this version reads {FORMAT}");
        return Err(damaged(std::io::Error::other(text)));
    }
    serde_json::from_slice(text).map_err(|error| damaged(error.into()))
}

#[cfg(test)]
mod tests {
    use firkin_copies::Digest;

    use super::*;

    #[test]
    fn records_read_back_and_their_format_comes_first() {
        let blob = |text: &str| Blob { blake3: Digest::of(text.as_bytes()), bytes: text.len() as u64 };
        let mut files = Files::of(CopiedFile { file: "rootfs.ext4".into(), blob: blob("root") });
        files.members.insert("state".into(), CopiedFile { file: "state.sealed".into(), blob: blob("state") });
        assert_eq!(from_json::<Files>(&Record::Installation, &to_json(&files)).unwrap(), files);
        let text = String::from_utf8(to_json(&files)).unwrap();
        assert!(text.contains(r#""file": "state.sealed""#) && text.contains(&format!(r#""blake3": "{}""#, blob("state").blake3)));
        assert_eq!(files.blobs().count(), 2);

        // Whatever else is in a later one.
        let later = from_json::<Files>(&Record::Installation, br#"{"format": 2, "members": "elsewhere"}"#).unwrap_err();
        let why = std::error::Error::source(&later).and_then(std::error::Error::source).unwrap().to_string();
        assert_eq!((later.kind(), why.as_str()), ("damaged", "it has format version 2, this version reads 1"));
        for hostile in
            [r#"{"format": 1}"#, "[]", "", r#"{"format": 1, "members": {}, "root": {"file": "x", "blake3": "../x", "bytes": 1}}"#]
        {
            assert!(from_json::<Files>(&Record::Installation, hostile.as_bytes()).is_err(), "{hostile}");
        }
    }
}
