//! Guest memory inside another process: where it is mapped, which of its pages are private, copying them out and in.
//!
//! An engine maps the base file privately; a page that the guest (or we) wrote is then an anonymous page of that process.
//! `PAGEMAP_SCAN` (Linux 6.7) finds those in one call, the older `pagemap` bits are the fallback. Copying goes through
//! `process_vm_readv` and `process_vm_writev`, so the engine needs no code for it and may run without any privilege.

use std::{
    fs::File,
    io::{self, BufRead, IoSlice, IoSliceMut},
    ops::Range,
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::FileExt,
    },
    path::Path,
};

use nix::{
    errno::Errno,
    sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev},
    unistd::Pid,
};

use super::{
    BATCH_BYTES, PAGE_BYTES,
    diff::{Content, Diff, Run, WriteError, Writer, Written},
    is_zero,
};

/// Most ranges in one `process_vm` call: the kernel's `UIO_MAXIOV` is 1024.
const MAX_RANGES: usize = 1024;
/// Most mappings that are looked at. A QEMU process has some hundreds.
const MAX_MAPPINGS: usize = 65_536;

/// One mapping of a part of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    address: u64,
    bytes: u64,
    offset: u64,
}

/// Where a process has mapped a guest's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ram {
    pid: u32,
    pub(super) memory_bytes: u64,
    segments: Vec<Segment>,
}

