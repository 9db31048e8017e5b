//! Small files of `/etc` that say who the machine is.

use std::{
    io::{self, Write},
    path::Path,
};

use fs_err::os::unix::fs::OpenOptionsExt;

/// Makes `path` hold `content`, mode 644, unless it does already: an unchanged file costs a clone no disk page. A symlink is
/// replaced, never followed.
pub(super) fn put(path: &str, content: &str) -> io::Result<()> {
    let plain = fs_err::symlink_metadata(path).is_ok_and(|found| found.is_file());
    if plain && fs_err::read(path).is_ok_and(|old| old == content.as_bytes()) {
        return Ok(());
    }
    let fresh = format!("{path}.firkin-new");
    if Path::new(&fresh).symlink_metadata().is_ok() {
        fs_err::remove_file(&fresh)?;
    }
    let mut file = fs_err::OpenOptions::new().write(true).create_new(true).mode(0o644).open(&fresh)?;
    file.write_all(content.as_bytes())?;
    fs_err::rename(&fresh, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_change_is_written_and_a_link_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hosts");
        let text = path.to_str().unwrap();
        put(text, "a").unwrap();
        let before = fs_err::metadata(&path).unwrap().modified().unwrap();
        put(text, "a").unwrap();
        assert_eq!(fs_err::metadata(&path).unwrap().modified().unwrap(), before);
        put(text, "b").unwrap();
        assert_eq!(fs_err::read_to_string(&path).unwrap(), "b");

        let link = dir.path().join("link");
        fs_err::os::unix::fs::symlink(&path, &link).unwrap();
        put(link.to_str().unwrap(), "c").unwrap();
        assert_eq!(fs_err::read_to_string(&path).unwrap(), "b");
        assert!(fs_err::symlink_metadata(&link).unwrap().is_file());
    }
}
