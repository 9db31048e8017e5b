//! Which failures of a resume are refusals, as those of a create are.

use super::ResumeError;
use crate::{sandbox::refusal::of_restore, telemetry::changes::Refused, upkeep::sandbox_quota::QuotaError};

/// Why a resume was refused, if it was.
pub(super) fn of_resume(error: &ResumeError) -> Option<Refused> {
    match error {
        ResumeError::Restore { source, .. } => of_restore(source),
        ResumeError::Quota { source: QuotaError::Team(_), .. } => Some(Refused::TeamQuota),
        ResumeError::Quota { source: QuotaError::Disk { .. }, .. } => Some(Refused::Disk),
        ResumeError::Quota { .. }
        | ResumeError::NotFound(_)
        | ResumeError::AlreadyRunning(_)
        | ResumeError::InvalidTimeout(_)
        | ResumeError::Stale(_)
        | ResumeError::Stopping
        | ResumeError::Store(_) => None,
    }
}
