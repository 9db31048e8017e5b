//! `memory.diff`: the pages of a restored machine that differ from its base, packed.
//!
//! ```text
//!   0            4096                        index_offset
//!   | header     | data pages, in run order  | index: 16 bytes a run |
//!
//!   header, little-endian:
//!     0  magic `FKNMDIFF`   8  version          12  page size      16  memory bytes
//!    24  runs              32  data pages       40  index offset   48  blake3 of the index   80  blake3 of bytes 0..80
//!   run: first page (u64), pages (u32), kind (u32: 0 = data, 1 = zero)
//! ```
//!
//! The index comes last so that one pass writes the file while the machine is stopped: what a run holds is known only after it
//! was copied. Runs are in ascending order and do not touch each other's pages; a page that became zero costs 16 bytes at most.
//! The header and the index carry their own digest, because a reader must trust them before it writes into a machine; the
//! data's integrity is that of the whole member, which is the artifact store's affair.

use std::{
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use fs_err::os::unix::fs::OpenOptionsExt;

use super::PAGE_BYTES;

const MAGIC: [u8; 8] = *b"FKNMDIFF";
/// Raised when a reader of the old version would misread a file. Readers keep every version that was ever released.
const VERSION: u32 = 1;
/// The header fills one page so that the data is aligned.
const HEADER_BYTES: u64 = PAGE_BYTES;
const RUN_BYTES: u64 = 16;
/// Largest guest memory that a diff can describe, so that page numbers and index sizes stay far from overflow.
const MAX_MEMORY_BYTES: u64 = 1 << 40;

/// The content of a run of pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Bytes that are stored in the file.
    Data,
    /// Zeros, where the base has something else.
    Zero,
}

/// Consecutive pages of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Number of the first page, counted from the start of guest memory.
    pub first_page: u64,
    /// How many.
    pub pages: u32,
    /// Their content.
    pub content: Content,
}

impl Run {
    /// The pages as numbers.
    pub fn range(&self) -> Range<u64> {
        self.first_page..self.first_page + u64::from(self.pages)
    }
}

/// Why a diff could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write memory diff `{}`", path.display())]
pub struct WriteError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// Writes a diff. Pages are given in ascending order; what is not finished has no header and cannot be opened.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    file: File,
    memory_bytes: u64,
    runs: Vec<Run>,
    /// Data pages noted, and of those the ones whose bytes are in the file.
    noted_pages: u64,
    data_pages: u64,
}

/// The size of a finished diff.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Pages stored.
    pub data_pages: u64,
    /// Runs of either kind.
    pub runs: u64,
}

impl Writer {
    /// Creates the file, mode 0600; an existing one is not touched.
    pub fn create(path: &Path, memory_bytes: u64) -> Result<Self, WriteError> {
        assert!(memory_bytes <= MAX_MEMORY_BYTES && memory_bytes.is_multiple_of(PAGE_BYTES), "a machine's memory is bounded");
        let file = fs_err::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(|source| WriteError { path: path.to_path_buf(), source })?;
        Ok(Self {
            path: path.to_path_buf(),
            file: file.into_parts().0,
            memory_bytes,
            runs: Vec::new(),
            noted_pages: 0,
            data_pages: 0,
        })
    }

