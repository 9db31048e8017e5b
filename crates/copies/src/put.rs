//! From a file to the store: read, hashed and packed by one thread, sent in parts by a task, at most three of which are in memory.
//!
//! The last part follows only when the digest was right, and an upload that is not completed has no name.

use std::{
    io::{self, Read, Write},
    path::Path,
};

use bytes::Bytes;
use fs_err as fs;
use fs_err::os::unix::fs::OpenOptionsExt as _;
use object_store::{MultipartUpload, ObjectStoreExt as _, PutPayload};
use rustix::fs::OFlags;
use tokio::sync::mpsc;

use crate::{
    Blob, Copies, CopyError, Damage, Digest,
    error::{Asked, sorted},
};

/// The fastest level: memory and disks have zeros and text, and one core keeps a network of one gigabit busy with it.
const LEVEL: i32 = 1;

/// The least part: S3 wants five MiB.
const PART_BYTES: u64 = 8 << 20;

/// The most parts of one upload is 10,000; what cannot be packed is a little longer packed.
const MAX_PARTS: u64 = 9_000;

/// What is read at once.
const READ_BYTES: usize = 1 << 20;

/// Opens what is to be copied.
pub type Content = Box<dyn FnOnce() -> Result<Box<dyn Read>, CopyError> + Send>;

/// What became of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// There was one.
    Present,
    /// It was made, of so many packed bytes.
    Copied {
        /// Packed.
        stored: u64,
    },
}

impl Copies {
    /// Copies `file`, which must be `blob`, unless there is a copy. Nothing is visible until all of it was right. Who drops this ends it;
    /// then the store may keep parts that no name leads to, which its own rules remove.
    pub async fn put(&self, blob: &Blob, file: &Path) -> Result<Put, CopyError> {
        if self.has(&blob.blake3).await? {
            return Ok(Put::Present);
        }
        let (blob, path) = (*blob, file.to_owned());
        self.put_read(&blob, file, Box::new(move || open(&path, &blob))).await
    }

    /// Copies what is read from `content`, which must be `blob` and is of the file `file`, whether or not there is a copy: one that is there is
    /// replaced once all of this was right. As [`put`](Self::put) otherwise.
    pub async fn put_read(&self, blob: &Blob, file: &Path, content: Content) -> Result<Put, CopyError> {
        let (sink, mut parts) = mpsc::channel(1);
        let (blob, file) = (*blob, file.to_owned());
        let packing = {
            let file = file.clone();
            tokio::task::spawn_blocking(move || pack(&file, &blob, content()?, sink))
        };
        let sent = self.send(&blob, &mut parts).await;
        // Whoever packs stops when nobody takes it.
        drop(parts);
        let packed = packing.await.unwrap_or_else(|error| Err(unusable(&file, io::Error::other(error))));
        match (sent, packed) {
            // Why nothing more came is why it was not sent.
            (Ok(sent), Ok(())) => sent.complete().await,
            (Ok(sent), Err(error)) => {
                sent.abort().await;
                Err(error)
            }
            (Err(error), _) => Err(error),
        }
    }

    /// Sends what comes, all but what makes it visible.
    async fn send<'a>(&'a self, blob: &Blob, parts: &mut mpsc::Receiver<Bytes>) -> Result<Sent<'a>, CopyError> {
        let first = parts.recv().await.unwrap_or_default();
        let Some(second) = parts.recv().await else {
            return Ok(Sent::Small { copies: self, blob: *blob, bytes: first });
        };
        let path = blob.path();
        let failed = |error: object_store::Error| sorted(&error, Asked::Write, "copy", path.as_ref());
        let mut upload = self.store.put_multipart(&path).await.map_err(failed)?;
        let (mut next, mut stored) = (Some(first), 0);
        let mut after = Some(second);
        while let Some(part) = next {
            let bytes = part.len() as u64;
            self.pace.take(bytes).await;
            if let Err(error) = upload.put_part(PutPayload::from(part)).await {
                abort(upload).await;
                return Err(failed(error));
            }
            stored += bytes;
            next = match after.take() {
                Some(part) => Some(part),
                None => parts.recv().await,
            };
        }
        Ok(Sent::Parts { upload, blob: *blob, stored })
    }
}

/// What is sent, and not yet visible.
enum Sent<'a> {
    /// Not even sent: it is one part.
    Small {
        copies: &'a Copies,
        blob: Blob,
        bytes: Bytes,
    },
    Parts {
        upload: Box<dyn MultipartUpload>,
        blob: Blob,
        stored: u64,
    },
}

