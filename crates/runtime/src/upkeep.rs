//! What keeps the state directory in order without anybody asking.

pub(crate) mod disk_budget;
pub mod verify;