    /// Stores the bytes that belong to the data runs noted by [`Self::note`] since the last call, in their order.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        let pages = bytes.len() as u64 / PAGE_BYTES;
        assert_eq!(self.noted_pages - self.data_pages, pages, "every noted page has its bytes");
        self.file
            .write_all_at(bytes, HEADER_BYTES + self.data_pages * PAGE_BYTES)
            .map_err(|source| WriteError { path: self.path.clone(), source })?;
        self.data_pages = self.noted_pages;
        Ok(())
    }

    /// Notes one page. Data pages need their bytes by [`Self::append`].
    pub fn note(&mut self, page: u64, content: Content) {
        assert!(page < self.memory_bytes / PAGE_BYTES, "page {page} lies outside guest memory");
        self.noted_pages += u64::from(content == Content::Data);
        match self.runs.last_mut() {
            Some(run) if run.content == content && run.range().end == page && run.pages < u32::MAX => run.pages += 1,
            last => {
                assert!(last.is_none_or(|run| run.range().end <= page), "pages are given in ascending order");
                self.runs.push(Run { first_page: page, pages: 1, content });
            }
        }
    }

    /// Writes index and header. The file is not synced: when it must be durable is the caller's decision.
    pub fn finish(self) -> Result<Written, WriteError> {
        assert_eq!(self.noted_pages, self.data_pages, "every noted page has its bytes");
        let index: Vec<u8> = self.runs.iter().flat_map(encode_run).collect();
        let header = encode_header(self.memory_bytes, self.runs.len() as u64, self.data_pages, &index);
        let write = || {
            self.file.write_all_at(&index, HEADER_BYTES + self.data_pages * PAGE_BYTES)?;
            self.file.write_all_at(&header, 0)
        };
        write().map_err(|source| WriteError { path: self.path.clone(), source })?;
        Ok(Written { data_pages: self.data_pages, runs: self.runs.len() as u64 })
    }
}

fn encode_run(run: &Run) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&run.first_page.to_le_bytes());
    bytes[8..12].copy_from_slice(&run.pages.to_le_bytes());
    bytes[12..].copy_from_slice(&u32::from(run.content == Content::Zero).to_le_bytes());
    bytes
}

fn encode_header(memory_bytes: u64, runs: u64, data_pages: u64, index: &[u8]) -> Vec<u8> {
    let mut header = Vec::with_capacity(4096);
    header.extend(MAGIC);
    header.extend(VERSION.to_le_bytes());
    header.extend(4096u32.to_le_bytes());
    for word in [memory_bytes, runs, data_pages, HEADER_BYTES + data_pages * PAGE_BYTES] {
        header.extend(word.to_le_bytes());
    }
    header.extend(blake3::hash(index).as_bytes());
    let digest = blake3::hash(&header);
    header.extend(digest.as_bytes());
    header.resize(4096, 0);
    header
}

/// Why a diff was refused.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file could not be read.
    #[error("cannot read memory diff `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is of a version that this program does not know.
    #[error("cannot read memory diff `{}`: it is of version {version}, this program reads {VERSION}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// The file belongs to a machine of another size.
    #[error("cannot use memory diff `{}`: it is of a machine with {found} bytes of memory, not {expected}", path.display())]
    Memory {
        /// The file.
        path: PathBuf,
        /// The memory that it states, in bytes.
        found: u64,
        /// The machine's memory.
        expected: u64,
    },
    /// The file is damaged, or is no diff.
    #[error("cannot use memory diff `{}`: {problem}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The fault.
        problem: &'static str,
    },
}

/// An opened diff whose header and index were found valid.
#[derive(Debug)]
pub struct Diff {
    file: File,
    runs: Vec<Run>,
    data_pages: u64,
}

impl Diff {
    /// Opens a diff for a machine with `memory_bytes` of memory. What is read is bounded by that size before it is read.
    pub fn open(path: &Path, memory_bytes: u64) -> Result<Self, OpenError> {
        let read = |source| OpenError::Read { path: path.to_path_buf(), source };
        let damaged = |problem| OpenError::Damaged { path: path.to_path_buf(), problem };
        let file = fs_err::File::open(path).map_err(read)?.into_parts().0;
        let length = file.metadata().map_err(read)?.len();
        if length < HEADER_BYTES {
            return Err(damaged("it is shorter than its header"));
        }
        let mut head = [0; 112];
        file.read_exact_at(&mut head, 0).map_err(read)?;
        let header = Header::parse(&head).map_err(|problem| match problem {
            Unusable::Version(version) => OpenError::Version { path: path.to_path_buf(), version },
            Unusable::Damaged(problem) => damaged(problem),
        })?;
        if header.memory_bytes != memory_bytes {
            return Err(OpenError::Memory { path: path.to_path_buf(), found: header.memory_bytes, expected: memory_bytes });
        }
        let index_bytes = header.check_layout(length).map_err(damaged)?;
        let mut index = vec![0; index_bytes];
        file.read_exact_at(&mut index, header.index_offset).map_err(read)?;
        if blake3::hash(&index) != header.index_digest {
            return Err(damaged("its index does not match its digest"));
        }
        let runs = decode_runs(&index, memory_bytes / PAGE_BYTES, header.data_pages).map_err(damaged)?;
        Ok(Self { file, runs, data_pages: header.data_pages })
    }

