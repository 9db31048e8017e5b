//! The commands, one module each.

pub(crate) mod api_key;
pub(crate) mod audit;
pub(crate) mod bench;
pub(crate) mod config;
mod copy;
pub(crate) mod doctor;
mod engines;
pub(crate) mod env;
pub(crate) mod events;
pub(crate) mod exec;
mod forward;
mod hosting;
pub(crate) mod key;
pub(crate) mod log_level;
mod logs;
pub(crate) mod pages;
pub(crate) mod quickstart;
pub(crate) mod sandbox;
mod speed;
pub(crate) mod team;
pub(crate) mod template;
pub(crate) mod top;
pub(crate) mod up;
pub(crate) mod upgrade_check;
pub(crate) mod verify;
mod watch;
pub(crate) mod webhook;
