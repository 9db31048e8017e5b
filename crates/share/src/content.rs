//! The content of files.

use std::{os::fd::OwnedFd, sync::Arc};

use rustix::{
    fs::{FallocateFlags, OFlags, fallocate, fdatasync, fsync},
    io::{Errno, pread, pwrite},
};

use crate::{
    answer::{Guest, entry, opened},
    message::{Head, Name, Reply},
    room::Sizes,
    tree::{Share, stat_at, stat_of},
};

/// What a file grows by, and what its file system adds for itself.
const BLOCK_BYTES: u64 = 4096;

/// How many entries that take each other's place are gone after, each within the time of an open, before a program is told that its file is gone.
const SUCCESSORS: usize = 64;

/// What programs are told of the size of blocks.
const FIGURES_BLOCK_BYTES: u32 = 4096;

/// The longest name, as programs are told it.
const LONGEST_NAME: u32 = 255;

impl Guest {
    /// Opens a file, or what has its place by now.
    pub(crate) fn open(&self, node: u64, flags: u32, reply: &mut Reply) -> Result<(), Errno> {
        match self.keep(node, flags) {
            Err(Errno::STALE) => {
                let (successor, file) = self.keep_successor(node, flags)?;
                // The guest goes on to call it by the number that it asked for.
                self.share.opened.open(&self.here, node, &file);
                if self.share.opened.holds(node) {
                    self.here.stands_for(node, successor);
                }
            }
            kept => drop(kept?),
        }
        opened(reply);
        Ok(())
    }

    /// The one that has the place of an entry that is gone, and its file. It may lose that place as soon as it was found.
    fn keep_successor(&self, node: u64, flags: u32) -> Result<(u64, Arc<OwnedFd>), Errno> {
        let mut tried = 1;
        loop {
            let (successor, _) = self.share.successor(node)?;
            match self.keep(successor, flags) {
                Err(Errno::STALE) if tried < SUCCESSORS => tried += 1,
                kept => return Ok((successor, kept?)),
            }
        }
    }

    fn keep(&self, node: u64, flags: u32) -> Result<Arc<OwnedFd>, Errno> {
        let file = self.share.file(node)?;
        if OFlags::from_bits_retain(flags).contains(OFlags::TRUNC) {
            self.share.truncate(node, 0)?;
        }
        if self.share.opened.open(&self.here, node, &file)
            && let Err(gone) = self.share.open(node, OFlags::PATH)
        {
            // Who removed it just before that knew nobody who has it open, and has given back what it takes.
            self.close(node)?;
            return Err(gone);
        }
        Ok(file)
    }

    pub(crate) fn close(&self, node: u64) -> Result<(), Errno> {
        let close = |node| self.share.opened.close(&self.here, node).map_or(Ok(()), |owed| self.share.give_back(owed));
        close(node)?;
        self.here.stood_for(node).map_or(Ok(()), close)
    }

    /// Makes a file and opens it, or opens the one that is there.
    pub(crate) fn create(&self, head: &Head, name: Name<'_>, (flags, mode): (u32, u32), reply: &mut Reply) -> Result<(), Errno> {
        let share = &self.share;
        let (node, stat) = match share.make_file(head, name, mode) {
            Err(Errno::EXIST) if !OFlags::from_bits_retain(flags).contains(OFlags::EXCL) => {
                let directory = share.directory(head.node)?;
                let stat = stat_at(&directory.fd, name.as_os_str())?;
                (share.learn(head.node, name.as_os_str(), &stat), stat)
            }
            made => made?,
        };
        entry(node, &stat, reply);
        self.open(node, flags, reply)
    }
}

impl Share {
    /// A file to read and write: the open one, or one that is opened for this.
    pub(crate) fn file(&self, node: u64) -> Result<Arc<OwnedFd>, Errno> {
        match self.opened.get(node) {
            Some(file) => Ok(file),
            None => Ok(Arc::new(self.open(node, OFlags::RDWR)?.fd)),
        }
    }

    /// Within a change: refuses a file that nobody has open and that has been taken out of the directory.
    pub(crate) fn still_counts(&self, node: u64) -> Result<(), Errno> {
        if self.opened.holds(node) { Ok(()) } else { self.still(node) }
    }

