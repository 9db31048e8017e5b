//! Zero pages of a memory file are holes, not blocks.
//!
//! A guest that has booted leaves many pages that were touched and are zero again. In a template they would be read, hashed,
//! copied and cached for nothing, so they are punched out once, before the file is sealed. A hole reads as zeros: a machine
//! that has the file mapped sees no difference.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt};

use rustix::{
    fs::{FallocateFlags, SeekFrom, fallocate},
    io::Errno,
};

use super::{BATCH_BYTES, PAGE_BYTES, is_zero};

/// Punches every all-zero page out of `file`, and gives the bytes that were freed.
pub fn punch_zero_pages(file: &File) -> io::Result<u64> {
    let length = file.metadata()?.len();
    let (mut freed, mut position) = (0, 0);
    let mut buffer = vec![0; BATCH_BYTES];
    while let Some(data) = next_data(file, position, length)? {
        let mut at = data.start;
        while at < data.end {
            let take = usize::try_from(data.end - at).unwrap_or(usize::MAX).min(buffer.len());
            file.read_exact_at(&mut buffer[..take], at)?;
            for zeros in zero_ranges(&buffer[..take]) {
                let (start, bytes) = (at + zeros.start, zeros.end - zeros.start);
                fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, start, bytes)?;
                freed += bytes;
            }
            at += take as u64;
        }
        position = data.end;
    }
    Ok(freed)
}

/// The next stretch that has blocks, from page boundary to page boundary.
pub(super) fn next_data(file: &File, from: u64, length: u64) -> io::Result<Option<Range<u64>>> {
    if from >= length {
        return Ok(None);
    }
    let start = match rustix::fs::seek(file, SeekFrom::Data(from)) {
        Ok(start) => start - start % PAGE_BYTES,
        Err(Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let end = rustix::fs::seek(file, SeekFrom::Hole(start.max(from)))?;
    Ok(Some(start.max(from)..end.next_multiple_of(PAGE_BYTES).min(length)))
}

/// Ranges of all-zero pages within `bytes`.
fn zero_ranges(bytes: &[u8]) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for (page, content) in (0u64..).zip(bytes.chunks_exact(4096)) {
        if !is_zero(content) {
            continue;
        }
        let start = page * PAGE_BYTES;
        match ranges.last_mut() {
            Some(range) if range.end == start => range.end += PAGE_BYTES,
            _ => ranges.push(start..start + PAGE_BYTES),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn zero_pages_become_holes_and_the_rest_stays() {
        let file = tempfile::tempfile().unwrap();
        let pages = 3000u64; // more than one batch
        file.set_len((pages + 1000) * PAGE_BYTES).unwrap();
        for page in 0..pages {
            let fill = if page % 3 == 0 { 7 } else { 0 };
            file.write_all_at(&[fill; 4096], page * PAGE_BYTES).unwrap();
        }
        file.sync_all().unwrap();
        let before = file.metadata().unwrap().blocks();
        let freed = punch_zero_pages(&file).unwrap();
        assert_eq!(freed, 2000 * PAGE_BYTES);
        assert!(file.metadata().unwrap().blocks() < before);
        let mut page = [0; 4096];
        for at in 0..pages {
            file.read_exact_at(&mut page, at * PAGE_BYTES).unwrap();
            assert!(page.iter().all(|&byte| byte == if at % 3 == 0 { 7 } else { 0 }));
        }
        assert_eq!(punch_zero_pages(&file).unwrap(), 0, "a second pass finds nothing");
    }
}
