//! Root images without their zeros: a file system of 10 GiB has a tenth of that in it, and the rest is not worth being read.
//!
//! ```text
//!   ( offset, length: u64, little-endian; bytes )*   each run of 64 KiB that is not all zeros, in order
//!   size, 0: u64                                     the end
//! ```
//!
//! Where a file has its holes makes no difference, so that equal images have equal forms on every host.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
    path::Path,
};

use fs_err as fs;
use nix::{
    errno::Errno,
    unistd::{Whence, lseek},
};

/// Bytes that are there or not, together.
const RUN: u64 = 64 << 10;

/// What stands before each run.
const HEAD: usize = 16;

/// Reads a file in this form.
pub(super) struct Sparse {
    file: File,
    size: u64,
    at: u64,
    /// What was not given yet of the last run.
    ready: io::Cursor<Vec<u8>>,
    ended: bool,
}

impl Sparse {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = fs::File::open(path)?.into_parts().0;
        let size = file.metadata()?.len();
        Ok(Self { file, size, at: 0, ready: io::Cursor::default(), ended: false })
    }

    /// Finds the next run.
    fn advance(&mut self) -> io::Result<()> {
        let mut bytes = Vec::new();
        while let Some(offset) = self.next_data()? {
            let length = RUN.min(self.size - offset);
            self.at = offset + length;
            bytes.resize(usize::try_from(length).map_err(io::Error::other)?, 0);
            self.file.read_exact_at(&mut bytes, offset)?;
            if bytes.iter().any(|&byte| byte != 0) {
                self.ready = io::Cursor::new([&head(offset, length)[..], &bytes].concat());
                return Ok(());
            }
        }
        self.ended = true;
        self.ready = io::Cursor::new(head(self.size, 0).to_vec());
        Ok(())
    }

    /// Where the next run begins that is no hole.
    fn next_data(&self) -> io::Result<Option<u64>> {
        if self.at >= self.size {
            return Ok(None);
        }
        let at = i64::try_from(self.at).map_err(io::Error::other)?;
        match lseek(&self.file, at, Whence::SeekData) {
            Ok(found) => Ok(Some(u64::try_from(found).map_err(io::Error::other)? / RUN * RUN)),
            Err(Errno::ENXIO) => Ok(None),
            // Not every file system knows.
            Err(Errno::EINVAL) => Ok(Some(self.at)),
            Err(error) => Err(error.into()),
        }
    }
}

impl Read for Sparse {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut read = self.ready.read(buffer)?;
        while read == 0 && !self.ended && !buffer.is_empty() {
            self.advance()?;
            read = self.ready.read(buffer)?;
        }
        Ok(read)
    }
}

fn head(offset: u64, length: u64) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    head[..8].copy_from_slice(&offset.to_le_bytes());
    head[8..].copy_from_slice(&length.to_le_bytes());
    head
}

/// Writes what `from` has in this form to the file `to`, which is empty, with holes for zeros. It came from outside: what is not in this
/// form, or is of another size, is refused.
pub(super) fn expand(from: &mut impl Read, size: u64, to: &File) -> io::Result<()> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, "it is not in the form of root images");
    let (mut at, mut bytes) = (0, Vec::new());
    loop {
        let mut head = [0; HEAD];
        from.read_exact(&mut head)?;
        let word = |at: usize| Ok::<u64, io::Error>(u64::from_le_bytes(head[at..at + 8].try_into().map_err(io::Error::other)?));
        let (offset, length) = (word(0)?, word(8)?);
        if length == 0 {
            let has_more = io::copy(&mut from.take(1), &mut io::sink())? > 0;
            return if offset == size && !has_more { to.set_len(size) } else { Err(invalid()) };
        }
        let fits = offset >= at && offset.is_multiple_of(RUN) && offset < size && length == RUN.min(size - offset);
        if !fits {
            return Err(invalid());
        }
        bytes.resize(usize::try_from(length).map_err(io::Error::other)?, 0);
        from.read_exact(&mut bytes)?;
        to.write_all_at(&bytes, offset)?;
        at = offset + length;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn packed(path: &Path) -> Vec<u8> {
        let mut bytes = Vec::new();
        Sparse::open(path).unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn an_image_is_the_same_wherever_its_holes_are_and_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let mut content = vec![0; 1 << 20];
        content[100..200].fill(1);
        content[300_000..300_010].fill(2);
        content.extend([0, 3]);
        fs::write(path("dense"), &content).unwrap();
        let sparse = fs::File::create(path("sparse")).unwrap();
        sparse.file().write_all_at(&content[..200], 0).unwrap();
        sparse.file().write_all_at(&content[299_000..300_010], 299_000).unwrap();
        sparse.file().write_all_at(&[3], content.len() as u64 - 1).unwrap();
        let form = packed(&path("dense"));
        assert_eq!(form, packed(&path("sparse")));
        assert_eq!(form.len() as u64, 2 * RUN + 2 + 4 * HEAD as u64);
        let out = fs::File::create(path("out")).unwrap();
        expand(&mut &form[..], content.len() as u64, out.file()).unwrap();
        assert_eq!(fs::read(path("out")).unwrap(), content);
        assert!(fs::metadata(path("out")).unwrap().blocks() * 512 <= 4 * RUN);

        for (empty, size) in [("none", 0), ("hole", 1 << 30)] {
            fs::File::create(path(empty)).unwrap().set_len(size).unwrap();
            assert_eq!(packed(&path(empty)), head(size, 0));
        }
    }

    #[test]
    fn what_is_in_no_such_form_is_refused() {
        let run = |offset: u64, length: u64| [&head(offset, length)[..], &vec![1; usize::try_from(length).unwrap()]].concat();
        let end = head(4 * RUN, 0).to_vec();
        let cases: [(&str, Vec<Vec<u8>>); 7] = [
            ("nothing", vec![]),
            ("no end", vec![run(0, RUN)]),
            ("another size", vec![head(RUN, 0).to_vec()]),
            ("backwards", vec![run(RUN, RUN), run(0, RUN), end.clone()]),
            ("odd", vec![run(1, RUN), end.clone()]),
            ("beyond", vec![run(4 * RUN, RUN), end.clone()]),
            ("more", vec![end.clone(), vec![0]]),
        ];
        for (name, parts) in cases {
            let file = tempfile::tempfile().unwrap();
            assert!(expand(&mut &parts.concat()[..], 4 * RUN, &file).is_err(), "{name}");
        }
        let file = tempfile::tempfile().unwrap();
        expand(&mut &[run(3 * RUN, RUN), end].concat()[..], 4 * RUN, &file).unwrap();
    }
}
