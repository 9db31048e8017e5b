//! What a state directory is known by in a cluster.

use std::{io, path::Path};

use firkin_files::private;
use firkin_postgres::NodeId;

/// The file with it.
const FILE: &str = "node-id";

/// Characters, and of which.
const LENGTH: usize = 20;
const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";

/// More than the file has.
const MAX_BYTES: u64 = 64;

/// The id of the node whose state directory this is, made if there is none. Durable when this returns. A copy of the directory has the same:
/// that is how it is noticed.
pub fn node_id(state_dir: &Path) -> io::Result<NodeId> {
    let path = state_dir.join(FILE);
    if let Some(bytes) = private::read(&path, MAX_BYTES)? {
        let text = String::from_utf8_lossy(&bytes);
        return text
            .trim()
            .parse()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("`{}`: {error}", path.display())));
    }
    let mut bytes = [0u8; LENGTH];
    getrandom::fill(&mut bytes).expect("the kernel's random generator works");
    // 256 is no multiple of 36: some letters are a little likelier than others, and any two ids are still of more than 100 bits.
    let text: String = bytes.iter().map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()])).collect();
    private::replace(&path, format!("{text}\n").as_bytes(), private::PRIVATE)?;
    text.parse().map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_directory_has_one_id_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let id = node_id(dir.path()).unwrap();
        assert_eq!(node_id(dir.path()).unwrap(), id);
        let other = tempfile::tempdir().unwrap();
        assert_ne!(node_id(other.path()).unwrap(), id);
        fs_err::write(dir.path().join(FILE), "no id").unwrap();
        assert_eq!(node_id(dir.path()).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
