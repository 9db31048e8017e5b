//! Copies off the host: files by what is in them, and small records that name them, in a bucket of S3 or in a directory.
//!
//! ```text
//!   blobs/<blake3>                    one file, zstd; the digest is that of the plain bytes
//!   artifacts/<id>/files.json         which blobs its members are
//!                  integrity.json     what they must be
//!                  manifest.json      what it is; written last: what has one is there whole
//!                  archive.json      or all of this in one, where blobs are what archives carry; written last
//!   catalogue/<time>.json             which blobs a backup of the catalogue is
//!   installation.json                 whose copies these are
//! ```
//!
//! A store is believed nothing: what comes from it is bounded before it is read, hashed while it is written, and has no name on this host
//! until it is right. What goes there is hashed as it is read, and has no name there until it was what it was said to be. Whatever is
//! broken off is begun again with the next blob that is not there.
//!
//! This crate knows bytes and names, and neither sandboxes nor what their files mean.

use std::{fmt, num::NonZeroU64, sync::Arc, time::Duration};

use fs_err as fs;
use futures::TryStreamExt as _;
use object_store::{
    BackoffConfig, ClientOptions, ObjectStore, ObjectStoreExt as _, PutPayload, RetryConfig,
    aws::{AmazonS3Builder, AmazonS3ConfigKey},
    local::LocalFileSystem,
    path::Path,
    prefix::PrefixStore,
};
use url::Url;

mod access;
mod destination;
mod error;
mod get;
mod name;
mod pace;
mod put;

pub use access::{Access, AccessError};
pub use destination::{Destination, DestinationError};
pub use error::{CopyError, Damage, Reason};
pub use get::Packed;
pub use name::{Blob, Digest, Name, NameError, Record};
pub use pace::Backoff;
pub use put::{Content, Put};

use error::{Asked, sorted};
use name::{ARCHIVE, ARTIFACTS, BLOBS, CATALOGUE, MANIFEST, blob_path};
use pace::Pace;

/// The longest record: an integrity record of a deep disk has 64 KiB.
const MAX_RECORD_BYTES: u64 = 4 << 20;

/// The most objects that one listing reads: a host has thousands, and what has more is no store of ours.
const MAX_LISTED: usize = 4_000_000;

/// How long one request may wait for its answer, which for a part of eight MiB is 30 KiB a second.
const ANSWER_DEADLINE: Duration = Duration::from_secs(300);

/// How long a connection may take.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// What one store is asked for, and how persistently.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes a second that go there and come from there, packed; `None` for all that the network gives.
    pub bytes_per_second: Option<NonZeroU64>,
    /// How often one request is repeated that was not answered, or with an error of the server's: a part, not the whole file.
    pub repeats: usize,
    /// The longest wait before one is.
    pub longest_wait: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes_per_second: None, repeats: 6, longest_wait: Duration::from_secs(15) }
    }
}

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its directory cannot be made, or not be made private.
    #[error("cannot use `{}` for copies", path.display())]
    Directory {
        /// Which one.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Its address has credentials in it.
    #[error("the address of the store must not have credentials in it: they come from the environment or a file")]
    Credentials,
    /// One of the variables by which it is reached cannot be used.
    #[error("cannot reach a store by these `AWS_…` variables")]
    Variables(#[source] Reason),
}

/// A store of copies. Clones share it, and its bandwidth.
#[derive(Clone)]
pub struct Copies {
    store: Arc<dyn ObjectStore>,
    pace: Arc<Pace>,
}

impl fmt::Debug for Copies {
    /// Not the store's own: that may have our credentials in it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Copies").finish_non_exhaustive()
    }
}

impl Copies {
    /// The store at this place. A directory is made; whether a bucket is there shows when it is used.
    pub fn open(destination: &Destination, access: &Access, limits: &Limits) -> Result<Self, OpenError> {
        let store: Arc<dyn ObjectStore> = match destination {
            Destination::S3 { bucket, prefix } => {
                let store = s3(bucket, access, limits)?;
                if prefix.is_empty() { Arc::new(store) } else { Arc::new(PrefixStore::new(store, prefix.as_str())) }
            }
            Destination::Directory(path) => {
                let failed = |source| OpenError::Directory { path: path.clone(), source };
                private_dirs(path).map_err(failed)?;
                let local = LocalFileSystem::new_with_prefix(path);
                let local = local.map_err(|error| failed(std::io::Error::other(Reason::new(&error.to_string()))))?;
                // A copy that a power failure takes is none.
                Arc::new(local.with_fsync(true))
            }
        };
        Ok(Self { store, pace: Arc::new(Pace::new(limits.bytes_per_second)) })
    }

    /// Whether there is a copy of this.
    pub async fn has(&self, digest: &Digest) -> Result<bool, CopyError> {
        let path = blob_path(digest);
        match self.store.head(&path).await {
            Ok(_) => Ok(true),
            Err(error) => match sorted(&error, Asked::Read, "look for a copy", path.as_ref()) {
                CopyError::Absent { .. } => Ok(false),
                other => Err(other),
            },
        }
    }

    /// Writes a record in the place of one that may be there: whole or not at all.
    pub async fn put_record(&self, record: &Record, text: Vec<u8>) -> Result<(), CopyError> {
        let path = record.path();
        self.pace.take(text.len() as u64).await;
        let put = self.store.put(&path, PutPayload::from(text)).await;
        put.map(drop).map_err(|error| sorted(&error, Asked::Write, "keep a record", path.as_ref()))
    }

