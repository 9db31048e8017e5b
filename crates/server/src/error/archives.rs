//! What becomes of exports and imports that are refused.

use firkin_causes::chain;
use firkin_runtime::{
    artifact::{
        FetchError,
        archive::{PackError, UnpackError},
    },
    moving::{ExportError, ImportError},
    restore::SnapshotRestoreError,
    sandbox::MountsError,
};
use http::StatusCode;

use super::{ApiError, CAPACITY_RETRY_SECONDS, Retry};

/// The archive is not what was exported.
fn damaged(what: &dyn std::error::Error) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, chain(what)).code("archive_damaged").retry(Retry::Never)
}

/// It was made for another host than this one is.
fn foreign(what: &dyn std::error::Error) -> ApiError {
    ApiError::new(StatusCode::CONFLICT, chain(what)).code("archive_foreign").retry(Retry::Never)
}

/// Something else has the id or the name of what is in it.
fn taken(what: &dyn std::error::Error) -> ApiError {
    ApiError::new(StatusCode::CONFLICT, chain(what)).code("archive_taken").retry(Retry::Never)
}

impl From<ExportError> for ApiError {
    fn from(error: ExportError) -> Self {
        match &error {
            ExportError::NoTemplate(absent) => absent.clone().into(),
            ExportError::NoSandbox(absent) => absent.clone().into(),
            ExportError::NoArtifact(_) => Self::not_found(error.to_string()),
            ExportError::Running(_) | ExportError::Pack { source: PackError::Sealed { .. }, .. } => Self::conflict(chain(&error)),
            ExportError::Pack { .. } | ExportError::Store(_) => Self::internal(&error),
        }
    }
}

impl From<ImportError> for ApiError {
    fn from(error: ImportError) -> Self {
        match &error {
            ImportError::InvalidName(_) | ImportError::Unnameable | ImportError::Kind { .. } | ImportError::Artifact => {
                Self::bad_request(error.to_string())
            }
            ImportError::Record { .. } => damaged(&error),
            ImportError::Unpack(source) => Self::unpack(&error, source),
            ImportError::Incompatible(source) => match &**source {
                SnapshotRestoreError::Incompatible { .. } => foreign(&error),
                _ => Self::internal(&error),
            },
            ImportError::Volumes(MountsError::Volumes(_)) => Self::internal(&error),
            ImportError::Volumes(_) => foreign(&error),
            ImportError::Stopping => Self::stopping(),
            ImportError::Taken(_) => taken(&error),
            ImportError::Disk(pressure) => Self::disk(&error, pressure),
            ImportError::Store(_) => Self::internal(&error),
        }
    }
}

impl ApiError {
    /// What is needed is on another host. Nothing was done, and what is there is as it was.
    pub(super) fn elsewhere(what: &(dyn std::error::Error + 'static), why: &FetchError) -> Self {
        match why {
            FetchError::Disk(pressure) => Self::disk(what, pressure),
            FetchError::Away { .. } | FetchError::Unpack(_) | FetchError::Another { .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, chain(what))
                    .code("artifact_elsewhere")
                    .retry(Retry::After(CAPACITY_RETRY_SECONDS))
            }
        }
    }

    fn unpack(what: &(dyn std::error::Error + 'static), source: &UnpackError) -> Self {
        match source {
            UnpackError::NotAnArchive(_)
            | UnpackError::HeaderTooLong { .. }
            | UnpackError::Header(_)
            | UnpackError::Contradiction { .. }
            | UnpackError::Entry { .. }
            | UnpackError::Read { .. }
            | UnpackError::Damaged { .. }
            | UnpackError::Layer { .. } => damaged(what),
            UnpackError::Format { .. } | UnpackError::Sealed { .. } => foreign(what),
            UnpackError::Taken { .. } => taken(what),
            UnpackError::Encrypts => Self::conflict(chain(what)),
            UnpackError::Busy => Self::conflict(chain(what)).retry(Retry::After(CAPACITY_RETRY_SECONDS)),
            UnpackError::Here { .. } | UnpackError::LayerHere { .. } | UnpackError::File { .. } | UnpackError::Publish(_) => {
                Self::internal(what)
            }
        }
    }
}