impl Sent<'_> {
    async fn complete(self) -> Result<Put, CopyError> {
        let failed = |blob: &Blob, error: &object_store::Error| sorted(error, Asked::Write, "copy", blob.path().as_ref());
        match self {
            Self::Small { copies, blob, bytes } => {
                let stored = bytes.len() as u64;
                copies.pace.take(stored).await;
                let put = copies.store.put(&blob.path(), PutPayload::from(bytes)).await;
                put.map(|_| Put::Copied { stored }).map_err(|error| failed(&blob, &error))
            }
            Self::Parts { mut upload, blob, stored } => match upload.complete().await {
                Ok(_) => Ok(Put::Copied { stored }),
                Err(error) => {
                    abort(upload).await;
                    Err(failed(&blob, &error))
                }
            },
        }
    }

    async fn abort(self) {
        if let Self::Parts { upload, .. } = self {
            abort(upload).await;
        }
    }
}

/// Has the store forget parts. It may be away; its own rules remove them then.
async fn abort(mut upload: Box<dyn MultipartUpload>) {
    if let Err(error) = upload.abort().await {
        tracing::debug!(reason = %crate::Reason::new(&error.to_string()), "the store keeps parts of an upload that was broken off");
    }
}

fn unusable(path: &Path, source: io::Error) -> CopyError {
    CopyError::File { path: path.to_owned(), source }
}

/// Opens `file`, which must be as long as `blob`.
fn open(file: &Path, blob: &Blob) -> Result<Box<dyn Read>, CopyError> {
    let failed = |source| unusable(file, source);
    let flags = i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or(0);
    let open = fs::OpenOptions::new().read(true).custom_flags(flags).open(file).map_err(failed)?;
    let found = open.metadata().map_err(failed)?.len();
    if found != blob.bytes {
        let source = Damage::Size { expected: blob.bytes, found };
        return Err(CopyError::Damaged { name: file.display().to_string(), source });
    }
    Ok(Box::new(open))
}

/// Reads what must be `blob`, of the file `file`, and gives it packed, in parts. Its last part only when it was that.
fn pack(file: &Path, blob: &Blob, mut open: Box<dyn Read>, sink: mpsc::Sender<Bytes>) -> Result<(), CopyError> {
    let failed = |source| unusable(file, source);
    let damaged = |source| CopyError::Damaged { name: file.display().to_string(), source };
    let part = usize::try_from(PART_BYTES.max(blob.bytes / MAX_PARTS)).map_err(|error| failed(io::Error::other(error)))?;
    let parts = Parts { file, full: Vec::new(), part, sink };
    let mut packer = zstd::stream::write::Encoder::new(parts, LEVEL).map_err(failed)?;
    let (mut hasher, mut buffer, mut read) = (blake3::Hasher::new(), vec![0; READ_BYTES], 0);
    loop {
        let bytes = open.read(&mut buffer).map_err(failed)?;
        if bytes == 0 {
            break;
        }
        read += bytes as u64;
        if read > blob.bytes {
            return Err(damaged(Damage::Longer { expected: blob.bytes }));
        }
        hasher.update(&buffer[..bytes]);
        packer.write_all(&buffer[..bytes]).map_err(failed)?;
    }
    let found = Digest::from(hasher.finalize());
    if read != blob.bytes {
        return Err(damaged(Damage::Size { expected: blob.bytes, found: read }));
    }
    if found != blob.blake3 {
        return Err(damaged(Damage::Digest { expected: blob.blake3, found }));
    }
    packer.finish().and_then(Parts::finish).map_err(failed)
}

/// Where packed bytes become parts of one length.
struct Parts<'a> {
    file: &'a Path,
    full: Vec<u8>,
    part: usize,
    sink: mpsc::Sender<Bytes>,
}

impl Parts<'_> {
    fn give(&mut self) -> io::Result<()> {
        let part = Bytes::from(std::mem::take(&mut self.full));
        // Then why nobody takes it is what is told.
        self.sink.blocking_send(part).map_err(|_| io::Error::other(format!("`{}` is not wanted any more", self.file.display())))
    }

    fn finish(mut self) -> io::Result<()> {
        if self.full.is_empty() { Ok(()) } else { self.give() }
    }
}

impl Write for Parts<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(self.part - self.full.len());
        self.full.extend_from_slice(&bytes[..taken]);
        if self.full.len() == self.part {
            self.give()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