    /// Gives back what a file takes that was removed while it was open, and goes now.
    pub(crate) fn give_back(&self, file: Arc<OwnedFd>) -> Result<(), Errno> {
        let before = self.size(&stat_of(&*file)?);
        let mut file = Some(file);
        self.room.change(0, &mut || {
            drop(file.take());
            Ok(Sizes { before, after: 0 })
        })
    }

    pub(crate) fn read(&self, node: u64, offset: u64, size: u32, reply: &mut Reply) -> Result<(), Errno> {
        let file = self.file(node)?;
        let size = usize::try_from(size).map_err(|_| Errno::INVAL)?;
        reply.content(size, |buffer| {
            let mut filled = 0;
            while filled < buffer.len() {
                match pread(&*file, &mut buffer[filled..], offset + filled as u64)? {
                    0 => break,
                    read => filled += read,
                }
            }
            Ok(filled)
        })
    }

    /// Writes, as far as there is room. What is appended goes to where the file ends now, which its writer may not have heard of yet.
    pub(crate) fn write(&self, node: u64, (offset, flags): (u64, u32), data: &[u8], reply: &mut Reply) -> Result<(), Errno> {
        let file: Arc<_> = self.file(node)?;
        let appends = OFlags::from_bits_retain(flags).contains(OFlags::APPEND);
        let most = (data.len() as u64).next_multiple_of(BLOCK_BYTES) + BLOCK_BYTES;
        let mut written = 0;
        self.room.change(most, &mut || {
            self.still_counts(node)?;
            let before = stat_of(&*file)?;
            let at = if appends { before.stx_size } else { offset };
            let mut failed = None;
            while written < data.len() && failed.is_none() {
                match pwrite(&*file, &data[written..], at + written as u64) {
                    Ok(0) => failed = Some(Errno::IO),
                    Ok(more) => written += more,
                    Err(error) => failed = Some(error),
                }
            }
            let sizes = Sizes { before: self.size(&before), after: self.size(&stat_of(&*file)?) };
            // What was written counts, also if not all of it was.
            failed.filter(|_| written == 0).map_or(Ok(sizes), Err)
        })?;
        reply.u32(u32::try_from(written).map_err(|_| Errno::IO)?).u32(0);
        Ok(())
    }

    pub(crate) fn allocate(&self, node: u64, offset: u64, length: u64, mode: u32) -> Result<(), Errno> {
        let mode = FallocateFlags::from_bits(mode).ok_or(Errno::OPNOTSUPP)?;
        let known = FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE;
        if !known.contains(mode) {
            return Err(Errno::OPNOTSUPP);
        }
        let file = self.file(node)?;
        let takes = if mode.contains(FallocateFlags::PUNCH_HOLE) { 0 } else { length.saturating_add(2 * BLOCK_BYTES) };
        self.room.change(takes, &mut || {
            self.still_counts(node)?;
            let before = self.size(&stat_of(&*file)?);
            fallocate(&*file, mode, offset, length)?;
            Ok(Sizes { before, after: self.size(&stat_of(&*file)?) })
        })
    }

    /// Makes a file or a directory durable, with what it is called.
    pub(crate) fn sync(&self, node: u64, data_only: bool) -> Result<(), Errno> {
        if self.opened.holds(node) {
            let file = self.file(node)?;
            return if data_only { fdatasync(&*file) } else { fsync(&*file) };
        }
        fsync(self.open(node, OFlags::RDONLY)?.fd)
    }

    pub(crate) fn figures(&self, reply: &mut Reply) {
        let figures = self.room.figures();
        let blocks = |bytes: u64| bytes / u64::from(FIGURES_BLOCK_BYTES);
        let entries = |bytes: u64| bytes / self.room.size(0).max(1);
        let free = figures.quota.saturating_sub(figures.used);
        reply.u64(blocks(figures.quota)).u64(blocks(free)).u64(blocks(free)).u64(entries(figures.quota)).u64(entries(free));
        reply.u32(FIGURES_BLOCK_BYTES).u32(LONGEST_NAME).u32(FIGURES_BLOCK_BYTES).u32(0).bytes(&[0; 24]);
    }
}