    /// The runs, in ascending order.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// Pages stored in the file.
    pub fn data_pages(&self) -> u64 {
        self.data_pages
    }

    /// Fills `buffer` with stored pages, `first` being the number of the first one in file order.
    pub fn read_data(&self, first: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, HEADER_BYTES + first * PAGE_BYTES)
    }
}

enum Unusable {
    Version(u32),
    Damaged(&'static str),
}

struct Header {
    memory_bytes: u64,
    runs: u64,
    data_pages: u64,
    index_offset: u64,
    index_digest: blake3::Hash,
}

impl Header {
    fn parse(head: &[u8; 112]) -> Result<Self, Unusable> {
        let u32_at = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes"));
        let u64_at = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("eight bytes"));
        let digest_at = |at: usize| blake3::Hash::from_bytes(head[at..at + 32].try_into().expect("32 bytes"));
        if head[..8] != MAGIC {
            return Err(Unusable::Damaged("it does not begin with the magic of a memory diff"));
        }
        if u32_at(8) != VERSION {
            return Err(Unusable::Version(u32_at(8)));
        }
        if blake3::hash(&head[..80]) != digest_at(80) {
            return Err(Unusable::Damaged("its header does not match its digest"));
        }
        if u64::from(u32_at(12)) != PAGE_BYTES {
            return Err(Unusable::Damaged("its page size is not 4096"));
        }
        Ok(Self {
            memory_bytes: u64_at(16),
            runs: u64_at(24),
            data_pages: u64_at(32),
            index_offset: u64_at(40),
            index_digest: digest_at(48),
        })
    }

    /// Checks every size against the others and the file's length; gives the index's bytes. Nothing here can overflow.
    fn check_layout(&self, length: u64) -> Result<usize, &'static str> {
        let pages = self.memory_bytes / PAGE_BYTES;
        if self.memory_bytes > MAX_MEMORY_BYTES || self.runs > pages || self.data_pages > pages {
            return Err("it counts more pages than the machine has");
        }
        if self.index_offset != HEADER_BYTES + self.data_pages * PAGE_BYTES {
            return Err("its index does not follow its data");
        }
        if length != self.index_offset + self.runs * RUN_BYTES {
            return Err("its length is not what its header says");
        }
        usize::try_from(self.runs * RUN_BYTES).map_err(|_| "its index is too large for this host")
    }
}

