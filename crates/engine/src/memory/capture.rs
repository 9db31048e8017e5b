//! The pages of a machine that stands still, copied as fast as the host can and packed later.
//!
//! Of what it takes to write a page into a new file the copy is the lesser part: the kernel has to find memory for it, to clear
//! it and to map it. A [`PageBuffer`] has all of that done while the guest still runs. What is left for the freeze is one copy from
//! memory to memory, by several threads; which pages are zero, and what a diff of them looks like, is found out when the guest
//! runs again.

use std::{
    fs::File,
    io,
    ops::Range,
    path::Path,
    sync::{Mutex, PoisonError},
};

use memmap2::{MmapMut, MmapOptions};
use rustix::fs::{FallocateFlags, fallocate};

use super::{
    BATCH_BYTES, PAGE_BYTES,
    diff::{Writer, Written},
    ram::{Ram, RamError, batch_bytes, batches, pack},
};

/// More threads than this do not copy faster: a few saturate the memory of a host.
const MAX_COPIERS: usize = 4;
/// Bytes that a thread copies at a time: small enough that the threads end together.
const PIECE_BYTES: usize = 1 << 20;

/// Memory for pages, mapped and present. Its file has no name and is gone when this is dropped, or with the process.
#[derive(Debug)]
pub(crate) struct PageBuffer {
    file: File,
    map: MmapMut,
}

impl PageBuffer {
    /// Takes room for `bytes` in the file system of `dir`: in memory, if it is to be quick.
    pub(crate) fn take(dir: &Path, bytes: u64) -> io::Result<Self> {
        let file = tempfile::tempfile_in(dir)?;
        let map = mapped(&file, bytes)?;
        Ok(Self { file, map })
    }

    /// Makes it larger, if need be.
    fn reach(&mut self, bytes: u64) -> io::Result<()> {
        if bytes > self.map.len() as u64 {
            self.map = mapped(&self.file, bytes)?;
        }
        Ok(())
    }
}

/// Blocks first: a page that could not be had is an error here, and not a signal at its first use.
#[expect(unsafe_code, reason = "a shared mapping of a file has no safe wrapper")]
fn mapped(file: &File, bytes: u64) -> io::Result<MmapMut> {
    let bytes = bytes.max(PAGE_BYTES);
    fallocate(file, FallocateFlags::empty(), 0, bytes)?;
    let length = usize::try_from(bytes).map_err(io::Error::other)?;
    // SAFETY: the file has no name and its descriptor stays here, so nobody else writes or shortens it.
    unsafe { MmapOptions::new().len(length).populate().map_mut(file) }
}

/// A copy of a machine's private pages, taken while it stood still. [`Captured::pack`] makes the snapshot's member of it.
#[derive(Debug)]
pub struct Captured {
    room: PageBuffer,
    pages: Vec<Range<u64>>,
    base: File,
    memory_bytes: u64,
}

impl Captured {
    /// Bytes of pages: the diff has at most these.
    pub fn bytes(&self) -> u64 {
        self.pages.iter().map(|range| (range.end - range.start) * PAGE_BYTES).sum()
    }

    /// Packs every page that differs from the base into a new diff at `out`. Not synced.
    ///
    /// Blocks: call it off the asynchronous threads.
    pub fn pack(mut self, out: &Path) -> io::Result<Written> {
        let mut write = || -> Result<Written, RamError> {
            let mut writer = Writer::create(out, self.memory_bytes)?;
            let mut rest = &mut self.room.map[..];
            for batch in batches(self.pages.iter().cloned(), BATCH_BYTES) {
                let (held, others) = std::mem::take(&mut rest).split_at_mut(batch_bytes(&batch));
                pack(&mut writer, &self.base, &batch, held)?;
                rest = others;
            }
            Ok(writer.finish()?)
        };
        write().map_err(|error| match &error {
            // A full disk stays one.
            RamError::Write(write) => io::Error::new(write.source.kind(), error),
            _ => io::Error::other(error),
        })
    }
}

impl Ram {
    /// Copies every private page into `room`, which is made larger if they have become more. The process must not run its guest.
    pub(crate) fn capture(&self, base: File, mut room: PageBuffer) -> Result<Captured, RamError> {
        let pages = self.private_pages()?;
        let pieces: Vec<_> = batches(pages.iter().cloned(), PIECE_BYTES).collect();
        let bytes = pieces.iter().map(|piece| batch_bytes(piece)).sum::<usize>();
        room.reach(bytes as u64).map_err(RamError::Room)?;
        let copiers = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_COPIERS).min(pieces.len());
        let mut rest = &mut room.map[..];
        let work = Mutex::new(pieces.into_iter().map(|piece| {
            let (held, others) = std::mem::take(&mut rest).split_at_mut(batch_bytes(&piece));
            rest = others;
            (piece, held)
        }));
        let copy = || -> Result<(), RamError> {
            loop {
                let next = work.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some((piece, held)) = next else { return Ok(()) };
                self.copy_out(&piece, held)?;
            }
        };
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..copiers).map(|_| scope.spawn(copy)).collect();
            let own = copy();
            others.into_iter().map(|other| other.join().expect("a copy does not panic")).fold(own, Result::and)
        })?;
        Ok(Captured { room, pages, base, memory_bytes: self.memory_bytes })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

    use super::*;

    #[test]
    #[expect(unsafe_code, reason = "a private mapping of a file has no safe wrapper")]
    fn what_is_captured_and_packed_is_what_a_dump_writes_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let memory_bytes = 1200 * PAGE_BYTES;
        let base = tempfile::tempfile().unwrap();
        base.set_len(memory_bytes).unwrap();
        base.write_all_at(&[9; 4096], 3 * PAGE_BYTES).unwrap();
        let length = usize::try_from(memory_bytes).unwrap();
        // SAFETY: a new mapping at an address of the kernel's choice.
        let address =
            unsafe { mmap(std::ptr::null_mut(), length, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE, &base, 0) }
                .unwrap();
        // SAFETY: all of it is mapped, writable, and referred to by nothing else.
        let memory = unsafe { std::slice::from_raw_parts_mut(address.cast::<u8>(), length) };
        let page = |n: usize| n * 4096..(n + 1) * 4096;
        memory[page(1)].fill(1);
        memory[page(3)].fill(0);
        memory[page(4)].fill(0);
        for (n, fill) in (100..1100).zip((1..=255).cycle()) {
            memory[page(n)].fill(fill);
        }
        let ram = Ram::find(std::process::id(), base.metadata().unwrap().ino(), memory_bytes).unwrap();
        let (at_once, packed) = (dir.path().join("at-once"), dir.path().join("packed"));
        let dumped = ram.dump(&base, &at_once).unwrap();
        // Far too little room, as when a guest wrote much between the estimate and its freeze.
        let room = PageBuffer::take(dir.path(), PAGE_BYTES).unwrap();
        let captured = ram.capture(base.try_clone().unwrap(), room).unwrap();
        // What the guest does from now on is not of that instant.
        memory[page(1)].fill(77);
        // SAFETY: it is the mapping from above, and nothing refers to its memory any more.
        unsafe { munmap(address, length) }.unwrap();
        assert_eq!(captured.bytes(), 1003 * PAGE_BYTES);
        assert_eq!(captured.pack(&packed).unwrap(), dumped);
        assert_eq!(dumped.data_pages, 1001);
        assert!(fs_err::read(&packed).unwrap() == fs_err::read(&at_once).unwrap(), "not the same diff");
        assert_eq!(fs_err::read_dir(dir.path()).unwrap().count(), 2, "the room had no name");
    }
}
