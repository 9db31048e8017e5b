//! A sealed stream: what a file holds, in chunks that are sealed each by itself and in their order.
//!
//! ```text
//!   | magic, 8 bytes | salt, 24 bytes | chunk | chunk | ... | last chunk |
//!
//!   chunk:  1 byte: what it is     64 KiB of it (fewer in the last one)    16 bytes: tag
//!           0 = bytes
//!           1 = 64 KiB of zeros    nothing
//! ```
//!
//! The key of a stream is derived from the data key, the salt and the stream's name, so no two streams share one. Number of the chunk
//! and whether it is the last are nonce and associated data of its tag; the stream's name and kind of the chunk are associated data,
//! too. So whatever is changed, left out, cut off, added, exchanged within a stream or between two, or renamed is not opened.
//! Zeros are told as such, which shows where a stream has them: a memory that is mostly untouched stays small.
//!
//! What comes before a chunk that is not what was sealed has been written by then: nobody may use the result of a failure.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::fs::FileExt,
};

use crate::key::{DataKey, random};
use aes_gcm::{Aes256Gcm, aead::AeadInOut};

/// First bytes of every sealed stream. The digit is the version of the format.
pub const MAGIC: [u8; 8] = *b"FKNSEAL1";

/// Plain bytes of every chunk but the last: a small part of a file is read in a fraction of a millisecond, and tags cost next to nothing.
pub const CHUNK_BYTES: usize = 64 << 10;

const SALT_BYTES: usize = 24;
const TAG_BYTES: usize = 16;

/// A chunk of bytes, and one of zeros.
const BYTES: u8 = 0;
const ZEROS: u8 = 1;

/// Why a sealed stream could not be opened. What was written of it is of no use.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It could not be read.
    #[error("cannot read what was sealed")]
    Read(#[source] io::Error),
    /// The plain bytes could not be written.
    #[error("cannot write what was opened")]
    Write(#[source] io::Error),
    /// It does not begin as a sealed stream does.
    #[error("it is not a sealed stream of a version that is known here")]
    NotSealed,
    /// A chunk is not what was sealed.
    #[error("chunk {chunk} is not what was sealed under this key and name")]
    Changed {
        /// Its number, from 0.
        chunk: u64,
    },
}

/// One stream's cipher, with the number of the next chunk.
struct Chunks {
    cipher: Aes256Gcm,
    name: Vec<u8>,
    next: u32,
}

impl Chunks {
    fn of(key: &DataKey, salt: &[u8], name: &str) -> Self {
        Self { cipher: key.cipher(salt, name), name: name.as_bytes().to_vec(), next: 0 }
    }

    /// Nonce and associated data of the next chunk. None when there have been too many, 256 TiB.
    fn next(&mut self, kind: u8, last: bool) -> Option<([u8; 12], Vec<u8>)> {
        let mut nonce = [0; 12];
        nonce[7..11].copy_from_slice(&self.next.to_be_bytes());
        nonce[11] = u8::from(last);
        let bound = [&MAGIC[..], &nonce[7..], &[kind], &self.name].concat();
        self.next = self.next.checked_add(1)?;
        Some((nonce, bound))
    }
}

/// Seals all of `plain` under the name `name`. Gives the plain bytes. Not flushed.
pub fn seal(key: &DataKey, name: &str, plain: &mut dyn Read, sealed: &mut dyn Write) -> io::Result<u64> {
    let salt = random::<SALT_BYTES>();
    let mut chunks = Chunks::of(key, &salt, name);
    sealed.write_all(&MAGIC)?;
    sealed.write_all(&salt)?;
    let (mut now, mut ahead) = (Vec::new(), Vec::new());
    let mut total = 0;
    fill(plain, &mut now)?;
    loop {
        fill(plain, &mut ahead)?;
        total += now.len() as u64;
        let last = ahead.is_empty();
        let kind = if !last && is_zero(&now) { ZEROS } else { BYTES };
        if kind == ZEROS {
            now.clear();
        }
        let (nonce, bound) = chunks.next(kind, last).ok_or_else(|| io::Error::from(io::ErrorKind::FileTooLarge))?;
        chunks.cipher.encrypt_in_place(&nonce.into(), &bound, &mut now).map_err(io::Error::other)?;
        sealed.write_all(&[kind])?;
        sealed.write_all(&now)?;
        if last {
            return Ok(total);
        }
        std::mem::swap(&mut now, &mut ahead);
    }
}

/// Opens the stream that was sealed under the name `name` into an empty file, whose holes are its zeros. Gives the plain bytes.
/// Of a stream that is not what was sealed nothing may be used.
pub fn open(key: &DataKey, name: &str, sealed: &mut dyn Read, plain: &File) -> Result<u64, OpenError> {
    let mut sealed = BufReader::with_capacity(CHUNK_BYTES * 2, sealed);
    let mut head = [0; MAGIC.len() + SALT_BYTES];
    sealed.read_exact(&mut head).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => OpenError::NotSealed,
        _ => OpenError::Read(error),
    })?;
    let salt = head.strip_prefix(&MAGIC).ok_or(OpenError::NotSealed)?;
    let mut chunks = Chunks::of(key, salt, name);
    let mut chunk = Vec::with_capacity(CHUNK_BYTES + TAG_BYTES);
    let mut total = 0;
    loop {
        let changed = OpenError::Changed { chunk: chunks.next.into() };
        let mut kind = [0];
        match sealed.read_exact(&mut kind) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(changed),
            read => read.map_err(OpenError::Read)?,
        }
        let body = if kind == [ZEROS] { TAG_BYTES } else { CHUNK_BYTES + TAG_BYTES };
        chunk.clear();
        (&mut sealed).take(body as u64).read_to_end(&mut chunk).map_err(OpenError::Read)?;
        let last = sealed.fill_buf().map_err(OpenError::Read)?.is_empty();
        let Some((nonce, bound)) = chunks.next(kind[0], last) else { return Err(changed) };
        if chunks.cipher.decrypt_in_place(&nonce.into(), &bound, &mut chunk).is_err() {
            return Err(changed);
        }
        if kind == [ZEROS] {
            total += CHUNK_BYTES as u64;
        } else {
            plain.write_all_at(&chunk, total).map_err(OpenError::Write)?;
            total += chunk.len() as u64;
        }
        if last {
            plain.set_len(total).map_err(OpenError::Write)?;
            return Ok(total);
        }
    }
}

/// Reads a whole chunk, or what is left.
fn fill(from: &mut dyn Read, chunk: &mut Vec<u8>) -> io::Result<()> {
    chunk.clear();
    from.take(CHUNK_BYTES as u64).read_to_end(chunk).map(drop)
}

fn is_zero(chunk: &[u8]) -> bool {
    chunk.iter().all(|&byte| byte == 0)
}
