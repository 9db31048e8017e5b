//! What lies between the files of a stranger's archive, bounded.
//!
//! Long names and extended attributes stand before the file that they belong to, and whoever reads the archive takes them into memory
//! whole, whatever size they claim. So no more is read than has been asked for by a file that was seen, and a little in between.

use std::{
    cell::Cell,
    io::{self, Read},
    rc::Rc,
};

/// From the end of one file to the beginning of the next: its header, a name and a target as long as Linux takes them, and what
/// archivers say about it.
const MAX_GAP_BYTES: u64 = 128 << 10;

/// Records of an archive are padded to this.
const BLOCK_BYTES: u64 = 512;

/// More lies between two files than files have to be told.
#[derive(Debug, thiserror::Error)]
#[error("there are more than {} KiB between two files", MAX_GAP_BYTES >> 10)]
struct WideGap;

/// How much may still be read.
#[derive(Debug, Clone)]
pub(super) struct Allowance(Rc<Cell<u64>>);

/// Reads what is allowed.
#[derive(Debug)]
pub(super) struct Guarded<R> {
    inner: R,
    allowance: Allowance,
}

/// Guards an archive from its beginning.
pub(super) fn guard<R: Read>(inner: R) -> (Guarded<R>, Allowance) {
    let allowance = Allowance(Rc::new(Cell::new(MAX_GAP_BYTES)));
    (Guarded { inner, allowance: allowance.clone() }, allowance)
}

impl Allowance {
    /// A file of so many bytes begins.
    pub(super) fn file(&self, bytes: u64) {
        self.0.set(bytes.saturating_add(BLOCK_BYTES).saturating_add(MAX_GAP_BYTES));
    }
}

impl<R: Read> Read for Guarded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.allowance.0.get();
        if left == 0 && !buffer.is_empty() {
            return Err(io::Error::other(WideGap));
        }
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.inner.read(&mut buffer[..most])?;
        self.allowance.0.set(left - read as u64);
        Ok(read)
    }
}
