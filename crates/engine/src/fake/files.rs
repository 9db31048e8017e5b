//! The fake's snapshot files: as small as a test's memory, as strict as the real ones.
//!
//! `state` and `memory.diff` begin with a digest of what follows; a booted machine's `memory` holds its length first, because
//! it is as large as the machine's memory, and sparse.

use std::{
    io::{self, Read, Write},
    path::Path,
};

use fs_err::os::unix::fs::OpenOptionsExt;

use crate::{RestoreSpec, Shape, StartError};

const STATE_FULL: &[u8] = b"state of a booted machine";
const STATE_DIFF: &[u8] = b"state of a restored machine";
/// A test's guest remembers a few bytes.
const MAX_MEMORY_BYTES: u64 = 1 << 20;

pub(super) fn exists(path: &Path) -> Result<(), StartError> {
    fs_err::metadata(path).map(drop).map_err(|source| error(path, source))
}

pub(super) fn create_memory(path: &Path, shape: Shape) -> Result<(), StartError> {
    let create = || {
        let file = fs_err::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.set_len(u64::from(shape.memory_mib) << 20)
    };
    create().map_err(|source| error(path, source))
}

/// Puts a booted machine's memory where it belongs.
pub(super) fn write_memory(path: &Path, memory: &[u8]) -> io::Result<()> {
    let mut file = fs_err::OpenOptions::new().write(true).open(path)?;
    file.write_all(&(memory.len() as u64).to_le_bytes())?;
    file.write_all(memory)?;
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o444))
}

pub(super) fn write_state(path: &Path, booted: bool) -> io::Result<()> {
    write_digested(path, if booted { STATE_FULL } else { STATE_DIFF })
}

pub(super) fn write_diff(path: &Path, memory: &[u8]) -> io::Result<()> {
    write_digested(path, memory)
}

/// What the guest of a snapshot remembers.
pub(super) fn read_snapshot(spec: &RestoreSpec) -> Result<Vec<u8>, StartError> {
    let refuse = |phase, reason: &str| StartError::Refused { phase, reason: reason.to_owned() };
    let state = read_digested(&spec.state).map_err(|source| error(&spec.state, source))?;
    let expected = if spec.memory_diff.is_some() { STATE_DIFF } else { STATE_FULL };
    if state.as_deref() != Some(expected) {
        return Err(refuse("the snapshot's device state", "it is damaged, or of another kind of snapshot"));
    }
    let length = fs_err::metadata(&spec.memory).map_err(|source| error(&spec.memory, source))?.len();
    if length != u64::from(spec.shape.memory_mib) << 20 {
        return Err(refuse("the snapshot's memory", "its size is not the machine's"));
    }
    match &spec.memory_diff {
        Some(path) => read_digested(path)
            .map_err(|source| error(path, source))?
            .ok_or_else(|| refuse("the snapshot's memory diff", "it is damaged")),
        None => read_memory(&spec.memory).map_err(|source| error(&spec.memory, source)),
    }
}

fn read_memory(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = fs_err::File::open(path)?;
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let mut memory = Vec::new();
    file.take(u64::from_le_bytes(length).min(MAX_MEMORY_BYTES)).read_to_end(&mut memory)?;
    Ok(memory)
}

fn write_digested(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = fs_err::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(blake3::hash(content).as_bytes())?;
    file.write_all(content)
}

/// The content, unless it is damaged.
fn read_digested(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    fs_err::File::open(path)?.take(MAX_MEMORY_BYTES).read_to_end(&mut bytes)?;
    let Some((digest, content)) = bytes.split_first_chunk::<32>() else { return Ok(None) };
    Ok((blake3::hash(content) == *digest).then(|| content.to_vec()))
}

fn error(path: &Path, source: io::Error) -> StartError {
    StartError::File { path: path.to_path_buf(), source }
}
