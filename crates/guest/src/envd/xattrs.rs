//! Metadata that users attach to files: extended attributes `user.e2b.<key>`.

use std::{collections::BTreeMap, fs::File, path::Path};

use rustix::{
    fs::{XattrFlags, flistxattr, flistxattr_query, fremovexattr, fsetxattr, getxattr, listxattr, listxattr_query},
    io::Errno,
};

const PREFIX: &str = "user.e2b.";

/// The longest attribute name that Linux takes, less our prefix.
const MAX_KEY_BYTES: usize = 255 - PREFIX.len();

/// Names and values of one file together; the ext4 default keeps them in one block.
const MAX_TOTAL_BYTES: usize = 4096;

/// The largest list of names and the largest value that Linux returns.
const XATTR_MAX_BYTES: usize = 64 << 10;

/// Why metadata is not taken. The client is told.
#[derive(Debug, thiserror::Error)]
pub(super) enum MetadataError {
    /// `X-Metadata-` without a name.
    #[error("metadata key must not be empty")]
    EmptyKey,
    /// Too long for an attribute.
    #[error("metadata key \"{0}\" exceeds {MAX_KEY_BYTES} bytes")]
    LongKey(String),
    /// Not printable ASCII.
    #[error("metadata for key \"{0}\" contains bytes that are not printable ASCII")]
    NotPrintable(String),
    /// Too much together.
    #[error("total metadata size {0} exceeds {MAX_TOTAL_BYTES} bytes")]
    TooLarge(usize),
}

/// Checks what a client wants to attach.
pub(super) fn check(metadata: &BTreeMap<String, String>) -> Result<(), MetadataError> {
    let printable = |text: &str| text.bytes().all(|byte| (0x20..=0x7e).contains(&byte));
    for (key, value) in metadata {
        if key.is_empty() {
            return Err(MetadataError::EmptyKey);
        }
        if key.len() > MAX_KEY_BYTES {
            return Err(MetadataError::LongKey(key.clone()));
        }
        if !printable(key) || !printable(value) {
            return Err(MetadataError::NotPrintable(key.clone()));
        }
    }
    let total = metadata.iter().map(|(key, value)| PREFIX.len() + key.len() + value.len()).sum();
    if total > MAX_TOTAL_BYTES { Err(MetadataError::TooLarge(total)) } else { Ok(()) }
}

/// The metadata of a file; empty where the file system keeps none. Follows symlinks.
pub(super) fn read(path: &Path) -> Result<BTreeMap<String, String>, Errno> {
    // Most files have no attributes at all: ask for the size first.
    if listxattr_query(path).unwrap_or(0) == 0 {
        return Ok(BTreeMap::new());
    }
    let mut names = vec![0u8; XATTR_MAX_BYTES];
    let length = listxattr(path, &mut names[..])?;
    let mut value = vec![0u8; XATTR_MAX_BYTES];
    let mut metadata = BTreeMap::new();
    for key in keys(&names[..length]) {
        match getxattr(path, format!("{PREFIX}{key}"), &mut value[..]) {
            Ok(length) => {
                if let Ok(text) = std::str::from_utf8(&value[..length]) {
                    metadata.insert(key, text.to_owned());
                }
            }
            // Removed in between.
            Err(Errno::NODATA) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(metadata)
}

/// Makes `metadata` the whole metadata of an open file. Touches nothing when there is nothing to change.
pub(super) fn replace(file: &File, metadata: &BTreeMap<String, String>) -> Result<(), Errno> {
    let length = flistxattr_query(file).or_else(unsupported_is_empty)?;
    let mut names = vec![0u8; length];
    let length = if length == 0 { 0 } else { flistxattr(file, &mut names[..])? };
    for key in keys(&names[..length]).filter(|key| !metadata.contains_key(key)) {
        match fremovexattr(file, format!("{PREFIX}{key}")) {
            Ok(()) | Err(Errno::NODATA) => {}
            Err(error) => return Err(error),
        }
    }
    for (key, value) in metadata {
        fsetxattr(file, format!("{PREFIX}{key}"), value.as_bytes(), XattrFlags::empty())?;
    }
    Ok(())
}

fn unsupported_is_empty(error: Errno) -> Result<usize, Errno> {
    if error == Errno::OPNOTSUPP { Ok(0) } else { Err(error) }
}

/// Our keys in a list of NUL-terminated attribute names.
fn keys(names: &[u8]) -> impl Iterator<Item = String> + '_ {
    names.split(|&byte| byte == 0).filter_map(|name| Some(std::str::from_utf8(name).ok()?.strip_prefix(PREFIX)?.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn what_cannot_be_kept_is_refused() {
        assert!(check(&map(&[("a", "b c")])).is_ok());
        assert!(matches!(check(&map(&[("", "b")])), Err(MetadataError::EmptyKey)));
        assert!(matches!(check(&map(&[("a", "\u{e9}")])), Err(MetadataError::NotPrintable(_))));
        assert!(matches!(check(&map(&[(&"k".repeat(300), "b")])), Err(MetadataError::LongKey(_))));
        assert!(matches!(check(&map(&[("a", &"v".repeat(5000))])), Err(MetadataError::TooLarge(_))));
    }

    #[test]
    fn each_upload_replaces_all_metadata() {
        let file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        match replace(file.as_file(), &map(&[("a", "1"), ("b", "2")])) {
            Err(Errno::OPNOTSUPP) => return,
            other => other.unwrap(),
        }
        assert_eq!(read(file.path()).unwrap(), map(&[("a", "1"), ("b", "2")]));
        replace(file.as_file(), &map(&[("b", "3")])).unwrap();
        assert_eq!(read(file.path()).unwrap(), map(&[("b", "3")]));
        replace(file.as_file(), &BTreeMap::new()).unwrap();
        assert_eq!(read(file.path()).unwrap(), BTreeMap::new());
    }
}
