//! Artifacts that are on other hosts: who brings them, and why one did not come.

use std::{error::Error, fmt::Debug, io};

use bytes::Bytes;
use futures::{future::BoxFuture, stream::BoxStream};

use super::archive::UnpackError;
use crate::{ground::ids::ArtifactId, host::disk::DiskPressure};

/// An archive as it comes.
pub type Coming = BoxStream<'static, io::Result<Bytes>>;

/// Where artifacts come from that are on record and not here. Asked before anything is decided by one; what comes is believed as far as
/// its digests go.
pub trait Fetch: Debug + Send + Sync {
    /// An archive of an artifact with all that it stands on, as [`export_artifact`](crate::runtime::Runtime::export_artifact) makes it.
    fn fetch<'a>(&'a self, artifact: &'a ArtifactId) -> BoxFuture<'a, Result<Coming, FetchError>>;
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
