//! Reading an archive: entry after entry, of which nothing is held but the one that is read.
//!
//! The form is tar's, and of it only what we write: plain files with short names. Long names, links and the like are refused, and are so
//! never read into memory. What is unpacked on the way has a window of a few MiB.

use std::io::{self, BufReader, Read};

use tar::Header;
use zstd::stream::read::Decoder;

use super::CHUNK_BYTES;

/// tar's unit.
const BLOCK: usize = 512;

/// The largest window that is unpacked with, as a power of two: what we write has 2 MiB at most.
const MAX_WINDOW_LOG: u32 = 23;

/// The most that may follow the last entry: two empty blocks, and what some fill a last record up with.
const MAX_TAIL_BYTES: u64 = 1 << 20;

pub(super) struct Entries<R: Read> {
    from: Decoder<'static, BufReader<R>>,
    /// Of the entry that is read.
    left: u64,
    padding: u64,
}

impl<R: Read> std::fmt::Debug for Entries<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entries").field("left", &self.left).finish_non_exhaustive()
    }
}

/// The head of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) name: String,
    pub(super) bytes: u64,
}

fn invalid(text: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

impl<R: Read> Entries<R> {
    pub(super) fn new(from: R) -> io::Result<Self> {
        let mut from = Decoder::with_buffer(BufReader::with_capacity(CHUNK_BYTES, from))?;
        from.window_log_max(MAX_WINDOW_LOG)?;
        Ok(Self { from, left: 0, padding: 0 })
    }

    /// The next entry, whose content is to be read before the one after it.
    pub(super) fn next(&mut self) -> io::Result<Option<Found>> {
        assert_eq!(self.left, 0, "an entry is read to its end");
        io::copy(&mut (&mut self.from).take(self.padding), &mut io::sink())?;
        let mut block = [0; BLOCK];
        self.from.read_exact(&mut block)?;
        if block == [0; BLOCK] {
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block);
        let mut again = header.clone();
        again.set_cksum();
        if again.cksum()? != header.cksum()? {
            return Err(invalid("the head of an entry has another sum than it says"));
        }
        if !header.entry_type().is_file() {
            return Err(invalid("an entry is not a file"));
        }
        let name = String::from_utf8_lossy(&header.path_bytes()).into_owned();
        let bytes = header.entry_size()?;
        let whole = bytes.checked_next_multiple_of(BLOCK as u64).ok_or(invalid("an entry is larger than any disk"))?;
        (self.left, self.padding) = (bytes, whole - bytes);
        Ok(Some(Found { name, bytes: self.left }))
    }

    /// Demands that nothing of worth follows, and that all of it was as it was written.
    pub(super) fn end(&mut self) -> io::Result<()> {
        let tail = io::copy(&mut (&mut self.from).take(MAX_TAIL_BYTES + 1), &mut io::sink())?;
        if tail > MAX_TAIL_BYTES { Err(invalid("something follows its end")) } else { Ok(()) }
    }
}

/// The content of the entry that was found last.
impl<R: Read> Read for Entries<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if most == 0 {
            return Ok(0);
        }
        let read = self.from.read(&mut buffer[..most])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read as u64;
        Ok(read)
    }
}