/// Why guest memory was not found or not copied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RamError {
    #[error("cannot read the mappings of process {pid}")]
    Maps {
        pid: u32,
        #[source]
        source: io::Error,
    },
    #[error("process {pid} does not map the whole of its guest memory")]
    NotMapped { pid: u32 },
    #[error("cannot find the private pages of process {pid}")]
    Scan {
        pid: u32,
        #[source]
        source: io::Error,
    },
    #[error("cannot copy guest memory of process {pid}")]
    Copy {
        pid: u32,
        #[source]
        source: io::Error,
    },
    #[error("cannot take room for guest memory")]
    Room(#[source] io::Error),
    #[error("cannot read the base of guest memory")]
    Base(#[source] io::Error),
    #[error("cannot read the pages of the memory diff")]
    Diff(#[source] io::Error),
    #[error(transparent)]
    Write(#[from] WriteError),
}

impl Ram {
    /// Finds the mappings of the file with this inode number that cover `memory_bytes` from its start.
    pub(crate) fn find(pid: u32, inode: u64, memory_bytes: u64) -> Result<Self, RamError> {
        let maps = |source| RamError::Maps { pid, source };
        let file = File::open(format!("/proc/{pid}/maps")).map_err(maps)?;
        let mut segments = Vec::new();
        for line in io::BufReader::new(file).lines().take(MAX_MAPPINGS) {
            segments.extend(parse_mapping(&line.map_err(maps)?, inode));
        }
        segments.sort_by_key(|segment| segment.offset);
        let mut covered = 0;
        for segment in &segments {
            if segment.offset != covered {
                return Err(RamError::NotMapped { pid });
            }
            covered += segment.bytes;
        }
        if covered == memory_bytes { Ok(Self { pid, memory_bytes, segments }) } else { Err(RamError::NotMapped { pid }) }
    }

    /// Address ranges of the mappings, as they stand in `/proc/<pid>/smaps`.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.segments.iter().map(|segment| segment.address..segment.address + segment.bytes)
    }

    /// The addresses of a range of guest memory: more than one only where a mapping ends.
    fn resolve(&self, memory: Range<u64>) -> Vec<Range<u64>> {
        let overlap = |segment: &Segment| {
            let start = memory.start.max(segment.offset);
            let end = memory.end.min(segment.offset + segment.bytes);
            (start < end).then(|| segment.address + (start - segment.offset)..segment.address + (end - segment.offset))
        };
        self.segments.iter().filter_map(overlap).collect()
    }

    /// Private pages, as ascending ranges of page numbers.
    pub(super) fn private_pages(&self) -> Result<Vec<Range<u64>>, RamError> {
        self.scan().map_err(|source| RamError::Scan { pid: self.pid, source })
    }

    fn scan(&self) -> io::Result<Vec<Range<u64>>> {
        let pagemap = File::open(format!("/proc/{}/pagemap", self.pid))?;
        let mut pages = Vec::new();
        for segment in &self.segments {
            let addresses = segment.address..segment.address + segment.bytes;
            let found = match scan::private(&pagemap, addresses.clone()) {
                Err(Errno::ENOTTY | Errno::EINVAL) => private_by_bits(&pagemap, addresses)?,
                other => other?,
            };
            pages.extend(found.into_iter().map(|range| {
                let page = |address: u64| (address - segment.address + segment.offset) / PAGE_BYTES;
                page(range.start)..page(range.end)
            }));
        }
        Ok(pages)
    }

    /// Bytes of private pages: a diff holds at most these.
    pub(crate) fn private_bytes(&self) -> Result<u64, RamError> {
        let pages = self.private_pages()?;
        Ok(pages.iter().map(|range| (range.end - range.start) * PAGE_BYTES).sum())
    }

    /// Packs every private page that differs from `base` into a new file at `out`. The process must not run its guest.
    pub(crate) fn dump(&self, base: &File, out: &Path) -> Result<Written, RamError> {
        let pages = self.private_pages()?;
        let mut writer = Writer::create(out, self.memory_bytes)?;
        let mut buffer = vec![0; BATCH_BYTES];
        for batch in batches(pages.into_iter(), BATCH_BYTES) {
            let held = &mut buffer[..batch_bytes(&batch)];
            self.copy_out(&batch, held)?;
            pack(&mut writer, base, &batch, held)?;
        }
        Ok(writer.finish()?)
    }

    /// Puts a diff's pages into the process, which must not run its guest yet.
    pub(crate) fn apply(&self, diff: &Diff) -> Result<(), RamError> {
        let of = |content| diff.runs().iter().filter(move |run| run.content == content).map(Run::range);
        let mut buffer = vec![0; BATCH_BYTES];
        for batch in batches(of(Content::Zero), BATCH_BYTES) {
            self.copy_in(&batch, &buffer[..batch_bytes(&batch)])?;
        }
        let mut stored = 0;
        for batch in batches(of(Content::Data), BATCH_BYTES) {
            let bytes = batch_bytes(&batch);
            diff.read_data(stored, &mut buffer[..bytes]).map_err(RamError::Diff)?;
            self.copy_in(&batch, &buffer[..bytes])?;
            stored += bytes as u64 / PAGE_BYTES;
        }
        Ok(())
    }

    pub(super) fn copy_out(&self, batch: &[Range<u64>], buffer: &mut [u8]) -> Result<(), RamError> {
        let expected = buffer.len();
        let remote = self.remote(batch);
        let copied = process_vm_readv(self.nix_pid(), &mut [IoSliceMut::new(buffer)], &remote);
        self.whole(copied, expected)
    }

    fn copy_in(&self, batch: &[Range<u64>], buffer: &[u8]) -> Result<(), RamError> {
        let remote = self.remote(batch);
        let copied = process_vm_writev(self.nix_pid(), &[IoSlice::new(buffer)], &remote);
        self.whole(copied, buffer.len())
    }

    fn whole(&self, copied: nix::Result<usize>, expected: usize) -> Result<(), RamError> {
        let failed = |source| RamError::Copy { pid: self.pid, source };
        match copied.map_err(|errno| failed(errno.into()))? {
            n if n == expected => Ok(()),
            _ => Err(failed(io::ErrorKind::UnexpectedEof.into())),
        }
    }

    fn remote(&self, batch: &[Range<u64>]) -> Vec<RemoteIoVec> {
        let addresses = batch.iter().flat_map(|pages| self.resolve(pages.start * PAGE_BYTES..pages.end * PAGE_BYTES));
        let word = |value: u64| usize::try_from(value).expect("addresses of a 64-bit host");
        addresses.map(|range| RemoteIoVec { base: word(range.start), len: word(range.end - range.start) }).collect()
    }

    fn nix_pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.pid).expect("the kernel's pids are positive i32"))
    }
}

/// A line of `/proc/<pid>/maps`, when it maps the file with this inode number privately or shared.
fn parse_mapping(line: &str, inode: u64) -> Option<Segment> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let offset = fields.nth(1)?;
    if fields.nth(1)?.parse::<u64>().ok()? != inode || inode == 0 {
        return None;
    }
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let (start, end) = (hex(start)?, hex(end)?);
    Some(Segment { address: start, bytes: end.checked_sub(start)?, offset: hex(offset)? })
}

/// Adds the pages of `batch`, which `held` holds in their order, to a diff over `base`.
pub(super) fn pack(writer: &mut Writer, base: &File, batch: &[Range<u64>], held: &mut [u8]) -> Result<(), RamError> {
    let mut kept = 0;
    for (slot, page) in batch.iter().cloned().flatten().enumerate() {
        let content = slot * 4096..(slot + 1) * 4096;
        if !is_zero(&held[content.clone()]) {
            writer.note(page, Content::Data);
            if kept < content.start {
                held.copy_within(content, kept);
            }
            kept += 4096;
        } else if !base_is_zero(base, page).map_err(RamError::Base)? {
            writer.note(page, Content::Zero);
        }
    }
    Ok(writer.append(&held[..kept])?)
}

