//! Which failures of a start are refusals: nothing is wrong with what was asked for, and nothing of it has begun. Whoever watches the host
//! is told of these, with one word each.

use crate::{
    capacity::admission::AdmissionError,
    ground::team::TeamId,
    restore::SnapshotRestoreError,
    sandbox::CreateError,
    shared::Shared,
    store::spec::RuntimeSandbox,
    telemetry::changes::{AdmissionEvent, Refused, What},
};

/// Why a restore was refused, if it was.
pub(crate) fn of_restore(error: &SnapshotRestoreError) -> Option<Refused> {
    match error {
        SnapshotRestoreError::Admission(AdmissionError::NeverFits(_)) => Some(Refused::TooLarge),
        SnapshotRestoreError::Admission(AdmissionError::QueueFull { .. }) => Some(Refused::QueueFull),
        SnapshotRestoreError::Admission(AdmissionError::Deadline { .. }) => Some(Refused::Deadline),
        SnapshotRestoreError::Admission(AdmissionError::Memory(_)) => Some(Refused::Memory),
        SnapshotRestoreError::DiskPressure(_) => Some(Refused::Disk),
        SnapshotRestoreError::Network(_) => Some(Refused::Network),
        SnapshotRestoreError::Integrity { .. }
        | SnapshotRestoreError::Sealed { .. }
        | SnapshotRestoreError::Incompatible { .. }
        | SnapshotRestoreError::NoMemory { .. }
        | SnapshotRestoreError::FilesInMemory(_)
        | SnapshotRestoreError::Boot(_)
        | SnapshotRestoreError::Launch(_) => None,
    }
}

/// Why a create was refused, if it was.
pub(crate) fn of_create(error: &CreateError) -> Option<Refused> {
    match error {
        CreateError::Restore { source, .. } => of_restore(source),
        CreateError::TeamQuota(_) => Some(Refused::TeamQuota),
        CreateError::NoTemplate(_)
        | CreateError::InvalidTimeout(_)
        | CreateError::Metadata(_)
        | CreateError::FilesInMemory(_)
        | CreateError::Outbound(_)
        | CreateError::Volumes(_)
        | CreateError::Trust(_)
        | CreateError::Stopping
        | CreateError::Store(_) => None,
    }
}

/// Tells those who watch that a team was refused something.
pub(crate) fn tell(shared: &Shared, team: &TeamId, subject: &str, reason: Option<Refused>) {
    let Some(reason) = reason else { return };
    let (event, subject) = (AdmissionEvent::Refused, subject.to_owned());
    shared.changes.tell(Some(team), What::Admission { event, reason, subject });
}

/// As [`tell`], of the children of a fork.
pub(crate) fn tell_of_fork(shared: &Shared, team: &TeamId, subject: &str, children: &[Result<RuntimeSandbox, CreateError>]) {
    for error in children.iter().filter_map(|child| child.as_ref().err()) {
        tell(shared, team, subject, of_create(error));
    }
}
