//! From the store to a file: received by a task, unpacked, hashed and written by one thread. The file has its name only when it is right.

use std::{
    io::{self, Read, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use fs_err as fs;
use fs_err::os::unix::fs::OpenOptionsExt as _;
use futures::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use object_store::ObjectStoreExt as _;
use tokio::sync::mpsc;

use crate::{
    Blob, Copies, CopyError, Damage, Digest,
    error::{Asked, sorted},
};

/// A copy as it comes, packed, in pieces.
pub type Packed = BoxStream<'static, Result<Bytes, CopyError>>;

/// Unpacked at once.
const WRITE_BYTES: usize = 1 << 20;

/// A page of zeros is a hole: where there was one, there is one again.
const HOLE_BYTES: usize = 4096;

/// What of the past a packed file may refer to, as a power of two: 8 MiB, where level 1 refers to half a MiB.
const MAX_WINDOW_LOG: u32 = 23;

/// Chunks that were received and not yet unpacked.
const AHEAD: usize = 4;

impl Copies {
    /// Fetches `blob` to `to`, which has that name only when it is right; beside it, until then, is a file that ends with `.part`.
    /// Whole pages of zeros become holes. Durable when this returns, but for the name.
    pub async fn get(&self, blob: &Blob, to: &Path) -> Result<(), CopyError> {
        let path = blob.path();
        let mut stream = self.packed(blob).await?;
        let (sink, chunks) = mpsc::channel::<Bytes>(AHEAD);
        let unpacking = {
            let (blob, to) = (*blob, to.to_owned());
            tokio::task::spawn_blocking(move || unpack(chunks, &blob, &to))
        };
        let received = loop {
            match stream.try_next().await {
                Ok(Some(chunk)) => {
                    // Who unpacks says why it takes no more.
                    if sink.send(chunk).await.is_err() {
                        break Ok(());
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        drop(sink);
        let unpacked = unpacking.await.unwrap_or_else(|error| Err(Unpack::File(io::Error::other(error))));
        let file = |source| CopyError::File { path: to.to_owned(), source };
        // What was broken off cannot be right.
        received?;
        let part = unpacked.map_err(|error| match error {
            Unpack::Damaged(source) => CopyError::Damaged { name: path.to_string(), source },
            Unpack::File(source) => file(source),
        })?;
        part.keep(to).map_err(file)
    }

    /// Fetches `blob` as it is kept: packed with zstd, and not looked at but for its length. Whoever unpacks it finds out whether it is right.
    pub async fn packed(&self, blob: &Blob) -> Result<Packed, CopyError> {
        let path = blob.path();
        let found = self.store.get(&path).await.map_err(|error| sorted(&error, Asked::Read, "fetch", path.as_ref()))?;
        let most = most_packed(blob.bytes);
        if found.meta.size > most {
            return Err(CopyError::Damaged { name: path.to_string(), source: Damage::Longer { expected: most } });
        }
        let pace = Arc::clone(&self.pace);
        let chunks = found.into_stream().map_err(move |error| sorted(&error, Asked::Read, "fetch", path.as_ref()));
        let paced = chunks.and_then(move |chunk| {
            let pace = Arc::clone(&pace);
            async move {
                pace.take(chunk.len() as u64).await;
                Ok(chunk)
            }
        });
        Ok(paced.boxed())
    }
}

/// No packed file is longer, however little could be packed.
fn most_packed(bytes: u64) -> u64 {
    bytes + bytes / 64 + (64 << 10)
}

/// Why a file did not come about.
enum Unpack {
    Damaged(Damage),
    File(io::Error),
}

/// A file that is not what it will be, and is gone unless it is kept.
struct Part {
    path: PathBuf,
    kept: bool,
}

impl Part {
    fn beside(to: &Path) -> Self {
        let mut path = to.as_os_str().to_owned();
        path.push(".part");
        Self { path: path.into(), kept: false }
    }

    fn keep(mut self, to: &Path) -> io::Result<()> {
        fs::rename(&self.path, to)?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "cannot remove what was not fetched");
        }
    }
}

fn unpack(chunks: mpsc::Receiver<Bytes>, blob: &Blob, to: &Path) -> Result<Part, Unpack> {
    let part = Part::beside(to);
    let mut file = fs::OpenOptions::new();
    let file = file.write(true).create(true).truncate(true).mode(0o600).open(&part.path).map_err(Unpack::File)?;
    let mut packed = zstd::stream::read::Decoder::new(Chunks { chunks, now: Bytes::new() }).map_err(Unpack::File)?;
    packed.window_log_max(MAX_WINDOW_LOG).map_err(Unpack::File)?;
    let mut sparse = Sparse { file, at: 0 };
    let (mut hasher, mut buffer) = (blake3::Hasher::new(), vec![0; WRITE_BYTES]);
    loop {
        let bytes = fill(&mut packed, &mut buffer).map_err(|error| Unpack::Damaged(Damage::Packing(error)))?;
        if sparse.at + bytes as u64 > blob.bytes {
            return Err(Unpack::Damaged(Damage::Longer { expected: blob.bytes }));
        }
        hasher.update(&buffer[..bytes]);
        sparse.write(&buffer[..bytes]).map_err(Unpack::File)?;
        if bytes < buffer.len() {
            break;
        }
    }
    if sparse.at != blob.bytes {
        return Err(Unpack::Damaged(Damage::Size { expected: blob.bytes, found: sparse.at }));
    }
    let found = Digest::from(hasher.finalize());
    if found != blob.blake3 {
        return Err(Unpack::Damaged(Damage::Digest { expected: blob.blake3, found }));
    }
    sparse.finish().map_err(Unpack::File)?;
    Ok(part)
}

/// Reads until the buffer is full, or there is no more.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(bytes) => filled += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// What was received, as something to be read.
struct Chunks {
    chunks: mpsc::Receiver<Bytes>,
    now: Bytes,
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.now.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.now = chunk,
                None => return Ok(0),
            }
        }
        let bytes = self.now.len().min(buffer.len());
        buffer[..bytes].copy_from_slice(&self.now.split_to(bytes));
        Ok(bytes)
    }
}

/// A file whose pages of zeros are not written.
struct Sparse {
    file: fs::File,
    at: u64,
}

impl Sparse {
    /// Writes from page to page: the buffer begins at one.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let is_hole = |page: &[u8]| page.len() == HOLE_BYTES && page.iter().all(|byte| *byte == 0);
        let mut rest = bytes;
        while !rest.is_empty() {
            let hole = is_hole(&rest[..rest.len().min(HOLE_BYTES)]);
            let pages = rest.chunks(HOLE_BYTES).take_while(|page| is_hole(page) == hole);
            let (run, after) = rest.split_at(pages.map(<[u8]>::len).sum());
            if hole {
                self.file.seek(SeekFrom::Current(i64::try_from(run.len()).map_err(io::Error::other)?))?;
            } else {
                self.file.write_all(run)?;
            }
            self.at += run.len() as u64;
            rest = after;
        }
        Ok(())
    }

    fn finish(self) -> io::Result<()> {
        self.file.set_len(self.at)?;
        self.file.sync_all()
    }
}
