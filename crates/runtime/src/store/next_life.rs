//! What is on record of a sandbox once its next life is claimed, before anything of that life has begun: its number has risen, and what holds
//! the sandbox is what held it. Whoever claims it and fails leaves it as it was, but for the number.

use super::{Held, RecordedPhase, SandboxRecord, StoreError, from_json, to_json};

/// A sandbox whose next life is claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NextLife {
    /// Its record.
    pub body: String,
    /// The number of that life.
    pub epoch: u64,
}

impl SandboxRecord {
    /// A record as it is in the column `body`.
    pub(crate) fn read(body: &str) -> Result<Self, StoreError> {
        from_json("sandboxes", body)
    }

    /// Whether others could have it once its host is lost: something holds it that is not its machine.
    pub(crate) fn can_be_claimed(&self) -> bool {
        matches!(self.phase, RecordedPhase::Paused(_))
    }

    /// With the next life claimed, and what holds it. None where nothing holds it but its machine: there is nothing that another life could begin with.
    /// Its number is `first` at least.
    pub(crate) fn claimed(&self, first: u64) -> Option<(Self, Held)> {
        let RecordedPhase::Paused(held) = &self.phase else { return None };
        let held = Held { epoch: Some(held.epoch.unwrap_or(self.epoch)), ..held.clone() };
        let claimed = Self { epoch: first.max(self.epoch + 1), phase: RecordedPhase::Paused(held.clone()), ..self.clone() };
        Some((claimed, held))
    }
}

/// Claims the next life in a record, as it is in the column `body`. Its number is `first` at least.
pub fn next_life(body: &str, first: u64) -> Result<Option<NextLife>, StoreError> {
    let record: SandboxRecord = from_json("sandboxes", body)?;
    let claimed = record.claimed(first);
    claimed.map(|(next, _)| Ok(NextLife { body: to_json("sandboxes", &next)?, epoch: next.epoch })).transpose()
}
