//! From an artifact to a session: the steps of a restore, and how deep the warm pool is to be.

pub mod warm;

mod steps;

pub(crate) use self::steps::Proven;
pub use self::steps::{RestoreGates, SnapshotRestoreError, SnapshotRestoreReport, restore};
