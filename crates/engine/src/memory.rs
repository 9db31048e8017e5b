//! Guest memory as files: what a template keeps of it, and how a restored machine's changes are found, packed and put back.
//!
//! A template's memory is one sparse file that every clone maps copy-on-write. A clone's snapshot is then only the pages that
//! the kernel has copied for it, found through `/proc/<pid>/pagemap` and packed by [`diff`], always relative to the mapped
//! file and never to an earlier diff: a grandchild is again base plus one diff. [`Captured`] has them while they are not packed
//! yet. [`flatten`] makes a new base of both when the diff has become large. [`sparse`] gives a template's zero pages back.

mod capture;
pub mod diff;
mod flatten;
pub(crate) mod ram;
pub mod sparse;

pub use capture::Captured;
pub(crate) use capture::PageBuffer;
pub use flatten::{FlattenError, flatten};

/// Size of a page, everywhere in this crate: QEMU's x86 machines know no other for a private mapping of a file.
pub const PAGE_BYTES: u64 = 4096;

/// How much is copied at a time. Larger batches save system calls and cost memory during a pause.
pub(crate) const BATCH_BYTES: usize = 4 << 20;

/// Whether a page holds nothing but zeros. Pages are compared 16 bytes at a time, which compiles to vector instructions.
pub(crate) fn is_zero(page: &[u8]) -> bool {
    page.chunks_exact(16).all(|word| word == [0; 16])
}