fn base_is_zero(base: &File, page: u64) -> io::Result<bool> {
    let mut content = [0; 4096];
    base.read_exact_at(&mut content, page * PAGE_BYTES)?;
    Ok(is_zero(&content))
}

pub(super) fn batch_bytes(batch: &[Range<u64>]) -> usize {
    batch.iter().map(|pages| usize::try_from((pages.end - pages.start) * PAGE_BYTES).expect("a batch fits into memory")).sum()
}

/// Groups page ranges, cut where needed, so that a group has at most `most` bytes and fits one system call. Half of the kernel's
/// limit of ranges is left for those that cross from one mapping into the next.
pub(super) fn batches(pages: impl Iterator<Item = Range<u64>>, most: usize) -> impl Iterator<Item = Vec<Range<u64>>> {
    let mut pages = pages.peekable();
    let mut rest: Option<Range<u64>> = None;
    std::iter::from_fn(move || {
        let (mut batch, mut room) = (Vec::new(), most as u64 / PAGE_BYTES);
        while room > 0 && batch.len() < MAX_RANGES / 2 {
            let Some(range) = rest.take().or_else(|| pages.next()) else { break };
            let cut = range.end.min(range.start + room);
            room -= cut - range.start;
            batch.push(range.start..cut);
            rest = (cut < range.end).then_some(cut..range.end);
        }
        (!batch.is_empty()).then_some(batch)
    })
}

/// Bits of a `pagemap` entry, from the kernel's admin-guide/mm/pagemap.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const FILE_OR_SHARED: u64 = 1 << 61;

/// Kernels before 6.7: one word a page. Entries are read in chunks, because 16 GiB have 32 MiB of them.
fn private_by_bits(pagemap: &File, addresses: Range<u64>) -> io::Result<Vec<Range<u64>>> {
    let mut found: Vec<Range<u64>> = Vec::new();
    let mut entries = vec![0; 8 * 65_536];
    let mut at = addresses.start;
    while at < addresses.end {
        let count = ((addresses.end - at) / PAGE_BYTES).min(65_536);
        let take = usize::try_from(count * 8).expect("bounded by the buffer");
        pagemap.read_exact_at(&mut entries[..take], at / PAGE_BYTES * 8)?;
        for (n, entry) in (0u64..).zip(entries[..take].chunks_exact(8)) {
            let entry = u64::from_ne_bytes(entry.try_into().expect("eight bytes"));
            if entry & (PRESENT | SWAPPED) == 0 || entry & FILE_OR_SHARED != 0 {
                continue;
            }
            let start = at + n * PAGE_BYTES;
            match found.last_mut() {
                Some(range) if range.end == start => range.end += PAGE_BYTES,
                _ => found.push(start..start + PAGE_BYTES),
            }
        }
        at += count * PAGE_BYTES;
    }
    Ok(found)
}

#[expect(unsafe_code, reason = "PAGEMAP_SCAN has no safe wrapper")]
mod scan {
    //! `ioctl(PAGEMAP_SCAN)`, as in the kernel's uapi `linux/fs.h`.

    use super::{AsFd, AsRawFd, Errno, File, Range};

    const PAGE_IS_FILE: u64 = 1 << 2;
    const PAGE_IS_PRESENT: u64 = 1 << 3;
    const PAGE_IS_SWAPPED: u64 = 1 << 4;
    /// Regions that one call can give: 192 KiB of them.
    const REGIONS: usize = 8192;

    #[repr(C)]
    #[derive(Clone, Copy)]
    pub(super) struct Region {
        start: u64,
        end: u64,
        categories: u64,
    }

    #[repr(C)]
    pub(super) struct Argument {
        size: u64,
        flags: u64,
        start: u64,
        end: u64,
        walk_end: u64,
        regions: u64,
        region_count: u64,
        max_pages: u64,
        category_inverted: u64,
        category_mask: u64,
        category_anyof_mask: u64,
        return_mask: u64,
    }

    nix::ioctl_readwrite!(pagemap_scan, b'f', 16, Argument);

