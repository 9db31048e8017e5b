//! What users have besides sandboxes: keys, secrets, volumes, files that they brought for builds, and what their
//! sandboxes are known by.

pub mod keys;
pub mod secrets;
pub(crate) mod uploads;
pub mod volumes;
pub mod workload;
