//! Artifacts that are on other hosts: who brings them, and why one did not come.

use std::{
    error::Error,
    fmt::{self, Debug},
    io,
};

use bytes::Bytes;
use futures::{future::BoxFuture, stream::BoxStream};

use super::archive::UnpackError;
use crate::{ground::ids::ArtifactId, host::disk::DiskPressure};

/// An archive as it comes.
pub type Coming = BoxStream<'static, io::Result<Bytes>>;

/// Has an archive come, without the contents of these digests (BLAKE3, hexadecimal), which are here. What comes all the same is passed over.
pub type Take = Box<dyn FnOnce(Vec<String>) -> BoxFuture<'static, Result<Coming, FetchError>> + Send>;

/// What another host has.
pub struct Offered {
    /// What its archive says of itself ([`Export::header`](crate::moving::Export::header)).
    pub header: Bytes,
    /// Has it come.
    pub take: Take,
}

impl Debug for Offered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Offered").field("header", &self.header).finish_non_exhaustive()
    }
}

/// Where artifacts come from that are on record and not here. Asked before anything is decided by one; what comes is believed as far as
/// its digests go.
pub trait Fetch: Debug + Send + Sync {
    /// Who has an artifact with all that it stands on, and offers it as [`export_artifact`](crate::runtime::Runtime::export_artifact) makes
    /// an archive of it.
    fn fetch<'a>(&'a self, artifact: &'a ArtifactId) -> BoxFuture<'a, Result<Offered, FetchError>>;
}

/// Why an artifact did not come. Nothing of it is visible here.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Who has it cannot be asked now, or nobody has it.
    #[error("it is not on this host, and {place}")]
    Away {
        /// Where it is, as a clause: "the only copy is on node-b, which has been away for 43 s".
        place: String,
        /// Why that could not be asked, if it was.
        #[source]
        source: Option<Box<dyn Error + Send + Sync>>,
    },
    /// What came is damaged, cut off, or of something that is another here.
    #[error("it is not on this host, and what came of it cannot be taken in")]
    Unpack(#[from] UnpackError),
    /// Something else came.
    #[error("it is not on this host, and artifact `{found}` came in its place")]
    Another {
        /// What came.
        found: ArtifactId,
    },
    /// The disk has no room for it.
    #[error("it is not on this host, and the disk has no room for it")]
    Disk(#[from] DiskPressure),
}
