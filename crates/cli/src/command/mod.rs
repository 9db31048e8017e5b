//! The commands, one module each.

pub(crate) mod env;
pub(crate) mod exec;
pub(crate) mod sandbox;
pub(crate) mod template;
