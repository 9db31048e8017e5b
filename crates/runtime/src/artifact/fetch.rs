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

/// What of an archive need not come, by digests (BLAKE3, hexadecimal).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AlreadyHere {
    /// Contents that are here, the largest first.
    pub whole: Vec<String>,
    /// Contents whose first bytes are here, and how many: they broke off the last time.
    pub begun: Vec<(String, u64)>,
}

/// Has an archive come, without what is here. What comes all the same is passed over; of what has begun, all or the rest may come.
pub type Take = Box<dyn FnOnce(AlreadyHere) -> BoxFuture<'static, Result<Coming, FetchError>> + Send>;

/// What another place has.
pub struct Offered {
    /// What that place is called, for as long as it is asked.
    pub place: String,
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
    /// an archive of it. The places in `but` are not asked: it did not come from there.
    fn fetch<'a>(&'a self, artifact: &'a ArtifactId, but: &'a [String]) -> BoxFuture<'a, Result<Offered, FetchError>>;

    /// Hears that what came of an artifact from a place could not be taken in.
    fn failed<'a>(&'a self, artifact: &'a ArtifactId, place: &'a str, error: &'a FetchError) -> BoxFuture<'a, ()>;
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

impl FetchError {
    /// Whether another place may have it as it must be. What this host cannot do, it cannot do with another's either.
    pub(crate) fn is_of_its_place(&self) -> bool {
        match self {
            Self::Away { .. } | Self::Another { .. } => true,
            Self::Disk(_) => false,
            Self::Unpack(error) => match error {
                UnpackError::NotAnArchive(_)
                | UnpackError::HeaderTooLong { .. }
                | UnpackError::Header(_)
                | UnpackError::Format { .. }
                | UnpackError::Sealed { .. }
                | UnpackError::Contradiction { .. }
                | UnpackError::Entry { .. }
                | UnpackError::Read { .. }
                | UnpackError::Damaged { .. }
                | UnpackError::Layer { .. } => true,
                UnpackError::Taken { .. }
                | UnpackError::Here { .. }
                | UnpackError::Encrypts
                | UnpackError::Busy
                | UnpackError::LayerHere { .. }
                | UnpackError::File { .. }
                | UnpackError::Publish(_) => false,
            },
        }
    }

    /// Whether it may be that it only broke off on its way.
    pub(crate) fn is_cut(&self) -> bool {
        matches!(self, Self::Unpack(UnpackError::Read { .. } | UnpackError::NotAnArchive(_)))
    }
}
