//! What becomes of sandboxes that do not go from one node to another.

use firkin_causes::chain;
use firkin_runtime::{owner::MoveError, relocating::TakeOverError};
use http::StatusCode;

use super::{ApiError, OF_A_SANDBOX, Retry};

impl From<MoveError> for ApiError {
    fn from(error: MoveError) -> Self {
        match error {
            MoveError::NotFound(absent) => absent.into(),
            MoveError::Bound(bound) => Self::conflict(chain(&bound)),
            MoveError::Pause(source) => source.into(),
            MoveError::Refused { .. } | MoveError::Paused { .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, chain(&error)).code("sandbox_not_moved").retry(Retry::Never)
            }
        }
    }
}

impl From<TakeOverError> for ApiError {
    fn from(error: TakeOverError) -> Self {
        match &error {
            TakeOverError::NotFound(absent) => absent.clone().into(),
            TakeOverError::Running(_) | TakeOverError::Held { .. } | TakeOverError::Bound(_) => Self::conflict(chain(&error)),
            TakeOverError::Restore { source, .. } => Self::restore(&error, source, OF_A_SANDBOX),
            TakeOverError::Stale(_) | TakeOverError::Store(_) => Self::internal(&error),
            TakeOverError::Resume { .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, chain(&error)).code("sandbox_not_moved").retry(Retry::Never)
            }
        }
    }
}
