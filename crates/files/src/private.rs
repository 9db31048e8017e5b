//! Small files that are there whole or not at all, and are read with a bound: keys, tokens and certificates of an installation.

use std::{
    io::{self, Read as _, Write as _},
    path::Path,
};

use fs_err as fs;
use fs_err::os::unix::fs::OpenOptionsExt as _;

/// The mode of a file that its owner alone may read.
pub const PRIVATE: u32 = 0o600;

/// A small file, or nothing if there is none. One of more than `limit` bytes is an error.
pub fn read(path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match fs::File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut bytes = Vec::new();
    if file.take(limit.saturating_add(1)).read_to_end(&mut bytes)? as u64 > limit {
        let text = format!("`{}` has more than {limit} bytes", path.display());
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
    }
    Ok(Some(bytes))
}

/// Writes a file with this mode, whole or not at all, in the place of one that may be there. Durable when this returns. Two at a time for
/// one path are the caller's to prevent.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = Path::new(&temporary);
    // What a crash left may have another mode, which opening would not change.
    match fs::remove_file(temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let written = (|| {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(temporary, path)
    })();
    if let Err(error) = written {
        // What cannot be written is not kept; that it cannot be removed either changes nothing of why.
        drop(fs::remove_file(temporary));
        return Err(error);
    }
    match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(dir) => fs::File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_read_within_its_bound() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        assert_eq!(read(&path, 3).unwrap(), None);
        // What a crash left, for all to read.
        fs::write(dir.path().join("key.pem.new"), "half").unwrap();
        for (content, mode) in [("one", PRIVATE), ("two", 0o640)] {
            replace(&path, content.as_bytes(), mode).unwrap();
            assert_eq!(read(&path, 3).unwrap().as_deref(), Some(content.as_bytes()));
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
        }
        assert_eq!(read(&path, 2).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_cannot_be_put_in_its_place_leaves_what_was_there_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("key/in use")).unwrap();
        replace(&dir.path().join("key"), b"text", PRIVATE).unwrap_err();
        assert!(dir.path().join("key/in use").exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
