//! Descriptions of files: `EntryInfo`, with names for ids and permissions the way E2B's envd, a Go program, writes them.

use std::{
    fs::Metadata,
    io,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::Path,
};

use buffa_types::google::protobuf::Timestamp;
use firkin_wire::envd::filesystem::{EntryInfo, FileType};

use crate::envd::{users::UserDb, xattrs};

/// Describes the file at `path`, not what a symlink there points to, except for type and mode.
pub(super) fn describe(path: &Path, db: &UserDb) -> io::Result<EntryInfo> {
    let found = fs_err::symlink_metadata(path)?;
    let is_symlink = found.is_symlink();
    let (symlink_target, target) = if is_symlink {
        let resolved = fs_err::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
        let target = fs_err::metadata(path).ok();
        (Some(resolved.to_string_lossy().into_owned()), target)
    } else {
        (None, None)
    };
    // A dangling link has no type and no mode of its own.
    let described = if is_symlink { target.as_ref() } else { Some(&found) };
    Ok(EntryInfo {
        name: path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
        r#type: described.map_or(FileType::FILE_TYPE_UNSPECIFIED, type_of).into(),
        path: path.to_string_lossy().into_owned(),
        size: i64::try_from(found.len()).unwrap_or(i64::MAX),
        mode: described.map_or(0, |found| found.permissions().mode() & 0o777),
        permissions: permissions(&found),
        owner: db.owner_name(found.uid()),
        group: db.group_name(found.gid()),
        modified_time: modified(&found).into(),
        symlink_target,
        metadata: xattrs::read(path).unwrap_or_default().into_iter().collect(),
        // `is_symlink` stays unset: the envd version that we report does not know it, and SDKs that do would show a link's
        // type differently.
        ..Default::default()
    })
}

fn type_of(found: &Metadata) -> FileType {
    match found.file_type() {
        kind if kind.is_file() => FileType::FILE_TYPE_FILE,
        kind if kind.is_dir() => FileType::FILE_TYPE_DIRECTORY,
        _ => FileType::FILE_TYPE_UNSPECIFIED,
    }
}

fn modified(found: &Metadata) -> Timestamp {
    Timestamp { seconds: found.mtime(), nanos: i32::try_from(found.mtime_nsec()).unwrap_or(0), ..Default::default() }
}

/// Go's `FileMode.String`: a letter for each kind and special bit, a dash for none, then nine permission letters.
fn permissions(found: &Metadata) -> String {
    let (kind, mode) = (found.file_type(), found.permissions().mode());
    let device = kind.is_block_device() || kind.is_char_device();
    let letters = [
        (kind.is_dir(), 'd'),
        (kind.is_symlink(), 'L'),
        (device, 'D'),
        (kind.is_fifo(), 'p'),
        (kind.is_socket(), 'S'),
        (mode & 0o4000 != 0, 'u'),
        (mode & 0o2000 != 0, 'g'),
        (kind.is_char_device(), 'c'),
        (mode & 0o1000 != 0, 't'),
    ];
    let mut text: String = letters.iter().filter(|(set, _)| *set).map(|(_, letter)| letter).collect();
    if text.is_empty() {
        text.push('-');
    }
    for (position, letter) in "rwxrwxrwx".chars().enumerate() {
        text.push(if mode & (0o400 >> position) != 0 { letter } else { '-' });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_read_like_go() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        fs_err::write(&file, "x").unwrap();
        for (mode, expected) in [(0o644, "-rw-r--r--"), (0o4755, "urwxr-xr-x"), (0o000, "----------")] {
            fs_err::set_permissions(&file, PermissionsExt::from_mode(mode)).unwrap();
            assert_eq!(permissions(&fs_err::metadata(&file).unwrap()), expected);
        }
        fs_err::set_permissions(dir.path(), PermissionsExt::from_mode(0o1777)).unwrap();
        assert_eq!(permissions(&fs_err::metadata(dir.path()).unwrap()), "dtrwxrwxrwx");
        assert_eq!(permissions(&fs_err::metadata("/dev/null").unwrap()), "Dcrw-rw-rw-");
    }

    #[test]
    fn a_symlink_has_its_own_name_and_its_targets_type() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        fs_err::os::unix::fs::symlink(dir.path(), &link).unwrap();
        let entry = describe(&link, &UserDb::default()).unwrap();
        assert_eq!(entry.name, "link");
        assert_eq!(entry.r#type, FileType::FILE_TYPE_DIRECTORY);
        assert_eq!(entry.symlink_target.as_deref(), fs_err::canonicalize(dir.path()).unwrap().to_str());

        let dangling = dir.path().join("dangling");
        fs_err::os::unix::fs::symlink("/does/not/exist", &dangling).unwrap();
        let entry = describe(&dangling, &UserDb::default()).unwrap();
        assert_eq!(entry.r#type, FileType::FILE_TYPE_UNSPECIFIED);
    }
}
