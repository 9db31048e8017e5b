//! Who keeps count of what a directory holds.

use std::fmt;

use rustix::io::Errno;

/// What all that a change touched takes of the disk, as [`Room::size`] has it: before and after.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Before the change.
    pub before: u64,
    /// After it.
    pub after: u64,
}

/// How much there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Figures {
    /// Bytes in use.
    pub used: u64,
    /// The most.
    pub quota: u64,
}

/// Counts what is in a directory, and says how much more may be.
pub trait Room: fmt::Debug + Send + Sync {
    /// What an entry counts as that has so many bytes of the disk.
    fn size(&self, allocated: u64) -> u64;

    /// Makes a change that takes `most` bytes more at most, while no other is made. Without room for that it is not begun
    /// (`EDQUOT`, or `ENOSPC` where the disk has none). What only removes asks for nothing, and is never refused. Blocks.
    fn change(&self, most: u64, change: &mut dyn FnMut() -> Result<Sizes, Errno>) -> Result<(), Errno>;

    /// What is in use, and how much may be.
    fn figures(&self) -> Figures;
}
