//! The free space that a template was asked to leave to its sandboxes.
//!
//! E2B makes a disk as large as it must be for that. Here the size comes with the source, whose file system all of its sandboxes
//! share: it is not made larger, and a build that would leave less than was asked for fails instead of saying nothing. What the
//! source cannot hold is refused before a step is carried out, the rest once everything is in place.

use super::{error::BuildFailure, log::BuildLog};

/// What one build was asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    pub(super) asked_mib: Option<u64>,
}

impl Room {
    pub(super) fn asked(self) -> bool {
        self.asked_mib.is_some()
    }

    /// Refuses what a disk of this size could not have free if it were empty.
    pub(super) fn possible(self, disk_mib: u64) -> Result<(), BuildFailure> {
        match self.asked_mib {
            Some(asked_mib) if asked_mib > disk_mib => Err(BuildFailure::SmallDisk { disk_mib, asked_mib }),
            Some(_) | None => Ok(()),
        }
    }

    /// Has the guest asked how many bytes are free, if that matters.
    pub(super) async fn check(
        self,
        free_bytes: impl Future<Output = Result<u64, BuildFailure>>,
        log: &BuildLog,
    ) -> Result<(), BuildFailure> {
        let Some(asked_mib) = self.asked_mib else { return Ok(()) };
        let free_mib = free_bytes.await? >> 20;
        if free_mib < asked_mib {
            return Err(BuildFailure::LittleFreeDisk { free_mib, asked_mib });
        }
        log.info(format!("{free_mib} MiB of the root file system are free, {asked_mib} MiB were asked for"));
        Ok(())
    }
}
