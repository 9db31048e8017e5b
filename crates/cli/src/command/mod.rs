//! The commands, one module each.

pub(crate) mod api_key;
pub(crate) mod audit;
pub(crate) mod bench;
pub(crate) mod doctor;
mod engines;
pub(crate) mod env;
pub(crate) mod exec;
mod hosting;
pub(crate) mod key;
pub(crate) mod quickstart;
pub(crate) mod sandbox;
mod speed;
pub(crate) mod team;
pub(crate) mod template;
pub(crate) mod up;
pub(crate) mod verify;
