//! How the failure of a system call is reported to the client: one list, for the codes of Connect and for HTTP's statuses.
//!
//! What a client's own wish runs into (a socket where a file should be, a link that leads to itself, a full disk) is told as that.
//! `resource_exhausted` and 429 are never said: the SDKs tell both as "rate limit exceeded, try again later", which helps nobody.

use std::io;

use axum::http::StatusCode;
use connectrpc::ConnectError;
use nix::errno::Errno;

use super::error::ApiError;

/// Kinds of trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// There is nothing of that name.
    Absent,
    /// The path cannot mean what is wanted: another kind of file stands there, or above it, or the path leads nowhere.
    Unsuitable,
    /// Something stands where something is to be made.
    InTheWay,
    /// Not even root may.
    Denied,
    /// It is in use, or not of this file system.
    Unready,
    /// No room on the disk, or none that the owner may take.
    Full,
    /// Everything else should not have happened.
    Unexpected,
}

impl Trouble {
    /// The trouble by an error's kind: `fs-err` gives errors a path and hides their number.
    pub(super) fn of(error: &io::Error) -> Self {
        use io::ErrorKind as Kind;
        match error.kind() {
            Kind::NotFound => Self::Absent,
            Kind::NotADirectory | Kind::IsADirectory | Kind::InvalidFilename | Kind::InvalidInput => Self::Unsuitable,
            Kind::AlreadyExists | Kind::DirectoryNotEmpty => Self::InTheWay,
            Kind::PermissionDenied | Kind::ReadOnlyFilesystem => Self::Denied,
            Kind::ResourceBusy | Kind::ExecutableFileBusy | Kind::CrossesDevices => Self::Unready,
            Kind::StorageFull | Kind::QuotaExceeded | Kind::FileTooLarge => Self::Full,
            // The kind of a link that leads to itself has no name yet.
            kind if kind == io::Error::from(Errno::ELOOP).kind() => Self::Unsuitable,
            _ => Self::Unexpected,
        }
    }

    /// Whether a file of a tree is only passed over for it: it is gone by now, cannot be named, or is not ours to see.
    pub(super) fn passes(self) -> bool {
        matches!(self, Self::Absent | Self::Unsuitable | Self::Denied)
    }

    /// As Connect tells it.
    pub(super) fn connect(self, text: String) -> ConnectError {
        match self {
            Self::Absent => ConnectError::not_found(text),
            Self::Unsuitable => ConnectError::invalid_argument(text),
            Self::InTheWay => ConnectError::already_exists(text),
            Self::Denied => ConnectError::permission_denied(text),
            Self::Unready | Self::Full => ConnectError::failed_precondition(text),
            Self::Unexpected => ConnectError::internal(text),
        }
    }

    /// As the plain routes tell it.
    pub(super) fn api(self, text: String) -> ApiError {
        let status = match self {
            Self::Absent => StatusCode::NOT_FOUND,
            Self::Unsuitable => StatusCode::BAD_REQUEST,
            Self::InTheWay | Self::Unready => StatusCode::CONFLICT,
            Self::Denied => StatusCode::FORBIDDEN,
            Self::Full => StatusCode::INSUFFICIENT_STORAGE,
            Self::Unexpected => StatusCode::INTERNAL_SERVER_ERROR,
        };
        ApiError::new(status, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_known_under_the_path_that_it_was_given() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("loop");
        fs_err::os::unix::fs::symlink(&link, &link).unwrap();
        assert_eq!(Trouble::of(&fs_err::metadata(&link).unwrap_err()), Trouble::Unsuitable);
        assert_eq!(Trouble::of(&fs_err::read(dir.path().join("none")).unwrap_err()), Trouble::Absent);
        assert_eq!(Trouble::of(&fs_err::write("/dev/full", "x").unwrap_err()), Trouble::Full);
        assert_eq!(Trouble::of(&io::Error::from(io::ErrorKind::NotFound)), Trouble::Absent);
        assert_eq!(Trouble::of(&io::Error::other("x")), Trouble::Unexpected);
    }

    #[test]
    fn a_full_disk_is_no_rate_limit() {
        let error = Trouble::Full.connect(String::new());
        assert_eq!(error.code, connectrpc::ErrorCode::FailedPrecondition);
        assert_eq!(Trouble::Full.api(String::new()).status, StatusCode::INSUFFICIENT_STORAGE);
    }
}
