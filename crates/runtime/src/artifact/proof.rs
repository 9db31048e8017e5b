//! Proofs of integrity: what a file was found to contain, remembered for as long as it is the same file.
//!
//! A proof needs every byte read, so it is made once and remembered under the identity of the file: device, inode, size,
//! modification and change time. Members are read-only files of root; whatever rewrites one changes that identity.
//!
//! The book of proofs outlives the process, so that a restart reads nothing again. It is only ever a shortcut: what is missing
//! from it, or stands there under another identity, is read. A book that is damaged or of another version is an empty one.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use fs_err as fs;
use serde::{Deserialize, Serialize};

use super::{
    manifest::MemberIntegrity,
    member::{self, Identity},
};

/// Name and version of the book's format; the digest of all that follows comes after it on the first line.
const BOOK_HEAD: &str = "firkin-proofs 1 ";

/// The longest book that is read. A proof has some 300 bytes, and an artifact has a handful of members.
const MAX_BOOK_BYTES: u64 = 64 << 20;

/// What a file was found to contain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Proof {
    /// Where it was seen last: by that the book knows when it is gone.
    path: PathBuf,
    blake3: String,
}

/// What has been proven. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Proofs {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    book: PathBuf,
    proven: Mutex<Proven>,
    /// Held while the book is written.
    writing: Mutex<()>,
    bytes_read: AtomicU64,
}

#[derive(Debug, Default)]
struct Proven {
    by_file: HashMap<Identity, Proof>,
    /// Whether it differs from the book.
    changed: bool,
}

impl Proofs {
    /// What the book at `book` tells, or nothing.
    pub(super) fn open(book: PathBuf) -> Self {
        let by_file = match read_book(&book) {
            Ok(by_file) => by_file,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(%error, "cannot use the remembered proofs; members are read again");
                }
                HashMap::new()
            }
        };
        let proven = Mutex::new(Proven { by_file, changed: false });
        Self { shared: Arc::new(Shared { book, proven, writing: Mutex::default(), bytes_read: AtomicU64::new(0) }) }
    }

    fn proven(&self) -> MutexGuard<'_, Proven> {
        // A panic cannot leave more behind than a proof too few.
        self.shared.proven.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that proofs were made from since the start.
    pub(super) fn bytes_read(&self) -> u64 {
        self.shared.bytes_read.load(Ordering::Relaxed)
    }

    /// Whether the file at `path` is proven, so that it need not be read.
    pub(super) fn knows(&self, path: &Path) -> io::Result<bool> {
        let identity = Identity::of(path)?;
        Ok(self.proven().by_file.contains_key(&identity))
    }

    /// Size and digest of a file, from memory when it has been read before.
    pub(super) fn digest(&self, path: &Path) -> io::Result<MemberIntegrity> {
        let identity = Identity::of(path)?;
        if let Some(known) = self.proven().by_file.get_mut(&identity) {
            if known.path != path {
                path.clone_into(&mut known.path);
            }
            return Ok(MemberIntegrity { bytes: identity.bytes, blake3: known.blake3.clone() });
        }
        self.read(path)
    }

    /// Size and digest of a file, read from the disk whatever is remembered of it.
    pub(super) fn read(&self, path: &Path) -> io::Result<MemberIntegrity> {
        let identity = Identity::of(path)?;
        let hasher = member::digest(path)?;
        self.shared.bytes_read.fetch_add(hasher.count(), Ordering::Relaxed);
        let blake3 = hasher.finalize().to_hex().to_string();
        if Identity::of(path)? != identity {
            return Err(io::Error::other("the file changed while it was read"));
        }
        let mut proven = self.proven();
        proven.by_file.insert(identity, Proof { path: path.to_owned(), blake3: blake3.clone() });
        proven.changed = true;
        Ok(MemberIntegrity { bytes: identity.bytes, blake3 })
    }

    /// Has the file read again the next time.
    pub(super) fn forget(&self, path: &Path) {
        if let Ok(identity) = Identity::of(path) {
            let mut proven = self.proven();
            proven.changed |= proven.by_file.remove(&identity).is_some();
        }
    }

    /// Writes the book if there is something new, without what is gone. A book that cannot be written costs reading, no more.
    pub(super) fn save(&self) {
        let _writing = self.shared.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let known: Vec<(Identity, Proof)> = {
            let mut proven = self.proven();
            if !std::mem::take(&mut proven.changed) {
                return;
            }
            proven.by_file.iter().map(|(identity, proof)| (*identity, proof.clone())).collect()
        };
        let is_there = |(identity, proof): &(Identity, Proof)| Identity::of(&proof.path).is_ok_and(|now| now == *identity);
        let (kept, gone): (Vec<_>, Vec<_>) = known.into_iter().partition(is_there);
        {
            let mut proven = self.proven();
            for (identity, _) in &gone {
                proven.by_file.remove(identity);
            }
        }
        if let Err(error) = write_book(&self.shared.book, &kept) {
            tracing::warn!(%error, "cannot write the book of proofs");
        }
    }
}

