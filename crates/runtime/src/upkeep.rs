//! What keeps the state directory in order without anybody asking.

pub mod catalogue;
pub(crate) mod copies;
pub(crate) mod disk_budget;
mod programs;
pub mod restore_from;
pub mod sandbox_quota;
pub mod upgrade;
pub mod verify;
