//! The fake's snapshot files: as small as a test's memory, as strict as the real ones.
//!
//! `state` begins with a digest of what follows. Memory is laid out as a real one is, so that what is done to memory files above
//! the engine can be tested: what the guest remembers stands at its start, after its length, and `memory.diff` is a real diff.

use std::{
    io::{self, Read, Write},
    path::Path,
};

use fs_err::os::unix::fs::OpenOptionsExt;

use crate::{
    RestoreSpec, Shape, SnapshotMemory, StartError,
    memory::{
        PAGE_BYTES,
        diff::{Content, Diff, Writer},
    },
};

const STATE_FULL: &[u8] = b"state of a booted machine";
const STATE_DIFF: &[u8] = b"state of a restored machine";
/// Before the memory, where the state has it.
const STATE_WITH_MEMORY: &[u8] = b"state and memory of a machine:";
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
    file.write_all(&pages(memory))?;
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o444))
}

pub(super) fn write_state(path: &Path, booted: bool) -> io::Result<()> {
    write_digested(path, if booted { STATE_FULL } else { STATE_DIFF })
}

pub(super) fn write_state_with_memory(path: &Path, memory: &[u8]) -> io::Result<()> {
    write_digested(path, &[STATE_WITH_MEMORY, memory].concat())
}

pub(super) fn write_diff(path: &Path, memory: &[u8], memory_bytes: u64) -> io::Result<()> {
    let pages = pages(memory);
    let mut writer = Writer::create(path, memory_bytes).map_err(io::Error::other)?;
    for page in 0..pages.len() as u64 / PAGE_BYTES {
        writer.note(page, Content::Data);
    }
    writer.append(&pages).map_err(io::Error::other)?;
    writer.finish().map(drop).map_err(io::Error::other)
}

/// The first pages of a guest that remembers this.
fn pages(memory: &[u8]) -> Vec<u8> {
    let mut pages = (memory.len() as u64).to_le_bytes().to_vec();
    pages.extend(memory);
    pages.resize(pages.len().next_multiple_of(4096), 0);
    pages
}

/// What the guest of a snapshot remembers.
pub(super) fn read_snapshot(spec: &RestoreSpec) -> Result<Vec<u8>, StartError> {
    let refuse = |phase, reason: &str| StartError::Refused { phase, reason: reason.to_owned() };
    let state = read_digested(&spec.state).map_err(|source| error(&spec.state, source))?;
    let other = || refuse("the snapshot's device state", "it is damaged, or of another kind of snapshot");
    let (memory, diff) = match (state.as_deref(), &spec.memory) {
        // What was a diff may have been flattened since.
        (Some(STATE_FULL | STATE_DIFF), SnapshotMemory::Full(memory)) => (memory, None),
        (Some(STATE_DIFF), SnapshotMemory::Diff { base, diff }) => (base, Some(diff)),
        (Some(state), SnapshotMemory::InState) => {
            return state.strip_prefix(STATE_WITH_MEMORY).map(<[u8]>::to_vec).ok_or_else(other);
        }
        _ => return Err(other()),
    };
    let length = fs_err::metadata(memory).map_err(|source| error(memory, source))?.len();
    if length != u64::from(spec.shape.memory_mib) << 20 {
        return Err(refuse("the snapshot's memory", "its size is not the machine's"));
    }
    match diff {
        Some(path) => {
            let diff = Diff::open(path, length).map_err(|error| refuse("the snapshot's memory diff", &error.to_string()))?;
            let stored = usize::try_from(diff.data_pages().min(MAX_MEMORY_BYTES / PAGE_BYTES) * PAGE_BYTES).unwrap_or_default();
            let mut pages = vec![0; stored];
            diff.read_data(0, &mut pages).and_then(|()| read_memory(&pages[..])).map_err(|source| error(path, source))
        }
        None => {
            let read = || read_memory(fs_err::File::open(memory)?);
            read().map_err(|source| error(memory, source))
        }
    }
}

fn read_memory(mut from: impl Read) -> io::Result<Vec<u8>> {
    let mut length = [0; 8];
    from.read_exact(&mut length)?;
    let mut memory = Vec::new();
    from.take(u64::from_le_bytes(length).min(MAX_MEMORY_BYTES)).read_to_end(&mut memory)?;
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
