//! The `state` member of a snapshot: a checkpoint of `runsc` as one sealed file.
//!
//! ```text
//!   0  magic `FKNGVSR\0`   8  version   12  length of the head   16  the head, JSON   then the checkpoint's files   last 32  blake3 of all
//! ```
//!
//! A checkpoint is some files that `runsc` believes: a flipped byte of a page is restored, and so is one on another root file system. The
//! digest and what the head names are checked before a process exists. It is at the end, so that a state is written in one go.

use std::{
    io::{self, Read, Write},
    path::Path,
};

use fs_err::os::unix::fs::OpenOptionsExt;
use rustix::{
    fs::{FallocateFlags, fallocate},
    io::Errno,
};
use serde::{Deserialize, Serialize};

use super::spec::Options;

const MAGIC: [u8; 8] = *b"FKNGVSR\0";
/// Readers keep every version that was ever released.
const VERSION: u32 = 1;
const FIXED_BYTES: usize = 16;
const DIGEST_BYTES: usize = 32;
/// Four digests and three names.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// The files of a checkpoint that is not compressed: the kernel's objects, where pages are, and the pages.
const MEMBERS: [&str; 3] = ["checkpoint.img", "pages_meta.img", "pages.img"];
/// How much is copied at a time.
const BATCH_BYTES: usize = 1 << 20;
/// After so much the checkpoint gives back what was taken over: it and the state would else take twice the room that a cut has.
const GIVEN_BACK_BYTES: u64 = 16 << 20;

/// What a checkpoint is good for. All of it must be the same where it is restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Origin {
    /// Digest of the binary that wrote it.
    pub(super) program: String,
    /// Digest of what all sandboxes have in common.
    pub(super) fixed: String,
    /// Digest of the root image.
    pub(super) image: String,
    /// What it was given beside.
    #[serde(default)]
    pub(super) options: Options,
}

#[derive(Debug, Serialize, Deserialize)]
struct Head {
    #[serde(flatten)]
    origin: Origin,
    /// Bytes of each of [`MEMBERS`].
    bytes: [u64; MEMBERS.len()],
}

