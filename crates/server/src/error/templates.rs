//! What went wrong with templates, builds and tags, as clients see it.

use firkin_runtime::{
    build::error::{FilesError, NoBuild, RequestError},
    tags::TagError,
    templates::DeleteError,
};
use http::StatusCode;

use super::ApiError;

impl From<TagError> for ApiError {
    fn from(error: TagError) -> Self {
        match &error {
            TagError::NoTemplate(absent) => absent.clone().into(),
            TagError::NoSuchTag { tag, name } => {
                Self::new(StatusCode::NOT_FOUND, format!("tag '{tag}' does not exist for template '{name}'"))
            }
            TagError::Malformed(_) | TagError::Nameless(_) | TagError::Tagged(_) | TagError::Count { .. } | TagError::Default => {
                Self::bad_request(error.to_string())
            }
            TagError::Store(_) => Self::internal(&error),
        }
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Store(_) => Self::internal(&error),
            RequestError::Name(_)
            | RequestError::Tags { .. }
            | RequestError::FewCpus
            | RequestError::ManyCpus { .. }
            | RequestError::OddCpus
            | RequestError::LittleMemory { .. }
            | RequestError::OddMemory
            | RequestError::NegativeFreeDisk
            | RequestError::MuchMemory { .. } => Self::bad_request(error.to_string()),
        }
    }
}

impl From<NoBuild> for ApiError {
    fn from(error: NoBuild) -> Self {
        match error {
            NoBuild::Malformed => Self::bad_request(error.to_string()),
            NoBuild::NotFound { .. } => Self::new(StatusCode::NOT_FOUND, error.to_string()),
            NoBuild::Started(_) => Self::new(StatusCode::CONFLICT, error.to_string()),
            NoBuild::Stopping => Self::stopping(),
            NoBuild::TeamQuota(error) => Self::team_quota(&error),
            NoBuild::Store(_) => Self::internal(&error),
        }
    }
}

impl From<FilesError> for ApiError {
    fn from(error: FilesError) -> Self {
        match &error {
            FilesError::Hash(_) => Self::bad_request(error.to_string()),
            FilesError::TooLarge { .. } => Self::new(StatusCode::PAYLOAD_TOO_LARGE, error.to_string()),
            FilesError::Store { .. } => Self::internal(&error),
            FilesError::DiskPressure(pressure) => Self::disk(&error, pressure),
        }
    }
}

impl From<DeleteError> for ApiError {
    fn from(error: DeleteError) -> Self {
        match &error {
            DeleteError::NotFound(absent) => absent.clone().into(),
            // The contract has 400 for templates. A conflict says more, and clients show the message either way.
            DeleteError::InUse { .. } => Self::new(StatusCode::CONFLICT, error.to_string()),
            DeleteError::Store(_) => Self::internal(&error),
        }
    }
}