    /// Ranges of addresses whose pages are present or swapped and belong to no file.
    pub(super) fn private(pagemap: &File, addresses: Range<u64>) -> Result<Vec<Range<u64>>, Errno> {
        let mut regions = vec![Region { start: 0, end: 0, categories: 0 }; REGIONS];
        let mut found: Vec<Range<u64>> = Vec::new();
        let mut at = addresses.start;
        while at < addresses.end {
            let mut argument = Argument {
                size: size_of::<Argument>() as u64,
                flags: 0,
                start: at,
                end: addresses.end,
                walk_end: 0,
                regions: regions.as_mut_ptr() as u64,
                region_count: REGIONS as u64,
                max_pages: 0,
                category_inverted: PAGE_IS_FILE,
                category_mask: PAGE_IS_FILE,
                category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
                return_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            };
            // SAFETY: `argument` is the kernel's structure and says so by its size; `regions` has `region_count` elements of
            // the kernel's layout, is writable, and outlives the call.
            let count = unsafe { pagemap_scan(pagemap.as_fd().as_raw_fd(), &raw mut argument) }?;
            let count = usize::try_from(count).map_err(|_| Errno::EINVAL)?.min(REGIONS);
            for region in &regions[..count] {
                match found.last_mut() {
                    Some(range) if range.end == region.start => range.end = region.end,
                    _ => found.push(region.start..region.end),
                }
            }
            // How far the walk came is told by the regions: once there are more than 512, the kernel (6.18 at least) leaves
            // `walk_end` where it last emptied its own buffer, and walking on from there finds the same pages again.
            at = match regions[..count].last() {
                Some(last) if count == REGIONS && last.end <= at => return Err(Errno::EIO),
                Some(last) if count == REGIONS => last.end,
                _ => addresses.end,
            };
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use proptest::prelude::*;
    use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

    use super::*;

    #[test]
    fn a_mapping_is_found_by_inode() {
        let line = "7f0000000000-7f0000400000 rw-p 00001000 fe:00 4711                       /srv/a file (deleted)";
        let segment = Segment { address: 0x7f00_0000_0000, bytes: 0x40_0000, offset: 0x1000 };
        assert_eq!(parse_mapping(line, 4711), Some(segment));
        assert_eq!(parse_mapping(line, 4712), None);
        assert_eq!(parse_mapping("7ff0-7ff1 rw-p 0 00:00 0 [heap]", 0), None);
    }

    #[test]
    #[expect(unsafe_code, reason = "a private mapping of a file has no safe wrapper")]
    fn scattered_private_pages_are_found_once_and_in_order() {
        // More regions than the kernel gathers before it hands them over, and more than one call gives.
        for pages in [600, 66_000] {
            let memory_bytes = 2 * pages * PAGE_BYTES;
            let file = tempfile::tempfile().unwrap();
            file.set_len(memory_bytes).unwrap();
            let length = usize::try_from(memory_bytes).unwrap();
            let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
            // SAFETY: a new mapping at an address of the kernel's choice; nothing refers to its memory.
            let address = unsafe { mmap(std::ptr::null_mut(), length, access, flags, &file, 0) }.unwrap();
            let ram = Ram::find(std::process::id(), file.metadata().unwrap().ino(), memory_bytes).unwrap();
            let scattered: Vec<Range<u64>> = (0..pages).map(|n| 2 * n..2 * n + 1).collect();
            for batch in batches(scattered.iter().cloned(), BATCH_BYTES) {
                ram.copy_in(&batch, &vec![1; batch_bytes(&batch)]).unwrap();
            }
            let found = ram.private_pages().unwrap();
            // SAFETY: it is the mapping from above, and nothing refers to its memory.
            unsafe { munmap(address, length) }.unwrap();
            assert!(found == scattered, "{} ranges instead of {pages}", found.len());
        }
    }

    proptest! {
        #[test]
        fn batches_hold_every_page_once_and_fit(lengths in proptest::collection::vec((1u64..3, 1u64..3000), 0..50)) {
            let mut at = 0;
            let ranges: Vec<Range<u64>> = lengths.iter().map(|&(gap, pages)| {
                let start = at + gap;
                at = start + pages;
                start..at
            }).collect();
            let batches: Vec<_> = batches(ranges.clone().into_iter(), BATCH_BYTES).collect();
            for batch in &batches {
                prop_assert!(batch_bytes(batch) <= BATCH_BYTES && batch.len() <= MAX_RANGES / 2);
            }
            let pages: Vec<u64> = batches.into_iter().flatten().flatten().collect();
            prop_assert_eq!(pages, ranges.into_iter().flatten().collect::<Vec<_>>());
        }
    }
}
