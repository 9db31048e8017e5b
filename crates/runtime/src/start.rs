//! How machines come to run: from a state or from nothing, from the warm pool or not. Sandboxes and builds stand on it, and it
//! knows of neither's registry.

pub(crate) mod boot;
pub(crate) mod fetching;
pub(crate) mod forgetting;
pub(crate) mod identity;
pub(crate) mod life;
mod phases;
pub mod pool;
mod prepared;
pub(crate) mod reboot;

pub(crate) use self::{
    phases::{Found, Launched, Recorded},
    prepared::PreparedTemplate,
};
