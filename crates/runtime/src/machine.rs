//! One machine, from its start to its end: what it is joined to, where its files are, and how its guest is spoken to. Nothing
//! here knows why it runs.

pub mod agent;
pub mod command;
pub mod engines;
pub mod fence;
pub(crate) mod forward;
pub mod groups;
pub mod guest_file;
pub(crate) mod instances;
pub mod launch;
pub mod network;
pub mod outbound;
pub(crate) mod quiescence;
pub(crate) mod session;
pub(crate) mod volumes;
