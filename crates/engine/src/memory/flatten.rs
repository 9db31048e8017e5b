//! A base and a diff become one memory again, so that what a restore has to write into a machine does not grow for ever.
//!
//! The result is what the machine's memory was: sparse like its base, with holes where the diff says zeros. It is a whole memory
//! that machines map, as a template's is; base and diff are only read.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use fs_err::os::unix::fs::OpenOptionsExt;
use rustix::fs::{FallocateFlags, fallocate};

use super::{
    BATCH_BYTES, PAGE_BYTES,
    diff::{Content, Diff, OpenError},
    sparse::next_data,
};

/// Why a memory was not flattened.
#[derive(Debug, thiserror::Error)]
pub enum FlattenError {
    /// The diff is of no use.
    #[error("cannot flatten a memory")]
    Diff(#[from] OpenError),
    /// The base could not be read.
    #[error("cannot read memory `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The result could not be written.
    #[error("cannot write memory `{}`", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The caller did not want it any more.
    #[error("the flattening of a memory was cancelled")]
    Stopped,
}

/// Writes the memory that `diff` over `base` is to `out` (mode 0600, must not exist). Given up as soon as `goes_on` says no. Not
/// synced. On failure `out` may exist.
pub fn flatten(base: &Path, diff: &Path, out: &Path, goes_on: &dyn Fn() -> bool) -> Result<(), FlattenError> {
    let read = |source| FlattenError::Read { path: base.to_path_buf(), source };
    let write = |source| FlattenError::Write { path: out.to_path_buf(), source };
    let source = fs_err::File::open(base).map_err(read)?.into_parts().0;
    let length = source.metadata().map_err(read)?.len();
    let diff = Diff::open(diff, length)?;
    let target = fs_err::OpenOptions::new().write(true).create_new(true).mode(0o600).open(out).map_err(write)?;
    let target = target.into_parts().0;
    target.set_len(length).map_err(write)?;

    let mut buffer = vec![0; BATCH_BYTES];
    let mut position = 0;
    while let Some(data) = next_data(&source, position, length).map_err(read)? {
        let mut at = data.start;
        while at < data.end {
            if !goes_on() {
                return Err(FlattenError::Stopped);
            }
            let take = usize::try_from(data.end - at).unwrap_or(usize::MAX).min(buffer.len());
            source.read_exact_at(&mut buffer[..take], at).map_err(read)?;
            target.write_all_at(&buffer[..take], at).map_err(write)?;
            at += take as u64;
        }
        position = data.end;
    }
    lay_over(&diff, &target, &mut buffer, goes_on).map_err(|error| error.map_or(FlattenError::Stopped, write))
}

/// Puts the pages of `diff` into `target`. An error without a cause is one of the caller's will.
fn lay_over(diff: &Diff, target: &File, buffer: &mut [u8], goes_on: &dyn Fn() -> bool) -> Result<(), Option<io::Error>> {
    let mut stored = 0;
    for run in diff.runs() {
        let (mut page, end) = (run.first_page, run.range().end);
        if run.content == Content::Zero {
            let bytes = u64::from(run.pages) * PAGE_BYTES;
            fallocate(target, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, page * PAGE_BYTES, bytes)
                .map_err(|errno| Some(errno.into()))?;
            continue;
        }
        while page < end {
            if !goes_on() {
                return Err(None);
            }
            let pages = (end - page).min(BATCH_BYTES as u64 / PAGE_BYTES);
            let bytes = &mut buffer[..usize::try_from(pages * PAGE_BYTES).expect("at most a batch")];
            diff.read_data(stored, bytes).map_err(Some)?;
            target.write_all_at(bytes, page * PAGE_BYTES).map_err(Some)?;
            (page, stored) = (page + pages, stored + pages);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::memory::diff::Writer;

    const PAGES: u64 = 2000; // more than one batch

    /// A base of ones with a hole, and a diff that writes, zeroes and fills.
    fn scene(dir: &Path) -> (PathBuf, PathBuf, Vec<u8>) {
        let (base, diff) = (dir.join("base"), dir.join("diff"));
        let mut expected = vec![1; usize::try_from(PAGES).unwrap()];
        let file = fs_err::File::create(&base).unwrap().into_parts().0;
        file.set_len(PAGES * PAGE_BYTES).unwrap();
        for page in (0..PAGES).filter(|page| !(100..1200).contains(page)) {
            file.write_all_at(&[1; 4096], page * PAGE_BYTES).unwrap();
        }
        expected[100..1200].fill(0);
        let mut writer = Writer::create(&diff, PAGES * PAGE_BYTES).unwrap();
        for (range, fill) in [(0..50, 2u8), (50..60, 0), (150..1500, 3), (1999..2000, 4)] {
            for page in range.clone() {
                writer.note(page as u64, if fill == 0 { Content::Zero } else { Content::Data });
            }
            if fill != 0 {
                writer.append(&vec![fill; range.len() * 4096]).unwrap();
            }
            expected[range].fill(fill);
        }
        writer.finish().unwrap();
        (base, diff, expected)
    }

    #[test]
    fn the_result_is_base_and_diff_and_as_sparse() {
        let dir = tempfile::tempdir().unwrap();
        let (base, diff, expected) = scene(dir.path());
        let out = dir.path().join("out");
        flatten(&base, &diff, &out, &|| true).unwrap();
        let found: Vec<u8> = fs_err::read(&out).unwrap().chunks(4096).map(|page| page[17]).collect();
        assert_eq!(found, expected);
        let held = expected.iter().filter(|&&fill| fill != 0).count() as u64;
        let blocks = fs_err::metadata(&out).unwrap().blocks() * 512;
        assert!(blocks <= (held + 64) * PAGE_BYTES, "{blocks} bytes for {held} pages");
    }

    #[test]
    fn what_does_not_fit_is_refused_and_what_is_not_wanted_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let (base, diff, _) = scene(dir.path());
        let out = |n: u32| dir.path().join(n.to_string());
        assert!(matches!(flatten(&base, &diff, &out(1), &|| false), Err(FlattenError::Stopped)));
        fs_err::OpenOptions::new().write(true).open(&base).unwrap().set_len(4096).unwrap();
        assert!(matches!(flatten(&base, &diff, &out(2), &|| true), Err(FlattenError::Diff(OpenError::Memory { .. }))));
        assert!(matches!(flatten(&diff.with_extension("x"), &diff, &out(3), &|| true), Err(FlattenError::Read { .. })));
    }
}