/// Why a state was refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error("cannot read the state")]
    Io(#[from] io::Error),
    #[error("the state is of version {0}, this program reads {VERSION}")]
    Version(u32),
    #[error("the state is damaged: {0}")]
    Damaged(&'static str),
}

/// Makes the checkpoint in `from`, which is empty then, a state, mode 0600. Not synced: when it must be durable is the caller's decision.
pub(super) fn seal(from: &Path, origin: Origin, to: &Path) -> io::Result<u64> {
    let files = MEMBERS.map(|name| fs_err::OpenOptions::new().read(true).write(true).open(from.join(name)));
    let mut opened = Vec::with_capacity(MEMBERS.len());
    let mut bytes = [0; MEMBERS.len()];
    for (file, bytes) in files.into_iter().zip(&mut bytes) {
        let file = file?;
        *bytes = file.metadata()?.len();
        opened.push(file);
    }
    let head = serde_json::to_vec(&Head { origin, bytes })?;
    let length = u32::try_from(head.len()).map_err(io::Error::other)?;
    let to = fs_err::OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    let mut out = Digested { file: to, hasher: blake3::Hasher::new() };
    out.write_all(&[&MAGIC[..], &VERSION.to_le_bytes(), &length.to_le_bytes(), &head].concat())?;
    for (file, bytes) in opened.iter().zip(bytes) {
        for begin in (0..bytes).step_by(usize::try_from(GIVEN_BACK_BYTES).map_err(io::Error::other)?) {
            let part = GIVEN_BACK_BYTES.min(bytes - begin);
            copy(file, &mut out, part)?;
            match fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, begin, part) {
                // There are file systems without holes; there it takes twice the room.
                Ok(()) | Err(Errno::OPNOTSUPP) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    let Digested { mut file, hasher } = out;
    file.write_all(hasher.finalize().as_bytes())?;
    Ok(bytes.iter().sum())
}

/// Takes the checkpoint out of a state, into the files of `into`, which are new. They are to be used only if this succeeds.
pub(super) fn open(path: &Path, into: &Path) -> Result<Origin, ReadError> {
    let file = fs_err::File::open(path)?;
    let length = file.metadata()?.len();
    let content = length.checked_sub(DIGEST_BYTES as u64).ok_or(ReadError::Damaged("it is shorter than its digest"))?;
    let mut from = Digested { file, hasher: blake3::Hasher::new() };
    let head = read_head(&mut from, content)?;
    let members = head.bytes.iter().try_fold(0_u64, |sum, bytes| sum.checked_add(*bytes));
    let read = FIXED_BYTES as u64 + head.length;
    if members.and_then(|bytes| bytes.checked_add(read)) != Some(content) {
        return Err(ReadError::Damaged("its length is not what its head says"));
    }
    for (name, bytes) in MEMBERS.into_iter().zip(head.bytes) {
        let to = fs_err::OpenOptions::new().write(true).create_new(true).mode(0o600).open(into.join(name))?;
        copy(&mut from, to, bytes)?;
    }
    let Digested { mut file, hasher } = from;
    let mut digest = [0; DIGEST_BYTES];
    file.read_exact(&mut digest)?;
    if hasher.finalize().as_bytes() != &digest {
        return Err(ReadError::Damaged("it does not match its digest"));
    }
    Ok(head.origin)
}

/// A head and its length in the file.
struct ReadHead {
    origin: Origin,
    bytes: [u64; MEMBERS.len()],
    length: u64,
}

fn read_head(from: &mut impl Read, content: u64) -> Result<ReadHead, ReadError> {
    let mut fixed = [0; FIXED_BYTES];
    if content < FIXED_BYTES as u64 {
        return Err(ReadError::Damaged("it is shorter than its head"));
    }
    from.read_exact(&mut fixed)?;
    let word = |at: usize| u32::from_le_bytes(fixed[at..at + 4].try_into().expect("four bytes"));
    if fixed[..8] != MAGIC {
        return Err(ReadError::Damaged("it does not begin with its magic"));
    }
    if word(8) != VERSION {
        return Err(ReadError::Version(word(8)));
    }
    let length = word(12) as usize;
    if length > MAX_HEAD_BYTES || (FIXED_BYTES + length) as u64 > content {
        return Err(ReadError::Damaged("the length of its head is out of range"));
    }
    let mut text = vec![0; length];
    from.read_exact(&mut text)?;
    let Head { origin, bytes } = serde_json::from_slice(&text).map_err(|_| ReadError::Damaged("its head is not understood"))?;
    Ok(ReadHead { origin, bytes, length: length as u64 })
}

fn copy(mut from: impl Read, mut to: impl Write, bytes: u64) -> io::Result<()> {
    let mut buffer = vec![0; BATCH_BYTES];
    let mut left = bytes;
    while left > 0 {
        let part = usize::try_from(left).unwrap_or(usize::MAX).min(BATCH_BYTES);
        from.read_exact(&mut buffer[..part])?;
        to.write_all(&buffer[..part])?;
        left -= part as u64;
    }
    Ok(())
}

/// A file, with the digest of what was read from it or written to it.
struct Digested {
    file: fs_err::File,
    hasher: blake3::Hasher,
}

impl Read for Digested {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}

impl Write for Digested {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self.file.write(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn origin() -> Origin {
        let options = Options { memory_mib: Some(512), disk_bytes: None, shows_disk: false, setuid: true };
        Origin { program: "p".into(), fixed: "f".into(), image: "i".into(), options }
    }

    fn fresh(dir: &Path, name: &str) -> std::path::PathBuf {
        let path = dir.join(name);
        fs_err::create_dir(&path).unwrap();
        path
    }

    proptest! {
        #[test]
        fn a_state_reads_back_and_any_damage_is_refused(
            contents in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 3),
            place in any::<prop::sample::Index>(),
            flip in 1u8..=255,
            truncate in any::<bool>(),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let (made, state) = (fresh(dir.path(), "made"), dir.path().join("state"));
            for (name, content) in MEMBERS.iter().zip(&contents) {
                fs_err::write(made.join(name), content).unwrap();
            }
            seal(&made, origin(), &state).unwrap();
            let read = fresh(dir.path(), "read");
            prop_assert_eq!(open(&state, &read).unwrap(), origin());
            for (name, content) in MEMBERS.iter().zip(&contents) {
                prop_assert_eq!(&fs_err::read(read.join(name)).unwrap(), content);
            }
            let mut bytes = fs_err::read(&state).unwrap();
            let at = place.index(bytes.len());
            if truncate { bytes.truncate(at) } else { bytes[at] ^= flip }
            fs_err::write(&state, &bytes).unwrap();
            prop_assert!(open(&state, &fresh(dir.path(), "damaged")).is_err());
        }
    }

    #[test]
    fn what_a_state_has_taken_over_takes_no_room_twice() {
        let dir = tempfile::tempdir().unwrap();
        let (made, state) = (fresh(dir.path(), "made"), dir.path().join("state"));
        for (name, mib) in MEMBERS.into_iter().zip([1, 0, 40]) {
            fs_err::write(made.join(name), vec![1; mib << 20]).unwrap();
        }
        let blocks = |path: &Path| std::os::unix::fs::MetadataExt::blocks(&fs_err::metadata(path).unwrap());
        let before = blocks(&made.join(MEMBERS[2]));
        seal(&made, origin(), &state).unwrap();
        assert!(blocks(&made.join(MEMBERS[2])) < before / 8, "it was given back as it was copied");
        assert_eq!(open(&state, &fresh(dir.path(), "read")).unwrap(), origin());
    }
}