    /// Reads a record. One of more than four MiB is damaged, and is not read.
    pub async fn record(&self, record: &Record) -> Result<Vec<u8>, CopyError> {
        let path = record.path();
        let failed = |error: object_store::Error| sorted(&error, Asked::Read, "read a record", path.as_ref());
        let found = self.store.get(&path).await.map_err(failed)?;
        let too_long = || CopyError::Damaged { name: path.to_string(), source: Damage::Longer { expected: MAX_RECORD_BYTES } };
        if found.meta.size > MAX_RECORD_BYTES {
            return Err(too_long());
        }
        let mut text = Vec::new();
        let mut stream = found.into_stream();
        while let Some(bytes) = stream.try_next().await.map_err(failed)? {
            if (text.len() + bytes.len()) as u64 > MAX_RECORD_BYTES {
                return Err(too_long());
            }
            text.extend_from_slice(&bytes);
        }
        Ok(text)
    }

    /// The artifacts that are there whole, in no order. What has another name than an artifact's is none.
    pub async fn artifacts(&self) -> Result<Vec<Name>, CopyError> {
        Ok(self.list(ARTIFACTS).await?.iter().filter_map(|found| artifact(&found.location, MANIFEST)).collect())
    }

    /// The archives that are there whole, and since when, in seconds since 1970 by the store's clock.
    pub async fn archives(&self) -> Result<Vec<(Name, i64)>, CopyError> {
        let found = self.list(ARTIFACTS).await?;
        let named = |path: &Path| artifact(path, ARCHIVE);
        Ok(found.iter().filter_map(|found| Some((named(&found.location)?, found.last_modified.timestamp()))).collect())
    }

    /// The backups of the catalogue, oldest first.
    pub async fn catalogues(&self) -> Result<Vec<Name>, CopyError> {
        let named = |path: &Path| path.filename()?.strip_suffix(".json")?.parse().ok();
        let mut names: Vec<Name> = self.list(CATALOGUE).await?.iter().filter_map(|found| named(&found.location)).collect();
        names.sort();
        Ok(names)
    }

    /// The blobs that are there, and since when, in seconds since 1970 by the store's clock.
    pub async fn blobs(&self) -> Result<Vec<(Digest, i64)>, CopyError> {
        let found = self.list(BLOBS).await?;
        let named = |path: &Path| path.filename()?.parse().ok();
        Ok(found.iter().filter_map(|found| Some((named(&found.location)?, found.last_modified.timestamp()))).collect())
    }

    async fn list(&self, below: &str) -> Result<Vec<object_store::ObjectMeta>, CopyError> {
        let failed = |error: object_store::Error| sorted(&error, Asked::Read, "list copies", below);
        let mut listing = self.store.list(Some(&Path::from(below)));
        let mut found = Vec::new();
        while let Some(object) = listing.try_next().await.map_err(failed)? {
            if found.len() == MAX_LISTED {
                let source = Damage::Longer { expected: MAX_LISTED as u64 };
                return Err(CopyError::Damaged { name: below.to_owned(), source });
            }
            found.push(object);
        }
        Ok(found)
    }

    /// Removes a record. One that is not there is removed.
    pub async fn remove_record(&self, record: &Record) -> Result<(), CopyError> {
        self.remove(&record.path()).await
    }

    /// Removes a copy. One that is not there is removed.
    pub async fn remove_blob(&self, digest: &Digest) -> Result<(), CopyError> {
        self.remove(&blob_path(digest)).await
    }

    async fn remove(&self, path: &Path) -> Result<(), CopyError> {
        let removed = self.store.delete(path).await;
        match removed.map_err(|error| sorted(&error, Asked::Read, "remove a copy", path.as_ref())) {
            Err(CopyError::Absent { .. }) => Ok(()),
            other => other,
        }
    }
}

/// Whose file of this name it is.
fn artifact(path: &Path, file: &str) -> Option<Name> {
    let mut parts = path.parts().skip(1);
    let (name, found) = (parts.next()?, parts.next()?);
    if found.as_ref() == file && parts.next().is_none() { name.as_ref().parse().ok() } else { None }
}

/// What is copied is as secret as what it is a copy of.
fn private_dirs(path: &std::path::Path) -> std::io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
    fs::create_dir_all(path)?;
    for name in [BLOBS, ARTIFACTS, CATALOGUE] {
        let dir = path.join(name);
        match std::fs::DirBuilder::new().mode(0o700).create(&dir) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            made => made?,
        }
        fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

fn s3(bucket: &str, access: &Access, limits: &Limits) -> Result<object_store::aws::AmazonS3, OpenError> {
    // Only one of the process's parts can have installed it before us.
    drop(rustls::crypto::ring::default_provider().install_default());
    let options =
        ClientOptions::new().with_timeout_disabled().with_read_timeout(ANSWER_DEADLINE).with_connect_timeout(CONNECT_DEADLINE);
    let backoff = BackoffConfig { init_backoff: Duration::from_millis(200), max_backoff: limits.longest_wait, base: 2.0 };
    let retry = RetryConfig { backoff, max_retries: limits.repeats, retry_timeout: ANSWER_DEADLINE };
    let mut builder = AmazonS3Builder::new().with_client_options(options);
    for (name, value) in access.variables() {
        // Others are about other programs of AWS.
        let Ok(key) = name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>() else { continue };
        if matches!(key, AmazonS3ConfigKey::Endpoint | AmazonS3ConfigKey::S3Endpoint)
            && let Ok(url) = Url::parse(value)
        {
            if !url.username().is_empty() || url.password().is_some() {
                return Err(OpenError::Credentials);
            }
            builder = builder.with_allow_http(is_loopback(&url));
        }
        builder = builder.with_config(key, value);
    }
    let store = builder.with_bucket_name(bucket).with_retry(retry).build();
    store.map_err(|error| OpenError::Variables(Reason::new(&error.to_string())))
}

/// Whether nobody else hears what is said to it in the clear. Others are spoken to in the clear where `AWS_ALLOW_HTTP` says so.
fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    }
}