fn write_book(path: &Path, proofs: &[(Identity, Proof)]) -> io::Result<()> {
    let body = serde_json::to_string(proofs)?;
    let temporary = path.with_extension("new");
    let text = format!("{BOOK_HEAD}{}\n{body}", blake3::hash(body.as_bytes()).to_hex());
    // Not synced: one that a power failure tears does not match its digest.
    crate::ground::private::private_file(&temporary, text.as_bytes())?;
    fs::rename(&temporary, path)
}

fn read_book(path: &Path) -> io::Result<HashMap<Identity, Proof>> {
    let invalid = |problem: &'static str| io::Error::new(io::ErrorKind::InvalidData, problem);
    if fs::metadata(path)?.len() > MAX_BOOK_BYTES {
        return Err(invalid("it is longer than a book of proofs can be"));
    }
    let text = fs::read_to_string(path)?;
    let (head, body) = text.split_once('\n').ok_or_else(|| invalid("it has no first line"))?;
    let digest = head.strip_prefix(BOOK_HEAD).ok_or_else(|| invalid("it is of another version"))?;
    if blake3::hash(body.as_bytes()).to_hex().as_str() != digest {
        return Err(invalid("it does not match its digest"));
    }
    Ok(serde_json::from_str::<Vec<(Identity, Proof)>>(body)?.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_outlives_the_process_and_holds_for_the_same_file_only() {
        let dir = tempfile::tempdir().unwrap();
        let (book, file) = (dir.path().join("proofs"), dir.path().join("file"));
        fs::write(&file, b"content").unwrap();
        let first = Proofs::open(book.clone());
        let proven = first.digest(&file).unwrap();
        first.save();

        let second = Proofs::open(book.clone());
        assert!(second.knows(&file).unwrap());
        assert_eq!((second.digest(&file).unwrap(), second.bytes_read()), (proven, 0));
        fs::write(&file, b"CONTENT").unwrap();
        assert!(!second.knows(&file).unwrap(), "it was written since");
        second.digest(&file).unwrap();
        assert_eq!(second.bytes_read(), 7);
    }

    #[test]
    fn a_book_forgets_what_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let (book, kept, gone) = (dir.path().join("proofs"), dir.path().join("kept"), dir.path().join("gone"));
        let proofs = Proofs::open(book.clone());
        for path in [&kept, &gone] {
            fs::write(path, path.as_os_str().as_encoded_bytes()).unwrap();
            proofs.digest(path).unwrap();
        }
        fs::remove_file(&gone).unwrap();
        proofs.save();
        let entries = read_book(&book).unwrap();
        assert_eq!(entries.values().map(|proof| &proof.path).collect::<Vec<_>>(), [&kept]);
    }

    #[test]
    fn a_damaged_book_is_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        let (book, file) = (dir.path().join("proofs"), dir.path().join("file"));
        fs::write(&file, b"content").unwrap();
        let proofs = Proofs::open(book.clone());
        proofs.digest(&file).unwrap();
        proofs.save();
        let good = fs::read_to_string(&book).unwrap();
        for bad in
            [&good[..good.len() - 1], &good.replacen("proofs 1", "proofs 2", 1), &good.replace("\"bytes\":7", "\"bytes\":8"), ""]
        {
            fs::write(&book, bad).unwrap();
            assert!(!Proofs::open(book.clone()).knows(&file).unwrap(), "{bad}");
        }
        fs::write(&book, good).unwrap();
        assert!(Proofs::open(book).knows(&file).unwrap());
    }
}
