//! The token that lets clients in: the variable it comes in, the file it is kept in, and how it is compared.
//!
//! It is for whoever serves, and for whoever must not have it: what runs as the sandbox's user is started without the variable.

use std::{
    io::{self, Write as _},
    path::Path,
};

use fs_err as fs;
use fs_err::os::unix::fs::OpenOptionsExt as _;

/// The variable that the SDK puts the token into.
pub(crate) const TOKEN: &str = "GATEWAY_ACCESS_TOKEN";

/// Where the SDK, as root, reads the token that it did not make itself.
pub(crate) const TOKEN_FILE: &str = "/etc/mcp-gateway/.token";

/// Writes the token where only root reads it.
pub(crate) fn keep(path: &Path, token: &str) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(directory)?;
    let fresh = directory.join(".token.new");
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
    file.write_all(token.as_bytes())?;
    fs::rename(&fresh, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_token_is_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("etc/.token");
        for token in ["first", "second"] {
            keep(&path, token).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), token);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }
}
