//! Directories and files that are the server's user's alone: names, tokens, memory and what users made are nobody else's.

use std::{
    io::{self, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use fs_err as fs;
use fs_err::os::unix::fs::OpenOptionsExt as _;

/// Makes a directory, and its parents, that nobody else may enter; one that is there becomes such a one.
pub(crate) fn private_dir(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))
}

/// Writes a file that nobody else may read. Not durable yet.
pub(crate) fn private_file(path: &Path, content: &[u8]) -> io::Result<fs::File> {
    let mut file = fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    Ok(file)
}