fn decode_runs(index: &[u8], memory_pages: u64, data_pages: u64) -> Result<Vec<Run>, &'static str> {
    let mut runs = Vec::with_capacity(index.len() / 16);
    let (mut next_page, mut counted) = (0, 0);
    for entry in index.chunks_exact(16) {
        let first_page = u64::from_le_bytes(entry[..8].try_into().expect("eight bytes"));
        let pages = u32::from_le_bytes(entry[8..12].try_into().expect("four bytes"));
        let content = match u32::from_le_bytes(entry[12..].try_into().expect("four bytes")) {
            0 => Content::Data,
            1 => Content::Zero,
            _ => return Err("a run is of an unknown kind"),
        };
        if pages == 0 || first_page < next_page {
            return Err("its runs are not in order");
        }
        next_page =
            first_page.checked_add(u64::from(pages)).filter(|&end| end <= memory_pages).ok_or("a run ends outside memory")?;
        if content == Content::Data {
            counted += u64::from(pages);
        }
        runs.push(Run { first_page, pages, content });
    }
    if counted != data_pages {
        return Err("its runs do not add up to its data");
    }
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const MEMORY: u64 = 64 * PAGE_BYTES;

    /// Page number to its fill byte; 0 is a zero page.
    fn write(path: &Path, pages: &BTreeMap<u64, u8>) {
        let mut writer = Writer::create(path, MEMORY).unwrap();
        let mut data = Vec::new();
        for (&page, &fill) in pages {
            writer.note(page, if fill == 0 { Content::Zero } else { Content::Data });
            if fill != 0 {
                data.extend([fill; 4096]);
            }
        }
        writer.append(&data).unwrap();
        writer.finish().unwrap();
    }

    fn read(path: &Path) -> Result<BTreeMap<u64, u8>, OpenError> {
        let diff = Diff::open(path, MEMORY)?;
        let (mut pages, mut stored) = (BTreeMap::new(), 0);
        for run in diff.runs() {
            for page in run.range() {
                let mut bytes = [0; 4096];
                if run.content == Content::Data {
                    diff.read_data(stored, &mut bytes).unwrap();
                    stored += 1;
                }
                pages.insert(page, bytes[4095]);
            }
        }
        Ok(pages)
    }

    #[test]
    fn an_empty_diff_is_a_diff() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("diff");
        write(&path, &BTreeMap::new());
        assert!(read(&path).unwrap().is_empty());
    }

    #[test]
    fn a_diff_of_another_machine_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("diff");
        write(&path, &BTreeMap::from([(1, 1)]));
        assert!(matches!(Diff::open(&path, MEMORY * 2), Err(OpenError::Memory { .. })));
    }

    #[test]
    fn an_unfinished_diff_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("diff");
        let mut writer = Writer::create(&path, MEMORY).unwrap();
        writer.note(3, Content::Data);
        writer.append(&[1; 4096]).unwrap();
        drop(writer);
        assert!(matches!(Diff::open(&path, MEMORY), Err(OpenError::Damaged { .. })));
    }

    #[test]
    fn runs_that_lie_are_refused() {
        let run = |first_page, pages, content| encode_run(&Run { first_page, pages, content });
        let data = Content::Data;
        for (index, data_pages) in [
            (vec![run(0, 1, data), run(0, 1, data)], 2),
            (vec![run(5, 2, data), run(4, 1, data)], 3),
            (vec![run(63, 2, data)], 2),
            (vec![run(u64::MAX, 2, data)], 2),
            (vec![run(1, 0, data)], 0),
            (vec![run(1, 1, data)], 2),
        ] {
            assert!(decode_runs(&index.concat(), 64, data_pages).is_err(), "{index:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_was_written_reads_back(pages in proptest::collection::btree_map(0u64..64, 0u8..3, 0..40)) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("diff");
            write(&path, &pages);
            prop_assert_eq!(read(&path).unwrap(), pages);
        }

        #[test]
        fn any_damage_to_header_or_index_is_refused(
            pages in proptest::collection::btree_map(0u64..64, 0u8..3, 1..8),
            place in any::<prop::sample::Index>(),
            flip in 1u8..=255,
            truncate in any::<bool>(),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("diff");
            write(&path, &pages);
            let mut bytes = fs_err::read(&path).unwrap();
            let data = pages.values().filter(|&&fill| fill != 0).count() * 4096;
            // The bytes that are checked: the header's used part and the index.
            let checked: Vec<usize> = (0..112).chain(4096 + data..bytes.len()).collect();
            let at = checked[place.index(checked.len())];
            if truncate { bytes.truncate(at) } else { bytes[at] ^= flip }
            fs_err::write(&path, &bytes).unwrap();
            prop_assert!(read(&path).is_err());
        }
    }
}
